"""A trial with more epochs goes on from the end of a shorter one, and equals one that was trained at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_dataset, make_trial, needs_compiler, run_sweep
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sweeps.driver.options import RunOptions
from sweeps.driver.plan import Plan
from sweeps.driver.report import print_plan
from sweeps.part3 import Part3
from trainables.accelerated.backends import NATIVE
from trainables.errors import TrackingError
from trainables.persistence.artifacts import RunArtifacts
from trainables.persistence.connection import SweepContext
from trainables.persistence.end_state import END_TAG, STATE_ARTIFACT, EndState
from trainables.persistence.store import Store
from trainables.persistence.stored_run import StoredRun
from trainables.result import Result
from trainables.trial import Trial
from trainables.worker import active_trial, worker
from trainables.worker.pack import Outcome, Pack, PackReport, WorkerSettings
from trainables.worker.worker import train_pack


class KilledError(Exception):
    """An error in place of the death of the process."""


def make_settings(store: Store, folder: Path, **changes: Any) -> WorkerSettings:
    experiment_id, parent = store.ensure_parent("part3", "digits")
    folder.mkdir(parents=True, exist_ok=True)
    context = SweepContext(
        tracking_uri=store.uri,
        experiment_id=experiment_id,
        parent_run_id=parent,
        storage=folder,
        storage_name="here",
        driver=f"{parent}/a",
        tags={},
    )
    return WorkerSettings(context=context, threads=1, checkpoint_seconds=1e-9, **changes)


def train(
    settings: WorkerSettings, store: Store, *trials: Trial, die_at_epochs: int | None = None, fresh: bool = False
) -> dict[str, Outcome]:
    """Train a pack, from the ends of shorter trials that the store has unless `fresh`; return its outcomes."""
    reports: list[PackReport] = []

    def report(state: PackReport) -> None:
        reports.append(state)
        if state.epochs == die_at_epochs and state.running:
            raise KilledError

    runs = store.find_runs()
    sweep = Part3(dataset="digits").sweep()
    starts = {} if fresh else Plan(sweep, trials, runs).find_starts()
    settings = dataclasses.replace(settings, starts=starts)
    train_pack(Pack(trials, tuple(trial.id for trial in trials), 0), make_dataset(), settings, report)
    return dict(reports[-1].outcomes)


def read(store: Store, trial: Trial) -> tuple[StoredRun, Result]:
    [run] = store.find_runs()[trial.id]
    assert run.finished
    return run, store.read_result(run)


def assert_same(one: Result, other: Result) -> None:
    np.testing.assert_array_equal(one.steps, other.steps)
    for name, curve in one.curves.items():
        assert curve.tobytes() == other.curves[name].tobytes(), name
    assert one.first_layer.tobytes() == other.first_layer.tobytes()
    assert one.test_accuracy == other.test_accuracy or (one.diverged and other.diverged)


def delete_runs(store: Store) -> None:
    for runs in store.find_runs().values():
        for run in runs:
            store.delete_run(run.run_id)


@pytest.fixture(autouse=True)
def report_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "REPORT_INTERVAL_SECONDS", 0)


CASES = st.fixed_dictionaries(
    {
        "architecture": st.sampled_from(["mlp_1", "mlp_2", "cnn_3"]),
        "optimizer": st.sampled_from(["adam", "sgd"]),
        "seed": st.integers(0, 3),
        "milestone": st.sampled_from([None, 5, 12, 20, 21, 33]),
        "cuts": st.sets(st.integers(1, 3), min_size=1),
    }
)


@pytest.mark.slow
@pytest.mark.timeout(300)
@given(case=CASES)
@hypothesis_settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_a_trial_that_was_cut_anywhere_equals_one_that_was_not(
    case: dict[str, Any], store: Store, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """MLPs train in stacks of two, CNNs alone; milestones after a cut are not known to the shorter trial."""
    delete_runs(store)
    names = ("architecture", "optimizer", "seed")
    stacked = ("mlp_1", "mlp_2")
    settings = make_settings(store, tmp_path_factory.mktemp("storage"), stacked_architectures=stacked)
    per_epoch = make_trial().steps_per_epoch(len(make_dataset().train_labels))

    def make(epochs: int, seed: int = 0) -> Trial:
        step = case["milestone"]
        milestones = ((step, 0.003),) if step and step < epochs * per_epoch else ()
        chosen = {name: case[name] for name in names}
        return make_trial(**{**chosen, "seed": case["seed"] + seed, "epochs": epochs, "milestones": milestones})

    whole = (make(4), make(4, 1))
    train(settings, store, *whole, fresh=True)
    expected = [read(store, trial)[1] for trial in whole]
    delete_runs(store)
    cuts = sorted(case["cuts"])
    for epochs in cuts:
        train(settings, store, make(epochs), make(epochs, 1))
    outcomes = train(settings, store, *whole)
    assert not [outcome for outcome in outcomes.values() if outcome.error or outcome.notes]
    for trial, result, shorter in zip(whole, expected, (make(cuts[-1]), make(cuts[-1], 1)), strict=True):
        run, found = read(store, trial)
        assert_same(found, result)
        assert store.read_tags(run.run_id)["continued_from"] == shorter.id
        history = store.client.get_metric_history(run.run_id, "train_loss")
        assert [point.step for point in history] == result.steps.tolist()
        assert [np.float32(point.value) for point in history] == result.curves["train_loss"].tolist()


@pytest.mark.parametrize("backend", [None, pytest.param(NATIVE, marks=needs_compiler)])
def test_a_longer_trial_that_dies_goes_on_from_its_own_checkpoint(
    store: Store, tmp_path: Path, backend: str | None
) -> None:
    settings = make_settings(store, tmp_path / "storage", backend=backend)
    short, long = (make_trial(architecture="cnn_3", epochs=epochs) for epochs in (1, 4))
    train(settings, store, long, fresh=True)
    _, expected = read(store, long)
    delete_runs(store)
    train(settings, store, short)
    with pytest.raises(KilledError):
        train(settings, store, long, die_at_epochs=2)
    train(dataclasses.replace(settings, threads=2), store, long)
    run, found = read(store, long)
    tags = store.read_tags(run.run_id)
    assert tags["continued_from"] == short.id
    assert tags["threads"] == "1 then 2"
    assert float(tags["training_seconds"]) > 0
    np.testing.assert_allclose(found.curves["train_loss"], expected.curves["train_loss"], rtol=1e-3)


def test_a_diverged_trial_stays_diverged_with_more_epochs(store: Store, tmp_path: Path) -> None:
    settings = make_settings(store, tmp_path / "storage")
    short, long = (make_trial(learning_rate=1e6, optimizer="sgd", epochs=epochs) for epochs in (2, 4))
    train(settings, store, long, fresh=True)
    _, expected = read(store, long)
    assert expected.diverged
    delete_runs(store)
    train(settings, store, short)
    train(settings, store, long)
    run, found = read(store, long)
    assert_same(found, expected)
    assert run.diverged
    assert store.read_tags(run.run_id)["continued_from"] == short.id


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize(
    ("harm", "reason"), [(damage, "it is damaged or not a checkpoint"), (Path.unlink, "is missing")]
)
def test_an_end_that_cannot_be_used_is_said_and_the_trial_starts_anew(
    store: Store, tmp_path: Path, harm: Any, reason: str
) -> None:
    settings = make_settings(store, tmp_path / "storage")
    short, long = (make_trial(epochs=epochs) for epochs in (1, 2))
    train(settings, store, long, fresh=True)
    _, expected = read(store, long)
    delete_runs(store)
    train(settings, store, short)
    [folder] = RunArtifacts.of(store.uri, store.client.get_run(read(store, short)[0].run_id)).own_folders
    harm(folder / STATE_ARTIFACT)
    [outcome] = train(settings, store, long).values()
    run, found = read(store, long)
    assert_same(found, expected)
    assert "continued_from" not in store.read_tags(run.run_id)
    [note] = outcome.notes
    assert note.startswith(f"it trained from its start, as the end of '{short.id}' cannot be used: ")
    assert reason in note


def test_a_store_that_is_away_is_waited_for(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_settings(store, tmp_path / "storage")
    short, long = (make_trial(epochs=epochs) for epochs in (1, 2))
    train(settings, store, short)
    attempts: list[str] = []
    found = RunArtifacts.open

    def fail_once(self: RunArtifacts, name: str, label: str) -> Any:
        attempts.append(name)
        if len(attempts) == 1:
            raise TrackingError("away")
        return found(self, name, label)

    monkeypatch.setattr(RunArtifacts, "open", fail_once)
    monkeypatch.setattr("trainables.persistence.connection.RETRY_SECONDS", 0)
    train(settings, store, long)
    assert attempts == [STATE_ARTIFACT] * 2
    assert store.read_tags(read(store, long)[0].run_id)["continued_from"] == short.id
    monkeypatch.setattr(active_trial, "START_PATIENCE_SECONDS", -1)
    attempts.clear()
    [outcome] = train(settings, store, make_trial(epochs=3)).values()
    assert outcome.error == "away"


@pytest.mark.parametrize(
    ("milestones", "longer", "begins"),
    [
        ((), (), True),
        ((), ((26, 0.1),), True),
        ((), ((25, 0.1),), False),
        (((5, 0.1),), ((5, 0.1),), True),
        (((5, 0.1),), ((5, 0.1), (30, 0.01)), True),
        (((5, 0.1),), (), False),
        (((5, 0.1),), ((5, 0.2),), False),
    ],
)
def test_a_shorter_trial_begins_a_longer_one_with_the_same_rates_up_to_its_end(
    milestones: Any, longer: Any, begins: bool
) -> None:
    end = EndState.from_tag(EndState.of(make_trial(epochs=2, milestones=milestones), 26).to_tag())
    assert end is not None
    assert end.begins(make_trial(epochs=4, milestones=longer)) is begins
    for other in ({"epochs": 2}, {"epochs": 1}, {"seed": 1}, {"learning_rate": 0.02}, {"batch_size": 20}):
        assert not end.begins(make_trial(**{"epochs": 4, "milestones": longer, **other}))


def test_ends_that_say_nothing_are_left_out() -> None:
    assert [EndState.from_tag(text) for text in ("", "{}", "[]", "null", '{"family": "x"}')] == [None] * 5


def test_the_plan_says_what_goes_on_from_where(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings(store, tmp_path / "storage")
    sweeps = [
        Part3(dataset="digits", seeds=2, epochs=epochs, architectures=("mlp_1",), batch_size=10).sweep()
        for epochs in (1, 2, 3)
    ]
    train(settings, store, *sweeps[0].trials())
    train(settings, store, sweeps[1].trials()[1])
    plan = Plan(sweeps[2], sweeps[2].trials(), store.find_runs())
    starts = plan.find_starts()
    print_plan(plan, starts=starts.values())
    assert (
        "2 of the missing trials go on from shorter ones: 1 after 1 epoch and 1 after 2 epochs"
        in capsys.readouterr().out
    )
    words = ("--dataset", "digits", "--seeds", "2", "--epochs", "3", "--architectures", "mlp_1", "--batch-size", "10")
    monkeypatch.chdir(tmp_path)
    assert run_sweep(monkeypatch, *words, "--tracking-uri", store.uri, "--dry-run") == 0
    assert "go on from shorter ones" in capsys.readouterr().out
    assert run_sweep(monkeypatch, *words, "--tracking-uri", store.uri, "--dry-run", "--no-continue") == 0
    assert "go on from shorter ones" not in capsys.readouterr().out
    assert RunOptions().no_continue is False
    assert END_TAG in store.read_tags(store.find_runs()[sweeps[0].trials()[0].id][0].run_id)

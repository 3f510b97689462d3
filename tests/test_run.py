from __future__ import annotations

import shutil
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import make_trial
from filelock import FileLock

from sweeps.launch import Ending
from sweeps.options import Running
from sweeps.part3 import Part3
from sweeps.resources import Node
from sweeps.run import (
    Plan,
    Trainer,
    check_records,
    git,
    installed,
    private_folder,
    provenance,
    report_convolutions,
    result_table,
    retried,
    run,
    settle,
)
from trainables.checkpoints import TrialFolder
from trainables.probe import OWN, THEIRS
from trainables.tracking import DRIVER, STORAGE, Store
from trainables.trainable import Pack
from trainables.trial import BadInputError, Trial

SELECTION = Part3(dataset="digits", seeds=1, epochs=1, architectures=("mlp_1",))


def test_one_sweep_at_a_time_trains_with_a_storage(store: Store, tmp_path: Path) -> None:
    selection = Part3(dataset="digits", seeds=1, epochs=1, architectures=("mlp_1",), tracking_uri=store.uri)
    with (
        FileLock(tmp_path / "sweep.lock"),
        pytest.raises(BadInputError, match="another sweep trains with --storage"),
    ):
        run(selection, Running(storage=tmp_path))
    assert store.recorded() == {}


@pytest.mark.parametrize(
    ("architecture", "gpus", "way", "compiler", "said"),
    [
        ("cnn_3", 0.0, OWN, None, "Convolutions: by code compiled where they are computed\n"),
        ("cnn_3", 0.0, THEIRS, "c++", "Convolutions: by PyTorch\n"),
        (
            "cnn_3",
            0.0,
            "AVX2",
            None,
            "Convolutions: by PyTorch, limited to AVX2; a C++ compiler (g++), and no measured",
        ),
        ("cnn_3", 0.5, OWN, "c++", ""),
        ("cnn_4", 0.0, OWN, "c++", ""),  # in a stack
        ("mlp_1", 0.0, OWN, "c++", ""),
    ],
)
def test_how_convolutions_are_computed_is_said(
    architecture: str,
    gpus: float,
    way: str | None,
    compiler: str | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: compiler)
    report_convolutions([Pack((make_trial(architecture=architecture),), ("a trial",), gpus)], ["cnn_4"], way)
    output = capsys.readouterr().out
    assert output.startswith(said)
    assert bool(output) == bool(said)


@pytest.mark.parametrize(
    ("trial", "sentence"),
    [
        (make_trial(epochs=1, batch_size=200), "make 7 steps, but the first record is at step 10"),
        (make_trial(epochs=1, batch_size=50, milestones=((26, 0.1),)), "to change after step 26, but 1 epochs end"),
    ],
)
def test_a_trial_that_ends_too_early_is_refused(trial: object, sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence):
        check_records([trial], 1297)  # type: ignore[list-item]
    check_records([make_trial(epochs=1, batch_size=50, milestones=((25, 0.1),))], 1297)


def test_a_sweep_lets_go_of_its_storage(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "submit", lambda *_: {})
    selection = Part3(dataset="digits", seeds=1, epochs=1, architectures=("mlp_1",), tracking_uri=store.uri)
    for _ in range(2):
        assert run(selection, Running(storage=tmp_path)) == 130
    with FileLock(tmp_path / "sweep.lock", blocking=False):
        pass


def test_a_run_that_a_dead_driver_left_is_taken_over(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one of a trial that is not in this sweep, if it trained with this storage."""
    monkeypatch.setattr(Trainer, "submit", lambda *_: {})
    experiment_id, parent = store.parent("part4", "digits")
    name = f"{socket.gethostname()}:{tmp_path}"
    tags = {STORAGE: name, DRIVER: f"{parent}/dead"}
    store.open(make_trial(seed=9), "x", experiment_id, parent, tags, run_id=None)
    selection = Part3(dataset="digits", seeds=1, epochs=1, architectures=("mlp_1",), tracking_uri=store.uri)
    run(selection, Running(storage=tmp_path))
    assert store.recorded()[make_trial(seed=9).id][0].status == "KILLED"


def test_one_result_that_cannot_be_delivered_keeps_no_other_back(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Part3(dataset="digits", seeds=3, epochs=1, architectures=("mlp_1",)).sweep()
    for trial in sweep.trials():
        folder = TrialFolder(tmp_path, trial)
        with folder.claimed():
            folder.write_result({})
    tried = []

    def deliver(folder: TrialFolder, *_: Any) -> str | None:
        tried.append(folder.trial.seed)
        if folder.trial.seed == 0:
            raise BadInputError("it trains in another sweep")
        return "away" if folder.trial.seed == 1 else None

    monkeypatch.setattr("sweeps.run.deliver_one", deliver)
    trainer = Trainer(store, Running(storage=tmp_path), None, ExitStack())
    target = trainer.target("1", "p", "p/a")
    refused = trainer.deliver(Plan(sweep, sweep.trials(), {}), target, 0)
    assert tried == [0, 1]  # a store that is away is not asked again and again
    assert list(refused.values()) == ["it trains in another sweep", "away", "away"]


def test_what_a_finished_trial_kept_is_cleared_away(store: Store, tmp_path: Path) -> None:
    sweep = SELECTION.sweep()
    [trial] = sweep.trials()
    run_id = store.open(trial, "x", *store.parent("part3", "digits"), {}, run_id=None).run_id
    store.close(run_id, "FINISHED")
    folder = TrialFolder(tmp_path, trial)
    with folder.claimed():
        folder.write(1, {})
    Trainer(store, Running(storage=tmp_path), None, ExitStack()).clear(Plan(sweep, (trial,), store.recorded()))
    assert not folder.path.exists()


def test_no_run_is_left_running(store: Store) -> None:
    sweep = Part3(dataset="digits", seeds=3, epochs=1, architectures=("mlp_1",)).sweep()
    experiment_id, parent = store.parent("part3", "digits")
    finished, failed, stopped = sweep.trials()
    for trial in sweep.trials():
        store.open(trial, "x", experiment_id, parent, {DRIVER: "p/a"}, run_id=None)
    store.close(store.recorded()[finished.id][0].run_id, "FINISHED")
    settle(Plan(sweep, sweep.trials(), store.recorded()), store, {failed.id: Ending(error="out of memory")}, "p/a")
    statuses = {trial_id: runs[0].status for trial_id, runs in store.recorded().items()}
    assert statuses == {finished.id: "FINISHED", failed.id: "FAILED", stopped.id: "KILLED"}


def test_runs_of_a_living_driver_are_left_alone(store: Store) -> None:
    """Two sweeps share trials; one of them ends."""
    sweep = Part3(dataset="digits", seeds=1, epochs=1, architectures=("mlp_1",)).sweep()
    [trial] = sweep.trials()
    store.open(trial, "x", *store.parent("grid", "digits"), {DRIVER: "p/other"}, run_id=None)
    settle(Plan(sweep, (trial,), store.recorded()), store, {}, "p/a")
    assert store.recorded()[trial.id][0].status == "RUNNING"


def test_provenance_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git("rev-parse", "HEAD") == ""
    tags = provenance()
    assert tags["git_commit"] == "unknown"
    assert tags["torch_version"].startswith("2.")


def test_provenance_of_a_job_is_that_of_the_checkout_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPS_COMMIT", "abc with changes")
    assert provenance()["git_commit"] == "abc with changes"


def test_a_library_that_is_not_installed_is_no_failure() -> None:
    assert installed("no-such-library") == "not installed"


def test_a_dry_run_on_a_cluster_leaves_a_living_sweep_alone(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files lie in a folder that follows from the storage, which another driver may train with."""
    folders: list[Path] = []

    def connect(address: str, tracking_uri: str, folder: Path, stack: ExitStack) -> list[Node]:
        folders.append(folder)
        return [Node(4, 1)]

    monkeypatch.setattr("sweeps.run.connect", connect)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert run(replace(SELECTION, tracking_uri=store.uri), Running(storage=tmp_path, dry_run=True)) == 0
    assert private_folder(tmp_path) not in folders
    assert len(folders) == 1


def test_the_table_leaves_out_axes_of_one_value(store: Store) -> None:
    plan = Plan(SELECTION.sweep(), SELECTION.sweep().trials(), {})
    assert [column.header for column in result_table(plan).columns] == [
        "trials",
        "mean ± 95 % CI over seeds",
        "best run",
    ]


def test_what_ran_out_of_gpu_memory_trains_again_with_twice_its_share() -> None:
    trials = [make_trial(seed=seed) for seed in range(3)]
    enough = dict(zip((trial.id for trial in trials), (0.3, 0.6, 5.0), strict=True))  # of a GPU
    tried: list[list[float]] = []

    def train(trials: Sequence[Trial], gpus: Mapping[str, float]) -> dict[str, Ending]:
        tried.append([gpus[trial.id] for trial in trials])
        short = {trial.id: gpus[trial.id] < enough[trial.id] for trial in trials}
        return {trial_id: Ending("too little" if bad else None, bad) for trial_id, bad in short.items()}

    endings = retried(trials, {trial.id: 0.3 for trial in trials}, train)
    assert tried == [[0.3, 0.3, 0.3], [0.6, 0.6], [1.0]]
    assert [endings[trial.id].error for trial in trials] == [None, None, "too little"]
    assert [list(endings[trial.id].notes) for trial in trials] == [
        [],
        ["0.3 of a GPU had too little memory; it had 0.6 in the end"],
        ["0.3 of a GPU had too little memory; it had 1 in the end"],
    ]


def test_a_stopped_sweep_tries_nothing_again() -> None:
    trials = [make_trial(seed=seed) for seed in range(2)]
    answers = iter([endings := {trials[0].id: Ending("too little", out_of_memory=True)}])
    assert retried(trials, {trial.id: 0.3 for trial in trials}, lambda *_: next(answers)) is endings

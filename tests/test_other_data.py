"""Runs, checkpoints and results of other data than the right data set: ignored, left as they are, and named."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FakeRayProcess, make_dataset, make_trial, run_sweep
from test_datasets import accept_files, write_idx_files
from test_results import make_result

import analysis.part5
from analysis.output import main
from analysis.part3 import draw
from analysis.results import has_any_finished, load_results
from sweeps.driver.options import RunOptions
from sweeps.driver.run import run
from sweeps.driver.session import Session
from sweeps.driver.sweep_page import SweepPage
from sweeps.driver.trainer import Trainer
from sweeps.part3 import Part3
from sweeps.part5 import Part5
from sweeps.xor import Xor
from trainables import datasets, idx_files, sources
from trainables.errors import BadInputError, TrackingError
from trainables.persistence.delivery import Delivery, SweepContext
from trainables.persistence.store import Store
from trainables.persistence.trial_folder import DIGEST_BYTES, TrialFolder
from trainables.persistence.trial_run import RESULT_ARTIFACT
from trainables.trial import Trial
from trainables.worker import worker
from trainables.worker.pack import Outcome, Pack, PackReport, WorkerSettings
from trainables.worker.worker import train_pack

ROOT = Path(__file__).resolve().parent.parent
TAG = "data_checksum"
DIGITS, FASHION_MNIST, MNIST = "ce945a0083a007ef", "ece172613115fb18", "1e35582d42a90940"
WRONG = "0123456789abcdef"
SMALL: dict[str, Any] = {"dataset": "digits", "epochs": 2}
OPTIONS = Part3(seeds=2, architectures=("mlp_1",), **SMALL)
TEXT = "part3.py --dataset digits --seeds 2 --epochs 2 --architectures mlp_1 --tracking-uri"
WORDS = TEXT.split()
LINE = (
    f"ignored: 1 run that trained on other data than this digits (checksum {WRONG} instead of {DIGITS}): mlp_1 · seed"
)


def open_run(store: Store, trial: Trial, tags: dict[str, str], experiment: str = "part3") -> Any:
    parent = store.ensure_parent(experiment, trial.dataset)
    return store.open_run(trial, f"{trial.architecture} · seed {trial.seed}", *parent, tags, run_id=None)


def record(store: Store, trial: Trial, checksum: str | None = None, *, add: float = 0) -> str:
    """Write a finished run with a checksum, or without one; `add` is added to every value of its result."""
    stored = open_run(store, trial, {})
    result = make_result(trial)
    result = dataclasses.replace(
        result,
        curves={name: result.curves[name] + np.float32(add) for name in trial.quantities},
        test_accuracy=result.test_accuracy + add,
    )
    with TemporaryDirectory() as folder:
        result.save(Path(folder) / RESULT_ARTIFACT)
        stored.finish(result, int(result.steps[-1]), {}, Path(folder))
    tag_run(store, stored.run_id, checksum)
    return str(stored.run_id)


def tag_run(store: Store, run_id: str, checksum: str | None) -> None:
    """Give a run a checksum, or take it away."""
    if checksum is not None:
        store.set_tags(run_id, {TAG: checksum})
    elif TAG in store.read_tags(run_id):
        store.remove_tag(run_id, TAG)


def read_all(store: Store, run_id: str) -> Any:
    """Return everything that the store holds of a run."""
    found = store.client.get_run(run_id)
    points = {name: len(store.client.get_metric_history(run_id, name)) for name in found.data.metrics}
    return found.to_dictionary(), points


# The store


def leave_run(store: Store, status: str, checksum: str, driver: str = "p/a") -> str:
    """Leave a run of `make_trial` with points, a status and a checksum in the store; return its id."""
    stored = open_run(store, make_trial(), {"driver": driver})
    stored.send_records([10], {"train_loss": np.ones(1)})
    if status != "RUNNING":
        store.end_run(stored.run_id, status)
    tag_run(store, stored.run_id, checksum)
    return str(stored.run_id)


@pytest.mark.parametrize("status", ["RUNNING", "FINISHED", "KILLED", "FAILED"])
@pytest.mark.parametrize("driver", ["p/a", "p/other"])
def test_a_run_of_other_data_is_ignored_and_stays_as_it_is(status: str, driver: str, store: Store) -> None:
    """This holds even where the trial's folder names it as its own."""
    run_id = leave_run(store, status, WRONG, driver)
    before = read_all(store, run_id)
    assert store.find_runs() == {}
    assert store.read_trial(make_trial()) is None
    parent = store.ensure_parent("part3", "digits")
    mine = store.open_run(make_trial(), "x", *parent, {"driver": "p/a"}, run_id=run_id)
    assert mine.run_id != run_id
    assert not mine.finished
    assert store.read_tags(mine.run_id)[TAG] == DIGITS
    assert [found.run_id for found in store.find_runs()[make_trial().id]] == [mine.run_id]
    assert read_all(store, run_id) == before


@pytest.mark.parametrize("checksum", [DIGITS, ""])
def test_a_run_of_the_right_data_or_without_the_tag_counts(checksum: str, store: Store) -> None:
    run_id = leave_run(store, "FINISHED", checksum)
    if not checksum:
        store.remove_tag(run_id, TAG)
    [found] = store.find_runs()[make_trial().id]
    assert (found.run_id, found.finished) == (run_id, True)
    assert open_run(store, make_trial(), {}).finished


def test_a_run_has_the_tag_from_its_creation_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the process dies before the settings are stored, the run is found all the same."""
    parent = store.ensure_parent("part3", "digits")

    def die(*_: Any, **__: Any) -> None:
        raise ConnectionError("away")

    with monkeypatch.context() as patch:
        patch.setattr(store.client, "log_batch", die)
        with pytest.raises(TrackingError):
            store.open_run(make_trial(), "x", *parent, {"driver": "p/a"}, run_id=None)
    [found] = store.find_runs()[make_trial().id]
    assert store.read_tags(found.run_id)[TAG] == DIGITS
    assert open_run(store, make_trial(), {"driver": "p/a"}).run_id == found.run_id


@pytest.mark.parametrize(("dataset", "right"), [("mnist", MNIST), ("cifar10", "f" * 16)])
def test_fashion_mnist_that_trained_under_another_name_is_ignored(dataset: str, right: str, store: Store) -> None:
    """The checksum of CIFAR-10 is not known here, but that it is none of the others."""
    trial = make_trial(dataset=dataset)
    wrong = open_run(store, trial, {TAG: FASHION_MNIST}).run_id
    store.end_run(wrong, "FINISHED")
    assert store.find_runs() == {}
    other = open_run(store, trial, {TAG: right})
    assert other.run_id != wrong
    assert [found.run_id for found in store.find_runs()[trial.id]] == [other.run_id]


def test_an_unfinished_run_of_other_data_than_was_loaded_is_not_continued(store: Store) -> None:
    trial = make_trial(dataset="cifar10")
    old = open_run(store, trial, {TAG: WRONG, "driver": ""}).run_id
    before = read_all(store, old)
    assert open_run(store, trial, {TAG: "f" * 16, "driver": ""}).run_id != old
    assert read_all(store, old) == before


def test_a_network_without_files_has_no_checksum(store: Store) -> None:
    trial = Xor(epochs=20).sweep().trials()[0]
    assert TAG not in store.read_tags(open_run(store, trial, {}, "xor").run_id)
    assert trial.id in store.find_runs()


# Analyses


def analyse(store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run `python analysis/part3.py` in this process, and return its exit status."""
    monkeypatch.setattr(sys, "argv", [*WORDS, store.uri, "--out", str(folder), *words])
    monkeypatch.setattr("sweeps.cli.stop_on_signals", lambda: None)
    with pytest.raises(SystemExit) as end:
        main(Part3, draw, "")
    assert isinstance(end.value.code, int)
    return end.value.code


def test_an_analysis_means_only_runs_of_the_right_data_and_names_the_others(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = OPTIONS.sweep().trials()
    record(store, first)
    wrong = record(store, second, WRONG, add=1000)
    before = read_all(store, wrong)
    assert analyse(store, tmp_path, monkeypatch) == 2
    printed = capsys.readouterr().err
    assert "1 of 2 trials are not finished (mlp_1 · seed 1); train them with: " in printed
    assert f"; {LINE} 1\n" in printed
    assert printed.count("\n") == 1

    assert analyse(store, tmp_path, monkeypatch, "--allow-missing") == 0
    assert f"\n{LINE} 1\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "part3_mlp_1.json").read_text())["loss_curve"] == [10, 9, 8, 7, 6, 5]

    record(store, second)  # the right files take the place of the wrong ones
    assert analyse(store, tmp_path, monkeypatch) == 0
    assert f"\n{LINE} 1\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "part3_mlp_1.json").read_text())["loss_curve"] == [10.5, 9.5, 8.5, 7.5, 6.5, 5.5]
    assert read_all(store, wrong) == before


def test_runs_of_the_right_data_or_without_the_tag_are_averaged_without_a_word(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for trial, checksum in zip(OPTIONS.sweep().trials(), (DIGITS, None), strict=True):
        record(store, trial, checksum)
    assert analyse(store, tmp_path, monkeypatch) == 0
    assert "ignored" not in capsys.readouterr().out
    assert json.loads((tmp_path / "part3_mlp_1.json").read_text())["loss_curve"] == [10.5, 9.5, 8.5, 7.5, 6.5, 5.5]


def test_a_sweep_of_other_data_alone_has_nothing_finished(store: Store) -> None:
    for trial in OPTIONS.sweep().trials():
        record(store, trial, WRONG)
    assert not has_any_finished(OPTIONS.sweep(), store)
    with pytest.raises(BadInputError, match="2 of 2 trials are not finished"):
        load_results(OPTIONS.sweep(), store, fill="", allow_missing=True)


def test_the_line_counts_runs_and_names_the_first_trials(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, checksum in enumerate([WRONG, WRONG, FASHION_MNIST, WRONG]):
        record(store, make_trial(seed=seed, batch_size=50), checksum)
    record(store, make_trial(seed=0, batch_size=50), WRONG)
    record(store, make_trial(seed=9, batch_size=50), WRONG)  # of no trial of this sweep
    words = [*WORDS[1:], store.uri, "--dry-run"]
    words[words.index("--seeds") + 1] = "4"
    assert run_sweep(monkeypatch, *words) == 0
    assert (
        "part3: 4 trials, 0 done, 4 missing\nignored: 5 runs that trained on other data than this digits (checksum "
        f"{WRONG} instead of {DIGITS}; checksum {FASHION_MNIST} of fashion_mnist instead of {DIGITS}): mlp_1 · seed 0; "
        "mlp_1 · seed 1; mlp_1 · seed 2; …\n"
    ) in capsys.readouterr().out


# Part 5, whose later stages depend on results

PART5 = Part5(**SMALL, seeds=1, schedule_epochs=3, milestones=(20, 40))


def test_a_later_stage_of_part5_does_not_depend_on_other_data(store: Store) -> None:
    options = dataclasses.replace(PART5, milestones=(), epochs=200)
    [trial] = [trial for trial in options.sweep().trials() if trial.learning_rate == 0.1]
    record(store, trial, DIGITS)
    first = store.read_trial(trial)
    assert first is not None
    [found] = store.find_runs()[trial.id]
    tag_run(store, found.run_id, WRONG)
    record(store, trial, add=5)
    second = store.read_trial(trial)
    assert second is not None
    assert second.test_accuracy == first.test_accuracy + 5
    [found] = store.find_runs()[trial.id]
    tag_run(store, found.run_id, WRONG)
    reason = options.plateau_step((), store.read_trial)
    assert reason == "the trials before it are not finished; train what is missing, or give steps with --milestones"


def test_part5_names_what_it_ignores_in_a_later_stage_and_of_part3(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, sweep in enumerate(PART5.stages(store.read_trial)):
        for trial in sweep.trials():
            record(store, trial, WRONG if number else DIGITS)
    [adam] = analysis.part5.make_part3_options(PART5, analysis.part5.Part5DrawOptions(adam_epochs=2)).sweep().trials()
    record(store, adam, WRONG)
    words = "part5.py --dataset digits --seeds 1 --epochs 2 --schedule-epochs 3 --milestones 20 40 --adam-epochs 2"
    monkeypatch.setattr(
        sys, "argv", [*words.split(), "--tracking-uri", store.uri, "--allow-missing", "--out", str(tmp_path)]
    )
    monkeypatch.setattr("sweeps.cli.stop_on_signals", lambda: None)
    with pytest.raises(SystemExit) as end:
        main(Part5, analysis.part5.draw, "", analysis.part5.Part5DrawOptions)
    assert end.value.code == 0
    printed = capsys.readouterr().out
    line = LINE.removesuffix("mlp_1 · seed")
    assert f"\n{line}0.1 → 0.01 after step 20 · seed 0\n" in printed
    assert f"\nOf part 3, {line}cnn_3 · seed 0\n" in printed


# Sweeps


def run_without_ray(store: Store, storage: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the sweep of `OPTIONS` with everything but training."""
    monkeypatch.setattr("sweeps.driver.ray_process.RayProcess", FakeRayProcess)
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: {})
    return run(dataclasses.replace(OPTIONS, tracking_uri=store.uri), RunOptions(storage=storage))


def test_a_plan_and_a_rerun_count_runs_of_other_data_as_missing_and_name_them(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = OPTIONS.sweep().trials()
    record(store, first, WRONG)
    record(store, second)
    assert run_sweep(monkeypatch, *WORDS[1:], store.uri, "--dry-run") == 0
    assert f"part3: 2 trials, 1 done, 1 missing\n{LINE} 0\n" in capsys.readouterr().out
    record(store, first)
    assert run_without_ray(store, tmp_path, monkeypatch) == 0
    assert f"part3: 2 trials, 2 done, 0 missing\n{LINE} 0\n" in capsys.readouterr().out


@pytest.mark.parametrize("status", ["RUNNING", "FINISHED", "KILLED"])
def test_a_driver_leaves_runs_of_other_data_as_they_are(
    status: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is RUNNING in this storage would be closed as that of a dead driver."""
    session = Session(store, RunOptions(storage=tmp_path), None, ExitStack(), SweepPage(store, OPTIONS))
    context = session.make_context(OPTIONS.sweep(), "1", "p", "p/dead")
    run_id = open_run(store, OPTIONS.sweep().trials()[0], {"storage": context.storage_name, "driver": "p/dead"}).run_id
    if status != "RUNNING":
        store.end_run(run_id, status)
    tag_run(store, run_id, WRONG)
    before = read_all(store, run_id)
    assert run_without_ray(store, tmp_path, monkeypatch) == 130
    assert read_all(store, run_id) == before


# What is kept in the storage folder


class KilledError(Exception):
    """An error in place of the death of the process."""


@pytest.fixture
def settings(store: Store, tmp_path: Path) -> WorkerSettings:
    experiment_id, parent = store.ensure_parent("part3", "digits")
    (tmp_path / "storage").mkdir()
    context = SweepContext(
        tracking_uri=store.uri,
        experiment_id=experiment_id,
        parent_run_id=parent,
        storage=tmp_path / "storage",
        storage_name="here",
        driver=f"{parent}/a",
        tags={TAG: DIGITS},
    )
    return WorkerSettings(context=context, threads=1, checkpoint_seconds=1e-9)


def with_tags(settings: WorkerSettings, tags: dict[str, str]) -> WorkerSettings:
    return dataclasses.replace(settings, context=dataclasses.replace(settings.context, tags=tags))


TRIAL = OPTIONS.sweep().trials()[0]


def train(
    settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch, die_at_epoch: int | None = None, data_seed: int = 0
) -> Outcome | None:
    """Train `TRIAL` on small made data, with a checkpoint at every step; return the last outcome, if there is one."""
    reports: list[PackReport] = []

    def report(state: PackReport) -> None:
        reports.append(state)
        if state.epochs == die_at_epoch and state.running:
            raise KilledError

    monkeypatch.setattr(worker, "REPORT_INTERVAL_SECONDS", 0)
    pack = Pack((TRIAL,), ("mlp_1 · seed 0",), 0)
    try:
        train_pack(pack, make_dataset(seed=data_seed), settings, report)
    except KilledError:
        assert die_at_epoch is not None
    return reports[-1].outcomes.get(TRIAL.id)


def train_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the step of every optimiser step."""
    steps: list[int] = []
    take_step = worker.training.take_step
    monkeypatch.setattr(
        worker.training, "take_step", lambda t, d, state, b: (steps.append(state.step), take_step(t, d, state, b))[1]
    )
    return steps


def remove_checksums(folder: TrialFolder) -> None:
    """Take the checksums out of a folder's files, as earlier versions wrote none."""
    for path in folder.path.glob("*.checkpoint"):
        content = torch.load(io.BytesIO(path.read_bytes()[DIGEST_BYTES:]), weights_only=True)
        content.pop(TAG, None)
        buffer = io.BytesIO()
        torch.save(content, buffer)
        path.write_bytes(hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())


def test_a_checkpoint_of_other_data_is_set_aside(
    settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training begins again on the right data, in a new run, and the old run stays as it is."""
    expected = read_uninterrupted_result(settings, store, monkeypatch)
    train(with_tags(settings, {TAG: WRONG}), monkeypatch, die_at_epoch=1, data_seed=1)
    folder = TrialFolder(settings.context.storage, TRIAL)
    assert len(list(folder.path.glob("*.checkpoint"))) == 2
    old = str(folder.run_id)
    before = read_all(store, old)
    steps = train_steps(monkeypatch)
    outcome = train(settings, monkeypatch)
    assert steps[0] == 0
    assert outcome is not None
    assert outcome.error is None
    assert len(outcome.notes) == 2
    assert all(
        f"could not be used (it was trained on other data than this digits: checksum {WRONG} instead of {DIGITS})" in n
        for n in outcome.notes
    )
    [found] = store.find_runs()[TRIAL.id]
    assert found.run_id != old
    assert store.read_result(found).curves["train_loss"].tobytes() == expected.curves["train_loss"].tobytes()
    assert read_all(store, old) == before


def read_uninterrupted_result(settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Train without interruption, and return the result; its run is deleted."""
    train(settings, monkeypatch)
    [found] = store.find_runs()[TRIAL.id]
    result = store.read_result(found)
    store.client.delete_run(found.run_id)
    return result


@pytest.mark.parametrize("version", ["this version", "an earlier version"])
def test_a_checkpoint_of_the_right_data_or_of_an_earlier_version_is_used(
    version: str, settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(settings, monkeypatch, die_at_epoch=1)
    if version == "an earlier version":
        remove_checksums(TrialFolder(settings.context.storage, TRIAL))
    steps = train_steps(monkeypatch)
    outcome = train(settings, monkeypatch)
    assert steps[0] > 0
    assert outcome is not None
    assert outcome.notes == []
    assert [found.finished for found in store.find_runs()[TRIAL.id]] == [True]


def keep_result(settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch) -> TrialFolder:
    """Train `TRIAL` while the store cannot be reached at the end, so that its result stays in its folder."""
    with monkeypatch.context() as patch:
        patch.setattr(Delivery, "deliver_result", lambda self: None)
        train(settings, patch)
    folder = TrialFolder(settings.context.storage, TRIAL)
    assert folder.has_result
    return folder


def test_a_kept_result_of_other_data_is_set_aside_and_not_delivered(
    settings: WorkerSettings,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = keep_result(with_tags(settings, {TAG: WRONG}), monkeypatch)
    old = str(folder.run_id)
    before = read_all(store, old)[1]
    assert run_without_ray(store, settings.context.storage, monkeypatch) == 130
    assert store.find_runs() == {}
    assert (folder.has_result, folder.run_id) == (False, None)
    assert (folder.path / "result.unusable").exists()
    assert "other data" in folder.notes[-1]
    assert read_all(store, old)[1] == before
    train(settings, monkeypatch)
    [found] = store.find_runs()[TRIAL.id]
    assert (found.finished, found.run_id == old) == (True, False)


@pytest.mark.parametrize("kept", ["a checkpoint", "a result", "a result that the driver finds"])
def test_what_an_earlier_version_kept_of_a_run_of_other_data_is_set_aside(
    kept: str, settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files do not say what they were trained on, but the run to which their points were sent does."""
    old_settings = with_tags(settings, {TAG: WRONG})
    if kept == "a checkpoint":
        train(old_settings, monkeypatch, die_at_epoch=1)
    else:
        keep_result(old_settings, monkeypatch)
    folder = TrialFolder(settings.context.storage, TRIAL)
    remove_checksums(folder)
    old = str(folder.run_id)
    before = read_all(store, old)
    if kept == "a result that the driver finds":
        assert run_without_ray(store, settings.context.storage, monkeypatch) == 130
        assert list(folder.path.glob("*.checkpoint")) == []
        assert folder.run_id is None
        assert not any(found.finished for runs in store.find_runs().values() for found in runs)
    steps = train_steps(monkeypatch)
    outcome = train(settings, monkeypatch)
    assert steps[0] == 0
    assert outcome is not None
    assert outcome.error is None
    assert f"its run trained on other data than this digits: checksum {WRONG} instead of {DIGITS}" in outcome.notes[-1]
    [found] = store.find_runs()[TRIAL.id]
    assert found.finished
    assert found.run_id != old
    assert read_all(store, old) == before


@pytest.mark.parametrize("version", ["this version", "an earlier version"])
def test_a_run_whose_result_the_driver_delivers_has_the_tag(
    version: str, settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store was away while the trial trained, so that the driver makes the run."""
    folder = keep_result(settings, monkeypatch)
    if version == "an earlier version":
        remove_checksums(folder)
    store.client.delete_run(folder.run_id)
    folder.forget_run()
    assert run_without_ray(store, settings.context.storage, monkeypatch) == 130  # seed 1 is still missing
    [found] = store.find_runs()[TRIAL.id]
    assert found.finished
    assert store.read_tags(found.run_id)[TAG] == DIGITS


# Loading


@pytest.mark.parametrize("pipeline", [None, "unit"])
def test_digits_that_scikit_learn_has_changed_are_refused(
    pipeline: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = sources.load_digits(Path("unused"))
    changed = raw.train_images.copy()
    changed[5, 0, 3, 3] ^= 1
    monkeypatch.setitem(datasets.SOURCES, "digits", lambda _: dataclasses.replace(raw, train_images=changed))
    with pytest.raises(
        BadInputError, match=rf"digits is not what it was .*instead of {DIGITS}\): install the versions"
    ):
        datasets.load_dataset("digits", Path("unused"), pipeline)


def test_digits_have_the_known_checksum() -> None:
    """If this fails, scikit-learn or NumPy has changed them: increase `trial.VERSION`, and change the checksum."""
    assert datasets.load_dataset("digits", Path("unused")).checksum == DIGITS


# The scripts

# Python imports this in each process of a sweep: the files in a folder become those of MNIST, and their checksum its
# checksum if that is wanted.
SITE = """
import os

from trainables.checksums import CHECKSUMS
from trainables.idx_files import IDX_FILES, KNOWN_MD5

KNOWN_MD5["mnist"] = dict(zip(IDX_FILES, os.environ["TEST_MD5S"].split()))
del CHECKSUMS["mnist"]
CHECKSUMS.update({"mnist": os.environ["TEST_CHECKSUM"]} if os.environ["TEST_CHECKSUM"] else {})
"""


def run_script(folder: Path, data: Path, checksum: str, package: str, *words: str) -> tuple[int, str]:
    """Run part 3 of a package in a folder on a small MNIST; return its exit status and output."""
    paths = [data / f"{file}.gz" for file in idx_files.IDX_FILES]
    md5s = " ".join(hashlib.md5(gzip.decompress(path.read_bytes())).hexdigest() for path in paths)
    unwanted = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAY_AUTH_MODE")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    site = folder / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(SITE)
    variables = {"PYTHONPATH": f"{site}:{ROOT}", "TEST_MD5S": md5s, "TEST_CHECKSUM": checksum}
    script = [str(ROOT / package / "part3.py"), "--dataset", "mnist", "--epochs", "1", "--architectures", "mlp_1"]
    done = subprocess.run(
        [sys.executable, *script, *words],
        cwd=folder,
        env={**environment, **variables, "SWEEPS_DATA_ROOT": str(data)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stdout, done.stdout
    return done.returncode, done.stdout


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_seeds_that_were_trained_on_wrong_files_are_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Part 3 trains seed 0 on one content and, when its files have been replaced, both seeds on another."""
    wrong, right = tmp_path / "wrong", tmp_path / "right"
    write_idx_files(wrong, train=200, test=40)
    write_idx_files(right, train=220, test=40)
    accept_files(right, monkeypatch)
    checksum = datasets.load_dataset("mnist", right).checksum
    batch = ("--batch-size", "10")
    status, out = run_script(tmp_path, wrong, "", "sweeps", "--seeds", "1", *batch)
    assert status == 0, out
    store = Store(f"sqlite:///{tmp_path}/mlflow.db")
    [[old]] = store.find_runs().values()
    before = read_all(store, old.run_id)
    other = str(before[0]["data"]["tags"][TAG])

    line = f"ignored: 1 run that trained on other data than this mnist (checksum {other} instead of {checksum}): mlp_1"
    status, out = run_script(tmp_path, right, checksum, "sweeps", "--seeds", "2", *batch)
    assert status == 0, out
    assert f"part3: 2 trials, 0 done, 2 missing\n{line} · seed 0\n" in out
    assert "Trained 2 of 2 trials" in out
    runs = {found.run_id: found for listed in store.find_runs().values() for found in listed}
    assert sorted(store.read_tags(run_id)[TAG] for run_id in runs) == sorted([other, checksum, checksum])
    assert read_all(store, old.run_id) == before

    status, out = run_script(tmp_path, right, checksum, "analysis", "--seeds", "2", *batch)
    assert status == 0, out
    assert f"\n{line} · seed 0\n" in out
    losses = [store.read_result(found).curves["train_loss"] for run_id, found in runs.items() if run_id != old.run_id]
    export = json.loads((tmp_path / "figures" / "part3" / "part3_mlp_1.json").read_text())
    np.testing.assert_allclose(export["loss_curve"], np.mean(losses, axis=0), rtol=1e-6)

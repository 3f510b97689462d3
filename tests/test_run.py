from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import FakeRayProcess, make_trial
from filelock import FileLock

from sweeps.driver import provenance
from sweeps.driver.options import RunOptions
from sweeps.driver.plan import Plan, check_records
from sweeps.driver.provenance import collect_provenance, get_version, run_git
from sweeps.driver.ray_process import LOG_NAME
from sweeps.driver.recovery import close_own_runs, deliver_waiting_results, remove_leftovers
from sweeps.driver.report import print_backend, print_missing, print_outcomes, print_plan
from sweeps.driver.run import run
from sweeps.driver.session import Session
from sweeps.driver.summary import group_by_setting, make_result_table
from sweeps.driver.sweep_page import SweepPage
from sweeps.driver.trainer import train_with_enough_memory
from sweeps.part3 import Part3
from trainables.accelerated.backends import NATIVE, PYTORCH
from trainables.errors import BadInputError
from trainables.persistence.connection import DRIVER_TAG, STORAGE_TAG
from trainables.persistence.store import Store
from trainables.persistence.trial_folder import TrialFolder
from trainables.trial import Trial
from trainables.worker.pack import Outcome, Pack

OPTIONS = Part3(dataset="digits", seeds=1, epochs=1, architectures=("mlp_1",))


def test_one_sweep_at_a_time_trains_with_a_storage(store: Store, tmp_path: Path) -> None:
    options = Part3(dataset="digits", seeds=1, epochs=1, architectures=("mlp_1",), tracking_uri=store.uri)
    with (
        FileLock(tmp_path / "sweep.lock"),
        pytest.raises(BadInputError, match="another sweep trains with --storage"),
    ):
        run(options, RunOptions(storage=tmp_path))
    assert store.find_runs() == {}


@pytest.mark.parametrize(
    ("architecture", "gpus", "backend", "compiler", "expected"),
    [
        ("cnn_3", 0.0, NATIVE, None, "Convolutions: the native backend, compiled on the machine that trains\n"),
        ("cnn_3", 0.0, PYTORCH, "c++", "Convolutions: PyTorch\n"),
        (
            "cnn_3",
            0.0,
            "AVX2",
            None,
            "Convolutions: PyTorch, limited to AVX2; the native backend may be faster: install g++, and delete",
        ),
        ("cnn_3", 0.5, NATIVE, "c++", ""),
        ("cnn_4", 0.0, NATIVE, "c++", ""),  # it trains in a stack
        ("mlp_1", 0.0, NATIVE, "c++", ""),
    ],
)
def test_the_convolution_backend_is_printed(
    architecture: str,
    gpus: float,
    backend: str | None,
    compiler: str | None,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: compiler)
    print_backend([Pack((make_trial(architecture=architecture),), ("a trial",), gpus)], ["cnn_4"], backend)
    output = capsys.readouterr().out
    assert output.startswith(expected)
    assert bool(output) == bool(expected)


@pytest.mark.parametrize(
    ("trial", "sentence"),
    [
        (make_trial(epochs=1, batch_size=200), "make 7 steps, but the first record is at step 10"),
        (make_trial(epochs=1, batch_size=50, milestones=((26, 0.1),)), "to change after step 26, but 1 epochs end"),
    ],
)
def test_a_trial_that_ends_before_its_first_record_or_milestone_is_refused(trial: object, sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence):
        check_records([trial], 1297)  # type: ignore[list-item]
    check_records([make_trial(epochs=1, batch_size=50, milestones=((25, 0.1),))], 1297)


@pytest.mark.usefixtures("train_nothing")
def test_a_sweep_releases_its_storage(store: Store, tmp_path: Path) -> None:
    options = Part3(dataset="digits", seeds=1, epochs=1, architectures=("mlp_1",), tracking_uri=store.uri)
    for _ in range(2):
        assert run(options, RunOptions(storage=tmp_path)) == 130
    with FileLock(tmp_path / "sweep.lock", blocking=False):
        pass


@pytest.mark.usefixtures("train_nothing")
def test_a_run_that_a_dead_driver_left_is_closed(store: Store, tmp_path: Path) -> None:
    """This includes the run of a trial outside this sweep, if it trained with this storage."""
    experiment_id, parent = store.ensure_parent("part4", "digits")
    name = f"{socket.gethostname()}:{tmp_path}"
    tags = {STORAGE_TAG: name, DRIVER_TAG: f"{parent}/dead"}
    store.open_run(make_trial(seed=9), "x", experiment_id, parent, tags, run_id=None)
    options = Part3(dataset="digits", seeds=1, epochs=1, architectures=("mlp_1",), tracking_uri=store.uri)
    run(options, RunOptions(storage=tmp_path))
    assert store.find_runs()[make_trial(seed=9).id][0].status == "KILLED"


def test_a_result_that_cannot_be_delivered_holds_no_other_back(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Part3(dataset="digits", seeds=3, epochs=1, architectures=("mlp_1",))
    sweep = options.sweep()
    for trial in sweep.trials():
        folder = TrialFolder(tmp_path, trial)
        with folder.lock():
            folder.write_result({})
    attempts = []

    def deliver(folder: TrialFolder, *_: Any) -> str | None:
        attempts.append(folder.trial.seed)
        if folder.trial.seed == 0:
            raise BadInputError("it trains in another sweep")
        return "away" if folder.trial.seed == 1 else None

    monkeypatch.setattr("sweeps.driver.recovery.deliver_result", deliver)
    session = Session(store, RunOptions(storage=tmp_path), None, ExitStack(), SweepPage(store, options))
    context = session.make_context(sweep, "1", "p", "p/a")
    refused = deliver_waiting_results(Plan(sweep, sweep.trials(), {}), context, 0)
    assert attempts == [0, 1]  # nothing more is sent to a store that is away
    assert list(refused.values()) == ["it trains in another sweep", "away", "away"]


def test_leftovers_are_removed_while_nobody_trains(store: Store, tmp_path: Path) -> None:
    sweep = OPTIONS.sweep()
    [trial] = sweep.trials()
    run_id = store.open_run(trial, "x", *store.ensure_parent("part3", "digits"), {}, run_id=None).run_id
    store.end_run(run_id, "FINISHED")
    folder = TrialFolder(tmp_path, trial)
    with folder.lock():
        folder.write_checkpoint(1, {})
    ray_folder = tmp_path / "ray"
    ray_folder.mkdir()
    (tmp_path / LOG_NAME).touch()  # Ray has failed
    plan = Plan(sweep, (trial,), store.find_runs())
    with FileLock(tmp_path / "sweep.lock"):  # another driver trains
        remove_leftovers(plan, tmp_path, ray_folder)
    assert folder.path.exists()
    assert ray_folder.exists()
    assert (tmp_path / LOG_NAME).exists()
    remove_leftovers(plan, tmp_path, None)
    assert not folder.path.exists()
    assert not (tmp_path / LOG_NAME).exists()
    assert ray_folder.exists()
    remove_leftovers(plan, tmp_path, ray_folder)
    assert not ray_folder.exists()


def test_a_drivers_own_runs_do_not_stay_running(store: Store) -> None:
    sweep = Part3(dataset="digits", seeds=3, epochs=1, architectures=("mlp_1",)).sweep()
    experiment_id, parent = store.ensure_parent("part3", "digits")
    finished, failed, stopped = sweep.trials()
    for trial in sweep.trials():
        store.open_run(trial, "x", experiment_id, parent, {DRIVER_TAG: "p/a"}, run_id=None)
    store.end_run(store.find_runs()[finished.id][0].run_id, "FINISHED")
    close_own_runs(
        Plan(sweep, sweep.trials(), store.find_runs()), store, {failed.id: Outcome(error="out of memory")}, "p/a"
    )
    statuses = {trial_id: runs[0].status for trial_id, runs in store.find_runs().items()}
    assert statuses == {finished.id: "FINISHED", failed.id: "FAILED", stopped.id: "KILLED"}


def test_runs_of_a_living_driver_are_left_alone(store: Store) -> None:
    """Two sweeps share a trial, and the sweep that does not train it ends."""
    sweep = Part3(dataset="digits", seeds=1, epochs=1, architectures=("mlp_1",)).sweep()
    [trial] = sweep.trials()
    store.open_run(trial, "x", *store.ensure_parent("grid", "digits"), {DRIVER_TAG: "p/other"}, run_id=None)
    close_own_runs(Plan(sweep, (trial,), store.find_runs()), store, {}, "p/a")
    assert store.find_runs()[trial.id][0].status == "RUNNING"


def test_provenance_without_git_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert run_git("rev-parse", "HEAD") == ""
    tags = collect_provenance()
    assert tags["git_commit"] == "unknown"
    assert tags["torch_version"].startswith("2.")


@pytest.fixture
def other_repository(tmp_path: Path) -> Path:
    """Return another project's checkout with one commit."""
    commands = (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"])
    for command in commands:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *command], check=True)
    return tmp_path


def test_provenance_does_not_follow_gits_variables(monkeypatch: pytest.MonkeyPatch, other_repository: Path) -> None:
    expected = collect_provenance()["git_commit"]
    monkeypatch.setenv("GIT_DIR", str(other_repository / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other_repository))
    assert collect_provenance()["git_commit"] == expected


def test_a_copy_in_the_checkout_of_another_project_has_no_commit(other_repository: Path) -> None:
    copy = Path(shutil.copy(provenance.__file__, other_repository))
    spec = importlib.util.spec_from_file_location("copied_provenance", copy)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.collect_provenance()["git_commit"] == "unknown"


def test_provenance_of_a_job_is_that_of_the_checkout_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPS_COMMIT", "abc with changes")
    assert collect_provenance()["git_commit"] == "abc with changes"


def test_a_library_that_is_not_installed_is_no_failure() -> None:
    assert get_version("no-such-library") == "not installed"


def test_a_dry_run_on_a_cluster_leaves_a_living_sweep_alone(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's files lie in a folder that follows from the storage, and a living sweep may use both."""
    monkeypatch.setattr(FakeRayProcess, "folders", folders := [])
    monkeypatch.setattr("sweeps.driver.ray_process.RayProcess", FakeRayProcess)
    monkeypatch.setattr("sweeps.driver.ray_process.check_address", lambda address: None)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert run(replace(OPTIONS, tracking_uri=store.uri), RunOptions(storage=tmp_path, dry_run=True)) == 0
    assert RunOptions(storage=tmp_path).private_folder not in folders
    assert len(folders) == 1


@pytest.mark.parametrize(
    ("seeds", "ray_failed", "line", "status"),
    [
        (1, False, "1 trial is missing (1 failed, 0 stopped, 0 trained but not seen in the store). To go on: ", 1),
        (3, False, "3 trials are missing (1 failed, 2 stopped, 0 trained but not seen in the store). To go on: ", 130),
        (3, True, "3 trials are missing (1 failed, 2 not trained because Ray failed, 0 trained but not seen in ", 1),
    ],
)
def test_missing_trials_are_counted_by_what_became_of_them(
    seeds: int, ray_failed: bool, line: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = replace(OPTIONS, seeds=seeds)
    plan = Plan(options.sweep(), options.sweep().trials(), {})
    outcomes = {plan.trials[0].id: Outcome(error="out of memory")}
    found = print_missing(plan, options, RunOptions(storage=tmp_path), outcomes, ray_failed=ray_failed)
    assert found == status
    assert f"\n{line}" in capsys.readouterr().out


def test_one_trial_is_not_trials(capsys: pytest.CaptureFixture[str]) -> None:
    [trial] = OPTIONS.sweep().trials()
    plan = Plan(OPTIONS.sweep(), (trial,), {})
    print_plan(plan)
    print_outcomes(plan, plan, {trial.id: Outcome()}, {trial.id: "the disk is full"}, 2)
    assert capsys.readouterr().out == (
        "part3: 1 trial, 0 done, 1 missing\n"
        "Trained 1 of 1 trial in 2 seconds.\n"
        "The results of 1 trained trial wait in the storage folder: the disk is full\n"
    )


def test_the_table_leaves_out_axes_of_one_value(store: Store) -> None:
    plan = Plan(OPTIONS.sweep(), OPTIONS.sweep().trials(), {})
    assert [column.header for column in make_result_table(group_by_setting(plan, set())).columns] == [
        "trials",
        "mean",
        "95 % CI",
        "best\nrun",
    ]


def test_trials_out_of_gpu_memory_train_again_with_twice_their_share() -> None:
    trials = [make_trial(seed=seed) for seed in range(3)]
    needed = dict(zip((trial.id for trial in trials), (0.3, 0.6, 5.0), strict=True))  # fractions of a GPU
    attempts: list[list[float]] = []

    def train(trials: Sequence[Trial], gpus: Mapping[str, float]) -> dict[str, Outcome]:
        attempts.append([gpus[trial.id] for trial in trials])
        too_small = {trial.id: gpus[trial.id] < needed[trial.id] for trial in trials}
        return {trial_id: Outcome("too little" if failed else None, failed) for trial_id, failed in too_small.items()}

    outcomes = train_with_enough_memory(trials, {trial.id: 0.3 for trial in trials}, train)
    assert attempts == [[0.3, 0.3, 0.3], [0.6, 0.6], [1.0]]
    assert [outcomes[trial.id].error for trial in trials] == [None, None, "too little"]
    assert [list(outcomes[trial.id].notes) for trial in trials] == [
        [],
        ["0.3 of a GPU had too little memory; it had 0.6 in the end"],
        ["0.3 of a GPU had too little memory; it had 1 in the end"],
    ]


def test_a_stopped_sweep_trains_nothing_again() -> None:
    trials = [make_trial(seed=seed) for seed in range(2)]
    answers = iter([outcomes := {trials[0].id: Outcome("too little", out_of_memory=True)}])
    assert train_with_enough_memory(trials, {trial.id: 0.3 for trial in trials}, lambda *_: next(answers)) is outcomes

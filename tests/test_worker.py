from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_dataset, make_trial, needs_compiler

from sweeps.xor import Xor
from trainables import training
from trainables.accelerated.backends import NATIVE, PYTORCH
from trainables.accelerated.convolutions import CompilerError
from trainables.errors import StorageError, TrackingError
from trainables.persistence.connection import DRIVER_TAG, STORAGE_TAG, SweepContext
from trainables.persistence.delivery import Delivery
from trainables.persistence.store import Store
from trainables.persistence.trial_folder import TrialFolder
from trainables.persistence.trial_run import TrialRun
from trainables.process import compute_memory_fraction
from trainables.trial import Trial
from trainables.worker import active_trial, worker
from trainables.worker.active_trial import MAX_STARTS, ActiveTrial
from trainables.worker.pack import Outcome, Pack, PackReport, WorkerSettings
from trainables.worker.worker import train_pack


class KilledError(Exception):
    """An error in place of the death of the process."""


@pytest.fixture
def settings(store: Store, tmp_path: Path) -> WorkerSettings:
    experiment_id, parent = store.ensure_parent("part3", "digits")
    (tmp_path / "storage" / "elsewhere").mkdir(parents=True)
    context = SweepContext(
        tracking_uri=store.uri,
        experiment_id=experiment_id,
        parent_run_id=parent,
        storage=tmp_path / "storage",
        storage_name="here",
        driver=f"{parent}/a",
        tags={},
    )
    return WorkerSettings(context=context, threads=1, checkpoint_seconds=1e-9)


def move_elsewhere(settings: WorkerSettings, threads: int = 1) -> WorkerSettings:
    """Return the settings of the same sweep with another storage and another driver."""
    context = dataclasses.replace(
        settings.context, storage=settings.context.storage / "elsewhere", storage_name="elsewhere", driver="p/b"
    )
    return dataclasses.replace(settings, context=context, threads=threads)


def get_folder(settings: WorkerSettings, seed: int = 0) -> TrialFolder:
    return TrialFolder(settings.context.storage, make_trial(architecture="cnn_3", epochs=4, seed=seed))


def train(
    settings: WorkerSettings,
    monkeypatch: pytest.MonkeyPatch,
    die_at_epoch: int | None = None,
    seed: int = 0,
    gpus: float = 0,
    **changes: Any,
) -> Outcome:
    """Run a pack of one trial, with a checkpoint at every step; the process may die when it reports an epoch.

    Returns:
        The outcome in the last report.
    """
    trial = make_trial(**{"architecture": "cnn_3", "epochs": 4, "seed": seed, **changes})
    return train_all(settings, monkeypatch, [trial], die_at_epoch, gpus)[trial.id]


def train_all(
    settings: WorkerSettings,
    monkeypatch: pytest.MonkeyPatch,
    trials: Sequence[Trial],
    die_at_epochs: int | None = None,
    gpus: float = 0,
) -> dict[str, Outcome]:
    """Run a pack; the process may die when it reports a number of epochs, summed over the trials.

    Returns:
        The outcomes in the last report.
    """
    reports: list[PackReport] = []

    def report(state: PackReport) -> None:
        reports.append(state)
        if state.epochs == die_at_epochs and state.running:
            raise KilledError

    monkeypatch.setattr(worker, "REPORT_INTERVAL_SECONDS", 0)
    train_pack(Pack(tuple(trials), ("a trial",) * len(trials), gpus), make_dataset(), settings, report)
    return dict(reports[-1].outcomes)


def spy_on_deliveries(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Return a list that gets, at every delivery, the reason why the store took no result, or None if it took it."""
    failures: list[str | None] = []
    deliver = ActiveTrial.deliver

    def spy(self: ActiveTrial) -> None:
        deliver(self)
        failures.append(self.delivery.failure)

    monkeypatch.setattr(ActiveTrial, "deliver", spy)
    return failures


def read_result(store: Store, seed: int = 0) -> Any:
    [run] = store.find_runs()[make_trial(architecture="cnn_3", epochs=4, seed=seed).id]
    assert run.finished
    return run, store.read_result(run)


@pytest.mark.parametrize("backend", [None, pytest.param(NATIVE, marks=needs_compiler)])
def test_an_interrupted_trial_ends_like_an_uninterrupted_one(
    settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch, backend: str | None
) -> None:
    settings = dataclasses.replace(settings, backend=backend)
    train(settings, monkeypatch)
    run, expected = read_result(store)
    store.client.delete_run(run.run_id)

    steps: list[int] = []
    take_step = worker.training.take_step
    monkeypatch.setattr(
        worker.training, "take_step", lambda t, d, state, b: (steps.append(state.step), take_step(t, d, state, b))[1]
    )
    for epoch in (1, 3):
        with pytest.raises(KilledError):
            train(settings, monkeypatch, die_at_epoch=epoch)
        assert len(list(get_folder(settings).path.glob("[0-9]*.checkpoint"))) == 2
    train(settings, monkeypatch)
    assert steps == list(range(52))  # 13 steps an epoch: resumed from checkpoints, none taken twice

    run, actual = read_result(store)
    assert store.read_tags(run.run_id)["convolutions"] == (backend or PYTORCH)
    for name, curve in expected.curves.items():
        assert curve.tobytes() == actual.curves[name].tobytes()
        history = store.client.get_metric_history(run.run_id, name)
        assert sorted(m.step for m in history) == expected.steps.tolist()
    np.testing.assert_array_equal(expected.first_layer, actual.first_layer)
    assert not get_folder(settings).path.exists()


def test_a_machine_without_a_compiler_trains_with_pytorchs_convolutions(
    settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_to_compile(*_: Any) -> Any:
        raise CompilerError("no compiler")

    monkeypatch.setattr(active_trial, "choose_forward", fail_to_compile)
    outcome = train(dataclasses.replace(settings, backend=NATIVE), monkeypatch)
    assert outcome.notes == ["it trained with PyTorch's convolutions, as there are no others here: no compiler"]
    run, _ = read_result(store)
    assert store.read_tags(run.run_id)["convolutions"] == PYTORCH


@needs_compiler
def test_a_trial_goes_on_with_the_convolutions_that_it_began_with(
    settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later settings do not matter, unless the backend is not available here; a change of backend is recorded."""
    native, pytorch = (dataclasses.replace(settings, backend=backend) for backend in (NATIVE, PYTORCH))
    for seed, begun, continued in ((0, native, pytorch), (1, pytorch, native)):
        with pytest.raises(KilledError):
            train(begun, monkeypatch, die_at_epoch=2, seed=seed)
        train(continued, monkeypatch, seed=seed)
        run, _ = read_result(store, seed)
        assert store.read_tags(run.run_id)["convolutions"] == begun.backend
    with pytest.raises(KilledError):
        train(native, monkeypatch, die_at_epoch=2, seed=2)

    def fail_to_compile(*_: Any) -> Any:
        raise CompilerError("no compiler")

    monkeypatch.setattr(active_trial, "choose_forward", fail_to_compile)
    train(native, monkeypatch, seed=2)
    run, _ = read_result(store, seed=2)
    assert store.read_tags(run.run_id)["convolutions"] == f"{NATIVE} then {PYTORCH}"


def test_checkpoints_that_hold_the_text_of_tags_are_read(
    settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials go on from such older checkpoints with the backend named last, and keep the values before it."""
    with pytest.raises(KilledError):
        train(settings, monkeypatch, die_at_epoch=2)
    folder = get_folder(settings)
    content = folder.read_newest_checkpoint()
    assert content is not None
    assert (content.pop(active_trial.THREAD_COUNTS), content.pop(active_trial.BACKENDS)) == ([1], [PYTORCH])
    folder.write_checkpoint(content["step"], {**content, "threads": "2 then 4", "convolutions": "own then AVX2"})
    asked: list[str | None] = []

    def choose_forward(architecture: str, backend: str | None, device: torch.device) -> Any:
        asked.append(backend)
        return training.forward_torch

    monkeypatch.setattr(active_trial, "choose_forward", choose_forward)
    train(settings, monkeypatch)
    tags = store.read_tags(read_result(store)[0].run_id)
    assert asked == ["AVX2"]
    assert tags["threads"] == "2 then 4 then 1"
    assert tags["convolutions"] == f"own then AVX2 then {PYTORCH}"


@pytest.mark.parametrize("architecture", ["cnn_3", "mlp_1"])
def test_stacks_and_fully_connected_networks_do_not_use_the_native_backend(
    settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    trial = make_trial(architecture=architecture, epochs=1)
    changed = dataclasses.replace(settings, backend=NATIVE, stacked_architectures=["cnn_3"])
    train_all(changed, monkeypatch, [trial])
    tags = store.read_tags(store.find_runs()[trial.id][0].run_id)
    assert tags.get("convolutions") == (PYTORCH if architecture == "cnn_3" else None)


def test_a_finished_trial_is_not_trained_again(
    settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(settings, monkeypatch)
    monkeypatch.setattr(worker.training, "start", None)  # calling it would raise
    train(settings, monkeypatch)
    read_result(store)


def test_provenance_is_recorded(settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    train(settings, monkeypatch)
    run, _ = read_result(store)
    tags = store.client.get_run(run.run_id).data.tags
    assert tags["device"] == "cpu"
    assert tags["threads"] == "1"
    assert float(tags["training_seconds"]) > 0


def test_points_are_sent_only_once_a_checkpoint_covers_them(
    settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    covered: list[int] = []
    sent: list[int] = []
    write, write_result, send = TrialFolder.write_checkpoint, TrialFolder.write_result, TrialRun.send_records

    def spy_write(self: TrialFolder, step: int, content: dict[str, Any]) -> None:
        write(self, step, content)
        covered.append(content["curves"].shape[1])

    def spy_result(self: TrialFolder, content: dict[str, Any]) -> None:
        write_result(self, content)
        covered.append(len(content["steps"]))

    def spy_send(self: TrialRun, steps: Any, curves: Any) -> None:
        sent.append(len(steps))
        assert len(steps) <= covered[-1]
        assert self.run_id == get_folder(settings).run_id  # so that a successor would go on with this run
        send(self, steps, curves)

    monkeypatch.setattr(TrialFolder, "write_checkpoint", spy_write)
    monkeypatch.setattr(TrialFolder, "write_result", spy_result)
    monkeypatch.setattr(TrialRun, "send_records", spy_send)
    train(settings, monkeypatch)
    assert sent[-1] == covered[-1] == 5


def check_every_step_once(store: Store) -> None:
    run, result = read_result(store)
    for name in result.curves:
        assert [m.step for m in store.client.get_metric_history(run.run_id, name)] == result.steps.tolist()


def test_a_trial_that_starts_anew_with_other_threads_has_every_step_once(
    settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial's checkpoint is out of reach and its last bits may differ: the first attempt's points must not stay."""
    with pytest.raises(KilledError):
        train(settings, monkeypatch, die_at_epoch=2)
    moved = move_elsewhere(settings, threads=2)
    assert "trains in another sweep, with --storage here" in train(moved, monkeypatch).error  # it may be alive
    [dead] = store.find_runs()[make_trial(architecture="cnn_3", epochs=4).id]
    store.end_run(dead.run_id, "KILLED")
    train(moved, monkeypatch)
    check_every_step_once(store)


def test_a_trial_that_alternates_between_storages_has_every_step_once(
    settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each storage has a checkpoint, and the run in the store has the points of the other storage."""
    trial_id = make_trial(architecture="cnn_3", epochs=4).id
    for current, epoch in ((settings, 3), (move_elsewhere(settings, threads=2), 1)):
        with pytest.raises(KilledError):
            train(current, monkeypatch, die_at_epoch=epoch)
        [dead] = store.find_runs()[trial_id]
        store.end_run(dead.run_id, "KILLED")
    train(settings, monkeypatch)
    check_every_step_once(store)


def test_after_a_damaged_checkpoint_a_trial_goes_on_from_the_one_before(
    settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(settings, monkeypatch)
    run, expected = read_result(store)
    store.delete_run(run.run_id)
    with pytest.raises(KilledError):
        train(settings, monkeypatch, die_at_epoch=2)
    newest = max(get_folder(settings).path.glob("[0-9]*.checkpoint"))
    newest.write_bytes(newest.read_bytes()[:-50])
    [note] = train(settings, monkeypatch).notes
    assert "could not be used (it is damaged" in note
    check_every_step_once(store)
    assert read_result(store)[1].curves["train_loss"].tobytes() == expected.curves["train_loss"].tobytes()


@pytest.mark.parametrize("pattern", ["[0-9]*.checkpoint", "result.checkpoint"])
def test_a_trial_with_damaged_files_moves_to_a_new_run(
    pattern: str, settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training again may end in other last bits, here by force: no points may be added to those of the old run."""
    if pattern == "result.checkpoint":
        monkeypatch.setattr(Delivery, "deliver_result", die)
        with pytest.raises(KilledError):
            train(settings, monkeypatch)
        monkeypatch.undo()
        for path in get_folder(settings).path.glob("[0-9]*.checkpoint"):
            path.unlink()
    else:
        with pytest.raises(KilledError):
            train(settings, monkeypatch, die_at_epoch=3)
    [old] = store.find_runs()[get_folder(settings).trial.id]
    for path in get_folder(settings).path.glob(pattern):
        path.write_bytes(b"x")
    start = worker.training.start

    def start_perturbed(*words: Any, **options: Any) -> Any:
        state = start(*words, **options)
        with torch.no_grad():
            for parameter in state.model.parameters():
                parameter *= 1 + 1e-6
        return state

    monkeypatch.setattr(worker.training, "start", start_perturbed)
    train(settings, monkeypatch)
    check_every_step_once(store)
    assert read_result(store)[0].run_id != old.run_id


def die(*_: Any) -> None:
    raise KilledError


def test_a_run_that_another_sweep_has_finished_is_not_changed(
    settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is away when the trial starts; when it is back, it has a finished run of the trial."""
    open_run, calls = Delivery._open, iter(range(1000))

    def fail_at_first(self: Delivery) -> TrialRun:
        if next(calls) == 0:
            train(move_elsewhere(settings, threads=2), monkeypatch)
            raise TrackingError("away")
        return open_run(self)

    monkeypatch.setattr("trainables.persistence.delivery.RETRY_WAIT_SECONDS", 0.0)
    monkeypatch.setattr("trainables.persistence.delivery.RETRY_WAIT_FACTOR", 0.0)
    monkeypatch.setattr(Delivery, "_open", fail_at_first)
    train(settings, monkeypatch)
    check_every_step_once(store)
    assert store.read_tags(read_result(store)[0].run_id)[STORAGE_TAG] == "elsewhere"
    assert not get_folder(settings).path.exists()


def test_training_goes_on_while_the_store_is_away(
    settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is kept, and the next attempt sends it without training."""
    hidden = Path(store.uri.removeprefix("sqlite:///"))
    uri = f"sqlite:///{hidden.parent}/hidden/mlflow.db"
    hidden.rename(hidden.parent / "away.db")
    away = dataclasses.replace(settings, context=dataclasses.replace(settings.context, tracking_uri=uri))
    (hidden.parent / "hidden").touch()  # a file where the database's folder should be
    failures = spy_on_deliveries(monkeypatch)
    train(away, monkeypatch)
    [failure] = failures
    assert failure is not None
    assert "cannot be used" in failure
    assert get_folder(settings).has_result
    (hidden.parent / "away.db").rename(hidden)
    monkeypatch.setattr(worker.training, "start", None)  # calling it would raise
    train(settings, monkeypatch)
    assert failures[1:] == [None]
    check_every_step_once(store)
    assert not get_folder(settings).path.exists()


def test_a_store_that_fails_now_and_then_gets_every_point_once(
    settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, calls = TrialRun.send_records, iter(range(1000))
    monkeypatch.setattr("trainables.persistence.delivery.RETRY_WAIT_SECONDS", 0.0)
    monkeypatch.setattr("trainables.persistence.delivery.RETRY_WAIT_FACTOR", 0.0)

    def flaky(self: TrialRun, steps: Any, curves: Any) -> None:
        number = next(calls)
        if number % 3 == 0:
            raise TrackingError("away")
        send(self, steps, curves)
        if number % 3 == 1:
            self.records_sent = 0  # as if the answer was lost: all points are sent again
            raise TrackingError("no answer")

    monkeypatch.setattr(TrialRun, "send_records", flaky)
    failures = spy_on_deliveries(monkeypatch)
    while failures[-1:] != [None]:
        train(settings, monkeypatch)
    check_every_step_once(store)


def test_a_full_disk_ends_the_trial_with_the_reason(
    settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KilledError):
        train(settings, monkeypatch, die_at_epoch=1)
    write = TrialFolder._write

    def fail_to_write(self: TrialFolder, name: str, content: dict[str, Any]) -> None:
        raise StorageError("cannot write (No space left on device)")

    monkeypatch.setattr(TrialFolder, "_write", fail_to_write)
    assert "No space left" in train(settings, monkeypatch).error
    monkeypatch.setattr(TrialFolder, "_write", write)
    train(settings, monkeypatch)
    check_every_step_once(store)


def test_a_trial_that_always_raises_is_given_up(settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ArithmeticError("broken")

    monkeypatch.setattr(worker.training, "train", fail)
    for _ in range(MAX_STARTS):
        with pytest.raises(ArithmeticError):
            train(settings, monkeypatch)
    assert "ended 3 times at the same point: ArithmeticError: broken" in train(settings, monkeypatch).error
    other_driver = dataclasses.replace(settings, context=dataclasses.replace(settings.context, driver="p/b"))
    with pytest.raises(ArithmeticError):  # a new driver counts from the start
        train(other_driver, monkeypatch)


def test_a_change_of_the_thread_count_is_recorded(
    settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KilledError):
        train(settings, monkeypatch, die_at_epoch=2)
    train(dataclasses.replace(settings, threads=2), monkeypatch)
    run, _ = read_result(store)
    assert store.read_tags(run.run_id)["threads"] == "1 then 2"


def test_a_change_of_the_processor_is_recorded(
    settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(active_trial, "get_processor_name", lambda: "A")
    with pytest.raises(KilledError):
        train(settings, monkeypatch, die_at_epoch=2)
    monkeypatch.setattr(active_trial, "get_processor_name", lambda: "B")
    train(settings, monkeypatch)
    tags = store.read_tags(read_result(store)[0].run_id)
    assert (tags["processor"], tags["device"], tags["threads"]) == ("A then B", "cpu", "1")
    assert "stack_sizes" not in tags


def test_a_diverged_trial_is_finished_and_marked(
    settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KilledError):
        train(settings, monkeypatch, die_at_epoch=0, optimizer="sgd", learning_rate=1e6)
    train(settings, monkeypatch, optimizer="sgd", learning_rate=1e6)
    [[run]] = store.find_runs().values()
    assert run.finished
    assert run.diverged
    assert run.test_accuracy is None
    result = store.read_result(run)
    assert result.diverged
    history = store.client.get_metric_history(run.run_id, "train_loss")
    assert [m.step for m in history] == result.steps.tolist()


def test_runs_name_their_storage_and_driver(
    settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(settings, monkeypatch)
    run, _ = read_result(store)
    tags = store.read_tags(run.run_id)
    assert (tags[STORAGE_TAG], tags[DRIVER_TAG]) == ("here", settings.context.driver)


def test_an_xor_trial_needs_no_data(settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Xor(epochs=20).sweep().trials()[1]
    train_pack(Pack((trial,), ("xor",), 0), None, settings, lambda metrics: None)
    [run] = store.find_runs()[trial.id]
    result = store.read_result(run)
    assert result.steps.tolist() == list(range(4, 81, 4))
    assert result.first_layer.shape == (3, 3)


def test_the_trained_model_is_kept(settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    train(settings, monkeypatch)
    run, result = read_result(store)
    with store.open_artifact(run, "model.pt") as path:
        weights = torch.load(path, weights_only=True)
    np.testing.assert_array_equal(next(iter(weights.values())).numpy(), result.first_layer)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")]
)
def test_a_trial_without_enough_gpu_memory_reports_it_and_can_go_on_with_more(
    settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It does so any number of times, and goes on from its last checkpoint."""
    with pytest.raises(KilledError):
        train(settings, monkeypatch, die_at_epoch=2, gpus=0.1)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    start = worker.training.start
    monkeypatch.setattr(worker.training, "start", fail)
    for _ in range(MAX_STARTS + 1):
        report = train(settings, monkeypatch, gpus=0.1)
        assert report.out_of_memory
        assert "0.1 of a GPU has too little memory for it" in report.error
    monkeypatch.setattr(worker.training, "start", start)
    assert train(settings, monkeypatch, gpus=0.2).error is None
    read_result(store)


def test_an_error_that_is_not_about_memory_is_raised(settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.training, "start", None)
    with pytest.raises(TypeError):
        train(settings, monkeypatch, gpus=0.1)


def test_a_node_that_does_not_see_the_storage_is_reported(
    settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = settings.context.storage / "missing"
    context = dataclasses.replace(settings.context, storage=missing)
    report = train(dataclasses.replace(settings, context=context), monkeypatch)
    assert f"does not see --storage {missing}; mount it there" in report.error
    assert not report.out_of_memory
    assert not missing.exists()


@pytest.mark.parametrize(("gpus", "fraction"), [(0.25, 0.25 - 0.5 / 16), (0.04, 0.02), (1.0, 1.0), (2.0, 1.0)])
def test_a_trials_tensors_leave_room_for_the_rest_of_its_process(gpus: float, fraction: float) -> None:
    assert compute_memory_fraction(gpus, 16 * 2**30) == pytest.approx(fraction)


def with_stacks(settings: WorkerSettings) -> WorkerSettings:
    """Return the settings with stacks for `mlp_1`."""
    return dataclasses.replace(settings, stacked_architectures=["mlp_1"])


def make_mlps(seeds: Sequence[int] = range(3), **changes: Any) -> list[Trial]:
    return [make_trial(epochs=4, seed=seed, **changes) for seed in seeds]


def read_results(store: Store) -> dict[str, Any]:
    """Return all results by trial id; check that each has one run, which is finished and has every step once."""
    found = {}
    for trial_id, [run] in store.find_runs().items():
        assert run.finished
        found[trial_id] = result = store.read_result(run)
        for name in result.curves:
            history = store.client.get_metric_history(run.run_id, name)
            assert [m.step for m in history] == result.steps.tolist()
    return found


def are_equal(one: Any, other: Any) -> bool:
    """Return whether two results are equal to the last bit."""
    curves = all(one.curves[name].tobytes() == other.curves[name].tobytes() for name in one.curves)
    return curves and one.first_layer.tobytes() == other.first_layer.tobytes()


def empty_store(store: Store) -> None:
    """Empty the store."""
    for runs in store.find_runs().values():
        for run in runs:
            store.delete_run(run.run_id)


def test_trials_of_a_killed_stack_that_go_on_in_other_packs_end_the_same(
    settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stack of three is killed, and its trials go on in packs of two and one, from checkpoints of different steps."""
    trials = make_mlps()
    train_all(with_stacks(settings), monkeypatch, trials)
    expected = read_results(store)
    assert len(expected) == 3
    empty_store(store)
    with pytest.raises(KilledError):
        train_all(with_stacks(settings), monkeypatch, trials, die_at_epochs=3)
    with pytest.raises(KilledError):
        train_all(with_stacks(settings), monkeypatch, trials[1:], die_at_epochs=4)
    train_all(with_stacks(settings), monkeypatch, [trials[1], trials[0]])  # their checkpoints are at different steps
    train_all(settings, monkeypatch, trials[2:])  # in a stack, as it began, although the settings name no stacks now
    actual = read_results(store)
    assert all(are_equal(actual[trial.id], expected[trial.id]) for trial in trials)
    tags = [store.read_tags(store.find_runs()[trial.id][0].run_id)["stacked_trials"] for trial in trials]
    assert tags == ["1", "1", "1"]
    assert not any((settings.context.storage / "trials").iterdir())


def test_a_change_of_the_neighbours_of_a_network_with_convolutions_is_recorded(
    settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = [make_trial(architecture="cnn_3", epochs=3, seed=seed) for seed in range(2)]
    stacks = dataclasses.replace(settings, stacked_architectures=["cnn_3"])
    with pytest.raises(KilledError):
        train_all(stacks, monkeypatch, trials, die_at_epochs=2)
    train_all(stacks, monkeypatch, trials[:1])
    tags = store.read_tags(store.find_runs()[trials[0].id][0].run_id)
    assert (tags["stack_sizes"], tags["stacked_trials"]) == ("2 then 1", "1")


def test_trials_of_a_pack_one_after_another_equal_trials_alone(
    settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = make_mlps()
    for trial in trials:
        train_all(settings, monkeypatch, [trial])
    expected = read_results(store)
    empty_store(store)
    with pytest.raises(KilledError):
        train_all(settings, monkeypatch, trials, die_at_epochs=4 + 2)  # in the middle of the second trial
    train_all(settings, monkeypatch, trials)
    actual = read_results(store)
    assert all(are_equal(actual[trial.id], expected[trial.id]) for trial in trials)


def test_a_member_that_diverges_leaves_the_others_alone(
    settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    [good] = make_mlps([0])
    [bad] = make_mlps([1], optimizer="sgd", learning_rate=1e6)
    good = dataclasses.replace(good, optimizer="sgd")
    train_all(with_stacks(settings), monkeypatch, [good])
    expected = read_results(store)[good.id]
    empty_store(store)
    with pytest.raises(KilledError):
        train_all(with_stacks(settings), monkeypatch, [bad, good], die_at_epochs=6)
    train_all(with_stacks(settings), monkeypatch, [bad, good])
    actual = read_results(store)
    assert are_equal(actual[good.id], expected)
    assert actual[bad.id].diverged
    assert len(actual[bad.id].steps) < len(actual[good.id].steps)


def test_a_member_that_cannot_be_trained_leaves_the_others_alone(
    settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = make_mlps()
    folder = TrialFolder(settings.context.storage, trials[1])
    folder.path.mkdir(parents=True)
    (folder.path / "starts").write_text(f"{settings.context.driver} {MAX_STARTS}")
    outcomes = train_all(with_stacks(settings), monkeypatch, trials)
    assert [outcomes[trial.id].error is not None for trial in trials] == [False, True, False]
    assert set(read_results(store)) == {trials[0].id, trials[2].id}


def test_a_member_that_always_ends_its_process_does_not_take_the_others_with_it(
    settings: WorkerSettings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = make_mlps()
    start = worker.training.start

    def start_or_die(trial: Trial, *words: Any, **options: Any) -> Any:
        if trial == trials[1]:
            raise KilledError("this one")
        return start(trial, *words, **options)

    monkeypatch.setattr(worker.training, "start", start_or_die)
    deaths = 0
    while True:
        try:
            outcomes = train_all(with_stacks(settings), monkeypatch, trials)
            break
        except KilledError:
            deaths += 1
    assert deaths == MAX_STARTS
    assert "ended 3 times at the same point: test_worker.KilledError: this one" in outcomes[trials[1].id].error
    [failed] = store.find_runs()[trials[1].id]
    store.delete_run(failed.run_id)
    assert set(read_results(store)) == {trials[0].id, trials[2].id}


def test_reports_count_the_epochs_running_trials_and_outcomes_of_a_pack(
    settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[PackReport] = []
    monkeypatch.setattr(worker, "REPORT_INTERVAL_SECONDS", 0)
    trials = [*make_mlps([0, 1]), make_trial(architecture="cnn_3", epochs=4)]
    train_pack(Pack(tuple(trials), ("a trial",) * 3, 0), make_dataset(), with_stacks(settings), reports.append)
    assert [(r.epochs, r.running, len(r.outcomes)) for r in reports] == [
        *((0, 2, 0), (0, 2, 0), (2, 2, 0), (4, 2, 0), (6, 2, 0)),  # the stack
        *((8, 1, 2), (8, 1, 2), (9, 1, 2), (10, 1, 2), (11, 1, 2)),  # then the other trial
        (12, 0, 3),
    ]

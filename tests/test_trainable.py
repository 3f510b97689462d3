from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_dataset, make_trial

from sweeps.xor import Xor
from trainables import trainable as module
from trainables.tracking import Store, TrialRun
from trainables.trainable import Settings, read_checkpoint, trainable, write_checkpoint
from trainables.trial import BadInputError


class KilledError(Exception):
    """Stands for the death of the process at a chosen moment."""


@pytest.fixture
def settings(store: Store, tmp_path: Path) -> Settings:
    experiment_id, parent = store.parent("part3", "digits")
    return Settings(
        tracking_uri=store.uri,
        experiment_id=experiment_id,
        parent_run_id=parent,
        checkpoints=tmp_path / "checkpoints",
        threads=1,
        gpus=0,
        tags={},
    )


def train(settings: Settings, monkeypatch: pytest.MonkeyPatch, die_at_epoch: int | None = None, seed: int = 0) -> None:
    """Run the trainable in this process, checkpointing at every epoch; it may die when it reports an epoch."""

    def report(metrics: dict[str, Any]) -> None:
        if metrics["epoch"] == die_at_epoch:
            raise KilledError

    monkeypatch.setattr(module.tune, "report", report)
    monkeypatch.setattr(module, "EPOCH_CHECKPOINT_SECONDS", 0.0)
    trial = make_trial(architecture="cnn_3", epochs=4, seed=seed)
    config = {"trial_id": trial.id}
    trainable(config, data=make_dataset(), trials={trial.id: trial}, names={trial.id: "cnn_3"}, settings=settings)


def result_of(store: Store, seed: int = 0) -> Any:
    [recorded] = store.recorded()[make_trial(architecture="cnn_3", epochs=4, seed=seed).id]
    assert recorded.finished
    return recorded, store.read(recorded)


def test_an_interrupted_trial_ends_as_an_undisturbed_one(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(settings, monkeypatch)
    run, expected = result_of(store)
    store.client.delete_run(run.run_id)

    steps: list[int] = []
    take_step = module.training.take_step
    monkeypatch.setattr(
        module.training, "take_step", lambda t, d, state, b: (steps.append(state.step), take_step(t, d, state, b))[1]
    )
    for epoch in (1, 3):
        with pytest.raises(KilledError):
            train(settings, monkeypatch, die_at_epoch=epoch)
        assert len(list(settings.checkpoints.iterdir())) == 1
    train(settings, monkeypatch)
    assert steps == list(range(52))  # 13 steps an epoch: resumed from checkpoints, none taken twice

    run, actual = result_of(store)
    for name, curve in expected.curves.items():
        assert curve.tobytes() == actual.curves[name].tobytes()
        history = store.client.get_metric_history(run.run_id, name)
        assert sorted(m.step for m in history) == expected.steps.tolist()
    np.testing.assert_array_equal(expected.first_layer, actual.first_layer)
    assert list(settings.checkpoints.iterdir()) == []


def test_a_finished_trial_is_not_trained_again(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(settings, monkeypatch)
    monkeypatch.setattr(module.training, "start", None)  # calling it would raise
    train(settings, monkeypatch)
    result_of(store)


def test_provenance_is_recorded(settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    train(settings, monkeypatch)
    run, _ = result_of(store)
    tags = store.client.get_run(run.run_id).data.tags
    assert tags["device"] == "cpu"
    assert tags["threads"] == "1"
    assert float(tags["training_seconds"]) > 0


@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty", "pickle"])
def test_an_unusable_checkpoint_starts_the_trial_anew(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trial = make_trial()
    path = tmp_path / f"{trial.id}.pt"
    write_checkpoint(path, {"trial_id": "another" if damage == "foreign" else trial.id, "seconds": 1.0})
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-50])
    if damage == "empty":
        path.write_bytes(b"")
    if damage == "pickle":
        torch.save({"trial_id": print}, path)
    assert read_checkpoint(path, trial) is None
    assert "starts anew" in caplog.text


def test_checkpoints_leave_no_partial_files(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.pt"
    write_checkpoint(path, {"step": 1})
    write_checkpoint(path, {"step": 2})
    assert [p.name for p in path.parent.iterdir()] == ["a.pt"]
    assert torch.load(path, weights_only=True) == {"step": 2}


def test_points_are_sent_only_once_a_checkpoint_covers_them(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    covered: list[int] = []
    sent: list[int] = []
    write, send = module.write_checkpoint, TrialRun.write

    def spy_write(path: Path, content: dict[str, Any]) -> None:
        write(path, content)
        covered.append(content["curves"].shape[1])

    def spy_send(self: TrialRun, steps: Any, curves: Any) -> None:
        sent.append(len(steps))
        assert len(steps) <= covered[-1]
        send(self, steps, curves)

    monkeypatch.setattr(module, "write_checkpoint", spy_write)
    monkeypatch.setattr(TrialRun, "write", spy_send)
    train(settings, monkeypatch)
    assert sent[-1] == covered[-1] == 5


def test_a_trial_that_starts_anew_with_other_threads_doubles_nothing(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint is out of reach, and its last bits may differ: the first attempt's points must not stay."""
    with pytest.raises(KilledError):
        train(settings, monkeypatch, die_at_epoch=2)
    elsewhere = dataclasses.replace(
        settings, checkpoints=settings.checkpoints / "elsewhere", threads=2, tags={"checkpoints": "elsewhere"}
    )
    with pytest.raises(BadInputError, match="trains with another --storage"):  # it may be alive
        train(elsewhere, monkeypatch)
    [dead] = store.recorded()[make_trial(architecture="cnn_3", epochs=4).id]
    store.close(dead.run_id, "KILLED")
    train(elsewhere, monkeypatch)
    run, result = result_of(store)
    for name in result.curves:
        assert [m.step for m in store.client.get_metric_history(run.run_id, name)] == result.steps.tolist()


def test_an_xor_trial_needs_no_data(settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.tune, "report", lambda metrics: None)
    trial = Xor(epochs=20).sweep().trials()[1]
    names = {trial.id: "xor"}
    trainable({"trial_id": trial.id}, data=None, trials={trial.id: trial}, names=names, settings=settings)
    [recorded] = store.recorded()[trial.id]
    result = store.read(recorded)
    assert result.steps.tolist() == list(range(4, 81, 4))
    assert result.first_layer.shape == (3, 3)


def test_the_trained_model_is_kept(settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    train(settings, monkeypatch)
    run, result = result_of(store)
    with store.artifact(run, "model.pt") as path:
        weights = torch.load(path, weights_only=True)
    np.testing.assert_array_equal(next(iter(weights.values())).numpy(), result.first_layer)

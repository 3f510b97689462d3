from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_dataset, make_trial

from trainables import trainable as module
from trainables.tracking import Store
from trainables.trainable import Settings, resume, trainable, write_checkpoint
from trainables.training import start, tensors


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

    for epoch in (1, 3):
        with pytest.raises(KilledError):
            train(settings, monkeypatch, die_at_epoch=epoch)
        assert len(list(settings.checkpoints.iterdir())) == 1
    train(settings, monkeypatch)

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
    state = start(trial, tensors(make_dataset(), "cpu"))
    assert resume(path, trial, state) == 0.0
    assert state.step == 0
    assert "starts anew" in caplog.text


def test_checkpoints_leave_no_partial_files(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.pt"
    write_checkpoint(path, {"step": 1})
    write_checkpoint(path, {"step": 2})
    assert [p.name for p in path.parent.iterdir()] == ["a.pt"]
    assert torch.load(path, weights_only=True) == {"step": 2}

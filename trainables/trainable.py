"""The Ray Tune trainable: one trial, from its last checkpoint to its finished run in the tracking store."""

from __future__ import annotations

import logging
import os
import pickle
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import tune

from trainables import training, xor
from trainables.datasets import Dataset
from trainables.tracking import Store, TrialRun
from trainables.trial import Trial

# A checkpoint at an epoch's end if the last one is this old, and within an epoch if it is that old.
EPOCH_CHECKPOINT_SECONDS = 5.0
CHECKPOINT_SECONDS = 60.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a trial needs to know besides what it computes; none of it changes the result, but for `threads`.

    Attributes:
        threads: Of the trial's own process. The last bits of a result depend on it, so it is recorded.
        checkpoints: A folder that every node sees.
        tags: Provenance that is the same for all trials of a sweep.
    """

    tracking_uri: str
    experiment_id: str
    parent_run_id: str
    checkpoints: Path
    threads: int
    gpus: float
    tags: Mapping[str, str]


def trainable(
    config: dict[str, str],
    *,
    data: Dataset | None,
    trials: Mapping[str, Trial],
    names: Mapping[str, str],
    settings: Settings,
) -> None:
    """Train the trial that `config["trial_id"]` names, recorded under its readable name; report epochs to Ray Tune.

    Args:
        config: What Ray Tune chose.
        data: The data set; None for "xor", which has its own.
        trials: By id.
        names: By trial id.
        settings: The same for all trials of a sweep.
    """
    trial = trials[config["trial_id"]]
    checkpoint = settings.checkpoints / f"{trial.id}.pt"
    saved = read_checkpoint(checkpoint, trial)
    run = Store(settings.tracking_uri).open(
        trial,
        names[trial.id],
        settings.experiment_id,
        settings.parent_run_id,
        settings.tags,
        resumed=saved is not None,
    )
    if run.finished:  # by an attempt that died before it could say so
        checkpoint.unlink(missing_ok=True)
    elif data is None:
        started = time.monotonic()
        result = xor.train(trial)
        tags = {"device": "cpu", "threads": "1", "training_seconds": f"{time.monotonic() - started:.3f}"}
        run.finish(result, int(result.steps[-1]), tags)
    else:
        train_network(trial, data, run, settings, checkpoint, saved)
    tune.report({"epoch": trial.epochs})


def train_network(
    trial: Trial, data: Dataset, run: TrialRun, settings: Settings, checkpoint: Path, saved: dict[str, Any] | None
) -> None:
    """Train on images, from what the checkpoint saved if there is one.

    The order keeps every step once in the store, whatever dies in between: first the checkpoint, then the points
    that it covers; at the end the last checkpoint, the points, the artifacts, the run's status, and only then is
    the checkpoint removed.
    """
    torch.set_num_threads(settings.threads)
    device = torch.device("cuda" if settings.gpus and torch.cuda.is_available() else "cpu")
    tensors = training.tensors(data, device, trial.task)
    images = len(tensors.train_images)
    steps = training.record_steps(trial, images)
    per_epoch = training.steps_per_epoch(trial, images)
    steps_in_all = trial.epochs * per_epoch
    state = training.start(trial, tensors)
    seconds = 0.0
    if saved is not None:
        training.load_state_dict(state, saved)
        seconds = float(saved["seconds"])

    def save(now: float) -> None:
        records = int(np.searchsorted(steps, state.step, side="right"))
        content = training.state_dict(state, records)
        write_checkpoint(checkpoint, {**content, "trial_id": trial.id, "seconds": seconds + now - began})
        run.write(steps[:records], training.curves(trial, state, records))

    tune.report({"epoch": state.step // per_epoch})
    began = last_save = time.monotonic()
    for _ in training.train(trial, tensors, state):
        now = time.monotonic()
        epoch_ended = state.step % per_epoch == 0
        if now - last_save > (EPOCH_CHECKPOINT_SECONDS if epoch_ended else CHECKPOINT_SECONDS):
            save(now)
            last_save = now
        if epoch_ended and state.step < steps_in_all:
            tune.report({"epoch": state.step // per_epoch})
    save(time.monotonic())
    result = training.finish(trial, tensors, state)
    tags = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": str(settings.threads),
        "training_seconds": f"{seconds + time.monotonic() - began:.3f}",
    }
    run.finish(result, state.step, tags, save_model=lambda path: torch.save(state.model.state_dict(), path))
    checkpoint.unlink(missing_ok=True)


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write atomically: whoever reads sees the checkpoint before or this one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_checkpoint(path: Path, trial: Trial) -> dict[str, Any] | None:
    """What the trial's checkpoint holds; None if there is none, or none that can be used."""
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if content["trial_id"] != trial.id:
            raise ValueError(f"it is of trial {content['trial_id']}")
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        log.warning("the checkpoint %s cannot be used (%s): the trial starts anew", path, error)
        return None
    return content

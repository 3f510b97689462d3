"""The Ray Tune trainable: one trial, from its last checkpoint to its finished run in the tracking store."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ray import tune

from trainables import training, xor
from trainables.checkpoints import StorageError, TrialFolder
from trainables.datasets import Dataset
from trainables.delivery import Delivery, Target, pack
from trainables.trial import BadInputError, Trial

# At an epoch's end, where a trial that dies has the least to do again, a checkpoint is due after this part of the time.
EPOCH_END = 1 / 12
STARTS = 3  # of a trial without a new checkpoint in between; whatever ends it then would end it again


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a trial is trained and where it keeps what it has; none of it changes the result, but for `threads`.

    Attributes:
        threads: Of the trial's own process. The last bits of a result depend on it, so it is recorded.
        checkpoint_seconds: Of training between two checkpoints at most.
    """

    target: Target
    threads: int
    gpus: float
    checkpoint_seconds: float


def trainable(
    config: dict[str, str],
    *,
    data: Dataset | None,
    trials: Mapping[str, Trial],
    names: Mapping[str, str],
    settings: Settings,
) -> None:
    """Train the trial that `config["trial_id"]` names, recorded under its readable name; report epochs to Ray Tune.

    A process that dies is started again by Ray Tune, and so is a trial that raises. The last report says what came of
    the trial: `error` if it cannot be trained, `kept` if the store does not take its result, `notes` for a person.

    Args:
        config: What Ray Tune chose.
        data: The data set; None for "xor", which has its own.
        trials: By id.
        names: By trial id.
        settings: The same for all trials of a sweep.
    """
    trial = trials[config["trial_id"]]
    folder = TrialFolder(settings.target.storage, trial)
    try:
        with folder.claimed():
            outcome = attempt(trial, names[trial.id], data, folder, settings)
    except BadInputError as error:  # trying again would not help
        outcome = {"error": str(error), "notes": folder.notes}
    tune.report({"epoch": trial.epochs, "ended": True, **outcome})


def attempt(
    trial: Trial, name: str, data: Dataset | None, folder: TrialFolder, settings: Settings
) -> dict[str, str | list[str] | None]:
    """Train what is missing of the trial and deliver it; what the last report says."""
    if folder.count_start(settings.target.driver) > STARTS:
        raise BadInputError(f"it ended {STARTS} times at the same point: {folder.last_error()}")
    delivery = Delivery(folder, name, settings.target)
    try:
        # Read before the run is opened: damage decides which run the trial goes on with.
        trained = folder.result() is not None
        saved = None if trained else folder.newest()
        delivery.open()
        if not trained and not delivery.finished:
            if data is None:
                train_xor(trial, folder)
            else:
                train_network(trial, data, folder, delivery, settings, saved)
        notes = folder.notes
        if delivery.finished:  # by an attempt that died before it could say so, or by another sweep
            folder.remove()
        else:
            delivery.result()
    except BadInputError:
        raise
    except Exception:
        folder.keep_error(traceback.format_exc())
        raise
    return {"kept": delivery.failure, "notes": notes}


def train_xor(trial: Trial, folder: TrialFolder) -> None:
    """Train the NumPy network: a second's work, without checkpoints."""
    started = time.monotonic()
    result = xor.train(trial)
    tags = {"device": "cpu", "threads": "1", "training_seconds": f"{time.monotonic() - started:.3f}"}
    folder.write_result(pack(result, int(result.steps[-1]), tags, model=None))


def train_network(
    trial: Trial,
    data: Dataset,
    folder: TrialFolder,
    delivery: Delivery,
    settings: Settings,
    saved: dict[str, Any] | None,
) -> None:
    """Train on images, from what a checkpoint saved if there is one, until the folder keeps the result.

    The order keeps every step once in the store, whatever dies in between: first the checkpoint, then the points
    that it covers. What could not be written or sent meanwhile, to a full disk or a store that is away, is written or
    sent with the next checkpoint. Training ends early if another sweep has finished the trial.
    """
    torch.set_num_threads(settings.threads)
    device = torch.device("cuda" if settings.gpus and torch.cuda.is_available() else "cpu")
    tensors = training.tensors(data, device, trial.task)
    images = len(tensors.train_images)
    steps = training.record_steps(trial, images)
    per_epoch = training.steps_per_epoch(trial, images)
    state = training.start(trial, tensors)
    seconds, threads = 0.0, str(settings.threads)
    if saved is not None:
        training.load_state_dict(state, saved)
        seconds = float(saved["seconds"])
        threads = saved["threads"] if saved["threads"].split()[-1] == threads else f"{saved['threads']} then {threads}"

    def save(now: float) -> None:
        records = int(np.searchsorted(steps, state.step, side="right"))
        content = training.state_dict(state, records)
        try:
            folder.write(state.step, {**content, "seconds": seconds + now - began, "threads": threads})
        except StorageError as error:
            folder.note(str(error))
        else:
            delivery.attempt(lambda run: run.write(steps[:records], training.curves(trial, state, records)))

    tune.report({"epoch": state.step // per_epoch})
    began = last_save = time.monotonic()
    for _ in training.train(trial, tensors, state):
        now = time.monotonic()
        epoch_ended = state.step % per_epoch == 0
        if now - last_save >= settings.checkpoint_seconds * (EPOCH_END if epoch_ended else 1):
            save(now)
            last_save = time.monotonic()
            if delivery.finished:
                return
        if epoch_ended and state.step < trial.epochs * per_epoch:
            tune.report({"epoch": state.step // per_epoch})
    result = training.finish(trial, tensors, state)
    tags = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": threads,
        "training_seconds": f"{seconds + time.monotonic() - began:.3f}",
    }
    model = {name: value.cpu() for name, value in state.model.state_dict().items()}
    folder.write_result(pack(result, state.step, tags, model))

"""The Ray Tune trainable: one trial, from its last checkpoint to its finished run in the tracking store."""

from __future__ import annotations

import socket
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
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
CONTEXT_BYTES = 512 * 2**20  # of GPU memory that a process takes up before it holds a tensor: an allowance
PROBE_STEPS = 10


class GpuMemoryError(BadInputError):
    """A trial's share of a GPU has too little memory for it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a trial is trained and where it keeps what it has; none of it changes the result, but for `threads`.

    Attributes:
        threads: Of the trial's own process. The last bits of a result depend on it, so it is recorded.
        gpus: By trial id, its share of a GPU, or how many.
        checkpoint_seconds: Of training between two checkpoints at most.
    """

    target: Target
    threads: int
    gpus: Mapping[str, float]
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
    the trial: `error` if it cannot be trained, `out_of_memory` if it could with a larger share of a GPU, `kept` if the
    store does not take its result, `notes` for a person.

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
        check_storage(settings.target.storage)
        with folder.claimed():
            outcome = attempt(trial, names[trial.id], data, folder, settings)
    except BadInputError as error:  # trying again would not help
        outcome = {"error": str(error), "notes": folder.notes, "out_of_memory": isinstance(error, GpuMemoryError)}
    tune.report({"epoch": trial.epochs, "ended": True, **outcome})


def check_storage(storage: Path) -> None:
    """Raise `BadInputError` on a node that joined after the driver looked at all, and does not see what it made."""
    if not storage.is_dir():
        raise BadInputError(f"the node {socket.gethostname()} does not see --storage {storage}; mount it there")


def appears(path: str) -> bool:
    """Whether a file is there, or comes within the time for which a network file system may keep an old listing."""
    for _ in range(5):
        if Path(path).exists():
            return True
        time.sleep(1)
    return False


def attempt(
    trial: Trial, name: str, data: Dataset | None, folder: TrialFolder, settings: Settings
) -> dict[str, str | list[str] | bool | None]:
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
    except Exception as error:
        folder.keep_error(traceback.format_exc())
        if settings.gpus[trial.id] and out_of_memory(error):
            folder.forget_starts()  # the driver tries again, with more
            share = f"{settings.gpus[trial.id]:g} of a GPU" if settings.gpus[trial.id] < 1 else "a whole GPU"
            raise GpuMemoryError(f"{share} has too little memory for it: {error}") from None
        raise
    return {"kept": delivery.failure, "notes": notes}


def out_of_memory(error: Exception) -> bool:
    """Whether a GPU had too little memory; PyTorch says it in its own way, the libraries under it in others."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("out of memory", "STATUS_ALLOC_FAILED")
    )


def memory_fraction(gpus: float, total_bytes: int) -> float:
    """The part of a GPU's memory that a trial with the share `gpus` may fill with tensors: the rest is its context."""
    return max(gpus / 2, gpus - CONTEXT_BYTES / total_bytes) if gpus < 1 else 1.0


def device_for(gpus: float) -> torch.device:
    """Where a trial trains; on a GPU, its share bounds its memory, so that it cannot take its neighbours'."""
    if not gpus or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.empty_cache()  # of the trial that this process trained before
    _, total_bytes = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(memory_fraction(gpus, total_bytes))
    return torch.device("cuda")


def memory_used(trial: Trial, data: Dataset) -> float | None:
    """The part of a GPU's memory that a process takes up while it trains the trial; None where there is no GPU.

    To be measured in a process of its own with a GPU of its own: what others use there would be counted.
    """
    if not torch.cuda.is_available():
        return None
    try:
        tensors = training.tensors(data, torch.device("cuda"), trial.task)
        state = training.start(trial, tensors)
        for _ in islice(training.train(trial, tensors, state), PROBE_STEPS):
            pass
        images = tensors.test_images[: 2 * training.EVALUATION_BATCH]
        training.accuracy(state.model, images, tensors.test_labels[: len(images)])
    except torch.OutOfMemoryError:  # the trial will say so itself
        return 1.0
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    return 1 - free_bytes / total_bytes


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
    device = device_for(settings.gpus[trial.id])
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

"""A pack of trials in one process, each from its last checkpoint to its finished run in the tracking store.

Trials of an architecture that is to be stacked train side by side, others one after another. Each has its own folder,
checkpoints and run, and none of them names the pack: whatever happens to it, any later pack goes on from there.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import groupby
from typing import Any

import torch

from trainables import training, xor
from trainables.accelerated import stack
from trainables.datasets import Dataset
from trainables.errors import BadInputError
from trainables.files import check_folder_is_visible
from trainables.persistence.delivery import pack_result
from trainables.training import Tensors
from trainables.trial import XOR, Trial
from trainables.worker.active_trial import MAX_STARTS, ActiveTrial
from trainables.worker.pack import Pack, WorkerSettings

# At an epoch's end, where a trial that dies has the least to do again, a checkpoint is due after this part of the time.
EPOCH_END_FRACTION = 1 / 12


REPORT_INTERVAL_SECONDS = 0.5  # between two reports of progress


GPU_CONTEXT_BYTES = 512 * 2**20  # of GPU memory that a process takes up before it holds a tensor: an allowance


Report = Callable[[dict[str, Any]], None]


class PackProgress:
    """What a pack reports to Ray Tune.

    A report says `epochs` trained of all trials, how many trials are `running`, and, in `endings` by trial id, what
    came of those that have ended: `error` if one cannot be trained, `out_of_memory` if it could with a larger share of
    a GPU, `kept` if the store does not take its result, `notes` for a person.
    """

    def __init__(self, pack: Sequence[Trial], report: Report) -> None:
        self.report = report
        self.epochs = dict.fromkeys((trial.id for trial in pack), 0)
        self.endings: dict[str, dict[str, Any]] = {}
        self.running = 0
        self.reported = 0.0

    def reached(self, members: Sequence[ActiveTrial], epoch: int) -> None:
        """Members have trained so many epochs; report, unless that was done a moment ago."""
        self.running = len(members)
        self.epochs.update((member.trial.id, epoch) for member in members)
        if time.monotonic() - self.reported >= REPORT_INTERVAL_SECONDS:
            self.send()

    def end(self, trial: Trial, **ending: Any) -> None:
        """A trial has ended."""
        self.endings[trial.id] = ending
        self.epochs[trial.id] = trial.epochs

    def send(self) -> None:
        """Report."""
        self.reported = time.monotonic()
        running = self.running if len(self.endings) < len(self.epochs) else 0
        self.report({"epochs": sum(self.epochs.values()), "running": running, "endings": dict(self.endings)})


def train_pack(pack: Pack, data: Dataset | None, settings: WorkerSettings, report: Report) -> None:
    """Train what is missing of a pack's trials and deliver it.

    A process that dies is started again by Ray Tune, and so is one that raises. A trial that may have ended it twice
    already trains by itself, so as not to take others with it again.
    """
    training.prepare_process(settings.threads)
    progress = PackProgress(pack.trials, report)

    @cache
    def tensors(task: str | None) -> Tensors:
        assert data is not None
        return training.to_tensors(data, choose_device(pack.gpus), task)

    together: list[ActiveTrial] = []
    alone: list[list[ActiveTrial]] = []
    for trial, name in zip(pack.trials, pack.names, strict=True):
        member = ActiveTrial(trial, name, pack.gpus, settings)
        suspect = member.folder.read_starts(settings.context.driver) >= MAX_STARTS - 1
        if trial.architecture in settings.stacked and not suspect:
            together.append(member)
        else:
            alone.append([member])
    for members in ([together] if together else []) + alone:
        train_and_deliver(members, tensors, progress)
    progress.send()


def train_and_deliver(
    members: Sequence[ActiveTrial], tensors: Callable[[str | None], Tensors], progress: PackProgress
) -> None:
    """Train members at once, as far as they have come equally far, and deliver what they leave."""
    with ExitStack() as claims:
        for member in members:
            with report_failures([member], progress):
                check_folder_is_visible(member.settings.context.storage)
                claims.enter_context(member.folder.lock())
                member.open()
        missing = [m for m in members if not (m.trial.id in progress.endings or m.trained or m.delivery.finished)]
        place: Callable[[ActiveTrial], tuple[bool, int]] = lambda member: (member.stacked, member.step)  # noqa: E731
        for (stacked, _), equals in groupby(sorted(missing, key=place), place):
            for group in [list(equals)] if stacked else [[member] for member in equals]:
                with report_failures(group, progress):
                    train_group(group, tensors, progress)
        for member in members:
            with report_failures([member], progress):
                if member.trial.id not in progress.endings:
                    notes = member.folder.notes  # which go with the folder
                    member.deliver()
                    progress.end(member.trial, kept=member.delivery.failure, notes=notes)


@contextmanager
def report_failures(members: Sequence[ActiveTrial], progress: PackProgress) -> Iterator[None]:
    """Let what ends members become what is said of them; what trying again may help against is raised."""

    def end(error: object, *, out_of_memory: bool = False) -> None:
        for member in members:
            progress.end(member.trial, error=str(error), notes=member.folder.notes, out_of_memory=out_of_memory)

    try:
        yield
    except BadInputError as error:
        end(error)
    except Exception as error:
        for member in members:
            member.folder.write_error(traceback.format_exc())
        gpus = members[0].gpus
        if not (gpus and is_out_of_memory(error)):
            raise
        for member in members:
            member.folder.reset_starts()  # the driver tries again, with more
        share = f"{gpus:g} of a GPU" if gpus < 1 else "a whole GPU"
        end(f"{share} has too little memory for it: {error}", out_of_memory=True)


def train_group(
    members: Sequence[ActiveTrial], tensors: Callable[[str | None], Tensors], progress: PackProgress
) -> None:
    """Train members that stand at the same step, in a stack or one alone, until their folders keep results.

    Training ends early if another sweep has finished them all.
    """
    first, settings = members[0].trial, members[0].settings
    progress.reached(members, 0)
    if first.dataset == XOR:
        train_xor(members[0])
        return
    data = tensors(first.task)
    images = len(data.train_images)
    per_epoch = first.steps_per_epoch(images)
    trials = [member.trial for member in members]
    states = [member.start(data) for member in members]
    progress.reached(members, members[0].step // per_epoch)
    began = last_save = time.monotonic()
    steps = (
        stack.train_stack(trials, data, states, compiled=settings.compiled)
        if members[0].stacked
        else training.train(first, data, states[0])
    )
    for _ in steps:
        now = time.monotonic()
        step = max(state.step for state in states)
        epoch_ended = step % per_epoch == 0
        if now - last_save >= settings.checkpoint_seconds * (EPOCH_END_FRACTION if epoch_ended else 1):
            for member, state in zip(members, states, strict=True):
                member.save(state, images, now - began)
            last_save = time.monotonic()
            if all(member.delivery.finished for member in members):
                return
        if epoch_ended and step < first.epochs * per_epoch:
            progress.reached(members, step // per_epoch)
    seconds = time.monotonic() - began
    for member, state in zip(members, states, strict=True):
        with report_failures([member], progress):
            member.keep(state, data, seconds, len(members))


def train_xor(member: ActiveTrial) -> None:
    """Train the NumPy network: a second's work, without checkpoints."""
    started = time.monotonic()
    result = xor.train(member.trial)
    tags = {"device": "cpu", "threads": "1", "training_seconds": f"{time.monotonic() - started:.3f}"}
    member.folder.write_result(pack_result(result, int(result.steps[-1]), tags, model=None))


def is_out_of_memory(error: Exception) -> bool:
    """Whether a GPU had too little memory; PyTorch says it in its own way, the libraries under it in others."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("out of memory", "STATUS_ALLOC_FAILED")
    )


def compute_memory_fraction(gpus: float, total_bytes: int) -> float:
    """What part of a GPU's memory a process with the share `gpus` may fill with tensors; the rest is its context."""
    return max(gpus / 2, gpus - GPU_CONTEXT_BYTES / total_bytes) if gpus < 1 else 1.0


def choose_device(gpus: float) -> torch.device:
    """Where a pack trains; on a GPU, its share bounds its memory, so that it cannot take its neighbours'."""
    if not gpus or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.empty_cache()  # of the pack that this process trained before
    _, total_bytes = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(compute_memory_fraction(gpus, total_bytes))
    return torch.device("cuda")

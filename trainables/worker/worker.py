"""A pack of trials in one process, each from its last checkpoint to its finished run in the tracking store.

Trials of an architecture that is to be stacked train side by side, others one after another. Each has its own folder,
checkpoints and run, and none of these names the pack: after a crash, any later pack continues from there.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import groupby
from typing import cast

from trainables import training, xor
from trainables.accelerated import stack
from trainables.datasets import Dataset
from trainables.errors import UserError
from trainables.files import check_folder_is_visible
from trainables.persistence.connection import SECONDS_TAG
from trainables.persistence.delivery import encode_result
from trainables.process import choose_device, is_out_of_memory, prepare_process
from trainables.training import Tensors
from trainables.trial import XOR, Trial
from trainables.worker.active_trial import MAX_STARTS, ActiveTrial
from trainables.worker.pack import Outcome, Pack, PackReport, WorkerSettings

# At the end of an epoch a checkpoint is due after this fraction of `checkpoint_seconds`, so that a
# crash costs a trial with short epochs less.
EPOCH_END_FRACTION = 1 / 12
REPORT_INTERVAL_SECONDS = 0.5

GetTensors = Callable[[str | None], Tensors]
"""A function from a trial's task to the data set on the pack's device."""


class PackProgress:
    """The state of a pack, and the reports of it to Ray Tune."""

    def __init__(self, trials: Sequence[Trial], report: Callable[[PackReport], None]) -> None:
        self.report = report
        self.epochs = dict.fromkeys((trial.id for trial in trials), 0)
        self.outcomes: dict[str, Outcome] = {}
        self.running = 0
        self.reported = 0.0

    def update(self, active: Sequence[ActiveTrial], epoch: int) -> None:
        """Note that these trials train and have reached an epoch, and send a report unless one was sent just now."""
        self.running = len(active)
        self.epochs.update((member.trial.id, epoch) for member in active)
        if time.monotonic() - self.reported >= REPORT_INTERVAL_SECONDS:
            self.send()

    def record_outcome(self, trial: Trial, outcome: Outcome) -> None:
        """Note the outcome of a trial that has ended."""
        self.outcomes[trial.id] = outcome
        self.epochs[trial.id] = trial.epochs

    def has_ended(self, member: ActiveTrial) -> bool:
        """Return whether a trial has an outcome."""
        return member.trial.id in self.outcomes

    def send(self) -> None:
        """Send a report."""
        self.reported = time.monotonic()
        running = self.running if len(self.outcomes) < len(self.epochs) else 0
        self.report(PackReport(sum(self.epochs.values()), running, dict(self.outcomes)))


def train_pack(
    pack: Pack, data: Dataset | None, settings: WorkerSettings, report: Callable[[PackReport], None]
) -> None:
    """Train and deliver those of a pack's trials that are not finished.

    Ray Tune restarts a process that dies or whose trainable raises. A trial that may have ended its process twice
    trains by itself, so that it takes no others with it the third time.
    """
    prepare_process(settings.threads)
    progress = PackProgress(pack.trials, report)

    @cache
    def get_tensors(task: str | None) -> Tensors:
        return training.to_tensors(cast("Dataset", data), choose_device(pack.gpus), task)

    together: list[ActiveTrial] = []
    alone: list[list[ActiveTrial]] = []
    for trial, name in zip(pack.trials, pack.names, strict=True):
        member = ActiveTrial(trial, name, pack.gpus, settings)
        suspect = member.folder.read_starts(settings.context.driver) >= MAX_STARTS - 1
        if trial.architecture in settings.stacked_architectures and not suspect:
            together.append(member)
        else:
            alone.append([member])
    for active in ([together] if together else []) + alone:
        train_and_deliver(active, get_tensors, progress)
    progress.send()


def train_and_deliver(active: Sequence[ActiveTrial], get_tensors: GetTensors, progress: PackProgress) -> None:
    """Train trials to their ends, stacking those at the same step, and deliver their results."""
    with ExitStack() as locks:
        for member in active:
            with report_failures([member], progress):
                check_folder_is_visible(member.settings.context.storage)
                locks.enter_context(member.folder.lock())
                member.load()
        missing = [m for m in active if not (progress.has_ended(m) or m.trained or m.delivery.finished)]
        place: Callable[[ActiveTrial], tuple[bool, int]] = lambda member: (member.stacked, member.step)  # noqa: E731
        for (stacked, _), equals in groupby(sorted(missing, key=place), place):
            for group in [list(equals)] if stacked else [[member] for member in equals]:
                with report_failures(group, progress):
                    train_group(group, get_tensors, progress)
        for member in active:
            with report_failures([member], progress):
                if not progress.has_ended(member):
                    notes = member.folder.notes  # read before the folder is removed
                    member.deliver()
                    progress.record_outcome(member.trial, Outcome(notes=notes))


@contextmanager
def report_failures(active: Sequence[ActiveTrial], progress: PackProgress) -> Iterator[None]:
    """Turn an error that another attempt would meet again into the outcome of these trials, and raise any other."""

    def end(error: str, *, out_of_memory: bool = False) -> None:
        for member in active:
            progress.record_outcome(member.trial, Outcome(error, out_of_memory, member.folder.notes))

    try:
        yield
    except UserError as error:
        end(str(error))
    except Exception as error:
        for member in active:
            member.folder.write_error(traceback.format_exc())
        gpus = active[0].gpus
        if not (gpus and is_out_of_memory(error)):
            raise
        for member in active:
            member.folder.reset_starts()  # because the driver starts the trial again, with a larger share
        share = f"{gpus:g} of a GPU" if gpus < 1 else "a whole GPU"
        end(f"{share} has too little memory for it: {error}", out_of_memory=True)


def train_group(active: Sequence[ActiveTrial], get_tensors: GetTensors, progress: PackProgress) -> None:
    """Train trials that are at the same step, in a stack or one alone, and write their results to their folders.

    Training ends early if another sweep has finished them all.
    """
    first, settings = active[0].trial, active[0].settings
    progress.update(active, 0)
    if first.dataset == XOR:
        train_xor(active[0])
        return
    tensors = get_tensors(first.task)
    images = len(tensors.train_images)
    per_epoch = first.steps_per_epoch(images)
    states = [member.make_state(tensors) for member in active]
    for member in active:
        member.stack_size = len(active)
    progress.update(active, active[0].step // per_epoch)
    began = last_save = time.monotonic()
    if active[0].stacked:
        trials = [member.trial for member in active]
        steps = stack.train_stack(trials, tensors, states, compiled=settings.compile_steps)
    else:
        steps = training.train(first, tensors, states[0])
    for _ in steps:
        now = time.monotonic()
        step = max(state.step for state in states)
        epoch_ended = step % per_epoch == 0
        if now - last_save >= settings.checkpoint_seconds * (EPOCH_END_FRACTION if epoch_ended else 1):
            for member, state in zip(active, states, strict=True):
                member.save_checkpoint(state, images, now - began)
            last_save = time.monotonic()
            if all(member.delivery.finished for member in active):
                return
        if epoch_ended and step < first.epochs * per_epoch:
            progress.update(active, step // per_epoch)
    seconds = time.monotonic() - began
    for member, state in zip(active, states, strict=True):
        with report_failures([member], progress):
            member.write_result(state, tensors, seconds)


def train_xor(member: ActiveTrial) -> None:
    """Train the NumPy network, which takes about a second and writes no checkpoints."""
    started = time.monotonic()
    result = xor.train(member.trial)
    tags = {"device": "cpu", "threads": "1", SECONDS_TAG: f"{time.monotonic() - started:.3f}"}
    member.folder.write_result(encode_result(result, int(result.steps[-1]), tags, model=None))

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

import numpy as np
import torch

from trainables import stack, training, xor
from trainables.architectures import convolves
from trainables.checkpoints import StorageError, TrialFolder, check_storage
from trainables.convolutions import CompilerError, Forward, by_our_own, by_torch, passes
from trainables.datasets import Dataset
from trainables.delivery import Delivery, to_keep
from trainables.probe import ONEDNN, OWN, THEIRS, limit
from trainables.trainable import Pack, Settings
from trainables.training import State, Tensors
from trainables.trial import XOR, BadInputError, Trial

# At an epoch's end, where a trial that dies has the least to do again, a checkpoint is due after this part of the time.
EPOCH_END = 1 / 12
STARTS = 3  # of a trial without a new checkpoint in between; whatever ends it then would end it again
REPORT_SECONDS = 0.5  # between two reports of progress
CONTEXT_BYTES = 512 * 2**20  # of GPU memory that a process takes up before it holds a tensor: an allowance

Report = Callable[[dict[str, Any]], None]


class Member:
    """A trial in the hands of this process, its folder claimed.

    Attributes:
        gpus: Of its pack.
        trained: Its folder keeps a result.
        saved: What its newest checkpoint holds, if it is to go on from one.
    """

    def __init__(self, trial: Trial, name: str, gpus: float, settings: Settings) -> None:
        self.trial = trial
        self.gpus = gpus
        self.settings = settings
        self.folder = TrialFolder(settings.target.storage, trial)
        self.delivery = Delivery(self.folder, name, settings.target)
        self.trained = False
        self.saved: dict[str, Any] | None = None

    def open(self) -> None:
        """See what there is of the trial.

        Raises:
            BadInputError: It is not to be tried again.
        """
        if self.folder.count_start(self.settings.target.driver) > STARTS:
            raise BadInputError(f"it ended {STARTS} times at the same point: {self.folder.last_error()}")
        # Read before the run is opened: damage decides which run the trial goes on with.
        self.trained = self.folder.result() is not None
        self.saved = None if self.trained else self.folder.newest()
        self.delivery.open()

    @property
    def stacked(self) -> bool:
        """Whether it trains in a stack: as it has begun, or as the sweep says."""
        return bool(self.saved.get("stacked") if self.saved else self.trial.architecture in self.settings.stacked)

    @property
    def step(self) -> int:
        """Where it goes on."""
        return int(self.saved["step"]) if self.saved else 0

    def start(self, tensors: Tensors) -> State:
        """Its state, before its next step."""
        state = training.start(self.trial, tensors)
        if self.saved is not None:
            training.load_state_dict(state, self.saved)
        if not self.stacked:
            state.forward = self.forward(tensors.train_images.device)
        return state

    def forward(self, device: torch.device) -> Forward:
        """How its network's passes are computed: as it has begun, or as the sweep says."""
        begun = self.saved.get("convolutions") if self.saved else None
        try:
            return passes(self.trial.architecture, begun.split()[-1] if begun else self.settings.convolutions, device)
        except CompilerError as error:  # another kind of machine than where it was tried
            self.folder.note(f"it trained with PyTorch's convolutions, as there are no others here: {error}")
            return by_torch

    def seconds(self, more: float) -> float:
        """Of training, those before its last checkpoint included."""
        return float(self.saved["seconds"] if self.saved else 0) + more

    def since(self, what: str, now: str) -> str:
        """What last bits depend on, as it is now and with what its checkpoint says of before: "1 then 2"."""
        before: str = (self.saved or {}).get(what, now)
        return before if before.split()[-1] == now else f"{before} then {now}"

    def circumstances(self, state: State) -> dict[str, str]:
        """What the last bits of its result depend on, with changes."""
        found = {"threads": self.since("threads", str(self.settings.threads))}
        if state.curves.device.type == "cpu" and convolves(self.trial.architecture):
            theirs = limit(self.settings.convolutions).get(ONEDNN, THEIRS)
            now = OWN if state.forward is by_our_own else theirs
            found["convolutions"] = self.since("convolutions", now)
        return found

    def save(self, state: State, images: int, seconds: float) -> None:
        """Write a checkpoint, then send the points that it covers.

        The order keeps every step once in the store, whatever dies in between. What could not be written or sent, to
        a full disk or a store that is away, is written or sent with the next checkpoint.
        """
        steps = training.record_steps(self.trial, images)
        records = int(np.searchsorted(steps, state.step, side="right"))
        content = training.state_dict(state, records)
        more = {"seconds": self.seconds(seconds), "stacked": self.stacked, **self.circumstances(state)}
        try:
            self.folder.write(state.step, {**content, **more})
        except StorageError as error:
            self.folder.note(str(error))
        else:
            self.delivery.attempt(lambda run: run.write(steps[:records], training.curves(self.trial, state, records)))

    def keep(self, state: State, tensors: Tensors, seconds: float, members: int) -> None:
        """Keep the result of training in the folder."""
        device = tensors.train_images.device
        tags = {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            **self.circumstances(state),
            "training_seconds": f"{self.seconds(seconds):.3f}",
            **({"stacked_trials": str(members)} if self.stacked else {}),  # which shared these seconds
        }
        result = training.finish(self.trial, tensors, state)
        self.folder.write_result(to_keep(result, state.step, tags, training.weights(state)))

    def deliver(self) -> None:
        """Bring the result into the store."""
        if self.delivery.finished:  # by an attempt that died before it could say so, or by another sweep
            self.folder.remove()
        else:
            self.delivery.result()


class Progress:
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

    def reached(self, members: Sequence[Member], epoch: int) -> None:
        """Members have trained so many epochs; report, unless that was done a moment ago."""
        self.running = len(members)
        self.epochs.update((member.trial.id, epoch) for member in members)
        if time.monotonic() - self.reported >= REPORT_SECONDS:
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


def run(pack: Pack, data: Dataset | None, settings: Settings, report: Report) -> None:
    """Train what is missing of a pack's trials and deliver it.

    A process that dies is started again by Ray Tune, and so is one that raises. A trial that may have ended it twice
    already trains by itself, so as not to take others with it again.
    """
    training.prepare_process(settings.threads)
    progress = Progress(pack.trials, report)

    @cache
    def tensors(task: str | None) -> Tensors:
        assert data is not None
        return training.tensors(data, device_for(pack.gpus), task)

    together: list[Member] = []
    alone: list[list[Member]] = []
    for trial, name in zip(pack.trials, pack.names, strict=True):
        member = Member(trial, name, pack.gpus, settings)
        suspect = member.folder.starts(settings.target.driver) >= STARTS - 1
        if trial.architecture in settings.stacked and not suspect:
            together.append(member)
        else:
            alone.append([member])
    for members in ([together] if together else []) + alone:
        attempt(members, tensors, progress)
    progress.send()


def attempt(members: Sequence[Member], tensors: Callable[[str | None], Tensors], progress: Progress) -> None:
    """Train members at once, as far as they have come equally far, and deliver what they leave."""
    with ExitStack() as claims:
        for member in members:
            with answering([member], progress):
                check_storage(member.settings.target.storage)
                claims.enter_context(member.folder.claimed())
                member.open()
        missing = [m for m in members if not (m.trial.id in progress.endings or m.trained or m.delivery.finished)]
        place: Callable[[Member], tuple[bool, int]] = lambda member: (member.stacked, member.step)  # noqa: E731
        for (stacked, _), equals in groupby(sorted(missing, key=place), place):
            for group in [list(equals)] if stacked else [[member] for member in equals]:
                with answering(group, progress):
                    train_group(group, tensors, progress)
        for member in members:
            with answering([member], progress):
                if member.trial.id not in progress.endings:
                    notes = member.folder.notes  # which go with the folder
                    member.deliver()
                    progress.end(member.trial, kept=member.delivery.failure, notes=notes)


@contextmanager
def answering(members: Sequence[Member], progress: Progress) -> Iterator[None]:
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
            member.folder.keep_error(traceback.format_exc())
        gpus = members[0].gpus
        if not (gpus and out_of_memory(error)):
            raise
        for member in members:
            member.folder.forget_starts()  # the driver tries again, with more
        share = f"{gpus:g} of a GPU" if gpus < 1 else "a whole GPU"
        end(f"{share} has too little memory for it: {error}", out_of_memory=True)


def train_group(members: Sequence[Member], tensors: Callable[[str | None], Tensors], progress: Progress) -> None:
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
        stack.train(trials, data, states, compiled=settings.compiled)
        if members[0].stacked
        else training.train(first, data, states[0])
    )
    for _ in steps:
        now = time.monotonic()
        step = max(state.step for state in states)
        epoch_ended = step % per_epoch == 0
        if now - last_save >= settings.checkpoint_seconds * (EPOCH_END if epoch_ended else 1):
            for member, state in zip(members, states, strict=True):
                member.save(state, images, now - began)
            last_save = time.monotonic()
            if all(member.delivery.finished for member in members):
                return
        if epoch_ended and step < first.epochs * per_epoch:
            progress.reached(members, step // per_epoch)
    seconds = time.monotonic() - began
    for member, state in zip(members, states, strict=True):
        with answering([member], progress):
            member.keep(state, data, seconds, len(members))


def train_xor(member: Member) -> None:
    """Train the NumPy network: a second's work, without checkpoints."""
    started = time.monotonic()
    result = xor.train(member.trial)
    tags = {"device": "cpu", "threads": "1", "training_seconds": f"{time.monotonic() - started:.3f}"}
    member.folder.write_result(to_keep(result, int(result.steps[-1]), tags, model=None))


def out_of_memory(error: Exception) -> bool:
    """Whether a GPU had too little memory; PyTorch says it in its own way, the libraries under it in others."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("out of memory", "STATUS_ALLOC_FAILED")
    )


def memory_fraction(gpus: float, total_bytes: int) -> float:
    """What part of a GPU's memory a process with the share `gpus` may fill with tensors; the rest is its context."""
    return max(gpus / 2, gpus - CONTEXT_BYTES / total_bytes) if gpus < 1 else 1.0


def device_for(gpus: float) -> torch.device:
    """Where a pack trains; on a GPU, its share bounds its memory, so that it cannot take its neighbours'."""
    if not gpus or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.empty_cache()  # of the pack that this process trained before
    _, total_bytes = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(memory_fraction(gpus, total_bytes))
    return torch.device("cuda")

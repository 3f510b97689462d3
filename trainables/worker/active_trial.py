"""One trial in this process, from its last checkpoint to its finished run in the tracking store."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from trainables import training
from trainables.accelerated.backends import NATIVE, ONEDNN_VARIABLE, PYTORCH, get_environment, get_processor_name
from trainables.accelerated.convolutions import CompilerError, choose_forward, forward_native
from trainables.architectures import has_convolution
from trainables.errors import BadInputError, StorageError, TrackingError, UserError
from trainables.persistence.artifacts import RunArtifacts
from trainables.persistence.connection import CHECKSUM_TAG, SECONDS_TAG, STACK_TAG, retry_for
from trainables.persistence.delivery import Delivery, OtherDataError, encode_result
from trainables.persistence.end_state import END_TAG, STATE_ARTIFACT, EndState
from trainables.persistence.trial_folder import UNUSABLE, TrialFolder, decode_checkpoint
from trainables.training import Forward, State, Tensors, forward_torch
from trainables.trial import Trial
from trainables.worker.pack import WorkerSettings

# A trial that is started more often without a new checkpoint would end in the same way again.
MAX_STARTS = 3
# Keys of a checkpoint's histories: the thread counts and the backends that the trial has used. Old checkpoints hold the
# text of the tag ("1 then 2") instead, under the tag's name; they stay readable.
THREAD_COUNTS, BACKENDS, PROCESSORS, TORCH_VERSIONS = "thread_counts", "backends", "processors", "torch_versions"
DEVICES, STACK_SIZES = "devices", "stack_sizes"
TAG_NAMES = {
    DEVICES: "device",
    THREAD_COUNTS: "threads",
    BACKENDS: "convolutions",
    PROCESSORS: "processor",
    TORCH_VERSIONS: "torch_version",
    STACK_SIZES: "stack_sizes",
}
TORCH_VERSION = version("torch")  # looked up once, as every checkpoint holds it
SEPARATOR = " then "  # of the values in a tag
CONTINUED_FROM = "continued_from"  # in a checkpoint, and as a tag: the id of the shorter trial that this one continues
START_PATIENCE_SECONDS = 600.0  # for a store that is away when a trial wants the end of a shorter one


class ActiveTrial:
    """A trial that this process trains; its folder must be locked before `load`.

    Attributes:
        gpus: The GPUs of its pack.
        trained: Whether its folder holds a result.
        saved: The content of its newest checkpoint, if it continues from one.
        stack_size: Number of the trials that train side by side with it, itself included.
    """

    def __init__(self, trial: Trial, name: str, gpus: float, settings: WorkerSettings) -> None:
        self.trial = trial
        self.gpus = gpus
        self.settings = settings
        self.folder = TrialFolder(settings.context.storage, trial, settings.context.tags.get(CHECKSUM_TAG, ""))
        self.delivery = Delivery(self.folder, name, settings.context)
        self.trained = False
        self.saved: dict[str, Any] | None = None
        self.stack_size = 1

    def load(self) -> None:
        """Count a start of the trial, and read what its folder and the store have of it.

        Raises:
            BadInputError: The trial has ended its process too often.
        """
        if self.folder.record_start(self.settings.context.driver) > MAX_STARTS:
            raise BadInputError(f"it ended {MAX_STARTS} times at the same point: {self.folder.describe_last_error()}")
        try:
            self._read_and_open()
        except OtherDataError:  # nothing of other data is left in the folder
            self._read_and_open()

    def _read_and_open(self) -> None:
        """Read the folder, then open the run, as damage decides which run the trial continues with."""
        self.trained = self.folder.read_result() is not None
        self.saved = None if self.trained else self.folder.read_newest_checkpoint()
        self.delivery.open_run()
        if not (self.trained or self.saved or self.delivery.finished):
            self._continue_shorter_trial()

    def _continue_shorter_trial(self) -> None:
        """Begin with the end of a shorter trial, if there is one; where it cannot be used, say so.

        Raises:
            TrackingError: The store was away for `START_PATIENCE_SECONDS`, which does not mean that there is none.
        """
        start = self.settings.starts.get(self.trial.id)
        if start is None:
            return
        artifacts = RunArtifacts(self.settings.context.tracking_uri, start.run_id, start.artifact_uri)
        checksum = self.settings.context.tags.get(CHECKSUM_TAG, "")

        def fetch() -> bytes:
            with artifacts.open(STATE_ARTIFACT, start.name) as path:
                return path.read_bytes()

        try:
            content = decode_checkpoint(
                retry_for(fetch, START_PATIENCE_SECONDS), start.trial_id, self.trial.dataset, checksum
            )
            own = {"seconds": 0.0, CONTINUED_FROM: start.trial_id}  # the time before was the shorter trial's
            self.folder.write_checkpoint(content["step"], {**content, **own})
        except TrackingError:
            raise
        except (UserError, *UNUSABLE) as error:
            self.folder.add_note(f"it trained from its start, as the end of '{start.name}' cannot be used: {error}")
        else:
            self.saved = self.folder.read_newest_checkpoint()

    @property
    def stacked(self) -> bool:
        """True if the trial trains in a stack: as at its checkpoint, or without one as the settings say."""
        if self.saved:
            return bool(self.saved.get("stacked"))
        return self.trial.architecture in self.settings.stacked_architectures

    @property
    def step(self) -> int:
        """The optimiser step from which the trial continues."""
        return int(self.saved["step"]) if self.saved else 0

    def make_state(self, tensors: Tensors) -> State:
        """Return the state from which the trial continues."""
        state = training.start(self.trial, tensors)
        if self.saved is not None:
            training.load_state_dict(state, self.saved)
        if not self.stacked:
            state.forward = self._choose_forward(tensors.train_images.device)
        return state

    def _choose_forward(self, device: torch.device) -> Forward:
        """Return the forward pass of the backend in use at the checkpoint, or else of the settings' backend."""
        backend = [self.settings.backend, *self._read_history(BACKENDS, str)][-1]
        try:
            return choose_forward(self.trial.architecture, backend, device)
        except CompilerError as error:  # this machine is of another kind than the one where backends were compared
            self.folder.add_note(f"it trained with PyTorch's convolutions, as there are no others here: {error}")
            return forward_torch

    def _read_history(self, key: str, kind: type) -> list[Any]:
        """Return a history in the checkpoint, the latest value last; empty without a checkpoint."""
        saved = self.saved or {}
        if key in saved:
            return list(saved[key])
        text: str = saved.get(TAG_NAMES[key], "")
        return [kind(word) for word in text.split(SEPARATOR)] if text else []

    def _extend_history(self, key: str, value: int | str) -> list[Any]:
        """Return a history, with `value` as its last value."""
        history = self._read_history(key, type(value))
        return history if history[-1:] == [value] else [*history, value]

    def _describe_rounding(self, state: State) -> dict[str, list[Any]]:
        """Return the histories of what decides the last bits of the result, by key."""
        on_gpu = state.curves.device.type == "cuda"
        found = {
            DEVICES: self._extend_history(DEVICES, torch.cuda.get_device_name() if on_gpu else "cpu"),
            THREAD_COUNTS: self._extend_history(THREAD_COUNTS, self.settings.threads),
            PROCESSORS: self._extend_history(PROCESSORS, get_processor_name()),
            TORCH_VERSIONS: self._extend_history(TORCH_VERSIONS, TORCH_VERSION),
        }
        convolves = has_convolution(self.trial.architecture)
        if self.stacked and (on_gpu or convolves):  # on the CPU, an MLP has the same bits in every stack
            found[STACK_SIZES] = self._extend_history(STACK_SIZES, self.stack_size)
        if convolves and not on_gpu:
            by_torch = get_environment(self.settings.backend).get(ONEDNN_VARIABLE, PYTORCH)
            found[BACKENDS] = self._extend_history(BACKENDS, NATIVE if state.forward is forward_native else by_torch)
        return found

    def _sum_seconds(self, seconds: float) -> float:
        """Return the seconds of training, those before the last checkpoint included."""
        return float(self.saved["seconds"] if self.saved else 0) + seconds

    def save_checkpoint(self, state: State, images: int, seconds: float) -> None:
        """Write a checkpoint, then send the points that it covers.

        In this order every step is in the store once, whenever the process dies. What could not be written or sent,
        because the disk is full or the store is unreachable, is written or sent with the next checkpoint.

        Args:
            state: The state of training.
            images: The number of training images.
            seconds: The time of training since the trial was loaded.
        """
        steps = training.list_record_steps(self.trial, images)
        records = int(np.searchsorted(steps, state.step, side="right"))
        try:
            self.folder.write_checkpoint(state.step, self._make_checkpoint(state, records, seconds))
        except StorageError as error:
            self.folder.add_note(str(error))
        else:
            self.delivery.attempt(
                lambda run: run.send_records(steps[:records], training.fetch_curves(self.trial, state, records))
            )

    def _make_checkpoint(self, state: State, records: int, seconds: float) -> dict[str, Any]:
        """Return the content of a checkpoint with the first `records` records."""
        content = training.make_state_dict(state, records)
        more = {"seconds": self._sum_seconds(seconds), "stacked": self.stacked, **self._describe_rounding(state)}
        origin = {CONTINUED_FROM: self.saved[CONTINUED_FROM]} if self.saved and CONTINUED_FROM in self.saved else {}
        return {**content, **more, **origin}

    def write_result(self, state: State, tensors: Tensors, seconds: float) -> None:
        """Write the result of a trained trial to its folder.

        Args:
            state: The state after the last step.
            tensors: The data set.
            seconds: The time of training since the trial was loaded, which its stack has shared.
        """
        result = training.finish(self.trial, tensors, state)
        end = self._make_checkpoint(state, len(result.steps), seconds)
        tags = {
            **{TAG_NAMES[key]: SEPARATOR.join(map(str, end[key])) for key in TAG_NAMES if key in end},
            **({CONTINUED_FROM: end[CONTINUED_FROM]} if CONTINUED_FROM in end else {}),
            END_TAG: EndState.of(self.trial, state.step).to_tag(),
            SECONDS_TAG: f"{self._sum_seconds(seconds):.3f}",
            **({STACK_TAG: str(self.stack_size)} if self.stacked else {}),
        }
        self.folder.write_result(encode_result(result, state.step, tags, training.copy_weights(state), end))

    def deliver(self) -> None:
        """Send the result to the store, and remove the trial's folder once it is there."""
        if self.delivery.finished:  # by an attempt that died before it could remove the folder, or by another sweep
            self.folder.remove()
        else:
            self.delivery.deliver_result()

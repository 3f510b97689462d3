"""TODO."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from trainables import training
from trainables.accelerated.backends import NATIVE, ONEDNN_VARIABLE, PYTORCH, get_environment
from trainables.accelerated.convolutions import CompilerError, choose_forward, forward_native
from trainables.architectures import has_convolution
from trainables.errors import BadInputError, StorageError
from trainables.persistence.delivery import Delivery, pack_result
from trainables.persistence.trial_folder import TrialFolder
from trainables.training import Forward, State, Tensors, forward_torch
from trainables.trial import Trial
from trainables.worker.pack import WorkerSettings

MAX_STARTS = 3  # of a trial without a new checkpoint in between; whatever ends it then would end it again


class ActiveTrial:
    """A trial in the hands of this process, its folder claimed.

    Attributes:
        gpus: Of its pack.
        trained: Its folder keeps a result.
        saved: What its newest checkpoint holds, if it is to go on from one.
    """

    def __init__(self, trial: Trial, name: str, gpus: float, settings: WorkerSettings) -> None:
        self.trial = trial
        self.gpus = gpus
        self.settings = settings
        self.folder = TrialFolder(settings.context.storage, trial)
        self.delivery = Delivery(self.folder, name, settings.context)
        self.trained = False
        self.saved: dict[str, Any] | None = None

    def open(self) -> None:
        """See what there is of the trial.

        Raises:
            BadInputError: It is not to be tried again.
        """
        if self.folder.record_start(self.settings.context.driver) > MAX_STARTS:
            raise BadInputError(f"it ended {MAX_STARTS} times at the same point: {self.folder.describe_last_error()}")
        # Read before the run is opened: damage decides which run the trial goes on with.
        self.trained = self.folder.read_result() is not None
        self.saved = None if self.trained else self.folder.read_newest_checkpoint()
        self.delivery.open_run()

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
            return choose_forward(
                self.trial.architecture, begun.split()[-1] if begun else self.settings.convolutions, device
            )
        except CompilerError as error:  # another kind of machine than where it was tried
            self.folder.add_note(f"it trained with PyTorch's convolutions, as there are no others here: {error}")
            return forward_torch

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
        if state.curves.device.type == "cpu" and has_convolution(self.trial.architecture):
            theirs = get_environment(self.settings.convolutions).get(ONEDNN_VARIABLE, PYTORCH)
            now = NATIVE if state.forward is forward_native else theirs
            found["convolutions"] = self.since("convolutions", now)
        return found

    def save(self, state: State, images: int, seconds: float) -> None:
        """Write a checkpoint, then send the points that it covers.

        The order keeps every step once in the store, whatever dies in between. What could not be written or sent, to
        a full disk or a store that is away, is written or sent with the next checkpoint.
        """
        steps = training.list_record_steps(self.trial, images)
        records = int(np.searchsorted(steps, state.step, side="right"))
        content = training.make_state_dict(state, records)
        more = {"seconds": self.seconds(seconds), "stacked": self.stacked, **self.circumstances(state)}
        try:
            self.folder.write_checkpoint(state.step, {**content, **more})
        except StorageError as error:
            self.folder.add_note(str(error))
        else:
            self.delivery.attempt(
                lambda run: run.send_records(steps[:records], training.fetch_curves(self.trial, state, records))
            )

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
        self.folder.write_result(pack_result(result, state.step, tags, training.copy_weights(state)))

    def deliver(self) -> None:
        """Bring the result into the store."""
        if self.delivery.finished:  # by an attempt that died before it could say so, or by another sweep
            self.folder.remove()
        else:
            self.delivery.deliver_result()

"""Delivery of a trial's points and result to the store, without making training wait for a store that is unreachable.

While the store is unreachable or full, points stay in the checkpoint and a result stays in its file; both are sent
once the store takes them. The id of the trial's run is in the trial's folder before the first point is sent.
"""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from trainables.checksums import describe_difference
from trainables.errors import BadInputError, TrackingError
from trainables.files import convert_write_errors
from trainables.persistence.connection import CHECKSUM_TAG, DRIVER_TAG, STORAGE_TAG, SweepContext
from trainables.persistence.end_state import STATE_ARTIFACT
from trainables.persistence.store import Store
from trainables.persistence.trial_folder import TrialFolder, encode_checkpoint
from trainables.persistence.trial_run import MODEL_ARTIFACT, RESULT_ARTIFACT, TrialRun
from trainables.result import Result

if TYPE_CHECKING:  # torch takes seconds to import, and a driver that trains nothing does not need it
    from torch import Tensor

# After a failed attempt the store is left alone for this time, or for ten times as long as the attempt took if that is
# longer: a server that does not answer costs a tenth of the training time at most.
RETRY_WAIT_SECONDS = 5.0
RETRY_WAIT_FACTOR = 10.0


class OtherDataError(BadInputError):
    """The discovery that a trial's folder holds what was trained on other data; it has been set aside."""


class Delivery:
    """One trial's connection to the store, which may be unreachable.

    Attributes:
        run: The trial's run; None until the store has returned it.
        failure: The reason why the store could not be used at the last attempt; None if it could.
    """

    def __init__(self, folder: TrialFolder, name: str, context: SweepContext) -> None:
        self.folder = folder
        self.name = name
        self.context = context
        self.run: TrialRun | None = None
        self.failure: str | None = None
        self._not_before = 0.0

    @property
    def finished(self) -> bool:
        """True if the store is known to have the trial's result, from an earlier attempt or another sweep."""
        return self.run is not None and self.run.finished

    def attempt(self, action: Callable[[TrialRun], None]) -> None:
        """Call `action` with the trial's run, unless the store has failed a moment ago, and set `failure`.

        Raises:
            BadInputError: Another sweep's driver trains the trial.
            OtherDataError: The folder's checkpoints or result were of other data.
        """
        started = time.monotonic()
        if self.failure is not None and started < self._not_before:
            return
        try:
            if self.run is None:
                self.run = self._open()
            action(self.run)
            self.failure = None
        except TrackingError as error:
            now = time.monotonic()
            self.failure = str(error)
            self._not_before = now + max(RETRY_WAIT_SECONDS, RETRY_WAIT_FACTOR * (now - started))

    def open_run(self) -> None:
        """Find or make the trial's run, if the store can be used.

        Raises:
            BadInputError: Another sweep's driver trains the trial.
            OtherDataError: The folder's checkpoints or result were of other data.
        """
        self.attempt(lambda run: None)

    def deliver_result(self) -> None:
        """Send the result in the trial's folder to the store, and remove the folder once it is there.

        Raises:
            ValueError: The folder holds no result.
            OtherDataError: The result is of other data.
        """
        import torch

        content = self.folder.read_result()
        if content is None:
            raise ValueError(f"{self.folder.path} holds no result")
        artifacts = self.folder.path / "artifacts"
        with convert_write_errors(artifacts):
            shutil.rmtree(artifacts, ignore_errors=True)
            artifacts.mkdir()
            result = decode_result(content)
            result.save(artifacts / RESULT_ARTIFACT)
            if content["model"] is not None:
                buffer = io.BytesIO()  # `torch.save` hides why a write failed if it writes to the file itself
                torch.save(content["model"], buffer)
                (artifacts / MODEL_ARTIFACT).write_bytes(buffer.getvalue())
            if content.get("end") is not None:  # results of earlier versions have none
                end = encode_checkpoint(content["end"], self.folder.trial, content.get(CHECKSUM_TAG, ""))
                (artifacts / STATE_ARTIFACT).write_bytes(end)
        self._not_before = 0.0
        checksum = content.get(CHECKSUM_TAG)
        tags = {**content["tags"], **({CHECKSUM_TAG: checksum} if checksum else {})}
        self.attempt(lambda run: run.finish(result, content["last_step"], tags, artifacts))
        if self.failure is None:
            self.folder.remove()

    def _open(self) -> TrialRun:
        context, store = self.context, Store(self.context.tracking_uri)
        run = store.open_run(
            self.folder.trial,
            self.name,
            context.experiment_id,
            context.parent_run_id,
            {**context.tags, STORAGE_TAG: context.storage_name, DRIVER_TAG: context.driver},
            run_id=self.folder.run_id,
            parameters=context.parameters.get(self.folder.trial.id),
        )
        if other := store.ignored.get(self.folder.run_id or ""):  # checkpoints of earlier versions have no checksum
            difference = describe_difference(other.dataset, other.checksum, context.tags.get(CHECKSUM_TAG, ""))
            reason = f"its run trained on other data than this {other.dataset}: {difference}"
            self.folder.set_aside(reason)
            raise OtherDataError(f"what was kept of it cannot be used ({reason}); run the same command again")
        if not run.finished:
            self.folder.remember_run(run.run_id)
        return run


def encode_result(
    result: Result,
    last_step: int,
    tags: Mapping[str, str],
    model: Mapping[str, Tensor] | None,
    end: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a trained trial's result as tensors and plain values, which a file can hold without pickled objects.

    Args:
        result: The result of training.
        last_step: The last optimiser step.
        tags: Tags for the trial's run.
        model: The trained parameters by name; None for a network that is not PyTorch's.
        end: The content of a checkpoint of the last step, from which a longer trial can go on.
    """
    import torch

    return {
        **asdict(result),
        "steps": torch.from_numpy(result.steps),
        "curves": {name: torch.from_numpy(curve) for name, curve in result.curves.items()},
        "first_layer": torch.from_numpy(result.first_layer),
        "test_correct": None if result.test_correct is None else torch.from_numpy(result.test_correct),
        "last_step": last_step,
        "tags": dict(tags),
        "model": model,
        "end": end,
    }


def decode_result(content: Mapping[str, Any]) -> Result:
    """Return the result that `encode_result` was given."""
    correct = content.get("test_correct")  # results of earlier versions do not have it
    return Result(
        steps=content["steps"].numpy(),
        curves={name: curve.numpy() for name, curve in content["curves"].items()},
        test_accuracy=content["test_accuracy"],
        first_layer=content["first_layer"].numpy(),
        test_correct=None if correct is None else correct.numpy(),
    )

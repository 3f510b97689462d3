"""How a trial's points and result reach the tracking store, without training ever waiting for one that is away.

A store that is away, full or closed costs nothing but time: points stay in the checkpoint, a result in its file, and
both go out once the store takes them. The trial's folder names the run that they go to before the first is sent.
"""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainables.errors import TrackingError
from trainables.files import report_write_errors
from trainables.persistence.connection import DRIVER_TAG, STORAGE_TAG
from trainables.persistence.store import Store
from trainables.persistence.trial_folder import TrialFolder
from trainables.persistence.trial_run import MODEL_ARTIFACT, RESULT_ARTIFACT, TrialRun
from trainables.result import Result

if TYPE_CHECKING:  # torch takes seconds to import, which a driver that trains nothing need not wait for
    from torch import Tensor


# The store is tried again after this time, and after ten times as long as the failed attempt took: a server that
# answers nobody costs a tenth of the training time at most.
RETRY_WAIT_SECONDS = 5.0


RETRY_WAIT_FACTOR = 10.0


@dataclass(frozen=True, kw_only=True)
class SweepContext:
    """Where a sweep's trials keep what they have.

    Attributes:
        storage: A folder that every node sees.
        storage_name: The same with the host, as people and other sweeps read it.
        driver: The sweep's driver, `<parent run>/<name>`.
        tags: Provenance that is the same for all trials of a sweep.
    """

    tracking_uri: str
    experiment_id: str
    parent_run_id: str
    storage: Path
    storage_name: str
    driver: str
    tags: Mapping[str, str]


class Delivery:
    """One trial's way into the store.

    Attributes:
        run: The trial's run, once the store has given it.
        failure: Why the store could not be used at the last attempt; None if it could.
    """

    def __init__(self, folder: TrialFolder, name: str, target: SweepContext) -> None:
        self.folder = folder
        self.name = name
        self.context = target
        self.run: TrialRun | None = None
        self.failure: str | None = None
        self._not_before = 0.0

    @property
    def finished(self) -> bool:
        """Whether the store has the trial's result from elsewhere, as far as is known."""
        return self.run is not None and self.run.finished

    def attempt(self, action: Callable[[TrialRun], None]) -> None:
        """Do something with the trial's run, unless the store has failed a moment ago; `failure` says what came of it.

        Raises:
            BadInputError: Another sweep's driver trains the trial.
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
        """Find or make the trial's run, if the store can be used."""
        self.attempt(lambda run: None)

    def deliver_result(self) -> None:
        """Bring the kept result into the store, and remove the trial's folder once it is there.

        Raises:
            ValueError: No result is kept.
        """
        import torch

        kept = self.folder.read_result()
        if kept is None:
            raise ValueError(f"{self.folder.path} keeps no result")
        artifacts = self.folder.path / "artifacts"
        with report_write_errors(artifacts):
            shutil.rmtree(artifacts, ignore_errors=True)
            artifacts.mkdir()
            result = unpack_result(kept)
            result.save(artifacts / RESULT_ARTIFACT)
            if kept["model"] is not None:
                buffer = io.BytesIO()  # to a file `torch.save` hides what went wrong with it
                torch.save(kept["model"], buffer)
                (artifacts / MODEL_ARTIFACT).write_bytes(buffer.getvalue())
        self._not_before = 0.0
        self.attempt(lambda run: run.finish(result, kept["last_step"], kept["tags"], artifacts))
        if self.failure is None:
            self.folder.remove()

    def _open(self) -> TrialRun:
        target = self.context
        run = Store(target.tracking_uri).open_run(
            self.folder.trial,
            self.name,
            target.experiment_id,
            target.parent_run_id,
            {**target.tags, STORAGE_TAG: target.storage_name, DRIVER_TAG: target.driver},
            run_id=self.folder.run_id,
        )
        if not run.finished:
            self.folder.remember_run(run.run_id)
        return run


def pack_result(
    result: Result, last_step: int, tags: Mapping[str, str], model: Mapping[str, Tensor] | None
) -> dict[str, Any]:
    """What a trained trial keeps, as tensors and plain values."""
    import torch

    return {
        **asdict(result),
        "steps": torch.from_numpy(result.steps),
        "curves": {name: torch.from_numpy(curve) for name, curve in result.curves.items()},
        "first_layer": torch.from_numpy(result.first_layer),
        "last_step": last_step,
        "tags": dict(tags),
        "model": model,
    }


def unpack_result(kept: Mapping[str, Any]) -> Result:
    """The result in what `to_keep` made."""
    return Result(
        steps=kept["steps"].numpy(),
        curves={name: curve.numpy() for name, curve in kept["curves"].items()},
        test_accuracy=kept["test_accuracy"],
        first_layer=kept["first_layer"].numpy(),
    )

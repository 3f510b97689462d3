"""TODO."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from trainables.trial import Trial

if TYPE_CHECKING:
    from trainables.persistence.delivery import SweepContext
from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """How trials are trained and where they keep what they have.

    None of it changes a result, but for the last bits, which follow `threads`, `stacked` and `convolutions`. These are
    recorded.

    Attributes:
        threads: Of a pack's process.
        checkpoint_seconds: Of training between two checkpoints at most.
        stacked: Architectures whose trials train side by side (`trainables/stack.py`), be it one alone.
        convolutions: How they are computed on the CPU (`probe.fastest_for_convolutions`); None: it was not tried.
        compiled: Steps of a stack are compiled.
    """

    context: SweepContext
    threads: int
    checkpoint_seconds: float
    stacked: Collection[str] = ()
    convolutions: str | None = None
    compiled: bool = False


@dataclass(frozen=True)
class Pack:
    """Trials that share a process.

    Attributes:
        names: Readable ones, of each trial.
        gpus: The share of a GPU that they have together, or how many.
    """

    trials: tuple[Trial, ...]
    names: tuple[str, ...]
    gpus: float

    @property
    def name(self) -> str:
        """The first trial's id, as a trial is in one pack."""
        return self.trials[0].id

    def to_json(self) -> str:
        """As Tune's search space takes it: a plain value, and not a place in a table that every worker would read."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Pack:
        """What `to_json` wrote."""
        content = json.loads(text)
        return Pack(
            tuple(Trial(**settings) for settings in content["trials"]), tuple(content["names"]), content["gpus"]
        )


@dataclass(frozen=True)
class Outcome:
    """What came of a trial that was not stopped.

    Attributes:
        error: Why it could not be trained.
        out_of_memory: With a larger share of a GPU it could.
        notes: What else a person should know.
    """

    error: str | None = None
    out_of_memory: bool = False
    notes: Sequence[str] = ()

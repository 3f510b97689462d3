"""Everything that the driver and its workers exchange: packs and settings one way, reports the other.

Quick to import: the driver imports this before it knows whether anything is to be trained.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache

from trainables.persistence.connection import SweepContext
from trainables.persistence.end_state import Start
from trainables.trial import Trial

REPORT_KEY = "report"  # in the dictionary that is reported to Ray Tune


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """Settings of training, and the places where trials keep their state; the same for all packs of a sweep.

    None of this changes a result, except for the last bits, which depend on `threads`, `stacked_architectures` and
    `backend`. These are recorded with each run.

    Attributes:
        context: Where the trials keep their state.
        threads: Threads that a pack's process trains with.
        checkpoint_seconds: The longest time of training between two checkpoints.
        stacked_architectures: Architectures whose trials train in a stack (`accelerated/stack.py`), even alone.
        backend: The backend of convolutions on the CPU (`accelerated/backends.py`); None: PyTorch's.
        starts: Trial id → the run of a shorter trial from whose end it goes on.
        compile_steps: Whether the steps of a stack are compiled, for GPUs.
    """

    context: SweepContext
    threads: int
    checkpoint_seconds: float
    stacked_architectures: Collection[str] = ()
    backend: str | None = None
    compile_steps: bool = False
    starts: Mapping[str, Start] = field(default_factory=dict)


@dataclass(frozen=True)
class Pack:
    """Trials that share a process.

    Attributes:
        trials: The trials.
        names: A readable name for each trial.
        gpus: The fraction of a GPU that they have together, or the number of GPUs.
    """

    trials: tuple[Trial, ...]
    names: tuple[str, ...]
    gpus: float

    @property
    def name(self) -> str:
        """The first trial's id, which is unique, as a trial is in one pack."""
        return self.trials[0].id

    @property
    def epochs(self) -> int:
        """The number of epochs of all trials together."""
        return sum(trial.epochs for trial in self.trials)

    def to_json(self) -> str:
        """Return the pack as text for Ray Tune's search space, which takes plain values."""
        return json.dumps(asdict(self))

    @staticmethod
    @lru_cache(maxsize=100_000)  # Tune's callbacks ask for the same pack many times
    def from_json(text: str) -> Pack:
        """Return the pack that `to_json` wrote."""
        content = json.loads(text)
        return Pack(
            tuple(Trial(**settings) for settings in content["trials"]), tuple(content["names"]), content["gpus"]
        )


def get_pack(config: Mapping[str, str]) -> Pack:
    """Return the pack in the configuration that Ray Tune has chosen for one of its trials."""
    return Pack.from_json(config["pack"])


@dataclass(frozen=True)
class Outcome:
    """The end of a trial that was not stopped.

    Attributes:
        error: The reason why the trial could not be trained; None if it was.
        out_of_memory: Whether a larger share of a GPU would help.
        notes: Sentences that the user should read.
    """

    error: str | None = None
    out_of_memory: bool = False
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class PackReport:
    """The state of a pack, which its worker reports to Ray Tune under the key `REPORT_KEY`.

    Attributes:
        epochs: The number of epochs that all its trials together have trained.
        running: The number of trials that are training now.
        outcomes: Trial id → outcome, for the trials that have ended.
    """

    epochs: int = 0
    running: int = 0
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)

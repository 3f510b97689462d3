"""What Ray Tune runs, and what it is told: a pack of trials, in a process that stays for the next pack.

Quick to import: drivers read this as well, before they know whether anything is to be trained. And Ray reads settings
when it is imported, which `sweeps/launch.py` makes first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from trainables.probe import limit
from trainables.trial import Trial

if TYPE_CHECKING:
    from trainables.datasets import Dataset
    from trainables.delivery import Target


@dataclass(frozen=True, kw_only=True)
class Settings:
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

    target: Target
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


def trainable(config: dict[str, str], *, data: Dataset | None, settings: Settings) -> None:
    """Train the trials of the pack in `config["pack"]`; report to Ray Tune what `members.Progress` says.

    Args:
        config: What Ray Tune chose.
        data: The data set; None for "xor", which has its own.
        settings: The same for all packs of a sweep.
    """
    os.environ.update(limit(settings.convolutions))  # which torch, imported from here on, reads once

    from ray import tune

    from trainables import members

    members.run(Pack.from_json(config["pack"]), data, settings, tune.report)

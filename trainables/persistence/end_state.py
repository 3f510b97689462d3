"""The state in which a trial has ended, from which a longer trial goes on.

The order of the images follows from seed and epoch, and milestones are steps counted from the start. So a trial with
fewer epochs is the beginning of one with more, if both have the same learning rates up to its end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from trainables.trial import Trial

STATE_ARTIFACT = "end.checkpoint"  # of a finished trial's run: a checkpoint of its last step
END_TAG = "end_state"  # of such a run: `EndState` as JSON


@dataclass(frozen=True)
class EndState:
    """The end of a trial.

    Attributes:
        family: `Trial.family`.
        epochs: Epochs of the trial.
        step: Its last optimiser step; for a trial that diverged, the step where it did.
        milestones: Its milestones.
    """

    family: str
    epochs: int
    step: int
    milestones: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, trial: Trial, step: int) -> EndState:
        """Return the end of a trial at its last step."""
        return cls(trial.family, trial.epochs, step, trial.milestones)

    def to_tag(self) -> str:
        """Return the text of the run's tag."""
        return json.dumps(asdict(self))

    @classmethod
    def from_tag(cls, text: str) -> EndState | None:
        """Return what the text of a tag says; None where it says nothing, as for runs of earlier versions."""
        try:
            found = json.loads(text)
            milestones = tuple((int(step), float(rate)) for step, rate in found["milestones"])
            return cls(str(found["family"]), int(found["epochs"]), int(found["step"]), milestones)
        except (ValueError, KeyError, TypeError):
            return None

    def begins(self, trial: Trial) -> bool:
        """Return whether a trial goes on from here: it has more epochs, and the same learning rates up to here."""

        def cut(milestones: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
            return [milestone for milestone in milestones if milestone[0] < self.step]

        same = self.family == trial.family and cut(self.milestones) == cut(trial.milestones)
        return same and self.epochs < trial.epochs


@dataclass(frozen=True)
class Start:
    """The run of a shorter trial, from whose end a trial goes on.

    Attributes:
        trial_id: Id of the shorter trial.
        name: Readable name of its run.
        run_id: Id of its run.
        artifact_uri: Place of its artifacts.
        epochs: Its epochs.
    """

    trial_id: str
    name: str
    run_id: str
    artifact_uri: str
    epochs: int

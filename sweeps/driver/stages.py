"""The stages of a sweep, with what the store has of their trials. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace

from sweeps.driver.plan import Plan
from sweeps.driver.summary import Setting, group_by_setting


@dataclass(frozen=True)
class Stage:
    """A stage of a sweep: what the store has of its trials.

    Attributes:
        plan: Its trials and their runs.
        stuck: Ids of the trials that are stuck.
    """

    plan: Plan
    stuck: Collection[str] = ()

    @property
    def settings(self) -> list[Setting]:
        """The settings of all axes but the seed."""
        return group_by_setting(self.plan, self.stuck)


def merge_rounds(stages: Sequence[Stage]) -> list[Stage]:
    """Return stages with all rounds of a search as one, which comes first."""
    rounds = [stage for stage in stages if not stage.plan.sweep.shows_test]
    if len(rounds) < 2:
        return [*stages]
    trials = tuple(dict.fromkeys(trial for stage in rounds for trial in stage.plan.trials))
    axis = {f"{number}": {**asdict(trial)} for number, trial in enumerate(trials)}
    sweep = replace(rounds[-1].plan.sweep, axes={"suggestion": axis})
    stuck = {trial_id for stage in rounds for trial_id in stage.stuck}
    merged = Stage(Plan(sweep, trials, rounds[-1].plan.runs), stuck)
    return [merged, *(stage for stage in stages if stage.plan.sweep.shows_test)]

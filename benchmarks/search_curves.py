"""Curves and numbers of searches: the best setting so far by epochs and by wall time, and its regret. Pure.

The *incumbent* of a search at some moment is the setting with the best score so far. Its *regret* is the best mean
score on fresh seeds of all settings that were an incumbent of any method, minus its own mean score on these seeds. So
a setting that was lucky with its one seed counts as what it is. The best of these means is itself a little too high,
for all methods alike.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sweeps.intervals import compute_mean_interval

Axis = Literal["epochs", "seconds"]


@dataclass(frozen=True)
class Evaluation:
    """A trial by which a method chooses, when it has ended.

    Attributes:
        epochs: Epochs that all trials of the search had trained by then.
        seconds: Seconds since the start of the command; None where several searches shared it.
        score: Score in %.
        settings: Its settings of the search's parameters.
    """

    epochs: int
    seconds: float | None
    score: float
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The settings as text."""
        return json.dumps(self.settings, sort_keys=True)


@dataclass(frozen=True)
class SearchRun:
    """One search by one method.

    Attributes:
        method: Name of the method.
        seed: Seed of the search.
        evaluations: Trials by which the method chooses, in order.
        command_seconds: Seconds of the whole command; None where several searches shared it.
    """

    method: str
    seed: int
    evaluations: Sequence[Evaluation]
    command_seconds: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds from the start of the command to the end of the search's last trial; NaN if several shared it."""
        return max((e.seconds for e in self.evaluations if e.seconds is not None), default=float("nan"))

    @property
    def incumbent(self) -> Evaluation | None:
        """The setting that the search ends with; None if no trial came to its end."""
        return next(reversed(find_incumbents(self.evaluations, "epochs")), None)


Value = Callable[[Evaluation], float]
"""A function that returns what a curve shows of an incumbent."""


def find_incumbents(evaluations: Sequence[Evaluation], axis: Axis) -> list[Evaluation]:
    """Return the evaluations that are better than all before them, in the order of an axis."""
    found: list[Evaluation] = []
    for evaluation in sorted(evaluations, key=lambda e: getattr(e, axis)):
        if not found or evaluation.score > found[-1].score:
            found.append(evaluation)
    return found


def has_axis(run: SearchRun, axis: Axis) -> bool:
    """Return whether all evaluations of a run have a place on an axis."""
    return all(getattr(evaluation, axis) is not None for evaluation in run.evaluations)


def trace(run: SearchRun, value: Value, axis: Axis, at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the value of a run's incumbent at some places of an axis, `(places,)`; NaN before the first."""
    incumbents = find_incumbents(run.evaluations, axis)
    values = np.array([float("nan"), *map(value, incumbents)])
    places = [float(getattr(incumbent, axis)) for incumbent in incumbents]
    traced: NDArray[np.float64] = values[np.searchsorted(places, at, side="right")]
    return traced


def trace_all(runs: Sequence[SearchRun], value: Value, axis: Axis, at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the values of the incumbents of all runs, `(runs, places)`."""
    return np.array([trace(run, value, axis, at) for run in runs])


def list_incumbents(runs: Iterable[SearchRun]) -> dict[str, Mapping[str, Any]]:
    """Return the settings that were the incumbent of any run, by their key; the order of both axes counts."""
    axes: tuple[Axis, ...] = ("epochs", "seconds")
    found = (
        incumbent
        for run in runs
        for axis in axes
        if has_axis(run, axis)
        for incumbent in find_incumbents(run.evaluations, axis)
    )
    return {incumbent.key: incumbent.settings for incumbent in found}


def group_by_method(runs: Iterable[SearchRun]) -> dict[str, list[SearchRun]]:
    """Return the runs of each method, in the order of their first."""
    groups: dict[str, list[SearchRun]] = {}
    for run in runs:
        groups.setdefault(run.method, []).append(run)
    return groups


def summarise(values: Sequence[float]) -> dict[str, float]:
    """Return the mean of some values with its 95 % interval, and their number; without the ends for a single value."""
    interval = compute_mean_interval(np.array(values, float), axis=0)
    ends = {"low": float(interval.low), "high": float(interval.high)} if interval.n > 1 else {}
    return {"mean": float(interval.mean), **ends, "n": int(interval.n)}


def compute_ratios(runs: Sequence[SearchRun], ours: str, seconds: Callable[[SearchRun], float]) -> dict[str, Any]:
    """Return, for each rival, the seconds of `ours` divided by its own: one ratio for each seed, and their median."""
    groups = group_by_method(runs)
    by_seed = {run.seed: seconds(run) for run in groups.get(ours, [])}
    found: dict[str, Any] = {}
    for rival, others in groups.items():
        pairs = [(by_seed[run.seed], seconds(run)) for run in others if run.seed in by_seed]
        ratios = [mine / theirs for mine, theirs in pairs if np.isfinite(mine) and np.isfinite(theirs)]
        if rival != ours and ratios:
            found[rival] = {"median": statistics.median(ratios), "each": ratios}
    return found

"""Estimates that figures draw: mean curves with their intervals and single seeds, and what captions say about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sweeps.intervals import compute_mean_interval

MIN_RUNS_FOR_INTERVALS = 5  # fewer runs are drawn without an interval
POINTS_SHOWN = 25  # a running mean leaves about this many independent points of a noisy curve
STUCK = "stuck at chance"


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Runs of one setting that did not diverge.

    Attributes:
        name: Name of the setting; empty where a figure has only one.
        labels: Name of each run, `runs` of them, such as "cnn_3 seed 1".
        stuck: True for the runs that are stuck at chance, `(runs,)`. They count in the mean.
    """

    name: str
    labels: Sequence[str]
    stuck: NDArray[np.bool_]

    @property
    def deciding(self) -> NDArray[np.bool_]:
        """True for the runs that decide the range of an axis, `(runs,)`: those that learnt, or all if none did."""
        return np.logical_not(self.stuck) | bool(self.stuck.all())

    @property
    def is_sample(self) -> bool:
        """True if the runs are enough for an interval, and either all or none of them learnt.

        The interval of a mean between two groups, those that learnt and those that did not, covers the whole figure.
        """
        return len(self.stuck) >= MIN_RUNS_FOR_INTERVALS and bool(self.deciding.all())


@dataclass(frozen=True, kw_only=True)
class Band(Runs):
    """A mean curve, the single curves and the interval around it.

    Attributes:
        steps: Optimiser steps or epochs, `(steps,)`.
        mean: Mean over `runs`, `(steps,)`; NaN where one of them has no finite value, or where there are no runs.
        low: Lower end of the interval, `(steps,)`; NaN where there is no interval.
        high: Upper end of the interval, `(steps,)`; NaN where there is no interval.
        runs: Curves of the runs that did not diverge, `(runs, steps)`.
        diverged: Curves of the runs that diverged, `(diverged runs, steps)`, NaN after their ends. They count in
            neither mean nor interval.
        over: Name of what the mean is over, such as "seed".
        window: Number of records that the running means of all curves average; 1 where they are not smoothed.
    """

    steps: NDArray[np.int64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    runs: NDArray[np.float64]
    diverged: NDArray[np.float64]
    over: str
    window: int

    @property
    def has_interval(self) -> bool:
        """True if there is an interval anywhere."""
        return bool(np.isfinite(self.low).any())

    @property
    def ends(self) -> NDArray[np.float64]:
        """Step and value of each run's last record, `(runs, 2)`."""
        return np.array([find_end(self.steps, run) for run in self.runs]).reshape(-1, 2)

    @property
    def center(self) -> NDArray[np.float64]:
        """Step and value of the last record of the mean over all runs, `(2,)`."""
        return np.array(find_end(self.steps, self.mean))


@dataclass(frozen=True, kw_only=True)
class Points(Runs):
    """Runs as points in a plane.

    Attributes:
        x: Horizontal values, `(runs,)`.
        y: Vertical values, `(runs,)`.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]

    @property
    def ends(self) -> NDArray[np.float64]:
        """Both values of each run, `(runs, 2)`."""
        return np.stack([self.x, self.y], axis=1)

    @property
    def center(self) -> NDArray[np.float64]:
        """Means of both values over all runs, `(2,)`."""
        return np.asarray(self.ends.mean(axis=0))


def choose_window(records: int) -> int:
    """Return the number of records that a running mean averages in a figure of a curve with `records` records."""
    return max(1, records // POINTS_SHOWN)


def label_runs(trials: xr.Dataset, name: str) -> list[str]:
    """Return the names of trials along one dimension, from the name of their setting and their seeds."""
    return [f"{name} seed {seed}".strip() for seed in np.broadcast_to(trials.seed.values, trials.diverged.shape)]


def compute_band(trials: xr.Dataset, quantity: str, name: str = "", *, sample: bool = True) -> Band:
    """Compute the mean curve of a quantity over trials, with its interval; trials that diverged are kept apart.

    All curves are running means along `step`. They are meant for figures only: exports hold the values as recorded.

    Args:
        trials: Finished trials along one dimension, with curves along `step`.
        quantity: Name of the variable that holds the curves.
        name: Name of the trials' setting.
        sample: True if the trials differ by chance alone, as seeds do. If they do not, an interval would mean nothing,
            and none is computed.
    """
    [over] = map(str, trials.diverged.dims)
    smooth = compute_running_mean(trials[quantity]).transpose(over, "step").to_numpy()
    kept = ~trials.diverged.values
    runs, diverged = smooth[kept], smooth[~kept]
    n, records = runs.shape
    mean = runs.mean(axis=0) if n else np.full(records, np.nan)
    band = Band(
        name=name,
        labels=[label for label, counts in zip(label_runs(trials, name), kept, strict=True) if counts],
        stuck=trials.stuck.values[kept],
        steps=trials["step"].to_numpy(),
        mean=mean,
        low=np.full(records, np.nan),
        high=np.full(records, np.nan),
        runs=runs,
        diverged=diverged,
        over=over,
        window=choose_window(records),
    )
    if not (sample and band.is_sample):
        return band
    return add_interval(band, 100 if quantity.endswith("accuracy") else np.inf)


def add_interval(band: Band, highest: float) -> Band:
    """Return a band with the interval of its mean.

    Args:
        band: A band whose runs are enough.
        highest: Greatest value that the quantity can have; the least is 0.
    """
    interval = compute_mean_interval(band.runs, lowest=0, highest=highest)
    low, high = (np.where(np.isnan(band.mean), np.nan, bound) for bound in (interval.low, interval.high))
    return replace(band, low=low, high=high)


def compute_running_mean(curves: xr.DataArray) -> xr.DataArray:
    """Compute centred running means along `step`; the result is NaN where a curve itself is not finite.

    A window holds the records that `choose_window` says, fewer at both ends of a curve.
    """
    present = curves.where(np.isfinite(curves))
    smooth = present.rolling(step=choose_window(curves.sizes["step"]), center=True, min_periods=1).mean()
    return smooth.where(present.notnull())


def describe_bands(bands: Sequence[Band]) -> str:
    """Return sentences for a caption that say what a figure's curves and bands are, and over how many runs."""
    shown = [band for band in bands if len(band.runs)]
    if not shown:
        text = "No mean curves, as all trials diverged."
    elif all(len(band.runs) == 1 for band in shown):
        text = f"Curves of a single {shown[0].over}."
    else:
        over = f"{shown[0].over}s"
        text = f"Mean curves, {count_runs(shown)} {over}; thin lines: single {over}"
        if with_interval := [band for band in shown if band.has_interval]:
            text += f"; bands: 95 % CI of the mean (Student's t, {count_runs(with_interval)})"
            if not all(band.deciding.all() for band in shown):
                text += f", none where only some {over} learnt"
        text += "."
    if windows := sorted({band.window for band in shown if band.window > 1}):
        text += f" All are running means of {' or '.join(map(str, windows))} records."
    dotted = any(len(band.runs) > 1 for band in shown)
    if any(band.stuck.any() for band in shown):
        text += f" A large open symbol at the end{' of a dotted line' if dotted else ''}: {STUCK}, counts in the mean."
    return text + (" A × is where a diverged trial ends." if any(len(band.diverged) for band in bands) else "")


def count_runs(shown: Sequence[Runs]) -> str:
    """Return over how many runs means are, such as "n = 3", or "n = 2 to 3" where settings differ."""
    numbers = sorted({len(runs.labels) for runs in shown})
    return f"n = {numbers[0]}" + (f" to {numbers[-1]}" if len(numbers) > 1 else "")


def describe_points(points: Sequence[Points]) -> str:
    """Return sentences for a caption that explain the symbols and the intervals of points."""
    stuck = any(cloud.stuck.any() for cloud in points)
    text = f"Small symbols: single seeds{f' (open: {STUCK})' if stuck else ''}; large: their mean"
    text += " (open: without those)" if stuck else ""
    with_interval = [cloud for cloud in points if cloud.is_sample]
    return text + (f"; bars: 95 % CI, {count_runs(with_interval)}." if with_interval else ".")


def find_end(steps: NDArray[np.int64], curve: NDArray[np.float64]) -> tuple[float, float]:
    """Return the step and the value of the last finite record of a curve, both `(steps,)`, or NaN if it has none."""
    finite = np.flatnonzero(np.isfinite(curve))
    return (float(steps[finite[-1]]), float(curve[finite[-1]])) if len(finite) else (np.nan, np.nan)


def describe_last_means(bands: Sequence[Band], unit: str = "") -> str:
    """Return where the mean curves of some bands end, in words, with how many of their runs are stuck."""
    ends = (f"{band.name} {band.center[1]:.3g}{unit}{describe_stuck(band)}" for band in bands if len(band.runs))
    return ", ".join(ends) or "no value, as all trials diverged"


def describe_stuck(runs: Runs) -> str:
    """Return how many of some runs are stuck, in brackets, or "" if all of them learnt."""
    n = int(runs.stuck.sum())
    return f" ({n} of {len(runs.stuck)} {STUCK})" if n else ""

"""Means over seeds and their confidence intervals, as pure functions of arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Interval(NamedTuple):
    """Means with their confidence intervals, as arrays of one shape.

    Attributes:
        mean: Mean; NaN where there is no value.
        low: Lower end of the interval; NaN where there are fewer than two values.
        high: Upper end of the interval; NaN where there are fewer than two values.
        n: Number of values.
    """

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    n: NDArray[np.int64]


def compute_mean_interval(values: ArrayLike, axis: int = 0, confidence: float = 0.95) -> Interval:
    """Compute the mean over an axis with its confidence interval by Student's t distribution.

    For normally distributed values this interval is exact even if there are few of them, which a bootstrap is not.

    Args:
        values: Values with at least one dimension, such as `(seeds, …)`. NaN values are left out and not counted.
        axis: Dimension that the result does not have any more.
        confidence: Coverage of the interval.
    """
    from scipy import stats  # imported here because it takes half a second, and a sweep's plan does not need it

    array = np.asarray(values, np.float64)
    n = np.sum(~np.isnan(array), axis=axis)
    total = np.nansum(array, axis=axis)
    mean = np.divide(total, n, out=np.full(np.shape(n), np.nan), where=n > 0)
    squares = np.nansum((array - np.expand_dims(mean, axis)) ** 2, axis=axis)
    degrees = np.where(n > 1, n - 1, 1)
    half = stats.t.ppf((1 + confidence) / 2, degrees) * np.sqrt(squares / degrees / np.maximum(n, 1))
    half = np.where(n > 1, half, np.nan)
    return Interval(mean, mean - half, mean + half, n)


def format_mean(values: ArrayLike) -> str:
    """Return "mean ± half width of the 95 % interval" with two decimals, or the mean alone for a single value."""
    mean, _, high, n = compute_mean_interval(values)
    return f"{mean:.2f} ± {high - mean:.2f}" if n > 1 else f"{mean:.2f}"

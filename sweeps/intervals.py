"""Estimates of one setting over its seeds, with their confidence intervals, as pure functions of arrays."""

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


class Share(NamedTuple):
    """A share with its confidence interval, from 0 to 1.

    Attributes:
        share: Share that was observed; NaN where nothing was.
        low: Lower end of the interval; NaN where nothing was observed.
        high: Upper end of the interval; NaN where nothing was observed.
        n: Number of observations.
    """

    share: float
    low: float
    high: float
    n: int


def compute_mean_interval(
    values: ArrayLike, axis: int = 0, confidence: float = 0.95, *, lowest: float = -np.inf, highest: float = np.inf
) -> Interval:
    """Compute the mean over an axis with its confidence interval by Student's t distribution.

    For normally distributed values this interval is exact even if there are few of them, which a bootstrap is not.
    Its ends are clipped to the range of the quantity. The true mean lies in that range, so an interval that held it
    still does: clipping costs no coverage.

    Args:
        values: Values with at least one dimension, such as `(seeds, …)`. NaN values are left out and not counted.
        axis: Dimension that the result does not have any more.
        confidence: Coverage of the interval.
        lowest: Least value that the quantity can have, such as 0 for a loss.
        highest: Greatest value that the quantity can have, such as 100 for an accuracy in %.
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
    return Interval(mean, np.clip(mean - half, lowest, highest), np.clip(mean + half, lowest, highest), n)


def compute_share_interval(successes: int, n: int, confidence: float = 0.95) -> Share:
    """Compute a share of n observations with its interval by Wilson's score method.

    It keeps about its nominal coverage on average over all true shares even if n is small, never leaves 0 to 1, and is
    not empty where all or none succeed. Source: E. B. Wilson, Journal of the American Statistical Association 22
    (1927), 209–212; recommended for small n by Brown, Cai and DasGupta, Statistical Science 16 (2001), 101–133.

    Args:
        successes: Number of observations that succeeded, such as seeds that learnt.
        n: Number of observations.
        confidence: Coverage of the interval on average.
    """
    from scipy import stats

    if n == 0:
        return Share(np.nan, np.nan, np.nan, 0)
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Share(successes / n, float(interval.low), float(interval.high), n)


def format_mean(values: ArrayLike) -> str:
    """Return "mean ± half width of the 95 % interval" with two decimals, or the mean alone for a single value."""
    mean, _, high, n = compute_mean_interval(values)
    return f"{mean:.2f} ± {high - mean:.2f}" if n > 1 else f"{mean:.2f}"

"""Means, medians and shares over seeds, with their confidence intervals, as pure functions of arrays."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

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


class Median(NamedTuple):
    """A median with its confidence interval.

    Attributes:
        median: Median; NaN where there is no value.
        low: Lower end of the interval; NaN where there are too few values for one.
        high: Upper end of the interval; NaN where there are too few values for one.
        n: Number of values.
    """

    median: float
    low: float
    high: float
    n: int


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


class ShareDifference(NamedTuple):
    """The difference of two shares, the first minus the second; NaN where one of them is of nothing."""

    estimate: float
    low: float
    high: float
    p: float


def drop_missing(values: ArrayLike) -> NDArray[np.float64]:
    """Return the values that are not NaN."""
    array = np.asarray(values, np.float64)
    missing: NDArray[np.bool_] = np.isnan(array)
    kept: NDArray[np.float64] = array[~missing]
    return kept


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


def compute_share_difference(first: Share, second: Share) -> ShareDifference:
    """Compute the difference of two shares, such as of the seeds that learnt, with Newcombe's interval.

    The p-value is exact: Boschloo's test. Sources: R. G. Newcombe, Statistics in Medicine 17 (1998), 873–890, method
    10; R. D. Boschloo, Statistica Neerlandica 24 (1970), 1–35, by `scipy.stats.boschloo_exact`.

    Args:
        first: One share, by `compute_share_interval`, which decides the confidence.
        second: The other share, of other seeds or the same.
    """
    from scipy import stats

    if 0 in (first.n, second.n):
        return ShareDifference(np.nan, np.nan, np.nan, np.nan)
    estimate = first.share - second.share
    below = float(np.hypot(first.share - first.low, second.high - second.share))
    above = float(np.hypot(first.high - first.share, second.share - second.low))
    successes = [round(one.share * one.n) for one in (first, second)]
    table = [successes, [first.n - successes[0], second.n - successes[1]]]
    return ShareDifference(estimate, estimate - below, estimate + above, float(stats.boschloo_exact(table).pvalue))


def compute_median_interval(values: ArrayLike, confidence: float = 0.95) -> Median:
    """Compute the median with the exact binomial interval between two order statistics.

    The number of values below the true median is binomial with p = 1/2, whatever the distribution, so the interval
    covers at least as often as it says, for skewed and two-humped values as well. Source: W. J. Conover, Practical
    Nonparametric Statistics, 3rd edition (1999), section 3.2.

    Args:
        values: Values of shape `(seeds,)`. NaN values are left out and not counted.
        confidence: Least coverage of the interval. 95 % needs six values; fewer have a median and no interval.
    """
    from scipy import stats

    array = drop_missing(values)
    if len(array) == 0:
        return Median(np.nan, np.nan, np.nan, 0)
    interval: Any = stats.quantile_test(array).confidence_interval(confidence)  # scipy-stubs calls it a float
    return Median(float(np.median(array)), float(interval.low), float(interval.high), len(array))


def compute_expected_best(values: ArrayLike, n: int) -> float:
    """Estimate the expected greatest of n runs from at least n runs that were observed.

    The estimate is the mean of the greatest value over all choices of n of the values, without replacement. It is
    unbiased whatever the distribution. Drawing with replacement, as in Dodge et al., Show Your Work (EMNLP 2019), is
    biased downwards, because the greatest value of all can only be drawn, never exceeded, and the same run counts
    twice. Source: Tang et al., Showing Your Work Doesn't Always Work (ACL 2020).

    Args:
        values: Values of shape `(runs,)`. NaN values are left out.
        n: Number of runs of which the best is kept.

    Raises:
        ValueError: If there are fewer than n values, or n is less than one.
    """
    from scipy.special import gammaln

    ordered = np.sort(drop_missing(values))
    m = len(ordered)
    if not 1 <= n <= m:
        raise ValueError(f"the best of {n} runs cannot be estimated from {m} values")
    rank = np.arange(n, m + 1)  # of (m choose n) choices, (rank − 1 choose n − 1) have the value of this rank as best
    log_share = gammaln(rank) - gammaln(n) - gammaln(rank - n + 1)
    log_share -= gammaln(m + 1) - gammaln(n + 1) - gammaln(m - n + 1)
    return float(np.exp(log_share) @ ordered[n - 1 :])


def compute_expected_best_of_noise(values: ArrayLike, n: int) -> float:
    """Compute the expected greatest of n normal values that have the mean and standard deviation of the given ones.

    A best run that is not above it is what chance alone gives. The standard deviation is the estimate that is unbiased
    for normal values: a sample's own is too small on average, by 11 % for three values. Source: H. A. David and H. N.
    Nagaraja, Order Statistics, 3rd edition (2003), chapter 3.

    Args:
        values: Values of shape `(runs,)`. NaN values are left out; fewer than two give NaN.
        n: Number of runs of which the best is kept.
    """
    from scipy.special import gammaln

    array = drop_missing(values)
    m = len(array)
    if m < 2:
        return float("nan")
    shortfall = np.sqrt(2 / (m - 1)) * np.exp(gammaln(m / 2) - gammaln((m - 1) / 2))
    return float(array.mean() + array.std(ddof=1) / shortfall * compute_expected_greatest(n))


@cache
def compute_expected_greatest(n: int) -> float:
    """Compute the expected greatest of n standard normal values."""
    from scipy import stats

    return float(stats.order_statistic(stats.Normal(), r=n, n=n).mean()) if n > 1 else 0.0


def format_interval(low: float, high: float) -> str:
    """Return both ends of an interval with two decimals."""
    return f"{low:.2f} – {high:.2f}"


def format_mean(values: ArrayLike, *, lowest: float = 0.0, highest: float = 100.0) -> str:
    """Return "mean (low – high)" with the clipped 95 % interval, or the mean alone for a single value.

    Args:
        values: Values of shape `(seeds,)`.
        lowest: Least value that the quantity can have.
        highest: Greatest value that the quantity can have; accuracies are in %.
    """
    mean, low, high, n = compute_mean_interval(values, lowest=lowest, highest=highest)
    return f"{mean:.2f} ({format_interval(float(low), float(high))})" if n > 1 else f"{mean:.2f}"

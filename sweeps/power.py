"""Differences that a number of seeds can show, and the seeds that a difference needs, as pure functions."""

from __future__ import annotations

import numpy as np


def compute_power(difference: float, sd: float, n: int, *, paired: bool, level: float = 0.05) -> float:
    """Return the probability that a two-sided t test with n seeds finds a true difference between normal values.

    It is the probability that a noncentral t is beyond the critical value. For pairs the noncentrality is
    difference / (sd · √(1/n)), with n − 1 degrees of freedom. For two settings of one spread it is
    difference / (sd · √(2/n)), with 2n − 2. There Welch's test takes its critical value for fewer degrees of freedom,
    (n − 1) / (w² + (1 − w)²), where w is the part that one setting has in the sum of both sample variances. This w has
    a beta distribution and is independent of t, so the result is the mean over w. Source: J. Cohen, Statistical Power
    Analysis for the Behavioral Sciences, 2nd edition (1988), chapter 2; the mean over w is our own.

    Args:
        difference: True difference of the means.
        sd: Standard deviation of the differences if paired, else that of each setting over its seeds.
        n: Number of pairs, or of seeds in each setting; two or more.
        paired: True if the settings are paired by seed.
        level: Probability of finding a difference where there is none.
    """
    from scipy import stats

    noncentrality = abs(difference) / (sd * np.sqrt((1 if paired else 2) / n))
    noncentrality = np.minimum(noncentrality, 1e5)  # beyond it SciPy gives NaN, and the power is 1 anyway
    part = stats.beta.ppf((np.arange(50) + 0.5) / 50, (n - 1) / 2, (n - 1) / 2)  # 50 values of w, all equally likely
    degrees = np.array(n - 1) if paired else (n - 1) / (part**2 + (1 - part) ** 2)
    critical = stats.t.isf(level / 2, degrees)
    of_statistic = n - 1 if paired else 2 * n - 2
    opposite = stats.nct.cdf(-critical, of_statistic, noncentrality)  # SciPy 1.17 gives NaN for some below 1e-15
    return float(np.mean(stats.nct.sf(critical, of_statistic, noncentrality) + np.nan_to_num(opposite)))


def compute_detectable_difference(sd: float, n: int, *, paired: bool, power: float = 0.8, level: float = 0.05) -> float:
    """Compute the smallest true difference that n seeds find with the given power; arguments as in `compute_power`.

    It is NaN for fewer than two seeds or an unknown spread.
    """
    from scipy.optimize import brentq

    if n < 2 or np.isnan(sd):
        return float("nan")
    highest = 1.0
    while compute_power(highest, 1, n, paired=paired, level=level) < power:
        highest *= 2
    effect = brentq(lambda size: compute_power(size, 1, n, paired=paired, level=level) - power, 0, highest)
    return float(sd * effect)


def compute_seeds_needed(difference: float, sd: float, *, paired: bool, power: float = 0.8, level: float = 0.05) -> int:
    """Compute the least number of seeds that finds a true difference with the given power.

    Arguments are as in `compute_power`.

    Raises:
        ValueError: If the difference is zero or the spread is not above zero, since no number of seeds follows then.
    """
    if not (difference != 0 and sd > 0):
        raise ValueError(f"no number of seeds follows from a difference of {difference} and a spread of {sd}")
    low, high = 1, 2  # low seeds are too few, high seeds are enough once the first loop is over
    while compute_power(difference, sd, high, paired=paired, level=level) < power:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        enough = compute_power(difference, sd, middle, paired=paired, level=level) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high

"""Sign tests: comparisons of two settings by how many seeds go up, as pure functions of arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class SignTest(NamedTuple):
    """A comparison of two settings by the signs of their differences.

    Attributes:
        above: Number of seeds in which the first setting is above the second.
        n: Number of seeds in which they differ.
        p: p-value of no difference; NaN where no seed differs.
    """

    above: int
    n: int
    p: float


def compare_signs(first: ArrayLike, second: ArrayLike) -> SignTest:
    """Compare two settings by the exact two-sided sign test, which assumes nothing of the differences' distribution.

    Where neither setting tends to be above the other, the number of seeds in which the first is above is binomial with
    p = 1/2. Ties are left out. Source: W. J. Conover, Practical Nonparametric Statistics, 3rd edition (1999), section
    3.4.

    Args:
        first: Values of one setting, `(seeds,)`.
        second: Values of the other setting, of the same seeds in the same order. A pair with a NaN is left out.
    """
    from scipy import stats

    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    above, below = int(np.sum(a > b)), int(np.sum(a < b))  # False for NaN
    n = above + below
    return SignTest(above, n, float(stats.binomtest(above, n).pvalue) if n else float("nan"))


def count_signs_needed(n: int, level: float = 0.05) -> int | None:
    """Return how many of n seeds must agree for the sign test to find a difference; None if even all are too few."""
    from scipy import stats

    needed = range(n // 2 + 1, n + 1)
    return next((count for count in needed if stats.binomtest(count, n).pvalue <= level), None)

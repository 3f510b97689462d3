"""Statistics over seeds: pure functions on arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Interval(NamedTuple):
    """A mean with its confidence interval, arrays of one shape; NaN bounds where one value allows none."""

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    n: NDArray[np.int64]


def compute_mean_interval(values: ArrayLike, axis: int = 0, confidence: float = 0.95) -> Interval:
    """Mean over `axis` with Student's t interval: exact for normal values however few, unlike a bootstrap.

    NaN values are left out, and `n` counts what is left: `(seeds, …)` → four arrays `(…)`.
    """
    from scipy import stats  # takes half a second, which a plan need not wait for

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
    """`mean ± half width` of the 95 % interval with two decimals; the mean alone where one value allows no interval."""
    mean, _, high, n = compute_mean_interval(values)
    return f"{mean:.2f} ± {high - mean:.2f}" if n > 1 else f"{mean:.2f}"

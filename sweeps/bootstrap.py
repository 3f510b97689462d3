"""Bootstrap intervals of quantities that depend on two samples: seeds and images, or the seeds of two settings."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sweeps.intervals import drop_missing


class Bounds(NamedTuple):
    """Both ends of a confidence interval; NaN where there is none."""

    low: float
    high: float


class AccuracyIntervals(NamedTuple):
    """A mean accuracy in %, with an interval for each thing that could have been another.

    Attributes:
        accuracy: Mean over seeds and images.
        seeds: Interval for other seeds, tested on the same images; NaN where there is one seed.
        images: Interval for other test images, on which the same trained networks are tested.
        both: Interval for other seeds and other test images; NaN where there is one seed.
    """

    accuracy: float
    seeds: Bounds
    images: Bounds
    both: Bounds


class WinProbability(NamedTuple):
    """The probability that a run of one setting beats a run of another; NaN as in `Bounds`."""

    probability: float
    low: float
    high: float
    n: int


def draw_counts(generator: np.random.Generator, n: int, resamples: int) -> NDArray[np.float64]:
    """Return how often each of n things is in a bootstrap sample of n of them, `(resamples, n)`."""
    drawn = generator.integers(0, n, (resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n).astype(np.float64)


def compute_widening(n: int, confidence: float) -> float:
    """Return the factor by which bootstrap deviations of a mean of n values are too small.

    With it, a percentile interval of normal values has the width of Student's: resampling divides by n where n − 1 is
    right, and knows nothing of the uncertainty of the spread. Source: T. Hesterberg, What Teachers Should Know About
    the Bootstrap, The American Statistician 69 (2015), 371–386.
    """
    from scipy import stats

    probability = (1 + confidence) / 2
    return float(np.sqrt(n / (n - 1)) * stats.t.ppf(probability, n - 1) / stats.norm.ppf(probability))


def compute_accuracy_intervals(
    correct: ArrayLike, confidence: float = 0.95, *, resamples: int = 2_000, seed: int = 0
) -> AccuracyIntervals:
    """Compute the mean accuracy in % with bootstrap intervals over seeds, over test images, and over both.

    Seeds and images are resampled independently. The deviations of resampled seeds are widened for the number of
    seeds. The same arguments give the same intervals. Source: A. B. Owen, The pigeonhole bootstrap, Annals of Applied
    Statistics 1 (2007), 386–411.

    Args:
        correct: True where a seed's network got an image right, `(seeds, images)`.
        confidence: Nominal coverage of the intervals. docs/statistics.md has what was measured.
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap's random numbers.
    """
    array = np.asarray(correct, np.float64)
    seeds, images = array.shape
    mean = float(array.mean())
    generator = np.random.default_rng(seed)
    by_seed, by_image, by_both = (np.empty(resamples) for _ in range(3))
    for start in range(0, resamples, 100):  # 100 at a time, so that 10,000 images take megabytes, not gigabytes
        part = slice(start, min(start + 100, resamples))
        size = part.stop - start
        of_seeds, of_images = draw_counts(generator, seeds, size) / seeds, draw_counts(generator, images, size) / images
        by_seed[part] = of_seeds @ array.mean(axis=1) - mean
        by_image[part] = of_images @ array.mean(axis=0) - mean
        by_both[part] = np.sum((of_images @ array.T) * of_seeds, axis=1) - mean
    widening = compute_widening(seeds, confidence) if seeds > 1 else np.nan

    def make_bounds(deviations: NDArray[np.float64]) -> Bounds:
        if np.isnan(deviations).any() or np.ptp(deviations) < 1e-12:  # nothing varies: there is no spread to resample
            return Bounds(np.nan, np.nan)
        low, high = np.quantile(deviations, [(1 - confidence) / 2, (1 + confidence) / 2])
        return Bounds(*(float(np.clip(100 * (mean + end), 0, 100)) for end in (min(low, 0), max(high, 0))))

    both = by_both + (widening - 1) * by_seed
    return AccuracyIntervals(100 * mean, *map(make_bounds, (widening * by_seed, by_image, both)))


def compute_win_probability(
    first: ArrayLike, second: ArrayLike, confidence: float = 0.95, *, resamples: int = 2_000, seed: int = 0
) -> WinProbability:
    """Compute the probability that a run of one setting is above a run of another with another seed; ties count half.

    The estimate is the share of all pairs of runs (the Mann–Whitney statistic). For its bootstrap interval the seeds of
    each setting are resampled, after an imaginary seed has been added to each that ties with all: else the interval
    would have no width where one setting always wins. The percentiles are taken further out for few seeds. Sources:
    X. Bouthillier et al., Accounting for Variance in Machine Learning Benchmarks (MLSys 2021); T. Hesterberg, The
    American Statistician 69 (2015), 371–386. The imaginary seed is our own; docs/statistics.md has what was measured.

    Args:
        first: Values of one setting, `(seeds,)`; higher is better. NaN values are left out.
        second: Values of the other setting.
        confidence: Nominal coverage of the interval.
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap's random numbers.
    """
    from scipy import stats

    a, b = drop_missing(first), drop_missing(second)
    n = min(len(a), len(b))
    if n == 0:
        return WinProbability(np.nan, np.nan, np.nan, 0)
    wins = (np.sign(a[:, None] - b) + 1) / 2
    estimate = float(wins.mean())
    if n == 1 or (wins == 0.5).all():  # nothing varies: there is no spread to resample
        return WinProbability(estimate, np.nan, np.nan, n)
    padded = np.pad(wins, ((0, 1), (0, 1)), constant_values=0.5)
    generator = np.random.default_rng(seed)
    counts = [draw_counts(generator, size, resamples) / size for size in padded.shape]
    means = np.sum((counts[0] @ padded) * counts[1], axis=1)
    tail = stats.norm.sf(compute_widening(n, confidence) * stats.norm.ppf((1 + confidence) / 2))
    low, high = np.quantile(means, [tail, 1 - tail])
    return WinProbability(estimate, min(float(low), estimate), max(float(high), estimate), n)

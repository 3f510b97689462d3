"""Comparisons of several settings over their seeds, as pure functions of arrays."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sweeps.intervals import drop_missing

# A spread below this part of the values is rounding. Where all seeds of a setting agree, its spread is unknown, not
# zero, since another seed may learn where three are stuck. So no interval and no p-value follows from such a setting.
NO_SPREAD = 1e-6
PERMUTATIONS = 9_999


@dataclass(frozen=True)
class Difference:
    """The mean difference of two settings, the first minus the second.

    Attributes:
        estimate: Mean difference; NaN where a setting has no value.
        low: Lower end of the interval; NaN where a setting has fewer than two seeds, or where these all agree.
        high: Upper end of the interval; NaN like `low`.
        n: Number of pairs, or of the seeds of the setting that has fewer.
        p: p-value of Student's or Welch's t test of no difference; NaN like `low`.
        permutation_p: p-value of a permutation test, which assumes no distribution; exact for few seeds.
        correlation: Pearson's correlation over the seeds that both settings have; NaN where it is not defined. Pairing
            gains where it is clearly above zero, and loses a little where it is not.
        sd: Standard deviation that `compute_detectable_difference` and `compute_seeds_needed` take.
        paired: True if the settings were paired by seed.
    """

    estimate: float
    low: float
    high: float
    n: int
    p: float
    permutation_p: float
    correlation: float
    sd: float
    paired: bool


class DifferenceInterval(NamedTuple):
    """Mean differences with their intervals and p-values, as arrays of one shape; fields as in `Difference`."""

    estimate: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    p: NDArray[np.float64]


class Contrast(NamedTuple):
    """One difference of a family, the first setting minus the second; interval and p-value hold for all of it."""

    first: str
    second: str
    estimate: float
    low: float
    high: float
    p: float


def has_spread(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return whether values differ over the first dimension by more than rounding."""
    highest, lowest = values.max(axis=0, initial=-np.inf), values.min(axis=0, initial=np.inf)
    return np.asarray(highest - lowest > NO_SPREAD * np.maximum(np.abs(highest), np.abs(lowest)))


def compute_difference_interval(
    first: ArrayLike, second: ArrayLike, *, paired: bool, confidence: float = 0.95
) -> DifferenceInterval:
    """Compute mean differences over the first dimension with their intervals by Student's t distribution.

    Paired, the interval is that of the mean of the differences (`scipy.stats.ttest_rel`). Unpaired, it is Welch's,
    which lets the settings differ in spread (`scipy.stats.ttest_ind`). Source: B. L. Welch, Biometrika 34 (1947),
    28–35.

    Args:
        first: Values of one setting, `(seeds, …)`, without NaN.
        second: Values of the other setting. Paired, they are of the same seeds in the same order.
        paired: True if both settings ran with the same seeds.
        confidence: Coverage of the intervals.
    """
    from scipy import stats

    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one value, or no spread: those become NaN below
        test = stats.ttest_rel(a, b, axis=0) if paired else stats.ttest_ind(a, b, axis=0, equal_var=False)
        interval = test.confidence_interval(confidence)
        estimate = a.mean(axis=0) - b.mean(axis=0)
        known = has_spread(a) & has_spread(b)
        if paired:
            known &= np.std(a - b, axis=0) > NO_SPREAD * np.abs(a).max(axis=0, initial=0)
    low, high, p = (np.where(known, found, np.nan) for found in (interval.low, interval.high, test.pvalue))
    return DifferenceInterval(estimate, low, high, p)


def compute_difference(
    first: ArrayLike, second: ArrayLike, *, paired: bool, confidence: float = 0.95, permute: bool = True
) -> Difference:
    """Compute the mean difference of two settings with its interval, and a permutation test as a check.

    Paired, the permutation test flips the signs of differences; unpaired, it exchanges seeds between the settings.
    Source: R. A. Fisher, The Design of Experiments (1935), section 21.

    Args:
        first: Values of one setting, `(seeds,)`.
        second: Values of the other setting. Paired, they are of the same seeds in the same order, and a pair with a NaN
            is left out; else a NaN value is.
        paired: True if both settings ran with the same seeds.
        confidence: Coverage of the interval.
        permute: Whether to make the permutation test, which takes most of the time; its p-value is NaN otherwise.

    Raises:
        ValueError: If settings to be paired have different numbers of values.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if paired and len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values cannot be paired by seed")
    correlation = compute_correlation(a, b) if len(a) == len(b) else float("nan")
    if paired:
        both = ~np.isnan(a) & ~np.isnan(b)
        a, b = a[both], b[both]
    else:
        a, b = drop_missing(a), drop_missing(b)
    found = compute_difference_interval(a, b, paired=paired, confidence=confidence)
    n = min(len(a), len(b))
    variances = [values.var(ddof=1) if n > 1 else np.nan for values in ([a - b] if paired else [a, b])]
    return Difference(
        estimate=float(found.estimate),
        low=float(found.low),
        high=float(found.high),
        n=n,
        p=float(found.p),
        permutation_p=compute_permutation_p(a, b, paired=paired) if permute else float("nan"),
        correlation=correlation,
        sd=float(np.sqrt(np.mean(variances))),
        paired=paired,
    )


def compute_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return Pearson's correlation of two settings over seeds; NaN for fewer than three pairs or without spread."""
    both = ~np.isnan(first) & ~np.isnan(second)
    a, b = first[both], second[both]
    return float(np.corrcoef(a, b)[0, 1]) if len(a) > 2 and has_spread(a) and has_spread(b) else float("nan")


def compute_permutation_p(first: NDArray[np.float64], second: NDArray[np.float64], *, paired: bool) -> float:
    """Return the two-sided p-value of a permutation test of the mean difference.

    It is exact where there are at most 9,999 permutations, as for 13 pairs; else it is from so many random ones,
    always the same. With n pairs it is 2 / 2ⁿ or more, so that fewer than six pairs never give 5 %. It is NaN where a
    setting has fewer than two values.
    """
    from scipy import stats

    if min(len(first), len(second)) < 2:
        return float("nan")

    def subtract(a: NDArray[np.float64], b: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        difference: NDArray[np.float64] = a.mean(axis=axis) - b.mean(axis=axis)
        return difference

    result = stats.permutation_test(
        (first, second),
        subtract,
        permutation_type="samples" if paired else "independent",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        rng=0,
    )
    return float(result.pvalue)


def compare_all_pairs(samples: Mapping[str, ArrayLike], confidence: float = 0.95) -> list[Contrast]:
    """Compare every setting with every other by Games and Howell's procedure, which lets them differ in spread.

    The results are those of `scipy.stats.tukey_hsd(equal_var=False)`, which computes every interval twice and so takes
    more than twice as long. Source: P. A. Games and J. F. Howell, Journal of Educational Statistics 1 (1976), 113–125.

    Args:
        samples: Values of each setting, `(seeds,)`, by its name. NaN values are left out.
        confidence: Coverage of all intervals together.
    """
    from scipy import stats

    kept = [drop_missing(values) for values in samples.values()]
    n = np.array([len(values) for values in kept])
    mean = np.array([values.mean() if len(values) else np.nan for values in kept])
    squared_error = np.array([values.var(ddof=1) / len(values) if has_spread(values) else np.nan for values in kept])
    i, j = np.triu_indices(len(kept), 1)
    estimate = mean[i] - mean[j]
    error = np.sqrt(squared_error[i] + squared_error[j])
    degrees = error**4 / (squared_error[i] ** 2 / (n[i] - 1) + squared_error[j] ** 2 / (n[j] - 1))
    settings = np.sum(n > 1)
    statistic = np.abs(estimate) / error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the integral may fail for p-values that are nearly zero
        p = stats.studentized_range.sf(np.sqrt(2) * statistic, settings, degrees)
        half = stats.studentized_range.ppf(confidence, settings, degrees) * error / np.sqrt(2)
    unadjusted = 2 * stats.t.sf(statistic, degrees)
    p = np.clip(p, unadjusted, np.minimum(1, unadjusted * settings * (settings - 1) / 2))  # Bonferroni's is never less
    columns = (estimate, estimate - half, estimate + half, p)
    rows = zip(combinations(samples, 2), *(column.tolist() for column in columns), strict=True)
    return [Contrast(*names, *numbers) for names, *numbers in rows]


def compare_with_reference(
    samples: Mapping[str, ArrayLike], reference: str, confidence: float = 0.95
) -> list[Contrast]:
    """Compare every other setting with a reference by Dunnett's test, which takes all settings to have one spread.

    It sees smaller differences than all pairs do, because it makes fewer comparisons. Where spreads differ much, as
    with seeds that never learnt in some settings, its intervals do not hold: use `compare_all_pairs` there. Source:
    C. W. Dunnett, Journal of the American Statistical Association 50 (1955), 1096–1121, by `scipy.stats.dunnett`.

    Args:
        samples: Values of each setting, `(seeds,)`, by its name. NaN values are left out.
        reference: Name of the setting that the others are compared with; the differences are the others minus it.
        confidence: Coverage of all intervals together.
    """
    from scipy import stats

    kept = {name: drop_missing(values) for name, values in samples.items()}
    control = kept.pop(reference)
    others = {name: values for name, values in kept.items() if has_spread(values)}
    found: dict[str, tuple[float, float, float]] = {}
    if others and has_spread(control):
        test = stats.dunnett(*others.values(), control=control, rng=0)  # it integrates by random numbers
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # they miss the level a little, as 5.3 % in place of 5 %
            interval = test.confidence_interval(confidence)
        columns = (np.asarray(column).tolist() for column in (interval.low, interval.high, test.pvalue))
        found = dict(zip(others, zip(*columns, strict=True), strict=True))
    means = {name: float(values.mean()) if len(values) else np.nan for name, values in (*kept.items(), ("", control))}
    return [Contrast(name, reference, means[name] - means[""], *found.get(name, (np.nan,) * 3)) for name in kept]


def adjust_for_false_discoveries(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return p-values of many comparisons, adjusted so that of those at most 0.05, 5 % or fewer are false on average.

    They tell which of a large grid's settings are worth a second look, not what may be claimed: that is what
    `select_claims` is for. NaN stays NaN and is not counted. Source: Y. Benjamini and Y. Hochberg, Journal of the Royal
    Statistical Society B 57 (1995), 289–300, by `scipy.stats.false_discovery_control`.
    """
    from scipy import stats

    adjusted = np.array(p_values, np.float64)
    known = ~np.isnan(adjusted)
    if known.any():
        adjusted[known] = stats.false_discovery_control(adjusted[known])
    return adjusted


def select_claims(families: Sequence[Sequence[float]], level: float = 0.05) -> list[list[bool]]:
    """Choose the claims that a report may make so that with 1 − level probability none of them is false.

    This is Holm's procedure over families. With F families, a claim is made where its p-value is at most level / F.
    A family all of whose claims are made gives its part of the level to the others, which are looked at again. Before
    the first false claim no such family can hold a claim that is false, so the families that do hold one are among the
    F that are left, and each errs with a probability of at most level / F. This needs no assumption on how the families
    depend on each other, and holds whichever effects are real. Source: S. Holm, Scandinavian Journal of Statistics 6
    (1979), 65–70, which is the case of one claim in each family.

    Args:
        families: p-values of the report's questions. Those of a family hold for it as a whole, as those of
            `compare_all_pairs` and `compare_with_reference` do; a single comparison is a family of one. NaN is never
            claimed, and a family that has nothing else, as one with a single seed, does not count.
        level: Probability of any false claim in the whole report.
    """
    pending = [[p for p in family if not np.isnan(p)] for family in families]
    threshold = 0.0
    while open_families := [family for family in pending if any(p > threshold for p in family)]:
        if level / len(open_families) == threshold:
            break
        threshold = level / len(open_families)
    return [[p <= threshold for p in family] for family in families]

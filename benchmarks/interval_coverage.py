"""Simulates how often the intervals of sweeps/ hold the true value, and how often reports claim what is not there.

It prints Markdown tables of percentages for 3, 5, 10 and 30 seeds; docs/statistics.md explains them. The values are
normal, skewed (log-normal), or of two humps, as where some seeds never learn: 20 % are 10, the others N(90, 1).
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats
from scipy.interpolate import RegularGridInterpolator

from sweeps.bootstrap import compute_accuracy_intervals, compute_win_probability
from sweeps.comparisons import (
    compare_with_reference,
    compute_difference_interval,
    select_claims,
)
from sweeps.intervals import (
    ShareDifference,
    compute_mean_interval,
    compute_median_interval,
    compute_share_difference,
    compute_share_interval,
)

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]

SEEDS = (3, 5, 10, 30)
SETTINGS = 5  # settings in a family
LEVEL = 0.05
STUCK = 10.0
MANY, REPORTS, FEW = 20_000, 4_000, 1_000  # simulations of formulas, of whole reports, and of bootstraps
RESAMPLES = 1_000


def draw_normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Draw normal values around 90 with standard deviation 1."""
    return generator.normal(90, 1, shape)


def draw_skewed(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Draw log-normal values with median 1."""
    return generator.lognormal(0, 1, shape)


def draw_two_humps(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Draw values of which 20 % are 10, as of seeds that never learnt, and the others normal around 90."""
    values = generator.normal(90, 1, shape)
    values[generator.random(shape) < 0.2] = STUCK
    return values


# name → how to draw, true mean, true median
VALUES: dict[str, tuple[Draw, float, float]] = {
    "normal": (draw_normal, 90, 90),
    "skewed": (draw_skewed, float(np.exp(0.5)), 1),
    "two humps": (draw_two_humps, 74, 90 + float(stats.norm.ppf(0.3 / 0.8))),
}


def measure_coverage(low: Any, high: Any, truth: Any) -> float:
    """Return the percentage of intervals that hold the true value; intervals that are NaN are left out."""
    known = ~np.isnan(low)
    return float(100 * np.mean(((low <= truth) & (truth <= high))[known]))


def measure_mean(draw: Draw, mean: float, clipped: bool, n: int) -> float:
    """Measure Student's interval, clipped to 0 – 100 or not."""
    values = draw(np.random.default_rng(n), (n, MANY))
    found = compute_mean_interval(values, **({"lowest": 0, "highest": 100} if clipped else {}))
    return measure_coverage(found.low, found.high, mean)


def measure_median(draw: Draw, median: float, n: int) -> float:
    """Measure the interval of the median, which lies between order statistics whose ranks depend on n alone."""
    ranks = compute_median_interval(np.arange(n))
    if np.isnan(ranks.low):
        return float("nan")
    values = np.sort(draw(np.random.default_rng(n), (n, MANY)), axis=0)
    return measure_coverage(values[int(ranks.low)], values[int(ranks.high)], median)


def measure_difference(first: Draw, second: Draw, truth: float, paired: bool, n: int) -> float:
    """Measure the interval of a difference; paired settings have a part in common, as large as their own."""
    generator = np.random.default_rng(n)
    common = generator.normal(0, 1, (n, MANY)) if paired else 0
    a, b = first(generator, (n, MANY)) + common, second(generator, (n, MANY)) + common
    found = compute_difference_interval(a, b, paired=paired)
    return measure_coverage(found.low, found.high, truth)


def measure_wins(first: Draw, second: Draw, truth: float, n: int) -> float:
    """Measure the bootstrap interval of the probability that a run of one setting is above one of another."""
    generator = np.random.default_rng(n)
    found = [
        compute_win_probability(first(generator, (n,)), second(generator, (n,)), resamples=RESAMPLES)
        for _ in range(FEW)
    ]
    return measure_coverage(np.array([one.low for one in found]), np.array([one.high for one in found]), truth)


def draw_shifts(values: str, generator: np.random.Generator, n: int) -> Array:
    """Draw how much more easily the networks of n seeds classify; two humps are of networks that only guess."""
    shifts = generator.normal(0, 0.1, n)
    if values == "skewed":
        shifts = 0.1 * (np.exp(0.5) - generator.lognormal(0, 1, n))
    if values == "two humps":
        shifts[generator.random(n) < 0.2] = -np.inf
    return shifts


@cache
def simulate_accuracies(values: str, n: int, images: int = 400) -> dict[str, float]:
    """Measure the three bootstrap intervals of accuracies, where networks differ by seed and images in ease.

    An answer is right with the probability Φ(1.8 + ease + shift), ease being standard normal, or 10 % of a network that
    only guesses. The interval over seeds is to hold the mean over all seeds on the same images, that over images the
    mean over all images of the same networks.
    """
    generator = np.random.default_rng(n)
    all_shifts = draw_shifts(values, np.random.default_rng(1), 2_000)
    all_ease = 1.8 + stats.norm.ppf((np.arange(500) + 0.5) / 500)
    by_ease = compute_share_right(all_ease, all_shifts).mean(axis=0)
    found, truths = [], []
    for _ in range(FEW):
        ease, shifts = 1.8 + generator.normal(0, 1, images), draw_shifts(values, generator, n)
        correct = generator.random((n, images)) < compute_share_right(ease, shifts)
        found.append(compute_accuracy_intervals(correct, resamples=RESAMPLES)[1:])
        of_seeds, of_images = np.interp(ease, all_ease, by_ease).mean(), compute_share_right(all_ease, shifts).mean()
        truths.append((of_seeds, of_images, by_ease.mean()))
    ends, truth = np.array(found), 100 * np.array(truths)
    coverages = (measure_coverage(ends[:, i, 0], ends[:, i, 1], truth[:, i]) for i in range(3))
    return dict(zip(("seeds", "images", "both"), coverages, strict=True))


def measure_accuracy(values: str, which: str, n: int) -> float:
    """Return the coverage of one of the bootstrap intervals of accuracies."""
    return simulate_accuracies(values, n)[which]


def compute_share_right(ease: Array, shifts: Array) -> Array:
    """Return the probability that a network is right about an image, `(networks, images)`."""
    return np.maximum(special.ndtr(ease + shifts[:, None]), 0.1)


@cache
def tabulate_games_howell(settings: int) -> RegularGridInterpolator:
    """Return the logarithm of Games and Howell's over Welch's p-value by its logarithm and 1 / degrees of freedom.

    The studentized range takes milliseconds for each number, and this ratio is smooth.
    """
    logarithms, inverses = np.linspace(-7, -1, 13), np.linspace(0.016, 1, 15)
    p, degrees = 10.0 ** logarithms[:, None], 1 / inverses
    statistics = np.sqrt(2) * stats.t.isf(p / 2, degrees)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the integral may fail where p is nearly zero
        ratio = stats.studentized_range.sf(statistics, settings, degrees) / p
    ratio = np.clip(ratio, 1, settings * (settings - 1) / 2)  # at most Bonferroni's
    return RegularGridInterpolator((logarithms, inverses), np.log(ratio), method="cubic")


def compute_moments(samples: Array) -> tuple[Array, Array, Array]:
    """Return number, mean and sum of squares over seeds, of samples `(settings, seeds, families)` that may have NaN.

    The sum of squares is NaN where all seeds agree, as no p-value follows from them.
    """
    n = np.sum(~np.isnan(samples), axis=1)
    mean = np.nansum(samples, axis=1) / np.maximum(n, 1)
    squares = np.nansum((samples - mean[:, None]) ** 2, axis=1)
    return n, mean, np.where(squares > 1e-9, squares, np.nan)


@cache
def compare_shares(first: int, second: int, n: int) -> ShareDifference:
    """Return the difference of two shares of n."""
    return compute_share_difference(*(compute_share_interval(count, n) for count in (first, second)))


def measure_share_difference(n: int, how: Callable[[Array], np.floating[Any]]) -> float:
    """Measure Newcombe's interval exactly for pairs of 101 true shares; `how` is the mean or the minimum over pairs."""
    shares = np.linspace(0, 1, 101)
    probabilities = np.asarray(stats.binom.pmf(np.arange(n + 1)[:, None], n, shares))
    truths = shares[:, None] - shares
    coverage = np.zeros_like(truths)
    for first, second in product(range(n + 1), repeat=2):
        found = compare_shares(first, second, n)
        holds = (found.low <= truths + 1e-9) & (truths - 1e-9 <= found.high)
        coverage += np.outer(probabilities[first], probabilities[second]) * holds
    return float(100 * how(coverage))


def compute_p(statistics: Array, degrees: Array) -> Array:
    """Return two-sided p-values of Student's t."""
    return np.asarray(2 * stats.t.sf(np.abs(statistics), degrees))


def compare_pairs(first: Array, second: Array) -> Array:
    """Return p-values of settings paired by seed, `(settings, families)`, as `compute_difference` does."""
    n, mean, squares = compute_moments(first - second)
    spread = [compute_moments(np.where(np.isnan(first - second), np.nan, values))[2] for values in (first, second)]
    freedom = np.maximum(n - 1, 1)
    p = compute_p(mean / np.sqrt(squares / freedom / np.maximum(n, 1)), freedom)
    return np.where(np.isnan(spread[0] + spread[1]), np.nan, p)


def adjust_pairs(samples: Array) -> tuple[Array, Array]:
    """Return Welch's p-values of all pairs and Games and Howell's, `(pairs, families)` each.

    The latter are those of `compare_all_pairs`. Those above 0.1 are not adjusted.

    Args:
        samples: Values of shape `(settings, seeds, families)`.
    """
    n, mean, squares = compute_moments(samples)
    freedom = np.maximum(n - 1, 1)
    error = squares / freedom / np.maximum(n, 1)
    i, j = np.triu_indices(len(samples), 1)
    degrees = (error[i] + error[j]) ** 2 / (error[i] ** 2 / freedom[i] + error[j] ** 2 / freedom[j])
    p = compute_p((mean[i] - mean[j]) / np.sqrt(error[i] + error[j]), degrees)
    adjusted, small = p.copy(), p <= 0.1
    at = np.stack([np.log10(np.maximum(p[small], 1e-7)), 1 / degrees[small]], axis=1)
    adjusted[small] *= np.exp(tabulate_games_howell(len(samples))(at))
    return p, adjusted


def measure_all_pairs(draws: Sequence[Draw], means: Sequence[float], n: int) -> float:
    """Measure how often the Games–Howell intervals of a family all hold; means are those of its settings."""
    generator = np.random.default_rng(n)
    samples = np.array([draw(generator, (n, MANY)) - mean for draw, mean in zip(draws, means, strict=True)])
    _, p = adjust_pairs(samples)
    return float(100 * np.mean(~(p <= LEVEL).any(axis=0)))


def compute_dunnett_statistics(samples: Array) -> tuple[Array, Array]:
    """Return Dunnett's statistics against the first setting, `(settings − 1, families)`, and degrees of freedom."""
    n, mean, squares = compute_moments(samples)
    freedom = np.sum(np.where(np.isnan(squares), 0, n - 1), axis=0)
    variance = np.nansum(squares, axis=0) / np.maximum(freedom, 1)
    inverse = 1 / np.where(np.isnan(squares), np.nan, n)
    return np.abs(mean[1:] - mean[0]) / np.sqrt(variance * (inverse[1:] + inverse[0])), freedom


def measure_reference(draws: Sequence[Draw], means: Sequence[float], n: int) -> float:
    """Measure how often Dunnett's intervals of a family all hold, of which the first setting is the reference."""
    generator = np.random.default_rng(n)
    one = generator.normal(size=(len(draws), n))
    contrast = compare_with_reference(dict(zip("abcde", one, strict=True)), "a")[0]
    critical = (contrast.high - contrast.low) / 2 / np.sqrt(one.var(axis=1, ddof=1).mean() * 2 / n)
    samples = np.array([draw(generator, (n, MANY)) - mean for draw, mean in zip(draws, means, strict=True)])
    return float(100 * np.mean(~(compute_dunnett_statistics(samples)[0] > critical).any(axis=0)))


def measure_shares(n: int, how: Callable[[Array], np.floating[Any]]) -> float:
    """Measure Wilson's interval exactly for 2,001 true shares from 0 to 1; `how` is the mean or the minimum."""
    shares = np.linspace(0, 1, 2001)
    coverage = np.zeros_like(shares)
    for successes in range(n + 1):
        found = compute_share_interval(successes, n)
        coverage += stats.binom.pmf(successes, n, shares) * ((found.low <= shares) & (shares <= found.high))
    return float(100 * how(coverage))


@cache
def simulate_reports(values: str, n: int, apart: bool) -> dict[str, float]:
    """Return the percentages of reports without any effect that claim one, by how they choose their claims.

    A report makes 27 comparisons in 13 families: all pairs of five architectures, and five against a reference at
    another rate; in each architecture, two activations and two rates, paired by seed; a schedule against Adam,
    unpaired; all pairs of three poolings.

    Args:
        values: Name of the values, from `VALUES`.
        n: Number of seeds of each setting.
        apart: True if means are compared over the seeds that learnt, and the shares of these in a family of their own.
    """
    generator = np.random.default_rng(n)
    reports = VALUES[values][0](generator, (19, n, REPORTS))
    learnt = reports != STUCK
    if apart:
        reports[~learnt] = np.nan
    first, second, sigmoid, schedule, poolings = np.split(reports, [5, 10, 15, 16])
    (pairs, adjusted), (three, adjusted_three) = adjust_pairs(first), adjust_pairs(poolings)
    paired = np.concatenate([compare_pairs(first, sigmoid), compare_pairs(first, second)])
    unpaired, _ = adjust_pairs(np.concatenate([schedule, first[:1]]))
    statistics, freedom = compute_dunnett_statistics(second)
    reference = compute_p(statistics, freedom)
    raw = np.concatenate([pairs, reference, paired, unpaired, three])
    controlled = stats.false_discovery_control(np.nan_to_num(raw, nan=1.0), axis=0)
    claims = {"each comparison at 5 %": int((raw <= LEVEL).any(axis=0).sum())}
    claims["false discovery control of all"] = int((controlled <= LEVEL).any(axis=0).sum())
    claims["`select_claims`"] = 0
    for i in range(REPORTS):
        dunnett = reference[:, i].tolist()
        if np.nanmin([*dunnett, 1]) <= LEVEL / 13:  # else the adjusted ones, which are not smaller, are too large too
            family = dict(zip("abcde", second[:, :, i], strict=True))
            dunnett = [contrast.p for contrast in compare_with_reference(family, "a")]
        singles = [[float(p)] for p in (*paired[:, i], unpaired[0, i])]
        families = [adjusted[:, i].tolist(), dunnett, adjusted_three[:, i].tolist(), *singles]
        if apart:
            families.append(compare_all_shares(learnt[:, :, i].sum(axis=1).tolist(), n))
        claims["`select_claims`"] += any(map(any, select_claims(families, LEVEL)))
    return {how: 100 * number / REPORTS for how, number in claims.items()}


def compare_all_shares(learnt: list[int], n: int) -> list[float]:
    """Return the p-values of a report's comparisons of the seeds that learnt, as one family, after Bonferroni."""
    pairs = [*combinations(learnt[:5], 2), *((learnt[5], other) for other in learnt[6:10])]
    pairs += [*zip(learnt[:5], learnt[10:15], strict=True), *zip(learnt[:5], learnt[5:10], strict=True)]
    pairs += [(learnt[0], learnt[15]), *combinations(learnt[16:], 2)]
    return [len(pairs) * compare_shares(*sorted(pair), n).p for pair in pairs]


def measure_reports(values: str, apart: bool, how: str, n: int) -> float:
    """Return the percentage of reports without any effect that claim one."""
    return simulate_reports(values, n, apart)[how]


Row = tuple[str, str, Callable[[int], float]]


def list_means() -> Iterator[Row]:
    """Yield the rows of intervals of one setting."""
    for name, (draw, mean, _) in VALUES.items():
        yield "mean, Student's t", name, partial(measure_mean, draw, mean, False)
    for name, (draw, mean, _) in VALUES.items():
        yield "the same, clipped to 0 – 100", name, partial(measure_mean, draw, mean, True)
    for name, (draw, _, median) in VALUES.items():
        yield "median", name, partial(measure_median, draw, median)
    yield "share, Wilson, mean over true shares", "binomial", partial(measure_shares, how=np.mean)
    yield "share, Wilson, worst true share", "binomial", partial(measure_shares, how=np.min)
    for which, label in (("seeds", "seeds"), ("images", "images"), ("both", "seeds × images")):
        for name in VALUES:
            yield f"accuracy, bootstrap of {label}", name, partial(measure_accuracy, name, which)


def list_differences() -> Iterator[Row]:
    """Yield the rows of intervals of two settings."""

    def draw_wide(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
        return generator.normal(90, 3, shape)

    def draw_better(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
        return generator.normal(90 + np.sqrt(2) * stats.norm.ppf(0.9), 1, shape)

    def draw_better_skewed(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
        return generator.lognormal(np.sqrt(2) * stats.norm.ppf(0.9), 1, shape)

    for test, paired in (("paired t", True), ("Welch", False)):
        for name, (draw, mean, _) in VALUES.items():
            yield f"difference, {test}", f"both {name}", partial(measure_difference, draw, draw, 0.0, paired)
            if name != "normal":
                other = partial(measure_difference, draw, draw_normal, mean - 90, paired)
                yield f"difference, {test}", f"{name} and normal", other
        wide = partial(measure_difference, draw_wide, draw_normal, 0.0, paired)
        yield f"difference, {test}", "normal, one with three times the spread", wide
    yield "difference of shares, Newcombe, mean", "binomial", partial(measure_share_difference, how=np.mean)
    yield "difference of shares, Newcombe, worst", "binomial", partial(measure_share_difference, how=np.min)
    for name, (draw, *_) in VALUES.items():
        yield "probability of winning, bootstrap", f"both {name}", partial(measure_wins, draw, draw, 0.5)
    yield "probability of winning, bootstrap", "normal, wins 90 %", partial(measure_wins, draw_better, draw_normal, 0.9)
    skewed = partial(measure_wins, draw_better_skewed, draw_skewed, 0.9)
    yield "probability of winning, bootstrap", "skewed, wins 90 %", skewed
    wins = 0.8 / 2
    yield (
        "probability of winning, bootstrap",
        "two humps and normal, wins 40 %",
        partial(measure_wins, draw_two_humps, draw_normal, wins),
    )


def list_families() -> Iterator[Row]:
    """Yield the rows of families of five settings: the percentage of families all of whose intervals hold."""

    def draw_spread(sd: float) -> Draw:
        return lambda generator, shape: generator.normal(90, sd, shape)

    families: dict[str, tuple[list[Draw], list[float]]] = {
        f"all {name}": ([draw] * SETTINGS, [mean] * SETTINGS) for name, (draw, mean, _) in VALUES.items()
    }
    for spreads in ((1, 2, 3, 4, 5), (5, 4, 3, 2, 1)):
        draws: list[Draw] = [draw_spread(sd) for sd in spreads]
        families[f"normal, spreads {spreads[0]} to {spreads[-1]}"] = (draws, [90] * SETTINGS)
    families["normal, and the last with two humps"] = ([*[draw_normal] * 4, draw_two_humps], [*[90] * 4, 74])
    for name, (draws, means) in families.items():
        yield "all pairs, Games–Howell", name, partial(measure_all_pairs, draws, means)
    for name, (draws, means) in families.items():
        yield "all against the first, Dunnett", name, partial(measure_reference, draws, means)


def list_reports() -> Iterator[Row]:
    """Yield the rows of whole reports without any effect: the percentage that claims one."""
    for how in ("each comparison at 5 %", "false discovery control of all", "`select_claims`"):
        for name in VALUES:
            yield how, name, partial(measure_reports, name, False, how)
    yield how, "two humps, seeds that learnt apart", partial(measure_reports, "two humps", True, how)


def print_table(heading: str, rows: Iterator[Row]) -> None:
    """Print rows as a Markdown table, one line at a time."""
    print(f"| {heading} | values | {' | '.join(f'n = {n}' for n in SEEDS)} |")
    print(f"|{'---|' * (2 + len(SEEDS))}")
    for statistic, values, measure in rows:
        cells = [measure(n) for n in SEEDS]
        text = " | ".join("–" if np.isnan(cell) else f"{cell:.1f}" for cell in cells)
        print(f"| {statistic} | {values} | {text} |", flush=True)
    print()


TABLES = {
    "means": ("coverage of one setting, %", list_means),
    "differences": ("coverage of a difference, %", list_differences),
    "families": ("coverage of a family, %", list_families),
    "reports": ("reports that claim an effect, %", list_reports),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=TABLES, help="print one of the tables (default: all)")
    only = parser.parse_args().only
    for table in [only] if only else TABLES:
        print_table(TABLES[table][0], TABLES[table][1]())

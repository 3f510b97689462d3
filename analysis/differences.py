"""Settings with their values over seeds, the mean of each, and the differences of all pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis.answers import Estimate
from sweeps.comparisons import NO_SPREAD, compute_difference
from sweeps.intervals import compute_mean_interval, compute_share_difference, compute_share_interval
from sweeps.power import compute_detectable_difference


class Quantity(NamedTuple):
    """A quantity that settings are compared by.

    Attributes:
        name: Its name in sentences.
        unit: Unit of its values.
        difference_unit: Unit of their differences.
        highest: Its greatest possible value; the least is 0.
        most_digits: Decimals at most.
    """

    name: str
    unit: str
    difference_unit: str
    highest: float
    most_digits: int


TEST_ACCURACY = Quantity("test accuracy", "%", "percentage points", 100, 2)
VALIDATION_ACCURACY = Quantity("validation accuracy", "%", "percentage points", 100, 2)
TRAINING_LOSS = Quantity("training loss", "", "", math.inf, 3)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings with a value for each seed.

    Attributes:
        names: Names of the settings.
        values: Values, `(settings, seeds)`; NaN where a trial is missing or diverged.
        diverged: Whether a trial that the value needs has diverged, `(settings, seeds)`.
        stuck: Whether a trial that the value needs is stuck at chance, `(settings, seeds)`.
        quantity: What the values are.
        paired: True if settings are compared seed by seed, because a seed gives them the same initial weights.
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]
    diverged: NDArray[np.bool_]
    stuck: NDArray[np.bool_]
    quantity: Quantity
    paired: bool

    def count_stuck(self) -> tuple[list[int], list[int]]:
        """Return the number of stuck seeds of each setting, and of those that trained to the end."""
        return self.stuck.sum(axis=1).tolist(), (self.stuck | ~np.isnan(self.values)).sum(axis=1).tolist()

    def list_stuck(self) -> set[str]:
        """Return the names of the settings that have a value of a stuck trial."""
        present = self.stuck & ~np.isnan(self.values)
        return {name for name, row in zip(self.names, present, strict=True) if row.any()}

    def keep_learnt(self) -> Settings:
        """Return the settings without the values that need a stuck trial."""
        return replace(self, values=np.where(self.stuck, np.nan, self.values))


@dataclass(frozen=True)
class Comparison:
    """Settings with the mean of each, and the difference of each pair.

    Attributes:
        settings: The settings.
        means: Mean over seeds by name.
        pairs: Difference of each pair, the first minus the second, by the pair's names in the settings' order.
        spreads: Standard deviation for `compute_detectable_difference`, for each pair.
        p_values: p-value of each pair, in their order; NaN where it could not be compared.
    """

    settings: Settings
    means: Mapping[str, Estimate]
    pairs: Mapping[tuple[str, str], Estimate]
    spreads: Mapping[tuple[str, str], float]
    p_values: Sequence[float]

    def get_difference(self, first: str, second: str) -> Estimate:
        """Return the difference of two settings, the first minus the second."""
        if (first, second) in self.pairs:
            return self.pairs[first, second]
        return replace(negate(self.pairs[second, first]), name=f"{first} minus {second}")

    def list_shown(self, held: Sequence[bool]) -> list[tuple[str, str]]:
        """Return the pairs whose difference was shown, the higher setting first.

        Args:
            held: Whether the claim of a difference holds, by pair.
        """
        shown = [pair for pair, holds in zip(self.pairs, held, strict=True) if holds]
        return [(a, b) if self.pairs[a, b].value > 0 else (b, a) for a, b in shown]

    def find_smallest(self, first: str, second: str, level: float) -> float:
        """Return the smallest true difference of two settings that would be found with a power of 80 %.

        It is infinite if not even the largest possible difference would, and NaN if nothing is known of the spread, or
        if seeds are stuck, which is not the normal spread that the power is computed for.

        Args:
            first: Name of a setting.
            second: Name of another.
            level: Level of a single comparison, see `Claims`.
        """
        pair = (first, second) if (first, second) in self.pairs else (second, first)
        if math.isnan(self.pairs[pair].low) or self.settings.list_stuck() & {*pair}:
            return math.nan
        effect = compute_detectable_effect(self.pairs[pair].n, paired=self.settings.paired, level=level)
        smallest = self.spreads[pair] * effect
        return math.inf if smallest > self.settings.quantity.highest else smallest


@cache
def compute_detectable_effect(n: int, *, paired: bool, level: float) -> float:
    """Return the smallest difference that n seeds would find with a power of 80 %, in standard deviations."""
    return compute_detectable_difference(1.0, n, paired=paired, level=level)


def negate(difference: Estimate) -> Estimate:
    """Return a difference with the opposite sign."""
    return replace(difference, value=-difference.value, low=-difference.high, high=-difference.low)


def gather_settings(
    values: xr.DataArray, data: xr.Dataset, axis: str, quantity: Quantity, *, paired: bool = True, form: str = "{}"
) -> Settings:
    """Gather the settings along an axis, each averaged over all other axes but the seed, where none is missing.

    Args:
        values: Values with the dimensions of `data` other than `step`; NaN where a trial is missing or diverged.
        data: Results that they were taken from.
        axis: Axis whose values are the settings.
        quantity: What the values are.
        paired: Whether they are compared seed by seed.
        form: Format of the settings' names, with {} for a value of the axis.
    """
    others = [str(dim) for dim in values.dims if dim not in ("seed", axis)]
    means = values.mean(others, skipna=False).transpose(axis, "seed").to_numpy()
    diverged, stuck = (data[name].any(others).transpose(axis, "seed").to_numpy() for name in ("diverged", "stuck"))
    return Settings(
        names=tuple(form.format(value) for value in data[axis].values.tolist()),
        values=means,
        diverged=diverged,
        stuck=stuck & ~np.isnan(means),
        quantity=quantity,
        paired=paired,
    )


def join_settings(runs: Mapping[str, xr.Dataset], quantity: Quantity) -> Settings:
    """Gather the test accuracies of settings whose trials are in data sets of their own.

    Args:
        runs: Finished trials along `seed` by the setting's name. Those with the same seed are paired.
        quantity: What test accuracies are called.
    """
    seeds = sorted({int(seed) for found in runs.values() for seed in found.seed.values})
    arrays = {
        field: np.array([found[name].reindex(seed=seeds, fill_value=fill).values for found in runs.values()])
        for field, name, fill in (
            ("values", "test_accuracy", np.nan),
            ("diverged", "diverged", False),
            ("stuck", "stuck", False),
        )
    }
    return Settings(names=tuple(runs), quantity=quantity, paired=True, **arrays)


def compare_settings(settings: Settings) -> Comparison:
    """Compute the means of settings and compare all pairs: seed by seed, or by Welch's test.

    Values of seeds of which some are stuck have two humps, and a t test is wrong where by chance all seeds of one
    setting are stuck and none of the other. So a pair with stuck seeds also has to pass a test of how many are stuck.
    """
    quantity, values = settings.quantity, dict(zip(settings.names, settings.values, strict=True))
    means = {name: estimate_mean(f"{quantity.name} of {name}", row, quantity) for name, row in values.items()}
    found = {
        (a, b): compute_difference(values[a], values[b], paired=settings.paired, permute=False)
        for a, b in combinations(settings.names, 2)
    }
    pairs = {
        (a, b): Estimate(
            name=f"{a} minus {b}",
            value=difference.estimate,
            low=float(np.maximum(difference.low, -quantity.highest)),  # no difference can be larger than that
            high=float(np.minimum(difference.high, quantity.highest)),
            n=difference.n,
            unit=quantity.difference_unit,
        )
        for (a, b), difference in found.items()
    }
    spreads = {pair: difference.sd for pair, difference in found.items()}
    p_values = [compute_p_value(settings, *pair, difference.p) for pair, difference in found.items()]
    return Comparison(settings, means, pairs, spreads, p_values)


def compute_p_value(settings: Settings, first: str, second: str, p_value: float) -> float:
    """Return the p-value of a pair of settings: with stuck seeds, the larger one of the two tests that it has to pass.

    Args:
        settings: The settings.
        first: Name of one of them.
        second: Name of the other.
        p_value: p-value of their means; NaN if the seeds of one show no spread, as where all name the same class.
    """
    rows = [settings.names.index(name) for name in (first, second)]
    present = ~np.isnan(settings.values[rows])
    stuck, n = (settings.stuck[rows] & present).sum(axis=1).tolist(), present.sum(axis=1).tolist()
    return float(np.fmax(p_value, compare_stuck(*stuck, *n))) if any(stuck) else p_value


@cache
def compare_stuck(first: int, second: int, n_first: int, n_second: int) -> float:
    """Return the p-value of two settings having the same share of stuck seeds.

    Args:
        first: Number of stuck seeds of one setting.
        second: Number of stuck seeds of the other.
        n_first: Number of all seeds of the one.
        n_second: Number of all seeds of the other.
    """
    shares = compute_share_interval(first, n_first), compute_share_interval(second, n_second)
    return compute_share_difference(*shares).p


def estimate_mean(name: str, values: NDArray[np.float64], quantity: Quantity) -> Estimate:
    """Return the mean of a quantity over seeds, `(seeds,)`, with its interval unless all agree; NaN is left out."""
    interval = compute_mean_interval(values, lowest=0, highest=quantity.highest)
    mean, low, high, n = (float(number) for number in interval)
    if n > 1 and not np.nanstd(values) > NO_SPREAD * abs(mean):
        low = high = math.nan
    return Estimate(name=name, value=mean, low=low, high=high, n=int(n), unit=quantity.unit)


def average_last_epoch(curves: xr.DataArray, epochs: int) -> xr.DataArray:
    """Return the means of curves over the records of the last of their epochs; NaN for curves that end before it."""
    records = max(1, round(curves.sizes["step"] / epochs))
    return curves.isel(step=slice(-records, None)).mean("step", skipna=False)

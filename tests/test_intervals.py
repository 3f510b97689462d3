"""Means, medians and shares over seeds, held against hand-computed values, SciPy and simulation."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from sweeps.intervals import (
    compute_expected_best,
    compute_expected_best_of_noise,
    compute_mean_interval,
    compute_median_interval,
    compute_share_difference,
    compute_share_interval,
    format_interval,
    format_mean,
)

ACCURACIES = st.lists(st.floats(0, 100), min_size=2, max_size=12)
SIMULATIONS = 20_000
TOLERANCE = 0.006  # four standard errors of a coverage of 0.95 from that many simulations


def measure_coverage(low: NDArray[Any], high: NDArray[Any], truth: float) -> float:
    return float(np.mean((low <= truth) & (truth <= high)))


def test_the_interval_of_the_mean_equals_that_of_scipy() -> None:
    values = np.random.default_rng(0).normal(90, 2, (10, 3))
    interval = compute_mean_interval(values)
    expected = stats.ttest_1samp(values, 0, axis=0).confidence_interval(0.95)
    np.testing.assert_allclose(interval.mean, values.mean(axis=0))
    np.testing.assert_allclose([interval.low, interval.high], [expected.low, expected.high])
    assert interval.n.tolist() == [10, 10, 10]


def test_missing_values_are_left_out_and_counted() -> None:
    interval = compute_mean_interval([[1.0, np.nan], [3.0, 5.0], [np.nan, np.nan]])
    assert interval.mean.tolist() == [2.0, 5.0]
    assert interval.n.tolist() == [2, 1]
    assert np.isnan([interval.low[1], interval.high[1]]).all()


def test_no_values_give_no_mean() -> None:
    interval = compute_mean_interval([np.nan, np.nan])
    assert np.isnan(interval.mean)
    assert interval.n == 0


@pytest.mark.parametrize("n", [3, 5, 10, 30])
def test_95_percent_of_intervals_hold_the_true_mean(n: int) -> None:
    """Clipping at the true mean itself is the hardest case, and costs nothing."""
    values = np.random.default_rng(n).normal(7.0, 3.0, (n, SIMULATIONS))
    plain, clipped = compute_mean_interval(values), compute_mean_interval(values, lowest=7.0, highest=7.0)
    assert measure_coverage(plain.low, plain.high, 7.0) == pytest.approx(0.95, abs=TOLERANCE)
    assert measure_coverage(clipped.low, clipped.high, 7.0) >= measure_coverage(plain.low, plain.high, 7.0)


@given(ACCURACIES, st.floats(0, 100))
def test_clipping_keeps_an_interval_in_the_range_and_costs_no_coverage(values: list[float], truth: float) -> None:
    plain, clipped = compute_mean_interval(values), compute_mean_interval(values, lowest=0, highest=100)
    assert 0 <= clipped.low <= clipped.high <= 100
    assert clipped.low - 1e-9 <= clipped.mean <= clipped.high + 1e-9
    assert (clipped.low <= truth <= clipped.high) == (plain.low <= truth <= plain.high)


def test_an_interval_ends_where_the_quantity_does() -> None:
    interval = compute_mean_interval([9.8, 94.9, 95.0], lowest=0, highest=100)
    assert (float(interval.low), float(interval.high)) == (0, 100)
    assert interval.mean == pytest.approx(66.5666667)


def test_a_mean_is_shown_with_its_clipped_interval() -> None:
    assert format_mean([93.0, 95.0, 97.0]) == "95.00 (90.03 – 99.97)"  # t is 4.303 for two degrees of freedom
    assert format_mean([9.8, 94.9, 95.0]) == "66.57 (0.00 – 100.00)"
    assert format_mean([1.0, 3.0], highest=np.inf) == "2.00 (0.00 – 14.71)"
    assert format_mean([1.0]) == "1.00"
    assert format_interval(93.1, 96.214) == "93.10 – 96.21"


@pytest.mark.parametrize("n", range(6, 34))
def test_the_interval_of_the_median_is_the_narrowest_that_covers_95_percent(n: int) -> None:
    """Coverage is exact: the number of values below the true median is binomial, whatever the distribution."""
    median, low, high, count = compute_median_interval(np.arange(n)[::-1])
    assert (median, count) == ((n - 1) / 2, n)
    assert low == n - 1 - high  # it is symmetric
    rank = int(low) + 1  # rank of the lower order statistic, counted from 1
    assert 1 - 2 * stats.binom.cdf(rank - 1, n, 0.5) >= 0.95
    assert 1 - 2 * stats.binom.cdf(rank, n, 0.5) < 0.95


@pytest.mark.parametrize("n", [6, 10, 30])
def test_95_percent_of_intervals_hold_the_median_of_skewed_values(n: int) -> None:
    _, low, high, _ = compute_median_interval(np.arange(n))
    values = np.sort(np.random.default_rng(n).lognormal(size=(n, SIMULATIONS)), axis=0)
    assert measure_coverage(values[int(low)], values[int(high)], 1.0) >= 0.95 - TOLERANCE


@given(st.lists(st.floats(-100, 100), min_size=6, max_size=20))
def test_the_interval_of_the_median_is_the_same_for_any_scale_that_keeps_the_order(values: list[float]) -> None:
    plain, scaled = compute_median_interval(values), compute_median_interval(np.exp(np.array(values) / 10))
    assert plain.low <= plain.median <= plain.high
    assert (scaled.low, scaled.high) == pytest.approx((np.exp(plain.low / 10), np.exp(plain.high / 10)))


def test_fewer_than_six_values_have_a_median_and_no_interval() -> None:
    median, low, high, n = compute_median_interval([3.0, np.nan, 1.0, 2.0, 9.0, 7.0])
    assert (median, n) == (3.0, 5)
    assert np.isnan([low, high]).all()
    assert np.isnan(compute_median_interval([])[:3]).all()


def test_the_interval_of_a_share_equals_wilsons_formula() -> None:
    z = 1.959963984540054
    centre, half = (7 + z**2 / 2) / (10 + z**2), z / (10 + z**2) * (7 * 3 / 10 + z**2 / 4) ** 0.5
    assert compute_share_interval(7, 10) == pytest.approx((0.7, centre - half, centre + half, 10))
    assert compute_share_interval(0, 3)[:2] == (0, 0)
    assert np.isnan(compute_share_interval(0, 0)[:3]).all()


@pytest.mark.parametrize("n", [3, 5, 10, 30])
def test_wilsons_interval_covers_95_percent_on_average_and_82_percent_at_worst(n: int) -> None:
    """Coverage is exact for each true share; the worst one is near 0 or 1."""
    shares = np.linspace(0, 1, 2001)
    intervals = [compute_share_interval(successes, n) for successes in range(n + 1)]
    coverage = sum(
        stats.binom.pmf(successes, n, shares) * ((interval.low <= shares) & (shares <= interval.high))
        for successes, interval in enumerate(intervals)
    )
    assert 0.93 <= np.mean(coverage) <= 0.97
    assert 0.82 <= np.min(coverage) <= 0.85


def test_a_difference_of_shares_by_hand() -> None:
    """All and none of five are furthest apart; if half of all seeds learn, this has the probability 2 / 2¹⁰."""
    found = compute_share_difference(compute_share_interval(5, 5), compute_share_interval(0, 5))
    assert found.p == pytest.approx(2 / 2**10)
    assert (found.estimate, found.high) == (1, pytest.approx(1))
    low = 1 - compute_share_interval(5, 5).low  # as far as Wilson's intervals go, together as errors of a sum
    assert found.low == pytest.approx(1 - np.hypot(low, low))


def test_a_difference_of_shares_equals_newcombes_example() -> None:
    """Newcombe (1998), table II (a): 56 of 70 against 48 of 80, method 10: 0.0524 to 0.3339."""
    found = compute_share_difference(compute_share_interval(56, 70), compute_share_interval(48, 80))
    assert (found.estimate, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert np.isnan(compute_share_difference(compute_share_interval(0, 0), compute_share_interval(1, 2))).all()


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=8), st.data())
def test_the_expected_best_is_the_mean_over_all_choices(values: list[float], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(values)))
    expected = np.mean([max(choice) for choice in combinations(values, n)])
    assert compute_expected_best([*values, np.nan], n) == pytest.approx(expected, abs=1e-9)


def test_the_expected_best_is_unbiased() -> None:
    samples = np.random.default_rng(0).normal(size=(4_000, 5))
    estimates = [compute_expected_best(sample, 3) for sample in samples]
    assert np.mean(estimates) == pytest.approx(1.5 / np.sqrt(np.pi), abs=4 * np.std(estimates) / np.sqrt(4_000))


def test_the_expected_best_of_more_runs_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="best of 4 runs cannot be estimated from 3 values"):
        compute_expected_best([1.0, 2.0, 3.0, np.nan], 4)


@pytest.mark.parametrize(("n", "expected"), [(1, 0), (2, np.pi**-0.5), (3, 1.5 * np.pi**-0.5), (10, 1.5387527)])
def test_the_best_of_noise_is_as_in_the_tables_of_order_statistics(n: int, expected: float) -> None:
    """The sample's standard deviation is 1, and √(2/π) of the true one on average for two values."""
    values = np.array([5 - 0.5**0.5, np.nan, 5 + 0.5**0.5])
    assert compute_expected_best_of_noise(values, n) == pytest.approx(5 + expected * np.sqrt(np.pi / 2))
    assert np.isnan(compute_expected_best_of_noise([1.0], n))

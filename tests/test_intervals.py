from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sweeps.intervals import compute_mean_interval, compute_share_interval, format_mean


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


@pytest.mark.parametrize("n", [3, 5, 10])
def test_95_percent_of_intervals_hold_the_true_mean(n: int) -> None:
    """Simulate 20,000 samples of n normal values, and count the intervals that hold the true mean."""
    values = np.random.default_rng(n).normal(7.0, 3.0, (n, 20_000))
    interval = compute_mean_interval(values)
    coverage = float(np.mean((interval.low <= 7.0) & (interval.high >= 7.0)))
    assert coverage == pytest.approx(0.95, abs=0.006)  # four standard errors of the simulation


def test_a_mean_is_shown_with_half_the_width_of_its_interval() -> None:
    assert format_mean([1.0, 3.0]) == "2.00 ± 12.71"
    assert format_mean([1.0]) == "1.00"


def test_an_interval_ends_where_the_quantity_does() -> None:
    interval = compute_mean_interval([9.8, 94.9, 95.0], lowest=0, highest=100)
    assert (interval.low, interval.high) == (0, 100)
    assert interval.mean == pytest.approx(66.5666667)


def test_the_interval_of_a_share_equals_wilsons_formula() -> None:
    z = 1.959963984540054
    centre, half = (7 + z**2 / 2) / (10 + z**2), z / (10 + z**2) * (7 * 3 / 10 + z**2 / 4) ** 0.5
    assert compute_share_interval(7, 10) == pytest.approx((0.7, centre - half, centre + half, 10))
    assert compute_share_interval(0, 3)[:2] == (0, 0)
    assert np.isnan(compute_share_interval(0, 0)[:3]).all()

"""Bootstrap intervals, held against slower and plainer ones, and against simulation."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sweeps.bootstrap import compute_accuracy_intervals, compute_widening, compute_win_probability, draw_counts

VALUES = st.lists(st.floats(0, 100), min_size=2, max_size=6)


def test_a_bootstrap_sample_has_n_things_each_equally_often() -> None:
    counts = draw_counts(np.random.default_rng(0), 7, 20_000)
    assert (counts.sum(axis=1) == 7).all()
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.03)
    np.testing.assert_allclose(counts.var(axis=0), 6 / 7, atol=0.05)


def test_the_intervals_of_an_accuracy_are_those_of_drawing_seeds_and_images() -> None:
    generator = np.random.default_rng(0)
    correct = generator.random((20, 150)) < generator.uniform(0.6, 0.9, (20, 1))
    found = compute_accuracy_intervals(correct, resamples=20_000)
    mean, widening = correct.mean(), compute_widening(20, 0.95)
    seeds = [generator.integers(0, 20, 20) for _ in range(5_000)]
    images = [generator.integers(0, 150, 150) for _ in range(5_000)]
    of_seeds = np.array([correct[drawn].mean() for drawn in seeds])
    of_images = [correct[:, drawn].mean() for drawn in images]
    of_both = np.array([correct[np.ix_(*drawn)].mean() for drawn in zip(seeds, images, strict=True)])
    assert found.accuracy == pytest.approx(100 * mean)
    for interval, means in (
        (found.seeds, mean + widening * (of_seeds - mean)),
        (found.images, of_images),
        (found.both, of_both + (widening - 1) * (of_seeds - mean)),
    ):
        np.testing.assert_allclose(interval, 100 * np.quantile(means, [0.025, 0.975]), atol=0.4)


def test_the_widening_gives_students_interval() -> None:
    values = np.random.default_rng(1).normal(size=200)
    half = compute_widening(200, 0.95) * stats.norm.ppf(0.975) * values.std() / np.sqrt(200)
    expected = stats.ttest_1samp(values, 0).confidence_interval().high - values.mean()
    assert half == pytest.approx(expected)


def test_one_seed_says_nothing_of_other_seeds_and_equal_answers_nothing_at_all() -> None:
    one = compute_accuracy_intervals([[True, True, False, True]])
    assert one.accuracy == 75
    assert one.images.low < 75 < one.images.high
    assert np.isnan([*one.seeds, *one.both]).all()
    perfect = compute_accuracy_intervals(np.ones((3, 50), bool))
    assert perfect.accuracy == 100
    assert np.isnan([*perfect.seeds, *perfect.images, *perfect.both]).all()


def test_intervals_are_the_same_every_time_and_take_little_memory() -> None:
    correct = np.random.default_rng(0).random((10, 10_000)) < 0.9
    tracemalloc.start()
    first = compute_accuracy_intervals(correct, resamples=200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    assert compute_accuracy_intervals(correct, resamples=200) == first
    assert compute_accuracy_intervals(correct, resamples=200, seed=1) != first


def test_seeds_and_images_together_are_wider_and_hold_the_true_accuracy() -> None:
    """Networks differ by seed, images in difficulty; in 300 simulations one error more or less is 0.3 %."""
    generator = np.random.default_rng(0)
    held = []
    for _ in range(300):
        ease = generator.normal(1.5, 1, 100) + generator.normal(0, 0.3, (10, 1))
        correct = ease + generator.normal(0, 1, (10, 100)) > 0
        found = compute_accuracy_intervals(correct, resamples=400)
        assert found.both.high - found.both.low > found.images.high - found.images.low
        held.append(found.both.low / 100 <= stats.norm.cdf(1.5 / np.sqrt(2.09)) <= found.both.high / 100)
    assert np.mean(held) >= 0.93


def test_the_probability_of_winning_counts_ties_half() -> None:
    """By hand: 3 beats 0; 4 beats 0 and ties with 4; 5 beats 0 and 4. These are 4.5 of 9."""
    found = compute_win_probability([3, 4, 5, np.nan], [0, 4, 6])
    assert (found.probability, found.n) == (0.5, 3)
    mann_whitney = stats.mannwhitneyu([3, 4, 5], [0, 4, 6]).statistic / 9
    assert found.probability == pytest.approx(mann_whitney)


@given(VALUES, VALUES)
def test_the_interval_of_winning_holds_the_estimate_and_mirrors(first: list[float], second: list[float]) -> None:
    found = compute_win_probability(first, second, resamples=200)
    if {*first} == {*second} and len({*first}) == 1:
        assert np.isnan([found.low, found.high]).all()
    else:
        assert 0 <= found.low <= found.probability <= found.high <= 1
        assert found.low < found.high
    assert compute_win_probability(second, first).probability == pytest.approx(1 - found.probability)


def test_one_seed_gives_no_interval_of_winning() -> None:
    found = compute_win_probability([2.0], [1.0, 0.0])
    assert (found.probability, found.n) == (1, 1)
    assert np.isnan([found.low, found.high]).all()
    assert np.isnan(compute_win_probability([], [1.0]).probability)


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
def test_95_percent_of_intervals_hold_the_probability_of_winning(shift: float) -> None:
    generator = np.random.default_rng(int(shift))
    truth = stats.norm.cdf(shift / np.sqrt(2))
    found = [
        compute_win_probability(generator.normal(shift, 1, 10), generator.normal(0, 1, 10), resamples=400)
        for _ in range(600)
    ]
    assert np.mean([interval.low <= truth <= interval.high for interval in found]) >= 0.95

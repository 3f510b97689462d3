"""Differences that a number of seeds can show, held against published tables and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.comparisons import compute_difference_interval
from sweeps.power import compute_detectable_difference, compute_power, compute_seeds_needed


@pytest.mark.parametrize(
    ("difference", "paired", "seeds"),
    [(0.2, False, 394), (0.5, False, 64), (0.8, False, 26), (0.2, True, 199), (0.5, True, 34), (0.8, True, 15)],
)
def test_the_seeds_needed_are_those_of_the_textbooks(difference: float, paired: bool, seeds: int) -> None:
    """Cohen's small, medium and large effects with 80 % power, two-sided 5 %, as G*Power prints them too."""
    assert compute_seeds_needed(3 * difference, 3, paired=paired) == seeds
    assert compute_seeds_needed(-3 * difference, 3, paired=paired) == seeds


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("n", [3, 5, 10, 30])
def test_the_detectable_difference_is_found_four_times_in_five(n: int, paired: bool) -> None:
    """The difference is added to normal values; four standard errors of the simulation are 1.2 %."""
    difference = compute_detectable_difference(2.0, n, paired=paired)
    values = np.random.default_rng(n).normal(0, 2 / np.sqrt(2) if paired else 2, (2, n, 20_000))
    found = np.mean(compute_difference_interval(values[0] + difference, values[1], paired=paired).p < 0.05)
    assert found == pytest.approx(0.8, abs=0.012)


@given(st.integers(2, 200), st.booleans(), st.floats(0.01, 100))
def test_the_seeds_needed_for_the_detectable_difference_are_the_seeds(n: int, paired: bool, sd: float) -> None:
    difference = compute_detectable_difference(sd, n, paired=paired)
    assert compute_seeds_needed(difference * 1.0001, sd, paired=paired) <= n
    assert compute_power(difference, sd, n, paired=paired) == pytest.approx(0.8)


@pytest.mark.parametrize("paired", [True, False])
def test_a_huge_difference_needs_two_seeds(paired: bool) -> None:
    assert compute_power(1e6, 1e-3, 1_000, paired=paired) == 1
    assert compute_seeds_needed(1e6, 1e-3, paired=paired) == 2


def test_without_a_difference_the_power_is_the_level() -> None:
    assert compute_power(0, 1, 10, paired=True) == pytest.approx(0.05)
    assert compute_power(0, 1, 10, paired=True, level=0.01) == pytest.approx(0.01)
    assert 0.045 < compute_power(0, 1, 10, paired=False) < 0.05  # Welch's test errs on the safe side


def test_one_seed_shows_no_difference_and_none_needs_no_seeds() -> None:
    assert np.isnan(compute_detectable_difference(1, 1, paired=True))
    assert np.isnan(compute_detectable_difference(np.nan, 5, paired=True))
    for difference, sd in ((0, 1), (1, 0), (1, np.nan)):
        with pytest.raises(ValueError, match="no number of seeds follows"):
            compute_seeds_needed(difference, sd, paired=True)

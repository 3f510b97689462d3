"""Exact tests of numbers of seeds, held against values by hand and against all outcomes that there are."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from sweeps.counts import compare_shares, compare_signs, count_signs_needed


def test_signs_by_hand() -> None:
    """Five of six seeds go up: the p-value is 2 (1 + 6) / 2⁶. A tie and a pair with a NaN do not count."""
    found = compare_signs([2, 2, 2, 2, 2, 0, 1, np.nan], [1, 1, 1, 1, 1, 1, 1, 1])
    assert found == (5, 6, pytest.approx(14 / 64))
    assert compare_signs([9_999.0] * 6, [1.0] * 6).p == 2 / 64
    nothing = compare_signs([1.0, np.nan], [1.0, 2.0])
    assert nothing[:2] == (0, 0)
    assert math.isnan(nothing.p)


def test_the_number_of_signs_that_must_agree() -> None:
    """Six of six have 2 / 2⁶ = 0.03, five of five 0.06, and nine of ten 2 · 11 / 2¹⁰ = 0.02."""
    assert [count_signs_needed(n) for n in (1, 5, 6, 10)] == [None, None, 6, 9]
    assert count_signs_needed(20, 0.05 / 6) == 17
    assert stats.binomtest(16, 20).pvalue > 0.05 / 6 >= stats.binomtest(17, 20).pvalue


@pytest.mark.parametrize("n", [3, 5])
def test_all_against_none_by_hand(n: int) -> None:
    """With a share of 1/2 in both settings, which is the likeliest for it, this has the probability 2 / 4ⁿ."""
    assert compare_shares(n, n, 0, n) == pytest.approx(2 / 4**n, rel=1e-6)
    assert compare_shares(0, n, n, n) == pytest.approx(2 / 4**n, rel=1e-6)


def test_equal_shares_do_not_differ() -> None:
    assert compare_shares(1, 3, 2, 6) == compare_shares(0, 3, 0, 5) == compare_shares(4, 4, 2, 2) == 1
    assert math.isnan(compare_shares(0, 0, 1, 3))


@pytest.mark.parametrize(("first", "second"), [(3, 3), (3, 5), (5, 5)])
def test_settings_with_the_same_share_are_rarely_told_apart(first: int, second: int) -> None:
    """The probability of a p-value of at most 5 % is summed over all outcomes, for every share."""
    outcomes = list(product(range(first + 1), range(second + 1)))
    found = {(a, b): compare_shares(a, first, b, second) <= 0.05 for a, b in outcomes}
    assert any(found.values())
    for share in np.linspace(0, 1, 41):
        weights = (stats.binom.pmf(a, first, share) * stats.binom.pmf(b, second, share) for a, b in outcomes)
        assert sum(w for outcome, w in zip(outcomes, weights, strict=True) if found[outcome]) <= 0.05

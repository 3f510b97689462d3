"""Sign tests, held against values by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sweeps.signs import compare_signs, count_signs_needed


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

"""Comparisons of settings, held against hand-computed values, SciPy and simulation."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sweeps.comparisons import (
    adjust_for_false_discoveries,
    compare_all_pairs,
    compare_with_reference,
    compute_difference,
    compute_difference_interval,
    select_claims,
)

SAMPLES = dict(zip("abcd", np.random.default_rng(0).normal([[90], [91], [90.5], [92]], 1, (4, 8)), strict=True))
VALUES = st.lists(st.floats(0, 100), min_size=6, max_size=6)


def test_a_paired_difference_by_hand() -> None:
    """The differences are 1, 2 and 3: mean 2, standard error 1/√3, and t is 4.302653 with two degrees of freedom."""
    found = compute_difference([3.0, 5.0, 9.0], [2.0, 3.0, 6.0], paired=True)
    assert (found.estimate, found.low, found.high) == pytest.approx((2, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert (found.n, found.sd, found.paired) == (3, pytest.approx(1), True)
    assert found.permutation_p == 0.25  # of the eight choices of signs, +++ and −−− are as extreme
    assert found.correlation == pytest.approx(np.corrcoef([3, 5, 9], [2, 3, 6])[0, 1])


@pytest.mark.parametrize("paired", [True, False])
def test_a_difference_equals_that_of_scipy(paired: bool) -> None:
    a, b = SAMPLES["a"], SAMPLES["b"] * 3
    test = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
    found = compute_difference(a, b, paired=paired, confidence=0.9)
    interval = test.confidence_interval(0.9)
    assert (found.low, found.high, found.p) == pytest.approx((interval.low, interval.high, test.pvalue))
    assert found.estimate == pytest.approx(a.mean() - b.mean())
    spread = np.std(a - b, ddof=1) if paired else np.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / 2)
    assert found.sd == pytest.approx(spread)


def test_permutation_tests_are_exact_for_few_seeds() -> None:
    a, b = SAMPLES["a"][:5], SAMPLES["d"][:5]
    signs = [abs(np.dot(a - b, signs)) >= abs(np.sum(a - b)) - 1e-9 for signs in product((-1, 1), repeat=5)]
    assert compute_difference(a, b, paired=True).permutation_p == pytest.approx(np.mean(signs))
    both, total = np.concatenate([a, b]), np.sum([a, b])
    observed = abs(2 * a.sum() - total)
    splits = [abs(2 * both[list(chosen)].sum() - total) >= observed - 1e-9 for chosen in combinations(range(10), 5)]
    assert compute_difference(a, b, paired=False).permutation_p == pytest.approx(np.mean(splits))


def test_missing_values_are_left_out_with_their_pair() -> None:
    a, b = [1.0, np.nan, 3.0, 5.0, 4.0], [2.0, 2.0, np.nan, 4.5, 4.0]
    paired = compute_difference(a, b, paired=True)
    assert paired == compute_difference([1.0, 5.0, 4.0], [2.0, 4.5, 4.0], paired=True)
    unpaired = compute_difference(a, b, paired=False)
    assert (unpaired.estimate, unpaired.n) == (3.25 - 3.125, 4)
    assert unpaired.correlation == paired.correlation
    with pytest.raises(ValueError, match="3 and 2 values cannot be paired by seed"):
        compute_difference([1, 2, 3], [1, 2], paired=True)


@pytest.mark.parametrize("paired", [True, False])
def test_one_seed_has_a_difference_and_no_interval(paired: bool) -> None:
    found = compute_difference([3.0], [1.0], paired=paired)
    assert (found.estimate, found.n) == (2, 1)
    assert np.isnan([found.low, found.high, found.p, found.permutation_p, found.correlation, found.sd]).all()
    nothing = compute_difference([np.nan], [1.0], paired=paired)
    assert nothing.n == 0
    assert np.isnan(nothing.estimate)


def test_without_spread_there_is_no_interval() -> None:
    """The permutation test needs no spread; the differences of the first case are all 1 up to rounding."""
    found = compute_difference([94.1, 93.3, 12.7], [93.1, 92.3, 11.7], paired=True)
    assert found.estimate == pytest.approx(1)
    assert np.isnan([found.low, found.high, found.p]).all()
    assert found.permutation_p == 0.25
    equal = compute_difference([10.0, 10.0], [10.0, 10.0], paired=False)
    assert np.isnan([equal.low, equal.high, equal.p, equal.correlation]).all()
    assert equal.permutation_p == 1


@pytest.mark.parametrize("paired", [True, False])
def test_a_setting_whose_seeds_all_agree_has_no_known_spread(paired: bool) -> None:
    """Three seeds that all are stuck say little of the next one, however well the spread of the others is known."""
    found = compute_difference([10.0, 10.0, 10.0], [90.0, 91.0, 92.0], paired=paired)
    assert (found.estimate, found.permutation_p) == (-81, 0.25 if paired else 0.1)
    assert np.isnan([found.low, found.high, found.p]).all()


@given(VALUES, VALUES, st.booleans())
def test_a_difference_changes_sign_with_its_order(first: list[float], second: list[float], paired: bool) -> None:
    there, back = (compute_difference_interval(*pair, paired=paired) for pair in ((first, second), (second, first)))
    assert back.estimate == pytest.approx(-there.estimate)
    np.testing.assert_allclose([back.low, back.high], [-there.high, -there.low], atol=1e-9)
    assert np.isnan(there.low) or there.low - 1e-9 <= there.estimate <= there.high + 1e-9


@given(VALUES, VALUES, st.booleans(), st.floats(-50, 50), st.floats(0.5, 5))
def test_a_difference_follows_shift_and_scale(
    first: list[float], second: list[float], paired: bool, shift: float, scale: float
) -> None:
    a, b = np.array(first), np.array(second)
    plain = compute_difference_interval(a, b, paired=paired)
    moved = compute_difference_interval(shift + scale * a, shift + scale * b, paired=paired)
    if min(np.std(a), np.std(b), np.std(a - b) if paired else 1) > 0.01:  # else the shift decides what is rounding
        np.testing.assert_allclose(moved[:3], [scale * value for value in plain[:3]], atol=1e-6)


@pytest.mark.parametrize("n", [3, 5, 10, 30])
@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_95_percent_of_intervals_hold_the_true_difference(n: int, paired: bool, spread: float) -> None:
    generator = np.random.default_rng(n)
    common = generator.normal(size=(n, 20_000))
    first, second = common + generator.normal(5, 1, common.shape), common + generator.normal(3, spread, common.shape)
    if not paired:
        second = generator.permuted(second, axis=1)
    found = compute_difference_interval(first, second, paired=paired)
    coverage = np.mean((found.low <= 2) & (found.high >= 2))
    assert 0.93 <= coverage <= (0.98 if n == 3 else 0.97)


def test_all_pairs_equal_scipys_games_howell() -> None:
    samples = {"a": SAMPLES["a"], "b": SAMPLES["b"][:3] * 5, "c": np.append(SAMPLES["c"], np.nan)}
    found = compare_all_pairs(samples, confidence=0.9)
    expected = stats.tukey_hsd(*(values[~np.isnan(values)] for values in samples.values()), equal_var=False)
    interval = expected.confidence_interval(0.9)
    for contrast, (i, j) in zip(found, combinations(range(3), 2), strict=True):
        assert (contrast.first, contrast.second) == ("abc"[i], "abc"[j])
        numbers = (expected.statistic[i, j], interval.low[i, j], interval.high[i, j], expected.pvalue[i, j])
        assert contrast[2:] == pytest.approx(numbers, rel=1e-6)


def test_p_values_that_are_nearly_zero_stay_above_welchs() -> None:
    """Only rounding is left of SciPy's integral: less than Welch's p-value in the first case, more in the second."""
    far = {"a": [0.0, 0.001], "b": [1e4, 1e4 + 0.02], "c": [5.0, 9.0]}
    many = {"a": np.arange(30.0), "b": np.arange(30.0) + 1e4, "c": np.arange(30.0)}
    for samples in (far, many):
        contrast = compare_all_pairs(samples)[0]
        welch = compute_difference(samples["a"], samples["b"], paired=False).p
        assert welch <= contrast.p <= 3 * welch < 1e-5


def test_two_settings_alone_are_compared_by_welch() -> None:
    [contrast] = compare_all_pairs({"a": SAMPLES["a"], "b": SAMPLES["b"]})
    found = compute_difference(SAMPLES["a"], SAMPLES["b"], paired=False)
    assert contrast[2:] == pytest.approx((found.estimate, found.low, found.high, found.p), rel=1e-6)


def test_settings_without_spread_or_with_one_seed_are_compared_without_an_interval() -> None:
    samples = {"one": [1.0], "none": [], "same": [2.0, 2.0, 2.0], "other": [3.0, 3.0]}
    samples |= {"few": [1.0, 3.5], "many": [1.0, 2.0, 3.0]}
    pairs = {(first, second): rest for first, second, *rest in compare_all_pairs(samples)}
    known = [names for names, numbers in pairs.items() if not np.isnan(numbers[1:]).any()]
    assert known == [("few", "many")]
    assert pairs["one", "other"][0] == -2
    assert np.isnan(pairs["one", "none"][0])
    against = {contrast.first: contrast for contrast in compare_with_reference(samples, "many")}
    assert [name for name, contrast in against.items() if not np.isnan(contrast.p)] == ["few"]
    assert against["one"].estimate == -1
    for alone in ({"a": [1.0, 1.0], "b": [1.0, 1.0]}, {"a": [1.0, 2.0], "b": [1.0]}, {"a": [1.0], "b": [1.0, 2.0]}):
        assert np.isnan([compare_with_reference(alone, "b")[0].p, compare_all_pairs(alone)[0].p]).all()
    assert compare_all_pairs({"a": [1.0, 2.0]}) == compare_with_reference({"a": [1.0, 2.0]}, "a") == []


def test_comparisons_with_a_reference_equal_scipys_dunnett() -> None:
    expected = stats.dunnett(SAMPLES["a"], SAMPLES["c"], SAMPLES["d"], control=SAMPLES["b"], rng=0)
    interval = expected.confidence_interval(0.95)
    found = compare_with_reference(SAMPLES, "b")
    assert [contrast[:2] for contrast in found] == [("a", "b"), ("c", "b"), ("d", "b")]
    columns = (interval.low, interval.high, expected.pvalue)
    np.testing.assert_allclose([contrast[3:] for contrast in found], np.transpose(columns), rtol=1e-3)
    np.testing.assert_allclose([c.estimate for c in found], [SAMPLES[n].mean() - SAMPLES["b"].mean() for n in "acd"])
    assert compare_with_reference(SAMPLES, "b") == found  # the numerical integration draws the same numbers


def test_false_discoveries_by_hand() -> None:
    """Benjamini and Hochberg: the i-th smallest of m p-values times m / i, never above the next one."""
    adjusted = adjust_for_false_discoveries([0.03, np.nan, 0.01, 0.04, 0.5])
    np.testing.assert_allclose(adjusted, [0.04 * 4 / 3, np.nan, 0.04, 0.04 * 4 / 3, 0.5])
    assert adjust_for_false_discoveries([]).size == 0


def test_claims_of_single_comparisons_are_holms() -> None:
    """Check Holm's steps: of four, 0.012 is below 0.05 / 4 and 0.016 below 0.05 / 3, but 0.03 is not below 0.05 / 2."""
    assert select_claims([[0.04], [0.016], [0.03], [0.012]]) == [[False], [True], [False], [True]]
    assert select_claims([[0.012], [0.016], [0.02], [0.05]]) == [[True]] * 4


def test_a_family_gives_its_level_away_when_all_of_it_is_claimed() -> None:
    assert select_claims([[0.01, 0.02], [0.04]]) == [[True, True], [True]]
    assert select_claims([[0.01, 0.03], [0.04]]) == [[True, False], [False]]
    assert select_claims([[0.0], [0.04]]) == [[True], [True]]


def test_what_has_no_p_value_is_not_claimed_and_costs_nothing() -> None:
    assert select_claims([[np.nan], [0.04], []]) == [[False], [True], []]
    assert select_claims([[np.nan, 0.02], [0.04]]) == [[False, True], [True]]
    assert select_claims([]) == []


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=4), min_size=1, max_size=5))
def test_claims_lie_between_the_strictest_and_no_correction(families: list[list[float]]) -> None:
    for family, claims in zip(families, select_claims(families), strict=True):
        for p, claim in zip(family, claims, strict=True):
            assert claim or p > 0.05 / len(families)
            assert not claim or p <= 0.05


@pytest.mark.parametrize("effects", [0, 2])
def test_whole_reports_make_a_false_claim_in_5_percent_at_most(effects: int) -> None:
    """Each report has four families of five comparisons; `effects` of these are all real, and claimed."""
    generator = np.random.default_rng(effects)
    p_values = np.minimum(1, 5 * generator.random((10_000, 4, 5)))  # adjusted within a family, after Bonferroni
    p_values[:, :effects] = 1e-9
    claims = np.array([select_claims(report) for report in p_values.tolist()])
    assert claims[:, :effects].all()
    share = np.mean(claims[:, effects:].any(axis=(1, 2)))
    assert 0.035 <= share <= 0.05 + 0.006  # not far less either, or real effects would be missed

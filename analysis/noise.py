"""Answers to what the noise on its training points does to the loss of the XOR network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.answers import Answer, Claims, Draft, Estimate, write_answers
from analysis.wording import estimate_share, format_digits, format_factor, join_words
from sweeps.intervals import compute_median_interval
from sweeps.signs import SignTest, compare_signs, count_signs_needed
from sweeps.sweep import format_count

Losses = Mapping[float, NDArray[np.float64]]
"""Losses by σ, `(seeds,)` for the same seeds in the same order; NaN where a trial is missing."""


def answer_noise(rows: Sequence[Mapping[str, Any]], report_seed: int) -> list[Answer]:
    """Answer what noise does to the loss on the clean and on the noisy points, and how usual the report's seed is.

    Args:
        rows: Losses of each trial, with the keys sigma, seed, clean_loss and noisy_loss.
        report_seed: Seed that the report has used. As it was chosen, it is not counted among the others.
    """
    sigmas = sorted({row["sigma"] for row in rows})
    seeds = sorted({row["seed"] for row in rows} - {report_seed})
    found = {kind: {(row["sigma"], row["seed"]): row[f"{kind}_loss"] for row in rows} for kind in ("clean", "noisy")}
    losses: dict[str, Losses] = {
        kind: {sigma: np.array([by_trial.get((sigma, seed), np.nan) for seed in seeds]) for sigma in sigmas}
        for kind, by_trial in found.items()
    }
    report = {sigma: loss for sigma in sigmas if (loss := found["clean"].get((sigma, report_seed))) is not None}
    drafts = [draft_noise(kind, of_kind) for kind, of_kind in losses.items()] if seeds and len(sigmas) > 1 else []
    return [*write_answers(drafts), *write_report_seed(report, losses["clean"], report_seed)]


def draft_noise(kind: str, losses: Losses) -> Draft:
    """Draft the answer to what noise does to a loss: each σ is compared with the least, seed by seed.

    Losses have heavy tails, because the log of zero counts as 9,999. So their signs are compared, not their means.

    Args:
        kind: Points of the loss, "clean" or "noisy".
        losses: The losses.
    """
    least, *others = losses
    tests = {sigma: compare_signs(losses[sigma], losses[least]) for sigma in others}
    medians = {sigma: estimate_median(f"median loss, {kind} points, σ = {sigma:g}", losses[sigma]) for sigma in losses}

    def write(claims: Claims) -> list[Answer]:
        shown = {sigma for sigma, holds in zip(tests, claims.held, strict=True) if holds}
        listed = [f"{format_factor(median)} at σ = {sigma:g}" for sigma, median in medians.items() if median.n]
        clauses = [f"The median loss on the {kind} points is {join_words(listed)}"]
        clauses += [*describe_signs(tests, shown, least), *describe_needed(tests, claims.level)]
        shares = [
            estimate_share(f"seeds with a higher loss at σ = {sigma:g} than at {least:g}", test.above, test.n)
            for sigma, test in tests.items()
        ]
        return [
            Answer(
                question=f"What does noise on the training points do to the loss on the {kind} points?",
                sentence="; ".join(clauses) + ".",
                estimates=(*medians.values(), *shares),
            )
        ]

    return Draft([test.p for test in tests.values()], write)


def estimate_median(name: str, values: NDArray[np.float64]) -> Estimate:
    """Return the median of values `(seeds,)` with its interval, which needs six of them."""
    median, low, high, n = compute_median_interval(values)
    return Estimate(name=name, value=median, low=low, high=high, n=n, unit="")


def describe_signs(tests: Mapping[float, SignTest], shown: set[float], least: float) -> list[str]:
    """Return clauses on the σ at which the loss was shown to be above or below that at the least σ, and on the others.

    Args:
        tests: Comparison with the least σ by σ.
        shown: Values of σ at which a difference was shown.
        least: The least σ.
    """

    def list_counts(sigmas: Sequence[float], *, above: bool = True) -> str:
        counts = {sigma: tests[sigma].above if above else tests[sigma].n - tests[sigma].above for sigma in sigmas}
        return join_words(
            [f"{counts[sigma]} of {format_count(tests[sigma].n, 'seed')} at σ = {sigma:g}" for sigma in sigmas]
        )

    above = [sigma for sigma in tests if sigma in shown and 2 * tests[sigma].above > tests[sigma].n]
    below = [sigma for sigma in tests if sigma in shown and sigma not in above]
    rest = [sigma for sigma in tests if sigma not in shown and tests[sigma].n]
    clauses = [f"it is above that at σ = {least:g} in {list_counts(above)}"] if above else []
    clauses += [f"it is below that at σ = {least:g} in {list_counts(below, above=False)}"] if below else []
    return clauses + ([f"no difference was shown by being above it in {list_counts(rest)}"] if rest else [])


def describe_needed(tests: Mapping[float, SignTest], level: float) -> list[str]:
    """Return a clause on how many seeds must agree for a difference to be seen."""
    n = max(test.n for test in tests.values())
    if n == 0:
        return []
    needed = count_signs_needed(n, level)
    if needed is None:
        return [f"{format_count(n, 'seed')} cannot show a difference even if all agree; train more with --seeds"]
    return [f"{needed} of {n} seeds that agree would have been enough to show a difference"]


def write_report_seed(report: Mapping[float, float], losses: Losses, seed: int) -> list[Answer]:
    """Write where the loss of the report's seed lies among those of the other seeds; nothing without both.

    Args:
        report: Loss of the report's seed on the clean points, by σ.
        losses: Losses of the other seeds.
        seed: The report's seed.
    """
    estimates, texts = [], []
    for sigma, loss in report.items():
        others = losses[sigma][~np.isnan(losses[sigma])]
        if n := len(others):
            below = int(np.sum(others < loss))
            name = f"seeds with a lower loss on the clean points than seed {seed}, σ = {sigma:g}"
            estimates.append(estimate_share(name, below, n))
            texts.append(f"{format_digits(loss)} at σ = {sigma:g}, above {below} of {format_count(n, 'seed')}")
    if not texts:
        return []
    sentence = f"The loss of the report's seed {seed} on the clean points is {join_words(texts)}."
    question = f"How usual is the report's seed {seed}?"
    return [Answer(question=question, sentence=sentence, estimates=tuple(estimates))]

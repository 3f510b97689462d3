"""Answers on a search: which settings its confirmation chooses, how optimistic it was, and which parameters matter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from analysis.answers import Answer, Claims, Draft, Estimate, write_answers
from analysis.differences import TEST_ACCURACY, VALIDATION_ACCURACY, compare_settings, estimate_mean, gather_settings
from analysis.results import SweepResults
from analysis.studies import list_trained
from analysis.wording import (
    choose_digits,
    describe_agreement,
    describe_diverged,
    describe_stuck,
    format_estimate,
    format_number,
    join_words,
)
from sweeps.confirmation import Confirmed, choose_winner, compute_optimism, find_best_scored
from sweeps.intervals import compute_mean_interval
from sweeps.rounds import WORST, History
from sweeps.sweep import format_count

POINTS = "percentage points"
SEPARATOR = ": "  # between the short name of confirmed settings and the settings


def answer(
    question: str,
    confirmed: Sequence[Confirmed],
    confirmation: SweepResults | None,
    histories: Sequence[History],
    importances: Sequence[Mapping[str, float]],
) -> list[Answer]:
    """Answer the questions on a search, as far as it went.

    Args:
        question: The question of the experiment, on the best settings.
        confirmed: Settings of the confirmation.
        confirmation: Its results; None if it is not complete.
        histories: The searches.
        importances: Importance in % of each parameter, for each search; empty where it has trained too few suggestions.
    """
    drafts = []
    if confirmation is not None:
        drafts += [draft_winner(question, confirmed, confirmation), draft_optimism(confirmed)]
    known = [(len(list_trained(h)), found) for h, found in zip(histories, importances, strict=True) if found]
    return write_answers(drafts) + ([answer_importance(*zip(*known, strict=True))] if known else [])


def draft_winner(question: str, confirmed: Sequence[Confirmed], confirmation: SweepResults) -> Draft:
    """Draft the answer to which settings are best; each is compared with the usual ones, whichever of them wins."""
    data = confirmation.data
    settings = gather_settings(data.test_accuracy, data, "setting", TEST_ACCURACY)
    settings = replace(settings, names=tuple(name.partition(SEPARATOR)[0] for name in settings.names))
    compared = compare_settings(settings)
    usual = next(get_short_name(found) for found in confirmed if found.candidate.is_usual)
    others = [name for name in settings.names if name != usual]
    p_values = dict(zip(compared.pairs, compared.p_values, strict=True))
    best = choose_winner(confirmed)
    winner = get_short_name(best)

    def write(claims: Claims) -> list[Answer]:
        differences = {name: compared.get_difference(name, usual) for name in others}
        shown = [name for name, holds in zip(others, claims.held, strict=True) if holds]
        digits = choose_digits((difference.value for difference in differences.values()), 2)
        mean = format_estimate(compared.means[winner], digits)
        clauses = [
            f"By validation accuracy on fresh seeds, the best of {len(confirmed)} confirmed settings is {winner} "
            f"({best.candidate.name.partition(SEPARATOR)[2]}), with a test accuracy of {mean}",
            describe_gain(winner, differences, shown, digits),
            *describe_agreement(compared.means),
            *describe_diverged(settings),
            *describe_stuck([settings]),
        ]
        smallest = compared.find_smallest(winner, usual, claims.level) if winner != usual else math.nan
        sentence = "; ".join(clauses) + "."
        estimates = (*compared.means.values(), *differences.values())
        return [
            Answer(question=question, sentence=sentence, estimates=estimates, smallest_difference=drop_nan(smallest))
        ]

    return Draft([p_values.get((name, usual), p_values.get((usual, name), math.nan)) for name in others], write)


def get_short_name(confirmed: Confirmed) -> str:
    """Return the name of confirmed settings without the settings themselves, such as "suggestion 13"."""
    return confirmed.candidate.name.partition(SEPARATOR)[0]


def describe_gain(winner: str, differences: Mapping[str, Estimate], shown: Sequence[str], digits: int) -> str:
    """Return a clause on the difference of the winner to the usual settings.

    Args:
        winner: Name of the settings with the highest validation accuracy on fresh seeds.
        differences: Difference of all others to the usual settings in test accuracy, by name.
        shown: Names of those whose difference was shown.
        digits: Number of decimals.
    """
    if winner not in differences:
        return "these are the usual settings, so the search has found nothing better"
    difference = differences[winner]
    text = format_estimate(difference, digits)
    if winner in shown:
        return (
            f"it is {'above' if difference.value > 0 else 'below'} that of the usual settings: the difference is {text}"
        )
    if difference.n < 2:
        return f"the difference to the usual settings is {text}, and one seed cannot tell it from chance"
    return f"it is not distinguishable from that of the usual settings: the difference is {text}"


def draft_optimism(confirmed: Sequence[Confirmed]) -> Draft:
    """Draft the answer to how far the best score is above what the same settings come to on fresh seeds."""
    from scipy import stats

    best = find_best_scored(confirmed)
    score, fresh = best.candidate.score or WORST, np.asarray(best.scores, float)
    interval = compute_mean_interval(fresh, lowest=0, highest=100)
    spread = len(fresh) > 1 and fresh.std() > 0
    optimism = Estimate(
        name=f"best score minus the mean on fresh seeds, {get_short_name(best)}",
        value=compute_optimism(confirmed),
        low=score - float(interval.high) if spread else math.nan,
        high=score - float(interval.low) if spread else math.nan,
        n=len(fresh),
        unit=POINTS,
    )
    mean = estimate_mean(f"validation accuracy on fresh seeds, {get_short_name(best)}", fresh, VALIDATION_ACCURACY)
    p_value = float(stats.ttest_1samp(fresh, score).pvalue) if spread else math.nan

    def write(claims: Claims) -> list[Answer]:
        digits, [held] = choose_digits([optimism.value]), claims.held
        side = "above" if optimism.value > 0 else "below"
        size = optimism.value if optimism.value > 0 else -optimism.value
        low, high = sorted((optimism.low, optimism.high)) if optimism.value > 0 else (-optimism.high, -optimism.low)
        gap = Estimate(name="", value=size, low=low, high=high, n=optimism.n, unit=POINTS)
        sentence = (
            f"The best score, {format_number(score, 2)} %, is {format_estimate(gap, digits)} {side} the mean "
            f"validation accuracy of the same settings on fresh seeds"
        )
        too = "optimistic" if optimism.value > 0 else "pessimistic"
        if held:
            sentence += f", so the search was too {too}."
        elif spread:
            sentence += ", which fresh seeds do not tell from chance."
        else:
            sentence += ", and too little is known of how seeds vary to say whether this is chance."
        failed = sum(value <= WORST for value in best.scores)
        sentence += f" {format_count(failed, 'seed')} of {len(fresh)} did not learn, scored 0 %." if failed else ""
        return [Answer(question="How optimistic was the search?", sentence=sentence, estimates=(optimism, mean))]

    return Draft([p_value], write)


def answer_importance(trained: Sequence[int], importances: Sequence[Mapping[str, float]]) -> Answer:
    """Answer which parameters matter by Optuna's importance. It describes the searches and claims nothing of others.

    Args:
        trained: Number of suggestions that the importance of each search rests on.
        importances: Importance in % of each parameter, for each search.
    """
    estimates = sorted(
        (estimate_importance(name, [found[name] for found in importances]) for name in importances[0]),
        key=lambda estimate: -estimate.value,
    )
    texts = [f"{format_number(e.value, 0)} % for the {e.name.removeprefix('importance of the ')}" for e in estimates]
    over = "in one search" if len(importances) == 1 else f"on average over {len(importances)} searches"
    n = f"{min(trained)}" if min(trained) == max(trained) else f"{min(trained)} to {max(trained)}"
    sentence = f"Optuna's importance, {over} of {n} suggestions at full length, is {join_words(texts)}; it says "
    sentence += "how well a parameter tells the best tenth of the suggestions from the others, not what a change of it "
    sentence += "alone would do"
    sentence += ", and one search does not show how much others would differ." if len(importances) == 1 else "."
    return Answer(question="Which parameters matter?", sentence=sentence, estimates=tuple(estimates))


def estimate_importance(name: str, values: Sequence[float]) -> Estimate:
    """Return the mean importance of a parameter over searches, with its interval."""
    interval = compute_mean_interval(values, lowest=0, highest=100)
    return Estimate(
        name=f"importance of the {name.replace('_', ' ')}",
        value=float(interval.mean),
        low=float(interval.low),
        high=float(interval.high),
        n=len(values),
        unit="%",
    )


def drop_nan(value: float) -> float | None:
    """Return a number, or None for NaN."""
    return None if math.isnan(value) else value

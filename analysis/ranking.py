"""The answer to which of some settings leads, and which of the others are not distinguishable from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from analysis.answers import Answer, Claims, Draft
from analysis.differences import Comparison, Settings, compare_settings
from analysis.wording import (
    ALL_SEEDS,
    LEARNT_SEEDS,
    choose_digits,
    describe_agreement,
    describe_alone,
    describe_diverged,
    describe_stuck,
    describe_unclaimed,
    estimate_shares,
    format_estimate,
    join_words,
    make_question,
)

Shown = Sequence[tuple[str, str]]
"""Pairs of settings whose difference was shown, the higher one first."""


def draft_ranking(
    topic: str, settings: Settings, more: Callable[[Comparison, Shown], list[Answer]] | None = None
) -> Draft:
    """Draft the answer to which of some settings leads, and with stuck seeds another one, over those that learnt.

    Args:
        topic: Question as a clause, such as "which architecture generalises best".
        settings: The settings. With a single one there is no such answer.
        more: A function that writes further answers from the comparison over all seeds. They claim nothing else.
    """
    overall = compare_settings(settings)
    stuck = settings.list_stuck() if any(mean.n > 1 for mean in overall.means.values()) else set()
    learnt = compare_settings(settings.keep_learnt()) if stuck else None
    tested_again = [pair for pair in overall.pairs if stuck & {*pair}]  # the others are the same pairs of values

    def write(claims: Claims) -> list[Answer]:
        number = len(overall.pairs)
        shown = overall.list_shown(claims.held[:number])
        answers: list[Answer] = []
        if number:
            answers.append(write_ranking(topic, overall, shown, claims.level, ALL_SEEDS if stuck else ""))
        if number and learnt:
            again = dict(zip(tested_again, claims.held[number:], strict=True))
            held = [again.get(pair, holds) for pair, holds in zip(overall.pairs, claims.held, strict=False)]
            answers.append(write_ranking(topic, learnt, learnt.list_shown(held), claims.level, LEARNT_SEEDS))
        return answers + (more(overall, shown) if more else [])

    again = [p for pair, p in zip(learnt.pairs, learnt.p_values, strict=True) if pair in tested_again] if learnt else []
    return Draft([*overall.p_values, *again], write)


def write_ranking(topic: str, comparison: Comparison, shown: Shown, level: float, scope: str = "") -> Answer:
    """Write which setting has the highest mean, and which of the others it was shown to be ahead of.

    Args:
        topic: Question as a clause.
        comparison: The settings' means and differences.
        shown: Pairs whose difference was shown, the higher one first.
        level: Level of a single comparison, see `Claims`.
        scope: Seeds that the comparison is about.
    """
    means, settings, learnt = comparison.means, comparison.settings, scope == LEARNT_SEEDS
    ranked = sorted((name for name in means if means[name].n > 1), key=lambda name: -means[name].value)
    smallest = math.nan
    if len(ranked) < 2:
        clauses, finding = [describe_too_few(topic + scope, comparison, learnt=learnt)], "too few seeds to compare"
    else:
        leader, *others = ranked
        behind = [name for name in others if (leader, name) in shown]
        apart = [name for name in others if comparison.get_difference(leader, name).n == 0]
        level_with = [name for name in others if name not in (*behind, *apart)]
        smallest = comparison.find_smallest(leader, (level_with or behind or others)[0], level)
        clauses = describe_lead(comparison, leader, behind, level_with, shown, scope)
        clauses += [f"{leader} has no seed in common with {join_words(apart)}"] if apart else []
        clauses += describe_unclaimed(comparison.get_difference(leader, name) for name in level_with)
        finding = state_finding(comparison, leader, behind, level_with, shown)
        alone = [name for name in means if name not in ranked]
        clauses += [describe_alone(alone, learnt=learnt)] if alone else []
    clauses += [
        *describe_agreement(means),
        *describe_diverged(settings),
        *(describe_stuck([settings]) if learnt else []),
    ]
    return Answer(
        question=make_question(topic + scope),
        sentence="; ".join(clauses) + ".",
        estimates=(*means.values(), *comparison.pairs.values(), *(estimate_shares(settings) if learnt else [])),
        smallest_difference=None if math.isnan(smallest) else smallest,
        finding=finding,
    )


def describe_lead(
    comparison: Comparison, leader: str, behind: Sequence[str], level_with: Sequence[str], shown: Shown, scope: str
) -> list[str]:
    """Return clauses on the setting with the highest mean, those behind it, and those not distinguishable from it."""
    means, quantity = comparison.means, comparison.settings.quantity
    differences = {name: comparison.get_difference(leader, name) for name in (*behind, *level_with)}
    digits = choose_digits((difference.value for difference in differences.values()), quantity.most_digits)

    def list_differences(names: Sequence[str], form: str = "{difference}") -> str:
        texts = []
        for name in names:
            other_n = differences[name].n != means[leader].n
            difference = format_estimate(differences[name], digits, with_unit=False, with_n=other_n)
            texts.append(form.format(name=name, difference=difference))
        return f"{join_words(texts)} {quantity.difference_unit}".rstrip()

    mean = format_estimate(means[leader], digits)
    if behind:
        name = leader[0].upper() + leader[1:] if " " in leader else leader  # cnn_4 and relu stay as they are
        clauses = [f"{name} leads{scope} with a {quantity.name} of {mean}"]
        clauses.append(f"it is ahead of {list_differences(behind, '{name} by {difference}')}")
    else:
        clauses = [f"No setting is shown to lead{scope}: {leader} has the highest {quantity.name}, {mean}"]
    if level_with:
        are, below = "is" if len(level_with) == 1 else "are", list_differences(level_with)
        clauses.append(f"{join_words(level_with)}, below it by {below}, {are} not distinguishable from it")
    if not behind and shown:
        clauses.append("of the others, " + join_words([f"{first} is ahead of {second}" for first, second in shown]))
    return clauses


def describe_too_few(topic: str, comparison: Comparison, *, learnt: bool) -> str:
    """Return a clause that says why settings cannot be compared, with the values that there are."""
    means, quantity = comparison.means, comparison.settings.quantity
    present = [name for name, mean in means.items() if mean.n]
    if not present:
        return f"It cannot be said {topic}, as no seed {'learnt' if learnt else 'trained to its end'}"
    enough = [name for name in present if means[name].n > 1]
    digits = choose_digits(means[name].value - means[present[0]].value for name in present[1:])
    values = join_words([f"{format_estimate(means[name], digits, with_n=False)} for {name}" for name in present])
    seed = f"seed that {'learnt' if learnt else 'trained to the end'}"
    reason = f"only {enough[0]} has more than one {seed}" if enough else f"one {seed} does not show how much seeds vary"
    return f"It cannot be said {topic}, as {reason}: the {quantity.name} is {values}; train more with --seeds"


def state_finding(
    comparison: Comparison, leader: str, behind: Sequence[str], level_with: Sequence[str], shown: Shown
) -> str:
    """Return the finding in a few words, for a figure's title: "cnn_4 leads; cnn_3 not distinguishable, n = 10"."""
    counts = [mean.n for mean in comparison.means.values() if mean.n > 1]
    n = f"n = {min(counts)}" if min(counts) == max(counts) else f"n = {min(counts)} – {max(counts)}"
    if not shown:
        return f"no difference shown, {n}"
    others = [f"{join_words(level_with)} not distinguishable"] if level_with else []
    return "; ".join([f"{leader} {'leads' if behind else 'is highest'}", *others]) + f", {n}"

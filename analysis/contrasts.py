"""The answer to what two settings differ by in each of several contexts, such as two activations in each network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from analysis.answers import Answer, Claims, Draft, Estimate
from analysis.differences import Comparison, Settings, compare_settings, negate
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


@dataclass(frozen=True, kw_only=True)
class Contrasts:
    """Two settings in several contexts.

    Attributes:
        topic: Question as a clause, such as "which activation gives the higher test accuracy in each network".
        first: Name of the first setting.
        second: Name of the second setting, which is subtracted.
        contexts: Both settings, in this order and compared seed by seed, by the context's name.
        scope: Seeds that the comparison is about.
    """

    topic: str
    first: str
    second: str
    contexts: Mapping[str, Settings]
    scope: str = ""

    def keep_learnt(self) -> Contrasts:
        """Return the contrasts over the seeds that learnt alone, in the contexts where others are stuck."""
        contexts = {name: each.keep_learnt() for name, each in self.contexts.items() if each.stuck.any()}
        return replace(self, contexts=contexts, scope=LEARNT_SEEDS)


def draft_contrasts(contrasts: Contrasts) -> Draft:
    """Draft the answer to where two settings differ, and with stuck seeds another one, over those that learnt."""
    groups = [contrasts]
    if any(each.stuck.any() and each.values.shape[1] > 1 for each in contrasts.contexts.values()):
        groups = [replace(contrasts, scope=ALL_SEEDS), contrasts.keep_learnt()]
    compared = [{name: compare_settings(each) for name, each in group.contexts.items()} for group in groups]

    def write(claims: Claims) -> list[Answer]:
        held, answers = iter(claims.held), []
        for group, comparisons in zip(groups, compared, strict=True):
            shown = {name for name, comparison in comparisons.items() if comparison.list_shown([next(held)])}
            answers.append(write_contrasts(group, comparisons, shown, claims.level))
        return answers

    return Draft([p for group in compared for comparison in group.values() for p in comparison.p_values], write)


def write_contrasts(
    contrasts: Contrasts, comparisons: Mapping[str, Comparison], shown: set[str], level: float
) -> Answer:
    """Write in which contexts the first setting is above the second, in which below, and where nothing was shown.

    Args:
        contrasts: The settings.
        comparisons: Their means and differences, by context.
        shown: Contexts in which a difference was shown.
        level: Level of a single comparison, see `Claims`.
    """
    scope, learnt = contrasts.scope, contrasts.scope == LEARNT_SEEDS
    differences = {name: difference for name, c in comparisons.items() for difference in c.pairs.values()}
    known = [name for name, difference in differences.items() if difference.n > 1]
    not_shown = [name for name in known if name not in shown]
    open_pairs = [(comparisons[name], *pair) for name in not_shown or known for pair in comparisons[name].pairs]
    sizes = [comparison.find_smallest(first, second, level) for comparison, first, second in open_pairs]
    smallest = max((size for size in sizes if not math.isnan(size)), default=math.nan)
    clauses = describe_contrasts(contrasts, differences, shown)
    clauses += describe_unclaimed(differences[name] for name in not_shown)
    alone = [name for name in comparisons if name not in known]
    clauses += [describe_alone(alone, learnt=learnt)] if alone and known else []
    settings = [comparison.settings for comparison in comparisons.values()]
    means = {name: mean for comparison in comparisons.values() for name, mean in comparison.means.items()}
    clauses += describe_agreement(means)
    clauses += [clause for found in settings for clause in describe_diverged(found)]
    clauses += describe_stuck(settings) if learnt else []
    shares = [share for found in settings for share in estimate_shares(found)] if learnt else []
    return Answer(
        question=make_question(contrasts.topic + scope),
        sentence="; ".join(clauses) + ".",
        estimates=(*means.values(), *differences.values(), *shares),
        smallest_difference=None if math.isnan(smallest) else smallest,
    )


def describe_contrasts(contrasts: Contrasts, differences: Mapping[str, Estimate], shown: set[str]) -> list[str]:
    """Return clauses on the contexts in which a difference was shown, and on those in which none was.

    Args:
        contrasts: The settings.
        differences: Difference of the settings by context.
        shown: Contexts in which it was shown.
    """
    first, second, scope = contrasts.first, contrasts.second, contrasts.scope
    quantity = next(iter(contrasts.contexts.values())).quantity
    digits = choose_digits((difference.value for difference in differences.values()), quantity.most_digits)

    def list_contexts(names: list[str]) -> str:
        texts = {name: format_estimate(differences[name], digits, with_n=differences[name].n > 1) for name in names}
        return join_words([f"{text} in {name}" for name, text in texts.items()])

    present = [name for name, difference in differences.items() if difference.n]
    if not any(differences[name].n > 1 for name in present):
        values = f": {first} minus {second} is {list_contexts(present)}" if present else ""
        ended = "learnt" if scope == LEARNT_SEEDS else "trained to the end"
        reason = f"one seed that {ended} does not show how much seeds vary" if present else f"no seed {ended} with both"
        return [f"It cannot be said {contrasts.topic}{scope}, as {reason}{values}; train more with --seeds"]
    not_shown = [name for name in present if name not in shown and differences[name].n > 1]
    raised = [name for name in present if name in shown and differences[name].value > 0]
    lowered = [name for name in present if name in shown and name not in raised]
    estimates = {**differences, **{name: negate(differences[name]) for name in lowered}}
    if not shown:
        between = f"{quantity.name} between {first} and {second}"
        listed = f"{first} minus {second} is {list_contexts(not_shown)}"
        return [f"No difference in {between} was shown{scope}: {listed}"]
    clauses = []
    for word, names in (("higher", raised), ("lower", lowered)):
        changes = [f"by {format_estimate(estimates[name], digits)} in {name}" for name in names]
        clauses += [f"{word} {join_words(changes)}"] if names else []
    sentence = [f"The {quantity.name}{scope} with {first}, compared with {second}, is {' and '.join(clauses)}"]
    return sentence + ([f"in the others no difference was shown: {list_contexts(not_shown)}"] if not_shown else [])

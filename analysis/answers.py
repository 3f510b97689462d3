"""Answers to the questions that an experiment asks, each with the numbers that it rests on.

A report makes many comparisons, and of twenty where there is nothing to find, one is expected to look like an effect.
So no answer decides by itself what it claims. A draft names the p-values of all that it could claim, `write_answers`
selects among those of the experiment's whole report, and only then the answers are written. The probability that a
report makes any false claim is 5 % at most. Intervals are not widened for this: each covers 95 % by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from sweeps.comparisons import select_claims

REPORT_LEVEL = 0.05  # greatest probability that the report of an experiment makes any false claim


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number that an answer rests on, with its 95 % interval.

    Attributes:
        name: What was estimated, such as "test accuracy of cnn_4" or "cnn_4 minus cnn_3".
        value: The estimate; NaN if there is none.
        low: Lower end of the interval; NaN if there is none.
        high: Upper end of the interval; NaN if there is none.
        n: Number of seeds (or pairs of seeds) that it rests on.
        unit: Its unit, such as "%" or "percentage points"; empty if it has none.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    unit: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer to one question of an experiment.

    Attributes:
        question: The question, as a sentence.
        sentence: The answer in one sentence, never stronger than its estimates.
        estimates: The numbers that it rests on.
        smallest_difference: The smallest true difference that this number of seeds would have shown with a probability
            of 80 %, in the unit of differences: of the first two settings, or of those for which none was shown. It is
            infinite if not even the largest possible one would have been shown, and None if this is unknown.
        finding: The answer in a few words, for a figure's title; empty if it has none.
    """

    question: str
    sentence: str
    estimates: tuple[Estimate, ...]
    smallest_difference: float | None = None
    finding: str = ""


class Claims(NamedTuple):
    """The claims of one draft that hold, among those of the whole report.

    Attributes:
        held: Whether each claim holds, in the order of the draft's p-values.
        level: Level of the report divided by the number of its claims, at which a single one is judged at first.
    """

    held: Sequence[bool]
    level: float


class Draft(NamedTuple):
    """Answers that can be written as soon as it is known which of their claims hold.

    Attributes:
        p_values: p-values of all that the answers could claim; NaN where nothing could be tested.
        write: A function that writes the answers.
    """

    p_values: Sequence[float]
    write: Callable[[Claims], list[Answer]]


def write_answers(drafts: Sequence[Draft]) -> list[Answer]:
    """Select the claims that hold, over all drafts of an experiment's report together, and write the answers."""
    p_values = [p for draft in drafts for p in draft.p_values]
    held = [holds for [holds] in select_claims([[p] for p in p_values], REPORT_LEVEL)]
    level = REPORT_LEVEL / max(1, sum(not math.isnan(p) for p in p_values))
    answers: list[Answer] = []
    for draft in drafts:
        own, held = held[: len(draft.p_values)], held[len(draft.p_values) :]
        answers += draft.write(Claims(own, level))
    return answers


def describe_smallest(answer: Answer) -> str:
    """Return a sentence on the smallest difference that could have been seen; empty if this is unknown."""
    smallest = answer.smallest_difference
    if smallest is None:
        return ""
    if math.isinf(smallest):
        return "This number of seeds could not have shown even the largest possible difference."
    unit = next((estimate.unit for estimate in answer.estimates), "").replace("%", "percentage points")
    size = f"{smallest:.3g} {unit}".strip()
    return f"The smallest difference that this number of seeds could have shown is {size}."


def answers_to_json(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Return answers as lists and dicts, for `Output.save_json`, which writes null for NaN and infinity."""
    return [{**asdict(answer), "estimates": [asdict(estimate) for estimate in answer.estimates]} for answer in answers]

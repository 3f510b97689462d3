"""Answers to the questions that an experiment asks, each with the numbers that it rests on, and how they are worded.

A report makes many comparisons, and of twenty that have nothing to show, one is expected to look like an effect. So no
answer decides by itself what it claims. A draft names the p-values of all that it could claim; `write_answers` selects
among those of the whole experiment, so that the probability that a report of an experiment without any effect claims
one is at most 5 %; and only then the drafts are written. Intervals are not widened for this: each has a coverage of
95 % by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from sweeps.comparisons import select_claims

FAMILY_LEVEL = 0.05  # greatest probability that a report of an experiment without any effect claims one
SEED_OPTION = "train more with --seeds"


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
        smallest_difference: The smallest difference that this number of seeds could have shown, in the unit of the
            estimates; None where that says nothing.
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
        level: Level at which a single comparison would have to be made if all of the report's had the same.
        number: Number of the report's claims that could be tested.
    """

    held: tuple[bool, ...]
    level: float
    number: int


class Draft(NamedTuple):
    """Answers that can be written as soon as it is known which of their claims hold.

    Attributes:
        p_values: A p-value for each claim that the answers could make; NaN for one that could not be tested.
        write: A function that writes the answers.
    """

    p_values: Sequence[float]
    write: Callable[[Claims], list[Answer]]


def write_answers(drafts: Sequence[Draft]) -> list[Answer]:
    """Select the claims that hold, over all drafts of an experiment's report together, and write the answers."""
    p_values = [p_value for draft in drafts for p_value in draft.p_values]
    held = iter(select_claims(p_values, FAMILY_LEVEL).tolist())
    number = sum(not math.isnan(p_value) for p_value in p_values)
    level = FAMILY_LEVEL / max(1, number)
    return [
        answer
        for draft in drafts
        for answer in draft.write(Claims(tuple(next(held) for _ in draft.p_values), level, number))
    ]


def answers_to_json(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Return answers as nested lists and dicts, with NaN where an estimate has no value or no interval."""
    return [{**asdict(answer), "estimates": [asdict(estimate) for estimate in answer.estimates]} for answer in answers]

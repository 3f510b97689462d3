"""Answers to the questions that an experiment asks, each with the numbers that it rests on."""

from __future__ import annotations

from dataclasses import dataclass


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
    """

    question: str
    sentence: str
    estimates: tuple[Estimate, ...]
    smallest_difference: float | None = None

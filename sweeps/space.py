"""The space of a search: what each setting may be, as ranges and choices, and Optuna's suggestions in it.

A space is flat: every suggestion names every parameter. One that does not matter for an architecture, such as the
pooling of an MLP, is dropped by its `Trial`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sweeps.sweep import NAME_PREFIXES
from trainables.errors import BadInputError, check_choice

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

DIGITS = 3  # significant digits of a suggested number: more would only make trials that differ by nothing
RANGE_MARK = ":"  # between the ends of a range


@dataclass(frozen=True)
class Range:
    """All numbers between two ends, which belong to it; equal ratios are equally likely at first.

    Attributes:
        low: Lower end.
        high: Upper end.
        whole: Whether only whole numbers belong to it.
    """

    low: float
    high: float
    whole: bool

    def fit(self, value: float) -> float:
        """Return a number of the range that is close to `value` and has three significant digits."""
        rounded = float(f"{value:.{DIGITS}g}")
        clipped = min(max(rounded, self.low), self.high)
        return int(clipped) if self.whole else clipped


Domain = Range | tuple[Any, ...]
"""A range, or some choices, of which there is one where the parameter is fixed."""

Space = Mapping[str, Domain]
"""Parameters by the names of `Trial`'s fields, and their domains."""


def parse_numbers(option: str, words: Sequence[str], *, whole: bool) -> Domain:
    """Return the numbers that the words of an option name: one range LOW:HIGH, or some values.

    Raises:
        BadInputError: A word is no positive number, or the range has no number.
    """
    if any(RANGE_MARK in word for word in words):
        if len(words) > 1 or words[0].count(RANGE_MARK) > 1:
            raise BadInputError(f"{option} is {' '.join(words)}; give one range LOW{RANGE_MARK}HIGH, or some values")
        low, high = (parse_number(option, word, whole=whole) for word in words[0].split(RANGE_MARK))
        if low >= high:
            raise BadInputError(f"{option} is {words[0]}; the first end of a range must be below the second")
        return Range(low, high, whole)
    return tuple(parse_number(option, word, whole=whole) for word in words)


def parse_number(option: str, word: str, *, whole: bool) -> float:
    """Return a positive number of three significant digits at most, as suggestions have them.

    Raises:
        BadInputError: The word is no such number.
    """
    kind = "a positive whole number" if whole else "a positive number"
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf or (whole and number != int(number)):
        raise BadInputError(f"{option} has {word}; it must be {kind}, or a range LOW{RANGE_MARK}HIGH of such numbers")
    if float(f"{number:.{DIGITS}g}") != number:
        raise BadInputError(
            f"{option} has {word}; give {DIGITS} significant digits at most, such as {number:.{DIGITS}g}"
        )
    return int(number) if whole else number


def check_space(space: Space, allowed: Mapping[str, Sequence[str]]) -> None:
    """Raise `BadInputError` where a parameter has no value, an unknown one, or one twice.

    Args:
        space: The space.
        allowed: Parameter → the choices that it can have, for those that are words.
    """
    for name, domain in space.items():
        option = name.replace("_", " ")
        if isinstance(domain, Range):
            continue
        for choice in domain if name in allowed else ():
            check_choice(option, choice, allowed[name])
        if not domain:
            raise BadInputError(f"the search has no value for {option}; give at least one")
        if len(set(domain)) < len(domain):
            raise BadInputError(f"the search has a value for {option} twice; give each once")


def make_distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return the space as Optuna has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    return {
        name: CategoricalDistribution(domain)
        if not isinstance(domain, Range)
        else IntDistribution(int(domain.low), int(domain.high), log=True)
        if domain.whole
        else FloatDistribution(domain.low, domain.high, log=True)
        for name, domain in space.items()
    }


def fit_to_space(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a suggestion with numbers of three significant digits, in the order of the space."""
    return {
        name: domain.fit(params[name]) if isinstance(domain, Range) else params[name] for name, domain in space.items()
    }


def describe_params(params: Mapping[str, Any]) -> str:
    """Return parameters in a few words: "cnn_3, rate 0.00412, batch 48, relu"."""
    return ", ".join(f"{NAME_PREFIXES.get(name, '')}{value}" for name, value in params.items() if value is not None)

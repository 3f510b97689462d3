"""Words for numbers: estimates with their intervals, lists of names, and clauses on seeds that are not counted."""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis.answers import Estimate


def format_number(value: float, digits: int) -> str:
    """Return a number with a fixed number of decimals, with a true minus sign, and without one before zero."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def format_estimate(estimate: Estimate, digits: int, *, with_n: bool = True) -> str:
    """Return an estimate as "99.1 % (98.9 – 99.3, n = 10)"; what it lacks, unit or interval, is left out.

    Args:
        estimate: Estimate to write.
        digits: Number of decimals.
        with_n: Whether the number of seeds stands in the brackets.
    """
    value = " ".join(filter(None, (format_number(estimate.value, digits), estimate.unit)))
    inside = [] if math.isnan(estimate.low) else [f"{format_range(estimate.low, estimate.high, digits)}"]
    inside += [f"n = {estimate.n}"] if with_n else []
    return f"{value} ({', '.join(inside)})" if inside else value


def format_range(low: float, high: float, digits: int) -> str:
    """Return the ends of an interval as "98.9 – 99.3"."""
    return f"{format_number(low, digits)} – {format_number(high, digits)}"


def join_words(words: Sequence[str]) -> str:
    """Return a list in a sentence: "a", "a and b", or "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))

"""TODO."""

from __future__ import annotations

import math
from collections.abc import Collection

MAX_QUOTED_CHARACTERS = 100


class BadInputError(ValueError):
    """One sentence for the person at the terminal: the value, what is allowed, and what to do."""


def quote(value: object) -> str:
    """A value as a message shows it: on one line whatever it holds, and cut where it is long."""
    text = repr(value)
    return text if len(text) <= MAX_QUOTED_CHARACTERS else f"{text[:MAX_QUOTED_CHARACTERS]}…"


def check_choice(what: str, value: str | None, allowed: Collection[str | None]) -> None:
    """Raise `BadInputError` unless `value` is one of `allowed`."""
    if value not in allowed:
        raise BadInputError(f"unknown {what} {quote(value)}; choose from {', '.join(str(name) for name in allowed)}")


def check_positive(what: str, value: float, *, whole: bool, most: float = math.inf) -> None:
    """Raise `BadInputError` unless `value` is a finite positive number up to `most`, whole if asked."""
    if not 0 < value < math.inf or (whole and value != int(value)):  # NaN compares as false
        raise BadInputError(f"{what} is {quote(value)}; it must be a positive {'whole ' if whole else ''}number")
    if value > most:
        raise BadInputError(f"{what} is {quote(value)}; it must be {most:,} at most")


class StorageError(BadInputError):
    """The storage folder cannot be written."""


class TrackingError(BadInputError):
    """The store cannot be reached, or refuses."""

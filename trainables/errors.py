"""Errors that end a command with one sentence for the user, and checks that raise them."""

from __future__ import annotations

import math
from collections.abc import Collection

MAX_QUOTED_CHARACTERS = 100


class UserError(Exception):
    """An error whose text tells the user what is wrong and what to do about it."""


class BadInputError(UserError, ValueError):
    """A value that cannot be used; the text names the value, what is allowed, and what to do."""


class StorageError(UserError):
    """A folder or file of the storage that cannot be written, for example because the disk is full."""


class TrackingError(UserError):
    """A tracking store that cannot be reached, or that refuses what it is asked for."""


def quote(value: object) -> str:
    """Return a value as messages show it: on one line whatever it holds, and cut where it is long."""
    text = repr(value)
    return text if len(text) <= MAX_QUOTED_CHARACTERS else f"{text[:MAX_QUOTED_CHARACTERS]}…"


def check_choice(what: str, value: str | None, allowed: Collection[str | None]) -> None:
    """Raise `BadInputError` unless `value` is one of `allowed`."""
    if value not in allowed:
        raise BadInputError(f"unknown {what} {quote(value)}; choose from {', '.join(str(name) for name in allowed)}")


def check_positive(what: str, value: float, *, whole: bool, maximum: float = math.inf) -> None:
    """Raise `BadInputError` unless `value` is a finite positive number up to `maximum`, and whole if `whole` is set."""
    if not 0 < value < math.inf or (whole and value != int(value)):  # NaN compares as false
        raise BadInputError(f"{what} is {quote(value)}; it must be a positive {'whole ' if whole else ''}number")
    if value > maximum:
        raise BadInputError(f"{what} is {quote(value)}; it must be {maximum:,} at most")

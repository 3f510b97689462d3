"""The journal of a search: the form of its files, and how the store keeps them. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

from trainables.errors import BadInputError


class Journal(Protocol):
    """Files that an experiment keeps beside its trials, as text by name; none is ever written again."""

    def read(self, name: str) -> str | None:
        """Return a file's text, or None if there is no such file."""

    def add(self, name: str, text: str) -> None:
        """Keep a new file."""


class NoJournal:
    """A journal that is empty and keeps nothing."""

    def read(self, name: str) -> str | None:
        """Return None."""
        return None

    def add(self, name: str, text: str) -> None:
        """Forget the file."""


def compute_digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of something that JSON can hold, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def format_entry(content: Mapping[str, Any]) -> str:
    """Return the text of a file of the journal, which begins with the digest of its content."""
    return json.dumps({"digest": compute_digest(content), **content}, indent=1) + "\n"


def parse_entry(text: str, name: str) -> dict[str, Any]:
    """Return the content of a file of the journal.

    Raises:
        BadInputError: The text is not what `format_entry` has made.
    """
    try:
        content: dict[str, Any] = json.loads(text)
        kept = content.pop("digest")
        if kept != compute_digest(content):
            raise ValueError("its digest is that of another content")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BadInputError(
            f"the search's journal {name}, an artifact of its parent run, is damaged ({error}); put back a good copy, "
            "or delete the file, and the search asks for the round again"
        ) from None
    return content

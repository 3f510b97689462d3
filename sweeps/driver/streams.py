"""The standard streams of a script: output that cannot be written never ends it, and logs hold no control codes."""

from __future__ import annotations

import os
import re
import select
import sys
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

UNABLE_TERMINALS = ("", "dumb", "unknown")  # values of TERM
# The forms of ECMA-48: ESC [ … letter; ESC ] … end, as for titles and links; ESC and one character.
CONTROL_CODE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
COLOUR_CODE = re.compile(r"\x1b\[[\d;:]*m")


def is_terminal(stream: TextIO) -> bool:
    """Return whether a stream is a terminal on which a cursor can be moved, and so a progress bar can be drawn."""
    return stream.isatty() and os.environ.get("TERM", "") not in UNABLE_TERMINALS


def is_coloured(stream: TextIO) -> bool:
    """Return whether text in a stream may have colours and styles: by default, on a terminal only.

    `NO_COLOR` and `FORCE_COLOR` change that, as no-color.org and force-color.org describe; with both, there is no
    colour, as in Python's own messages.
    """
    return not os.environ.get("NO_COLOR") and (bool(os.environ.get("FORCE_COLOR")) or is_terminal(stream))


class ForgivingFile(FileIO):
    """A file descriptor that drops what it cannot write: its pipe is closed, its disk is full, its terminal is gone."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            while (written := super().write(data)) is None:  # another program has made the descriptor non-blocking
                select.select([], [self], [])
        except OSError:
            return memoryview(data).nbytes
        return written


class Stream(TextIOWrapper):
    """A text stream that drops what it cannot write, and the control codes that do not belong in it."""

    def __init__(self, descriptor: int, encoding: str, *, line_buffering: bool) -> None:
        file = ForgivingFile(descriptor, "wb", closefd=False)
        super().__init__(BufferedWriter(file), encoding, errors="replace", line_buffering=line_buffering)
        self.for_terminal, self.coloured = is_terminal(self), is_coloured(self)

    def write(self, text: str, /) -> int:
        super().write(CONTROL_CODE.sub(self.keep_if_fitting, text))
        return len(text)

    def keep_if_fitting(self, code: re.Match[str]) -> str:
        """Return a control code if it belongs in this stream, else nothing."""
        fitting = self.coloured if COLOUR_CODE.fullmatch(code[0]) else self.for_terminal
        return code[0] if fitting else ""


def protect_streams() -> None:
    """Replace standard output and standard error by streams whose failures do not end the script.

    Standard streams that are closed become the null device, as a file that is opened later would otherwise get their
    number, and what others print. A stream that is not the process's own stays, such as that of a test.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)
        if old is not getattr(sys, f"__{name}__"):
            continue
        if old is None:  # it was closed when Python started
            new = Stream(os.open(os.devnull, os.O_WRONLY), "utf-8", line_buffering=True)
        else:
            new = Stream(old.fileno(), old.encoding, line_buffering=old.line_buffering or old.write_through)
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)

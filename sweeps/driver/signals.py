"""Signals that stop a sweep."""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def stop_on_signals() -> None:
    """Make SIGTERM and SIGHUP do what Ctrl-C does.

    SIGINT is heard even where it was ignored, as a shell script starts background commands so. If SIGHUP is ignored, as
    under `nohup`, it stays ignored.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGINT))


def exit_on_signals(status: int) -> None:
    """Make a signal end the process at once with this status: everything is done, and only the exit is left."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: os._exit(status))
    # At its very end, Python removes handlers, and a signal would kill the process. Ignored signals stay ignored.
    atexit.register(ignore_signals)


def ignore_signals() -> None:
    """Ignore the signals that stop a sweep."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def delay_signals() -> Iterator[None]:
    """Let a block run to its end: a signal that arrives meanwhile does its work afterwards."""
    arrived: list[int] = []
    before: dict[signal.Signals, Any] = {}
    try:
        for number in STOP_SIGNALS:
            if (handler := signal.getsignal(number)) != signal.SIG_IGN:
                before[number] = handler
                signal.signal(number, lambda received, _: arrived.append(received))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if arrived:
        signal.raise_signal(arrived[0])

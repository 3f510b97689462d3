"""Signals that stop a sweep."""

from __future__ import annotations

import signal


def stop_on_signals() -> None:
    """Make SIGTERM and SIGHUP do what Ctrl-C does, as Ray Tune stops cleanly on SIGINT only.

    If SIGHUP is ignored, as under `nohup`, it stays ignored.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell script starts background commands so
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGINT))

"""TODO."""

from __future__ import annotations

import signal


def stop_on_signals() -> None:
    """Let SIGTERM, and SIGHUP unless ignored (nohup), do what Ctrl-C does: Ray Tune stops cleanly on SIGINT only."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell script starts what it ends with &
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGINT))

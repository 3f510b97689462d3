"""Show sweeps in MLflow's UI: a link to each sweep, and a server for as long as you look, until Ctrl-C.

If the tracking store is a server, its links are printed, and nothing is started. If it is a database, MLflow's server
is started on this machine's loopback address, and the first link is opened in a browser if there is a display.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import tyro
from tyro.conf import Positional, arg

from sweeps import mlflow_ui
from sweeps.cli import run_to_exit_status
from sweeps.experiment import get_default_tracking_uri
from trainables.commands import PASSWORD, hide_password
from trainables.errors import BadInputError, TrackingError, check_positive
from trainables.persistence.connection import get_missing_file, get_mlflow_uri

if TYPE_CHECKING:
    from trainables.persistence.parent_run import ParentRun

HOST = "127.0.0.1"
START_SECONDS = 120.0  # in which the server must answer; on a busy machine it takes half a minute
STOP_SECONDS = 10.0  # in which the server must end its requests
LOG_LINES = 3  # of the server's log, that a message about its end shows


@dataclass(frozen=True, kw_only=True)
class UiOptions:
    """Options of the UI."""

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="[NAME ...]", help_behavior_hint="(default: all)")] = ()
    """Any of part3, part4, part5, xor, mnist, pooling, grid."""
    tracking_uri: str = field(default_factory=get_default_tracking_uri)
    """MLflow's tracking store. MLFLOW_TRACKING_URI sets the default."""
    port: int | None = None
    """Port of the server that is started. By default, a free one."""
    no_browser: bool = False
    """Print the links, and open none."""


def parse() -> UiOptions:
    """Return the options of the command line.

    Raises:
        BadInputError: The port is none.
    """
    options = tyro.cli(UiOptions, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    if options.port is not None:
        check_positive("--port", options.port, whole=True, maximum=65_535)
    return options


def main() -> int:
    """Print the links to the sweeps of the store, and serve its UI if no server does; return the exit status."""
    options = parse()
    if file := get_missing_file(options.tracking_uri):  # opening the store would create it
        raise BadInputError(
            f"there are no sweeps yet in {file}; run one with: python sweeps/part3.py --quick, or say with "
            "MLFLOW_TRACKING_URI where they are"
        )
    from trainables.persistence.store import Store  # MLflow takes seconds to import, which --help need not wait for

    store = Store(options.tracking_uri)
    parents = choose_parents(store.find_parents(), options.names)
    if store.uri.startswith("http"):
        print_links(parents, get_address(store.uri))
        return 0
    port = choose_port(options.port)
    print(f"starting MLflow's server for {hide_password(store.uri)} …", flush=True)
    with suppress(KeyboardInterrupt), run_server(store.uri, port) as server:
        address = f"http://{HOST}:{port}"
        print_links(parents, address)
        print(describe_end(port), flush=True)
        if has_display() and not options.no_browser:
            webbrowser.open(make_link(parents[0], address))
        server.wait()
    return 0


def choose_parents(parents: Sequence[ParentRun], names: Sequence[str]) -> list[ParentRun]:
    """Return the parent runs of the sweeps that are named, or of all, the one that was run last first.

    Raises:
        BadInputError: There are none, or none of one of the names.
    """
    found = sorted(parents, key=lambda parent: parent.last_run, reverse=True)
    known = dict.fromkeys(parent.sweep for parent in found)
    if not known:
        raise BadInputError(
            "the tracking store has no sweep; run one with: python sweeps/part3.py --quick, or say with --tracking-uri "
            "where they are"
        )
    if unknown := [name for name in names if name not in known]:
        raise BadInputError(f"the tracking store has no sweep {unknown[0]!r}; it has {', '.join(known)}")
    return [parent for parent in found if parent.sweep in (names or known)]


def describe(parent: ParentRun) -> str:
    """Return a few words that say which sweep a link shows."""
    words = f"{parent.sweep} on {parent.dataset}"
    try:
        return f"{words}, last run {datetime.fromisoformat(parent.last_run).astimezone():%Y-%m-%d %H:%M}"
    except ValueError:  # an earlier version has run it, which kept no time
        return words


def make_link(parent: ParentRun, address: str) -> str:
    """Return the address that shows a sweep, on a server that has this address."""
    path = parent.tags.get(mlflow_ui.LINK_TAG)  # an earlier version has made none
    return f"{address}/{path or mlflow_ui.make_runs_path(parent.experiment_id)}"


def print_links(parents: Sequence[ParentRun], address: str) -> None:
    """Print the links to sweeps on a server that has this address."""
    for parent in parents:
        print(f"{describe(parent)}:\n    {make_link(parent, address)}", flush=True)


def get_address(uri: str) -> str:
    """Return the address of a server as a browser takes it: without user and password."""
    parts = urlsplit(PASSWORD.sub("", uri))
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl().rstrip("/")


def choose_port(port: int | None) -> int:
    """Return a port of the loopback address that a server can have: this one, or any.

    Raises:
        BadInputError: Another program has this one, or it needs rights that this user does not have.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((HOST, port or 0))
            probe.listen()
        except OSError as error:
            raise BadInputError(
                f"the port {port} cannot be used ({error.strerror}); name another with --port, or leave the choice to "
                "the script"
            ) from None
        found: int = probe.getsockname()[1]
    return found


def has_display() -> bool:
    """Return whether a browser that is started here shows on the user's screen."""
    if os.environ.get("SSH_CONNECTION"):
        return False
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def describe_end(port: int) -> str:
    """Return a line that says how to end the server, and how to reach it from where the user is."""
    words = os.environ.get("SSH_CONNECTION", "").split()  # addresses and ports of client and server
    if len(words) < 4:
        return "Ctrl-C ends it."
    tunnel = f"ssh -N -L {port}:{HOST}:{port} {words[2]}"
    return f"Ctrl-C ends it. Meanwhile, the links work on your own machine with: {tunnel}"


@contextmanager
def run_server(uri: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run MLflow's server until the block ends, which waits for the server or is interrupted.

    Args:
        uri: Store, which is a database.
        port: Port on the loopback address.

    Raises:
        TrackingError: The server does not start, or has ended by itself.
    """
    words = ["--host", HOST, "--port", str(port), "--workers", "1"]
    with tempfile.TemporaryDirectory(prefix="mlflow-ui-") as folder:
        log = Path(folder, "log")
        with log.open("wb") as stream:
            server = subprocess.Popen(
                [sys.executable, "-P", "-m", "mlflow", "server", *words],
                cwd=folder,  # where nothing lies that the server could import in the place of a library
                env=make_environment(uri),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                process_group=0,  # Ctrl-C is for this script, which then ends the server
            )
        try:
            if wait_for_answer(server, f"http://{HOST}:{port}/health"):
                yield server
            raise TrackingError(f"MLflow's server {describe_failure(server, log, uri)}")
        finally:
            end_server(server)


def make_environment(uri: str) -> dict[str, str]:
    """Return the environment of a store's server; a URI, which may hold a password, stands in no command line."""
    from trainables.persistence.artifacts import choose_location

    return {
        "MLFLOW_ARTIFACTS_DESTINATION": choose_location(uri, "") or "",
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": get_mlflow_uri(uri),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # jobs are for language models, and need further processes
    }


def wait_for_answer(server: subprocess.Popen[bytes], address: str) -> bool:
    """Wait until a server answers, and return whether it does."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        with suppress(OSError, HTTPException), opener.open(address, timeout=5):
            return True
        time.sleep(0.1)
    return False


def describe_failure(server: subprocess.Popen[bytes], log: Path, uri: str) -> str:
    """Return what is wrong with a server, with the end of its log on one line and without the store's password."""
    from trainables.persistence.failures import give_reason

    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    what = f"does not answer after {START_SECONDS:.0f} s" if server.poll() is None else "has ended"
    return f"{what}; its log ends with: {give_reason(ValueError(' '.join(lines)), uri)}"


def end_server(server: subprocess.Popen[bytes]) -> None:
    """End a server and its children; a second Ctrl-C ends them at once."""
    with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
        server.terminate()
        server.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):  # none is left
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


if __name__ == "__main__":
    sys.exit(run_to_exit_status(main))

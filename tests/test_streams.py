"""Output that cannot be written, and control codes in output, in the forms in which terminals and logs meet them."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import IO, Any

import pytest
from rich.progress import Progress
from rich.table import Table
from test_end_to_end import ROOT, check_store, start_script, wait_for

from sweeps.driver.report import make_console
from sweeps.driver.streams import Stream

COLOURS = re.compile(r"\x1b\[[\d;]*m")
VARIABLES = ("NO_COLOR", "FORCE_COLOR", "TERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "CLICOLOR_FORCE", "COLORTERM")


@contextmanager
def open_stream(kind: str) -> Iterator[tuple[Stream, int]]:
    """Open a stream into a pipe or a terminal, and yield it with the descriptor that reads what it writes."""
    reader, writer = os.pipe() if kind == "pipe" else pty.openpty()
    stream = Stream(writer, "utf-8", line_buffering=True)
    yield stream, reader
    stream.close()
    os.close(writer)
    os.close(reader)


def set_variables(monkeypatch: pytest.MonkeyPatch, **variables: str | None) -> None:
    """Set those of the variables on which colours may depend, and unset the others."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        if value is not None:
            monkeypatch.setenv(name, value)


def read_until(text: str, descriptor: int) -> str:
    """Return what a descriptor gives up to a text."""
    got = b""
    while text.encode() not in got:
        got += os.read(descriptor, 1)
    return got.decode()


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
@pytest.mark.parametrize("term", [None, "dumb", "xterm-256color"])
def test_control_codes_follow_the_conventions(kind: str, term: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    able = kind == "terminal" and term == "xterm-256color"
    for no_color, force_color, others in product((None, "", "1", "0"), (None, "", "1", "0"), ("0", "1", None)):
        set_variables(monkeypatch, TERM=term, NO_COLOR=no_color, FORCE_COLOR=force_color)
        if others is not None:
            for name in ("TTY_COMPATIBLE", "TTY_INTERACTIVE", "CLICOLOR_FORCE"):
                monkeypatch.setenv(name, others)
        with open_stream(kind) as (stream, reader):
            monkeypatch.setattr(sys, "stdout", stream)
            console = make_console()
            console.print("a note", style="yellow")
            console.print(Table(title="numbers"))
            with Progress(console=console, disable=not console.is_terminal) as progress:
                progress.add_task("training", total=10)
            stream.write("\x1b[31mof a library\x1b[0m \x1b]0;title\x07\x1b[2K\x1b[?25l\x1bMits end\n")
            out = read_until("its end", reader)
            monkeypatch.undo()
        coloured = not no_color and (bool(force_color) or able)
        assert bool(COLOURS.search(out)) == coloured, (no_color, force_color, others)
        assert ("\x1b" in COLOURS.sub("", out)) == able, (no_color, force_color, others)
        assert ("training" in out) == able, (no_color, force_color, others)
        assert "a note" in out
        assert "of a library" in out
        assert "title" not in out or able


def run_script(words: list[str], kind: str, **variables: str) -> tuple[int, str, str]:
    """Run a script, and return its exit status, and what it writes into standard output, of `kind`, and into a log."""
    environment = {name: text for name, text in os.environ.items() if name not in (*VARIABLES, "MLFLOW_TRACKING_URI")}
    environment |= {"PYTHONPATH": str(ROOT), **variables}
    reader, writer = os.pipe() if kind == "pipe" else pty.openpty()
    with subprocess.Popen([sys.executable, *words], stdout=writer, stderr=subprocess.PIPE, env=environment) as process:
        os.close(writer)
        out = b""
        with suppress(OSError):  # how Linux says that nobody has the terminal open any more
            while part := os.read(reader, 100_000):
                out += part
        os.close(reader)
        assert process.stderr is not None
        log = process.stderr.read()
    return process.returncode, out.decode(), log.decode()


PART3 = str(ROOT / "sweeps" / "part3.py")
QUICK = ["--quick", "--seeds", "1", "--epochs", "1", "--architectures", "mlp_1"]
COMMANDS = {
    "help": [PART3, "--help"],
    "dry run": [PART3, *QUICK, "--dry-run"],
    "bad value": [PART3, *QUICK, "--seeds", "0"],
    "bad option": [PART3, "--sedes", "1"],
    "table": [str(ROOT / "analysis" / "part1.py")],
}
STATUSES = {"help": 0, "dry run": 0, "bad value": 2, "bad option": 2, "table": 0}


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("command", COMMANDS)
def test_scripts_write_control_codes_only_where_they_belong(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words, status = COMMANDS[command], STATUSES[command]
    for kind, variables in [
        ("pipe", {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1", "CLICOLOR_FORCE": "1"}),
        ("pipe", {"FORCE_COLOR": "1", "NO_COLOR": "1"}),
        ("terminal", {"NO_COLOR": "1"}),
    ]:
        done, out, log = run_script(words, kind, TERM="xterm", **variables)
        assert done == status
        assert "\x1b" not in out + log
    done, out, log = run_script(words, "terminal", TERM="xterm")
    assert done == status
    assert "\x1b" not in log  # of a script whose standard output is a terminal
    done, out, log = run_script(words, "pipe", TERM="xterm", TTY_COMPATIBLE="1", TTY_INTERACTIVE="1", FORCE_COLOR="1")
    assert done == status
    assert "\x1b" not in COLOURS.sub("", out + log)


def make_closed_pipe() -> IO[str]:
    """Return the end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def make_hung_up_terminal() -> IO[str]:
    """Return a terminal whose other end is closed."""
    other, terminal = pty.openpty()
    os.close(other)
    return os.fdopen(terminal, "w")


BROKEN = {
    "closed pipe": make_closed_pipe,
    "full disk": partial(Path("/dev/full").open, "w"),
    "read only": Path(os.devnull).open,
    "hung up": make_hung_up_terminal,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_written_is_dropped(kind: str) -> None:
    with BROKEN[kind]() as file:
        stream = Stream(file.fileno(), "utf-8", line_buffering=False)
        assert stream.write("a line\n" * 10_000) == 70_000  # more than a buffer takes
        print("another", file=stream, flush=True)
        stream.close()


def test_a_file_keeps_what_fits_and_takes_more_when_there_is_room(tmp_path: Path) -> None:
    """Here the limit is that of `ulimit -f`, as a full disk needs root."""
    code = f"""
import os, resource, signal
from sweeps.driver.streams import Stream
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
stream = Stream(os.open({str(tmp_path / "log")!r}, os.O_WRONLY | os.O_CREAT), "utf-8", line_buffering=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (15, resource.RLIM_INFINITY))
print("0123456789", file=stream)
print("0123456789", file=stream)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print("later", file=stream)
"""
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    assert (tmp_path / "log").read_text() == "0123456789\n0123later\n"


def test_a_descriptor_that_does_not_block_gets_everything() -> None:
    """Another program that has the same terminal open may set it so."""
    with open_stream("pipe") as (stream, reader):
        os.set_blocking(stream.fileno(), False)
        child = f"import os\nn = 0\nwhile n < 500_000:\n    n += len(os.read({reader}, 1000))\n"
        with subprocess.Popen([sys.executable, "-c", child], pass_fds=[reader]) as process:
            stream.write("x" * 500_000)
            stream.flush()
            assert process.wait(30) == 0


def close_all() -> None:
    for descriptor in (0, 1, 2):
        os.close(descriptor)


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_ends_for_its_output(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words, environment = [sys.executable, *COMMANDS[command]], {**os.environ, "PYTHONPATH": str(ROOT)}
    with make_closed_pipe() as pipe, (tmp_path / "log").open("w+") as log:
        for out, err, prepare in [(pipe, log, None), (pipe, pipe, None), (log, pipe, None), (None, None, close_all)]:
            done = subprocess.run(
                words, env=environment, stdout=out, stderr=err, preexec_fn=prepare, check=False, timeout=60
            )
            assert done.returncode == STATUSES[command]
        log.seek(0)
        assert not re.search("Traceback|Exception|Errno", log.read())


SWEEP = ("--quick", "--seeds", "1", "--epochs", "3000")


def start_sweep(folder: Path, **streams: Any) -> subprocess.Popen[bytes]:
    """Start a sweep that a closed terminal does not stop, as with `nohup`."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "sweeps" / "xor.py"), *SWEEP],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        **streams,
    )


def check_all_is_done(folder: Path) -> None:
    """Check that the sweep's trials are finished: the same command trains none."""
    status, out = wait_for(start_script(folder, "sweeps", *SWEEP, experiment="xor"))
    assert status == 0
    assert "xor: 8 trials, 8 done, 0 missing" in out
    check_store(folder, 8)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_pipe_that_is_closed_in_mid_training_and_a_full_log_do_not_end_it(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with Path("/dev/full").open("w") as full:
        process = start_sweep(tmp_path, stdout=writer, stderr=full)
    os.close(writer)
    read_until("at once\n", reader)
    os.close(reader)
    assert process.wait(300) == 0
    check_all_is_done(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_terminal_that_hangs_up_under_a_progress_bar_does_not_end_training(tmp_path: Path) -> None:
    other, terminal = pty.openpty()
    process = start_sweep(tmp_path, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    read_until("running", other)
    os.close(other)
    assert process.wait(300) == 0
    check_all_is_done(tmp_path)

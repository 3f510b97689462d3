"""The tutorial's commands, run in order in a copy of the checkout, and what it shows of their output."""

from __future__ import annotations

import os
import pty
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "tutorial.md").read_text()
COPIED = ("trainables", "sweeps", "analysis", "docs", "README.md", "Makefile")
NEEDS_NETWORK = ["git clone ADDRESS neural-sweeps", "cd neural-sweeps", "make install", "source .venv/bin/activate"]
NUMBER = re.compile(r"−?\d[\d,.]*(?<![,.])")  # the minus sign of the answers; the hyphen is part of names
LEFT_OUT = "…"  # a line of the page that stands for any lines
UNCERTAIN_PHRASES = ("leads", "is ahead of", "diverged")  # a report has them, or not, as its results are


class Block(NamedTuple):
    """A fenced block of the page: `sh` and how to run it, or `text`, which is output of the block before it."""

    kind: str
    text: str


BLOCKS = [Block(*found) for found in re.findall(r"^```(.+)\n((?:.*\n)*?)```$", PAGE, flags=re.MULTILINE)]
PHRASES = re.findall(r"\*\*(.+?)\*\*", PAGE.partition("read like this:")[2].partition("\n## ")[0])  # of a report


def make_environment(folder: Path) -> dict[str, str]:
    """Return the environment of a shell in which the environment of this checkout's tests is active."""
    unwanted = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAY_AUTH_MODE", "SWEEPS_STORAGE", "SWEEPS_DATA_ROOT")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**environment, "PATH": path, "PYTHONPATH": str(folder), "TERM": "xterm", "COLUMNS": "100"}


def run_commands(commands: str, folder: Path) -> str:
    """Run the commands of a block, which must all succeed, and return what they print."""
    done = subprocess.run(
        ["sh", "-e", "-c", commands],
        cwd=folder,
        env=make_environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def press_ctrl_c(command: str, folder: Path) -> str:
    """Run a sweep on a terminal, press Ctrl-C when a trial is running, and return what it prints."""
    screen, terminal = pty.openpty()
    with subprocess.Popen(
        shlex.split(command),
        cwd=folder,
        env=make_environment(folder),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    ) as process:
        os.close(terminal)
        printed = b""
        pressed = False
        with suppress(OSError):  # it is raised when no process has the terminal any more
            while part := os.read(screen, 65536):
                printed += part
                if not pressed and re.search(rb"[1-9] running", printed):
                    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
                    pressed = True
    os.close(screen)
    assert process.returncode == 130, printed.decode()
    return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", printed.decode()).replace("\r", "\n")


def look_at_server(command: str, folder: Path) -> None:
    """Start a server on a free port, get its first page and the experiment `part3` from it, and end it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [*shlex.split(command), "--port", str(port), "--no-browser"]
    address = f"http://127.0.0.1:{port}"
    with (folder.parent / "server.log").open("wb") as log:
        process = subprocess.Popen(
            words, cwd=folder, env=make_environment(folder), stdout=log, stderr=log, start_new_session=True
        )
    try:
        assert b"MLflow" in get(address, process)
        assert b"part3" in get(f"{address}/api/2.0/mlflow/experiments/get-by-name?experiment_name=part3", process)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def get(address: str, process: subprocess.Popen[bytes]) -> bytes:
    """Return what a server answers, after waiting for it as long as its process lives."""
    while process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError:
            raise
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    pytest.fail(f"the server has ended with status {process.returncode}")


def mask(text: str) -> str:
    """Return a text with # for every number, and single spaces."""
    return " ".join(NUMBER.sub("#", text).split())


def check_output(shown: str, printed: str) -> None:
    """Check that the page shows what was printed, except for numbers, spaces, and what it leaves out."""
    parts = [mask(part) for part in re.split(rf"^{LEFT_OUT}$", shown, flags=re.MULTILINE)]
    pattern = ".*".join(re.escape(part) for part in parts)
    assert re.fullmatch(rf"\s*{pattern}\s*", mask(printed)), (
        f"the page shows\n{shown}\nbut this was printed:\n{printed}"
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_of_the_tutorial_works_and_prints_what_it_shows(tmp_path: Path) -> None:
    folder = tmp_path / "neural-sweeps"
    folder.mkdir()
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    printed = ""
    for block in BLOCKS:
        match block.kind:
            case "sh":
                printed = run_commands(block.text, folder)
            case "sh ctrl-c":
                printed = press_ctrl_c(block.text, folder)
            case "sh server":
                look_at_server(block.text, folder)
            case "text":
                check_output(block.text, printed)
    for name in re.findall(r"^\| `([\w.]+)/?` \|", PAGE, flags=re.MULTILINE):
        assert (folder / name).exists()
    for name in re.findall(r"`(figures/[\w./]+)`", PAGE):
        assert (folder / name).exists()
    report = mask((folder / "figures" / "report" / "report.md").read_text())
    assert PHRASES
    assert [phrase for phrase in PHRASES if phrase not in UNCERTAIN_PHRASES and mask(phrase) not in report] == []


def test_the_page_has_only_blocks_that_are_known() -> None:
    assert PAGE.count("```") == 2 * len(BLOCKS)
    assert {block.kind for block in BLOCKS} == {"sh", "sh ctrl-c", "sh server", "sh no-test", "text"}


def test_commands_that_are_not_run_need_the_network_or_are_run_otherwise() -> None:
    executed = [line for block in BLOCKS if block.kind.startswith("sh") for line in block.text.splitlines()]
    not_run = [line for block in BLOCKS if block.kind == "sh no-test" for line in block.text.splitlines()]
    install, [sweep, analysis, report] = not_run[: len(NEEDS_NETWORK)], not_run[len(NEEDS_NETWORK) :]
    assert install == NEEDS_NETWORK
    assert f"{sweep} --dry-run" in executed
    assert analysis == sweep.replace("sweeps/", "analysis/")
    assert report.removesuffix(" part3") in executed


def test_answers_use_the_phrases_that_the_page_explains() -> None:
    source = "".join(path.read_text() for path in (ROOT / "analysis").glob("*.py"))
    for phrase in UNCERTAIN_PHRASES:
        assert phrase in PHRASES
        assert phrase in source


def test_targets_of_make_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    used = re.findall(r"(?:^|`)make ([a-z-]+)", PAGE, flags=re.MULTILINE)
    assert used
    assert {*used} <= {*targets}


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("part3: 6 trials\n…\ndone\n", "part3: 10 trials\nmore\nand more\ndone\n", True),
        ("a 95.5 – 96.5, n = 5\n", "a 1.0 – 100.00,\nn = 12\n", True),
        ("by −29.2 points.\n", "by 1 points.\n", True),
        ("part3: 6 trials\n", "part3: 6 trials\nmore\n", False),
        ("…\ncnn_3 leads\n", "mlp_1\ncnn_3 falls\n", False),
        ("cnn_3\n…\n", "mlp_3\nmore\n", False),
    ],
)
def test_output_is_compared_except_for_numbers(shown: str, printed: str, same: bool) -> None:
    if same:
        check_output(shown, printed)
    else:
        with pytest.raises(AssertionError):
            check_output(shown, printed)

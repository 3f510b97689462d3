"""The script that shows sweeps in MLflow's UI: its links, and the start and the end of its server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from analysis import ui
from sweeps import mlflow_ui
from sweeps.cli import run_to_exit_status
from trainables.errors import BadInputError
from trainables.persistence.connection import LAST_RUN_TAG
from trainables.persistence.store import Store

ROOT = Path(__file__).resolve().parent.parent
SECRET = "postgresql+psycopg2://me:s3cr3t@127.0.0.1:9/db"
DAY_BEFORE, LAST = "2026-11-25T14:02:59+00:00", "2026-11-26T09:30:00+00:00"
# It stands for MLflow's server, and starts in a moment: it answers, has a child, and ends with a signal.
FAKE_SERVER = """#!{python}
import subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

child = subprocess.Popen(["sleep", "1000"])
open("{note}", "w").write(f"{{sys.argv[1:]}}\\n{{child.pid}}")
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""
BROKEN_SERVER = """#!/bin/sh
echo "a traceback"
echo "cannot open $MLFLOW_BACKEND_STORE_URI: s3cr3t is wrong"
exit 1
"""


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the links that would be opened in a browser, and press Ctrl-C after each."""
    found: list[str] = []

    def note(link: str) -> None:
        found.append(link)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("webbrowser.open", note)
    for name in ("MLFLOW_TRACKING_URI", "SSH_CONNECTION", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    return found


def run_ui(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run `python analysis/ui.py WORDS` in this process, and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["analysis/ui.py", *words])
    return run_to_exit_status(ui.main)


@pytest.fixture
def three_sweeps(store: Store) -> Store:
    store.tag_parent("part3", "digits", {LAST_RUN_TAG: DAY_BEFORE, mlflow_ui.LINK_TAG: "#/experiments/1/runs?a=b"})
    store.tag_parent("xor", "xor", {LAST_RUN_TAG: LAST})
    store.tag_parent("part3", "mnist", {mlflow_ui.LINK_TAG: "#/x"})
    return store


def replace_server(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> Path:
    """Let another program stand for MLflow's server, and return the file that it writes."""
    program = folder / "python"
    note = folder / "note"
    program.write_text(text.format(python=sys.executable, note=note))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return note


def has_ended(process: psutil.Process) -> bool:
    """Return whether a process that was killed ends within seconds, also where nobody has asked for its status."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


# The links


def test_a_server_gets_links_the_last_run_sweep_first(
    three_sweeps: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], opened: list[str]
) -> None:
    parents = three_sweeps.find_parents()
    stub = SimpleNamespace(uri="http://me:s3cr3t@host:5000/mlflow/", find_parents=lambda: parents)
    monkeypatch.setattr("trainables.persistence.store.Store", lambda uri: stub)
    assert run_ui(monkeypatch, "--tracking-uri", stub.uri) == 0
    [xor] = [parent for parent in parents if parent.sweep == "xor"]
    shown = [f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M}" for text in (LAST, DAY_BEFORE)]
    assert capsys.readouterr().out.splitlines() == [
        f"xor on xor, last run {shown[0]}:",
        f"    http://host:5000/mlflow/#/experiments/{xor.experiment_id}/runs?workflowType=machine_learning",
        f"part3 on digits, last run {shown[1]}:",
        "    http://host:5000/mlflow/#/experiments/1/runs?a=b",
        "part3 on mnist:",
        "    http://host:5000/mlflow/#/x",
    ]
    assert opened == []


def test_names_select_sweeps(three_sweeps: Store) -> None:
    parents = three_sweeps.find_parents()
    assert [p.dataset for p in ui.choose_parents(parents, ("part3",))] == ["digits", "mnist"]
    assert [p.sweep for p in ui.choose_parents(parents, ("part3", "xor"))] == ["xor", "part3", "part3"]
    with pytest.raises(BadInputError, match="no sweep 'part4'; it has xor, part3"):
        ui.choose_parents(parents, ("xor", "part4"))


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("http://host:5000", "http://host:5000"),
        ("https://host/mlflow/", "https://host/mlflow"),
        ("http://me@host", "http://host"),
        ("http://me:s3c/r@t@host:5000", "http://host:5000"),
        ("http://[::1]:5000?token=s3cret", "http://[::1]:5000"),
    ],
)
def test_the_address_of_a_server_has_no_password(uri: str, address: str) -> None:
    assert ui.get_address(uri) == address


# Bad input


def test_a_store_that_does_not_exist_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_ui(monkeypatch, "--tracking-uri", f"sqlite:///{tmp_path}/none/mlflow.db") == 2
    assert capsys.readouterr().err.startswith(f"error: there are no sweeps yet in {tmp_path}/none/mlflow.db; run one")
    assert [*tmp_path.iterdir()] == []


def test_a_store_without_sweeps_ends_with_a_sentence(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_ui(monkeypatch, "part3", "--tracking-uri", store.uri) == 2
    assert "the tracking store has no sweep; run one with: python sweeps/part3.py --quick" in capsys.readouterr().err


def test_a_port_that_another_program_has_is_refused(
    three_sweeps: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert run_ui(monkeypatch, "--tracking-uri", three_sweeps.uri, "--port", str(port)) == 2
        monkeypatch.setattr(ui, "USUAL_PORT", port)
        assert ui.choose_port(None) != port
    assert f"error: the port {port} cannot be used (Address already in use)" in capsys.readouterr().err
    assert ui.choose_port(port) == ui.choose_port(None) == port
    assert run_ui(monkeypatch, "--port", "65536") == 2
    assert "error: --port is 65536; it must be 65,535 at most" in capsys.readouterr().err


# The server


def test_the_first_link_is_opened_and_ctrl_c_ends_the_server(
    three_sweeps: Store,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    opened: list[str],
) -> None:
    note = replace_server(monkeypatch, tmp_path, FAKE_SERVER)
    assert run_ui(monkeypatch, "part3", "--tracking-uri", three_sweeps.uri) == 0
    words, child = note.read_text().splitlines()
    assert "'--host', '127.0.0.1'" in words
    assert three_sweeps.uri not in words
    assert not psutil.pid_exists(int(child)) or has_ended(psutil.Process(int(child)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"starting MLflow's server for {three_sweeps.uri} …"
    assert lines[2].endswith("/#/experiments/1/runs?a=b")
    assert lines[-1] == "Ctrl-C ends it."
    assert opened == [lines[2].strip()]


def test_a_server_that_does_not_start_is_explained_without_the_password(
    three_sweeps: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_server(monkeypatch, tmp_path, BROKEN_SERVER)
    parents = three_sweeps.find_parents()
    monkeypatch.setattr(Store, "find_parents", lambda self: parents)
    monkeypatch.setattr(Store, "__init__", lambda self, uri: setattr(self, "uri", uri))
    assert run_ui(monkeypatch, "--tracking-uri", SECRET) == 2
    shown = capsys.readouterr()
    assert "error: MLflow's server has ended; its log ends with: a traceback cannot open" in shown.err
    assert "127.0.0.1:9/db" in shown.out
    assert "s3cr3t" not in shown.out + shown.err


@pytest.mark.parametrize(
    ("variables", "shown", "words"),
    [
        ({"DISPLAY": ":0"}, True, "Ctrl-C ends it."),
        ({"WAYLAND_DISPLAY": "wayland-0"}, True, "Ctrl-C ends it."),
        ({}, sys.platform == "darwin", "Ctrl-C ends it."),
        ({"DISPLAY": ":0", "SSH_CONNECTION": "10.0.0.2 5 10.0.0.1 22"}, False, "ssh -N -L 81:127.0.0.1:81 10.0.0.1"),
    ],
)
def test_a_browser_is_opened_where_the_user_sees_it(
    variables: dict[str, str], shown: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPLAY")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ui.has_display() == shown
    assert ui.describe_end(81).endswith(words)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_real_server_shows_the_sweeps_and_ends_with_all_its_processes(three_sweeps: Store, tmp_path: Path) -> None:
    folder = tmp_path / "100% a%20b; c"  # names that a URI would encode
    folder.mkdir()
    (tmp_path / "mlflow.db").rename(folder / "mlflow.db")
    before = {*folder.iterdir()}
    with subprocess.Popen(
        [sys.executable, str(ROOT / "analysis" / "ui.py"), "part3", "--no-browser"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"},
        stdout=subprocess.PIPE,
        text=True,
    ) as script:
        assert script.stdout is not None
        lines = []
        while not lines or not lines[-1].startswith("Ctrl-C"):
            lines.append(script.stdout.readline())
            assert lines[-1], lines
        address, _, path = lines[2].strip().partition("/#/")
        assert path == "experiments/1/runs?a=b"
        with urllib.request.urlopen(f"{address}/ajax-api/2.0/mlflow/experiments/get?experiment_id=1") as answer:
            assert '"part3"' in answer.read().decode()
        processes = psutil.Process(script.pid).children(recursive=True)
        script.terminate()
        assert script.wait() == 0
    assert processes
    assert all(has_ended(process) for process in processes)
    assert {*folder.iterdir()} - before <= {folder / "mlflow.db.lock"}

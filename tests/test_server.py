"""A real MLflow server: its artifacts are written where it finds them, and its refusals are explained."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import make_sweep
from test_results import make_result, record

from trainables.errors import BadInputError, TrackingError
from trainables.persistence.artifacts import RunArtifacts
from trainables.persistence.store import Store
from trainables.persistence.stored_journal import StoredJournal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Run a server that leaves artifacts to its clients, and answers to `localhost` alone; yield its port."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
    words = ["--backend-store-uri", "sqlite:///mlflow.db", "--no-serve-artifacts", "--default-artifact-root", "./files"]
    words += ["--port", str(number), "--workers", "1", "--allowed-hosts", f"localhost:{number}"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *words],
            cwd=folder, env=os.environ | {"TMPDIR": str(folder)}, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        for _ in range(400):
            try:
                urllib.request.urlopen(f"http://localhost:{number}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.3)
        yield number
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def test_results_are_recorded_through_a_server_and_read(port: int) -> None:
    store = Store(f"http://localhost:{port}")
    sweep = make_sweep(seeds=1)
    record(store, sweep)
    for trial in sweep.trials():
        [run] = store.find_runs()[trial.id]
        assert store.read_result(run).test_accuracy == make_result(trial).test_accuracy


def test_a_journal_is_kept_through_a_server(port: int) -> None:
    name = "search/0123/round-0000.json"
    journal = StoredJournal(Store(f"http://localhost:{port}"), "search", "digits", writing=True)
    assert journal.read(name) is None
    journal.add(name, "first")
    again = StoredJournal(Store(f"http://localhost:{port}"), "search", "digits", writing=False)
    assert again.read(name) == "first"
    assert again.read("search/0123/round-0001.json") is None


def test_artifacts_that_the_server_does_not_find_are_refused(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a server on another machine, which names a folder of its own."""
    monkeypatch.setattr(RunArtifacts, "write", lambda self, source: None)
    with pytest.raises(BadInputError, match=r"would go to .*/files/\d+/.*, where the server does not find"):
        Store(f"http://localhost:{port}").ensure_parent("grid", "digits")


def test_a_name_that_the_server_refuses_is_explained(port: int) -> None:
    with pytest.raises(
        TrackingError, match=rf"Invalid Host header.*start the server with --allowed-hosts 127.0.0.1:{port}"
    ):
        Store(f"http://127.0.0.1:{port}")


def test_the_servers_database_named_directly_writes_where_the_server_does(port: int, tmp_path: Path) -> None:
    """The folder that the server names is on this machine, so both ways lead to the same files."""
    through = Store(f"http://localhost:{port}")
    through.ensure_parent("mnist", "digits")
    place = Path(through.client.get_experiment_by_name("mnist").artifact_location)  # type: ignore[union-attr]
    directly = Store(f"sqlite:///{place.parent.parent}/mlflow.db")
    assert directly.ensure_parent("mnist", "digits") == through.ensure_parent("mnist", "digits")
    assert not (place.parent.parent / "mlartifacts").exists()

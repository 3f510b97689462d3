"""A store that cannot be used: the sentence has the whole reason, and says what to do by cause."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from trainables.commands import name_program
from trainables.errors import TrackingError
from trainables.persistence.failures import convert_store_errors
from trainables.persistence.store import Store


class Answer(BaseHTTPRequestHandler):
    """Answers all requests alike: with the status, type and body that the server has."""

    def do_GET(self) -> None:
        status, kind, body = self.server.answer  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    do_POST = do_GET  # noqa: N815 (the name is the library's)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as made:
        Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def fail(uri: str) -> str:
    """Open a store that cannot be used, and return the sentence, which must be one line."""
    with pytest.raises(TrackingError, match="cannot be used") as raised:
        Store(uri)
    sentence = str(raised.value)
    assert "\n" not in sentence
    assert sentence.endswith(", or name another with --tracking-uri")
    return sentence


def error(code: str, message: str) -> str:
    return json.dumps({"error_code": code, "message": message})


LONG = "an answer of several sentences. " * 10
ANSWERS = {
    "host": (
        403,
        "text/plain",
        "Invalid Host header - possible DNS rebinding attack detected",
        "--allowed-hosts {host}",
    ),
    "401": (401, "text/html", "You are not authenticated.\nSee the documentation.", "MLFLOW_TRACKING_USERNAME and"),
    "403": (403, "application/json", error("PERMISSION_DENIED", "Permission denied"), "MLFLOW_TRACKING_TOKEN"),
    "404": (404, "text/html", "<html>\n<h1>Not Found</h1></html>", "is no MLflow server: correct host, port and path"),
    "a page": (200, "text/html", "<html>\n<h1>Welcome</h1></html>", "is no MLflow server: correct host, port and path"),
    "a list": (200, "application/json", "[1, 2]", "is no MLflow server: correct host, port and path"),
    "500": (500, "text/html", "Internal Server Error", "look into the server's log"),
    "503": (503, "text/html", "Service Unavailable", "look into the server's log"),
    "a locked database": (400, "application/json", error("BAD_REQUEST", "database is locked"), "wait for the program"),
    "a long reason": (400, "application/json", error("BAD_REQUEST", LONG + "The end."), "The end.); see to that"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_that_is_no_use_is_explained(case: str, server: ThreadingHTTPServer) -> None:
    *server.answer, advice = ANSWERS[case]  # type: ignore[attr-defined]
    host = f"127.0.0.1:{server.server_port}"
    sentence = fail(f"http://{host}")
    assert advice.format(host=host) in sentence
    assert "start it," not in sentence


def test_the_proxy_variable_is_named(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answer = (403, "text/html", "<html>blocked</html>")  # type: ignore[attr-defined]
    for proxy in (f"http://127.0.0.1:{server.server_port}", "http://127.0.0.1:9"):
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            with monkeypatch.context() as patch:
                patch.setenv(name, proxy)
                expected = f"the proxy that {name} names: add tracking.invalid to NO_PROXY if it should not"
                assert expected in fail("http://tracking.invalid:5000")
                patch.setenv("NO_PROXY", "tracking.invalid")
                assert "correct the host in the tracking URI" in fail("http://tracking.invalid:5000")


def test_a_server_that_is_away_is_to_be_started(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "start it, or wait until it answers" in fail("http://127.0.0.1:9")
    assert "correct the host in the tracking URI" in fail("http://no-such-host.invalid:5000")
    assert "use http:// in the place of https://" in fail(f"https://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert "start it, or wait until it answers" in fail(f"http://127.0.0.1:{silent.getsockname()[1]}")


def run_sql(*statements: str) -> Callable[[Path], object]:
    """Return a function that changes a database."""

    def change(path: Path) -> None:
        with closing(sqlite3.connect(path)) as database:
            for statement in statements:
                database.execute(statement)
            database.commit()

    return change


# case → (change of a database's file, part of the sentence)
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "an older schema": (
        run_sql("UPDATE alembic_version SET version_num = 'bda7b8c39065'"),
        "older MLflow: make a copy of it, then run: {mlflow} db upgrade sqlite:///{path}, or",
    ),
    "a newer schema": (
        run_sql("UPDATE alembic_version SET version_num = 'ffff'"),
        "a newer MLflow: install that version",
    ),
    "a newer schema with a table less": (
        run_sql("UPDATE alembic_version SET version_num = 'ffff'", "DROP TABLE secrets"),
        "a newer MLflow: install that version",
    ),
    "no database": (lambda path: path.write_bytes(b"x" * 5000), "no database of MLflow, or damaged: put back a copy"),
    "half of one": (
        lambda path: path.write_bytes(path.read_bytes()[:100_000]),
        "no database of MLflow, or damaged: put back a copy",
    ),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "name a file in a folder"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_use_is_explained(case: str, empty_database: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(empty_database, tmp_path / "mlflow.db"))
    change, advice = FILES[case]
    change(path)
    sentence = fail(f"sqlite:///{path}")
    assert advice.format(path=path, mlflow=name_program("mlflow")) in sentence
    assert "SQL" not in sentence
    assert sentence.count("db upgrade") == (case == "an older schema")


def test_a_locked_database_is_to_be_waited_for(empty_database: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(empty_database, tmp_path / "mlflow.db"))
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        assert "wait for the program that holds it, or end that" in fail(f"sqlite:///{path}")


def test_a_file_below_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "name a file in a folder" in fail(f"sqlite:///{tmp_path}/file/mlflow.db")


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("mysql+pymysql://me:secret@127.0.0.1:9/db", "-m pip install pymysql"),
        ("postgresql+nonsense://me:secret@127.0.0.1:9/db", "use a driver that SQLAlchemy has"),
        ("postgresql://me:secret@127.0.0.1:port/db", "correct the tracking URI"),
        ("http://127.0.0.1:99999", "correct the tracking URI"),
    ],
)
def test_a_uri_that_is_no_use_is_explained(uri: str, advice: str) -> None:
    sentence = fail(uri)
    assert advice in sentence
    assert "secret" not in sentence


# Texts of drivers that may not be installed where the tests run, and of disks that are full.
DRIVERS_ERRORS = {
    'connection to server at "127.0.0.1", port 5432 failed: FATAL:  password authentication failed for user "me"': (
        "correct the user and the password in the tracking URI"
    ),
    'connection to server at "h", port 5432 failed: fe_sendauth: no password supplied': "correct the user and the",
    'FATAL:  database "runs" does not exist': "make that database, or correct its name",
    'could not translate host name "h" to address: Name or service not known': "correct the host in the tracking URI",
    'connection to server at "::1", port 9 failed: Connection refused\n\tIs the server running?': "start it, or wait",
    "server closed the connection unexpectedly": "start it, or wait",
    "(1045, \"Access denied for user 'me'@'localhost' (using password: YES)\")": "correct the user and the password",
    "attempt to write a readonly database": "give this user the right to read and write",
    "database or disk is full": "make room on its disk",
    "[Errno 28] No space left on device": "make room on its disk",
}


@pytest.mark.parametrize("text", DRIVERS_ERRORS)
def test_an_error_of_a_driver_is_explained(text: str) -> None:
    with (
        pytest.raises(TrackingError) as raised,
        convert_store_errors("postgresql://me:secret@h/db"),
    ):
        raise RuntimeError(
            f"(psycopg2.OperationalError) {text}\n\n(Background on this error at: https://sqlalche.me/e)"
        )
    assert f"({' '.join(f'(psycopg2.OperationalError) {text}'.split())}); {DRIVERS_ERRORS[text]}" in str(raised.value)

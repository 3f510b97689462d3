"""Jobs on a cluster, with a small imitation of Ray's dashboard; `cluster/suite.py` uses a real one."""

from __future__ import annotations

import io
import json
import logging
import signal
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import run_sweep

from sweeps.driver import jobs
from sweeps.driver.jobs import make_job_name, parse_job_number, select_forwarded_options
from sweeps.experiment import JOB_ADDRESS_VARIABLE
from trainables.commands import name_program

QUICK_JOB = f"{make_job_name('part3', ['--quick'])}"


class Dashboard(ThreadingHTTPServer):
    """An imitation of Ray's dashboard, on which every submitted job has ended by the first request for it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), DashboardHandler)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.packages: list[bytes] = []
        self.exit_code: int | None = 0
        self.status = "SUCCEEDED"
        self.refusal: int | None = None
        self.answers_left = 10**6
        self.hides_jobs = False
        self.interrupt = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, job: str, status: str, **more: Any) -> None:
        self.jobs[job] = {
            "type": "SUBMISSION",
            "submission_id": job,
            "status": status,
            "entrypoint": "",
            "message": "as it was",
            **more,
        }


class DashboardHandler(BaseHTTPRequestHandler):
    server: Dashboard

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        server, words = self.server, self.path.strip("/").split("/")
        server.answers_left -= 1
        if server.refusal or server.answers_left < 0:
            self.reply("no", server.refusal or 500)
        elif words == ["api", "version"]:
            self.reply({"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""})
        elif words[1] == "packages":
            self.reply("not here", 404)
        elif words == ["api", "jobs"]:
            self.reply([] if server.hides_jobs else list(server.jobs.values()))
        elif words[-1] == "logs":
            if server.interrupt:
                signal.raise_signal(signal.SIGTERM)
            self.reply({"logs": "what the sweep says\n"})
        else:
            self.reply(server.jobs[words[2]])

    def do_PUT(self) -> None:
        self.server.packages.append(self.body())
        self.reply("")

    def do_POST(self) -> None:
        asked = json.loads(self.body())
        job = asked["submission_id"]
        if job in self.server.jobs:
            self.reply(f"ValueError: Job with submission_id {job} already exists.", 400)
            return
        self.server.add(job, self.server.status, driver_exit_code=self.server.exit_code, asked=asked)
        self.reply({"job_id": job, "submission_id": job})


@pytest.fixture
def dashboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.01)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")  # --address takes precedence
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)  # the home folder may have none
    with Dashboard() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    logging.disable(logging.NOTSET)


def test_a_job_gets_all_options_but_the_address() -> None:
    words = ["--seeds", "2", "--address", "http://h:1", "--architectures", "mlp_1", "cnn_3", "--storage=-x", "--quick"]
    assert select_forwarded_options(words) == [
        "--architectures",
        "mlp_1",
        "cnn_3",
        "--quick",
        "--seeds",
        "2",
        "--storage=-x",
    ]
    assert select_forwarded_options(["--address=http://h:1"]) == []


def test_the_same_options_are_the_same_job() -> None:
    def name(*words: str) -> str:
        return make_job_name("part3", select_forwarded_options(words))

    assert name("--seeds", "2", "--epochs", "1") == name("--epochs", "1", "--address", "http://h:1", "--seeds", "2")
    assert name("--seeds", "2", "--epochs", "1") != name("--seeds", "1", "--epochs", "2")
    assert name("--seeds", "2") != name("--seeds", "2", "--dry-run")
    assert name().startswith("part3-")


@pytest.mark.parametrize(
    ("job", "number"), [("a-1", 1), ("a-12", 12), ("a-0", 0), ("a-b-1", 0), ("a-", 0), (None, 0), ("ba-1", 0)]
)
def test_the_number_of_a_job_is_read_from_its_id(job: str | None, number: int) -> None:
    assert parse_job_number(job, "a") == number


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),
        ("FAILED", 130, 130),
        ("FAILED", -9, 1),
        ("FAILED", None, 1),
        ("STOPPED", None, 130),
    ],
)
def test_the_command_ends_with_the_exit_status_of_the_sweep(
    status: str,
    code: int | None,
    expected: int,
    dashboard: Dashboard,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dashboard.status, dashboard.exit_code = status, code
    assert run_sweep(monkeypatch, "--quick", "--address", dashboard.address) == expected
    captured = capsys.readouterr()
    assert captured.out.endswith("what the sweep says\n")
    assert ("as it was" in captured.err) == (code in (-9, None) and status == "FAILED")


def test_a_job_gets_its_command_its_environment_and_the_code(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")  # a tunnel on this computer alone
    assert run_sweep(monkeypatch, "--quick", "--storage", "/srv/my storage", "--address", dashboard.address) == 0
    [job] = dashboard.jobs.values()
    assert (
        job["asked"]["entrypoint"]
        == """cd && exec python "$OLDPWD/sweeps/part3.py" --quick --storage '/srv/my storage'"""
    )
    assert job["asked"]["runtime_env"]["env_vars"][JOB_ADDRESS_VARIABLE] == dashboard.address
    assert job["asked"]["runtime_env"]["env_vars"]["SWEEPS_COMMIT"]
    [package] = dashboard.packages
    names = {Path(name).parts[0] for name in zipfile.ZipFile(io.BytesIO(package)).namelist()}
    assert names == {"sweeps", "trainables"}


def test_a_running_job_is_found_again_and_an_ended_one_is_not(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--quick", "--address", dashboard.address]
    assert run_sweep(monkeypatch, *words) == 0
    assert run_sweep(monkeypatch, *words) == 0
    assert list(dashboard.jobs) == [f"{QUICK_JOB}-1", f"{QUICK_JOB}-2"]
    dashboard.jobs[f"{QUICK_JOB}-2"]["status"] = "RUNNING"
    dashboard.interrupt = True
    assert run_sweep(monkeypatch, *words) == 130
    assert list(dashboard.jobs) == [f"{QUICK_JOB}-1", f"{QUICK_JOB}-2"]
    captured = capsys.readouterr()
    assert f"job {QUICK_JOB}-2 runs already" in captured.out
    assert f"{name_program('python')} sweeps/part3.py --quick --address {dashboard.address}" in captured.err
    assert f"ray job stop {QUICK_JOB}-2 --address {dashboard.address}" in captured.err


def test_two_commands_at_the_same_instant_share_a_job(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    dashboard.hides_jobs = True  # as if the other command submitted between our listing of jobs and our submission
    dashboard.add(f"{QUICK_JOB}-1", "FAILED", driver_exit_code=2)
    assert run_sweep(monkeypatch, "--quick", "--address", dashboard.address) == 2
    assert list(dashboard.jobs) == [f"{QUICK_JOB}-1"]


def test_a_command_stops_waiting_for_a_cluster_that_falls_silent(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jobs, "RECONNECT_SECONDS", 0.1)
    dashboard.answers_left = 4  # two about the version, one each about the jobs and the package
    assert run_sweep(monkeypatch, "--quick", "--address", dashboard.address) == 1
    assert "the same command finds it again" in capsys.readouterr().err


BAD = [
    ("ftp://127.0.0.1:8265", "is not that of a dashboard; give http://HOST:PORT"),
    ("127.0.0.1:8265", "is not that of a dashboard"),
    ("http://", "is not that of a dashboard"),
    ("http://127.0.0.1:port", "is not that of a dashboard"),
    ("http://[", "is not that of a dashboard"),
    ("http://127.0.0.1/jobs", "is not that of a dashboard"),
    ("http://127.0.0.1:9", "Failed to connect"),
    ("", "is not that of a dashboard"),
]


@pytest.mark.parametrize(("address", "sentence"), BAD)
def test_bad_addresses_are_refused_in_one_sentence(
    address: str,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dashboard: Dashboard,
) -> None:
    assert run_sweep(monkeypatch, "--quick", "--address", address) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [(401, "wants another token"), (403, "wants another token"), (404, "no Ray cluster"), (503, "no Ray cluster")],
)
def test_refusals_of_the_dashboard_are_reported_in_one_sentence(
    refusal: int,
    sentence: str,
    dashboard: Dashboard,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dashboard.refusal = refusal
    assert run_sweep(monkeypatch, "--quick", "--address", dashboard.address) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert err.count("\n") == 1


def test_bad_options_are_refused_before_a_job_is_submitted(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_sweep(monkeypatch, "--quick", "--seeds", "0", "--address", dashboard.address) == 2
    assert dashboard.jobs == {}

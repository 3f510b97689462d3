"""A laboratory: one folder in which a real sweep runs, meets a fault, runs again, and is held against a calm one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from cluster.verify import lost_and_doubled
from sweeps.driver.autotune import CACHE_FILE
from sweeps.driver.cluster import get_private_folder
from trainables.persistence.store import Store
from trainables.persistence.trial_run import MODEL_ARTIFACT
from trainables.result import Result

ROOT = Path(__file__).resolve().parent.parent
WORDS = "--dataset digits --seeds 1 --architectures mlp_1 cnn_3 --epochs 2 --batch-size 10 --checkpoint-seconds 0.5"
LIMIT_SECONDS = 240.0
Reference = dict[str, tuple[Result, bytes]]  # trial id → its result, and its model's weights


class Failure(Exception):  # noqa: N818
    """A fault was not survived."""


def check(condition: object, text: str) -> None:
    """Raise `Failure` unless `condition` holds."""
    if not condition:
        raise Failure(text)


@dataclass
class Run:
    """A sweep script that runs or has run."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait(self) -> str:
        """Wait for its end; what it printed."""
        try:
            self.process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failure(f"did not end in {LIMIT_SECONDS:.0f} s: {self.output()}") from None
        check("Traceback" not in self.output(), self.output())
        return self.output()

    def ends_with(self, status: int) -> str:
        """Wait for its end with this exit status; what it printed."""
        output = self.wait()
        check(self.process.returncode == status, f"exit status {self.process.returncode}, not {status}: {output}")
        return output

    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL to the driver alone."""
        self.process.kill()
        self.process.wait()

    def workers(self) -> list[psutil.Process]:
        """The processes that train its trials now."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
            return [process for process in found if "ImplicitFunc" in " ".join(process.cmdline())]
        except psutil.NoSuchProcess:
            return []


@dataclass
class Lab:
    """A folder for one fault.

    Attributes:
        reference: What an undisturbed sweep left.
        words: More options of the sweep.
        storage: The folder of `--storage`.
        token: The file that makes a fault happen once.
        database: The store that holds the runs, whether a server stands before it or not.
        uri: What the sweep is told of it.
        variables: Of the sweep's environment.
        injected: Whether the fault has happened.
    """

    folder: Path
    reference: Reference
    words: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.storage = self.folder / "storage"
        self.token = self.folder / "token"
        self.database = f"sqlite:///{self.folder}/mlflow.db"
        self.uri = self.database
        self.variables: dict[str, str] = {}
        self.injected = False
        self.runs: list[Run] = []
        self.disks: list[Path] = []
        self.servers: list[Server] = []
        for name in ("tmp", "storage"):
            (self.folder / name).mkdir(parents=True)
        self.token.touch()

    def environment(self) -> dict[str, str]:
        """Of the sweep: nothing of this process's Ray and MLflow, and temporary files in the laboratory."""
        unwanted = ("RAY_", "MLFLOW_", "CHAOS_")
        return {name: value for name, value in os.environ.items() if not name.startswith(unwanted)} | {
            "PYTHONPATH": f"{ROOT / 'chaos' / 'inject'}:{ROOT}",
            "TMPDIR": str(self.folder / "tmp"),
            "CHAOS_TOKEN": str(self.token),
            "CHAOS_STEP_SECONDS": "0.02",
            **self.variables,
        }

    def start(self, storage: Path | None = None, /, **chaos: str) -> Run:
        """Start the sweep, slowed down; `chaos` are variables of `inject/sitecustomize.py` without their prefix."""
        known, place = self.folder.parent / CACHE_FILE, storage or self.storage
        if known.exists() and not (place / CACHE_FILE).exists():  # else noise might choose other last bits
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(known, place / CACHE_FILE)
        variables = {f"CHAOS_{name}": value for name, value in chaos.items()}
        log = self.folder / f"run_{len(self.runs)}.log"
        words = [*WORDS.split(), "--tracking-uri", self.uri, "--storage", str(storage or self.storage), *self.words]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "sweeps" / "part3.py"), *words],
                cwd=self.folder,
                env={**self.environment(), **variables},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.runs.append(Run(process, log))
        return self.runs[-1]

    def checkpoints(self) -> list[Path]:
        """The steps' checkpoints that are there now, by trial, the newest first."""
        return sorted((self.storage / "trials").glob("*/[0-9]*.checkpoint"), reverse=True)

    def in_the_middle(self, run: Run) -> None:
        """Wait until each of the two trials has left two checkpoints."""
        self.wait_until(lambda: len(self.checkpoints()) >= 4, "checkpoints of both trials", run)

    def results(self) -> list[Path]:
        """The results that trials keep because the store has not taken them."""
        return list((self.storage / "trials").glob("*/result.checkpoint"))

    def wait_until(self, condition: Callable[[], object], what: str, run: Run) -> None:
        """Wait for something that should happen while the sweep runs."""
        deadline = time.monotonic() + LIMIT_SECONDS / 2
        while not condition():
            check(run.process.poll() is None, f"the sweep ended before there were {what}: {run.output()}")
            check(time.monotonic() < deadline, f"there were no {what} in time: {run.output()}")
            time.sleep(0.02)

    def same_command_again(self, **chaos: str) -> str:
        """Run the same command to its end; what it printed."""
        return self.start(**chaos).ends_with(0)

    def close(self) -> None:
        """End what still runs, and remove the folder."""
        for run in self.runs:
            if run.process.poll() is None:
                run.kill()
        for server in self.servers:
            server.kill()
        for disk in self.disks:
            subprocess.run(["umount", "--lazy", disk], check=False)
        for storage in (self.storage, self.folder / "elsewhere"):
            shutil.rmtree(get_private_folder(storage), ignore_errors=True)
        if "RAY_TMPDIR" in self.variables:
            shutil.rmtree(self.variables["RAY_TMPDIR"], ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def small_disk(self, path: Path, megabytes: int) -> None:
        """Mount a file system of its own at `path`, to fill up or to close."""
        path.mkdir(exist_ok=True)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", path], check=False)
        check(mounted.returncode == 0, "a file system of its own could not be mounted; that needs root")
        self.disks.append(path)

    def server(self) -> Server:
        """Start a tracking server that stands before the database until the laboratory closes."""
        server = Server(self.folder, self.database)
        self.uri = server.uri
        self.servers.append(server)
        server.start()
        return server

    def verdict(self) -> tuple[int, int]:
        """Hold everything against the undisturbed sweep; how many points were lost, and how many are doubled.

        Raises:
            Failure: A result differs, a trial has not one finished run, something stands as running or was left.
        """
        for script in self.runs:
            check("Traceback" not in script.output(), script.output())
        store = Store(self.uri)
        recorded = store.find_runs()
        check(set(recorded) == set(self.reference), f"trials {set(recorded)}, not {set(self.reference)}")
        lost = doubled = 0
        for trial_id, (expected, model) in self.reference.items():
            check(len(recorded[trial_id]) == 1, f"{trial_id} has {len(recorded[trial_id])} runs")
            [run] = recorded[trial_id]
            check(run.finished, f"{run.name} is {run.status}")
            actual = store.read_result(run)
            same = {name: curve.tobytes() for name, curve in expected.curves.items()}
            check(
                {name: curve.tobytes() for name, curve in actual.curves.items()} == same, f"{run.name}: curves differ"
            )
            check(np.array_equal(actual.first_layer, expected.first_layer), f"{run.name}: the first layers differ")
            accuracies = [m.value for m in store.client.get_metric_history(run.run_id, "test_accuracy")]
            check([actual.test_accuracy] == accuracies == [expected.test_accuracy], f"{run.name}: {accuracies}")
            with store.open_artifact(run, MODEL_ARTIFACT) as path:
                check(model_bytes(path) == model, f"{run.name}: weights differ")
            run_lost, run_doubled = lost_and_doubled(store, run, expected)
            lost += run_lost
            doubled += run_doubled
        running = store.client.search_runs(list(store.experiments), "attributes.status = 'RUNNING'")
        check(not running, f"{len(running)} runs stand as RUNNING")
        self.check_leftovers()
        return lost, doubled

    def check_leftovers(self) -> None:
        """Nothing may be left in temporary places, nor checkpoints of finished trials."""
        trials = self.storage / "trials"
        # torch makes the folder of its compiler's cache when it is imported
        left = [path for path in (self.folder / "tmp").rglob("*") if not path.name.startswith("torchinductor_")]
        left += trials.rglob("*") if trials.exists() else ()
        left += [path for path in self.storage.iterdir() if path.name not in ("trials", "sweep.lock", CACHE_FILE)]
        base = Path(self.variables.get("RAY_TMPDIR", "/tmp"))
        private = [base / get_private_folder(storage).name for storage in (self.storage, self.folder / "elsewhere")]
        left += [folder for folder in private if folder.exists()]
        check(not left, f"left behind: {', '.join(map(str, left[:5]))}")


def model_bytes(path: Path) -> bytes:
    """The weights in a model's file, in a form that can be compared."""
    import torch

    weights = torch.load(path, map_location="cpu", weights_only=True)
    return b"".join(name.encode() + value.numpy().tobytes() for name, value in weights.items())


def undisturbed(folder: Path, words: Sequence[str] = ()) -> Reference:
    """What the sweep leaves when nothing happens to it."""
    lab = Lab(folder, {}, words=words)
    lab.start(STEP_SECONDS="0").ends_with(0)
    store = Store(lab.database)
    found = {}
    for trial_id, [run] in store.find_runs().items():
        with store.open_artifact(run, MODEL_ARTIFACT) as path:
            found[trial_id] = (store.read_result(run), model_bytes(path))
    lab.check_leftovers()
    shutil.copy(lab.storage / CACHE_FILE, folder.parent / CACHE_FILE)
    lab.close()
    return found


class Server:
    """A real `mlflow server` on loopback before a database; its artifacts and its log lie in `folder`."""

    def __init__(self, folder: Path, database: str, workers: int = 1, **variables: str) -> None:
        self.folder = folder
        self.database = database
        self.workers = workers
        self.variables = variables
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        folder = self.folder
        words = ["--backend-store-uri", self.database, "--artifacts-destination", str(folder / "artifacts")]
        words += ["--port", str(self.port), "--workers", str(self.workers)]
        with (folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *words],
                cwd=folder,
                env={**os.environ, "TMPDIR": str(folder), **self.variables},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        raise Failure(f"the tracking server did not start: {(folder / 'server.log').read_text()[-2000:]}")

    def kill(self) -> None:
        """SIGKILL to the server and its helpers."""
        if self.process is not None and self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def remount(path: Path, options: str) -> None:
    """Change a mounted file system's options."""
    subprocess.run(["mount", "-o", f"remount,{options}", path], check=True)

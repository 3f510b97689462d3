"""Laboratory: a folder in which a real sweep meets a fault, runs again, and is compared with an undisturbed sweep."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from cluster.verify import count_lost_and_doubled
from sweeps.driver.autotune import CACHE_FILE
from sweeps.driver.options import RunOptions
from trainables.persistence.store import Store
from trainables.persistence.trial_run import MODEL_ARTIFACT
from trainables.result import Result

ROOT = Path(__file__).resolve().parent.parent
TIME_LIMIT_SECONDS = 240.0
IDS_AND_TIMES = re.compile(r'\b[0-9a-f]{32}\b|\d{4}-\d\d-\d\d \d\d:\d\d UTC|"(created|updated)At": \d+')


class NotSurvivedError(Exception):
    """Evidence that a fault was not survived."""


class Command(NamedTuple):
    """A sweep's command line, without the places that it uses.

    Attributes:
        experiment: Name of the sweep.
        options: Its options.
    """

    experiment: str
    options: str


SWEEP = Command(
    "part3",
    "--dataset digits --seeds 1 --architectures mlp_1 cnn_3 --epochs 2 --batch-size 10 --checkpoint-seconds 0.5",
)


class Reference(NamedTuple):
    """The outcome of an undisturbed sweep.

    Attributes:
        trials: Trial id → its result, and the weights of its model.
        page: What `read_page` returned.
        journal: What `read_journal` returned.
    """

    trials: Mapping[str, tuple[Result, bytes]]
    page: Mapping[str, str]
    journal: Mapping[str, str]


def check(condition: object, text: str) -> None:
    """Raise `NotSurvivedError` unless `condition` holds."""
    if not condition:
        raise NotSurvivedError(text)


@dataclass
class SweepProcess:
    """A sweep script that is running or has ended.

    Attributes:
        process: The driver.
        log: File with everything that the script prints.
    """

    process: subprocess.Popen[bytes]
    log: Path

    def wait(self) -> str:
        """Wait until the script ends; return what it printed."""
        try:
            self.process.wait(TIME_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise NotSurvivedError(f"did not end in {TIME_LIMIT_SECONDS:.0f} s: {self.read_output()}") from None
        check("Traceback" not in self.read_output(), self.read_output())
        return self.read_output()

    def wait_for_status(self, status: int) -> str:
        """Wait until the script ends, check its exit status, and return what it printed."""
        output = self.wait()
        check(self.process.returncode == status, f"exit status {self.process.returncode}, not {status}: {output}")
        return output

    def read_output(self) -> str:
        """Return what the script has printed so far."""
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """Send SIGKILL to the driver, and to no other process."""
        self.process.kill()
        self.process.wait()

    def find_workers(self) -> list[psutil.Process]:
        """Return the worker processes that train the sweep's trials now."""
        return self.find_processes("ImplicitFunc")

    def find_processes(self, text: str) -> list[psutil.Process]:
        """Return the processes below the driver with this text in their names or command lines, the uppermost first."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
            return [process for process in found if text in " ".join([process.name(), *process.cmdline()])]
        except psutil.NoSuchProcess:
            return []


@dataclass
class Lab:
    """Laboratory for one fault: a folder with a store and a storage of its own, and the processes started in it.

    Attributes:
        folder: Everything that the laboratory writes lies in it.
        reference: Results of the undisturbed sweep.
        command: The sweep's command line.
        storage: The folder given to the sweep as `--storage`.
        token: The file whose removal marks that a fault has happened, so that it happens only once.
        database: URI of the database that holds the runs, with or without a tracking server in front of it.
        uri: The tracking URI given to the sweep.
        variables: Further environment variables of the sweep.
        prefix: Words before the sweep's command line.
        injected: Whether the fault has happened.
    """

    folder: Path
    reference: Reference
    command: Command = SWEEP

    def __post_init__(self) -> None:
        self.storage = self.folder / "storage"
        self.token = self.folder / "token"
        self.database = f"sqlite:///{self.folder}/mlflow.db"
        self.uri = self.database
        self.variables: dict[str, str] = {}
        self.prefix: Sequence[str] = ()
        self.injected = False
        self.sweeps: list[SweepProcess] = []
        self.disks: list[Path] = []
        self.servers: list[Server] = []
        for name in ("tmp", "storage"):
            (self.folder / name).mkdir(parents=True)
        self.token.touch()

    def make_environment(self) -> dict[str, str]:
        """Return the sweep's environment: no settings of Ray and MLflow, temporary files in the laboratory."""
        unwanted = ("RAY_", "MLFLOW_", "CHAOS_")
        return {name: value for name, value in os.environ.items() if not name.startswith(unwanted)} | {
            "PYTHONPATH": f"{ROOT / 'chaos' / 'inject'}:{ROOT}",
            "TMPDIR": str(self.folder / "tmp"),
            "CHAOS_TOKEN": str(self.token),
            "CHAOS_STEP_SECONDS": "0.02",
            **self.variables,
        }

    def start(self, storage: Path | None = None, /, **chaos: str) -> SweepProcess:
        """Start the sweep, slowed down so that faults meet it in mid-training.

        Args:
            storage: A folder to use instead of the laboratory's.
            chaos: Variables of `inject/sitecustomize.py`, without the prefix `CHAOS_`.
        """
        # With another backend for convolutions, which noise might choose, the last bits of results would differ.
        tuned, place = self.folder.parent / CACHE_FILE, storage or self.storage
        if tuned.exists() and not (place / CACHE_FILE).exists():
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(tuned, place / CACHE_FILE)
        variables = {f"CHAOS_{name}": value for name, value in chaos.items()}
        log = self.folder / f"run_{len(self.sweeps)}.log"
        script = str(ROOT / "sweeps" / f"{self.command.experiment}.py")
        places = ["--tracking-uri", self.uri, "--storage", str(storage or self.storage)]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*self.prefix, sys.executable, script, *self.command.options.split(), *places],
                cwd=self.folder,
                env={**self.make_environment(), **variables},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.sweeps.append(SweepProcess(process, log))
        return self.sweeps[-1]

    def rerun(self, **chaos: str) -> str:
        """Run the same command again to its end; return what it printed."""
        return self.start(**chaos).wait_for_status(0)

    def list_checkpoints(self) -> list[Path]:
        """Return the checkpoints that exist now, in reverse order of trial and step: a trial's newest comes first."""
        return sorted((self.storage / "trials").glob("*/[0-9]*.checkpoint"), reverse=True)

    def list_kept_results(self) -> list[Path]:
        """Return the results that trials keep because the store has not accepted them."""
        return list((self.storage / "trials").glob("*/result.checkpoint"))

    def wait_for_mid_training(self, sweep: SweepProcess) -> None:
        """Wait until both trials have written two checkpoints each."""
        self.wait_until(lambda: len(self.list_checkpoints()) >= 4, "checkpoints of both trials", sweep)

    def wait_until(
        self,
        condition: Callable[[], object],
        subject: str,
        sweep: SweepProcess,
        seconds: float = TIME_LIMIT_SECONDS / 2,
    ) -> None:
        """Wait until a condition holds, which must happen while the sweep runs.

        Args:
            condition: Function that is asked every 20 ms.
            subject: What the condition waits for, in the plural, for the message if it does not come.
            sweep: The sweep that runs.
            seconds: The time in which the condition must hold.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            check(sweep.process.poll() is None, f"the sweep ended before there were {subject}: {sweep.read_output()}")
            check(time.monotonic() < deadline, f"there were no {subject} in time: {sweep.read_output()}")
            time.sleep(0.02)

    def mount_small_disk(self, path: Path, megabytes: int) -> None:
        """Mount a small file system at `path`, which a fault can fill up or make read-only."""
        path.mkdir(exist_ok=True)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", path], check=False)
        check(mounted.returncode == 0, f"no file system could be mounted at {path}; mounting one needs root")
        self.disks.append(path)

    def start_server(self) -> Server:
        """Start a tracking server in front of the database; it runs until the laboratory closes."""
        server = Server(self.folder, self.database)
        self.uri = server.uri
        self.servers.append(server)
        server.start()
        return server

    def compare_with_reference(self) -> tuple[int, int]:
        """Compare everything in the store with the undisturbed sweep.

        Returns:
            The number of points that were lost, and of those that are in the store twice or with another value.

        Raises:
            NotSurvivedError: A result differs, a trial does not have exactly one finished run, a run still has the
                status RUNNING, or files were left behind.
        """
        for sweep in self.sweeps:
            check("Traceback" not in sweep.read_output(), sweep.read_output())
        store = Store(self.uri)
        stored = store.find_runs()
        check(set(stored) == set(self.reference.trials), f"trials {set(stored)}, not {set(self.reference.trials)}")
        lost = doubled = 0
        for trial_id, (expected, model) in self.reference.trials.items():
            check(len(stored[trial_id]) == 1, f"{trial_id} has {len(stored[trial_id])} runs")
            [run] = stored[trial_id]
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
                check(read_weights(path) == model, f"{run.name}: weights differ")
            run_lost, run_doubled = count_lost_and_doubled(store, run, expected)
            lost += run_lost
            doubled += run_doubled
        running = store.client.search_runs(list(store.experiments), "attributes.status = 'RUNNING'")
        check(not running, f"{len(running)} runs still have the status RUNNING")
        page, journal = read_page(store, self.command.experiment), read_journal(self.folder)
        check(journal == self.reference.journal, f"its journal differs: {journal}, not {self.reference.journal}")
        check(page == self.reference.page, f"its page in MLflow's UI differs: {page}, not {self.reference.page}")
        self.check_leftovers()
        return lost, doubled

    def check_leftovers(self) -> None:
        """Raise `NotSurvivedError` if temporary files, or checkpoints of finished trials, were left behind."""
        trials = self.storage / "trials"
        # torch makes the folder for its compiler's cache when it is imported.
        left = [path for path in (self.folder / "tmp").rglob("*") if not path.name.startswith("torchinductor_")]
        left += trials.rglob("*") if trials.exists() else ()
        left += [path for path in self.storage.iterdir() if path.name not in ("trials", "sweep.lock", CACHE_FILE)]
        left += [folder for folder in self.list_private_folders() if folder.exists()]
        check(not left, f"left behind: {', '.join(map(str, left[:5]))}")

    def list_private_folders(self) -> list[Path]:
        """Return the folders where Ray keeps its files for sweeps with one of the laboratory's storage folders."""
        base = Path(self.variables.get("RAY_TMPDIR", "/tmp"))
        storages = (self.storage, self.folder / "elsewhere")
        return [base / RunOptions(storage=storage).private_folder.name for storage in storages]

    def close(self) -> None:
        """Kill the processes that still run, and remove the folder."""
        for sweep in self.sweeps:
            if sweep.process.poll() is None:
                sweep.kill()
        for server in self.servers:
            server.kill()
        for disk in self.disks:
            subprocess.run(["umount", "--lazy", disk], check=False)
        for folder in self.list_private_folders():
            shutil.rmtree(folder, ignore_errors=True)
        if "RAY_TMPDIR" in self.variables:
            shutil.rmtree(self.variables["RAY_TMPDIR"], ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def read_page(store: Store, sweep: str) -> dict[str, str]:
    """Return the description of the sweep's experiment and its views, without ids of runs and times: tag → text."""
    [experiment] = [store.client.get_experiment(key) for key, name in store.experiments.items() if name == sweep]
    return {tag: IDS_AND_TIMES.sub("…", text) for tag, text in experiment.tags.items()}


def read_journal(folder: Path) -> dict[str, str]:
    """Return the journal of a search, without the times of its rounds: file's name → text; empty for other sweeps."""
    files = folder.glob("mlartifacts/search/*/artifacts/search/*/round-*.json")
    return {f"{path.parent.name}/{path.name}": path.read_text() for path in files if "seconds" not in path.name}


def read_weights(path: Path) -> bytes:
    """Return the weights in a model's file as bytes that can be compared."""
    import torch

    weights = torch.load(path, map_location="cpu", weights_only=True)
    return b"".join(name.encode() + value.numpy().tobytes() for name, value in weights.items())


def run_undisturbed(folder: Path, command: Command) -> Reference:
    """Run the sweep in a laboratory without a fault; return the results and weights that it stores."""
    lab = Lab(folder, Reference({}, {}, {}), command)
    lab.start(STEP_SECONDS="0").wait_for_status(0)
    store = Store(lab.database)
    found = {}
    for trial_id, [run] in store.find_runs().items():
        with store.open_artifact(run, MODEL_ARTIFACT) as path:
            found[trial_id] = (store.read_result(run), read_weights(path))
    page, journal = read_page(store, command.experiment), read_journal(folder)
    lab.check_leftovers()
    shutil.copy(lab.storage / CACHE_FILE, folder.parent / CACHE_FILE)
    lab.close()
    return Reference(found, page, journal)


class Server:
    """A real `mlflow server` on this machine's loopback address, in front of a database.

    Attributes:
        folder: Holds the artifacts and the server's log.
        database: The database's URI.
        workers: Number of the server's worker processes.
        variables: Further environment variables of the server.
        uri: The address at which it answers.
    """

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
        """Start the server and wait until it answers.

        Raises:
            NotSurvivedError: It does not answer within 90 seconds.
        """
        folder = self.folder
        options = ["--backend-store-uri", self.database, "--artifacts-destination", str(folder / "artifacts")]
        options += ["--port", str(self.port), "--workers", str(self.workers)]
        with (folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *options],
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
        raise NotSurvivedError(f"the tracking server did not start: {(folder / 'server.log').read_text()[-2000:]}")

    def kill(self) -> None:
        """Send SIGKILL to the server and its worker processes."""
        if self.process is not None and self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def remount(path: Path, options: str) -> None:
    """Change the options of a mounted file system."""
    subprocess.run(["mount", "-o", f"remount,{options}", path], check=True)

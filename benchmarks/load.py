"""Measures the load that a head's tracking server can take: several writers, each with the curves of a part 3 trial.

A writer runs the same code as a real worker, in a process of its own; only the arithmetic of training is left out. So
it sends the same as a real trial, in the same pieces and at the same times: the run, points with each checkpoint,
artifacts, the end of the run. Its training either takes no time, so that writers only write, or sleeps for as long as
real training would take (`--paced`).

Server and database are those of a cluster's head: `mlflow server` on PostgreSQL with its default settings. All of it
runs on this machine, writers included, so CPU time is measured for each part.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import sqlalchemy
import torch
import tyro
from mlflow import MlflowClient
from rich.console import Console
from rich.table import Table

from chaos.lab import Server
from cluster.verify import count_lost_and_doubled
from sweeps.driver.provenance import collect_provenance
from sweeps.driver.signals import stop_on_signals
from sweeps.part3 import Part3
from trainables import datasets, training
from trainables.errors import TrackingError
from trainables.persistence.connection import TRIAL_ID_TAG, SweepContext
from trainables.persistence.delivery import Delivery
from trainables.persistence.store import Store
from trainables.persistence.trial_folder import TrialFolder
from trainables.persistence.trial_run import TrialRun
from trainables.trial import Trial
from trainables.worker import pack, trainable, worker

POSTGRES_FOLDER = Path("/usr/lib/postgresql")  # Debian's folder, with a subfolder for each version
TEST_IMAGES = 250  # few, as testing is arithmetic too
TIMED_STEPS = 100  # steps of real training, from which a trial's time is projected
SERVER_VARIABLES = {  # environment of the server, as in cluster/start-services.sh
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "20",
    "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "20",
}
console = Console()


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    dataset: str = "fashion_mnist"
    """Data set whose trials the writers imitate."""
    data_root: Path = Path("data")
    """Folder of the data sets."""
    epochs: int = 15
    """Epochs of each trial."""
    architectures: tuple[str, ...] = ("mlp_1", "cnn_3")
    """Architectures; they differ in how often a trial writes, and in how long it trains."""
    writers: tuple[int, ...] = (1, 8, 32)
    """Numbers of writers at the same time."""
    server_workers: tuple[int, ...] = (2,)
    """Numbers of the server's worker processes."""
    paced: tuple[str, ...] = ("mlp_1",)
    """Architectures that the largest number of writers also writes at the pace of real training."""
    finished_runs: tuple[int, ...] = (1_000, 5_000, 10_000)
    """Numbers of runs in the store for which a driver's and a trial's queries are timed."""
    out: Path = Path("benchmarks/load.json")
    """File for the results."""


class Database:
    """A PostgreSQL server with its files in `folder`, which listens on a socket there and on no network."""

    def __init__(self, folder: Path) -> None:
        versions = sorted(POSTGRES_FOLDER.glob("*/bin"), key=lambda path: int(path.parent.name))
        if not versions:
            sys.exit(f"there is no PostgreSQL in {POSTGRES_FOLDER}; install Debian's package postgresql")
        self.programs = versions[-1]
        self.folder = folder
        self.folder.mkdir(mode=0o700)
        self.as_owner: list[str] = []
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            shutil.chown(folder, "postgres", "postgres")
            self.as_owner = ["runuser", "-u", "postgres", "--"]
        self.run("initdb", "--auth=trust", "--username=postgres")
        self.run("pg_ctl", "start", "--wait", f"--options=-k {folder} -c listen_addresses=", f"--log={folder}/log")
        self.pid = int((folder / "data" / "postmaster.pid").read_text().split()[0])

    def run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs on the server's data."""
        command = [*self.as_owner, str(self.programs / program), "--pgdata", str(self.folder / "data"), *arguments]
        subprocess.run(command, cwd=self.folder, check=True, stdout=subprocess.DEVNULL)

    def get_uri(self, name: str) -> str:
        """Return the URI of a database."""
        return f"postgresql+psycopg2://postgres@/{name}?host={self.folder}"

    def create(self, name: str) -> str:
        """Make a database; return its URI."""
        engine = sqlalchemy.create_engine(self.get_uri("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return self.get_uri(name)

    def stop(self) -> None:
        """Stop the server at once."""
        self.run("pg_ctl", "stop", "--mode=immediate")

    def count_connections(self) -> int:
        """Return the number of clients that are connected."""
        count = 0
        for process in psutil.Process(self.pid).children():
            with suppress(psutil.NoSuchProcess):  # it has just ended
                count += " ".join(process.cmdline()).startswith("postgres: postgres ")
        return count


class Clock:
    """Clock of a writer, on which each step of training takes some time.

    Attributes:
        step_seconds: Time of a step.
        paced: Whether a step takes that time in reality too, asleep.
        ahead: Seconds by which this clock is ahead of the machine's.
    """

    def __init__(self, step_seconds: float, *, paced: bool) -> None:
        self.step_seconds = step_seconds
        self.paced = paced
        self.ahead = 0.0

    def monotonic(self) -> float:
        """Return the time now, in seconds."""
        return time.monotonic() + self.ahead

    def train(self, steps: int) -> None:
        """Let the time of some steps pass."""
        if self.paced:
            time.sleep(steps * self.step_seconds)
        else:
            self.ahead += steps * self.step_seconds


def pretend_to_train(clock: Clock, trial: Trial, data: training.Tensors, state: training.State) -> Iterator[None]:
    """Replace `training.train`: give random curves, after one real step so that checkpoints have their usual size."""
    images = len(data.train_images)
    interval = trial.record_interval(images)
    training.take_step(trial, data, state, torch.arange(trial.batch_size))
    state.curves[:] = torch.rand(state.curves.shape, generator=torch.Generator().manual_seed(trial.seed))
    for step in range(interval, trial.epochs * trial.steps_per_epoch(images) + 1, interval):
        clock.train(interval)
        state.step = step
        yield


@dataclass
class WriterResult:
    """Measurements of one writer.

    Attributes:
        request_seconds: Duration of each request that carried points.
        wait_seconds: Time for which training stood still for the store: to find the run, send points, send the result.
        disk_seconds: Time for writing checkpoints and the result to disk.
        ended: Time of the end, by the machine's monotonic clock.
        cpu_seconds: CPU time.
        failures: Reason of every attempt for which the store could not be used.
        retries: Number of requests that were sent again.
    """

    request_seconds: list[float]
    wait_seconds: float
    disk_seconds: float
    ended: float
    cpu_seconds: float
    failures: list[str]
    retries: int


class RetryCounter(logging.Handler):
    """Counter of the requests that urllib3 sends again, which it logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "Retrying" in record.msg


@contextmanager
def time_writer(seconds: dict[str, list[float]], failures: list[str]) -> Iterator[None]:
    """Time a worker's calls that use the store or the disk; a call made by another such call is not counted again.

    Args:
        seconds: Gets the duration of each call, under "store", "disk" and "request".
        failures: Gets the reasons for which the store could not be used.
    """
    inside: list[str] = []

    def add_timer(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            inside.append(name)
            started = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                inside.pop()
                if name == "request" or not inside:
                    seconds[name].append(time.perf_counter() - started)

        return call

    def log_batch(client: MlflowClient, *args: Any, **kwargs: Any) -> None:
        points = len(kwargs.get("metrics", ()))
        (add_timer("request", original_log_batch) if points > 1 else original_log_batch)(client, *args, **kwargs)

    def attempt(delivery: Delivery, action: Callable[[TrialRun], None]) -> None:
        original_attempt(delivery, action)
        if delivery.failure:
            failures.append(delivery.failure)

    original_log_batch, original_attempt = MlflowClient.log_batch, Delivery.attempt
    store = ((Delivery, "open_run"), (TrialRun, "send_records"), (Delivery, "deliver_result"))
    disk = ((TrialFolder, "write_checkpoint"), (TrialFolder, "write_result"))
    with ExitStack() as stack:
        for name, methods in (("store", store), ("disk", disk)):
            for owner, method in methods:
                stack.enter_context(mock.patch.object(owner, method, add_timer(name, getattr(owner, method))))
        stack.enter_context(mock.patch.object(MlflowClient, "log_batch", log_batch))
        stack.enter_context(mock.patch.object(Delivery, "attempt", attempt))
        yield


def make_blank_dataset(images: int, shape: tuple[int, int, int]) -> datasets.Dataset:
    """Return a data set of black images, which take no memory until they are read.

    Args:
        images: Number of training images.
        shape: Shape of an image, `(channels, height, width)`.
    """

    def part(count: int) -> tuple[Any, Any]:
        return np.zeros((count, *shape), np.float32), np.zeros(count, np.int64)

    (train, train_labels), (test, test_labels) = part(images), part(TEST_IMAGES)
    return datasets.Dataset(
        name="blank",
        train_images=train,
        train_labels=train_labels,
        val_images=test,
        val_labels=test_labels,
        test_images=test,
        test_labels=test_labels,
        classes=10,
        checksum="",
    )


def run_writer(
    trial: Trial, images: int, shape: tuple[int, int, int], settings: pack.WorkerSettings, clock: Clock, start: float
) -> WriterResult:
    """Run a writer in this process; return its measurements.

    Args:
        trial: The trial to write.
        images: Number of training images.
        shape: Shape of an image, `(channels, height, width)`.
        settings: The settings of a real worker.
        clock: The clock that the worker reads.
        start: Time at which all writers start (`time.monotonic`).
    """
    seconds: dict[str, list[float]] = defaultdict(list)
    failures: list[str] = []
    retries = RetryCounter()
    logging.getLogger("urllib3.connectionpool").addHandler(retries)
    torch.set_num_threads(1)
    data = make_blank_dataset(images, shape)
    time.sleep(max(0.0, start - time.monotonic()))
    cpu = time.process_time()
    with ExitStack() as stack:
        stack.enter_context(mock.patch("ray.tune.report"))
        stack.enter_context(mock.patch.object(worker, "time", clock))
        stack.enter_context(mock.patch.object(training, "train", partial(pretend_to_train, clock)))
        stack.enter_context(time_writer(seconds, failures))
        trainable.train_pack_in_tune(
            {"pack": pack.Pack((trial,), ("trial",), 0).to_json()}, data=data, settings=settings
        )
    return WriterResult(
        request_seconds=seconds["request"],
        wait_seconds=sum(seconds["store"]),
        disk_seconds=sum(seconds["disk"]),
        ended=time.monotonic(),
        cpu_seconds=time.process_time() - cpu,
        failures=failures,
        retries=retries.count,
    )


def get_cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and all its descendants, including those that have ended."""
    root, total = psutil.Process(pid), 0.0
    for process in (root, *root.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # from then on its parent's time includes its own
            total += sum(process.cpu_times()[:4])
    return total


def run_writers(
    trials: Sequence[Trial], data: datasets.Dataset, clock: Clock, server: Server, database: Database, folder: Path
) -> dict[str, Any]:
    """Let one writer per trial write at the same time; return the measurements of all."""
    store = Store(server.uri)
    experiment_id, parent = store.ensure_parent("load", data.name)
    context = SweepContext(
        tracking_uri=server.uri,
        experiment_id=experiment_id,
        parent_run_id=parent,
        storage=folder,
        storage_name="here",
        driver=f"{parent}/benchmark",
        tags=collect_provenance(),
    )
    settings = pack.WorkerSettings(context=context, threads=1, checkpoint_seconds=60)
    folder.mkdir(exist_ok=True)
    assert server.process is not None
    parts = {"server": server.process.pid, "database": database.pid}
    before = {name: get_cpu_seconds(pid) for name, pid in parts.items()}
    connections, busy, began = 0, psutil.cpu_times(), time.monotonic()
    start = began + 1
    ends_at_once = (signal.signal, (signal.SIGTERM, signal.SIG_DFL))
    with multiprocessing.get_context("fork").Pool(len(trials), *ends_at_once) as pool:
        same = (len(data.train_labels), data.input_shape, settings, clock, start)
        pending = pool.starmap_async(run_writer, [(trial, *same) for trial in trials], chunksize=1)
        while not pending.ready():
            pending.wait(0.25)
            connections = max(connections, database.count_connections())
        results: list[WriterResult] = pending.get()
    cpu = {name: get_cpu_seconds(pid) - before[name] for name, pid in parts.items()}
    idle_cores = (psutil.cpu_times().idle - busy.idle) / (time.monotonic() - began)
    recorded = store.find_runs()
    counts = [
        count_lost_and_doubled(store, run, store.read_result(run)) for trial in trials for run in recorded[trial.id]
    ]
    seconds = max(result.ended for result in results) - start
    requests = [request for result in results for request in result.request_seconds]
    points = sum(
        len(training.list_record_steps(trial, len(data.train_labels))) * len(trial.quantities) for trial in trials
    )
    return {
        "points": points,
        "seconds": seconds,
        "points_per_second": points / seconds,
        "requests": len(requests),
        "request_median_seconds": statistics.median(requests),
        "request_95_percent_seconds": float(np.quantile(requests, 0.95)),
        "waited_seconds": statistics.mean(result.wait_seconds for result in results),
        "most_waited_seconds": max(result.wait_seconds for result in results),
        "disk_seconds": statistics.mean(result.disk_seconds for result in results),
        "failures": [failure for result in results for failure in result.failures],
        "retries": sum(result.retries for result in results),
        "lost": sum(lost for lost, _ in counts),
        "doubled": sum(doubled for _, doubled in counts),
        "finished_runs": sum(run.finished for trial in trials for run in recorded[trial.id]),
        "cpu_seconds": {**cpu, "writers": sum(result.cpu_seconds for result in results)},
        "idle_cores": idle_cores,
        "connections": connections,
    }


def copy_run(uri: str, run_id: str, trial_ids: Sequence[str]) -> None:
    """Put copies of a finished run, without its curves, directly into the database: one for each trial id."""
    fresh = "jsonb_build_object('run_uuid', md5(id))"
    named = f"{fresh} || CASE WHEN source.key = '{TRIAL_ID_TAG}' THEN jsonb_build_object('value', id) ELSE '{{}}' END"
    engine = sqlalchemy.create_engine(uri)
    with engine.begin() as connection:
        for table, changes in (("runs", fresh), ("tags", named), ("params", fresh), ("latest_metrics", fresh)):
            connection.execute(
                sqlalchemy.text(
                    f"INSERT INTO {table} SELECT (jsonb_populate_record(source, {changes})).* "
                    f"FROM {table} source, unnest(CAST(:ids AS text[])) id WHERE source.run_uuid = :template"
                ),
                {"ids": list(trial_ids), "template": run_id},
            )
    engine.dispose()


def time_queries(store: Store, trial: Trial) -> dict[str, float | str]:
    """Return the seconds that a driver's and a trial's queries of the store take, or the reason why one fails."""
    actions: dict[str, Callable[[], object]] = {
        "all_runs": store.find_runs,
        "run_of_a_trial": lambda: store.read_trial(trial),
    }
    answers: dict[str, float | str] = {}
    for name, action in actions.items():
        started = time.perf_counter()
        try:
            action()
        except TrackingError as error:
            answers[name] = f"{error} (after {time.perf_counter() - started:.0f} s)"
        else:
            answers[name] = time.perf_counter() - started
    return answers


def time_step(trial: Trial, data: datasets.Dataset) -> float:
    """Return the CPU seconds per step of real training, validation included: its duration on a core of its own."""
    tensors = training.to_tensors(data, "cpu")
    state = training.start(trial, tensors)
    started = time.process_time()
    for _ in training.train(trial, tensors, state):
        if state.step == TIMED_STEPS:
            break
    return (time.process_time() - started) / TIMED_STEPS


def make_trials(options: Options, architecture: str, seeds: range) -> list[Trial]:
    """Return one trial of part 3 for each seed."""
    sweep_options = Part3(
        dataset=options.dataset, seeds=seeds.stop, epochs=options.epochs, architectures=(architecture,)
    )
    return list(sweep_options.sweep().trials())[seeds.start :]


def make_tables(loads: Sequence[dict[str, Any]], title: str) -> list[Table]:
    """Return a table of the writers' measurements, and one of the cost for this machine."""
    measured = Table(title=title)
    for heading in ("workers", "writers", "trials", "points/s", "done (s)", "median (ms)", "95 % (ms)", "wait (s)"):
        measured.add_column(heading, justify="right")
    for heading in ("wait (% of a trial)", "failures", "retries", "lost", "doubled"):
        measured.add_column(heading, justify="right")
    cost = Table(title="CPU seconds, idle cores, connections to the database")
    for heading in ("workers", "writers", "trials", "server", "database", "writers", "idle", "connections"):
        cost.add_column(heading, justify="right")
    for seen in loads:
        which = (str(seen["server_workers"]), str(seen["writers"]), seen["trials_of"])
        measured.add_row(
            *which,
            f"{seen['points_per_second']:,.0f}",
            f"{seen['seconds']:.0f}",
            f"{1000 * seen['request_median_seconds']:.0f}",
            f"{1000 * seen['request_95_percent_seconds']:.0f}",
            f"{seen['waited_seconds']:.1f}",
            f"{seen['waited_percent']:.2f}",
            *(str(seen[name] if name != "failures" else len(seen[name])) for name in ("failures", "retries")),
            *(str(seen[name]) for name in ("lost", "doubled")),
        )
        cpu = (f"{seen['cpu_seconds'][part]:.1f}" for part in ("server", "database", "writers"))
        cost.add_row(*which, *cpu, f"{seen['idle_cores']:.2f}", str(seen["connections"]))
    return [measured, cost]


def measure_server(
    options: Options, data: datasets.Dataset, speeds: dict[str, float], server: Server, database: Database, folder: Path
) -> list[dict[str, Any]]:
    """Measure all architectures and numbers of writers with one server."""
    found: list[dict[str, Any]] = []
    plan = [(name, count, False) for name in options.architectures for count in options.writers]
    plan += [(name, max(options.writers), True) for name in options.paced]
    first_seed = 0
    for name, count, paced in plan:
        trials = make_trials(options, name, range(first_seed, first_seed + count))
        first_seed += count
        seen = run_writers(trials, data, Clock(speeds[name], paced=paced), server, database, folder)
        training_seconds = trials[0].epochs * trials[0].steps_per_epoch(len(data.train_labels)) * speeds[name]
        found.append(
            {
                "server_workers": server.workers,
                "writers": count,
                "trials_of": f"{name}, paced" if paced else name,
                "training_seconds": training_seconds,
                "waited_percent": 100 * seen["waited_seconds"] / (training_seconds + seen["waited_seconds"]),
                **seen,
            }
        )
        console.print(f"{server.workers} workers, {count} writers, {name}: {seen['points_per_second']:,.0f} points/s")
    return found


def time_queries_by_runs(options: Options, server: Server) -> dict[int, dict[str, float | str]]:
    """Return the seconds that a driver's and a trial's queries take, by the number of runs in the store."""
    store = Store(server.uri)
    recorded = store.find_runs()
    [template] = next(iter(recorded.values()))
    [trial] = make_trials(options, "mlp_1", range(99_999, 100_000))
    found = {len(recorded): time_queries(store, trial)}
    for count in options.finished_runs:
        there = max(found)
        copy_run(server.database, template.run_id, [f"{number:016x}" for number in range(there, count)])
        found[count] = time_queries(store, trial)
    return found


def main(options: Options) -> None:
    """Measure, print the results and save them."""
    stop_on_signals()  # so that database and server are stopped when this process is
    torch.set_num_threads(1)
    data = datasets.load_dataset(options.dataset, options.data_root)
    names = {*options.architectures, *options.paced}
    speeds = {name: time_step(make_trials(options, name, range(1))[0], data) for name in sorted(names)}
    console.print({name: f"{1000 * speed:.2f} ms per step of training" for name, speed in speeds.items()})
    loads: list[dict[str, Any]] = []
    queries: dict[int, dict[str, float | str]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)  # the database belongs to another user
        database = Database(folder / "database")
        try:
            for workers in options.server_workers:
                home = folder / f"server_{workers}"
                home.mkdir()
                server = Server(home, database.create(f"head_{workers}"), workers, **SERVER_VARIABLES)
                try:
                    server.start()
                    loads += measure_server(options, data, speeds, server, database, folder / f"storage_{workers}")
                    queries = queries or time_queries_by_runs(options, server)
                finally:
                    server.kill()
        finally:
            database.stop()
    console.print(*make_tables(loads, f"Writers at once, trials of {options.epochs} epochs ({options.dataset})"))
    for count, seconds in queries.items():
        console.print(f"{count:,} runs in the store, seconds:", seconds)
    content = {"cores": os.cpu_count(), "step_seconds": speeds, "loads": loads, "questions_by_runs": queries}
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    console.print(f"Saved to {options.out}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

"""What the head's tracking server takes: writers at once, each with the curves of a full trial of part 3.

A writer is the trainable that workers run, in a process of its own; only the arithmetic of training is left out. So
what it sends, in which pieces and when, is a real trial's: the run, points with each checkpoint, artifacts, the end.
Either its training takes no time, so that writers do nothing but write, or as long as it would (`--paced`), asleep.

The server and its database are the head's: `mlflow server` on PostgreSQL, the latter with the settings of initdb. All
of it, writers included, runs on this machine, so that CPU time is counted for each part.
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
from cluster.verify import lost_and_doubled
from sweeps.driver.provenance import collect_provenance
from sweeps.driver.signals import stop_on_signals
from sweeps.part3 import Part3
from trainables import datasets, training
from trainables.errors import TrackingError
from trainables.persistence.connection import TRIAL_ID_TAG
from trainables.persistence.delivery import Delivery, SweepContext
from trainables.persistence.store import Store
from trainables.persistence.trial_folder import TrialFolder
from trainables.persistence.trial_run import TrialRun
from trainables.trial import Trial
from trainables.worker import pack, trainable, worker

POSTGRES = Path("/usr/lib/postgresql")  # Debian's, with a folder a version
TEST_IMAGES = 250  # of each writer: testing is arithmetic too
TIMED_STEPS = 100  # of real training, to project a trial's time from
LIKE_THE_HEAD = {  # cluster/start-services.sh
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "20",
    "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "20",
}
console = Console()


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    dataset: str = "fashion_mnist"
    data_root: Path = Path("data")
    epochs: int = 15
    architectures: tuple[str, ...] = ("mlp_1", "cnn_3")
    """They differ in how often a trial writes, and in how long it trains."""
    writers: tuple[int, ...] = (1, 8, 32)
    server_workers: tuple[int, ...] = (2,)
    paced: tuple[str, ...] = ("mlp_1",)
    """Architectures that are also written by the largest number of writers at the pace of training."""
    finished_runs: tuple[int, ...] = (1_000, 5_000, 10_000)
    """In the store, for what a driver asks of it."""
    out: Path = Path("benchmarks/load.json")


class Database:
    """A PostgreSQL of its own in `folder`, which answers on a socket there and on no network."""

    def __init__(self, folder: Path) -> None:
        versions = sorted(POSTGRES.glob("*/bin"), key=lambda path: int(path.parent.name))
        if not versions:
            sys.exit(f"no PostgreSQL under {POSTGRES}; install Debian's package postgresql")
        self.programs = versions[-1]
        self.folder = folder
        self.folder.mkdir(mode=0o700)
        self.as_owner: list[str] = []
        if os.getuid() == 0:  # as whom it refuses to run
            shutil.chown(folder, "postgres", "postgres")
            self.as_owner = ["runuser", "-u", "postgres", "--"]
        self.run("initdb", "--auth=trust", "--username=postgres")
        self.run("pg_ctl", "start", "--wait", f"--options=-k {folder} -c listen_addresses=", f"--log={folder}/log")
        self.pid = int((folder / "data" / "postmaster.pid").read_text().split()[0])

    def run(self, program: str, *words: str) -> None:
        """Run one of PostgreSQL's programs on the data."""
        command = [*self.as_owner, str(self.programs / program), "--pgdata", str(self.folder / "data"), *words]
        subprocess.run(command, cwd=self.folder, check=True, stdout=subprocess.DEVNULL)

    def uri(self, name: str) -> str:
        """Of one database."""
        return f"postgresql+psycopg2://postgres@/{name}?host={self.folder}"

    def create(self, name: str) -> str:
        """Make a database; its URI."""
        engine = sqlalchemy.create_engine(self.uri("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return self.uri(name)

    def stop(self) -> None:
        """End it at once."""
        self.run("pg_ctl", "stop", "--mode=immediate")

    def connections(self) -> int:
        """How many clients are connected."""
        count = 0
        for process in psutil.Process(self.pid).children():
            with suppress(psutil.NoSuchProcess):  # it has just gone
                count += " ".join(process.cmdline()).startswith("postgres: postgres ")
        return count


class Clock:
    """The time that a trainable sees, in which a step of training takes `step_seconds`; of ours it does if `paced`."""

    def __init__(self, step_seconds: float, *, paced: bool) -> None:
        self.step_seconds = step_seconds
        self.paced = paced
        self.ahead = 0.0

    def monotonic(self) -> float:
        """The time now."""
        return time.monotonic() + self.ahead

    def train(self, steps: int) -> None:
        """Let so many steps go by."""
        if self.paced:
            time.sleep(steps * self.step_seconds)
        else:
            self.ahead += steps * self.step_seconds


def unlearned(clock: Clock, trial: Trial, data: training.Tensors, state: training.State) -> Iterator[None]:
    """In the place of `training.train`: random curves, and one real step, so that checkpoints have their size."""
    images = len(data.train_images)
    interval = trial.record_interval(images)
    training.take_step(trial, data, state, torch.arange(trial.batch_size))
    state.curves[:] = torch.rand(state.curves.shape, generator=torch.Generator().manual_seed(trial.seed))
    for step in range(interval, trial.epochs * trial.steps_per_epoch(images) + 1, interval):
        clock.train(interval)
        state.step = step
        yield


@dataclass
class Written:
    """What one writer saw.

    Attributes:
        requests: Seconds of each request that carried points.
        waited: Seconds for which training stood still for the store: to find the run, send points, send the result.
        disk: Seconds of writing checkpoints and the result to disk.
        ended: When, by the machine's monotonic clock.
        cpu: Seconds of CPU time.
        failures: Why the store could not be used, once for every attempt that failed.
        retries: Requests that were sent a second time.
    """

    requests: list[float]
    waited: float
    disk: float
    ended: float
    cpu: float
    failures: list[str]
    retries: int


class Retries(logging.Handler):
    """Counts requests that urllib3 sends again."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "Retrying" in record.msg


@contextmanager
def watched(seconds: dict[str, list[float]], failures: list[str]) -> Iterator[None]:
    """Time what a trainable does with the store and the disk, each call unless it is within another."""
    inside: list[str] = []

    def timed(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
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
        (timed("request", logging_batches) if points > 1 else logging_batches)(client, *args, **kwargs)

    def attempt(delivery: Delivery, action: Callable[[TrialRun], None]) -> None:
        attempting(delivery, action)
        if delivery.failure:
            failures.append(delivery.failure)

    logging_batches, attempting = MlflowClient.log_batch, Delivery.attempt
    store = ((Delivery, "open_run"), (TrialRun, "send_records"), (Delivery, "deliver_result"))
    disk = ((TrialFolder, "write_checkpoint"), (TrialFolder, "write_result"))
    with ExitStack() as stack:
        for name, methods in (("store", store), ("disk", disk)):
            for owner, method in methods:
                stack.enter_context(mock.patch.object(owner, method, timed(name, getattr(owner, method))))
        stack.enter_context(mock.patch.object(MlflowClient, "log_batch", log_batch))
        stack.enter_context(mock.patch.object(Delivery, "attempt", attempt))
        yield


def blank(images: int, shape: tuple[int, int, int]) -> datasets.Dataset:
    """A data set of black images that take no memory until they are looked at."""

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


def write(
    trial: Trial, images: int, shape: tuple[int, int, int], settings: pack.WorkerSettings, clock: Clock, start: float
) -> Written:
    """Be a writer, from `start` (`time.monotonic`) on."""
    seconds: dict[str, list[float]] = defaultdict(list)
    failures: list[str] = []
    retries = Retries()
    logging.getLogger("urllib3.connectionpool").addHandler(retries)
    torch.set_num_threads(1)
    data = blank(images, shape)
    time.sleep(max(0.0, start - time.monotonic()))
    cpu = time.process_time()
    with ExitStack() as stack:
        stack.enter_context(mock.patch("ray.tune.report"))
        stack.enter_context(mock.patch.object(worker, "time", clock))
        stack.enter_context(mock.patch.object(training, "train", partial(unlearned, clock)))
        stack.enter_context(watched(seconds, failures))
        trainable.train_pack_in_tune(
            {"pack": pack.Pack((trial,), ("trial",), 0).to_json()}, data=data, settings=settings
        )
    return Written(
        requests=seconds["request"],
        waited=sum(seconds["store"]),
        disk=sum(seconds["disk"]),
        ended=time.monotonic(),
        cpu=time.process_time() - cpu,
        failures=failures,
        retries=retries.count,
    )


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and all its descendants, those that have ended included."""
    root, total = psutil.Process(pid), 0.0
    for process in (root, *root.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # which its parent counts from then on
            total += sum(process.cpu_times()[:4])
    return total


def load(
    trials: Sequence[Trial], data: datasets.Dataset, clock: Clock, server: Server, database: Database, folder: Path
) -> dict[str, Any]:
    """Let all trials be written at once; what was seen."""
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
    before = {name: cpu_seconds(pid) for name, pid in parts.items()}
    connections, busy, began = 0, psutil.cpu_times(), time.monotonic()
    start = began + 1
    ends_at_once = (signal.signal, (signal.SIGTERM, signal.SIG_DFL))
    with multiprocessing.get_context("fork").Pool(len(trials), *ends_at_once) as pool:
        same = (len(data.train_labels), data.input_shape, settings, clock, start)
        pending = pool.starmap_async(write, [(trial, *same) for trial in trials], chunksize=1)
        while not pending.ready():
            pending.wait(0.25)
            connections = max(connections, database.connections())
        written: list[Written] = pending.get()
    cpu = {name: cpu_seconds(pid) - before[name] for name, pid in parts.items()}
    idle_cores = (psutil.cpu_times().idle - busy.idle) / (time.monotonic() - began)
    recorded = store.find_runs()
    counts = [lost_and_doubled(store, run, store.read_result(run)) for trial in trials for run in recorded[trial.id]]
    seconds = max(one.ended for one in written) - start
    requests = [request for one in written for request in one.requests]
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
        "waited_seconds": statistics.mean(one.waited for one in written),
        "most_waited_seconds": max(one.waited for one in written),
        "disk_seconds": statistics.mean(one.disk for one in written),
        "failures": [failure for one in written for failure in one.failures],
        "retries": sum(one.retries for one in written),
        "lost": sum(lost for lost, _ in counts),
        "doubled": sum(doubled for _, doubled in counts),
        "finished_runs": sum(run.finished for trial in trials for run in recorded[trial.id]),
        "cpu_seconds": {**cpu, "writers": sum(one.cpu for one in written)},
        "idle_cores": idle_cores,
        "connections": connections,
    }


def fill(uri: str, template: str, trial_ids: Sequence[str]) -> None:
    """Put copies of a finished run straight into the database, one a trial id, without its curves."""
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
                {"ids": list(trial_ids), "template": template},
            )
    engine.dispose()


def questions(store: Store, trial: Trial) -> dict[str, float | str]:
    """Seconds that a driver's and a trial's questions to the store take; why it has no answer where it has none."""
    find = store.make_reader()
    actions: dict[str, Callable[[], object]] = {"all_runs": store.find_runs, "run_of_a_trial": lambda: find(trial)}
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


def step_seconds(trial: Trial, data: datasets.Dataset) -> float:
    """CPU seconds of a step of real training, validation included: what it takes with a core of its own."""
    tensors = training.to_tensors(data, "cpu")
    state = training.start(trial, tensors)
    started = time.process_time()
    for _ in training.train(trial, tensors, state):
        if state.step == TIMED_STEPS:
            break
    return (time.process_time() - started) / TIMED_STEPS


def new_trials(options: Options, architecture: str, seeds: range) -> list[Trial]:
    """One trial of part 3 a seed."""
    selection = Part3(dataset=options.dataset, seeds=seeds.stop, epochs=options.epochs, architectures=(architecture,))
    return list(selection.sweep().trials())[seeds.start :]


def tables(loads: Sequence[dict[str, Any]], title: str) -> list[Table]:
    """What the writers saw, and what it cost this machine."""
    seen_by_writers = Table(title=title)
    for heading in ("workers", "writers", "trials", "points/s", "done (s)", "median (ms)", "95 % (ms)", "wait (s)"):
        seen_by_writers.add_column(heading, justify="right")
    for heading in ("of a trial (%)", "failures", "retries", "lost", "doubled"):
        seen_by_writers.add_column(heading, justify="right")
    cost = Table(title="CPU seconds, cores that were idle, connections to the database")
    for heading in ("workers", "writers", "trials", "server", "database", "writers", "idle", "connections"):
        cost.add_column(heading, justify="right")
    for seen in loads:
        which = (str(seen["server_workers"]), str(seen["writers"]), seen["trials_of"])
        seen_by_writers.add_row(
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
    return [seen_by_writers, cost]


def measure(
    options: Options, data: datasets.Dataset, speeds: dict[str, float], server: Server, database: Database, folder: Path
) -> list[dict[str, Any]]:
    """Everything with one server."""
    found: list[dict[str, Any]] = []
    plan = [(name, count, False) for name in options.architectures for count in options.writers]
    plan += [(name, max(options.writers), True) for name in options.paced]
    first_seed = 0
    for name, count, paced in plan:
        trials = new_trials(options, name, range(first_seed, first_seed + count))
        first_seed += count
        seen = load(trials, data, Clock(speeds[name], paced=paced), server, database, folder)
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


def full_store(options: Options, server: Server) -> dict[int, dict[str, float | str]]:
    """How long a driver's and a trial's questions take, by the number of runs in the store."""
    store = Store(server.uri)
    recorded = store.find_runs()
    [template] = next(iter(recorded.values()))
    [trial] = new_trials(options, "mlp_1", range(99_999, 100_000))
    found = {len(recorded): questions(store, trial)}
    for count in options.finished_runs:
        there = max(found)
        fill(server.database, template.run_id, [f"{number:016x}" for number in range(there, count)])
        found[count] = questions(store, trial)
    return found


def main(options: Options) -> None:
    """Measure, print, save."""
    stop_on_signals()  # so that the database and the server end with this process
    torch.set_num_threads(1)
    data = datasets.load_dataset(options.dataset, options.data_root)
    names = {*options.architectures, *options.paced}
    speeds = {name: step_seconds(new_trials(options, name, range(1))[0], data) for name in sorted(names)}
    console.print({name: f"{1000 * speed:.2f} ms a step of training" for name, speed in speeds.items()})
    loads: list[dict[str, Any]] = []
    asked: dict[int, dict[str, float | str]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)  # the database has another owner
        database = Database(folder / "database")
        try:
            for workers in options.server_workers:
                home = folder / f"server_{workers}"
                home.mkdir()
                server = Server(home, database.create(f"head_{workers}"), workers, **LIKE_THE_HEAD)
                try:
                    server.start()
                    loads += measure(options, data, speeds, server, database, folder / f"storage_{workers}")
                    asked = asked or full_store(options, server)
                finally:
                    server.kill()
        finally:
            database.stop()
    console.print(*tables(loads, f"Writers at once, trials of {options.epochs} epochs ({options.dataset})"))
    for count, seconds in asked.items():
        console.print(f"{count:,} runs in the store, seconds:", seconds)
    content = {"cores": os.cpu_count(), "step_seconds": speeds, "loads": loads, "questions_by_runs": asked}
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    console.print(f"Saved to {options.out}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

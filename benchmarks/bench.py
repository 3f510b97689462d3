"""Measures how fast sweeps are, compared with a plain script, a sweep as in Ray's tutorial, and the machine's limit.

Every number comes from a real command or script, in a process and a folder of its own. The parts:

speed: milliseconds per step of one trial, with its records, on the whole machine. For our sweep it is the time that
`sweeps/part3.py` took, divided by the steps of all its trials. "All in" counts from the start of the command to its
end. "Steady" counts from the first run's start to the last run's end in the tracking store, with tests, checkpoints and
tracking. Each round adds seeds to the sweep. The first round, which also makes the database and autotunes, is listed
separately. The start-up of the scripts and of the tutorial's sweep (`rivals.py`) is not counted. All of them take
turns, so that noise on the machine affects all alike.

peak: the fraction of one core's peak that training and validation reach; the peak is measured with products of large
matrices (`peak.py`).

overhead: the time that a trial costs beyond its training, in packs and alone (`--pack 1`), from many trials of 26
steps. It is the time from the first run's start to the last run's end, times the number of processes, minus the seconds
that all trials trained (with records), divided by the number of trials. So it includes tests, checkpoints, tracking
and the time that Ray needs between two packs. It does not include the start and the end of the command (Ray, data,
autotuning), which are listed next to it. The percentages compare it with a trial of part 3's 15 epochs at the steady
speed, if the part `speed` is measured in the same run.

growth: the same small trials in growing numbers. The memory is the driver's peak (VmHWM).

first: seconds from the command to the first point in the store, and seconds of commands that train nothing.

memory: memory of worker processes during training that no other process shares (USS), per worker and per trial.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import psutil
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import peak
from sweeps.cli import run_to_exit_status
from sweeps.experiment import MAIN_ARCHITECTURES
from trainables import datasets
from trainables.errors import BadInputError, check_choice, check_positive

ROOT = Path(__file__).resolve().parent.parent
PART3 = ROOT / "sweeps" / "part3.py"
RIVALS = ROOT / "benchmarks" / "rivals.py"
MEGABYTE = 2**20
CORES = os.cpu_count() or 1
POLL_SECONDS = 0.02
BUSY_LOAD_PER_CORE = 0.5  # load average divided by the number of cores; a machine at rest stays below it
TIME_LIMIT_SECONDS = 1800.0  # limit for one command
BATCH_SIZE = 50  # part 3's default
FULL_EPOCHS = 15  # part 3's default
FULL_TRIAL_MEASURE = f"seconds of a trial of {FULL_EPOCHS} epochs on a core, steady"
SMALL_SWEEP = ("--dataset", "digits", "--architectures", "mlp_1", "--epochs", "1")  # its trials have 26 steps

Part = Literal["speed", "peak", "overhead", "growth", "first", "memory"]
Measures = dict[str, dict[str, float]]  # measure -> architecture -> value
console = Console()


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    parts: tuple[Part, ...] = get_args(Part)
    """Parts to measure; the text above describes them."""
    dataset: str = "fashion_mnist"
    """Data set of all parts but those that use small trials."""
    data_root: Path = Path("data")
    """Folder of the data sets."""
    architectures: tuple[str, ...] = ("mlp_1", "mlp_2", "cnn_3", "cnn_4", "cnn_5")
    """Architectures to measure."""
    rounds: int = 2
    """Rounds of our sweep and of the tutorial's; the scripts have one more, after the last."""
    turns: int = 3
    """Turns of the scripts in every round, and of each fraction of the peak."""
    mlp_seeds: int = 10
    """Seeds that each round adds to a sweep of MLPs."""
    mlp_epochs: int = 15
    """Epochs of a sweep of MLPs."""
    cnn_seeds: int = 2
    """Seeds that each round adds to a sweep of CNNs."""
    cnn_epochs: int = 2
    """Epochs of a sweep of CNNs."""
    mlp_steps: int = 300
    """Steps of MLPs in a turn of the scripts, and in a trial of the tutorial's sweep."""
    cnn_steps: int = 30
    """Steps of CNNs in a turn of the scripts; a trial of the tutorial's sweep has twice as many."""
    overhead_trials: int = 60
    """Trials with which the overhead is measured."""
    growth: tuple[int, ...] = (10, 100, 1_000)
    """Numbers of trials of the part `growth`."""
    growth_alone: int = 100
    """The largest of these numbers that is also measured with `--pack 1`."""
    repeats: int = 3
    """Repeats of the commands that train nothing."""
    out: Path = Path("benchmarks/bench.json")
    """File for the results."""


@dataclass(frozen=True)
class CommandResult:
    """Result of a command that has ended.

    Attributes:
        seconds: Time from its start to its end.
        peak_megabytes: The most memory that its process had, without that of processes it started.
        output: Everything that it printed.
        enough_seconds: Time after which it had done enough and was asked to stop; None if it ended by itself.
    """

    seconds: float
    peak_megabytes: float
    output: str
    enough_seconds: float | None


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a temporary folder; its path is short, as the paths of Ray's sockets must be."""
    with tempfile.TemporaryDirectory(prefix="nb-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def run_script(
    command: Sequence[object],
    folder: Path,
    has_enough: Callable[[int], bool] | None = None,
    *,
    limit_seconds: float = TIME_LIMIT_SECONDS,
) -> CommandResult:
    """Run a Python script to its end, or until it has done enough.

    Args:
        command: The script and its arguments.
        folder: The folder to run it in.
        has_enough: Function that is asked every few milliseconds, with the process id, whether the script may stop.
        limit_seconds: The most time that the script may take.

    Raises:
        RuntimeError: The script failed, or took too long.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "OMP_NUM_THREADS")}
    log = folder / "output.txt"
    peak_megabytes, enough_seconds = 0.0, None
    with log.open("w") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=folder,
            env={**environment, "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,  # Ctrl-C reaches the script once, through `stop`
        )
        try:
            while process.poll() is None:
                peak_megabytes = max(peak_megabytes, get_peak_megabytes(process.pid))
                if has_enough is not None and enough_seconds is None and has_enough(process.pid):
                    enough_seconds = time.perf_counter() - started
                    process.send_signal(signal.SIGINT)
                if time.perf_counter() - started > limit_seconds:
                    raise RuntimeError(f"{command} took longer than {limit_seconds:.0f} seconds")
                time.sleep(POLL_SECONDS)
        finally:
            stop(process)
        seconds = time.perf_counter() - started
    text = log.read_text()
    if process.returncode and enough_seconds is None:
        raise RuntimeError(f"{command} ended with status {process.returncode}:\n{text[-2000:]}")
    return CommandResult(seconds, peak_megabytes, text, enough_seconds)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process that still runs, and the processes it started, as Ctrl-C does; after 30 seconds kill them."""
    if process.poll() is not None:
        return
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in children:
        if child.is_running():
            child.kill()


def get_peak_megabytes(pid: int) -> float:
    """Return the most memory in MB that a process has had resident; 0 if the process is gone."""
    try:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) * 1024 / MEGABYTE if found else 0.0


def run_sweep(
    options: Options, folder: Path, *arguments: object, has_enough: Callable[[int], bool] | None = None
) -> CommandResult:
    """Run `sweeps/part3.py` with its store and its storage in `folder`; see `run_script`."""
    places = ("--data-root", options.data_root.absolute(), "--tracking-uri", f"sqlite:///{folder}/mlflow.db")
    return run_script([PART3, *arguments, *places, "--storage", folder / "storage"], folder, has_enough)


def query_store(folder: Path, query: str) -> list[tuple[float, ...]]:
    """Return the rows that an SQL query gives in a folder's tracking store; none if the store does not exist yet."""
    try:
        with closing(sqlite3.connect(f"file:{folder}/mlflow.db?mode=ro", uri=True)) as database:
            return database.execute(query).fetchall()
    except sqlite3.OperationalError:
        return []


def measure_span(folder: Path, since: float = 0) -> tuple[int, float]:
    """Return the number of finished trials, and the seconds from the first one's start to the last one's end.

    Args:
        folder: The folder that has the store.
        since: Time (`time.time`); trials that started before it do not count.
    """
    query = (
        "SELECT count(*), min(start_time), max(end_time) FROM runs JOIN tags USING (run_uuid) WHERE key = 'trial_id'"
    )
    [(count, start, end)] = query_store(
        folder, f"{query} AND status = 'FINISHED' AND start_time >= {int(1000 * since)}"
    )
    return int(count), (end - start) / 1000


def sum_training_seconds(folder: Path) -> float:
    """Return the seconds that all trials in the store trained; those of a stack are divided among its trials."""
    query = """SELECT took.value, coalesce(shared.value, 1) FROM tags took LEFT JOIN tags shared
        ON shared.run_uuid = took.run_uuid AND shared.key = 'stacked_trials' WHERE took.key = 'training_seconds'"""
    return sum(float(took) / float(shared) for took, shared in query_store(folder, query))


def get_kind(architecture: str) -> str:
    """Return the kind of network, "mlp" or "cnn", which decides how long it is measured."""
    return architecture.partition("_")[0]


def measure_speed(options: Options) -> Measures:
    """Measure the part `speed`: our sweep, the scripts, and the tutorial's sweep, in turns."""
    data = datasets.load_dataset(options.dataset, options.data_root)
    found: Measures = defaultdict(dict)
    with temporary_folder() as shared:
        arrays = shared / "data.npz"
        parts = ("train_images", "train_labels", "val_images", "val_labels")
        np.savez(arrays, **{part: getattr(data, part) for part in parts})
        for architecture in options.architectures:
            samples = time_steps(options, architecture, arrays, len(data.train_labels))
            medians = {name: 1000 * statistics.median(values) for name, values in samples.items()}
            for name, milliseconds in medians.items():
                found[f"ms a step, {name}"][architecture] = milliseconds
            full = FULL_EPOCHS * math.ceil(len(data.train_labels) / BATCH_SIZE)
            found[FULL_TRIAL_MEASURE][architecture] = medians["ours, steady"] / 1000 * full * CORES
            for rival in ("plain script", "lean script", "tutorial's sweep"):
                for ours in ("all in", "steady"):
                    ratio = medians[rival] / medians[f"ours, {ours}"]
                    found[f"times as fast as the {rival}, {ours}"][architecture] = ratio
    return found


def time_steps(options: Options, architecture: str, arrays: Path, images: int) -> dict[str, list[float]]:
    """Return the seconds per step of our sweep and of each rival, with one value for each turn.

    Args:
        options: The benchmark's options.
        architecture: The architecture to train.
        arrays: File with the data for the rivals.
        images: Number of training images.
    """
    mlp = get_kind(architecture) == "mlp"
    seeds, epochs, steps = (
        (options.mlp_seeds, options.mlp_epochs, options.mlp_steps)
        if mlp
        else (options.cnn_seeds, options.cnn_epochs, options.cnn_steps)
    )
    arguments = ("--dataset", options.dataset, "--architectures", architecture, "--epochs", epochs)
    samples: dict[str, list[float]] = defaultdict(list)

    def time_rival(name: str, kind: str, steps: int) -> None:
        with temporary_folder() as folder:
            settings = ("--architecture", architecture, "--data", arrays, "--folder", folder)
            command = [RIVALS, "--kind", kind, *settings, "--steps", steps, "--turns", options.turns]
            result = run_script(command, folder)
        samples[name] += json.loads(result.output.splitlines()[-1])
        milliseconds = 1000 * statistics.median(samples[name])
        say(f"{architecture}: {name}, {milliseconds:.2f} ms per step ({result.seconds:.0f} s)")

    def time_scripts() -> None:
        time_rival("plain script", "plain", steps)
        time_rival("lean script", "lean", steps)

    with temporary_folder() as home:
        for turn in range(options.rounds):
            time_scripts()
            started = time.time()
            result = run_sweep(options, home, *arguments, "--seeds", (turn + 1) * seeds)
            trials, seconds = measure_span(home, started)
            taken = trials * epochs * math.ceil(images / BATCH_SIZE)
            # The first sweep of a folder also makes the database and autotunes.
            samples["ours, all in" if turn else "ours, all in, the first of a folder"].append(result.seconds / taken)
            samples["ours, steady"].append(seconds / taken)
            all_in, steady = (1000 * value / taken for value in (result.seconds, seconds))
            say(f"{architecture}: ours, {all_in:.2f} ms per step, steady {steady:.2f} ({result.seconds:.0f} s)")
            time_rival("tutorial's sweep", "tutorial", steps if mlp else 2 * steps)
    time_scripts()
    samples.setdefault("ours, all in", samples["ours, all in, the first of a folder"])  # if there is only one round
    return samples


def measure_peak_fractions(options: Options) -> Measures:
    """Measure the part `peak`: the fraction of the peak that training and validation reach."""
    found: Measures = defaultdict(dict)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for architecture in options.architectures:
            settings = (architecture, options.dataset, options.data_root, options.turns)
            fractions = pool.submit(peak.measure_fractions, *settings).result()
            for name, value in fractions.items():
                found[f"part of the peak, {name}"][architecture] = value
            say(f"{architecture}: {', '.join(f'{name} {value:.0%}' for name, value in fractions.items())} of the peak")
    return found


def measure_overhead(options: Options, results: Measures) -> Measures:
    """Measure the part `overhead`: the time that a trial costs beyond its training.

    Args:
        options: The benchmark's options.
        results: Results of the part `speed`; empty if it was not measured.
    """
    found: Measures = {}
    full = results.get(FULL_TRIAL_MEASURE, {})
    for name, pack in (("packed", "auto"), ("alone", "1")):
        with temporary_folder() as folder:
            result = run_sweep(options, folder, *SMALL_SWEEP, "--seeds", options.overhead_trials, "--pack", pack)
            trials, seconds = measure_span(folder)
            each = (seconds * CORES - sum_training_seconds(folder)) / trials
        found[f"seconds a trial beyond its training, {name}"] = {"mlp_1": each}
        if full:
            share = {architecture: 100 * each / full_seconds for architecture, full_seconds in full.items()}
            found[f"the same, % of a trial of {FULL_EPOCHS} epochs, {name}"] = share
        found[f"seconds of the command beyond its trials, {name}"] = {"mlp_1": result.seconds - seconds}
        say(f"overhead, {name}: {each:.3f} s per trial ({result.seconds:.0f} s)")
    return found


def measure_growth(options: Options) -> Measures:
    """Measure the part `growth`: growing numbers of small trials."""
    found: Measures = {}
    plans = [(count, "packed", "auto") for count in options.growth]
    plans += [(count, "alone", "1") for count in options.growth if count <= options.growth_alone]
    for count, name, pack in plans:
        with temporary_folder() as folder:
            result = run_sweep(options, folder, *SMALL_SWEEP, "--seeds", count, "--pack", pack)
            trials, seconds = measure_span(folder)
        assert trials == count, result.output
        title = f"{count:,} trials, {name}"
        found[f"{title}: seconds"] = {"mlp_1": result.seconds}
        found[f"{title}: seconds a trial, without start and end"] = {"mlp_1": seconds / count}
        found[f"{title}: driver's peak, MB"] = {"mlp_1": result.peak_megabytes}
        say(f"{title}: {result.seconds:.0f} s, the driver's peak {result.peak_megabytes:.0f} MB")
    return found


def measure_first(options: Options) -> Measures:
    """Measure the part `first`: the time until the first point, and the time of commands that train nothing."""
    found: Measures = {}
    full = ("--dataset", options.dataset, "--architectures", "mlp_1", "--epochs", FULL_EPOCHS)
    for name, sweep in (("a small trial", SMALL_SWEEP), ("a full trial", full)):
        with temporary_folder() as folder:
            result = run_sweep(options, folder, *sweep, "--seeds", 1, has_enough=partial(has_points, folder))
        assert result.enough_seconds is not None, result.output
        found[f"seconds to the first record of {name}"] = {"mlp_1": result.enough_seconds}
        say(f"first record of {name}: {result.enough_seconds:.1f} s")
    with temporary_folder() as folder:
        run_sweep(options, folder, *SMALL_SWEEP, "--seeds", 1)
        for name, more in (("--help", ["--help"]), ("--dry-run", ["--dry-run"]), ("a rerun with nothing to do", [])):
            arguments = (*SMALL_SWEEP, "--seeds", "1", *more)
            taken = [run_sweep(options, folder, *arguments).seconds for _ in range(options.repeats)]
            found[f"seconds of {name}"] = {"mlp_1": statistics.median(taken)}
            say(f"{name}: {statistics.median(taken):.2f} s")
    return found


def has_points(folder: Path, pid: int) -> bool:
    """Return whether the tracking store in a folder has any point."""
    return bool(query_store(folder, "SELECT 1 FROM metrics LIMIT 1"))


def measure_memory(options: Options) -> Measures:
    """Measure the part `memory`: unshared memory of worker processes while they train."""
    found: Measures = defaultdict(dict)
    for architecture, seeds in (("mlp_1", options.mlp_seeds), ("cnn_3", options.cnn_seeds)):
        with temporary_folder() as folder:
            watch = WorkerWatch(folder)
            arguments = ("--dataset", options.dataset, "--architectures", architecture, "--seeds", seeds)
            run_sweep(options, folder, *arguments, has_enough=watch)
        found["MB of a worker of its own, at most"][architecture] = watch.peak_megabytes
        found["MB a trial, at most"][architecture] = watch.peak_megabytes * watch.workers / watch.trials
        counts = f"{watch.trials} trials in {watch.workers} workers"
        say(f"{architecture}: {watch.peak_megabytes:.0f} MB per worker, {counts}")
    return found


class WorkerWatch:
    """Observer of a sweep's workers, until they have trained for some seconds.

    Attributes:
        trials: The largest number of trials that trained at the same time.
        workers: The largest number of worker processes at the same time.
        peak_megabytes: The most memory of a worker that no other process shared.
    """

    TRAINING_SECONDS = 10.0
    INTERVAL_SECONDS = 0.5

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trials = self.workers = 0
        self.peak_megabytes = 0.0
        self.training_since: float | None = None
        self.last_look = 0.0

    def __call__(self, pid: int) -> bool:
        """Look at the workers of the driver `pid`; return whether they have trained for long enough."""
        now = time.monotonic()
        if now - self.last_look < self.INTERVAL_SECONDS:
            return False
        self.last_look = now
        running = "SELECT 1 FROM runs JOIN tags USING (run_uuid) WHERE key = 'trial_id' AND status = 'RUNNING'"
        trials = len(query_store(self.folder, running))
        if trials:
            self.training_since = self.training_since or now
            unshared = [get_worker_megabytes(child) for child in psutil.Process(pid).children(recursive=True)]
            workers = [megabytes for megabytes in unshared if megabytes]
            self.trials, self.workers = max(self.trials, trials), max(self.workers, len(workers))
            self.peak_megabytes = max(self.peak_megabytes, *workers, 0.0)
        return self.training_since is not None and now - self.training_since > self.TRAINING_SECONDS


def get_worker_megabytes(process: psutil.Process) -> float:
    """Return the memory in MB of a worker of Ray Tune that no other process shares; 0 for any other process."""
    try:
        if "ImplicitFunc" not in " ".join(process.cmdline()):
            return 0.0
        return float(process.memory_full_info().uss) / MEGABYTE
    except psutil.Error:
        return 0.0


def describe_machine() -> dict[str, str | float]:
    """Return the date, the commit, the machine and the versions of libraries that the numbers belong to."""
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"]
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown",
        "load average before": os.getloadavg()[0],
        "processor": found[1] if found else platform.machine(),
        "cores": CORES,
        "GFLOP/s, one thread": peak.measure_peak(1) / 1e9,
        "GFLOP/s, all cores": peak.measure_peak(CORES) / 1e9,
        "python": platform.python_version(),
        **{library: version(library) for library in ("torch", "ray", "mlflow")},
    }


def say(text: str) -> None:
    """Print a line of progress, with the time of day."""
    console.print(f"{datetime.now():%H:%M:%S} {text}", markup=False, highlight=False, soft_wrap=True)


def make_table(results: dict[str, Measures]) -> Table:
    """Return a table of all results: a row for each measure, a column for each architecture."""
    architectures = sorted({name for part in results.values() for row in part.values() for name in row})
    architectures.sort(key=lambda name: get_kind(name) != "mlp")
    table = Table(title="Medians; part 3's trials, batches of 50, all validation images recorded every 10 steps")
    table.add_column("")
    for architecture in architectures:
        table.add_column(architecture, justify="right")
    for part in results.values():
        table.add_section()
        for measure, row in part.items():
            table.add_row(measure, *(f"{row[name]:,.3g}" if name in row else "" for name in architectures))
    return table


def check(options: Options) -> None:
    """Check the options before anything is measured.

    Raises:
        BadInputError: An option has a value that the benchmark cannot use.
    """
    for architecture in options.architectures:
        check_choice("architecture", architecture, MAIN_ARCHITECTURES)
    for name in ("rounds", "turns", "repeats", "overhead_trials"):
        check_positive(f"--{name.replace('_', '-')}", getattr(options, name), whole=True)
    for name in ("mlp_steps", "cnn_steps"):
        if (steps := getattr(options, name)) < 20 or steps % 10:
            raise BadInputError(f"--{name.replace('_', '-')} is {steps}; it must be a multiple of 10, and at least 20")
    if not options.out.parent.is_dir():
        raise BadInputError(f"--out {options.out} cannot be written; name a file in a folder that exists")


def main(options: Options) -> int:
    """Measure the chosen parts, print the results and save them."""
    check(options)
    machine = describe_machine()
    if float(machine["load average before"]) > BUSY_LOAD_PER_CORE * CORES:
        say("Other work keeps this machine busy; scripts with several threads suffer most, so the ratios will mislead.")
    results: dict[str, Measures] = {}
    measure: dict[Part, Callable[[], Measures]] = {
        "speed": lambda: measure_speed(options),
        "peak": lambda: measure_peak_fractions(options),
        "overhead": lambda: measure_overhead(options, results.get("speed", {})),
        "growth": lambda: measure_growth(options),
        "first": lambda: measure_first(options),
        "memory": lambda: measure_memory(options),
    }
    for part in measure:
        if part in options.parts:
            say(f"{part} …")
            results[part] = measure[part]()
            options.out.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    console.print(make_table(results))
    for name, value in machine.items():
        shown = f"{value:.3g}" if isinstance(value, float) else value
        console.print(f"{name}: {shown}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Saved to {options.out}")
    return 0


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    sys.exit(run_to_exit_status(lambda: main(options)))

"""How fast sweeps are, beside a plain script and a sweep as in Ray's tutorial, and how near to the machine's limit.

Every number is measured with a real command or script, in a process and a folder of its own. Its parts:

speed: milliseconds a step of one trial, records included, on the whole machine. For our sweep that is the wall time of
    `sweeps/part3.py` over the steps of all its trials: all in (from the command to the prompt), and steady (from the
    first run's start to the last run's end in the tracking store, with tests, checkpoints and tracking). Each round
    adds seeds to the sweep; the first, which also makes the database and tries what pays, is told apart. The others
    (`rivals.py`) have no start-up counted. They take turns, so that the machine's noise meets all.
peak: the part of the measured peak of matrix products on one thread that training and validation reach (`peak.py`).
overhead: what a trial costs beyond its training, packed and alone (`--pack 1`), seen on many trials of 26 steps. From
    the first run's start to the last run's end, times the processes at once, less the seconds that the trials trained
    (records included), over the trials. So it has test, checkpoints, tracking, and what Ray does between two packs,
    but not the command's own start and end (Ray, the data, probing), which are given beside it. The percentages are
    of a trial of part 3's 15 epochs at the steady speed that this run of the benchmark saw, if it did.
growth: the same trials, more and more of them. The memory is the driver's peak (VmHWM).
first: seconds from the command to the first point in the store, and of commands that train nothing.
memory: of worker processes while they train: what is theirs alone (USS), over the trials running in them.
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
BUSY = 0.5  # of a core, by the load average: more than a machine at rest has
LIMIT_SECONDS = 1800.0  # of one command
BATCH = 50  # part 3's defaults
FULL_EPOCHS = 15
FULL = f"seconds of a trial of {FULL_EPOCHS} epochs on a core, steady"
SMALL = ("--dataset", "digits", "--architectures", "mlp_1", "--epochs", "1")  # trials of 26 steps

Part = Literal["speed", "peak", "overhead", "growth", "first", "memory"]
Measures = dict[str, dict[str, float]]  # measure → architecture → value
console = Console()


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    parts: tuple[Part, ...] = get_args(Part)
    dataset: str = "fashion_mnist"
    data_root: Path = Path("data")
    architectures: tuple[str, ...] = ("mlp_1", "mlp_2", "cnn_3", "cnn_4", "cnn_5")
    rounds: int = 2
    """Of our sweep and the tutorial's; the scripts have a round more, one after the last."""
    turns: int = 3
    """Of the scripts in every round, and of each fraction of the peak."""
    mlp_seeds: int = 10
    mlp_epochs: int = 15
    cnn_seeds: int = 2
    cnn_epochs: int = 2
    mlp_steps: int = 300
    """A turn of the scripts, and a trial of the tutorial's sweep."""
    cnn_steps: int = 30
    """A turn of the scripts; a trial of the tutorial's sweep has twice as many."""
    overhead_trials: int = 60
    growth: tuple[int, ...] = (10, 100, 1_000)
    growth_alone: int = 100
    """With `--pack 1`, at most so many."""
    repeats: int = 3
    """Of the commands that train nothing."""
    out: Path = Path("benchmarks/bench.json")


@dataclass(frozen=True)
class Ran:
    """What came of a command.

    Attributes:
        peak_megabytes: Of its own process.
        enough_seconds: When it had done enough, and was stopped.
    """

    seconds: float
    peak_megabytes: float
    output: str
    enough_seconds: float | None


@contextmanager
def folder() -> Iterator[Path]:
    """A temporary folder; short, as the paths of Ray's sockets must be."""
    with tempfile.TemporaryDirectory(prefix="nb-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def run(words: Sequence[object], where: Path, enough: Callable[[int], bool] | None = None) -> Ran:
    """Run a Python script to its end, or until `enough`, given its process id every few milliseconds, is true.

    Raises:
        RuntimeError: It failed, or took too long.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "OMP_NUM_THREADS")}
    log = where / "output.txt"
    peak_megabytes, enough_seconds = 0.0, None
    with log.open("w") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=where,
            env={**environment, "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,  # Ctrl-C reaches it once, through `stop`
        )
        try:
            while process.poll() is None:
                peak_megabytes = max(peak_megabytes, high_water(process.pid))
                if enough is not None and enough_seconds is None and enough(process.pid):
                    enough_seconds = time.perf_counter() - started
                    process.send_signal(signal.SIGINT)
                if time.perf_counter() - started > LIMIT_SECONDS:
                    raise RuntimeError(f"{words} took longer than {LIMIT_SECONDS:.0f} seconds")
                time.sleep(POLL_SECONDS)
        finally:
            stop(process)
        seconds = time.perf_counter() - started
    text = log.read_text()
    if process.returncode and enough_seconds is None:
        raise RuntimeError(f"{words} ended with {process.returncode}:\n{text[-2000:]}")
    return Ran(seconds, peak_megabytes, text, enough_seconds)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that still runs, and what it has started, as Ctrl-C does; the hard way where that fails."""
    if process.poll() is not None:
        return
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in started:
        if child.is_running():
            child.kill()


def high_water(pid: int) -> float:
    """The most memory in MB that a process has had resident; 0 once it is gone."""
    try:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) * 1024 / MEGABYTE if found else 0.0


def sweep(options: Options, where: Path, *words: object, enough: Callable[[int], bool] | None = None) -> Ran:
    """Run `sweeps/part3.py` with everything that it keeps in the folder `where`."""
    places = ("--data-root", options.data_root.absolute(), "--tracking-uri", f"sqlite:///{where}/mlflow.db")
    return run([PART3, *words, *places, "--storage", where / "storage"], where, enough)


def ask(where: Path, query: str) -> list[tuple[float, ...]]:
    """What the tracking store in a folder says; nothing where it is not yet there."""
    try:
        with closing(sqlite3.connect(f"file:{where}/mlflow.db?mode=ro", uri=True)) as database:
            return database.execute(query).fetchall()
    except sqlite3.OperationalError:
        return []


def span(where: Path, since: float = 0) -> tuple[int, float]:
    """The finished trials that started since then, and the seconds from the first start to the last end."""
    query = (
        "SELECT count(*), min(start_time), max(end_time) FROM runs JOIN tags USING (run_uuid) WHERE key = 'trial_id'"
    )
    [(count, start, end)] = ask(where, f"{query} AND status = 'FINISHED' AND start_time >= {int(1000 * since)}")
    return int(count), (end - start) / 1000


def training_seconds(where: Path) -> float:
    """Of all trials in the store; those of a stack share them."""
    query = """SELECT took.value, coalesce(shared.value, 1) FROM tags took LEFT JOIN tags shared
        ON shared.run_uuid = took.run_uuid AND shared.key = 'stacked_trials' WHERE took.key = 'training_seconds'"""
    return sum(float(took) / float(shared) for took, shared in ask(where, query))


def kind(architecture: str) -> str:
    """The kind of network, which decides how long it is measured."""
    return architecture.partition("_")[0]


def speed(options: Options) -> Measures:
    """Part (a): our sweep, the scripts, and the tutorial's sweep, in turns."""
    data = datasets.load_dataset(options.dataset, options.data_root)
    found: Measures = defaultdict(dict)
    with folder() as shared:
        arrays = shared / "data.npz"
        parts = ("train_images", "train_labels", "val_images", "val_labels")
        np.savez(arrays, **{part: getattr(data, part) for part in parts})
        for architecture in options.architectures:
            samples = compare(options, architecture, arrays, len(data.train_labels))
            medians = {name: 1000 * statistics.median(values) for name, values in samples.items()}
            for name, milliseconds in medians.items():
                found[f"ms a step, {name}"][architecture] = milliseconds
            full = FULL_EPOCHS * math.ceil(len(data.train_labels) / BATCH)
            found[FULL][architecture] = medians["ours, steady"] / 1000 * full * CORES
            for rival in ("plain script", "lean script", "tutorial's sweep"):
                for ours in ("all in", "steady"):
                    ratio = medians[rival] / medians[f"ours, {ours}"]
                    found[f"times as fast as the {rival}, {ours}"][architecture] = ratio
    return found


def compare(options: Options, architecture: str, arrays: Path, images: int) -> dict[str, list[float]]:
    """Seconds a step of each contender, a value a turn."""
    mlp = kind(architecture) == "mlp"
    seeds, epochs, steps = (
        (options.mlp_seeds, options.mlp_epochs, options.mlp_steps)
        if mlp
        else (options.cnn_seeds, options.cnn_epochs, options.cnn_steps)
    )
    words = ("--dataset", options.dataset, "--architectures", architecture, "--epochs", epochs)
    samples: dict[str, list[float]] = defaultdict(list)

    def rival(name: str, word: str, steps: int) -> None:
        with folder() as where:
            settings = ("--architecture", architecture, "--data", arrays, "--folder", where)
            ran = run([RIVALS, "--kind", word, *settings, "--steps", steps, "--turns", options.turns], where)
        samples[name] += json.loads(ran.output.splitlines()[-1])
        say(f"{architecture}: {name}, {1000 * statistics.median(samples[name]):.2f} ms a step ({ran.seconds:.0f} s)")

    def scripts() -> None:
        rival("plain script", "plain", steps)
        rival("lean script", "lean", steps)

    with folder() as home:
        for turn in range(options.rounds):
            scripts()
            began = time.time()
            ran = sweep(options, home, *words, "--seeds", (turn + 1) * seeds)
            trials, seconds = span(home, began)
            taken = trials * epochs * math.ceil(images / BATCH)
            # The first sweep of a folder makes its database, and tries what pays there.
            samples["ours, all in" if turn else "ours, all in, the first of a folder"].append(ran.seconds / taken)
            samples["ours, steady"].append(seconds / taken)
            milliseconds = (1000 * value / taken for value in (ran.seconds, seconds))
            say("{}: ours, {:.2f} ms a step, steady {:.2f} ({:.0f} s)".format(architecture, *milliseconds, ran.seconds))
            rival("tutorial's sweep", "tutorial", steps if mlp else 2 * steps)
    scripts()
    samples.setdefault("ours, all in", samples["ours, all in, the first of a folder"])  # of one round
    return samples


def fractions(options: Options) -> Measures:
    """Part (b): the part of the peak that training and validation reach."""
    found: Measures = defaultdict(dict)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for architecture in options.architectures:
            task = pool.submit(peak.fractions, architecture, options.dataset, options.data_root, options.turns).result()
            for name, value in task.items():
                found[f"part of the peak, {name}"][architecture] = value
            say(f"{architecture}: {', '.join(f'{name} {value:.0%}' for name, value in task.items())} of the peak")
    return found


def overhead(options: Options, measured: Measures) -> Measures:
    """Part (c): what a trial costs beyond its training."""
    found: Measures = {}
    full = measured.get(FULL, {})
    for name, pack in (("packed", "auto"), ("alone", "1")):
        with folder() as where:
            ran = sweep(options, where, *SMALL, "--seeds", options.overhead_trials, "--pack", pack)
            trials, seconds = span(where)
            each = (seconds * CORES - training_seconds(where)) / trials
        found[f"seconds a trial beyond its training, {name}"] = {"mlp_1": each}
        if full:
            share = {architecture: 100 * each / seconds for architecture, seconds in full.items()}
            found[f"the same, % of a trial of {FULL_EPOCHS} epochs, {name}"] = share
        found[f"seconds of the command beyond its trials, {name}"] = {"mlp_1": ran.seconds - seconds}
        say(f"overhead, {name}: {each:.3f} s a trial ({ran.seconds:.0f} s)")
    return found


def growth(options: Options) -> Measures:
    """Part (d): more and more small trials."""
    found: Measures = {}
    plans = [(count, "packed", "auto") for count in options.growth]
    plans += [(count, "alone", "1") for count in options.growth if count <= options.growth_alone]
    for count, name, pack in plans:
        with folder() as where:
            ran = sweep(options, where, *SMALL, "--seeds", count, "--pack", pack)
            trials, seconds = span(where)
        assert trials == count, ran.output
        of = f"{count:,} trials, {name}"
        found[f"{of}: seconds"] = {"mlp_1": ran.seconds}
        found[f"{of}: seconds a trial, without start and end"] = {"mlp_1": seconds / count}
        found[f"{of}: driver's peak, MB"] = {"mlp_1": ran.peak_megabytes}
        say(f"{of}: {ran.seconds:.0f} s, the driver's peak {ran.peak_megabytes:.0f} MB")
    return found


def first(options: Options) -> Measures:
    """Part (e): how long until there is something to see."""
    found: Measures = {}
    full = ("--dataset", options.dataset, "--architectures", "mlp_1", "--epochs", FULL_EPOCHS)
    for name, words in (("a small trial", SMALL), ("a full trial", full)):
        with folder() as where:
            ran = sweep(options, where, *words, "--seeds", 1, enough=partial(recorded, where))
        assert ran.enough_seconds is not None, ran.output
        found[f"seconds to the first record of {name}"] = {"mlp_1": ran.enough_seconds}
        say(f"first record of {name}: {ran.enough_seconds:.1f} s")
    with folder() as where:
        sweep(options, where, *SMALL, "--seeds", 1)
        for name, more in (("--help", ["--help"]), ("--dry-run", ["--dry-run"]), ("a rerun with nothing to do", [])):
            taken = [sweep(options, where, *SMALL, "--seeds", 1, *more).seconds for _ in range(options.repeats)]
            found[f"seconds of {name}"] = {"mlp_1": statistics.median(taken)}
            say(f"{name}: {statistics.median(taken):.2f} s")
    return found


def recorded(where: Path, pid: int) -> bool:
    """Whether the store in a folder has a point."""
    return bool(ask(where, "SELECT 1 FROM metrics LIMIT 1"))


def memory(options: Options) -> Measures:
    """Part (f): what worker processes have for themselves while they train, over the trials in them."""
    found: Measures = defaultdict(dict)
    for architecture, seeds in (("mlp_1", options.mlp_seeds), ("cnn_3", options.cnn_seeds)):
        with folder() as where:
            watch = Watch(where)
            words = ("--dataset", options.dataset, "--architectures", architecture, "--seeds", seeds)
            sweep(options, where, *words, enough=watch)
        found["MB of a worker of its own, at most"][architecture] = watch.most
        found["MB a trial, at most"][architecture] = watch.most * watch.workers / watch.trials
        say(f"{architecture}: {watch.most:.0f} MB a worker, {watch.trials} trials in {watch.workers} workers")
    return found


class Watch:
    """Looks at a sweep's workers until they have trained for some seconds.

    Attributes:
        most: Memory in MB of a worker that no other process shares.
    """

    SECONDS = 10.0
    EVERY_SECONDS = 0.5

    def __init__(self, where: Path) -> None:
        self.where = where
        self.trials = self.workers = 0
        self.most = 0.0
        self.began: float | None = None
        self.looked = 0.0

    def __call__(self, pid: int) -> bool:
        now = time.monotonic()
        if now - self.looked < self.EVERY_SECONDS:
            return False
        self.looked = now
        running = "SELECT 1 FROM runs JOIN tags USING (run_uuid) WHERE key = 'trial_id' AND status = 'RUNNING'"
        trials = len(ask(self.where, running))
        if trials:
            self.began = self.began or now
            mine = [worker_megabytes(child) for child in psutil.Process(pid).children(recursive=True)]
            workers = [megabytes for megabytes in mine if megabytes]
            self.trials, self.workers = max(self.trials, trials), max(self.workers, len(workers))
            self.most = max(self.most, *workers, 0.0)
        return self.began is not None and now - self.began > self.SECONDS


def worker_megabytes(process: psutil.Process) -> float:
    """What a process of Ray Tune's trials has in memory for itself; 0 of any other process."""
    try:
        if "ImplicitFunc" not in " ".join(process.cmdline()):
            return 0.0
        return float(process.memory_full_info().uss) / MEGABYTE
    except psutil.Error:
        return 0.0


def machine() -> dict[str, str | float]:
    """What the numbers were measured on, and with."""
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"]
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown",
        "load average before": os.getloadavg()[0],
        "processor": found[1] if found else platform.machine(),
        "cores": CORES,
        "GFLOP/s, one thread": peak.sgemm(1) / 1e9,
        "GFLOP/s, all cores": peak.sgemm(CORES) / 1e9,
        "python": platform.python_version(),
        **{library: version(library) for library in ("torch", "ray", "mlflow")},
    }


def say(text: str) -> None:
    """A line of progress."""
    console.print(f"{datetime.now():%H:%M:%S} {text}", markup=False, highlight=False, soft_wrap=True)


def draw(results: dict[str, Measures]) -> Table:
    """All that was measured: a row a measure, a column an architecture."""
    architectures = sorted({name for part in results.values() for row in part.values() for name in row})
    architectures.sort(key=lambda name: kind(name) != "mlp")
    table = Table(title="Medians; part 3's trials, batches of 50, a record on all validation images every 10 steps")
    table.add_column("")
    for architecture in architectures:
        table.add_column(architecture, justify="right")
    for part in results.values():
        table.add_section()
        for measure, row in part.items():
            table.add_row(measure, *(f"{row[name]:,.3g}" if name in row else "" for name in architectures))
    return table


def check(options: Options) -> None:
    """Raise `BadInputError` for what would end the benchmark, before it takes its time."""
    for architecture in options.architectures:
        check_choice("architecture", architecture, MAIN_ARCHITECTURES)
    for name in ("rounds", "turns", "repeats", "overhead_trials"):
        check_positive(f"--{name.replace('_', '-')}", getattr(options, name), whole=True)
    for name in ("mlp_steps", "cnn_steps"):
        if (steps := getattr(options, name)) < 20 or steps % 10:
            raise BadInputError(f"--{name.replace('_', '-')} is {steps}; it must be a multiple of 10, from 20 on")
    if not options.out.parent.is_dir():
        raise BadInputError(f"--out {options.out} cannot be written; name a file in a folder that there is")


def main(options: Options) -> int:
    """Measure, print, save."""
    check(options)
    described = machine()
    if float(described["load average before"]) > BUSY * CORES:
        say("The machine has other work, which slows scripts on several threads most: the ratios will mislead.")
    results: dict[str, Measures] = {}
    measure: dict[Part, Callable[[], Measures]] = {
        "speed": lambda: speed(options),
        "peak": lambda: fractions(options),
        "overhead": lambda: overhead(options, results.get("speed", {})),
        "growth": lambda: growth(options),
        "first": lambda: first(options),
        "memory": lambda: memory(options),
    }
    for part in measure:
        if part in options.parts:
            say(f"{part} …")
            results[part] = measure[part]()
            options.out.write_text(json.dumps({"machine": described, "results": results}, indent=1) + "\n")
    console.print(draw(results))
    for name, value in described.items():
        shown = f"{value:.3g}" if isinstance(value, float) else value
        console.print(f"{name}: {shown}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Saved to {options.out}")
    return 0


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    sys.exit(run_to_exit_status(lambda: main(options)))

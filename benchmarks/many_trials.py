"""What many trials cost the driver: sweeps of trials that train nothing, through `launch.train` and a real Ray.

Ray is told of more CPUs than there are (`--at-once`). Each number of trials has a driver process of its own, so that
its memory can be told apart. Neither data nor a tracking store takes part; for the latter see `load.py`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import tyro
from rich.console import Console
from rich.table import Table

from sweeps.part3 import Part3

MEGABYTE = 2**20
console = Console()


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    trials: tuple[int, ...] = (10, 100, 1_000)
    at_once: int = 8
    """Worker processes, of about 0.75 GB each."""
    reports: int = 16
    """Of each trial to Ray Tune: one of 15 epochs sends 16."""
    seconds: float = 0.0
    """That a trial sleeps before each report."""
    limit_minutes: float = 25.0
    """A sweep that has not ended then is stopped."""
    out: Path = Path("benchmarks/many_trials.json")


def peak_megabytes() -> float:
    """The most memory that this process has had resident."""
    [kilobytes] = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024 / MEGABYTE


def ray_megabytes() -> dict[str, float]:
    """The memory of Ray's processes now: of the head's services, and of a worker in the median."""
    found = defaultdict(list)
    for process in psutil.Process().children(recursive=True):
        title = " ".join(process.cmdline()[:1])
        kind = "worker" if title.startswith("ray::") else process.name()
        found[kind].append(process.memory_info().rss / MEGABYTE)
    return {kind: statistics.median(found[kind]) for kind in ("gcs_server", "raylet", "worker") if kind in found}


def simulate(count: int, options: Options) -> dict[str, Any]:
    """Run so many trials; what the driver needed. Called in a process of its own."""
    from sweeps.driver import cluster, launch, progress  # the first to import Ray, whose settings it makes
    from sweeps.driver.resources import Node
    from trainables.persistence.delivery import SweepContext
    from trainables.worker.pack import Pack, WorkerSettings

    reports, seconds = options.reports, options.seconds

    def nothing(config: dict[str, str], **parameters: Any) -> None:  # in here, for Ray to send it by value
        from ray import tune

        [trial] = Pack.from_json(config["pack"]).trials
        for report in range(reports):
            time.sleep(seconds)
            endings: dict[str, Any] = {trial.id: {}} if report == reports - 1 else {}
            tune.report({"epochs": trial.epochs * report // reports, "running": 1, "endings": endings})

    ends: list[float] = []

    class Bar(progress.ProgressBar):
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            super().on_trial_complete(iteration, trials, trial, **info)
            ends.append(time.monotonic())

    began = time.monotonic()
    sweep = Part3(dataset="fashion_mnist", seeds=count, architectures=("mlp_1",)).sweep()
    labels = sweep.labels()
    packs = [Pack((trial,), (labels[trial.id],), 0.0) for trial in sweep.trials()]
    planned = time.monotonic() - began
    with tempfile.TemporaryDirectory(prefix="nt-") as name:  # short, as socket paths must be
        folder = Path(name) / "ray"
        context = SweepContext(
            tracking_uri="",
            experiment_id="",
            parent_run_id="",
            storage=folder,
            storage_name="",
            driver="",
            tags={},
        )
        settings = WorkerSettings(context=context, threads=1, checkpoint_seconds=60)
        cluster.start_or_join(None, Node(options.at_once, 0), folder)
        before = peak_megabytes()
        limit = threading.Timer(60 * options.limit_minutes, os.kill, (os.getpid(), signal.SIGINT))
        limit.start()
        began, cpu = time.monotonic(), time.process_time()
        try:
            with mock.patch.object(launch, "trainable", nothing), mock.patch.object(launch, "Bar", Bar):
                endings = launch.train_packs(packs, None, settings, options.at_once, folder, Console(quiet=True))
            took, cpu = time.monotonic() - began, time.process_time() - cpu
            memory = ray_megabytes()
        finally:
            limit.cancel()
            cluster.disconnect(folder)
    tenth = max(1, len(ends) // 10)
    return {
        "trials": count,
        "done": len(endings),
        "failed": sum(ending.error is not None for ending in endings.values()),
        "plan_seconds": planned,
        "seconds": took,
        "first_end_seconds": ends[0] - began,
        "driver_cpu_seconds": cpu,
        "results_per_second": len(endings) * reports / took,
        "last_tenth_trials_per_second": (tenth - 1) / (ends[-1] - ends[-tenth]) if tenth > 1 else None,
        "driver_peak_megabytes": peak_megabytes(),
        "driver_megabytes_before": before,
        "ray_megabytes": memory,
    }


def main(options: Options) -> None:
    """Measure, print, save."""
    title = f"Trials that train nothing, {options.reports} reports each, {options.at_once} at once; memory in MB"
    table = Table(title=title)
    for heading in ("trials", "done", "failed", "seconds", "results/s", "driver's CPU (s)", "peak", "before", "GCS"):
        table.add_column(heading, justify="right")
    found = []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for count in options.trials:
            seen = pool.submit(simulate, count, options).result()
            found.append(seen)
            console.print(seen)
            table.add_row(
                f"{count:,}",
                f"{seen['done']:,}",
                str(seen["failed"]),
                f"{seen['seconds']:.0f}",
                f"{seen['results_per_second']:.0f}",
                f"{seen['driver_cpu_seconds']:.0f}",
                f"{seen['driver_peak_megabytes']:.0f}",
                f"{seen['driver_megabytes_before']:.0f}",
                f"{seen['ray_megabytes'].get('gcs_server', 0):.0f}",
            )
    console.print(table)
    content = {"cores": os.cpu_count(), "reports": options.reports, "at_once": options.at_once, "sweeps": found}
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    console.print(f"Saved to {options.out}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

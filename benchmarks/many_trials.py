"""Measures what many trials cost the driver: sweeps of trials that train nothing, on a real Ray.

The packs go through `launch.train_packs`. Ray is told that the machine has more CPUs than it has (`--at-once`). Each
number of trials has a driver process of its own, so that its memory can be measured. Neither data nor a tracking store
takes part; `load.py` measures the store.
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
    """Options of the benchmark."""

    trials: tuple[int, ...] = (10, 100, 1_000)
    """Numbers of trials to measure."""
    at_once: int = 8
    """Number of worker processes, of about 0.75 GB each."""
    reports: int = 16
    """Number of reports that each trial sends to Ray Tune; a real trial of 15 epochs sends 16."""
    seconds: float = 0.0
    """Seconds that a trial sleeps before each report."""
    limit_minutes: float = 25.0
    """Minutes after which a sweep that has not ended is stopped."""
    out: Path = Path("benchmarks/many_trials.json")
    """File for the results."""


def get_peak_megabytes() -> float:
    """Return the most memory in MB that this process has had resident."""
    [kilobytes] = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024 / MEGABYTE


def get_ray_megabytes() -> dict[str, float]:
    """Return the memory in MB of Ray's processes now: of each of the head's services, and the median of workers."""
    found = defaultdict(list)
    for process in psutil.Process().children(recursive=True):
        title = " ".join(process.cmdline()[:1])
        kind = "worker" if title.startswith("ray::") else process.name()
        found[kind].append(process.memory_info().rss / MEGABYTE)
    return {kind: statistics.median(found[kind]) for kind in ("gcs_server", "raylet", "worker") if kind in found}


def simulate(count: int, options: Options) -> dict[str, Any]:
    """Run some trials, and return the time and memory that the driver needed.

    This must be called in a process of its own.

    Args:
        count: Number of trials.
        options: The benchmark's options.
    """
    import ray

    from sweeps.driver import cluster, launch  # imports Ray, only in this process
    from sweeps.driver.resources import Node
    from trainables.persistence.connection import SweepContext
    from trainables.worker.pack import REPORT_KEY, Outcome, Pack, PackReport, WorkerSettings

    reports, seconds = options.reports, options.seconds

    # Replaces `train_pack_in_tune`. Ray sends it to workers by value, as it is not a function of a module.
    def train_nothing(config: dict[str, str], **parameters: Any) -> None:
        from ray import tune

        [trial] = Pack.from_json(config["pack"]).trials
        for report in range(reports):
            time.sleep(seconds)
            outcomes = {trial.id: Outcome()} if report == reports - 1 else {}
            tune.report({REPORT_KEY: PackReport(trial.epochs * report // reports, 1, outcomes)})

    ends: list[float] = []

    class TimingCallback(launch.ForwardReports):
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            ends.append(time.monotonic())

    started = time.monotonic()
    sweep = Part3(dataset="fashion_mnist", seeds=count, architectures=("mlp_1",)).sweep()
    labels = sweep.labels()
    packs = [Pack((trial,), (labels[trial.id],), 0.0) for trial in sweep.trials()]
    plan_seconds = time.monotonic() - started
    with tempfile.TemporaryDirectory(prefix="nt-") as name:  # short, as the paths of sockets must be
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
        folder.mkdir()
        cluster.start_or_join(None, "", Node(options.at_once, 0), folder)
        before = get_peak_megabytes()
        limit = threading.Timer(60 * options.limit_minutes, os.kill, (os.getpid(), signal.SIGINT))
        limit.start()
        started, cpu_started = time.monotonic(), time.process_time()
        try:
            with (
                mock.patch.object(launch, "train_pack_in_tune", train_nothing),
                mock.patch.object(launch, "ForwardReports", TimingCallback),
            ):
                outcomes = launch.train_packs(packs, None, settings, options.at_once, folder, lambda pack, report: None)
            seconds_taken, cpu_seconds = time.monotonic() - started, time.process_time() - cpu_started
            memory = get_ray_megabytes()
        finally:
            limit.cancel()
            ray.shutdown()
    tenth = max(1, len(ends) // 10)
    return {
        "trials": count,
        "done": len(outcomes),
        "failed": sum(outcome.error is not None for outcome in outcomes.values()),
        "plan_seconds": plan_seconds,
        "seconds": seconds_taken,
        "first_end_seconds": ends[0] - started,
        "driver_cpu_seconds": cpu_seconds,
        "results_per_second": len(outcomes) * reports / seconds_taken,
        "last_tenth_trials_per_second": (tenth - 1) / (ends[-1] - ends[-tenth]) if tenth > 1 else None,
        "driver_peak_megabytes": get_peak_megabytes(),
        "driver_megabytes_before": before,
        "ray_megabytes": memory,
    }


def main(options: Options) -> None:
    """Measure, print the results and save them."""
    title = f"Trials that train nothing, {options.reports} reports each, {options.at_once} at once; memory in MB"
    table = Table(title=title)
    for heading in ("trials", "done", "failed", "seconds", "results/s", "driver's CPU (s)", "peak", "before", "GCS"):
        table.add_column(heading, justify="right")
    found = []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for count in options.trials:
            result = pool.submit(simulate, count, options).result()
            found.append(result)
            console.print(result)
            table.add_row(
                f"{count:,}",
                f"{result['done']:,}",
                str(result["failed"]),
                f"{result['seconds']:.0f}",
                f"{result['results_per_second']:.0f}",
                f"{result['driver_cpu_seconds']:.0f}",
                f"{result['driver_peak_megabytes']:.0f}",
                f"{result['driver_megabytes_before']:.0f}",
                f"{result['ray_megabytes'].get('gcs_server', 0):.0f}",
            )
    console.print(table)
    content = {"cores": os.cpu_count(), "reports": options.reports, "at_once": options.at_once, "sweeps": found}
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    console.print(f"Saved to {options.out}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

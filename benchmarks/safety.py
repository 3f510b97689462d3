"""Measures the cost of safety: checkpoints and tracking as a share of a trial's time, and a rerun that trains nothing.

A trial is trained in this process, into a store of its own, for fewer epochs than usual. The result is projected to the
usual number: times that grow with the epochs are multiplied, and those of work that is done once per trial are not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from chaos.lab import Server
from sweeps.part3 import Part3
from sweeps.sweep import Sweep
from trainables import datasets
from trainables.accelerated.probe import find_fastest_backend
from trainables.persistence.connection import SweepContext
from trainables.persistence.delivery import Delivery
from trainables.persistence.store import Store
from trainables.persistence.trial_folder import TrialFolder
from trainables.persistence.trial_run import MODEL_ARTIFACT, RESULT_ARTIFACT, TrialRun
from trainables.result import Result
from trainables.trial import Trial
from trainables.worker import pack, trainable

ROOT = Path(__file__).resolve().parent.parent
# name -> class and method that are timed, and whether the time is taken to grow with the epochs. That of sending the
# result (artifacts and last points) is, although only the points grow: the true cost of safety is a bit lower.
TIMED_METHODS: dict[str, tuple[Any, str, bool]] = {
    "find the run": (Delivery, "open_run", False),
    "checkpoints": (TrialFolder, "write_checkpoint", True),
    "points": (TrialRun, "send_records", True),
    "keep the result": (TrialFolder, "write_result", False),
    "send the result": (Delivery, "deliver_result", True),
}
console = Console()


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    dataset: str = "fashion_mnist"
    """Data set to train on."""
    data_root: Path = Path("data")
    """Folder of the data sets."""
    architectures: tuple[str, ...] = ("mlp_1", "cnn_3")
    """Architectures to measure."""
    measured_epochs: tuple[int, ...] = (4, 1)
    """Epochs that a trial of each architecture trains."""
    epochs: int = 15
    """Epochs to which the times are projected."""
    finished_trials: int = 1000
    """Finished trials in the store of the rerun."""
    out: Path = Path("benchmarks/safety.json")
    """File for the results."""


def add_timer(seconds: dict[str, float], name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, changed so that it adds its time to `seconds[name]`, unless another timed one calls it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        outermost, seconds["depth"] = not seconds["depth"], seconds["depth"] + 1
        started = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            seconds["depth"] -= 1
            if outermost:
                seconds[name] += time.perf_counter() - started

    return call


def project_trial(trial: Trial, data: datasets.Dataset, uri: str, folder: Path, epochs: int) -> dict[str, float]:
    """Train a trial, and return the seconds that it would take with `epochs` epochs, by what takes them."""
    store = Store(uri)
    experiment_id, parent = store.ensure_parent("safety", trial.dataset)
    context = SweepContext(
        tracking_uri=uri,
        experiment_id=experiment_id,
        parent_run_id=parent,
        storage=folder,
        storage_name="here",
        driver=f"{parent}/benchmark",
        tags={},
    )
    backend = find_fastest_backend(1)
    settings = pack.WorkerSettings(context=context, threads=1, checkpoint_seconds=60, backend=backend)
    seconds: dict[str, float] = defaultdict(float)
    with ExitStack() as patches:
        patches.enter_context(mock.patch("ray.tune.report"))
        for name, (owner, method, _) in TIMED_METHODS.items():
            patches.enter_context(mock.patch.object(owner, method, add_timer(seconds, name, getattr(owner, method))))
        started = time.perf_counter()
        trainable.train_pack_in_tune(
            {"pack": pack.Pack((trial,), ("trial",), 0).to_json()}, data=data, settings=settings
        )
        total = time.perf_counter() - started
    growth = epochs / trial.epochs
    safety = {name: seconds[name] for name in TIMED_METHODS}
    projected = {name: value * (growth if TIMED_METHODS[name][2] else 1) for name, value in safety.items()}
    return {"training": (total - sum(safety.values())) * growth, **projected}


def fill(store: Store, sweep: Sweep) -> None:
    """Put finished trials directly into the store, without training them."""
    experiment_id, parent = store.ensure_parent(sweep.name, "digits")
    result = Result(np.array([10]), {name: np.ones(1, np.float32) for name in ("train_loss",)}, 90.0, np.zeros((1, 1)))
    with tempfile.TemporaryDirectory() as name:
        result.save(Path(name) / RESULT_ARTIFACT)
        torch.save({}, Path(name) / MODEL_ARTIFACT)
        for trial in sweep.trials():
            run = store.open_run(trial, sweep.labels()[trial.id], experiment_id, parent, {}, run_id=None)
            run.finish(result, 10, {}, Path(name))


def time_rerun(uri: str, seeds: int, folder: Path) -> float:
    """Return the seconds of a sweep script that finds all its trials finished."""
    options = ["--dataset", "digits", "--seeds", str(seeds), "--tracking-uri", uri, "--storage", str(folder)]
    started = time.perf_counter()
    output = subprocess.run(
        [sys.executable, str(ROOT / "sweeps" / "part3.py"), *options],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ).stdout
    assert f"{5 * seeds} done, 0 missing" in output, output
    return time.perf_counter() - started


def main(options: Options) -> None:
    """Measure, print the results and save them."""
    torch.set_num_threads(1)
    data = datasets.load_dataset(options.dataset, options.data_root)
    costs: dict[str, dict[str, dict[str, float]]] = {}
    reruns: dict[str, float] = {}
    table = Table(title=f"Seconds of a trial of {options.epochs} epochs ({options.dataset}, projected), 1 thread")
    for heading in ("store", "architecture", "training", *TIMED_METHODS, "safety (% of the trial)"):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = Server(folder, f"sqlite:///{folder}/mlflow.db")
        try:
            server.start()
            for kind, uri in (("sqlite", f"sqlite:///{folder}/plain.db"), ("server on sqlite", server.uri)):
                for architecture, epochs in zip(options.architectures, options.measured_epochs, strict=True):
                    selection = Part3(dataset=options.dataset, seeds=1, epochs=epochs, architectures=(architecture,))
                    [trial] = selection.sweep().trials()
                    cost = project_trial(trial, data, uri, folder, options.epochs)
                    share = 100 * (1 - cost["training"] / sum(cost.values()))
                    costs.setdefault(kind, {})[architecture] = {**cost, "percent": share}
                    table.add_row(kind, architecture, *(f"{value:.2f}" for value in cost.values()), f"{share:.2f}")
            seeds = options.finished_trials // 5
            fill(Store(server.database), Part3(dataset="digits", seeds=seeds).sweep())
            for kind, uri in (("sqlite", server.database), ("server on sqlite", server.uri)):
                reruns[kind] = time_rerun(uri, seeds, folder)
        finally:
            server.kill()
    console.print(table)
    for kind, seconds in reruns.items():
        console.print(f"Rerun over {options.finished_trials:,} finished trials, {kind}: {seconds:.1f} s")
    content = {"projected_trial_seconds": costs, "rerun_seconds": reruns}
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    console.print(f"Saved to {options.out}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

"""Measures how long analyses and reports take, as multiples of a script that does only what they cannot do without.

That script imports the libraries, asks MLflow for all runs, and loads every result. It runs in turns with what is
measured, in processes of their own:

report: `analysis/report.py --quick`, with all quick sweeps in a sqlite store. They are trained first, unless
`--tracking-uri` names a store that has them.

analysis: `analysis/part3.py` on five architectures × 100 seeds of 1,350 records a curve, from a sqlite store, and from
a server that hands out the artifacts. The trials are made up, as only their number and size count; the store has their
results, and of their points the last ones.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import tyro

from benchmarks.bench import ROOT, run_script, say, temporary_folder
from chaos.lab import Server
from sweeps.cli import run_to_exit_status
from sweeps.experiment import MAIN_ARCHITECTURES
from sweeps.part3 import Part3
from trainables.architectures import ARCHITECTURES, Conv
from trainables.errors import BadInputError, check_positive
from trainables.persistence.store import Store
from trainables.persistence.trial_run import RESULT_ARTIFACT
from trainables.result import Result
from trainables.trial import Trial

READER = """
import os, sys
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
from urllib.parse import unquote, urlsplit
import matplotlib.figure, numpy, scipy.stats, xarray
{imports}
from mlflow import MlflowClient, artifacts

uri = sys.argv[1]
client = MlflowClient(uri)
experiments = [experiment.experiment_id for experiment in client.search_experiments()]
token, results = None, 0
while True:
    page = client.search_runs(experiments, "tags.trial_id LIKE '%'", max_results=1000, page_token=token)
    for run in page:
        path = f"{{run.info.artifact_uri}}/result.npz"
        if path.startswith("file:"):
            path = unquote(urlsplit(path).path)
        else:
            path = artifacts.download_artifacts(path, tracking_uri=uri)
        with numpy.load(path) as file:
            arrays = {{name: file[name] for name in file.files}}
        results += 1
    token = page.token
    if not token:
        break
print(results, "results")
"""
SWEEPS = ("part3", "part4", "part5", "xor", "mnist", "pooling", "grid")
Part = Literal["report", "analysis"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    parts: tuple[Part, ...] = get_args(Part)
    """Parts to measure; the text above describes them."""
    tracking_uri: str | None = None
    """Store that has the quick sweeps already."""
    seeds: int = 100
    """Seeds of the analysis."""
    turns: int = 3
    """Turns of each script."""
    out: Path = Path("benchmarks/reports.json")
    """File for the results."""


def make_result(trial: Trial, generator: np.random.Generator) -> Result:
    """Make up a result of the size that part 3 has: 1,350 records a curve on 45,000 images."""
    steps = np.arange(10, trial.epochs * trial.steps_per_epoch(45_000) + 1, 10)
    rise = 1 - np.exp(-steps / steps[-1] * 5)
    curves = {
        "train_loss": 2.3 - 2 * rise + generator.normal(0, 0.1, len(steps)),
        "train_accuracy": 10 + 80 * rise + generator.normal(0, 3, len(steps)),
        "val_accuracy": 10 + 75 * rise + generator.normal(0, 1, len(steps)),
    }
    match ARCHITECTURES[trial.architecture][0]:
        case Conv(kernel=kernel, filters=filters):
            shape: tuple[int, ...] = (filters, 1, kernel, kernel)
        case _:
            shape = (32, 784)
    weights = generator.normal(0, 1, shape).astype(np.float32)
    correct = generator.random(10_000) < 0.85
    records = {name: curve.astype(np.float32) for name, curve in curves.items()}
    return Result(steps, records, float(100 * correct.mean()), weights, correct)


def fill(uri: str, seeds: int) -> int:
    """Put finished trials of part 3 into a store, with the last of their points, and return their number."""
    store = Store(uri)
    sweep = Part3(dataset="fashion_mnist", seeds=seeds).sweep()
    experiment_id, parent = store.ensure_parent(sweep.name, "fashion_mnist")
    generator = np.random.default_rng(0)
    labels = sweep.labels()
    for trial in sweep.trials():
        result = make_result(trial, generator)
        run = store.open_run(trial, labels[trial.id], experiment_id, parent, {}, run_id=None)
        run.records_sent = len(result.steps) - 1
        with tempfile.TemporaryDirectory() as folder:
            result.save(Path(folder) / RESULT_ARTIFACT)
            run.finish(result, int(result.steps[-1]), {}, Path(folder))
    return len(labels)


def compare(name: str, ours: Sequence[object], reader: str, uri: str, turns: int) -> dict[str, float]:
    """Run our command and the script in turns, and return the medians of their seconds and of the ratios."""
    seconds: dict[str, list[float]] = {"script": [], "ours": []}
    with temporary_folder() as folder:
        for _ in range(turns):
            for kind, command in (("script", ["-c", reader, uri]), ("ours", [*ours, "--tracking-uri", uri])):
                seconds[kind].append(run_script(command, folder).seconds)
    ratio = statistics.median(a / b for a, b in zip(seconds["ours"], seconds["script"], strict=True))
    found = {kind: statistics.median(values) for kind, values in seconds.items()} | {"times the script": ratio}
    say(f"{name}: {found['ours']:.1f} s, the script {found['script']:.1f} s: {ratio:.2f} times")
    return found


def measure_report(options: Options, folder: Path) -> dict[str, dict[str, float]]:
    """Measure the part `report`."""
    uri = options.tracking_uri
    if uri is None:
        uri = f"sqlite:///{folder}/mlflow.db"
        for sweep in SWEEPS:
            say(f"training {sweep} --quick …")
            script = ROOT / "sweeps" / f"{sweep}.py"
            run_script([script, "--quick", "--tracking-uri", uri, "--storage", folder / "storage"], folder)
    reader = READER.format(imports="import torch")
    report = [ROOT / "analysis" / "report.py", "--quick"]
    return {"report of all quick sweeps": compare("report", report, reader, uri, options.turns)}


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Run an MLflow server on a database of its own, which hands out artifacts, and yield its address."""
    server = Server(folder, f"sqlite:///{folder}/server.db")
    server.start()
    try:
        yield server.uri
    finally:
        server.kill()


def measure_analysis(options: Options, folder: Path) -> dict[str, dict[str, float]]:
    """Measure the part `analysis`."""
    analysis = [ROOT / "analysis" / "part3.py", "--dataset", "fashion_mnist", "--seeds", options.seeds]
    reader = READER.format(imports="")
    found: dict[str, dict[str, float]] = {}
    with serve(folder) as address:
        for place, uri in (("sqlite", f"sqlite:///{folder}/mlflow.db"), ("a server", address)):
            name = f"analysis of {len(MAIN_ARCHITECTURES)} × {options.seeds} trials from {place}"
            say(f"filling {place} …")
            fill(uri, options.seeds)
            found[name] = compare(name, analysis, reader, uri, options.turns)
    return found


def main(options: Options) -> int:
    """Measure the chosen parts, and save the results."""
    for name in ("seeds", "turns"):
        check_positive(f"--{name}", getattr(options, name), whole=True)
    if not options.out.parent.is_dir():
        raise BadInputError(f"--out {options.out} cannot be written; name a file in a folder that exists")
    results: dict[str, dict[str, float]] = {}
    for part, measure in (("report", measure_report), ("analysis", measure_analysis)):
        if part in options.parts:
            with temporary_folder() as folder:
                results |= measure(options, folder)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    say(f"Saved to {options.out}")
    return 0


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    sys.exit(run_to_exit_status(lambda: main(options)))

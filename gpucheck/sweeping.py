"""A sweep with Ray and MLflow on a GPU: 64 trials in a stack, beside trials one at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from gpucheck.checks import ROOT, CheckFailedError, Setting, SkippedError, require_gpu

NEEDED = ("ray", "mlflow", "tyro")
GOAL = 15.0
# Prints the seconds from the first start to the last end of the finished trials in a store.
SPAN_PROGRAM = """
import sys
from trainables.persistence.store import Store

store = Store(sys.argv[1])
runs = [store.client.get_run(run.run_id).info for [run] in store.find_runs().values() if run.finished]
print(len(runs), (max(run.end_time for run in runs) - min(run.start_time for run in runs)) / 1000)
"""


def check_sweep(setting: Setting, *, small: bool) -> str:
    """Check that a sweep of 64 `mlp_1` trains them at least 15 times as fast as one of trials one after another.

    Both have all that a sweep does, from the first trial's start to the last one's end: starts of processes, records,
    checkpoints, tests, and delivery to the store.
    """
    require_gpu(setting)
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise SkippedError(f"a sweep needs {', '.join(missing)}")
    epochs, alone = (20, 2) if small else (200, 2)
    with tempfile.TemporaryDirectory() as folder:
        together = run_sweep(Path(folder) / "stack", epochs, 64, [])
        single = run_sweep(Path(folder) / "single", epochs, alone, ["--pack", "1", "--max-concurrent", "1"])
    speedup = (single / alone) / (together / 64)
    measure = f"{together / 64:.3f} s per trial, {single / alone:.3f} s one after another: {speedup:.1f} times as fast"
    if speedup < GOAL:
        raise CheckFailedError(measure)
    return measure


def run_sweep(folder: Path, epochs: int, seeds: int, words: list[str]) -> float:
    """Run a sweep of `mlp_1` on digits, and return the seconds from the first trial's start to the last one's end.

    Raises:
        CheckFailedError: It failed, or not all its trials are in the store.
    """
    folder.mkdir()
    store = f"sqlite:///{folder}/mlflow.db"
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "MLFLOW_TRACKING_URI": store}
    command = [sys.executable, str(ROOT / "sweeps" / "part3.py"), "--dataset", "digits", "--architectures", "mlp_1"]
    command += ["--epochs", str(epochs), "--seeds", str(seeds), "--storage", str(folder / "storage"), *words]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckFailedError(f"a sweep ended with {done.returncode}: {done.stdout[-2000:]} {done.stderr[-2000:]}")
    print(done.stdout, flush=True)
    command = [sys.executable, "-c", SPAN_PROGRAM, store]
    answer = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True).stdout
    trials, seconds = answer.split()
    if int(trials) != seeds:
        raise CheckFailedError(f"{trials} of {seeds} trials are in the store")
    print(f"{trials} trials took {seconds} s from the first one's start to the last one's end", flush=True)
    return float(seconds)

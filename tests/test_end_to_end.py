"""The scripts as people run them: subprocesses, through Ray and MLflow, on the bundled digits."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from trainables.tracking import Store

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def environment() -> dict[str, str]:
    """This process's environment without settings that would lead the scripts elsewhere."""
    unwanted = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAY_AUTH_MODE")
    return {name: value for name, value in os.environ.items() if name not in unwanted}


def script(folder: Path, room: str, *words: str) -> subprocess.Popen[str]:
    """Start `python ROOM/part3.py WORDS` in a folder."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / room / "part3.py"), *words],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and output of a script that has nothing to say on stderr."""
    out, err = process.communicate(timeout=280)
    assert "Traceback" not in err, err
    return process.returncode, " ".join(out.split())


def check_store(folder: Path, trials: int) -> None:
    """One finished run a trial, every step once in every curve, nothing left over."""
    store = Store(f"sqlite:///{folder}/mlflow.db")
    runs = store.recorded()
    assert len(runs) == trials
    for [run] in runs.values():
        assert run.finished
        result = store.read(run)
        for name, curve in result.curves.items():
            history = store.client.get_metric_history(run.run_id, name)
            assert Counter(m.step for m in history) == Counter(result.steps.tolist())
            assert sorted((m.step, m.value) for m in history) == list(zip(result.steps, curve, strict=True))
    assert list((folder / "storage" / "checkpoints").iterdir()) == []


def test_sweep_analysis_rerun_and_more_seeds(tmp_path: Path) -> None:
    few = ("--quick", "--seeds", "1", "--epochs", "2")
    status, out = outcome(script(tmp_path, "sweeps", *few))
    assert status == 0
    assert "part3: 5 trials, 0 done, 5 missing" in out
    assert "Trained 5 of 5 trials" in out
    assert "Next: python analysis/part3.py --quick --seeds 1 --epochs 2" in out
    check_store(tmp_path, 5)

    started = time.monotonic()
    status, out = outcome(script(tmp_path, "sweeps", *few))
    assert status == 0
    assert "part3: 5 trials, 5 done, 0 missing" in out
    assert "Trained" not in out
    assert time.monotonic() - started < 60  # it starts neither Ray nor torch; how fast that is, the benchmarks say

    more = ("--quick", "--seeds", "2", "--epochs", "2")
    status, out = outcome(script(tmp_path, "sweeps", *more))
    assert status == 0
    assert "part3: 10 trials, 5 done, 5 missing" in out
    check_store(tmp_path, 10)

    status, out = outcome(script(tmp_path, "analysis", *more))
    assert status == 0
    figures = tmp_path / "figures" / "part3"
    for architecture in ("mlp_1", "mlp_2", "cnn_3", "cnn_4", "cnn_5"):
        export = json.loads((figures / f"part3_{architecture}.json").read_text())
        assert len(export["loss_curve"]) == len(export["val_acc_curve"]) == 5  # 26 steps an epoch, every 10th
        assert (figures / f"weights_{architecture}.png").stat().st_size > 1000
        assert f"figures/part3/weights_{architecture}.png" in out
    assert (figures / "part3.pdf").stat().st_size > 1000
    with (figures / "table.csv").open() as file:
        assert {row["seeds"] for row in csv.DictReader(file)} == {"2"}

    process = script(tmp_path, "analysis", "--quick", "--seeds", "3", "--epochs", "2")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "5 of 15 trials are not finished (mlp_1 · seed 2; " in err
    assert "python sweeps/part3.py --quick --epochs 2" in err
    assert len(err.strip().splitlines()) == 1


def wait_for_training(folder: Path, process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Wait until a trial has left a checkpoint or more than one run is there; the driver's worker processes."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        database = folder / "mlflow.db"
        if (folder / "storage" / "checkpoints").exists() and any((folder / "storage" / "checkpoints").iterdir()):
            return [p for p in psutil.Process(process.pid).children(recursive=True) if "train" in " ".join(p.cmdline())]
        assert database is not None
        time.sleep(0.05)
    raise AssertionError(f"no checkpoint appeared; exit status {process.poll()}")


LONG = ("--quick", "--seeds", "1", "--epochs", "30", "--architectures", "cnn_3", "cnn_4")


def test_a_killed_worker_is_retried_from_its_checkpoint(tmp_path: Path) -> None:
    process = script(tmp_path, "sweeps", *LONG)
    workers = wait_for_training(tmp_path, process)
    assert workers
    workers[0].kill()
    status, out = outcome(process)
    assert status == 0
    assert "Trained 2 of 2 trials" in out
    check_store(tmp_path, 2)


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(tmp_path: Path) -> None:
    process = script(tmp_path, "sweeps", *LONG)
    wait_for_training(tmp_path, process)
    process.send_signal(signal.SIGINT)
    status, out = outcome(process)
    assert status == 130
    assert "To go on: python sweeps/part3.py --quick" in out
    statuses = {run.status for runs in Store(f"sqlite:///{tmp_path}/mlflow.db").recorded().values() for run in runs}
    assert statuses <= {"KILLED", "FINISHED"}

    status, out = outcome(script(tmp_path, "sweeps", *LONG))
    assert status == 0
    check_store(tmp_path, 2)

"""The scripts as people run them: subprocesses, through Ray and MLflow, on the bundled digits."""

from __future__ import annotations

import csv
import json
import os
import re
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from sweeps.driver.options import RunOptions
from sweeps.part3 import Part3
from trainables.commands import name_program
from trainables.persistence.store import Store

ROOT = Path(__file__).resolve().parent.parent
PYTHON = name_program("python")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def start_script(
    folder: Path, package: str, *words: str, experiment: str = "part3", **variables: str
) -> subprocess.Popen[str]:
    """Start `python PACKAGE/EXPERIMENT.py WORDS` in a folder, with this checkout as the only code on Python's path."""
    unwanted = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAY_AUTH_MODE")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    return subprocess.Popen(
        [sys.executable, str(ROOT / package / f"{experiment}.py"), *words],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a script, and return its exit status and output, which must hold no traceback."""
    out, err = process.communicate(timeout=380)
    assert "Traceback" not in out + err, out + err
    return process.returncode, " ".join((out + err).split())


def check_store(folder: Path, trials: int) -> Store:
    """Check that each trial has one finished run with every step once in every curve, and that no folder is left."""
    store = Store(f"sqlite:///{folder}/mlflow.db")
    runs = store.find_runs()
    assert len(runs) == trials
    for [run] in runs.values():
        assert run.finished
        result = store.read_result(run)
        for name, curve in result.curves.items():
            history = store.client.get_metric_history(run.run_id, name)
            assert Counter(m.step for m in history) == Counter(result.steps.tolist())
            assert sorted((m.step, m.value) for m in history) == list(zip(result.steps, curve, strict=True))
    left = folder / "storage" / "trials"
    assert not left.exists() or list(left.iterdir()) == []
    return store


def test_part_3_trains_only_what_is_missing_and_shares_its_trials_with_a_grid(tmp_path: Path) -> None:
    few = ("--quick", "--seeds", "1", "--epochs", "2")
    status, out = wait_for(start_script(tmp_path, "sweeps", *few))
    assert status == 0
    assert "part3: 5 trials, 0 done, 5 missing" in out
    assert "Trained 5 of 5 trials" in out
    assert f"Next: {PYTHON} {ROOT}/analysis/part3.py --quick --seeds 1 --epochs 2" in out
    check_store(tmp_path, 5)

    status, out = wait_for(start_script(tmp_path, "sweeps", *few))
    assert status == 0
    assert "part3: 5 trials, 5 done, 0 missing" in out
    assert "Trained" not in out

    more = ("--quick", "--seeds", "2", "--epochs", "2")
    status, out = wait_for(start_script(tmp_path, "sweeps", *more))
    assert status == 0
    assert "part3: 10 trials, 5 done, 5 missing" in out
    check_store(tmp_path, 10)

    status, out = wait_for(start_script(tmp_path, "analysis", *more))
    assert status == 0
    figures = tmp_path / "figures" / "part3"
    for architecture in ("mlp_1", "mlp_2", "cnn_3", "cnn_4", "cnn_5"):
        export = json.loads((figures / f"part3_{architecture}.json").read_text())
        assert len(export["loss_curve"]) == len(export["val_acc_curve"]) == 5  # 26 steps an epoch, every 10th
        assert (figures / f"weights_{architecture}.png").stat().st_size > 1000
        assert f"figures/part3/weights_{architecture}.png" in out
    with (figures / "table.csv").open() as file:
        assert {row["seeds"] for row in csv.DictReader(file)} == {"2"}

    status, out = wait_for(start_script(tmp_path, "analysis", "--quick", "--seeds", "3", "--epochs", "2"))
    assert status == 2
    assert "5 of 15 trials are not finished (mlp_1 · seed 2; " in out
    assert f"{PYTHON} {ROOT}/sweeps/part3.py --quick --epochs 2" in out

    status, out = wait_for(start_script(tmp_path, "sweeps", "--quick", "--learning-rates", "0.01", experiment="grid"))
    assert status == 0
    assert "grid: 4 trials, 4 done, 4 of them from part3, 0 missing" in out

    status, out = wait_for(start_script(tmp_path, "analysis", experiment="report"))  # of both sweeps, as run last
    assert status == 0
    page = (tmp_path / "figures" / "report" / "report.html").read_text()
    assert "This report rests on 14 trained networks." in page
    assert "python sweeps/part3.py --quick --seeds 2 --epochs 2" in page
    assert "python sweeps/grid.py --quick --learning-rates 0.01" in page
    assert str(tmp_path) not in page


def test_only_the_user_enters_the_folder_of_rays_sockets(tmp_path: Path) -> None:
    folder = RunOptions(storage=tmp_path / "storage").private_folder
    process = start_script(tmp_path, "sweeps", "--quick", "--seeds", "1", "--epochs", "1", "--architectures", "mlp_1")
    deadline = time.monotonic() + 200
    while not list(folder.glob("ray/session_*/sockets/*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    [socket, *_] = folder.glob("ray/session_*/sockets/*")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    if os.getuid() == 0:  # as another user
        listing = subprocess.run(["ls", str(socket.parent)], user=65534, group=65534, capture_output=True, check=False)
        assert listing.returncode != 0
        assert listing.stdout == b""
    assert wait_for(process)[0] == 0
    assert not folder.exists()


def test_a_sweep_needs_no_home_folder(tmp_path: Path) -> None:
    """Containers and batch systems may give a user none; not even root can make one below /proc."""
    words = ("--quick", "--seeds", "1", "--epochs", "1", "--architectures", "mlp_1")
    status, out = wait_for(start_script(tmp_path, "sweeps", *words, HOME="/proc/nowhere"))
    assert status == 0, out
    check_store(tmp_path, 1)


EXPORTS = {
    "part4": "part4_cnn_3.json",
    "part5": "part5_mlp_2.json",
    "xor": "xor.json",
    "mnist": "mnist.json",
    "pooling": "pooling.json",
    "grid": "table.csv",
}


@pytest.mark.parametrize("experiment", EXPORTS)
def test_the_quick_version_of_an_experiment_is_trained_and_drawn(experiment: str, tmp_path: Path) -> None:
    status, out = wait_for(start_script(tmp_path, "sweeps", "--quick", experiment=experiment))
    assert status == 0
    assert f"All trials are done. Next: {PYTHON} {ROOT}/analysis/{experiment}.py --quick" in out
    status, out = wait_for(start_script(tmp_path, "analysis", "--quick", experiment=experiment))
    assert status == 0
    folder = tmp_path / "figures" / experiment
    assert all(path.stat().st_size > 0 for path in folder.iterdir())
    export = (folder / EXPORTS[experiment]).read_text()
    CHECKS[experiment]({} if experiment == "grid" else json.loads(export), folder)
    if experiment in ("part5", "grid"):  # of several stages, and with trials that several cells share
        status, out = wait_for(start_script(tmp_path, "sweeps", "--quick", experiment=experiment))
        assert status == 0
        assert "Trained" not in out
    check_store(tmp_path, TRIALS[experiment])


TRIALS = {"part4": 10, "part5": 5, "xor": 24, "mnist": 15, "pooling": 9, "grid": 8}


def check_part4(export: dict[str, list[float]], folder: Path) -> None:
    curves = ("relu_loss_curve", "sigmoid_loss_curve", "relu_grad_curve", "sigmoid_grad_curve")
    assert list(export) == ["name", *curves]
    assert {len(export[curve]) for curve in curves} == {13}
    assert np.median(export["relu_grad_curve"]) > 3 * np.median(export["sigmoid_grad_curve"])


def check_part5(export: dict[str, list[float]], folder: Path) -> None:
    kinds = [f"{kind}_{rate}" for kind in ("loss_curve", "val_acc_curve") for rate in ("1", "01", "001")]
    assert list(export) == ["name", *kinds]
    assert {len(export[kind]) for kind in kinds} == {26}  # 10 epochs of 26 steps
    assert (folder / "schedule.png").exists()
    with (folder / "table.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2  # the two schedules; the store has no trials of part 3


def check_xor(export: dict[str, list[dict[str, float]]], folder: Path) -> None:
    assert [row["sigma"] for row in export["report"]] == [0, 0.5, 1, 2]
    assert export["report"][0]["clean_loss"] == pytest.approx(0.012500506655179712, rel=1e-12)
    assert export["report"][1]["clean_loss"] == pytest.approx(10005.716846832256, rel=1e-12)
    assert export["report"][1]["noisy_loss"] == pytest.approx(0.06220229278014848, rel=1e-12)
    assert {row["seed"] for row in export["seeds"]} == {46, 0, 1, 2, 3, 4}
    assert "seed" not in export["report"][0]


def check_mnist(export: dict[str, list[dict[str, object]]], folder: Path) -> None:
    assert len(export["trials"]) == 15
    for trial in export["trials"]:
        stuck = ["stuck"] if "stuck" in trial else []  # only where it is true, as with "diverged"
        assert list(trial) == ["task", "learning_rate", "seed", "train_accuracy", "test_accuracy", *stuck]
        assert trial.get("stuck", True) is True
        assert len(np.array(trial["test_accuracy"])) == 5
    assert {trial["task"] for trial in export["trials"]} == {"digits", "even_odd"}
    assert (folder / "misclassified_even_odd.png").exists()


def check_pooling(export: dict[str, list[dict[str, object]]], folder: Path) -> None:
    assert {(t["model"], t["batch_size"]) for t in export["trials"]} == {(m, b) for m in "abc" for b in (10, 25, 50)}
    assert {(t["model"], t["parameters"]) for t in export["trials"]} == {("a", 34538), ("b", 34538), ("c", 22058)}
    assert all(len(np.array(t["train_accuracy"])) == 3 for t in export["trials"])
    assert (folder / "misclassified.png").exists()


def check_grid(export: dict[str, object], folder: Path) -> None:
    with (folder / "table.csv").open() as file:
        means = [float(row["test_mean"]) for row in csv.DictReader(file)]
    assert len(means) == 4
    assert means == sorted(means, reverse=True)
    assert {path.name for path in folder.iterdir()} >= {"curves.png", "heat_map.png", "table.md"}


CHECKS = {
    "part4": check_part4,
    "part5": check_part5,
    "xor": check_xor,
    "mnist": check_mnist,
    "pooling": check_pooling,
    "grid": check_grid,
}


def test_a_trial_that_keeps_failing_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    words = ("--quick", "--seeds", "1", "--epochs", "1", "--architectures", "mlp_1", "mlp_2")
    options = Part3(dataset="digits", seeds=1, epochs=1, architectures=("mlp_1", "mlp_2"))
    blocked = options.sweep().trials()[0]
    obstacle = tmp_path / "storage" / "trials" / blocked.id
    obstacle.parent.mkdir(parents=True)
    obstacle.touch()  # a file where the trial's folder should be
    status, out = wait_for(start_script(tmp_path, "sweeps", *words))
    assert status == 1
    assert "Trained 1 of 2 trials" in out
    assert f"failed: mlp_1 · seed 0: cannot write {obstacle}" in out
    assert "1 trial is missing (1 failed, 0 stopped, 0 trained but not seen in the store)" in out
    runs = Store(f"sqlite:///{tmp_path}/mlflow.db").find_runs()
    assert blocked.id not in runs
    assert runs[options.sweep().trials()[1].id][0].finished


CLUSTER = """
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "num_gpus": 1, "include_dashboard": False})
print(cluster.address, flush=True)
input()
"""


@contextmanager
def run_cluster_with_gpu(**variables: str) -> Iterator[str]:
    """Run a Ray cluster of one node that claims to have a GPU, and yield its address."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token", **variables}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", CLUSTER], env=environment, text=True, **pipes) as process:  # type: ignore[call-overload]
        yield next(line for line in process.stdout if re.fullmatch(r"[\d.]+:\d+\n", line)).strip()
        process.stdin.close()  # the script ends at the end of its input


def test_trials_share_a_gpu_and_get_more_of_it_where_memory_runs_out(tmp_path: Path) -> None:
    words = ("--quick", "--seeds", "1", "--epochs", "1", "--architectures", "mlp_1", "mlp_2", "cnn_3")
    shares = ("--gpus-per-trial", "0.25", "mlp_1=auto", "cnn_3=0.5")
    inject = f"{ROOT / 'chaos' / 'inject'}{os.pathsep}{ROOT}"
    with run_cluster_with_gpu(CHAOS_GPU_MEMORY="0.5", PYTHONPATH=inject) as address:
        variables = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"}
        status, out = wait_for(
            start_script(tmp_path, "sweeps", *words, "--dry-run", "--gpus-per-trial", "0.1", **variables)
        )
        assert status == 0
        assert "Resources: 1 CPU and 0.1 GPUs per process, 8 processes at once" in out  # the 8 CPUs allow no more
        assert not (tmp_path / "storage").exists()
        assert not (tmp_path / "mlflow.db").exists()

        status, out = wait_for(start_script(tmp_path, "sweeps", *words, "--gpus-per-trial", "2", **variables))
        assert status == 2
        assert "--gpus-per-trial is 2 GPUs, but no node has more than 1 of them" in out

        status, out = wait_for(start_script(tmp_path, "sweeps", *words, *shares, **variables))
    assert status == 0
    assert "PyTorch finds no usable GPU to measure on: each process gets 0.25 of a GPU" in out
    assert "1 CPU and 0.25 (mlp_1), 0.25 (mlp_2), 0.5 (cnn_3) GPUs per process, up to 4 processes at once" in out
    assert "Out of GPU memory: 2 of 3 trials; they train again with twice the share" in out
    assert out.count("0.25 of a GPU had too little memory; it had 0.5 in the end") == 2
    assert "Trained 3 of 3 trials" in out
    check_store(tmp_path, 3)


LOCAL_RAY = """
import os, tempfile
from pathlib import Path

from sweeps.driver.cluster import start_or_join
from sweeps.driver.resources import Node
import ray

with tempfile.TemporaryDirectory() as folder:  # a short name, as Ray's sockets need
    start_or_join(None, "sqlite:///mlflow.db", Node(1, 0), Path(folder, "ray"))
    print(ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"], flush=True)
    input()
    ray.shutdown()
"""


def test_ray_of_one_machine_refuses_clients_without_its_token(tmp_path: Path) -> None:
    """Ray before 2.52 knows no tokens, and answers everybody without a word."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else a client would not use the loopback address
    command = [sys.executable, "-c", LOCAL_RAY]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, text=True, **pipes) as process:  # type: ignore[call-overload]
        address, token = process.stdout.readline().split()
        refused: list[bool] = []
        for variables in (
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
            {"RAY_AUTH_MODE": "disabled"},
        ):
            status = [sys.executable, "-m", "ray.scripts.scripts", "status", f"--address={address}"]
            done = subprocess.run(status, env=environment | variables, capture_output=True, check=False)
            refused.append(done.returncode != 0)
        process.stdin.write("\n")
        process.stdin.close()
    assert refused == [False, True, True]

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainables.process import prepare_process

ROOT = Path(__file__).resolve().parent.parent
# Runs the suite in a Python that seems to have neither Ray nor MLflow.
WITHOUT = """
import sys

class Forbid:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("ray", "mlflow", "tyro", "rich", "optuna"):
            raise ImportError(f"{name} is forbidden")

sys.meta_path.insert(0, Forbid())
sys.argv[0] = "gpucheck"
from gpucheck import suite
sys.exit(suite.main())
"""


def run_suite(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", WITHOUT, "--small", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_checks_need_neither_ray_nor_mlflow() -> None:
    done = run_suite("--only", "mlp_1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed: mlp_1, stacked, in double precision equals the CPU" in done.stdout
    assert "passed: mlp_1 goes on from checkpoints" in done.stdout
    assert done.stdout.splitlines()[-1] == "5 checks, 0 failed"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_small_suite_passes_on_a_cpu_and_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    done = run_suite("--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("no GPU; ")
    assert "skipped: a process is bound to its share of the memory" in done.stdout
    assert "FAILED" not in done.stdout
    found = json.loads((tmp_path / "gpucheck.json").read_text())
    assert {(row["architecture"], row["members"]) for row in found["rows"]} == {
        (architecture, members) for architecture in ("mlp_1", "cnn_3") for members in (1, 4)
    }
    assert all(row["stack"] > 0 and row["memory"] > 0 and row["arithmetic"] > 0 for row in found["rows"])
    assert (tmp_path / "throughput.md").read_text().count("\n") == 2 + len(found["rows"])
    assert (tmp_path / "throughput.png").stat().st_size > 1000


def test_a_difference_from_the_cpu_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A thousandth of the gradients' size is more than rounding."""
    from gpucheck import checks, suite
    from trainables.accelerated import stack

    plain = stack.compute_losses

    def change(*arguments: object) -> object:
        losses, logits = plain(*arguments)  # type: ignore[arg-type]
        return losses * 1.01, logits

    monkeypatch.setattr(stack, "compute_losses", change)
    setting = checks.make_setting(small=True)
    check = checks.list_checks(setting)["mlp_1, stacked, in single precision equals the CPU"]
    assert suite.run_check("changed", lambda: check(setting))["status"] == "FAILED"
    assert capsys.readouterr().out.startswith("FAILED: changed (")


def test_the_goals_are_checked() -> None:
    from gpucheck import checks, suite
    from gpucheck.throughput import Row

    def rows(mlp: float, cnn: float) -> list[Row]:
        names = [("mlp_1", mlp), ("cnn_3", cnn), ("cnn_4", 4.0), ("cnn_5", 4.0)]
        return [Row(name, 64, 1.0, speedup, 1.0, 1.0, 1.0, 1.0) for name, speedup in names]

    setting = checks.Setting(torch.device("cuda"), checks.make_setting(small=True).digits, (), (), 4)
    assert suite.check_goals(rows(15.0, 3.0), setting).endswith("mlp_1 15.0, cnn_3 3.0, cnn_4 4.0, cnn_5 4.0")
    for short in (rows(14.9, 3.0), rows(15.0, 2.9)):
        with pytest.raises(checks.CheckFailedError):
            suite.check_goals(short, setting)


def test_a_process_that_trains_uses_no_tf32() -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    prepare_process(1)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32

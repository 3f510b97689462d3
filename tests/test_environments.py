"""Sweeps in other people's environments: `uv run`, warnings as errors, no assertions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_end_to_end import ROOT, check_store, start_script, wait_for

# Ray recognises `uv run` by the command line of a process above the driver. This script stands for uv.
UV_RUN = '"$@"\nexit $?\n'
SENT = """
import json, os, tempfile

import sweeps.driver
import ray

os.environ["RAY_AUTH_TOKEN"] = "0" * 64
with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # its path must be short, as it will hold sockets
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=50, _temp_dir=folder)
    print(json.dumps(dict(ray.get_runtime_context().runtime_env)))
    ray.shutdown()
"""
HOOK = """
def hook(runtime_env):
    return {"env_vars": {"OF_THE_HOOK": "1"}}
"""


def run_below_uv(folder: Path, *words: str, **variables: str) -> str:
    """Run Python below a process that looks like `uv run`, in a folder, and return what it prints."""
    (folder / "run").write_text(UV_RUN)
    unwanted = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
    environment = {name: text for name, text in os.environ.items() if name not in unwanted}
    environment |= {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", **variables}
    command = ["uv", "run", sys.executable, *words]
    done = subprocess.run(command, executable="/bin/sh", cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    "variables",
    [
        {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "1"},
        {"RAY_RUNTIME_ENV_HOOK": "given.hook", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"},
        {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"working_dir": "."}})},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_a_local_sweep_sends_no_files_to_its_workers(variables: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "given.py").write_text(HOOK)
    out = run_below_uv(tmp_path, "-c", SENT, **variables)
    assert json.loads(out) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "kept"), [({}, "0"), ({"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "1"}, "1")], ids=["by default", "on purpose"]
)
def test_what_is_set_for_a_cluster_on_purpose_stays(given: dict[str, str], kept: str, tmp_path: Path) -> None:
    code = f"""
import os, sweeps.driver
from ray._private import ray_constants
assert ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV == {kept} == int(os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"])
assert os.environ["RAY_RUNTIME_ENV_HOOK"] == "given.hook"
assert os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"] == "{{}}"
"""
    for_cluster = {"RAY_ADDRESS": "10.0.0.1:6379", "RAY_RUNTIME_ENV_HOOK": "given.hook"}
    run_below_uv(tmp_path, "-c", code, RAY_JOB_CONFIG_JSON_ENV_VAR="{}", **for_cluster, **given)


WARNINGS = """
import warnings

import trainables.trial

for category in (UserWarning, DeprecationWarning, BytesWarning):
    warnings.warn_explicit("of a library", category, "library.py", 1, "library")
"""


@pytest.mark.parametrize("option", ["error", "e", "error::UserWarning", "default,error", "ignore,err::UserWarning"])
def test_no_setting_makes_warnings_errors(option: str) -> None:
    inherited = "import os, sys; print(os.environ['PYTHONWARNINGS'], sys.warnoptions)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": option}
    words = [sys.executable, "-bb", *(f"-W{part}" for part in option.split(",")), "-c", WARNINGS + inherited]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert "err" not in done.stdout
    assert ("UserWarning: of a library" in done.stderr) == ("ignore" not in option)


STRICT = {"PYTHONWARNINGS": "error", "PYTHONOPTIMIZE": "1"}
QUICK = ("--quick", "--seeds", "1", "--epochs", "1", "--architectures", "mlp_1")


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_results_are_the_same_without_assertions_and_with_warnings_as_errors(tmp_path: Path) -> None:
    summaries, results, tables = [], [], []
    for name, variables in (("usual", {}), ("strict", STRICT)):
        folder = tmp_path / name
        folder.mkdir()
        done = [wait_for(start_script(folder, package, *QUICK, **variables)) for package in ("sweeps", "analysis")]
        (trained, summary), (drawn, files) = done
        assert (trained, drawn) == (0, 0)
        summaries.append([text.replace(str(folder), "") for text in (summary[summary.index("Test accuracy") :], files)])
        store = check_store(folder, 1)
        [[run]] = store.find_runs().values()
        results.append(store.read_result(run))
        tables.append((folder / "figures" / "part3" / "table.csv").read_text())
    assert summaries[0] == summaries[1]
    assert tables[0] == tables[1]
    usual, strict = results
    assert usual.test_accuracy == strict.test_accuracy
    assert usual.curves.keys() == strict.curves.keys()
    for curve, values in usual.curves.items():
        np.testing.assert_array_equal(values, strict.curves[curve])


@pytest.mark.slow
@pytest.mark.parametrize("script", ["sweeps/part3.py", "analysis/part3.py", "analysis/part1.py"])
def test_python_without_docstrings_is_refused(script: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONOPTIMIZE": "2", "PYTHONWARNINGS": "ignore"}
    words = [sys.executable, str(ROOT / script), *(QUICK if "3" in script else ())]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: python -OO and PYTHONOPTIMIZE=2 remove the docstrings")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []

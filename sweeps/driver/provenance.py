"""Provenance: the code and the libraries that train."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sweeps.experiment import JOB_ADDRESS_VARIABLE
from sweeps.mlflow_ui import SOURCE_COMMIT, SOURCE_NAME, SOURCE_TYPE, USER


def collect_provenance() -> dict[str, str]:
    """Return the versions of the code and of the libraries, as tags for every run."""
    here = "unknown"
    if run_git("ls-files", Path(__file__).name):  # an installed copy may lie inside the checkout of another project
        changed = run_git("status", "--porcelain", "--untracked-files=no")
        here = run_git("rev-parse", "HEAD") + (" with changes" if changed else "")
    libraries = ("neural-sweeps", "torch", "torchvision", "numpy", "ray", "mlflow")
    return {
        # The code of a job is no checkout: the command that submits the job sets the variable.
        "git_commit": os.environ.get("SWEEPS_COMMIT") or here,
        "python_version": sys.version.split()[0],
        **{f"{library}_version": get_version(library) for library in libraries},
    }


def describe_source(sweep: str) -> dict[str, str]:
    """Return the tags by which MLflow's UI shows the script of a sweep, its commit, and the user."""
    commit = collect_provenance()["git_commit"].split()[0]
    user = ""
    with suppress(KeyError, OSError):  # a container may have no name for its user
        user = getpass.getuser()
    return {
        SOURCE_NAME: f"sweeps/{sweep}.py",
        SOURCE_TYPE: "JOB" if JOB_ADDRESS_VARIABLE in os.environ else "LOCAL",
        **({SOURCE_COMMIT: commit} if commit != "unknown" else {}),
        **({USER: user} if user else {}),
    }


def get_version(library: str) -> str:
    """Return the version of a library; the project itself is not installed on the nodes of a cluster."""
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


def run_git(*words: str) -> str:
    """Return what a git command prints about this checkout; nothing without git or outside a checkout."""
    # Variables such as GIT_DIR, which git sets in its hooks, would point to another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(Path(__file__).parent), *words]
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""

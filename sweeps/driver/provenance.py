"""TODO."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def collect_provenance() -> dict[str, str]:
    """Which code and which libraries train: tags of every run."""
    commit, changed = run_git("rev-parse", "HEAD"), run_git("status", "--porcelain", "--untracked-files=no")
    here = (commit or "unknown") + (" with changes" if changed else "")
    libraries = ("neural-sweeps", "torch", "torchvision", "numpy", "ray", "mlflow")
    return {
        "git_commit": os.environ.get("SWEEPS_COMMIT") or here,  # of the checkout that a job's code came from
        "python_version": sys.version.split()[0],
        **{f"{library}_version": get_version(library) for library in libraries},
    }


def get_version(library: str) -> str:
    """The version of a library; this project itself lies on a cluster's nodes without being installed."""
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


def run_git(*words: str) -> str:
    """What git says of this checkout; nothing without git or outside a checkout."""
    try:
        folder = str(Path(__file__).parent)
        return subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""

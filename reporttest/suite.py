"""Checks a report as a browser shows it: HTML validator, axe-core and widths in headless Chromium, without a network.

It makes the report of all quick sweeps that the tracking store has, or takes a given file. Its pictures of a phone's, a
laptop's and a printed page are there to be looked at.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from sweeps.cli import run_to_exit_status
from trainables.errors import BadInputError

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "reporttest"
TOOLS = ROOT / "build" / "reporttest"  # npm installs into it, outside of what git holds
EXIT_SKIPPED = 77  # automake's exit status for a test that cannot run here
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the test."""

    report: Path | None = None
    """HTML file to check. By default, the report of the quick sweeps in the store that MLFLOW_TRACKING_URI names."""
    out: Path = TOOLS / "pictures"
    """Folder for the report, if it is made, and for the pictures."""


def find_missing_tool() -> str | None:
    """Return a sentence that names a program that the test lacks, or None."""
    for program, package in (("node", "Node 20 or newer"), ("npm", "Node 20 or newer")):
        if shutil.which(program) is None:
            return f"The program {program} is not here: install {package}."
    if find_browser() is None:
        return "Chromium is not here: install it, on Debian with: apt-get install chromium"
    return None


def find_browser() -> str | None:
    """Return the path of Chromium or Chrome, or None."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def install_tools() -> None:
    """Install the exact versions of the Node packages, unless they are there."""
    TOOLS.mkdir(parents=True, exist_ok=True)
    lock = TOOLS / "package-lock.json"
    current = lock.exists() and lock.read_bytes() == (HERE / lock.name).read_bytes()
    for name in ("package.json", "package-lock.json", "check.mjs"):
        shutil.copyfile(HERE / name, TOOLS / name)
    if not current or not (TOOLS / "node_modules").is_dir():
        subprocess.run(["npm", "ci", "--no-fund", "--no-audit"], cwd=TOOLS, check=True)


def main(options: Options) -> int:
    """Check the report, and return the exit status: 1 if a check failed, 77 if there is no browser or no Node."""
    if sentence := find_missing_tool():
        print(f"skipped: {sentence}")
        return EXIT_SKIPPED
    report = options.report
    if report is None:
        made = options.out / "report"
        command = [sys.executable, str(ROOT / "analysis" / "report.py"), "--quick", "--out", str(made)]
        if status := subprocess.run(command, check=False).returncode:
            return status
        report = made / "report.html"
    elif not report.is_file():
        raise BadInputError(f"there is no file {report}; name a report, such as figures/report/report.html")
    install_tools()
    words = (TOOLS / "check.mjs", report.absolute(), find_browser(), options.out.absolute())
    return subprocess.run(["node", *map(str, words)], check=False).returncode


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    sys.exit(run_to_exit_status(lambda: main(options)))

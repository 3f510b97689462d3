"""Versions of the dependencies: the lowest that pyproject.toml allows, and a record of those that passed all tests.

`make test-oldest` starts this file before anything is installed, so it needs Python alone.
"""

from __future__ import annotations

import json
import platform
import re
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "tests" / "passed-versions.json"
REQUIREMENT = re.compile(r"([\w.-]+)(?:\[\w+\])?>=([\d.]+),<([\d.]+)")


def read_bounds() -> dict[str, tuple[str, str]]:
    """Return the lowest version of each dependency, and the one that is too new; Python is one of them.

    Raises:
        ValueError: A requirement has another form, or a package has different bounds in two places.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = {"python": (project["requires-python"].removeprefix(">="), "4")}
    for requirements in (project["dependencies"], *project["optional-dependencies"].values()):
        for requirement in requirements:
            match = REQUIREMENT.fullmatch(requirement)
            if match is None:
                raise ValueError(f"{requirement!r} has no bounds of the form NAME>=LOWEST,<TOO_NEW")
            name, lowest, too_new = match.groups()
            if bounds.setdefault(name, (lowest, too_new)) != (lowest, too_new):
                raise ValueError(f"{name} has different bounds in two places of pyproject.toml")
    return bounds


def parse(text: str) -> tuple[int, ...]:
    """Return the numbers of a version without zeros at the end, so that 3.16 equals 3.16.0."""
    numbers = [int(number) for number in text.partition("+")[0].split(".") if number.isdecimal()]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def read_record() -> dict[str, dict[str, str]]:
    """Return the versions that passed all tests, under `oldest` and `newest`."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def find_differences(which: str, passed: dict[str, str]) -> list[str]:
    """Return a sentence for each dependency whose bounds are not those that were tested.

    The `oldest` versions that passed must equal the lowest ones, the `newest` must be allowed.
    """
    bounds = read_bounds()
    found = [f"{name} is recorded, but no dependency" for name in passed.keys() - bounds.keys()]
    for name, (lowest, too_new) in bounds.items():
        if name not in passed:
            found.append(f"{name} was not tested")
        elif which == "oldest" and parse(passed[name]) != parse(lowest):
            found.append(f"{name} {lowest} is the lowest allowed, but {passed[name]} was tested")
        elif which == "newest" and not parse(lowest) <= parse(passed[name]) < parse(too_new):
            found.append(f"{name}>={lowest},<{too_new} is allowed, but {passed[name]} was tested")
    return found


def print_constraints(which: str) -> None:
    """Print the constraints with which pip installs the lowest versions; for the newest there are none.

    Raises:
        SystemExit: This is not the oldest Python.
    """
    if which != "oldest":
        return
    bounds = read_bounds()
    python, _ = bounds.pop("python")
    if get_python_version() != python:
        sys.exit(f"the oldest versions are tested with the oldest Python: make test-oldest PYTHON=python{python}")
    print(*(f"{name}=={lowest}" for name, (lowest, _) in bounds.items()), sep="\n")


def get_python_version() -> str:
    """Return the version of the Python that runs this, without its last number."""
    return ".".join(platform.python_version_tuple()[:2])


def record(which: str) -> None:
    """Record the versions that are installed here, where all tests have passed."""
    versions = {name: get_python_version() if name == "python" else version(name) for name in read_bounds()}
    RECORD.write_text(json.dumps(read_record() | {which: versions}, indent=4, sort_keys=True) + "\n")


def check(which: str) -> None:
    """Compare the record with pyproject.toml.

    Raises:
        SystemExit: They differ.
    """
    differences = find_differences(which, read_record().get(which, {}))
    if differences:
        sys.exit("\n".join([*differences, f"run make test-{which}"]))


if __name__ == "__main__":
    command, which = sys.argv[1:]
    {"constraints": print_constraints, "record": record, "check": check}[command](which)

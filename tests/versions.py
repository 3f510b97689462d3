"""Versions of the dependencies: the lowest that pyproject.toml allows, and a record of those that passed all tests.

`make test-oldest` and `make test-newest` start this file before anything is installed, so it needs Python alone.
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


def read_bounds() -> tuple[str, dict[str, tuple[str, str]]]:
    """Return the lowest version of Python, and for each package the lowest version and the one that is too new.

    Raises:
        ValueError: A requirement has another form, or a package has different bounds in two places.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds: dict[str, tuple[str, str]] = {}
    for requirements in (project["dependencies"], *project["optional-dependencies"].values()):
        for requirement in requirements:
            match = REQUIREMENT.fullmatch(requirement)
            if match is None:
                raise ValueError(f"{requirement!r} has no bounds of the form NAME>=LOWEST,<TOO_NEW")
            name, lowest, too_new = match.groups()
            if bounds.setdefault(name, (lowest, too_new)) != (lowest, too_new):
                raise ValueError(f"{name} has different bounds in two places of pyproject.toml")
    return project["requires-python"].removeprefix(">="), bounds


def parse(text: str) -> tuple[int, ...]:
    """Return the numbers of a version without zeros at the end, so that 3.16 equals 3.16.0."""
    numbers = [int(number) for number in text.partition("+")[0].split(".") if number.isdecimal()]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def read_record() -> dict[str, dict[str, str]]:
    """Return the versions that passed all tests, by `oldest` and `newest`."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def find_differences(which: str, passed: dict[str, str]) -> list[str]:
    """Return a sentence for each version that passed as the oldest or newest but does not fit the bounds."""
    python, bounds = read_bounds()
    found: list[str] = []
    if passed.keys() != {"python", *bounds}:
        found.append(f"other packages were tested: {', '.join(sorted(passed.keys() ^ {'python', *bounds}))}")
    if which == "oldest" and parse(passed.get("python", ""))[:2] != parse(python):
        found.append(f"Python {python} is the lowest allowed, {passed.get('python')} was tested")
    for name in sorted(bounds.keys() & passed.keys()):
        (lowest, too_new), tested = bounds[name], passed[name]
        if which == "oldest" and parse(tested) != parse(lowest):
            found.append(f"{name} {lowest} is the lowest allowed, {tested} was tested")
        if which == "newest" and not parse(lowest) <= parse(tested) < parse(too_new):
            found.append(f"{name} {tested} was tested, which is not among those allowed: >={lowest},<{too_new}")
    return found


def main(command: str, which: str) -> str | None:
    """Run a command for the `oldest` or `newest` versions; return what is wrong.

    `constraints` prints the constraints to install; `record` records the versions that are installed here, after they
    passed all tests; `check` compares the record with pyproject.toml.
    """
    python, bounds = read_bounds()
    if command == "constraints" and which == "oldest":
        if parse(platform.python_version())[:2] != parse(python):
            return f"the oldest versions are tested with the oldest Python: make test-oldest PYTHON=python{python}"
        print(*(f"{name}=={lowest}" for name, (lowest, _) in bounds.items()), sep="\n")
    passed = read_record()
    if command == "record":
        versions = {name: version(name) for name in sorted(bounds)}
        passed[which] = {"python": platform.python_version(), **versions}
        RECORD.write_text(json.dumps(passed, indent=4, sort_keys=True) + "\n")
    differences = find_differences(which, passed.get(which, {})) if command != "constraints" else []
    return "\n".join([*differences, f"run make test-{which}"]) if differences else None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

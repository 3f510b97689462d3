"""A wheel built from the tree holds everything; an editable installation would hide what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("trainables", "sweeps", "analysis")
IMPORT_ALL = """
import importlib, pkgutil, sys

for package in sys.argv[1:]:
    found = importlib.import_module(package)
    print(found.__file__)
    for module in pkgutil.walk_packages(found.__path__, package + "."):
        print(importlib.import_module(module.name).__file__)
"""


def source_files(folder: Path) -> set[Path]:
    suffixes = (".py", ".cpp", ".html", ".md", ".css")
    found = [path for package in PACKAGES for path in (folder / package).rglob("*")]
    return {path.relative_to(folder) for path in found if path.suffix in suffixes}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_installed_wheel_holds_every_file_and_imports(tmp_path: Path) -> None:
    tree, wheels, site = tmp_path / "tree", tmp_path / "wheels", tmp_path / "site"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    files = source_files(tree)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(tree)], check=True)
    [wheel] = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    assert source_files(site) == files

    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", IMPORT_ALL, *PACKAGES]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    imported = {Path(line).relative_to(site) for line in done.stdout.splitlines()}  # fails on a file of the tree
    assert imported == {path for path in files if path.suffix == ".py"}

"""Compares two files of `bench.py`: prints what an old and a new commit measured, and the ratios new / old."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from sweeps.cli import run_to_exit_status
from trainables.errors import BadInputError

REQUIRED_EQUAL = ("processor", "cores")  # facts about the machine that must be equal for the ratios to mean something
console = Console()


@dataclass(frozen=True, kw_only=True)
class Options:
    """Files to compare."""

    old: Path
    """Results of the old commit."""
    new: Path
    """Results of the new commit."""


def read(path: Path) -> dict[str, Any]:
    """Return the machine and the results that `bench.py` saved.

    Raises:
        BadInputError: The file was not written by `bench.py`.
    """
    try:
        content = json.loads(path.read_text())
        return {"machine": content["machine"], "results": content["results"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInputError(
            f"{path} was not written by 'make bench' ({error}); name two: make bench-compare OLD=a.json NEW=b.json"
        ) from None


def main(options: Options) -> int:
    """Print the comparison."""
    old, new = read(options.old), read(options.new)
    table = Table(title=f"{options.old} → {options.new}")
    for heading in ("", "architecture", "old", "new", "new / old"):
        table.add_column(heading, justify="left" if heading in ("", "architecture") else "right")
    for part, measures in new["results"].items():
        table.add_section()
        for measure, row in measures.items():
            for architecture, value in row.items():
                before = old["results"].get(part, {}).get(measure, {}).get(architecture)
                ratio = f"{value / before:.2f}" if before else "–"
                table.add_row(
                    measure, architecture, "–" if before is None else f"{before:,.3g}", f"{value:,.3g}", ratio
                )
    console.print(table)
    for name, value in new["machine"].items():
        before = old["machine"].get(name)
        if before != value:
            mark = "  – the ratios above compare machines as well" if name in REQUIRED_EQUAL else ""
            console.print(f"{name}: {before} → {value}{mark}", markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    sys.exit(run_to_exit_status(lambda: main(options)))

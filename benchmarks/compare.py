"""Two files of `bench.py` side by side: what an old and a new commit measured, and new / old."""

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

# What should be the same for the comparison to mean something.
SAME = ("processor", "cores")
console = Console()


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to compare."""

    old: Path
    new: Path


def read(path: Path) -> dict[str, Any]:
    """What `bench.py` saved.

    Raises:
        BadInputError: It is not such a file.
    """
    try:
        content = json.loads(path.read_text())
        return {"machine": content["machine"], "results": content["results"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInputError(
            f"{path} is no file that 'make bench' wrote ({error}); give two: make bench-compare OLD=a.json NEW=b.json"
        ) from None


def main(options: Options) -> int:
    """Print."""
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
            mark = "  – the ratios above compare machines as well" if name in SAME else ""
            console.print(f"{name}: {before} → {value}{mark}", markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    sys.exit(run_to_exit_status(lambda: main(options)))

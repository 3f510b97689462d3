"""Report sweeps: findings, figures, tables and provenance in one page that can be handed in.

Names of sweeps come first: part3, part4, part5, xor, mnist, pooling, grid, search. Without a name, the report holds
every sweep that the tracking store has, with the options that it was run with last. After a single name, you can give
the options of that sweep.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from tyro.conf import Positional, arg

from analysis.experiments import EXPERIMENTS
from sweeps.cli import parse, run_to_exit_status
from sweeps.experiment import SweepOptions, UserPath, get_default_data_root, get_default_tracking_uri
from sweeps.sweep import format_count
from trainables.errors import BadInputError, check_choice
from trainables.persistence.connection import get_missing_file

if TYPE_CHECKING:
    from analysis.output import Output
    from analysis.sections import Section
    from trainables.persistence.store import Store


@dataclass(frozen=True, kw_only=True)
class StoredSweeps:
    """Options that select sweeps of the tracking store."""

    quick_defaults: ClassVar[Mapping[str, Any]] = {}

    tracking_uri: str = field(default_factory=get_default_tracking_uri)
    """MLflow's tracking store. MLFLOW_TRACKING_URI sets the default."""
    quick: bool = False
    """Report the short versions that --quick trains, whatever was run last."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Files to write, and the folder of the images that they show."""

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="[NAME ...]", help_behavior_hint="(default: all)")] = ()
    """Any of part3, part4, part5, xor, mnist, pooling, grid, search."""
    out: UserPath = Path("figures/report")
    """Folder for the report: report.html, report.md with its pictures, and answers.json."""
    data_root: UserPath = field(default_factory=get_default_data_root)
    """Folder of the data sets, for galleries of images. SWEEPS_DATA_ROOT sets the default."""


def parse_command(words: Sequence[str]) -> tuple[StoredSweeps | SweepOptions, ReportOptions]:
    """Return the options of a command line; those of a sweep if it begins with a single name and one of them is given.

    Args:
        words: The words after the script's name, as they are in `sys.argv`.

    Raises:
        BadInputError: A name is unknown or given twice.
    """
    names = words[: next((i for i, word in enumerate(words) if word.startswith("-")), len(words))]
    selection: Any = StoredSweeps
    if len(names) == 1 and names[0] in EXPERIMENTS:
        kind = EXPERIMENTS[names[0]].options_type
        own = {option.name for option in fields(kind)} - {option.name for option in fields(StoredSweeps)}
        given = {word.partition("=")[0].strip("-").replace("-", "_") for word in words if word.startswith("--")}
        if given & {*own, "help"} or "-h" in words:
            selection = kind
    chosen, options = parse(selection, ReportOptions, __doc__, "report")
    for name in options.names:
        check_choice("sweep", name, EXPERIMENTS)
    if len(set(options.names)) < len(options.names):
        raise BadInputError(f"a sweep is named twice in {' '.join(options.names)}; name each once")
    return chosen, options


def main() -> int:
    """Make the report that the command line asks for, and return the exit status: 1 if a sweep could not be drawn."""
    chosen, options = parse_command(sys.argv[1:])
    if file := get_missing_file(chosen.tracking_uri):  # opening the store would create it
        raise BadInputError(
            f"there are no trials yet in {file}; train some with: python sweeps/part3.py --quick, or say with "
            "MLFLOW_TRACKING_URI where they are"
        )
    # MLflow and SciPy take seconds to import, which --help need not wait for.
    from analysis.output import Output
    from analysis.sections import choose_options, make_section
    from analysis.snapshot import Snapshot

    store = Snapshot(chosen.tracking_uri)
    if isinstance(chosen, SweepOptions):
        sweeps = [chosen]
        chosen.first_stage()  # checks the options
    else:
        sweeps = choose_options(options.names, store, quick=chosen.quick)
    sections: list[Section] = []
    for sweep in sweeps:
        print(f"{sweep.experiment} …", flush=True)
        sections.append(make_section(sweep, store, options.out, options.data_root))
    shown = [section for section in sections if section.stages]
    if not shown:
        raise BadInputError(sections[0].problem)
    output = Output(options.out)
    write_pages(shown, output, format_command(chosen, options))
    print_summary(sections, output, store)
    return 1 if any(section.problem for section in sections) else 0


def format_command(chosen: StoredSweeps | SweepOptions, options: ReportOptions) -> str:
    """Return the command line that makes the same report from the same trials, in any folder and from any store."""
    words = chosen.list_words() if isinstance(chosen, SweepOptions) else ["--quick"] if chosen.quick else []
    return shlex.join(["python", "analysis/report.py", *options.names, *words])


def write_pages(sections: Sequence[Section], output: Output, command: str) -> None:
    """Write report.html, report.md and answers.json.

    Args:
        sections: Sections of the report.
        output: Folder of the report.
        command: Command that makes the report again.
    """
    from analysis.page import list_answers, render_pages

    with output.convert_write_errors():
        for name, text in render_pages(sections, command, datetime.now().astimezone()).items():
            output.add_file(name).write_text(text, encoding="utf-8")
        output.save_json({"answers": list_answers(sections)}, "answers")


def print_summary(sections: Sequence[Section], output: Output, store: Store) -> None:
    """Print what the report lacks and where it is, and put it on the parent runs of its sweeps."""
    from analysis.notes import list_notes
    from analysis.publish import add_to_parent_run

    for section in sections:
        command = section.options.format_command("sweeps")
        if missing := sum(len(stage.missing) for stage in section.stages):
            print(f"{section.name}: {format_count(missing, 'trial')} missing; to train what is missing: {command}")
        for line in (*list_notes(section.stages), section.ended_early, *section.ignored, section.problem):
            if line:
                print(f"{section.name}: {line}")
        files = [*section.output.written, *output.written]
        if section.stages and (problem := add_to_parent_run(store, section.name, section.dataset, files)):
            print(problem)
    print("\n".join(str(path) for path in output.written))


if __name__ == "__main__":
    sys.exit(run_to_exit_status(main))

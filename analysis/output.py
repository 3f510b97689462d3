"""An analysis script from its command line to its files: parse, load, draw, say what was written."""

from __future__ import annotations

import csv
import json
import math
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.results import SweepResults, has_any_finished, load_results
from sweeps.cli import next_stage, parse, run_to_exit_status
from sweeps.experiment import SweepOptions, get_default_data_root
from sweeps.intervals import format_mean
from trainables.errors import BadInputError
from trainables.persistence.connection import get_missing_file
from trainables.persistence.store import Store

MAX_TRIALS_NAMED = 3  # diverged trials named in a note
NOTE_CHARACTERS_PER_INCH = 14  # that fit in an inch of a figure's width, at size 8
NOTHING = "–"  # in a table, where there is no value


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """Where the figures go."""

    out: Path | None = None
    """Folder for figures, tables and exports. Default: figures/ and the experiment's name."""
    allow_missing: bool = False
    """Draw the trials that are finished, and say on the figures what is missing."""


@dataclass(frozen=True, kw_only=True)
class GalleryDrawOptions(DrawOptions):
    """Where the figures go, and where test images come from."""

    data_root: Path = field(default_factory=get_default_data_root)
    """Folder of the data sets; what is missing is downloaded into it."""


S = TypeVar("S", bound=SweepOptions)
D = TypeVar("D", bound=DrawOptions)


@dataclass
class Output:
    """A folder that remembers what was written into it."""

    folder: Path
    written: list[Path] = field(default_factory=list)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn a failure to write into `BadInputError`."""
        try:
            yield
        except OSError as error:
            raise BadInputError(f"cannot write to {self.folder} ({error.strerror}); name another --out") from None

    def path(self, name: str) -> Path:
        """The path of a file that is about to be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / name
        self.written.append(path)
        return path

    def figure(self, figure: Figure, name: str, *stages: SweepResults, pdf: bool = False) -> None:
        """Save `name`.png, and `name`.pdf if asked; below it stands which trials of its stages it leaves out."""
        lines = [
            line
            for note in list_omissions(stages)
            for line in textwrap.wrap(note, int(NOTE_CHARACTERS_PER_INCH * figure.get_figwidth()))
        ]
        if lines:
            figure.text(0.005, 0, "\n".join(lines), color="red", fontsize=8, va="top")
        box = "tight" if lines else None  # the page grows downwards by the note, which so covers nothing
        figure.savefig(self.path(f"{name}.png"), dpi=150, bbox_inches=box)
        if pdf:
            figure.savefig(self.path(f"{name}.pdf"), bbox_inches=box)

    def json(self, content: Any, name: str) -> None:
        """Save as JSON; a number that is not finite becomes null, as the format has no other."""
        self.path(f"{name}.json").write_text(json.dumps(replace_non_finite(content), allow_nan=False) + "\n")

    def table(self, rows: Sequence[dict[str, Any]], name: str) -> None:
        """Save rows of equal keys as `name`.csv (exact) and `name`.md (numbers rounded to two decimals)."""
        with self.path(f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        self.path(f"{name}.md").write_text(format_markdown(rows))


def list_omissions(stages: Sequence[SweepResults]) -> list[str]:
    """What the means over these stages' trials leave out, a sentence for each reason; none if they leave out none."""
    missing = sum(len(stage.missing) for stage in stages)
    diverged = [name for stage in stages for name in stage.diverged]
    return [
        *([f"incomplete: {missing} trials missing"] if missing else []),
        *([describe_diverged(diverged)] if diverged else []),
    ]


def describe_diverged(names: Sequence[str]) -> str:
    """How many trials diverged, and which, as far as they are few."""
    named = "; ".join([*names[:MAX_TRIALS_NAMED], *(["…"] if len(names) > MAX_TRIALS_NAMED else [])])
    return f"{len(names)} {'trial' if len(names) == 1 else 'trials'} diverged, not in the means: {named}"


def replace_non_finite(content: Any) -> Any:
    """The same lists and dicts with None in the place of NaN and infinities."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, list):
        return [replace_non_finite(value) for value in content]
    if isinstance(content, dict):
        return {key: replace_non_finite(value) for key, value in content.items()}
    return content


def format_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of equal keys as a Markdown table."""
    lines = [[*rows[0]], ["---"] * len(rows[0])]
    lines += [[format_cell(value) for value in row.values()] for row in rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def format_cell(value: Any) -> str:
    """A value in a Markdown table."""
    if isinstance(value, float):
        return NOTHING if math.isnan(value) else f"{value:.2f}"
    return str(value)


def format_mean_cell(values: NDArray[np.floating]) -> str:
    """Mean with the half width of its 95 % interval, of values `(trials,)`, as far as there are enough."""
    return format_mean(values) if len(values) else NOTHING


def describe_store(tracking_uri: str) -> str:
    """How to see the store in a browser, without repeating a database's password."""
    if tracking_uri.startswith("http"):
        return tracking_uri
    local = tracking_uri.startswith("sqlite")
    return f"mlflow ui --backend-store-uri {tracking_uri if local else '$MLFLOW_TRACKING_URI'}"


def main(
    selection: type[S],
    draw: Callable[[S, Sequence[SweepResults], Output, D], None],
    description: str | None,
    options: type[D] = DrawOptions,  # type: ignore[assignment]
) -> None:
    """An analysis script: parse the command line, load the trials of every stage, draw, print the files."""

    def script() -> int:
        chosen, drawing = parse(selection, options, description)
        output = Output(drawing.out or Path("figures") / chosen.experiment)
        if file := get_missing_file(chosen.tracking_uri):  # opening it would make it
            raise BadInputError(
                f"there are no trials yet in {file}; train them with: {chosen.command('sweeps')}, or say with "
                "MLFLOW_TRACKING_URI where they are"
            )
        store = Store(chosen.tracking_uri)
        stages: list[SweepResults] = []
        sweeps = chosen.stages(store.make_reader())
        while True:
            sweep, early = next_stage(sweeps)
            if sweep is None:
                break
            if stages and drawing.allow_missing and not has_any_finished(sweep, store):
                early = f"Drawn without {len(sweep.trials())} trials of a later stage, none of which is finished."
                break
            stages.append(
                load_results(sweep, store, fill=chosen.command("sweeps"), allow_missing=drawing.allow_missing)
            )
        with output.writing():
            draw(chosen, stages, output, drawing)
        print("\n".join(str(path) for path in output.written))
        if missing := sum(len(stage.missing) for stage in stages):
            print(f"Drawn without {missing} missing trials. Train them with: {chosen.command('sweeps')}")
        if diverged := [name for stage in stages for name in stage.diverged]:
            print(describe_diverged(diverged))
        if early:
            print(early)
        print(f"Every trial's curves: {describe_store(chosen.tracking_uri)}")
        return 0

    sys.exit(run_to_exit_status(script))

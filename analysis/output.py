"""An analysis script from its command line to its files, and the formats of figures, exports and tables."""

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
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from analysis import style
from analysis.answers import Answer, describe_smallest
from analysis.notes import list_notes, list_omissions, list_stuck
from analysis.publish import add_to_parent_run, find_page
from analysis.results import SweepResults, has_any_finished, load_results
from analysis.snapshot import Snapshot, open_journal
from sweeps.cli import parse, run_to_exit_status
from sweeps.experiment import StagesEndedEarly, SweepOptions, UserPath, get_default_data_root
from sweeps.intervals import format_mean
from sweeps.sweep import Sweep, format_count
from trainables.errors import BadInputError
from trainables.persistence.connection import get_missing_file
from trainables.persistence.store import Store
from trainables.persistence.stored_run import describe_ignored
from trainables.result import Result
from trainables.trial import Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINE_WIDTH = 100  # characters of a line of an answer on the screen
NO_VALUE = "–"  # the cell of a table where there is no value


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """Files to write."""

    out: UserPath | None = None
    """Folder for figures, tables and exports. By default, a folder in figures/ with the experiment's name."""
    allow_missing: bool = False
    """Draw the trials that are finished even if others are missing, and note on the figures how many are."""


@dataclass(frozen=True, kw_only=True)
class GalleryDrawOptions(DrawOptions):
    """Files to write, and the folder of the test images that they show."""

    data_root: UserPath = field(default_factory=get_default_data_root)
    """Folder of the data sets; missing ones are downloaded into it. SWEEPS_DATA_ROOT sets the default."""


S = TypeVar("S", bound=SweepOptions)
D = TypeVar("D", bound=DrawOptions)


@dataclass(frozen=True)
class SavedFigure:
    """A figure that an analysis has saved.

    Attributes:
        name: Name of its files, without ending.
        figure: The figure as it was drawn, its note included.
        description: What it shows, in a sentence or two, for readers who cannot see it.
        box: Part of the figure that is saved, as matplotlib's `bbox_inches` has it.
    """

    name: str
    figure: Figure
    description: str
    box: str | None


@dataclass(frozen=True)
class SavedTable:
    """A table that an analysis has saved.

    Attributes:
        name: Name of its files, without ending.
        rows: Rows that have the same keys, the headings.
        caption: What it shows, in a sentence.
    """

    name: str
    rows: Sequence[dict[str, Any]]
    caption: str


@dataclass
class Output:
    """A folder for an analysis's files, and what was put into them, for the report.

    Attributes:
        folder: Folder that is made when its first file is written.
        written: Paths of the files, in the order in which they were written.
        figures: Figures that were saved, in that order.
        tables: Tables that were saved, in that order.
        answers: Answers to the questions of the experiment.
        formats: Formats in which figures are saved, as endings of files.
    """

    folder: Path
    written: list[Path] = field(default_factory=list)
    figures: list[SavedFigure] = field(default_factory=list)
    tables: list[SavedTable] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    formats: Sequence[str] = ("png", "pdf")

    @contextmanager
    def convert_write_errors(self) -> Iterator[None]:
        """Raise `BadInputError`, naming the folder and `--out`, in place of any `OSError` of the block."""
        try:
            yield
        except OSError as error:
            raise BadInputError(f"cannot write to {self.folder} ({error.strerror}); name another --out") from None

    def add_file(self, name: str) -> Path:
        """Make the folder, record a file as written, and return its path for the caller to write."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / name
        self.written.append(path)
        return path

    @style.with_style
    def save_figure(self, figure: Figure, name: str, description: str, *stages: SweepResults) -> None:
        """Save a figure in each format, with a note below it about missing, diverged and stuck trials.

        Args:
            figure: Figure to save; the note is added to it.
            name: Name of the files, without their endings.
            description: What the figure shows, in a sentence or two, for readers who cannot see it.
            stages: Results that the figure shows.
        """
        notes = [style.wrap(note, figure.get_figwidth()) for note in (*list_omissions(stages), *list_stuck(stages))]
        if notes:
            figure.text(0.01, 0, "\n".join(notes), color="red", va="top")
        if layout := figure.get_layout_engine():
            layout.execute(figure)
            figure.set_layout_engine("none")  # it would be computed anew for every format, which takes longest
        box = "tight" if notes else None  # the page grows downwards to hold the note, so that it covers nothing
        for ending in self.formats:
            figure.savefig(self.add_file(f"{name}.{ending}"), bbox_inches=box)
        self.figures.append(SavedFigure(name, figure, description, box))

    def save_json(self, content: Any, name: str) -> None:
        """Save `content` as `name`.json, with null for NaN and infinities, which JSON cannot express."""
        self.add_file(f"{name}.json").write_text(
            json.dumps(replace_non_finite(content), allow_nan=False) + "\n", encoding="utf-8"
        )

    def save_table(self, rows: Sequence[dict[str, Any]], name: str, caption: str, shown: int | None = None) -> None:
        """Save rows that have the same keys as `name`.csv (exact) and `name`.md (numbers with two decimals).

        Args:
            rows: Rows that have the same keys, the headings.
            name: Name of the files, without their endings.
            caption: What the table shows, in a sentence.
            shown: Number of rows that the report shows at most; None for all.
        """
        more = f" The first {shown} of {len(rows)}; {name}.csv has all." if shown and len(rows) > shown else ""
        self.tables.append(SavedTable(name, rows[:shown], caption + more))
        with self.add_file(f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        self.add_file(f"{name}.md").write_text(format_markdown(rows), encoding="utf-8")


def replace_non_finite(content: Any) -> Any:
    """Return a copy of nested lists and dicts that has None in place of NaN and infinities."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, list):
        return [replace_non_finite(value) for value in content]
    if isinstance(content, dict):
        return {key: replace_non_finite(value) for key, value in content.items()}
    return content


def format_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows that have the same keys as a Markdown table."""
    lines = [[*rows[0]], ["---"] * len(rows[0])]
    lines += [[format_cell(value) for value in row.values()] for row in rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def format_cell(value: Any) -> str:
    """Return a value as it stands in a Markdown table: a float with two decimals, or a dash for NaN."""
    if isinstance(value, float):
        return NO_VALUE if math.isnan(value) else f"{value:.2f}"
    return str(value)


def format_mean_cell(values: NDArray[np.floating]) -> str:
    """Return the mean accuracy in % with its 95 % interval as text, for values of shape `(trials,)`.

    A single value has no interval, so it stands alone. A dash stands for the mean of no values.
    """
    return format_mean(values) if len(values) else NO_VALUE


def load_stages(
    options: SweepOptions, store: Store, fill: str, allow_missing: bool
) -> tuple[list[Sweep], list[SweepResults], str]:
    """Load the trials of an experiment's stages, up to the first stage that the results do not allow.

    Args:
        options: The options that select the trials.
        store: The store to load them from.
        fill: Command that trains missing trials.
        allow_missing: Whether missing trials are allowed.

    Returns:
        The stages' sweeps, that of a stage without any finished trial included; their results; and a sentence that
        gives the reason why they ended early, or "".
    """
    sweeps: list[Sweep] = []
    stages: list[SweepResults] = []

    def read(trial: Trial) -> Result | None:
        loaded = (stage.by_trial[trial.id] for stage in stages if trial.id in stage.by_trial)
        return next(loaded, None) or store.read_trial(trial)

    try:
        for sweep in options.stages(read, open_journal(options, store)):
            sweeps.append(sweep)
            if stages and allow_missing and not has_any_finished(sweep, store):
                omitted = f"{format_count(len(sweep.trials()), 'trial')} of a later stage, none of which is finished"
                raise StagesEndedEarly(f"Drawn without {omitted}.")
            stages.append(load_results(sweep, store, fill=fill, allow_missing=allow_missing))
    except StagesEndedEarly as end:
        return sweeps, stages, str(end)
    return sweeps, stages, ""


def main(
    options_type: type[S],
    draw: Callable[[S, Sequence[SweepResults], Output, D], None],
    description: str | None,
    draw_options_type: type[D] = DrawOptions,  # type: ignore[assignment]
) -> None:
    """Run an analysis script: parse the command line, load the trials of every stage, draw, and exit.

    Args:
        options_type: Class of the options that select the trials.
        draw: Function that draws the stages' results and writes its files into the output.
        description: Text of `--help`.
        draw_options_type: Class of the options for drawing.
    """

    def script() -> int:
        options, draw_options = parse(options_type, draw_options_type, description, "draw")
        sweep_command = options.format_command("sweeps")
        output = Output(draw_options.out or Path("figures") / options.experiment)
        if file := get_missing_file(options.tracking_uri):  # `Snapshot` would create the file
            raise BadInputError(
                f"there are no trials yet in {file}; train them with: {sweep_command}, or say with "
                "MLFLOW_TRACKING_URI where they are"
            )
        store = Snapshot(options.tracking_uri)
        sweeps, stages, ended_early = load_stages(options, store, sweep_command, draw_options.allow_missing)
        with output.convert_write_errors():
            draw(options, stages, output, draw_options)
        print("\n".join(str(path) for path in output.written))
        if missing := sum(len(stage.missing) for stage in stages):
            print(f"Drawn without {format_count(missing, 'missing trial')}. To train what is missing: {sweep_command}")
        for note in list_notes(stages):
            print(note)
        for sweep in sweeps:
            if line := describe_ignored(store.ignored.values(), sweep.labels()):
                print(line)
        if ended_early:
            print(ended_early)
        for answer in output.answers:
            text = " ".join(filter(None, (answer.sentence, describe_smallest(answer))))
            print(textwrap.fill(text, LINE_WIDTH, break_long_words=False, break_on_hyphens=False))
        dataset = sweeps[0].trials()[0].dataset
        if problem := add_to_parent_run(store, options.experiment, dataset, output.written):
            print(problem)
        print(f"Browse every curve: {options.describe_browsing(find_page(store, options.experiment, dataset))}")
        return 0

    sys.exit(run_to_exit_status(script))

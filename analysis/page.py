"""A report's files: what its templates show of each section, and the pages and answers that are written."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, get_type_hints

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from tyro.conf import Suppress

from analysis.answers import Answer, Estimate, answers_to_json, describe_smallest
from analysis.output import NO_VALUE, SavedFigure, SavedTable, format_cell, format_markdown
from analysis.pictures import draw_svg, get_width_points
from analysis.results import name_trials
from analysis.sections import Section, collect_provenance, list_runs

NUMBER = re.compile(r"[-−]?[\d.,]+(e[-+]\d+)?( ± [\d.,]+)?|inf|never|–")  # cells that are set flush right
PROVENANCE_LABELS = {
    "data": "data set",
    "git_commit": "code (git commit)",
    "neural-sweeps_version": "neural-sweeps",
    "python_version": "Python",
    "torch_version": "PyTorch",
    "torchvision_version": "torchvision",
    "numpy_version": "NumPy",
    "ray_version": "Ray",
    "mlflow_version": "MLflow",
    "device": "device",
    "threads": "threads of a trial",
    "convolutions": "backend of convolutions",
}


def render_pages(sections: Sequence[Section], command: str, made_at: datetime) -> dict[str, str]:
    """Return the report as text by file name: a self-contained HTML page, and Markdown that shows pictures beside it.

    Args:
        sections: Sections of the report.
        command: Command that makes the report again.
        made_at: Time that the report gives as its own.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    figures, tables = count(1), count(1)
    several = len(sections) > 1
    context = {
        "title": f"Report of {len(sections)} sweeps" if several else f"Report: {sections[0].experiment.title}",
        "date": f"{made_at:%-d %B %Y}",
        "sections": [describe_section(section, figures, tables) for section in sections],
        "trials": sum(len(list_runs(section)) for section in sections),
        "command": command,
    }
    return {name: environment.get_template(name).render(context) for name in ("report.html", "report.md")}


def describe_section(section: Section, figures: Iterator[int], tables: Iterator[int]) -> dict[str, Any]:
    """Return what the templates show of a section.

    Args:
        section: The section.
        figures: Numbers for the figures, which go through the whole report.
        tables: Numbers for the tables.
    """
    name, words = section.name, section.options.list_words()
    incomplete = ["--allow-missing"] if has_gaps(section) else []
    commands = {
        "Train": shlex.join(["python", f"sweeps/{name}.py", *words]),
        "Draw": shlex.join(["python", f"analysis/{name}.py", *words, *incomplete]),
        "Report": shlex.join(["python", "analysis/report.py", name, *words]),
    }
    return {
        "name": name,
        "title": section.experiment.title,
        "question": section.experiment.question,
        "answers": describe_answers(section.output.answers),
        "figures": [describe_figure(section, figure, next(figures)) for figure in section.output.figures],
        "tables": [describe_table(table, next(tables)) for table in section.output.tables],
        "trials": describe_trials(section, commands["Train"]),
        "notes": list_notes(section, commands["Draw"]),
        "settings": list_settings(section),
        "provenance": list_provenance(section),
        "commands": commands,
    }


def has_gaps(section: Section) -> bool:
    """Return whether trials are missing."""
    return any(stage.missing for stage in section.stages) or len(section.sweeps) > len(section.stages)


def describe_answers(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Return a section's answers, with each estimate as a row of text below the first answer that rests on it."""
    shown: set[tuple[str, ...]] = set()
    described = []
    for answer in answers:
        rows = [describe_estimate(estimate) for estimate in answer.estimates]
        new = [row for row in rows if tuple(row.values()) not in shown]
        shown |= {tuple(row.values()) for row in rows}
        described.append(describe_answer(answer, new, some_above=len(new) < len(rows)))
    return described


def describe_estimate(estimate: Estimate) -> dict[str, str]:
    """Return an estimate as the cells of a row, by heading."""
    digits = 2 if estimate.unit in ("%", "percentage points") else None
    number = format_number(estimate.value, digits)
    return {
        "estimate": estimate.name,
        "value": NO_VALUE if math.isnan(estimate.value) else f"{number} {estimate.unit}".strip(),
        "95 % interval": format_interval(estimate, digits),
        "n": str(estimate.n),
    }


def describe_answer(answer: Answer, rows: Sequence[dict[str, str]], *, some_above: bool) -> dict[str, Any]:
    """Return an answer with its estimates as rows of text.

    Args:
        answer: The answer.
        rows: Rows of its estimates that are not shown below an earlier answer.
        some_above: Whether others are.
    """
    return {
        "some_above": some_above,
        "question": answer.question,
        "sentence": answer.sentence,
        "headings": list(rows[0]) if rows else [],
        "rows": [list(row.values()) for row in rows],
        "markdown": format_markdown(rows) if rows else "",
        "smallest": describe_smallest(answer),
    }


def format_interval(estimate: Estimate, digits: int | None) -> str:
    """Return the ends of an estimate's interval as text, or a dash if there is none."""
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return NO_VALUE
    return f"{format_number(estimate.low, digits)} – {format_number(estimate.high, digits)}"


def format_number(value: float, digits: int | None) -> str:
    """Return a number as text with a true minus sign, or a dash for NaN.

    Args:
        value: The number.
        digits: Decimals; None for four significant digits, and none after the point from 10,000 on.
    """
    if math.isnan(value):
        return NO_VALUE
    kind = f".{digits}f" if digits is not None else ",.0f" if 10_000 <= abs(value) < math.inf else ".4g"
    text = f"{value:{kind}}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text.lstrip("-")


def describe_figure(section: Section, saved: SavedFigure, number: int) -> dict[str, Any]:
    """Return a figure as an element of the page and as the path of its picture, with its texts."""
    label = f"{section.experiment.title}, figure {number}"
    prefix = f"{section.name}-{saved.name}"
    return {
        "number": number,
        "svg": Markup(draw_svg(saved, f"figure-{prefix}", label)),
        "width": round(get_width_points(saved.figure)),
        "path": f"{section.name}/{saved.name}.png",
        "label": label,
        "description": saved.description,
        "id": f"caption-{prefix}",
    }


def describe_table(saved: SavedTable, number: int) -> dict[str, Any]:
    """Return a table as headings and rows of text."""
    rows = [[format_cell(value) for value in row.values()] for row in saved.rows]
    return {
        "number": number,
        "caption": saved.caption,
        "headings": [name.replace("_", " ") for name in saved.rows[0]],
        "rows": rows,
        "numeric": [all(NUMBER.fullmatch(cell) for cell in column) for column in zip(*rows, strict=True)],
        "markdown": format_markdown(saved.rows),
    }


def describe_trials(section: Section, train: str) -> dict[str, Any]:
    """Return the numbers of trials, and the names of those that did not finish, diverged or are stuck.

    Args:
        section: The section.
        train: Command that trains missing trials.
    """
    stages = section.stages
    missing = [name for stage in stages for name in stage.missing]
    missing += [name for sweep in section.sweeps[len(stages) :] for name in sweep.labels().values()]
    diverged = [name for stage in stages for name in stage.diverged]
    stuck = [name for stage in stages for name in stage.stuck]
    return {
        "planned": sum(len(sweep.trials()) for sweep in section.sweeps),
        "finished": sum(len(stage.by_trial) for stage in stages),
        "missing": count_trials(missing),
        "train": train,
        "diverged": count_trials(diverged),
        "stuck": count_trials(stuck),
    }


def count_trials(names: Sequence[str]) -> str:
    """Return a number of trials with their names as text; "" for none."""
    return f"{len(names)} ({name_trials(names)})" if names else ""


def list_notes(section: Section, draw: str) -> list[str]:
    """Return sentences on what is not shown; they name no files of this machine, as a problem's own sentence may."""
    problem = "Not everything could be read and drawn; this command says why: "
    lines = [section.ended_early, *section.ignored, problem + draw if section.problem else ""]
    return [line for line in lines if line]


def list_settings(section: Section) -> list[tuple[str, str]]:
    """Return the options that select the trials, as they stand on a command line: name and value."""
    [hidden] = Suppress[str].__metadata__  # type: ignore[attr-defined]
    hints = get_type_hints(type(section.options), include_extras=True)
    named = [field.name for field in fields(section.options) if field.name not in ("tracking_uri", "quick")]
    shown = [name for name in named if hidden not in getattr(hints[name], "__metadata__", ())]
    return [(f"--{name.replace('_', '-')}", format_setting(getattr(section.options, name))) for name in shown]


def format_setting(value: Any) -> str:
    """Return the value of an option as text; a dash stands for none and for an empty list."""
    if value is None:
        return NO_VALUE
    return " ".join(map(str, value)) or NO_VALUE if isinstance(value, tuple) else str(value)


def list_provenance(section: Section) -> list[tuple[str, str]]:
    """Return what made the results, and how long that took: name and value, with numbers of trials if they differ."""
    found = collect_provenance(section)
    rows = []
    for tag, label in PROVENANCE_LABELS.items():
        values = found.get(tag, {})
        alone = len(values) == 1
        if values:
            rows.append((label, "; ".join(v if alone else f"{v} ({n} trials)" for v, n in values.items())))
    seconds = [run.training_seconds for run in list_runs(section)]
    known = [value for value in seconds if not math.isnan(value)]
    if known:
        rows.append(("training time", f"{format_duration(sum(known))}, summed over {len(known)} trials"))
    return rows


def format_duration(seconds: float) -> str:
    """Return a time as text: in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def list_answers(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """Return all answers with their estimates, as `answers.json` holds them."""
    return [
        {"experiment": section.name, **answer}
        for section in sections
        for answer in answers_to_json(section.output.answers)
    ]

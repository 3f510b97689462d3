"""The numbers, the table and the figure of `search.py`, from the runs of its parts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from analysis import style
from analysis.bands import MIN_RUNS_FOR_INTERVALS
from benchmarks.search_curves import (
    Axis,
    SearchRun,
    Value,
    compute_ratios,
    group_by_method,
    has_axis,
    summarise,
    trace_all,
)
from sweeps.intervals import compute_mean_interval, format_mean

REGRET = "regret"
PLACES = 200  # of a curve by wall time
LABELS: Mapping[Axis, str] = {"epochs": "epochs trained", "seconds": "seconds since the start of the command"}


@dataclass(frozen=True)
class PartReport:
    """The findings of a part of the benchmark.

    Attributes:
        title: Title of its table and its panels.
        runs: Its searches.
        budget: Budget of a search in epochs.
        value: The value of an incumbent that its curves show.
        value_name: Name of that value.
        axes: The axes of its curves.
        test_accuracies: Key of settings → mean test accuracy in % on fresh seeds; empty where nothing was confirmed.
        scores: Key of settings → mean score in % on fresh seeds; empty likewise.
        timed: Method of ours whose wall time is compared with the rivals'; "" where no time means anything.
    """

    title: str
    runs: Sequence[SearchRun]
    budget: int
    value: Value
    value_name: str
    axes: Sequence[Axis]
    test_accuracies: Mapping[str, float]
    scores: Mapping[str, float]
    timed: str = ""

    def list_columns(self, runs: Sequence[SearchRun]) -> dict[str, list[float]]:
        """Return the values of the runs of one method, by the name of the table's column."""
        ends = [run.incumbent for run in runs if run.incumbent is not None]
        half, full = (trace_all(runs, self.value, "epochs", np.array([e]))[:, 0] for e in (self.budget / 2, np.inf))
        found = {f"{self.value_name}, half the budget": list(half), f"{self.value_name}, the end": list(full)}
        if self.scores:
            found["validation accuracy, fresh seeds"] = [self.scores[end.key] for end in ends]
            found["test accuracy, fresh seeds"] = [self.test_accuracies[end.key] for end in ends]
        found["epochs used"] = [float(max((e.epochs for e in run.evaluations), default=0)) for run in runs]
        if self.timed:
            found["seconds to the end of the last trial"] = [run.seconds for run in runs]
            found["seconds of the command"] = [run.command_seconds or float("nan") for run in runs]
        return {name: list(map(float, values)) for name, values in found.items()}

    def to_json(self) -> dict[str, Any]:
        """Return all numbers of the part."""
        groups = group_by_method(self.runs)
        columns = {method: self.list_columns(runs) for method, runs in groups.items()}
        found: dict[str, Any] = {
            method: {name: {**summarise(values), "median": median(values)} for name, values in row.items()}
            for method, row in columns.items()
        }
        if self.timed:
            ratios = {
                "to the end of the last trial": compute_ratios(self.runs, self.timed, lambda run: run.seconds),
                "of the command": compute_ratios(
                    self.runs, self.timed, lambda run: run.command_seconds or float("nan")
                ),
            }
            return {"methods": found, f"seconds of {self.timed} as multiples of the rivals'": ratios}
        return {"methods": found}

    def make_table(self) -> Table:
        """Return a table with a section for each measure, so that it is not wide: means with intervals, or medians."""
        rows = {method: self.list_columns(runs) for method, runs in group_by_method(self.runs).items()}
        ratios = compute_ratios(self.runs, self.timed, lambda run: run.seconds) if self.timed else {}
        table = Table("", "method", "n", "", title=self.title)
        for name in next(iter(rows.values())):
            table.add_section()
            for index, (method, row) in enumerate(rows.items()):
                table.add_row("" if index else name, method, str(len(row[name])), format_cell(name, row[name]))
        table.add_section()
        for index, (method, ratio) in enumerate(ratios.items()):
            name = "" if index else f"seconds of {self.timed} / the rival's"
            table.add_row(name, method, str(len(ratio["each"])), format_ratio(ratio))
        return table


def median(values: Sequence[float]) -> float | None:
    """Return the median of the values that are numbers; None if there is none."""
    kept = [value for value in values if np.isfinite(value)]
    return statistics.median(kept) if kept else None


def format_cell(name: str, values: Sequence[float]) -> str:
    """Return what a table shows of the values of a column."""
    middle = median(values)
    if middle is None:
        return "–"
    if name.startswith(("seconds", "epochs")):
        return f"{middle:,.0f}"
    return format_mean([value for value in values if np.isfinite(value)])


def format_ratio(ratio: Mapping[str, Any]) -> str:
    """Return the median of some ratios, with the least and the greatest."""
    return f"{ratio['median']:.2f} ({min(ratio['each']):.2f} – {max(ratio['each']):.2f})"


def list_places(part: PartReport, axis: Axis) -> NDArray[np.float64]:
    """Return the places of an axis at which curves are drawn."""
    if axis == "epochs":
        return np.arange(0.0, part.budget + 1)
    return np.linspace(0.0, max(run.seconds for run in part.runs if has_axis(run, axis)), PLACES)


@style.with_style
def save_figure(parts: Sequence[PartReport], path: Path) -> None:
    """Draw the curves of all parts, a panel for each axis: means with 95 % intervals, or with the few runs."""
    panels = [(part, axis) for part in parts for axis in part.axes]
    figure = style.make_figure(0.6 + 2.6 * len(panels), width=style.PAGE_WIDTH)
    methods = list(dict.fromkeys(run.method for part in parts for run in part.runs))
    styles = {method: style.choose_style(method, index) for index, method in enumerate(methods)}
    handles: dict[str, Any] = {}
    for axes, (part, axis) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        at = list_places(part, axis)
        for method, runs in group_by_method(run for run in part.runs if has_axis(run, axis)).items():
            values = trace_all(runs, part.value, axis, at)
            look = {"color": styles[method].color, "drawstyle": "steps-post"}
            mean = values.mean(axis=0)  # NaN where a run has no incumbent yet
            marks = {"marker": styles[method].marker, "markevery": max(len(at) // 8, 1)}
            [handles[method]] = axes.plot(at, mean, **look, **marks, label=method)
            if len(runs) >= MIN_RUNS_FOR_INTERVALS:
                interval = compute_mean_interval(values)
                drawn = np.isfinite(mean)
                ends = (np.where(drawn, end, np.nan) for end in (interval.low, interval.high))
                axes.fill_between(at, *ends, color=styles[method].color, alpha=0.12, linewidth=0, step="post")
            else:
                axes.plot(at, values.T, **look, linewidth=0.5, alpha=0.5)
        axes.set(title=style.wrap(part.title, style.PAGE_WIDTH), xlabel=LABELS[axis], ylabel=f"{part.value_name}, %")
        if part.value_name == REGRET:  # the first settings are far worse than those that the methods end with
            axes.set_yscale("symlog", linthresh=0.5)
            axes.set_ylim(bottom=0)
        axes.grid(visible=True)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
    figure.savefig(path)

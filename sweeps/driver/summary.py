"""The summary of results that a sweep prints: a table of test accuracies, and what is to be said of stuck trials."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from sweeps.driver.plan import Plan
from sweeps.driver.report import console, say
from sweeps.intervals import compute_mean_interval, compute_share_interval, format_interval
from sweeps.sweep import NAME_PREFIXES, format_count
from trainables.persistence.stored_run import StoredRun

NO_VALUE = "–"
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Setting:
    """The finished trials of one setting, over its seeds.

    Attributes:
        values: Axis → value, as text, for the axes that the table shows.
        runs: Trial id → run.
        stuck: Ids of the trials that are stuck.
    """

    values: Mapping[str, str]
    runs: Mapping[str, StoredRun]
    stuck: Collection[str]

    @property
    def accuracies(self) -> dict[str, float]:
        """Test accuracy in % of each trial that did not diverge, by its id."""
        return {key: run.test_accuracy for key, run in self.runs.items() if run.test_accuracy is not None}

    @property
    def stuck_accuracies(self) -> list[float]:
        """Test accuracies in % of the trials that are stuck."""
        return [accuracy for key, accuracy in self.accuracies.items() if key in self.stuck]

    @property
    def learnt_accuracies(self) -> list[float]:
        """Test accuracies in % of the trials that have learnt."""
        return [accuracy for key, accuracy in self.accuracies.items() if key not in self.stuck]

    @property
    def diverged(self) -> int:
        """Number of the trials that diverged."""
        return sum(run.diverged for run in self.runs.values())


def group_by_setting(plan: Plan, stuck: Collection[str]) -> list[Setting]:
    """Return the settings of all axes but the seed, those without a finished trial included.

    Args:
        plan: The plan.
        stuck: Ids of the trials that are stuck.
    """
    axes = [
        axis
        for axis, values in plan.sweep.axes.items()
        if axis != "seed" and (len(values) > 1 or isinstance(values, Mapping))
    ]
    groups: dict[tuple[str, ...], dict[str, StoredRun]] = {}
    for values, trial in plan.sweep.cells():
        group = tuple(str(value) for axis, value in zip(plan.sweep.axes, values, strict=True) if axis in axes)
        runs = groups.setdefault(group, {})
        if (run := plan.find_finished(trial)) is not None:
            runs[trial.id] = run
    return [Setting(dict(zip(axes, group, strict=True)), runs, stuck) for group, runs in groups.items()]


def print_results(plan: Plan, stuck: Collection[str]) -> None:
    """Print the table of test accuracies, and a sentence on each setting with trials that are stuck.

    Args:
        plan: The plan.
        stuck: Ids of the trials that are stuck.
    """
    settings = group_by_setting(plan, stuck)
    console.print(make_result_table(settings))
    for setting in settings:
        if setting.stuck_accuracies:
            say(describe_stuck(setting), style="yellow")


def make_result_table(settings: Sequence[Setting]) -> Table:
    """Return a table of test accuracies over seeds, a row for each setting.

    The mean is over all trials that did not diverge. The columns on diverged and stuck trials are there where there are
    any.
    """
    columns = list_columns(settings)
    narrow: dict[str, Any] = {"box": box.SIMPLE_HEAD, "collapse_padding": True, "pad_edge": False, "show_edge": False}
    table = Table(title="Test accuracy (%) over seeds", **narrow)  # all columns are to fit in 80 characters
    for axis in settings[0].values:
        table.add_column(axis.replace("_", " "), overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for setting in settings:
        cells = make_cells(setting)
        table.add_row(*setting.values.values(), *(cells[column] for column in columns))
    return table


def list_columns(settings: Sequence[Setting]) -> list[str]:
    """Return the headings of a table of settings, without those of the axes."""
    any_diverged = any(setting.diverged for setting in settings)
    any_stuck = any(setting.stuck_accuracies for setting in settings)
    columns = ["trials", *(["diverged"] if any_diverged else []), *(["stuck"] if any_stuck else []), "mean", "95 % CI"]
    return [*columns, *(["learnt", "mean of\nlearnt"] if any_stuck else []), "best\nrun"]


def make_cells(setting: Setting) -> dict[str, str]:
    """Return the text of every cell that a setting can have in the table, by the column's heading."""
    found, learnt = list(setting.accuracies.values()), setting.learnt_accuracies
    interval = compute_mean_interval(found, lowest=0, highest=100)
    return {
        "trials": str(len(found)),
        "diverged": str(setting.diverged),
        "stuck": str(len(setting.stuck_accuracies)),
        "mean": format_accuracy(float(interval.mean)),
        "95 % CI": format_interval(float(interval.low), float(interval.high)) if len(found) > 1 else NO_VALUE,
        "learnt": f"{100 * len(learnt) / len(setting.runs):.0f} %" if setting.runs else NO_VALUE,
        "mean of\nlearnt": format_accuracy(float(np.mean(learnt))) if learnt else NO_VALUE,
        "best\nrun": format_accuracy(max(found, default=np.nan)),
    }


def format_accuracy(value: float) -> str:
    """Return an accuracy with two decimals, or a dash for NaN."""
    return NO_VALUE if np.isnan(value) else f"{value:.2f}"


def describe_stuck(setting: Setting) -> str:
    """Return a sentence on a setting with stuck trials: how many, their accuracy, that of the others, and the share.

    The share of seeds that learnt is of all its seeds, those that diverged included, with its 95 % interval by Wilson.
    """
    stuck, learnt, seeds = setting.stuck_accuracies, setting.learnt_accuracies, len(setting.runs)
    who = f"{len(stuck)} of {format_count(seeds, 'seed')} never left"
    sentence = f"{f'none of {seeds} seeds left' if seeds == len(stuck) > 1 else who} chance ({np.mean(stuck):.1f} %)"
    if setting.diverged:
        sentence += f", {setting.diverged} diverged"
    if learnt:
        word = NUMBER_WORDS[len(learnt)] if len(learnt) < len(NUMBER_WORDS) else str(len(learnt))
        sentence += f"; the other{'' if len(learnt) == 1 else f' {word}'}: {np.mean(learnt):.1f}"
    if seeds > 1:
        share = compute_share_interval(len(learnt), seeds)
        percent = [f"{100 * value:.0f}" for value in (share.share, share.low, share.high)]
        sentence += f"; share that learnt: {percent[0]} % (95 % CI {percent[1]} – {percent[2]})"
    name = " · ".join(f"{NAME_PREFIXES.get(axis, '')}{value}" for axis, value in setting.values.items())
    return f"{name}: {sentence}" if name else sentence

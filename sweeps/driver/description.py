"""The description of a sweep in MLflow's UI, as Markdown: answer, result tables, links and commands. Pure.

It says no more than the numbers in the store show, and it has no times: two drivers that find the same in the store
write the same.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from sweeps.comparisons import compute_difference, select_claims
from sweeps.driver.stages import Stage
from sweeps.driver.summary import Setting, describe_stuck, list_columns, make_cells
from sweeps.experiment import SweepOptions
from sweeps.intervals import compute_mean_interval, compute_share_difference, compute_share_interval, format_interval
from sweeps.mlflow_ui import MAX_RUN_TAG, MAX_RUNS_SHOWN
from sweeps.sweep import NAME_PREFIXES, Sweep, format_count
from trainables.trial import XOR, Trial

MAX_ROWS = 40  # of a table in a description; the whole table is among the artifacts
MAX_NAMED = 10  # diverged trials
MAX_COMPARED = 30  # settings; the number of their pairs grows with the square
NUMBERS = ("test accuracy mean", "test accuracy low", "test accuracy high", "n")  # of a setting, with its 95 % interval


@dataclass(frozen=True)
class Section:
    """The part of a description that is about one selection of trials.

    Attributes:
        title: The data set and the settings that all trials share.
        answer: What the results say, in a sentence or none.
        body: Question, tables, notes, links and commands.
    """

    title: str
    answer: str
    body: str


def make_key(options: SweepOptions) -> str:
    """Return the key of a selection: the same for other seeds, and for other values of what the sweep varies."""
    text = json.dumps(options.select(), sort_keys=True)
    return f"{options.experiment}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def describe_choice(options: SweepOptions) -> str:
    """Return the selection's options that differ from the defaults in a few words, such as "learning rate 0.001"."""
    usual = type(options)()
    chosen = {
        name: value
        for name, value in options.select().items()
        if name != "dataset" and value != getattr(usual, name) and not isinstance(value, tuple)
    }
    return " ".join(f"{name.replace('_', ' ')} {value}" for name, value in chosen.items())


def find_constants(trials: Sequence[Trial]) -> dict[str, Any]:
    """Return the settings that all trials share: name → value."""
    settings = [asdict(trial) for trial in trials]
    names = (name for name in settings[0] if name != "seed")
    return {name: settings[0][name] for name in names if all(s[name] == settings[0][name] for s in settings)}


def find_groups(sweep: Sweep) -> list[str]:
    """Return the axes that a mean is taken within, besides the seeds: those with several values, or else the first."""
    if not sweep.shows_test:  # each suggestion of a search stands alone
        return []
    axes = {axis: values for axis, values in sweep.axes.items() if axis != "seed"}
    return [axis for axis, values in axes.items() if len(values) > 1] or [*axes][:1]


def make_title(trials: Sequence[Trial]) -> str:
    """Return the data set and the settings that all trials share, in a few words."""
    shared = find_constants(trials)
    words = [shared["dataset"]]
    if "epochs" in shared:
        words.append(format_count(shared["epochs"], "epoch"))
    names = ("architecture", "optimizer", "learning_rate", "batch_size")
    named = [name for name in names if name in shared and shared[name] != shared["dataset"]]
    words += [f"{NAME_PREFIXES.get(name, '')}{shared[name]}" for name in named]
    return ", ".join(map(str, words))


def write_section(
    options: SweepOptions,
    stages: Sequence[Stage],
    links: Sequence[str],
    elsewhere: Mapping[str, str],
    conclusion: Sequence[str] = (),
) -> Section:
    """Write the section of a selection.

    Args:
        options: The options of the command.
        stages: The stages that were planned, at least one.
        links: Links in Markdown to views and lists.
        elsewhere: Trial id → a link to the experiment that holds its run, for runs in other experiments.
        conclusion: Sentences on what all stages together have shown, where there are such.
    """
    trials = [trial for stage in stages for trial in stage.plan.trials]
    parts = [f"*{options.question}*"] if options.question else []
    parts.append(" · ".join(links))
    for stage in stages:
        if stage.plan.sweep.shows_test:
            parts += [*write_table(stage), *write_notes(stage)]
        else:
            parts.append(write_rounds(stage, is_last=stage is stages[-1]))
    if elsewhere:
        places = ", ".join(dict.fromkeys(elsewhere.values()))
        count = f"{len(elsewhere)} of its {format_count(len(trials), 'trial')}"
        parts.append(f"{count} were trained by another sweep, and lie in {places}.")
    if len(trials) > MAX_RUNS_SHOWN:
        parts.append(
            f"MLflow's charts and groups show the first {MAX_RUNS_SHOWN} runs that they load; the table above is of "
            f"all {len(trials):,} trials."
        )
    words = " ".join(options.list_words())
    commands = [f"python {folder}/{options.experiment}.py {words}".strip() for folder in ("sweeps", "analysis")]
    parts.append("\n".join(["```", *commands, "```"]))
    body = "\n\n".join(part for part in parts if part)
    answer = " ".join(conclusion) or describe_answer(stages[0])
    return Section(make_title(stages[0].plan.trials), answer, cut(body, MAX_RUN_TAG - 1500))


def cut(text: str, limit: int) -> str:
    """Return a text of at most `limit` characters: whole paragraphs, and a word about those that are left out."""
    if len(text) <= limit:
        return text
    kept = text[: limit - 100].rpartition("\n\n")[0]
    return f"{kept}\n\n*The rest does not fit here; the tables are among the artifacts.*"


def write_table(stage: Stage, *, whole: bool = False) -> list[str]:
    """Return the table of a stage's test accuracies as Markdown, its first rows or the whole."""
    settings = stage.settings
    columns = list_columns(settings)
    axes = [*settings[0].values] or [""]  # Markdown has no table without a first column
    rows = [[*(axis.replace("_", " ") for axis in axes), *columns], ["---"] * len(axes) + ["---:"] * len(columns)]
    for setting in settings if whole else settings[:MAX_ROWS]:
        cells = make_cells(setting)
        rows.append([*(setting.values.values() or ["all"]), *(cells[column] for column in columns)])
    lines = ["| " + " | ".join(cell.replace("\n", " ") for cell in row) + " |" for row in rows]
    left_out = len(settings) - MAX_ROWS
    note = f"*{format_count(left_out, 'more setting')} in the table among the artifacts.*"
    more = [note] if left_out > 0 and not whole else []
    return [f"**Test accuracy (%) over seeds: {make_title(stage.plan.trials)}**", "\n".join(lines), *more]


def write_rounds(stage: Stage, *, is_last: bool) -> str:
    """Return sentences on the rounds of a search, which look at no test accuracy.

    Args:
        stage: The rounds so far, as one stage.
        is_last: Whether no other stage follows yet.
    """
    runs = [run for trial in stage.plan.trials if (run := stage.plan.find_finished(trial))]
    counts = {"diverged": sum(run.diverged for run in runs), "never left chance": len(stage.stuck)}
    failed = "".join(f", {count} {word}" for word, count in counts.items() if count)
    so_far = f"{stage.plan.sweep.heading}. " if is_last else ""
    return f"**Search:** {so_far}Finished: {format_count(len(runs), 'trial')}{failed}."


def write_notes(stage: Stage) -> list[str]:
    """Return sentences on the trials of a stage that are stuck, and on those that diverged."""
    notes = [describe_stuck(setting) for setting in stage.settings if setting.stuck_accuracies]
    labels = stage.plan.sweep.labels()
    runs = ((trial, stage.plan.find_finished(trial)) for trial in stage.plan.trials)
    diverged = [labels[trial.id] for trial, run in runs if run is not None and run.diverged]
    if diverged:
        named = "; ".join([*diverged[:MAX_NAMED], *(["…"] if len(diverged) > MAX_NAMED else [])])
        are = "is" if len(diverged) == 1 else "are"
        notes.append(f"{format_count(len(diverged), 'trial')} diverged, and {are} in no mean: {named}")
    return [f"{note}." for note in notes]


def describe_answer(stage: Stage) -> str:
    """Return a sentence on which setting leads by test accuracy, and from which others this shows; "" where none can.

    Settings are compared in pairs by Welch's test, and one with stuck seeds also by its share of them. Holm's procedure
    keeps the probability that any claim of the sentence is false to 5 % at most.
    """
    if not stage.plan.sweep.shows_test:
        return f"Under way: {stage.plan.sweep.heading}."
    task = stage.plan.trials[0].task
    if stage.plan.trials[0].dataset == XOR:  # its accuracy on four points is not what is asked
        return ""
    tasks = {trial.id: trial.task for trial in stage.plan.trials}
    settings = [s for s in stage.settings if s.runs and all(tasks[trial_id] == task for trial_id in s.runs)]
    known = [setting for setting in settings if len(setting.accuracies) > 1]
    if not settings:
        return "No trial has finished yet."
    if len(known) < 2:
        best = max(settings, key=lambda s: np.mean([*s.accuracies.values()] or [-1]))
        if not best.accuracies:
            return "All trials have diverged."
        few = " Which setting is best cannot be said from one seed." if len(settings) > 1 else ""
        subject = f"{name_setting(best)} has a test accuracy of" if best.values else "The test accuracy is"
        return f"{subject} {format_mean(best)}.{few}"
    return describe_ranking(sorted(known, key=lambda s: -np.mean([*s.accuracies.values()])))


def describe_ranking(ranked: Sequence[Setting]) -> str:
    """Return a sentence on the first of several settings, which come in the order of their means."""
    leader, others = ranked[0], ranked[1:]
    if len(ranked) > MAX_COMPARED:
        return (
            f"{name_setting(leader)} has the highest test accuracy, {format_mean(leader)}, of {len(ranked)} settings."
        )
    pairs = [*combinations(ranked, 2)]  # all of them, as the data have chosen the leader
    claims = select_claims([[compare(first, second)] for first, second in pairs])
    held = dict(zip(((id(a), id(b)) for a, b in pairs), (claim[0] for claim in claims), strict=True))
    behind = [name_setting(other) for other in others if held[id(leader), id(other)]]
    level = [name_setting(other) for other in others if not held[id(leader), id(other)]]
    if not behind:
        return (
            f"No setting is shown to lead; {name_setting(leader)} has the highest mean test accuracy, "
            f"{format_mean(leader)}."
        )
    sentence = (
        f"{name_setting(leader)} leads with a test accuracy of {format_mean(leader)}, ahead of {'; '.join(behind)}."
    )
    return sentence + (f" Not distinguishable from it: {'; '.join(level)}." if level else "")


def compare(first: Setting, second: Setting) -> float:
    """Return the p-value of two settings having the same mean test accuracy; NaN where it cannot be computed."""
    one, other = [*first.accuracies.values()], [*second.accuracies.values()]
    p = compute_difference(one, other, paired=False, permute=False).p
    stuck = len(first.stuck_accuracies), len(second.stuck_accuracies)
    if any(stuck):
        shares = compute_share_interval(stuck[0], len(one)), compute_share_interval(stuck[1], len(other))
        p = float(np.fmax(p, compute_share_difference(*shares).p))
    return p


def name_setting(setting: Setting) -> str:
    """Return the values of a setting's axes, or words for the only setting of a sweep."""
    return " · ".join(f"{NAME_PREFIXES.get(a, '')}{v}" for a, v in setting.values.items()) or "the only setting"


def format_mean(setting: Setting) -> str:
    """Return the mean test accuracy of a setting with its interval: "88.61 % (88.31 – 88.92, n = 10)"."""
    found = [*setting.accuracies.values()]
    interval = compute_mean_interval(found, lowest=0, highest=100)
    ends = f"{format_interval(float(interval.low), float(interval.high))}, " if len(found) > 1 else ""
    return f"{float(interval.mean):.2f} % ({ends}n = {len(found)})"


def list_rows(stage: Stage) -> list[dict[str, Any]]:
    """Return the numbers of each setting of a stage."""
    rows = []
    for setting in stage.settings:
        interval = compute_mean_interval([*setting.accuracies.values()], lowest=0, highest=100)
        rows.append(
            {
                "trials": make_title(stage.plan.trials),
                "setting": name_setting(setting),
                **dict(zip(NUMBERS, (float(number) for number in interval), strict=True)),
                "stuck": len(setting.stuck_accuracies),
                "diverged": setting.diverged,
            }
        )
    return rows


def format_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows that have the same keys as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()

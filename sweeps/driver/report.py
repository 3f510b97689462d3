"""TODO."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from sweeps.driver.autotune import CACHE_FILE
from sweeps.driver.options import RunOptions
from sweeps.driver.resources import (
    Allocation,
)
from sweeps.experiment import SweepOptions
from sweeps.intervals import format_mean
from trainables.accelerated.backends import NATIVE, get_environment
from trainables.architectures import has_convolution
from trainables.persistence.store import StoredRun
from trainables.persistence.trial_folder import TrialFolder

if TYPE_CHECKING:
    from trainables.worker.pack import Outcome, Pack
from sweeps.driver.plan import Plan

console = Console()


def say(text: str, style: str | None = None) -> None:
    """Print a line as it is, without markup or wrapping, so that commands can be copied."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def print_plan(plan: Plan) -> None:
    """Print how many trials are done and missing, and which sweeps' experiments hold those that are done."""
    done = [recorded for trial in plan.trials if (recorded := plan.finished(trial))]
    elsewhere = Counter(recorded.experiment for recorded in done if recorded.experiment != plan.sweep.name)
    reused = "".join(f", {count} of them from {experiment}" for experiment, count in elsewhere.items())
    say(f"{plan.sweep.name}: {len(plan.trials)} trials, {len(done)} done{reused}, {len(plan.missing)} missing")


def print_allocation(trial_share: Allocation) -> None:
    """Print what a trial gets."""
    shares = {f"{gpus:g}" for gpus in trial_share.gpus.values()}
    each = ", ".join(shares if len(shares) == 1 else (f"{gpus:g} ({name})" for name, gpus in trial_share.gpus.items()))
    at_most = "" if len(shares) == 1 else "up to "
    say(
        f"Resources: {trial_share.cpus} CPU and {each} GPU a process, {at_most}{trial_share.at_once} "
        f"{'processes' if trial_share.at_once > 1 else 'process'} at once"
    )


def print_packs(packed: Sequence[Pack], stacked: Collection[str]) -> None:
    """Print which trials share a process, if any do."""
    trials = sum(len(pack.trials) for pack in packed)
    if trials > len(packed):
        side_by_side = dict.fromkeys(t.architecture for p in packed for t in p.trials if t.architecture in stacked)
        how = f"; side by side: {', '.join(side_by_side)}" if side_by_side else ""
        say(f"Packs: {trials} trials in {len(packed)}{how}")


def print_backend(packed: Sequence[Pack], stacked: Collection[str], way: str | None) -> None:
    """Print how convolutions on the CPU are computed, if there are any but in stacks."""
    alone = {trial.architecture for pack in packed if not pack.gpus for trial in pack.trials} - {*stacked}
    if not any(has_convolution(architecture) for architecture in alone):
        return
    if way == NATIVE:
        say("Convolutions: by code compiled where they are computed")
    else:
        how = f", limited to {way}" if get_environment(way) else ""
        hint = (
            ""
            if shutil.which("c++")
            else f"; a C++ compiler (g++), and no {CACHE_FILE} in the storage, may make them faster"
        )
        say(f"Convolutions: by PyTorch{how}{hint}")


def print_outcomes(
    before: Plan, after: Plan, endings: Mapping[str, Outcome], refused: Mapping[str, str], seconds: float
) -> None:
    """Print how many trials were trained, and what a person should know of single ones."""
    labels = before.sweep.labels()
    well = {trial_id for trial_id, ending in endings.items() if not ending.error}
    trained = sum(after.finished(trial) is not None or trial.id in well for trial in before.missing)
    say(f"Trained {trained} of {len(before.missing)} trials in {seconds:.0f} seconds.")
    for trial_id, ending in endings.items():
        for note in ending.notes:
            say(f"note: {labels[trial_id]}: {note}", style="yellow")
    if refused:
        reason = next(iter(refused.values()))
        say(f"The results of {len(refused)} trained trials wait in the storage folder: {reason}", style="red")


def print_missing(plan: Plan, selection: SweepOptions, running: RunOptions, endings: Mapping[str, Outcome]) -> int:
    """Print what failed and how to go on; the exit status."""
    labels = plan.sweep.labels()
    tried = {trial.id: endings.get(trial.id) for trial in plan.missing}
    failed = {trial_id: ending.error for trial_id, ending in tried.items() if ending is not None and ending.error}
    for trial_id, error in failed.items():
        say(f"failed: {labels[trial_id]}: {error}", style="red")
    others = [trial for trial in plan.missing if trial.id not in failed]
    trained = sum(trial.id in endings or TrialFolder(running.storage, trial).has_result for trial in others)
    stopped = len(others) - trained
    say(
        f"{len(plan.missing)} trials are missing ({len(failed)} failed, {stopped} stopped, {trained} trained but not "
        f"seen in the store). To go on: {selection.command('sweeps', running)}"
    )
    return 130 if stopped else 1


def make_result_table(plan: Plan) -> Table:
    """Test accuracy by those of the axes, other than the seed, that have several values or names."""
    axes = [
        axis
        for axis, values in plan.sweep.axes.items()
        if axis != "seed" and (len(values) > 1 or isinstance(values, Mapping))
    ]
    groups: dict[tuple[str, ...], dict[str, StoredRun]] = {}
    for values, trial in plan.sweep.cells():
        group = tuple(str(value) for axis, value in zip(plan.sweep.axes, values, strict=True) if axis in axes)
        runs = groups.setdefault(group, {})
        if (recorded := plan.finished(trial)) is not None:
            runs[trial.id] = recorded
    any_diverged = any(run.diverged for runs in groups.values() for run in runs.values())
    table = Table(title="Test accuracy (%)")
    for axis in axes:
        table.add_column(axis.replace("_", " "))
    for heading in ("trials", *(["diverged"] if any_diverged else []), "mean ± 95 % CI over seeds", "best run"):
        table.add_column(heading, justify="right")
    for group, runs in groups.items():
        found = [run.test_accuracy for run in runs.values() if run.test_accuracy is not None]
        diverged = [str(sum(run.diverged for run in runs.values()))] if any_diverged else []
        summary = (format_mean(found), f"{max(found):.2f}") if found else ("–", "–")
        table.add_row(*group, str(len(found)), *diverged, *summary)
    return table

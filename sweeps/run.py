"""Running a sweep: what is missing → train it → what came of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from sweeps.intervals import mean_text
from sweeps.options import Running, Selection
from sweeps.resources import Share, share, this_machine
from sweeps.sweep import Sweep
from trainables.tracking import Recorded, Store, sqlite_file
from trainables.trial import Trial

console = Console()


@dataclass(frozen=True)
class Plan:
    """A sweep's trials and what the tracking store has of them."""

    sweep: Sweep
    trials: tuple[Trial, ...]
    runs: Mapping[str, list[Recorded]]

    def finished(self, trial: Trial) -> Recorded | None:
        """The finished run of a trial."""
        return next((run for run in self.runs.get(trial.id, []) if run.finished), None)

    @property
    def missing(self) -> list[Trial]:
        """The trials that no run has finished, in the sweep's order."""
        return [trial for trial in self.trials if self.finished(trial) is None]


def run(selection: Selection, running: Running) -> int:
    """Run the trials of the selected sweep that are not finished.

    Returns:
        0 if all trials are finished, 1 if some failed, 130 if stopped before the end.

    Raises:
        BadInputError: Before anything trains.
    """
    sweep = selection.sweep()
    trials = sweep.trials()
    running.check()
    address = os.environ.get("RAY_ADDRESS")
    local_share = None if address else share(running, [this_machine()])
    if running.dry_run:
        file = sqlite_file(selection.tracking_uri)
        empty = file is not None and not file.exists()  # a dry run makes no store
        plan = Plan(sweep, trials, {} if empty else Store(selection.tracking_uri).recorded())
        report_plan(plan)
        report_share(local_share)
        return 0
    store = Store(selection.tracking_uri)
    plan = Plan(sweep, trials, store.recorded())
    report_plan(plan)
    errors: dict[str, str] = {}
    if plan.missing:
        started = time.monotonic()
        errors = train_missing(plan, store, selection, running, address)
        after = Plan(sweep, trials, store.recorded())
        settle(after, store, errors)
        trained = len(plan.missing) - len(after.missing)
        say(f"Trained {trained} of {len(plan.missing)} trials in {time.monotonic() - started:.0f} seconds.")
        plan = after
    return report_end(plan, selection, errors)


def train_missing(
    plan: Plan, store: Store, selection: Selection, running: Running, address: str | None
) -> dict[str, str]:
    """Load the data, start Ray, train what is missing; what went wrong by trial id."""
    from sweeps import launch  # Ray and torch take seconds to import: only where something trains
    from trainables import datasets
    from trainables.trainable import Settings

    data = datasets.load(selection.dataset, running.data_root)
    say(
        f"{selection.dataset}: {len(data.train_images):,} training, {len(data.val_images):,} validation "
        f"and {len(data.test_images):,} test images"
    )
    storage = running.storage.absolute()
    storage.mkdir(parents=True, exist_ok=True)
    try:
        trial_share = share(running, launch.connect(address, this_machine()))
        report_share(trial_share)
        experiment_id, parent_run_id = store.parent(plan.sweep.name, selection.dataset)
        settings = Settings(
            tracking_uri=store.uri,
            experiment_id=experiment_id,
            parent_run_id=parent_run_id,
            checkpoints=storage / "checkpoints",
            threads=trial_share.cpus,
            gpus=trial_share.gpus,
            tags={"data_checksum": data.checksum, **provenance()},
        )
        names = {trial.id: plan.sweep.label(trial) for trial in plan.missing}
        return launch.train(plan.missing, names, data, settings, trial_share, storage, console)
    finally:
        launch.disconnect()


def provenance() -> dict[str, str]:
    """Which code and which libraries train: tags of every run."""
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    libraries = ("neural-sweeps", "torch", "torchvision", "numpy", "ray", "mlflow")
    return {
        "git_commit": (commit.stdout.strip() or "unknown") + (" with changes" if changed.stdout.strip() else ""),
        "python_version": sys.version.split()[0],
        **{f"{library}_version": version(library) for library in libraries},
    }


def settle(plan: Plan, store: Store, errors: Mapping[str, str]) -> None:
    """Leave no run of this sweep standing as RUNNING once nothing trains."""
    for trial in plan.missing:
        for recorded in plan.runs.get(trial.id, []):
            if recorded.status == "RUNNING":
                store.close(recorded.run_id, "FAILED" if trial.id in errors else "KILLED")


def say(text: str, style: str | None = None) -> None:
    """Print a line as it is, without markup or wrapping, so that commands can be copied."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def report_plan(plan: Plan) -> None:
    """Print how many trials are done and missing, and which sweeps' experiments hold those that are done."""
    done = [recorded for trial in plan.trials if (recorded := plan.finished(trial))]
    elsewhere = Counter(recorded.experiment for recorded in done if recorded.experiment != plan.sweep.name)
    reused = "".join(f", {count} of them from {experiment}" for experiment, count in elsewhere.items())
    say(f"{plan.sweep.name}: {len(plan.trials)} trials, {len(done)} done{reused}, {len(plan.missing)} missing")


def report_share(trial_share: Share | None) -> None:
    """Print what a trial gets."""
    if trial_share is None:
        say("Resources: those of the cluster at RAY_ADDRESS, which a dry run does not ask")
        return
    say(
        f"Resources: {trial_share.cpus} CPU and {trial_share.gpus:g} GPU a trial, "
        f"{trial_share.at_once} {'trials' if trial_share.at_once > 1 else 'trial'} at once"
    )


def report_end(plan: Plan, selection: Selection, errors: Mapping[str, str]) -> int:
    """Print the results so far and the next command; the exit status."""
    console.print(result_table(plan))
    for trial in plan.missing:
        if trial.id in errors:
            say(f"failed: {plan.sweep.label(trial)}: {errors[trial.id]}", style="red")
    if not plan.missing:
        say(f"All {len(plan.trials)} trials are done. Next: {selection.command('analysis')}")
        return 0
    stopped = len(plan.missing) - len(errors)
    say(
        f"{len(plan.missing)} trials are missing ({len(errors)} failed, {stopped} stopped). "
        f"To go on: {selection.command('sweeps')}"
    )
    return 130 if stopped else 1


def result_table(plan: Plan) -> Table:
    """Test accuracy by the sweep's axes other than the seed."""
    axes = [axis for axis in plan.sweep.axes if axis != "seed"]
    groups: dict[tuple[str, ...], list[float]] = {}
    for trial in plan.trials:
        values = groups.setdefault(tuple(str(getattr(trial, axis)) for axis in axes), [])
        recorded = plan.finished(trial)
        if recorded is not None and recorded.test_accuracy is not None:
            values.append(recorded.test_accuracy)
    table = Table(title="Test accuracy (%)")
    for axis in axes:
        table.add_column(axis.replace("_", " "))
    for heading in ("trials", "mean ± 95 % CI over seeds", "best run"):
        table.add_column(heading, justify="right")
    for group, values in groups.items():
        summary = (mean_text(np.array(values)), f"{max(values):.2f}") if values else ("–", "–")
        table.add_row(*group, str(len(values)), *summary)
    return table

"""Running a sweep: what is missing → train it → what came of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table

from sweeps.intervals import mean_text
from sweeps.options import Running, Selection, next_stage
from sweeps.resources import Share, share, this_machine
from sweeps.sweep import Sweep
from trainables.tracking import CHECKPOINTS, Recorded, Store, sqlite_file
from trainables.trial import XOR, BadInputError, Trial

if TYPE_CHECKING:
    from trainables.datasets import Dataset

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
    """Run the trials of the selected sweep that are not finished, stage by stage.

    Returns:
        0 if all trials are finished, 1 if some failed, 130 if stopped before the end.

    Raises:
        BadInputError: Before anything trains.
    """
    first = next(selection.stages(lambda trial: None))
    trials = first.trials()  # checks the options before the store is opened
    running.check()
    address = os.environ.get("RAY_ADDRESS")
    local_share = None if address else share(running, [this_machine()])
    file = sqlite_file(selection.tracking_uri)
    if running.dry_run and file is not None and not file.exists():  # a dry run makes no store
        report_plan(Plan(first, trials, {}))
        report_share(local_share)
        return 0
    store = Store(selection.tracking_uri)
    with ExitStack() as stack:
        trainer = Trainer(store, running, address, stack)
        stages = selection.stages(store.reader())
        while True:
            sweep, early = next_stage(stages)
            if sweep is None:
                break
            plan = Plan(sweep, sweep.trials(), store.recorded())
            report_plan(plan)
            if running.dry_run:
                if plan.missing:
                    break  # what comes next, if anything, depends on these
                continue
            errors: dict[str, str] = {}
            if plan.missing:
                plan, errors = trainer.train(plan)
            console.print(result_table(plan))
            if plan.missing:
                return report_missing(plan, selection, running, errors)
    if early:
        say(early)
    if running.dry_run:
        report_share(local_share)
    else:
        say(f"All trials are done. Next: {selection.command('analysis')}")
    return 0


class Trainer:
    """Trains what is missing. Data and Ray are there from the first trial that needs them until `stack` closes."""

    def __init__(self, store: Store, running: Running, address: str | None, stack: ExitStack) -> None:
        self.store = store
        self.running = running
        self.address = address
        self.stack = stack
        self.storage = running.storage.absolute()
        self.share: Share | None = None
        self.data: Dataset | None = None

    def start(self, trial: Trial) -> Share:
        """Load the data that all trials of an experiment share, and start Ray."""
        from sweeps import launch  # Ray and torch take seconds to import: only where something trains
        from trainables import datasets

        if trial.dataset != XOR:
            self.data = datasets.load(trial.dataset, self.running.data_root, trial.pipeline)
            parts = (self.data.train_labels, self.data.val_labels, self.data.test_labels)
            counts = " + ".join(f"{len(part):,}" for part in parts)
            say(f"{trial.dataset}: {counts} images (training, validation, test)")
        self.stack.callback(launch.disconnect)
        nodes = launch.connect(self.address, this_machine())
        if len(nodes) > 1 and sqlite_file(self.store.uri):
            raise BadInputError(
                f"the tracking store {self.store.uri} is a file of one machine, but the cluster has {len(nodes)}; "
                "name a server or a database that all of them reach with --tracking-uri"
            )
        trial_share = share(self.running, nodes)
        if trial_share.gpus and self.address is None:
            launch.check_gpu()
        report_share(trial_share)
        return trial_share

    def train(self, plan: Plan) -> tuple[Plan, dict[str, str]]:
        """Train the plan's missing trials; the plan as it is then, and what went wrong by trial id."""
        started = time.monotonic()
        experiment_id, parent_run_id = self.store.parent(plan.sweep.name, plan.missing[0].dataset)
        self.storage.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.storage / "sweep.lock", blocking=False)
        try:
            lock.acquire()
        except Timeout:
            raise BadInputError(
                f"another sweep trains with --storage {self.running.storage}; wait for it, or name another folder"
            ) from None
        errors: dict[str, str] = {}
        try:
            plan = Plan(plan.sweep, plan.trials, self.store.recorded())  # another sweep may just have trained them
            if plan.missing:
                errors = self.submit(plan, experiment_id, parent_run_id)
        finally:
            after = Plan(plan.sweep, plan.trials, self.store.recorded())
            settle(after, self.store, errors)
            lock.release()
        trained = len(plan.missing) - len(after.missing)
        say(f"Trained {trained} of {len(plan.missing)} trials in {time.monotonic() - started:.0f} seconds.")
        return after, errors

    def submit(self, plan: Plan, experiment_id: str, parent_run_id: str) -> dict[str, str]:
        """Hand the plan's missing trials to Ray; what went wrong, by trial id."""
        from sweeps import launch
        from trainables.trainable import Settings

        self.share = self.share or self.start(plan.missing[0])
        if self.data is not None:
            check_records(plan.missing, len(self.data.train_labels))
        settings = Settings(
            tracking_uri=self.store.uri,
            experiment_id=experiment_id,
            parent_run_id=parent_run_id,
            checkpoints=self.storage / "checkpoints",
            threads=self.share.cpus,
            gpus=self.share.gpus,
            tags={
                CHECKPOINTS: str(self.storage / "checkpoints"),
                **({"data_checksum": self.data.checksum} if self.data else {}),
                **provenance(),
            },
        )
        return launch.train(plan.missing, plan.sweep.labels(), self.data, settings, self.share, self.storage, console)


def check_records(trials: Sequence[Trial], train_images: int) -> None:
    """Raise `BadInputError` for a trial that ends before its first record, or before its schedule does."""
    from trainables import training

    for trial in trials:
        if trial.milestones and trial.milestones[-1][0] >= trial.epochs * training.steps_per_epoch(trial, train_images):
            raise BadInputError(
                f"the learning rate is to change after step {trial.milestones[-1][0]}, but {trial.epochs} epochs end "
                "before; raise --schedule-epochs, or give earlier --milestones"
            )
        if len(training.record_steps(trial, train_images)) == 0:
            steps = trial.epochs * training.steps_per_epoch(trial, train_images)
            raise BadInputError(
                f"{trial.epochs} epochs in batches of {trial.batch_size} make {steps} steps, but the first record is "
                f"at step {trial.record_every_steps}; raise --epochs or lower the batch size"
            )


def provenance() -> dict[str, str]:
    """Which code and which libraries train: tags of every run."""
    commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    libraries = ("neural-sweeps", "torch", "torchvision", "numpy", "ray", "mlflow")
    return {
        "git_commit": (commit or "unknown") + (" with changes" if changed else ""),
        "python_version": sys.version.split()[0],
        **{f"{library}_version": version(library) for library in libraries},
    }


def git(*words: str) -> str:
    """What git says of this checkout; nothing without git or outside a checkout."""
    try:
        folder = str(Path(__file__).parent)
        return subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


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


def report_missing(plan: Plan, selection: Selection, running: Running, errors: Mapping[str, str]) -> int:
    """Print what failed and how to go on; the exit status."""
    labels = plan.sweep.labels()
    failed = [trial for trial in plan.missing if trial.id in errors]
    for trial in failed:
        say(f"failed: {labels[trial.id]}: {errors[trial.id]}", style="red")
    stopped = len(plan.missing) - len(failed)
    say(
        f"{len(plan.missing)} trials are missing ({len(failed)} failed, {stopped} stopped). "
        f"To go on: {selection.command('sweeps', running)}"
    )
    return 130 if stopped else 1


def result_table(plan: Plan) -> Table:
    """Test accuracy by those of the axes, other than the seed, that have several values or names."""
    axes = [
        axis
        for axis, values in plan.sweep.axes.items()
        if axis != "seed" and (len(values) > 1 or isinstance(values, Mapping))
    ]
    groups: dict[tuple[str, ...], dict[str, float]] = {}
    for values, trial in plan.sweep.cells():
        group = tuple(str(value) for axis, value in zip(plan.sweep.axes, values, strict=True) if axis in axes)
        recorded = plan.finished(trial)
        accuracies = groups.setdefault(group, {})
        if recorded is not None and recorded.test_accuracy is not None:
            accuracies[trial.id] = recorded.test_accuracy
    table = Table(title="Test accuracy (%)")
    for axis in axes:
        table.add_column(axis.replace("_", " "))
    for heading in ("trials", "mean ± 95 % CI over seeds", "best run"):
        table.add_column(heading, justify="right")
    for group, accuracies in groups.items():
        found = list(accuracies.values())
        summary = (mean_text(found), f"{max(found):.2f}") if found else ("–", "–")
        table.add_row(*group, str(len(found)), *summary)
    return table

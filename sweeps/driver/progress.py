"""The progress of packs in training: a bar on a terminal, a line from time to time in a log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from ray.tune import Callback
from rich.progress import Progress

from trainables.worker.pack import REPORT_KEY, Outcome, Pack, PackReport, get_pack

LOG_INTERVAL_SECONDS = 30


class ProgressBar(Callback):
    """A progress bar that shows the share of all epochs that is trained, and the number of trials in each state."""

    def __init__(self, progress: Progress, packs: Sequence[Pack]) -> None:
        self.progress = progress
        self.reports = {pack.name: PackReport() for pack in packs}
        self.trials = sum(len(pack.trials) for pack in packs)
        self.task = progress.add_task("", total=sum(pack.epochs for pack in packs))
        self.written = time.monotonic()
        self.draw()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for Tuner.restore, which is not used; a live bar cannot be pickled

    def draw(self) -> None:
        """Show the state."""
        reports = self.reports.values()
        outcomes = [outcome for report in reports for outcome in report.outcomes.values()]
        running, failed = sum(report.running for report in reports), sum(bool(outcome.error) for outcome in outcomes)
        waiting = self.trials - len(outcomes) - running
        states = f"trials: {len(outcomes) - failed} done, {running} running, {waiting} waiting, {failed} failed"
        self.progress.update(self.task, description=states, completed=sum(report.epochs for report in reports))
        if self.progress.disable and time.monotonic() - self.written >= LOG_INTERVAL_SECONDS:
            self.written = time.monotonic()
            task = self.progress.tasks[0]
            left = "" if task.time_remaining is None else f", about {timedelta(seconds=task.time_remaining)} left"
            self.progress.console.print(f"{states}: {task.percentage:.0f} %{left}", highlight=False, soft_wrap=True)

    def update(self, trial: Any, report: PackReport) -> None:
        """Note the report of the pack that is Tune's trial `trial`, and show the state."""
        self.reports[get_pack(trial.config).name] = report
        self.draw()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.update(trial, replace(self.reports[get_pack(trial.config).name], running=1))  # until the first report

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.update(trial, result.get(REPORT_KEY, PackReport()))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        pack = get_pack(trial.config)
        failed = {trial.id: Outcome("its process died") for trial in pack.trials}
        self.update(trial, PackReport(pack.epochs, 0, failed | dict(self.reports[pack.name].outcomes)))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.update(trial, replace(self.reports[get_pack(trial.config).name], running=0))

"""The progress of packs in training: a bar on a terminal, a line from time to time in a log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from trainables.worker.pack import Outcome, Pack, PackReport

LOG_INTERVAL_SECONDS = 30


class ProgressBar:
    """A progress bar that shows the share of all epochs that is trained, and the number of trials in each state."""

    def __init__(self, progress: Progress, packs: Sequence[Pack], note: Callable[[int, float], None]) -> None:
        self.progress = progress
        self.note = note
        self.reports = {pack.name: PackReport() for pack in packs}
        self.trials = sum(len(pack.trials) for pack in packs)
        self.task = progress.add_task("", total=sum(pack.epochs for pack in packs))
        self.written = time.monotonic()
        self.draw()

    @property
    def ended(self) -> dict[str, Outcome]:
        """The outcomes that were reported so far: trial id → outcome."""
        return {trial_id: found for report in self.reports.values() for trial_id, found in report.outcomes.items()}

    def draw(self) -> None:
        """Show the state."""
        reports, outcomes = self.reports.values(), self.ended.values()
        running, failed = sum(report.running for report in reports), sum(bool(outcome.error) for outcome in outcomes)
        waiting = self.trials - len(outcomes) - running
        states = f"trials: {len(outcomes) - failed} done, {running} running, {waiting} waiting, {failed} failed"
        self.progress.update(self.task, description=states, completed=sum(report.epochs for report in reports))
        seconds = self.progress.tasks[0].time_remaining
        self.note(len(outcomes) - failed, math.nan if seconds is None else seconds)
        if self.progress.disable and time.monotonic() - self.written >= LOG_INTERVAL_SECONDS:
            self.written = time.monotonic()
            task = self.progress.tasks[0]
            left = "" if task.time_remaining is None else f", about {timedelta(seconds=task.time_remaining)} left"
            self.progress.console.print(f"{states}: {task.percentage:.0f} %{left}", highlight=False, soft_wrap=True)

    def update(self, name: str, report: PackReport) -> None:
        """Note the report of the pack with this name, and show the state."""
        self.reports[name] = report
        self.draw()


@contextmanager
def show_progress(packs: Sequence[Pack], console: Console, note: Callable[[int, float], None]) -> Iterator[ProgressBar]:
    """Show the progress of packs for as long as the context lasts.

    Args:
        packs: The packs.
        console: Where it is shown.
        note: Is called with the number of trials that are done, and the seconds left or NaN.
    """
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        speed_estimate_period=600,
    ) as progress:
        yield ProgressBar(progress, packs, note)

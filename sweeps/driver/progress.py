"""TODO."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any

from ray.tune import Callback
from rich.progress import Progress

from trainables.worker.pack import Pack

LOG_INTERVAL_SECONDS = 30  # between two lines of progress, where no terminal shows a bar


@lru_cache(maxsize=100_000)
def parse_pack(text: str) -> Pack:
    """A pack, parsed once however often Tune's callbacks ask."""
    return Pack.from_json(text)


def get_pack(config: Mapping[str, str]) -> Pack:
    """The pack that Tune's trial with this configuration is."""
    return parse_pack(config["pack"])


@dataclass
class PackState:
    """How far a pack has come.

    Attributes:
        epochs: Trained, of all its trials.
    """

    epochs: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0


class ProgressBar(Callback):
    """Keeps a progress bar: the share of all epochs that is trained, and trials by state; in a log, a line at times."""

    def __init__(self, progress: Progress, packs: Sequence[Pack]) -> None:
        self.progress = progress
        self.states = {pack.name: PackState() for pack in packs}
        self.trials = sum(len(pack.trials) for pack in packs)
        self.task = progress.add_task("", total=sum(trial.epochs for pack in packs for trial in pack.trials))
        self.written = time.monotonic()
        self.draw()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for Tuner.restore, which is never used here; a live bar can't be

    def draw(self) -> None:
        """Show the state."""
        running, done, failed, epochs = (
            sum(getattr(state, what) for state in self.states.values())
            for what in ("running", "done", "failed", "epochs")
        )
        waiting = self.trials - done - failed - running
        states = f"trials: {done} done, {running} running, {waiting} waiting, {failed} failed"
        self.progress.update(self.task, description=states, completed=epochs)
        if self.progress.disable and time.monotonic() - self.written >= LOG_INTERVAL_SECONDS:
            self.written = time.monotonic()
            task = self.progress.tasks[0]
            left = "" if task.time_remaining is None else f", about {timedelta(seconds=task.time_remaining)} left"
            self.progress.console.print(f"{states}: {task.percentage:.0f} %{left}", highlight=False, soft_wrap=True)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.states[get_pack(trial.config).name].running = 1  # at first
        self.draw()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        endings = result.get("endings", {})
        failed = sum(bool(said.get("error")) for said in endings.values())
        state = PackState(result.get("epochs", 0), result.get("running", 0), len(endings) - failed, failed)
        self.states[get_pack(trial.config).name] = state
        self.draw()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        pack = get_pack(trial.config)
        state = self.states[pack.name]
        state.epochs, state.running = sum(trial.epochs for trial in pack.trials), 0
        state.failed = len(pack.trials) - state.done
        self.draw()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.states[get_pack(trial.config).name].running = 0
        self.draw()

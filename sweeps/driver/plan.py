"""Plans: the trials of a sweep, and which of them the tracking store has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweeps.sweep import Sweep
from trainables.errors import BadInputError
from trainables.persistence.stored_run import StoredRun
from trainables.trial import Trial

MAX_RECORDS = 10_000_000  # in a curve; more would fill the memory before training starts


@dataclass(frozen=True)
class Plan:
    """A sweep's trials, and their runs in the tracking store.

    Attributes:
        sweep: The sweep.
        trials: Its distinct trials, in order.
        runs: Trial id → the trial's runs.
    """

    sweep: Sweep
    trials: tuple[Trial, ...]
    runs: Mapping[str, list[StoredRun]]

    def find_finished(self, trial: Trial) -> StoredRun | None:
        """Return the finished run of a trial, or None."""
        return next((run for run in self.runs.get(trial.id, []) if run.finished), None)

    @property
    def missing(self) -> list[Trial]:
        """The trials without a finished run, in the sweep's order."""
        return [trial for trial in self.trials if self.find_finished(trial) is None]


def check_records(trials: Sequence[Trial], train_images: int) -> None:
    """Raise `BadInputError` for a trial with no record, with too many, or with a milestone after its end."""
    for trial in trials:
        steps = trial.epochs * trial.steps_per_epoch(train_images)
        if trial.milestones and trial.milestones[-1][0] >= steps:
            raise BadInputError(
                f"the learning rate is to change after step {trial.milestones[-1][0]}, but {trial.epochs} epochs end "
                "before; raise --schedule-epochs, or give earlier --milestones"
            )
        records = steps // trial.record_interval(train_images)
        if records > MAX_RECORDS:
            raise BadInputError(
                f"{trial.epochs} epochs in batches of {trial.batch_size} make {records:,} records a curve; at most "
                f"{MAX_RECORDS:,} are kept: lower --epochs or raise the batch size"
            )
        if records == 0:
            raise BadInputError(
                f"{trial.epochs} epochs in batches of {trial.batch_size} make {steps} steps, but the first record is "
                f"at step {trial.record_every_steps}; raise --epochs or lower the batch size"
            )

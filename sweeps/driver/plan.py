"""Plans: the trials of a sweep, and which of them the tracking store has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sweeps.stuck import BATCHES, choose_source, is_stuck, is_stuck_result
from sweeps.sweep import ReadResult, Sweep
from trainables.errors import BadInputError
from trainables.persistence.end_state import Start
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

    def find_stuck(self, read: ReadResult) -> set[str]:
        """Return the ids of the trials that are stuck, judged by the latest metrics of their runs.

        Args:
            read: Function that reads a trial's result. It is called only for trials that are judged by the batches of
                their last epoch, as an experiment's own are not.
        """
        finished = ((trial, self.find_finished(trial)) for trial in self.trials)
        trained = ((trial, run) for trial, run in finished if run is not None and not run.diverged)
        return {trial.id for trial, run in trained if is_run_stuck(trial, run, read)}

    def find_starts(self) -> dict[str, Start]:
        """Return those missing trials that go on from the end of a shorter one: trial id → the longest such one."""
        families: dict[str, list[StoredRun]] = {}
        for run in (run for runs in self.runs.values() for run in runs):
            if run.end is not None:
                families.setdefault(run.end.family, []).append(run)
        found = {trial.id: find_start(trial, families.get(trial.family, ())) for trial in self.missing if families}
        return {trial_id: start for trial_id, start in found.items() if start is not None}

    @property
    def missing(self) -> list[Trial]:
        """The trials without a finished run, in the sweep's order."""
        return [trial for trial in self.trials if self.find_finished(trial) is None]


def find_start(trial: Trial, runs: Iterable[StoredRun]) -> Start | None:
    """Return the finished run of the longest trial that this one goes on from, or None if there is none.

    Args:
        trial: The trial.
        runs: Runs of the trial's family.
    """
    ends = [(run.end.step, run.run_id, run) for run in runs if run.finished and run.end and run.end.begins(trial)]
    if not ends:
        return None
    run = max(ends, key=lambda end: end[:2])[2]
    epochs = run.end.epochs if run.end else 0
    return Start(run.trial_id, run.name, run.run_id, run.artifact_uri, epochs)


def is_run_stuck(trial: Trial, run: StoredRun, read: ReadResult) -> bool:
    """Return whether a trial that has finished without diverging is stuck; not if its run lacks the metric."""
    if (source := choose_source(trial)) == BATCHES:
        result = read(trial)
        return result is not None and is_stuck_result(trial, result)
    return source in run.metrics and is_stuck(trial, run.metrics)


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

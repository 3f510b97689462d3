"""The tracking store as analyses see it: its runs read once, and the journal of a search, which they never write."""

from __future__ import annotations

from functools import cached_property

from sweeps.experiment import ImageSweepOptions, SweepOptions
from sweeps.journal import Journal, NoJournal
from trainables.persistence.store import Store
from trainables.persistence.stored_journal import StoredJournal
from trainables.persistence.stored_run import StoredRun
from trainables.result import Result
from trainables.trial import Trial


class Snapshot(Store):
    """A tracking store as it was when it was first read, so that an analysis of many sweeps reads its runs once."""

    @cached_property
    def _runs(self) -> dict[str, list[StoredRun]]:
        return super().find_runs()

    def find_runs(self) -> dict[str, list[StoredRun]]:
        return self._runs

    def read_trial(self, trial: Trial) -> Result | None:
        finished = next((run for run in self._runs.get(trial.id, []) if run.finished), None)
        return None if finished is None else self.read_result(finished)


def open_journal(options: SweepOptions, store: Store) -> Journal:
    """Return the journal that a sweep has kept in the store. Without it, a search would be asked for anew."""
    if not isinstance(options, ImageSweepOptions):
        return NoJournal()
    return StoredJournal(store, options.experiment, options.dataset, writing=False)

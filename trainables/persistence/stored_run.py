"""A trial's run as the store holds it, and the line about runs that are ignored.

Quick to import, as it needs none of MLflow.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainables.checksums import describe_difference, is_other_data
from trainables.persistence.connection import CHECKSUM_TAG, DIVERGED_TAG, DRIVER_TAG, STORAGE_TAG, TRIAL_ID_TAG

if TYPE_CHECKING:
    from mlflow.entities import Run

MAX_TRIALS_NAMED = 3  # trials whose runs are ignored; an ellipsis stands for the others


@dataclass(frozen=True)
class StoredRun:
    """A trial's run as the store holds it.

    Attributes:
        metrics: Latest value of each metric by name: of the recorded quantities and, if the trial has finished without
            diverging, of "test_accuracy".
    """

    trial_id: str
    run_id: str
    name: str
    status: str
    experiment: str
    metrics: Mapping[str, float]
    diverged: bool
    storage: str
    driver: str
    artifact_uri: str
    dataset: str
    checksum: str

    @classmethod
    def from_run(cls, run: Run, experiment: str) -> StoredRun:
        """Return what MLflow's run in the experiment of that name says."""
        return cls(
            trial_id=run.data.tags[TRIAL_ID_TAG],
            run_id=run.info.run_id,
            name=run.info.run_name or run.info.run_id,
            status=run.info.status,
            experiment=experiment,
            metrics=run.data.metrics,
            diverged=DIVERGED_TAG in run.data.tags,
            storage=run.data.tags.get(STORAGE_TAG, ""),
            driver=run.data.tags.get(DRIVER_TAG, ""),
            artifact_uri=run.info.artifact_uri,
            dataset=run.data.params.get("dataset", ""),
            checksum=run.data.tags.get(CHECKSUM_TAG, ""),
        )

    @property
    def test_accuracy(self) -> float | None:
        """Test accuracy in %; None if the trial has diverged or not finished."""
        return self.metrics.get("test_accuracy")

    @property
    def finished(self) -> bool:
        """True if the store holds everything of the trial; a trial that diverged is finished too."""
        return self.status == "FINISHED"

    def has_other_data(self, loaded: str = "") -> bool:
        """Return whether the run trained on other data than its data set, whose checksum is `loaded` if it is there."""
        return is_other_data(self.dataset, self.checksum, loaded)


def describe_ignored(ignored: Collection[StoredRun], labels: Mapping[str, str]) -> str | None:
    """Return a line about those ignored runs that are of some trials, or None if there are none.

    Args:
        ignored: Runs that a store has ignored.
        labels: Trial id → readable name, for the trials.
    """
    runs = [run for run in ignored if run.trial_id in labels]
    if not runs:
        return None
    ids = {run.trial_id for run in runs}
    names = [label for trial_id, label in labels.items() if trial_id in ids]
    named = "; ".join([*names[:MAX_TRIALS_NAMED], *(["…"] if len(names) > MAX_TRIALS_NAMED else [])])
    differences = "; ".join(dict.fromkeys(describe_difference(run.dataset, run.checksum) for run in runs))
    count = f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}"
    return f"ignored: {count} that trained on other data than this {runs[0].dataset} ({differences}): {named}"

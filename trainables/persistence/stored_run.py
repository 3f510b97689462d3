"""A trial's run as the store holds it, and the line about runs that are ignored.

Quick to import, as it needs none of MLflow.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from trainables.checksums import describe_difference, is_other_data
from trainables.persistence.connection import (
    CHECKSUM_TAG,
    DIVERGED_TAG,
    DRIVER_TAG,
    OUTCOME_TAG,
    SECONDS_TAG,
    STACK_TAG,
    STORAGE_TAG,
    TRIAL_ID_TAG,
)
from trainables.persistence.end_state import END_TAG, EndState

if TYPE_CHECKING:
    from mlflow.entities import Run

MAX_TRIALS_NAMED = 3  # trials whose runs are ignored; an ellipsis stands for the others
# Tags that say which code, libraries and device have made a result
PROVENANCE_TAGS = (
    *("git_commit", "neural-sweeps_version", "python_version", "torch_version", "torchvision_version"),
    *("numpy_version", "ray_version", "mlflow_version", "device", "threads", "convolutions"),
)


@dataclass(frozen=True)
class StoredRun:
    """A trial's run as the store holds it.

    Attributes:
        metrics: Latest value of each metric by name: of the recorded quantities and, if the trial has finished without
            diverging, of "test_accuracy".
        provenance: Those of `PROVENANCE_TAGS` that the run has. Runs with equal ones share a mapping, as there may be
            100,000 of them.
        training_seconds: Seconds that the trial trained, its share of them if it trained in a stack; NaN if unknown.
        outcome: "unfinished", "trained", "stuck" or "diverged"; empty for runs of earlier versions.
        end: The state in which the trial ended; None for unfinished runs and for those of earlier versions.
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
    provenance: Mapping[str, str]
    training_seconds: float
    outcome: str
    end: EndState | None

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
            provenance=share_mapping(tuple((t, run.data.tags[t]) for t in PROVENANCE_TAGS if t in run.data.tags)),
            training_seconds=read_seconds(run.data.tags),
            outcome=run.data.tags.get(OUTCOME_TAG, ""),
            end=EndState.from_tag(run.data.tags.get(END_TAG, "")),
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


@cache
def share_mapping(items: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    """Return the items as a mapping, the same object for equal items."""
    return dict(items)


def read_seconds(tags: Mapping[str, str]) -> float:
    """Return the seconds that a trial trained, by its run's tags; NaN without such tags, and for damaged ones."""
    try:
        return float(tags[SECONDS_TAG]) / int(tags.get(STACK_TAG, "1"))
    except (KeyError, ValueError, ZeroDivisionError):
        return float("nan")


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

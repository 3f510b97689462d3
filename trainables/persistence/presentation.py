"""The presentation of a sweep in MLflow's UI: tags of its experiment, and tags and metrics of its parent runs.

Nothing of this is needed to go on with a sweep, and no worker writes it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from mlflow.entities import Metric, RunTag

from trainables.persistence.connection import SWEEP_TAG
from trainables.persistence.failures import raises_tracking_errors
from trainables.persistence.parent_run import ParentRun
from trainables.persistence.store import Store


class Presentation:
    """The tags and metrics of one experiment. Its methods raise `TrackingError` where the store cannot be used."""

    def __init__(self, store: Store, experiment_id: str) -> None:
        self.uri = store.uri
        self.client = store.client
        self.experiment_id = experiment_id

    @raises_tracking_errors
    def read_experiment(self) -> dict[str, str]:
        """Return all tags of the experiment."""
        return dict(self.client.get_experiment(self.experiment_id).tags)

    @raises_tracking_errors
    def write_experiment(self, tags: Mapping[str, str]) -> None:
        """Set tags of the experiment."""
        for name, value in tags.items():
            self.client.set_experiment_tag(self.experiment_id, name, value)

    @raises_tracking_errors
    def find_parents(self) -> list[ParentRun]:
        """Return the experiment's parent runs."""
        runs = self.client.search_runs([self.experiment_id], f"tags.{SWEEP_TAG} LIKE '%'")
        return [ParentRun.from_run(run) for run in runs]

    @raises_tracking_errors
    def write_parent(self, run_id: str, tags: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        """Set tags of a parent run, and its metrics that have changed: a value that it has already is not repeated."""
        has = self.client.get_run(run_id).data.metrics if metrics else {}
        now = int(time.time() * 1000)
        changed = {name: value for name, value in metrics.items() if has.get(name) != value}
        self.client.log_batch(
            run_id,
            metrics=[Metric(name, value, now, 0) for name, value in changed.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )

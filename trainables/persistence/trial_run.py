"""A trial's run in the tracking store, open for writing: each of its points is stored exactly once.

A point's timestamp follows from its step (run start + step, in milliseconds), as MLflow drops a point that is sent
again only where key, step, value and timestamp are all the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
from numpy.typing import NDArray

from trainables.persistence.artifacts import RunArtifacts
from trainables.persistence.connection import CHECKSUM_TAG, DIVERGED_TAG, OUTCOME_TAG
from trainables.persistence.failures import raises_tracking_errors
from trainables.result import Result
from trainables.trial import Trial

MAX_METRICS_PER_CALL = 1000  # MLflow's limit
RESULT_ARTIFACT = "result.npz"
MODEL_ARTIFACT = "model.pt"


class TrialRun:
    """A trial's run, open for writing.

    Its methods raise `TrackingError` where the store cannot be used, and leave a finished run as it is.

    Attributes:
        artifacts: The run's files.
        status: The run's status as it was found.
        finished: Whether the store has everything of the trial already.
        records_sent: The number of records that this process has sent. Those of an earlier process are sent again, and
            dropped by the store.
    """

    def __init__(self, client: MlflowClient, uri: str, run: Run) -> None:
        self.client = client
        self.uri = uri
        self.run_id: str = run.info.run_id
        self.start_milliseconds: int = run.info.start_time
        self.artifacts = RunArtifacts.of(uri, run)
        self.status: str = run.info.status  # as it was found
        self.finished = self.status == "FINISHED"
        self.records_sent = 0

    @raises_tracking_errors
    def begin(self, trial: Trial, parameters: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Mark the run as RUNNING, and store the trial's settings and its data set, unless the run is finished.

        Args:
            trial: The trial.
            parameters: Further parameters.
            tags: Tags, among them the checksum of the data.
        """
        if self.finished:
            return
        if self.status != "RUNNING":
            self.client.update_run(self.run_id, status="RUNNING")
        settings = {name: value for name, value in asdict(trial).items() if value not in (None, ())}
        self.client.log_batch(
            self.run_id,
            params=[Param(name, str(value)) for name, value in {**settings, **parameters}.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )
        if checksum := tags.get(CHECKSUM_TAG):
            data = Dataset(trial.dataset, checksum, source_type="local", source=json.dumps({"name": trial.dataset}))
            self.client.log_inputs(self.run_id, [DatasetInput(data, [InputTag(MLFLOW_DATASET_CONTEXT, "training")])])

    @raises_tracking_errors
    def send_records(
        self, steps: Sequence[int] | NDArray[np.int64], curves: Mapping[str, NDArray[np.floating]]
    ) -> None:
        """Send the records that have not been sent, in large batches. Call this once a checkpoint covers them.

        Args:
            steps: `(records,)` the optimiser step of each record.
            curves: Quantity → `(records,)`.
        """
        if self.finished:
            return
        points = [
            Metric(name, float(curve[record]), self.start_milliseconds + int(steps[record]), int(steps[record]))
            for record in range(self.records_sent, len(steps))
            for name, curve in curves.items()
        ]
        for first in range(0, len(points), MAX_METRICS_PER_CALL):
            self.client.log_batch(self.run_id, metrics=points[first : first + MAX_METRICS_PER_CALL])
        self.records_sent = len(steps)

    @raises_tracking_errors
    def finish(self, result: Result, last_step: int, tags: Mapping[str, str], artifacts: Path) -> None:
        """Store the result and the files in the folder `artifacts`, and mark the run as finished after all else."""
        if self.finished:
            return
        self.send_records(result.steps, result.curves)
        self.artifacts.write(artifacts)
        timestamp = self.start_milliseconds + last_step
        outcome = (
            {OUTCOME_TAG: "diverged", DIVERGED_TAG: str(last_step)} if result.diverged else {OUTCOME_TAG: "trained"}
        )
        self.client.log_batch(
            self.run_id,
            metrics=[] if result.diverged else [Metric("test_accuracy", result.test_accuracy, timestamp, last_step)],
            tags=[RunTag(name, value) for name, value in {**tags, **outcome}.items()],
        )
        self.client.set_terminated(self.run_id)

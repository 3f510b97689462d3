"""The experiment and the parent run of a sweep, which its trials' runs belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from trainables.commands import explain_uri, name_mlflow
from trainables.errors import BadInputError
from trainables.persistence.artifacts import choose_location
from trainables.persistence.connection import LAST_RUN_TAG, OPTIONS_TAG, SWEEP_TAG, get_mlflow_uri

SEPARATOR = " · "  # between the sweep and the data set in a parent run's label


@dataclass(frozen=True)
class ParentRun:
    """A parent run as the store holds it: a sweep on one data set, and the command that was last run.

    Attributes:
        sweep: Name of the sweep.
        dataset: Name of the data set.
        options: Options of the command, as JSON; None if an earlier version has run it.
        last_run: Time when the command was run, in ISO 8601; empty if an earlier version has run it.
        experiment_id: The id of its experiment.
        run_id: Its own id.
        tags: All of its tags.
    """

    sweep: str
    dataset: str
    options: str | None
    last_run: str
    experiment_id: str
    run_id: str
    tags: Mapping[str, str]

    @classmethod
    def from_run(cls, run: Run) -> ParentRun:
        """Return what MLflow's run says."""
        tags = run.data.tags
        sweep, _, dataset = tags[SWEEP_TAG].partition(SEPARATOR)
        return cls(
            sweep=sweep,
            dataset=dataset,
            options=tags.get(OPTIONS_TAG),
            last_run=tags.get(LAST_RUN_TAG, ""),
            experiment_id=run.info.experiment_id,
            run_id=run.info.run_id,
            tags=tags,
        )


def make_label(sweep: str, dataset: str) -> str:
    """Return the label of the parent run of a sweep on a data set."""
    return f"{sweep}{SEPARATOR}{dataset}"


def ensure_experiment(client: MlflowClient, uri: str, name: str) -> str:
    """Return the id of an experiment of the store at `uri`, creating it if needed.

    Raises:
        BadInputError: The experiment was deleted in the store.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            experiment = client.get_experiment(client.create_experiment(name, choose_location(uri, name)))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another driver may have just made it
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise BadInputError(
            f"the experiment '{name}' was deleted in the tracking store; restore it with: "
            f"{name_mlflow(get_mlflow_uri(uri))} experiments restore --experiment-id {experiment.experiment_id}"
            f"{explain_uri(uri)}, or use another store"
        )
    return str(experiment.experiment_id)


def ensure_parent_run(client: MlflowClient, experiment_id: str, label: str) -> Run:
    """Return the parent run with this label, creating it if needed.

    The parent run is a folder for its children. It holds no state of its own and is finished from the start, so that
    the death of a driver cannot leave it running.
    """
    oldest = find_parent_run(client, experiment_id, label)
    if oldest is not None:
        return oldest
    run = client.create_run(experiment_id, run_name=label, tags={SWEEP_TAG: label})
    client.set_terminated(run.info.run_id)
    oldest = find_parent_run(client, experiment_id, label) or run
    if oldest.info.run_id != run.info.run_id:  # another driver made one at the same moment
        client.delete_run(run.info.run_id)
    return oldest


def find_parent_run(client: MlflowClient, experiment_id: str, label: str) -> Run | None:
    """Return the oldest parent run with this label, if there is one."""
    runs = client.search_runs([experiment_id], f"tags.{SWEEP_TAG} = '{label}'")
    return min(runs, key=lambda run: (run.info.start_time, run.info.run_id), default=None)

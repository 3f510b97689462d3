"""The tracking store: finds the runs of trials and sweeps, makes them, and reads what they hold.

Every trial is one run, tagged with its trial id, below its sweep's parent run in the experiment that is named after the
sweep. A run is FINISHED only when its points, its artifacts and its test accuracy are all in the store.

Whatever goes wrong between here and the store is a `TrackingError`. Nothing here waits for a store that is unreachable:
the caller knows what can wait.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from trainables.checksums import CHECKSUMS
from trainables.errors import BadInputError
from trainables.persistence.artifacts import RunArtifacts
from trainables.persistence.connection import (
    CHECKSUM_TAG,
    DRIVER_TAG,
    OUTCOME_TAG,
    PARENT_TAG,
    STORAGE_TAG,
    SWEEP_TAG,
    TRIAL_ID_TAG,
    get_mlflow_uri,
    lock_database,
    resolve_uri,
)
from trainables.persistence.failures import convert_store_errors, raises_tracking_errors
from trainables.persistence.parent_run import (
    ParentRun,
    ensure_experiment,
    ensure_parent_run,
    find_parent_run,
    make_label,
)
from trainables.persistence.stored_run import StoredRun
from trainables.persistence.trial_run import RESULT_ARTIFACT, TrialRun
from trainables.result import Result
from trainables.trial import Trial

logging.getLogger("alembic").setLevel(logging.WARNING)  # hides messages about the schema of a new sqlite file
logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # whatever goes wrong becomes a `TrackingError`, shown once


class Store:
    """A tracking store. Its methods raise `TrackingError` where it cannot be reached, or refuses a request.

    Attributes:
        ignored: Run id → a run that was found and left out, as it trained on other data. No method returns such a run.
    """

    def __init__(self, uri: str) -> None:
        self.uri = resolve_uri(uri)
        self.ignored: dict[str, StoredRun] = {}
        with convert_store_errors(self.uri), lock_database(self.uri):
            if not self.uri.startswith("http"):
                from mlflow.store.db import utils

                utils.MAX_RETRY_COUNT = 3  # otherwise MLflow tries for minutes to open an unreachable database
            self.client = MlflowClient(get_mlflow_uri(self.uri))
            self.experiments = self._experiments()

    def _experiments(self) -> dict[str, str]:
        """Return every experiment: id → name."""
        found: dict[str, str] = {}
        token: str | None = None
        while True:
            page = self.client.search_experiments(max_results=1000, page_token=token)
            found.update({experiment.experiment_id: experiment.name for experiment in page})
            token = page.token
            if not token:
                return found

    @raises_tracking_errors
    def find_runs(self) -> dict[str, list[StoredRun]]:
        """Return the runs of all trials in all experiments, by trial id; a trial has one if all is well.

        Runs of other data are left out, and are in `ignored` afterwards.
        """
        self.experiments = self._experiments()  # another sweep may have made one
        self.ignored = {}
        found: dict[str, list[StoredRun]] = defaultdict(list)
        for run in self._search(f"tags.{TRIAL_ID_TAG} LIKE '%'"):
            found[run.data.tags[TRIAL_ID_TAG]].append(self._describe(run))
        return dict(found)

    def _describe(self, run: Run) -> StoredRun:
        return StoredRun.from_run(run, self.experiments[run.info.experiment_id])

    @raises_tracking_errors
    def read_trial(self, trial: Trial) -> Result | None:
        """Return a trial's exact result, or None if the store has no finished run of it.

        Raises:
            BadInputError: The run's artifact is missing or damaged.
        """
        runs = (self._describe(run) for run in self._search(f"tags.{TRIAL_ID_TAG} = '{trial.id}'"))
        finished = next((run for run in runs if run.finished), None)
        return None if finished is None else self.read_result(finished)

    def _search(self, condition: str, loaded: str = "") -> Iterator[Run]:
        """Yield the runs of trials for which a condition holds, and ignore those of other data.

        Args:
            condition: A condition in MLflow's language.
            loaded: The checksum of the data set that was loaded, if one was.
        """
        for run in self._search_all(condition):
            described = self._describe(run)
            if described.has_other_data(loaded):
                self.ignored[described.run_id] = described
            else:
                yield run

    def _search_all(self, condition: str) -> Iterator[Run]:
        """Yield all runs for which a condition in MLflow's language holds, page by page."""
        token: str | None = None
        while True:
            page = self.client.search_runs(list(self.experiments), condition, max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    @raises_tracking_errors
    def find_parents(self) -> list[ParentRun]:
        """Return the parent runs of all sweeps."""
        return [ParentRun.from_run(run) for run in self._search_all(f"tags.{SWEEP_TAG} LIKE '%'")]

    @raises_tracking_errors
    def ensure_parent(self, sweep: str, dataset: str) -> tuple[str, str]:
        """Return the ids of the sweep's experiment and parent run, creating them if needed.

        Raises:
            BadInputError: The experiment was deleted in the store, or its artifacts cannot be written from here.
        """
        experiment_id, run = self._ensure_parent(sweep, dataset)
        RunArtifacts.of(self.uri, run).check_writing(make_label(sweep, dataset))
        return experiment_id, run.info.run_id

    def _ensure_parent(self, sweep: str, dataset: str) -> tuple[str, Run]:
        """Return the id of the sweep's experiment and its parent run, creating them if needed."""
        experiment_id = ensure_experiment(self.client, self.uri, sweep)
        self.experiments[experiment_id] = sweep
        return experiment_id, ensure_parent_run(self.client, experiment_id, make_label(sweep, dataset))

    @raises_tracking_errors
    def tag_parent(self, sweep: str, dataset: str, tags: Mapping[str, str]) -> tuple[str, str]:
        """Set tags of the sweep's parent run, creating it if needed; return the ids of its experiment and of itself.

        Raises:
            BadInputError: The experiment was deleted in the store.
        """
        experiment_id, run = self._ensure_parent(sweep, dataset)
        self.set_tags(run.info.run_id, tags)
        return experiment_id, run.info.run_id

    @raises_tracking_errors
    def add_to_parent(self, sweep: str, dataset: str, folder: Path) -> None:
        """Add the files of a folder to the artifacts of the sweep's parent run.

        Raises:
            BadInputError: There is no parent run, or its artifacts cannot be written from here.
        """
        label = make_label(sweep, dataset)
        experiment = self.client.get_experiment_by_name(sweep)
        run = find_parent_run(self.client, experiment.experiment_id, label) if experiment else None
        if run is None:
            raise BadInputError(f"the tracking store has no parent run of {label}; run the sweep once to make it")
        artifacts = RunArtifacts.of(self.uri, run)
        artifacts.check_writing(label)
        artifacts.write(folder)

    @raises_tracking_errors
    def read_tags(self, run_id: str) -> dict[str, str]:
        """Return all tags of a run, and none for a run that does not exist."""
        try:
            return dict(self.client.get_run(run_id).data.tags)
        except MlflowException as error:
            if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                return {}
            raise

    @raises_tracking_errors
    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        self.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    @raises_tracking_errors
    def remove_tag(self, run_id: str, tag: str) -> None:
        """Remove a tag of a run."""
        self.client.delete_tag(run_id, tag)

    @raises_tracking_errors
    def open_run(
        self,
        trial: Trial,
        name: str,
        experiment_id: str,
        parent_run_id: str,
        tags: Mapping[str, str],
        *,
        run_id: str | None,
        parameters: Mapping[str, str] | None = None,
    ) -> TrialRun:
        """Return the trial's run: a finished one, else `run_id`, else another usable one or a new one.

        Args:
            trial: The trial, whose settings become the run's parameters.
            name: The readable name of a new run.
            experiment_id: The experiment of a new run.
            parent_run_id: The parent of a new run.
            tags: Tags for an unfinished run; `DRIVER_TAG` among them names the driver that trains the trial.
            run_id: The run that the trial's checkpoints have sent points to, if any.
            parameters: Parameters of the run besides the trial's settings.

        Raises:
            BadInputError: The trial has a run that another driver has marked RUNNING.
        """
        if trial.dataset in CHECKSUMS:
            tags = {CHECKSUM_TAG: CHECKSUMS[trial.dataset], **tags}
        runs = list(self._search(f"tags.{TRIAL_ID_TAG} = '{trial.id}'", tags.get(CHECKSUM_TAG, "")))
        chosen = choose_run(runs, run_id, tags.get(DRIVER_TAG))
        if chosen is None or chosen.info.status != "FINISHED":
            self._discard([run for run in runs if run is not chosen], name, tags.get(DRIVER_TAG))
        if chosen is None:
            # The UI shows tags in the order in which they were set: what people look for comes first.
            machinery = {DRIVER_TAG: "", **{tag: tags[tag] for tag in (STORAGE_TAG, DRIVER_TAG) if tag in tags}}
            for_people = {tag: text for tag, text in tags.items() if tag not in machinery}
            first_tags = {OUTCOME_TAG: "unfinished", **for_people, TRIAL_ID_TAG: trial.id, **machinery}
            first_tags[PARENT_TAG] = parent_run_id
            chosen = self.client.create_run(experiment_id, run_name=name, tags=first_tags)
        trial_run = TrialRun(self.client, self.uri, chosen)
        trial_run.begin(trial, parameters or {}, tags)
        return trial_run

    def _discard(self, runs: Sequence[Run], name: str, driver: str | None) -> None:
        """Move a trial's unusable runs to MLflow's deleted runs.

        A run with points was left by an attempt whose checkpoints are not here. The trial starts from scratch then, and
        may differ in the last bits, for example with another number of threads: old and new points must not mix.
        """
        for run in runs:
            if run.info.status == "RUNNING" and run.data.tags.get(DRIVER_TAG) != driver:
                raise BadInputError(
                    f"'{name}' trains in another sweep, with --storage {run.data.tags.get(STORAGE_TAG)} (run "
                    f"{run.info.run_id}); wait for that to end"
                )
        for run in runs:
            self.client.delete_run(run.info.run_id)

    @raises_tracking_errors
    def end_run(self, run_id: str, status: str) -> None:
        """Mark a run that has stopped training without finishing as KILLED or FAILED."""
        self.client.set_terminated(run_id, status)

    @raises_tracking_errors
    def delete_run(self, run_id: str) -> None:
        """Move a run to MLflow's deleted runs."""
        self.client.delete_run(run_id)

    def open_artifact(self, run: StoredRun, name: str) -> AbstractContextManager[Path]:
        """Find or download a file of a finished trial, and keep it for as long as the context lasts.

        Raises:
            BadInputError: The file is missing or damaged. Any error of the block that reads it is taken to mean the
                last.
        """
        return RunArtifacts(self.uri, run.run_id, run.artifact_uri).open(name, run.name)

    def read_result(self, run: StoredRun) -> Result:
        """Return the exact result of a finished trial.

        Raises:
            BadInputError: The run's artifact is missing or damaged.
        """
        with self.open_artifact(run, RESULT_ARTIFACT) as path:
            return Result.load(path)


def choose_run(runs: Sequence[Run], run_id: str | None, driver: str | None) -> Run | None:
    """Return the run of a trial to continue with: a finished one, else `run_id`, else a free one without points."""
    finished = (run for run in runs if run.info.status == "FINISHED")
    own = (run for run in runs if run.info.run_id == run_id)
    empty = (run for run in runs if not run.data.metrics)
    free = (run for run in empty if run.info.status != "RUNNING" or run.data.tags.get(DRIVER_TAG) == driver)
    return next(chain(finished, own, free), None)

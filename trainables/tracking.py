"""The one file that talks to MLflow: a trial's run, found again by trial id and written exactly once.

Every trial is one run, tagged with its trial id, below a parent run in the experiment named after the sweep. A run's
points carry timestamps that follow from the step (run start + step, in milliseconds): MLflow drops a point that is
sent again only where key, step, value and timestamp are all the same. A run is FINISHED only when its points, its
artifact and its test accuracy are all in the store.

Whatever goes wrong between here and the store is a `TrackingError`. Nothing here waits for a store that is away: who
calls knows what can wait.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from trainables.result import Result
from trainables.trial import BadInputError, Trial

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# MLflow would retry for minutes, and a trial must not wait for that long: it goes on training, and sends later.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

logging.getLogger("alembic").setLevel(logging.WARNING)  # the schema migrations of a new sqlite file
logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # what goes wrong is a `TrackingError`, and said once

TRIAL_ID = "trial_id"
SWEEP = "sweep"
STORAGE = "storage"  # host and folder that a trial resumes from
DRIVER = "driver"  # the process that runs a sweep: `<its parent run>/<its own name>`
BEAT = "driver_beat"  # of a parent run: counts up for as long as its driver lives
DIVERGED = "diverged_at_step"  # of a finished trial whose loss became NaN or infinite there
PARENT = "mlflow.parentRunId"  # MLflow's own tag, by which its UI nests runs
METRICS_PER_CALL = 1000  # MLflow's limit
ARTIFACT = "result.npz"
MODEL = "model.pt"
SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https")


@dataclass(frozen=True)
class Recorded:
    """A trial's run as the store has it."""

    trial_id: str
    run_id: str
    name: str
    status: str
    experiment: str
    test_accuracy: float | None
    diverged: bool
    storage: str
    driver: str

    @property
    def finished(self) -> bool:
        """Whether everything of the trial is in the store; a trial that diverged is finished too."""
        return self.status == "FINISHED"


def absolute(uri: str) -> str:
    """The tracking URI as any process on this machine can use it: a relative sqlite path made absolute.

    Raises:
        BadInputError: Not a URI of a database or a server.
    """
    scheme = uri.partition(":")[0].split("+")[0].lower()
    file = sqlite_file(uri)
    if scheme not in SCHEMES or (scheme == "sqlite" and file is None):
        raise BadInputError(
            f"tracking URI '{uri}' is neither a database nor a server; use sqlite:///FILE or http://HOST:PORT"
        )
    return uri if file is None else f"sqlite:///{file}"


def sqlite_file(uri: str) -> Path | None:
    """The file of a `sqlite:///FILE` URI; None for everything else."""
    prefix, _, path = uri.partition(":///")
    return Path(path).absolute() if prefix == "sqlite" and path and not set(path) & set("?:") else None


def missing_file(uri: str) -> Path | None:
    """The file of a `sqlite:///FILE` URI if it does not exist: opening the store would make it."""
    file = sqlite_file(uri)
    try:
        return file if file is not None and not file.exists() else None
    except OSError:  # a name too long to be a file's
        return file


class TrackingError(BadInputError):
    """The store cannot be reached, or refuses."""


@contextmanager
def contact(uri: str) -> Iterator[None]:
    """Turn whatever SQLAlchemy, requests and MLflow raise into `TrackingError`."""
    try:
        yield
    except BadInputError:
        raise
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip() and "autoflush" not in line]
        reason = (lines or [type(error).__name__])[0].strip()[:200]
        raise TrackingError(
            f"the tracking store {without_password(uri)} cannot be used ({reason}); start it or give it room, or name "
            "another with --tracking-uri"
        ) from None


def without_password(uri: str) -> str:
    """The URI as it may be shown."""
    return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:…@", uri)


class Contact(Protocol):
    """Something that talks to a store."""

    uri: str


C = TypeVar("C", bound=Contact)
P = ParamSpec("P")
R = TypeVar("R")


def contacting(method: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], R]:
    """Let a method raise `TrackingError` for whatever goes wrong between here and the store."""

    @wraps(method)
    def call(talker: C, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with contact(talker.uri):
            return method(talker, *args, **kwargs)

    return call


def patiently(action: Callable[[], R], seconds: float) -> R:
    """Do what needs the store, again and again for so long if the store cannot be used.

    Raises:
        TrackingError: It could not be used for all that time.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return action()
        except TrackingError:
            if time.monotonic() > deadline:
                raise
        time.sleep(2)


class Store:
    """A tracking store. Its methods raise `TrackingError` where it cannot be reached, or refuses."""

    def __init__(self, uri: str) -> None:
        self.uri = absolute(uri)
        with contact(uri):
            if not self.uri.startswith("http"):
                from mlflow.store.db import utils

                utils.MAX_RETRY_COUNT = 3  # MLflow would try to open a database that is away for minutes
            self.client = MlflowClient(self.uri)
            self.experiments = self._experiments()

    def _experiments(self) -> dict[str, str]:
        """Every experiment: id → name."""
        found: dict[str, str] = {}
        token: str | None = None
        while True:
            page = self.client.search_experiments(max_results=1000, page_token=token)
            found.update({experiment.experiment_id: experiment.name for experiment in page})
            token = page.token
            if not token:
                return found

    @contacting
    def recorded(self) -> dict[str, list[Recorded]]:
        """The runs of every trial, in whichever experiment, by trial id: one each if all is well."""
        self.experiments = self._experiments()  # another sweep may have made one
        found: dict[str, list[Recorded]] = defaultdict(list)
        for run in self._search(f"tags.{TRIAL_ID} LIKE '%'"):
            found[run.data.tags[TRIAL_ID]].append(self._recorded(run))
        return dict(found)

    def _recorded(self, run: Run) -> Recorded:
        return Recorded(
            trial_id=run.data.tags[TRIAL_ID],
            run_id=run.info.run_id,
            name=run.info.run_name or run.info.run_id,
            status=run.info.status,
            experiment=self.experiments[run.info.experiment_id],
            test_accuracy=run.data.metrics.get("test_accuracy"),
            diverged=DIVERGED in run.data.tags,
            storage=run.data.tags.get(STORAGE, ""),
            driver=run.data.tags.get(DRIVER, ""),
        )

    def reader(self) -> Callable[[Trial], Result | None]:
        """A function that gives a trial's result, or None if the store has no finished run of it now."""

        @contacting
        def finished(store: Store, trial: Trial) -> Recorded | None:
            runs = (store._recorded(run) for run in store._search(f"tags.{TRIAL_ID} = '{trial.id}'"))
            return next((run for run in runs if run.finished), None)

        def read(trial: Trial) -> Result | None:
            run = finished(self, trial)
            return None if run is None else self.read(run)

        return read

    def _search(self, condition: str) -> Iterator[Run]:
        token: str | None = None
        while True:
            page = self.client.search_runs(list(self.experiments), condition, max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    @contacting
    def parent(self, sweep: str, dataset: str) -> tuple[str, str]:
        """The ids of the sweep's experiment and of its parent run, both made if need be.

        The parent is a folder for its children and holds no state of its own, so it never stands as running.
        """
        experiment = self.client.get_experiment_by_name(sweep)
        if experiment is None:
            database = sqlite_file(self.uri)
            location = None if database is None else str(database.parent / "mlartifacts" / sweep)
            experiment_id = self.client.create_experiment(sweep, artifact_location=location)
            self.experiments[experiment_id] = sweep
        elif experiment.lifecycle_stage != "active":
            raise BadInputError(
                f"the experiment '{sweep}' was deleted in the tracking store; restore it with "
                f"'mlflow experiments restore --experiment-id {experiment.experiment_id}', or use another store"
            )
        else:
            experiment_id = experiment.experiment_id
        label = f"{sweep} · {dataset}"
        oldest = self._parent(experiment_id, label)
        if oldest is None:
            run = self.client.create_run(experiment_id, run_name=label, tags={SWEEP: label})
            self.client.set_terminated(run.info.run_id)
            oldest = self._parent(experiment_id, label) or run.info.run_id
            if oldest != run.info.run_id:  # another driver made one at the same moment
                self.client.delete_run(run.info.run_id)
        return experiment_id, oldest

    def _parent(self, experiment_id: str, label: str) -> str | None:
        """The id of the oldest parent run with this label."""
        runs = self.client.search_runs([experiment_id], f"tags.{SWEEP} = '{label}'")
        ids = [(run.info.start_time, run.info.run_id) for run in runs]
        return min(ids)[1] if ids else None

    @contacting
    def tags(self, run_id: str) -> dict[str, str]:
        """All tags of a run; none of a run that is not there."""
        try:
            return dict(self.client.get_run(run_id).data.tags)
        except MlflowException as error:
            if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                return {}
            raise

    @contacting
    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        self.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    @contacting
    def untag(self, run_id: str, tag: str) -> None:
        """Remove a tag of a run."""
        self.client.delete_tag(run_id, tag)

    @contacting
    def open(
        self,
        trial: Trial,
        name: str,
        experiment_id: str,
        parent_run_id: str,
        tags: Mapping[str, str],
        *,
        run_id: str | None,
    ) -> TrialRun:
        """The trial's run: a finished one, the one that goes on, or a new one below the parent.

        An unfinished run other than `run_id` that has points was left by an attempt whose checkpoints are not at
        hand. Trained anew, the trial may end in other last bits, with another number of threads say. So such a run
        moves to MLflow's deleted runs, and a new one takes its place.

        Args:
            run_id: The run that the trial's checkpoints have sent points to.

        Raises:
            BadInputError: A run stands as running for another sweep's driver.
        """
        runs = list(self._search(f"tags.{TRIAL_ID} = '{trial.id}'"))
        chosen = choose(runs, run_id, tags.get(DRIVER))
        if chosen is None or chosen.info.status != "FINISHED":
            others = [run for run in runs if run is not chosen]
            for run in others:
                if run.info.status == "RUNNING" and run.data.tags.get(DRIVER) != tags.get(DRIVER):
                    raise BadInputError(
                        f"'{name}' trains in another sweep, with --storage {run.data.tags.get(STORAGE)} (run "
                        f"{run.info.run_id}); wait for that to end"
                    )
            for run in others:
                self.client.delete_run(run.info.run_id)
        if chosen is None:
            tags_at_birth = {TRIAL_ID: trial.id, PARENT: parent_run_id, DRIVER: tags.get(DRIVER, "")}
            chosen = self.client.create_run(experiment_id, run_name=name, tags=tags_at_birth)
        trial_run = TrialRun(self.client, self.uri, chosen)
        if not trial_run.finished:
            if chosen.info.status != "RUNNING":
                self.client.update_run(chosen.info.run_id, status="RUNNING")
            settings = {name: value for name, value in asdict(trial).items() if value not in (None, ())}
            self.client.log_batch(
                chosen.info.run_id,
                params=[Param(name, str(value)) for name, value in settings.items()],
                tags=[RunTag(name, value) for name, value in tags.items()],
            )
        return trial_run

    @contacting
    def close(self, run_id: str, status: str) -> None:
        """Say of a run that trains no more, and has not finished, that it is KILLED or FAILED."""
        self.client.set_terminated(run_id, status)

    @contacting
    def delete(self, run_id: str) -> None:
        """Move a run to MLflow's deleted runs."""
        self.client.delete_run(run_id)

    @contextmanager
    def artifact(self, recorded: Recorded, name: str) -> Iterator[Path]:
        """A file that a finished trial left, on this machine for as long as the context lasts.

        Raises:
            BadInputError: The file is missing or damaged; errors while it is read are taken to mean that.
        """
        with tempfile.TemporaryDirectory() as folder:
            try:
                yield Path(self.client.download_artifacts(recorded.run_id, name, folder))
            except Exception as error:  # MLflow, the file system, NumPy, zlib and torch each raise their own
                raise BadInputError(
                    f"the artifact {name} of '{recorded.name}' (run {recorded.run_id}) cannot be read ({error}); "
                    "delete that run in the MLflow UI and run the sweep again"
                ) from None

    def read(self, recorded: Recorded) -> Result:
        """The exact result of a finished trial.

        Raises:
            BadInputError: The run's artifact is missing or damaged.
        """
        with self.artifact(recorded, ARTIFACT) as path:
            return Result.load(path)


def choose(runs: Sequence[Run], run_id: str | None, driver: str | None) -> Run | None:
    """Which of a trial's runs goes on: a finished one, the one of the trial's checkpoints, or one without points."""
    finished = (run for run in runs if run.info.status == "FINISHED")
    own = (run for run in runs if run.info.run_id == run_id)
    empty = (run for run in runs if not run.data.metrics)
    free = (run for run in empty if run.info.status != "RUNNING" or run.data.tags.get(DRIVER) == driver)
    return next(chain(finished, own, free), None)


class TrialRun:
    """A trial's run, open for writing."""

    def __init__(self, client: MlflowClient, uri: str, run: Run) -> None:
        self.client = client
        self.uri = uri
        self.run_id: str = run.info.run_id
        self.start_milliseconds: int = run.info.start_time
        self.finished = run.info.status == "FINISHED"
        self.written = 0  # records this process has sent; what an earlier one sent is sent again and dropped there

    @contacting
    def write(self, steps: Sequence[int] | NDArray[np.int64], curves: Mapping[str, NDArray[np.floating]]) -> None:
        """Send the records that have not been sent, in large batches. Call it once a checkpoint covers them.

        A finished run is left as it is.
        """
        if self.finished:
            return
        points = [
            Metric(name, float(curve[record]), self.start_milliseconds + int(steps[record]), int(steps[record]))
            for record in range(self.written, len(steps))
            for name, curve in curves.items()
        ]
        for first in range(0, len(points), METRICS_PER_CALL):
            self.client.log_batch(self.run_id, metrics=points[first : first + METRICS_PER_CALL])
        self.written = len(steps)

    @contacting
    def finish(self, result: Result, last_step: int, tags: Mapping[str, str], artifacts: Path) -> None:
        """Store the result and the files in the folder `artifacts`, then, at last, say that the trial is finished.

        A finished run is left as it is.
        """
        if self.finished:
            return
        self.write(result.steps, result.curves)
        self.client.log_artifacts(self.run_id, str(artifacts))
        timestamp = self.start_milliseconds + last_step
        outcome = {DIVERGED: str(last_step)} if result.diverged else {}
        self.client.log_batch(
            self.run_id,
            metrics=[] if result.diverged else [Metric("test_accuracy", result.test_accuracy, timestamp, last_step)],
            tags=[RunTag(name, value) for name, value in {**tags, **outcome}.items()],
        )
        self.client.set_terminated(self.run_id)

"""The one file that talks to MLflow: a trial's run, found again by trial id and written exactly once.

Every trial is one run, tagged with its trial id, below a parent run in the experiment named after the sweep. A run's
points carry timestamps that follow from the step (run start + step, in milliseconds): MLflow drops a point that is
sent again only where key, step, value and timestamp are all the same. A run is FINISHED only when its points, its
artifact and its test accuracy are all in the store.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from trainables.result import Result
from trainables.trial import BadInputError, Trial

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

logging.getLogger("alembic").setLevel(logging.WARNING)  # the schema migrations of a new sqlite file
logging.getLogger("mlflow").setLevel(logging.WARNING)

TRIAL_ID = "trial_id"
SWEEP = "sweep"
CHECKPOINTS = "checkpoints"  # the folder that a trial resumes from
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

    @property
    def finished(self) -> bool:
        """Whether everything of the trial is in the store; a trial that diverged is finished too."""
        return self.status == "FINISHED"


def absolute(uri: str) -> str:
    """The tracking URI as any process on this machine can use it: a relative sqlite path made absolute.

    Raises:
        BadInputError: Not a URI of a database or a server.
    """
    scheme = urlsplit(uri).scheme.split("+")[0]
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


@contextmanager
def impatient() -> Iterator[None]:
    """Let MLflow fail within seconds where it would retry for minutes: for the first contact."""
    settings = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Store:
    """A tracking store.

    Raises:
        BadInputError: The store cannot be reached.
    """

    def __init__(self, uri: str) -> None:
        self.uri = absolute(uri)
        try:
            with impatient():
                self.client = MlflowClient(self.uri)
                self.experiments = self._experiments()
        except Exception as error:  # SQLAlchemy, requests and MLflow each raise their own
            reason = str(error).strip().splitlines()[0][:200]
            raise BadInputError(
                f"cannot reach the tracking store {uri} ({reason}); start it, or name another with --tracking-uri"
            ) from None

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

    def recorded(self) -> dict[str, list[Recorded]]:
        """The runs of every trial, in whichever experiment, by trial id: one each if all is well."""
        found: dict[str, list[Recorded]] = defaultdict(list)
        for run in self._search(f"tags.{TRIAL_ID} LIKE '%'"):
            found[run.data.tags[TRIAL_ID]].append(self._recorded(run))
        return dict(found)

    def _recorded(self, run: Run) -> Recorded:
        return Recorded(
            trial_id=run.data.tags[TRIAL_ID],
            run_id=run.info.run_id,
            name=run.info.run_name,
            status=run.info.status,
            experiment=self.experiments[run.info.experiment_id],
            test_accuracy=run.data.metrics.get("test_accuracy"),
            diverged=DIVERGED in run.data.tags,
        )

    def reader(self) -> Callable[[Trial], Result | None]:
        """A function that gives a trial's result, or None if the store has no finished run of it now."""

        def read(trial: Trial) -> Result | None:
            runs = (self._recorded(run) for run in self._search(f"tags.{TRIAL_ID} = '{trial.id}'"))
            finished = next((run for run in runs if run.finished), None)
            return None if finished is None else self.read(finished)

        return read

    def _search(self, condition: str) -> Iterator[Run]:
        token: str | None = None
        while True:
            page = self.client.search_runs(list(self.experiments), condition, max_results=5000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def parent(self, sweep: str, dataset: str) -> tuple[str, str]:
        """The ids of the sweep's experiment and of its parent run, both made if need be.

        The parent is a folder for its children and holds no state of its own, so it never stands as running.
        """
        try:
            return self._parent(sweep, dataset)
        except MlflowException as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise BadInputError(
                f"cannot write to the tracking store {self.uri} ({reason}); name another with --tracking-uri"
            ) from None

    def _parent(self, sweep: str, dataset: str) -> tuple[str, str]:
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
        parents = self.client.search_runs([experiment_id], f"tags.{SWEEP} = '{label}'", max_results=1)
        if parents:
            return experiment_id, parents[0].info.run_id
        run = self.client.create_run(experiment_id, run_name=label, tags={SWEEP: label})
        self.client.set_terminated(run.info.run_id)
        return experiment_id, run.info.run_id

    def open(
        self,
        trial: Trial,
        name: str,
        experiment_id: str,
        parent_run_id: str,
        tags: Mapping[str, str],
        *,
        resumed: bool = True,
    ) -> TrialRun:
        """The trial's run: the one that is there, or a new one below the parent.

        A trial that is not resumed may compute other last bits than it did before, with another number of threads say.
        An unfinished run that has points then moves to MLflow's deleted runs, and a new one takes its place.

        Raises:
            BadInputError: Such a run stands as running for another storage folder, and may well be alive.
        """
        runs = list(self._search(f"tags.{TRIAL_ID} = '{trial.id}'"))
        run = min(runs, key=lambda found: found.info.status != "FINISHED", default=None)
        if run is not None and run.info.status != "FINISHED":
            if not run.data.metrics or resumed:
                self.client.update_run(run.info.run_id, status="RUNNING")
            elif run.info.status == "RUNNING" and run.data.tags.get(CHECKPOINTS) != tags.get(CHECKPOINTS):
                raise BadInputError(
                    f"'{name}' trains with another --storage, {run.data.tags.get(CHECKPOINTS)}, or was killed there; "
                    f"go on there, or delete its run {run.info.run_id} in the MLflow UI"
                )
            else:
                self.client.delete_run(run.info.run_id)
                run = None
        if run is None:
            run = self.client.create_run(experiment_id, run_name=name, tags={TRIAL_ID: trial.id, PARENT: parent_run_id})
        trial_run = TrialRun(self.client, run)
        if not trial_run.finished:
            settings = {name: value for name, value in asdict(trial).items() if value not in (None, ())}
            self.client.log_batch(
                run.info.run_id,
                params=[Param(name, str(value)) for name, value in settings.items()],
                tags=[RunTag(name, value) for name, value in tags.items()],
            )
        return trial_run

    def close(self, run_id: str, status: str) -> None:
        """Say of a run that trains no more, and has not finished, that it is KILLED or FAILED."""
        self.client.set_terminated(run_id, status)

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


class TrialRun:
    """A trial's run, open for writing."""

    def __init__(self, client: MlflowClient, run: Run) -> None:
        self.client = client
        self.run_id: str = run.info.run_id
        self.start_milliseconds: int = run.info.start_time
        self.finished = run.info.status == "FINISHED"
        self.written = 0  # records this process has sent; what an earlier one sent is sent again and dropped there

    def write(self, steps: Sequence[int] | NDArray[np.int64], curves: Mapping[str, NDArray[np.floating]]) -> None:
        """Send the records that have not been sent, in large batches. Call it once a checkpoint covers them."""
        points = [
            Metric(name, float(curve[record]), self.start_milliseconds + int(steps[record]), int(steps[record]))
            for record in range(self.written, len(steps))
            for name, curve in curves.items()
        ]
        for first in range(0, len(points), METRICS_PER_CALL):
            self.client.log_batch(self.run_id, metrics=points[first : first + METRICS_PER_CALL])
        self.written = len(steps)

    def finish(
        self,
        result: Result,
        last_step: int,
        tags: Mapping[str, str],
        save_model: Callable[[Path], None] | None = None,
    ) -> None:
        """Store the result, and the model if there is one, and then, at last, say that the trial is finished."""
        self.write(result.steps, result.curves)
        with tempfile.TemporaryDirectory() as folder:
            result.save(Path(folder) / ARTIFACT)
            if save_model is not None:
                save_model(Path(folder) / MODEL)
            self.client.log_artifacts(self.run_id, folder)
        timestamp = self.start_milliseconds + last_step
        outcome = {DIVERGED: str(last_step)} if result.diverged else {}
        self.client.log_batch(
            self.run_id,
            metrics=[] if result.diverged else [Metric("test_accuracy", result.test_accuracy, timestamp, last_step)],
            tags=[RunTag(name, value) for name, value in {**tags, **outcome}.items()],
        )
        self.client.set_terminated(self.run_id)

"""The way to a tracking store: its URI, its errors, retries, and the names of the tags that runs carry.

Quick to import, as it needs none of MLflow.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from trainables.errors import BadInputError, TrackingError, UserError

TRIAL_ID_TAG = "trial_id"
SWEEP_TAG = "sweep"  # on a parent run: names the sweep and the data set
STORAGE_TAG = "storage"  # host and folder that a trial resumes from
DRIVER_TAG = "driver"  # the process that runs the sweep, as `<parent run>/<name>`; on a parent run: who holds the lease
HEARTBEAT_TAG = "driver_beat"  # on a parent run: a number that its driver increases for as long as it lives
CHECKSUM_TAG = "data_checksum"  # the checksum of the raw images and labels that the trial trains on
DIVERGED_TAG = "diverged_at_step"  # on the run of a finished trial: the step where its loss became NaN or infinite
PARENT_TAG = "mlflow.parentRunId"  # MLflow's own tag, by which its UI nests runs
URI_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https")
RETRY_SECONDS = 2


@dataclass(frozen=True, kw_only=True)
class SweepContext:
    """The store and the folder of a sweep's trials, their driver, and the tags that they share.

    Attributes:
        tracking_uri: The store of the runs.
        experiment_id: The experiment of new runs.
        parent_run_id: The sweep's parent run.
        storage: The folder of checkpoints, which every node sees.
        storage_name: Host and path of `storage`, as people and other sweeps read it.
        driver: The sweep's driver, as `<parent run>/<name>`.
        tags: Tags of every trial's run: the versions of code and libraries, and the data set's checksum.
    """

    tracking_uri: str
    experiment_id: str
    parent_run_id: str
    storage: Path
    storage_name: str
    driver: str
    tags: Mapping[str, str]


def resolve_uri(uri: str) -> str:
    """Return a tracking URI that any process on this machine can use: a relative sqlite path becomes absolute.

    Raises:
        BadInputError: The text is not the URI of a database or a server.
    """
    scheme = uri.partition(":")[0].split("+")[0].lower()
    file = get_sqlite_file(uri)
    if scheme not in URI_SCHEMES or (scheme == "sqlite" and file is None):
        raise BadInputError(
            f"tracking URI '{uri}' is neither a database nor a server; use sqlite:///FILE or http://HOST:PORT"
        )
    return uri if file is None else f"sqlite:///{file}"


def get_sqlite_file(uri: str) -> Path | None:
    """Return the file of a `sqlite:///FILE` URI, and None for everything else."""
    prefix, _, path = uri.partition(":///")
    return Path(path).absolute() if prefix == "sqlite" and path and not set(path) & set("?:") else None


def get_missing_file(uri: str) -> Path | None:
    """Return the file of a `sqlite:///FILE` URI if it does not exist, and None otherwise.

    Opening the store would make the file, which a command that only looks should not do.
    """
    file = get_sqlite_file(uri)
    try:
        return file if file is not None and not file.exists() else None
    except OSError:  # a name too long to be a file's
        return file


def hide_password(uri: str) -> str:
    """Return the URI without its password."""
    return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:…@", uri)


@contextmanager
def convert_store_errors(uri: str) -> Iterator[None]:
    """Raise `TrackingError` in place of whatever SQLAlchemy, requests and MLflow raise in the block."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip() and "autoflush" not in line]
        reason = (lines or [type(error).__name__])[0].strip()[:200]
        raise TrackingError(
            f"the tracking store {hide_password(uri)} cannot be used ({reason}); start it or give it room, or name "
            "another with --tracking-uri"
        ) from None


class StoreClient(Protocol):
    """An object whose methods talk to the store at `uri`."""

    uri: str


C = TypeVar("C", bound=StoreClient)
P = ParamSpec("P")
R = TypeVar("R")


def raises_tracking_errors(method: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], R]:
    """Decorate a method to raise `TrackingError` for whatever goes wrong between here and the store."""

    @wraps(method)
    def call(client: C, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with convert_store_errors(client.uri):
            return method(client, *args, **kwargs)

    return call


def retry_for(action: Callable[[], R], seconds: float) -> R:
    """Call `action` until the store can be used, for up to `seconds` seconds, and return its result.

    Raises:
        TrackingError: The store could not be used for all that time.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return action()
        except TrackingError:
            if time.monotonic() > deadline:
                raise
        time.sleep(RETRY_SECONDS)

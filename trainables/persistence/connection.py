"""TODO."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from trainables.errors import BadInputError, TrackingError

TRIAL_ID_TAG = "trial_id"


SWEEP_TAG = "sweep"


STORAGE_TAG = "storage"  # host and folder that a trial resumes from


DRIVER_TAG = "driver"  # the process that runs a sweep: `<its parent run>/<its own name>`


HEARTBEAT_TAG = "driver_beat"  # of a parent run: counts up for as long as its driver lives


DIVERGED_TAG = "diverged_at_step"  # of a finished trial whose loss became NaN or infinite there


PARENT_TAG = "mlflow.parentRunId"  # MLflow's own tag, by which its UI nests runs


URI_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https")


def resolve_uri(uri: str) -> str:
    """The tracking URI as any process on this machine can use it: a relative sqlite path made absolute.

    Raises:
        BadInputError: Not a URI of a database or a server.
    """
    scheme = uri.partition(":")[0].split("+")[0].lower()
    file = get_sqlite_file(uri)
    if scheme not in URI_SCHEMES or (scheme == "sqlite" and file is None):
        raise BadInputError(
            f"tracking URI '{uri}' is neither a database nor a server; use sqlite:///FILE or http://HOST:PORT"
        )
    return uri if file is None else f"sqlite:///{file}"


def get_sqlite_file(uri: str) -> Path | None:
    """The file of a `sqlite:///FILE` URI; None for everything else."""
    prefix, _, path = uri.partition(":///")
    return Path(path).absolute() if prefix == "sqlite" and path and not set(path) & set("?:") else None


def get_missing_file(uri: str) -> Path | None:
    """The file of a `sqlite:///FILE` URI if it does not exist: opening the store would make it."""
    file = get_sqlite_file(uri)
    try:
        return file if file is not None and not file.exists() else None
    except OSError:  # a name too long to be a file's
        return file


@contextmanager
def convert_store_errors(uri: str) -> Iterator[None]:
    """Turn whatever SQLAlchemy, requests and MLflow raise into `TrackingError`."""
    try:
        yield
    except BadInputError:
        raise
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip() and "autoflush" not in line]
        reason = (lines or [type(error).__name__])[0].strip()[:200]
        raise TrackingError(
            f"the tracking store {hide_password(uri)} cannot be used ({reason}); start it or give it room, or name "
            "another with --tracking-uri"
        ) from None


def hide_password(uri: str) -> str:
    """The URI as it may be shown."""
    return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:…@", uri)


class StoreClient(Protocol):
    """Something that talks to a store."""

    uri: str


C = TypeVar("C", bound=StoreClient)


P = ParamSpec("P")


R = TypeVar("R")


def raises_tracking_errors(method: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], R]:
    """Let a method raise `TrackingError` for whatever goes wrong between here and the store."""

    @wraps(method)
    def call(talker: C, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with convert_store_errors(talker.uri):
            return method(talker, *args, **kwargs)

    return call


def retry_for(action: Callable[[], R], seconds: float) -> R:
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

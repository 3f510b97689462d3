"""The way to a tracking store: its URI, its lock, retries, and the names of the tags that runs carry.

Quick to import, as it needs none of MLflow.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

from filelock import FileLock, Timeout

from trainables.commands import hide_password
from trainables.errors import BadInputError, TrackingError

TRIAL_ID_TAG = "trial_id"
SWEEP_TAG = "sweep"  # on a parent run: names the sweep and the data set
STORAGE_TAG = "storage"  # host and folder that a trial resumes from
OPTIONS_TAG = "options"  # on a parent run: the options of the command that was last run, as JSON
LAST_RUN_TAG = "last_run"  # on a parent run: when that was, in ISO 8601
DRIVER_TAG = "driver"  # the process that runs the sweep, as `<parent run>/<name>`; on a parent run: who holds the lease
HEARTBEAT_TAG = "driver_beat"  # on a parent run: a number that its driver increases for as long as it lives
CHECKSUM_TAG = "data_checksum"  # the checksum of the raw images and labels that the trial trains on
SECONDS_TAG = "training_seconds"  # on the run of a finished trial: how long it trained; those of a stack share it
STACK_TAG = "stacked_trials"  # on the run of a finished trial: the number of trials of its stack
DIVERGED_TAG = "diverged_at_step"  # on the run of a finished trial: the step where its loss became NaN or infinite
OUTCOME_TAG = "outcome"  # "unfinished", "trained", "stuck" or "diverged", for searches in MLflow's UI
PARENT_TAG = "mlflow.parentRunId"  # MLflow's own tag, by which its UI nests runs
URI_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https")
RETRY_SECONDS = 2
OPENING_SECONDS = 120  # the time for another process to make or migrate a sqlite file


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
        parameters: Trial id → parameters of its run besides the trial's settings, such as the name of its model.
    """

    tracking_uri: str
    experiment_id: str
    parent_run_id: str
    storage: Path
    storage_name: str
    driver: str
    tags: Mapping[str, str]
    parameters: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def resolve_uri(uri: str) -> str:
    """Return a tracking URI that any process on this machine can use: a relative sqlite path becomes absolute.

    Raises:
        BadInputError: The text is not the URI of a database or a server, or names a file in another way than it should.
    """
    scheme = uri.partition(":")[0].split("+")[0].lower()
    file = get_sqlite_file(uri)
    if scheme not in URI_SCHEMES or (scheme == "sqlite" and file is None):
        raise BadInputError(
            f"tracking URI '{hide_password(uri)}' is neither a database nor a server; use sqlite:///FILE or "
            "http://HOST:PORT"
        )
    if file is None:
        return uri
    check_name(uri, file)
    return f"sqlite:///{file}"


def get_sqlite_file(uri: str) -> Path | None:
    """Return the file of a `sqlite:///FILE` URI, and None for everything else.

    FILE is a path as it stands, which may begin with `~`: no character of a folder's name has another meaning.
    """
    prefix, _, path = uri.partition(":///")
    if prefix != "sqlite" or not path or path == ":memory:" or "?" in path.rpartition("/")[2]:
        return None
    return Path(os.path.expanduser(path)).absolute()  # noqa: PTH111 (Path.expanduser raises for unknown users)


def check_name(uri: str, file: Path) -> None:
    """Raise `BadInputError` where a file's path is no text, or seems to have encoded characters, as in URLs."""
    try:
        str(file).encode()
    except UnicodeEncodeError:
        raise BadInputError(
            f"the path of the tracking store {str(file)!r} is not UTF-8 text; rename the folder, or name another "
            "--tracking-uri"
        ) from None
    decoded = Path(unquote(uri.partition(":///")[2]))
    with suppress(OSError):  # a name too long to be a file's
        if "%" in uri and not file.exists() and decoded.exists():
            raise BadInputError(
                f"there is no file {file}, but there is {decoded}; write the path in --tracking-uri as it is, without "
                "encoded characters, or go into the folder and use sqlite:///NAME"
            )


def get_mlflow_uri(uri: str) -> str:
    """Return a resolved URI as MLflow takes it: SQLAlchemy decodes percent signs, and cuts at a question mark.

    For an encoded path the driver is named too, as MLflow makes the folder of a plain `sqlite:///` URI undecoded.
    """
    file = get_sqlite_file(uri)
    if file is None or quote(str(file)) == str(file):
        return uri
    return f"sqlite+pysqlite:///{quote(str(file))}"


def get_missing_file(uri: str) -> Path | None:
    """Return the file of a `sqlite:///FILE` URI if it does not exist, and None otherwise.

    Opening the store would make the file, which a command that only looks should not do.

    Raises:
        BadInputError: The URI names a file in another way than it should.
    """
    file = get_sqlite_file(uri)
    try:
        if file is None or file.exists():
            return None
    except OSError:  # a name too long to be a file's
        return file
    check_name(uri, file)
    return file


@contextmanager
def lock_database(uri: str) -> Iterator[None]:
    """Hold the lock of a sqlite file, so that one process at a time makes and migrates its tables.

    Where the lock's file cannot be made, as in a folder that may only be read, the block runs without it.

    Raises:
        TrackingError: Another process has held the lock for very long.
    """
    file = get_sqlite_file(uri)
    with ExitStack() as stack:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{file.resolve()}.lock", timeout=OPENING_SECONDS)
            try:
                stack.enter_context(lock)
            except Timeout:
                raise TrackingError(
                    f"another process has been opening the tracking store {uri} for {OPENING_SECONDS} seconds; wait "
                    f"for it, or end the process that holds {lock.lock_file}"
                ) from None
            except (OSError, NotImplementedError):  # the folder is read-only, or its file system has no locks
                pass
        yield


R = TypeVar("R")


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

"""TODO."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainables.errors import BadInputError, StorageError


@contextmanager
def report_write_errors(path: Path) -> Iterator[None]:
    """Turn a failure to write into `StorageError`."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StorageError(
            f"cannot write {path} ({reason}); make room or restore access, and run the same command again"
        ) from None


def sync_folder(folder: Path) -> None:
    """Let the names of the files in a folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_folder_is_visible(storage: Path) -> None:
    """Raise `BadInputError` on a node that joined after the driver looked at all, and does not see what it made."""
    if not storage.is_dir():
        raise BadInputError(f"the node {socket.gethostname()} does not see --storage {storage}; mount it there")


def wait_for_file(path: str) -> bool:
    """Whether a file is there, or comes within the time for which a network file system may keep an old listing."""
    for _ in range(5):
        if Path(path).exists():
            return True
        time.sleep(1)
    return False

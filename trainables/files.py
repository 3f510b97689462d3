"""Atomic file writes, and checks that files and folders are visible on every node."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainables.errors import BadInputError, StorageError

# A network file system may show an old listing of a folder for some seconds.
VISIBILITY_WAIT_SECONDS = 5


@contextmanager
def convert_write_errors(path: Path) -> Iterator[None]:
    """Raise `StorageError`, naming `path`, in place of any `OSError` of the block."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StorageError(
            f"cannot write {path} ({reason}); make room or restore access, and run the same command again"
        ) from None


def write_atomically(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Write a file atomically: readers see the old file or all of `content`, never a part.

    Args:
        path: The file, in a folder that exists. Its writer must be the only one.
        content: All that the file is to hold.
        durable: Return only when the file would survive a power cut.

    Raises:
        StorageError: The file could not be written. An older one is still there.
    """
    partial = path.with_name(f"{path.name}.partial")
    with convert_write_errors(path):
        try:
            with partial.open("wb") as file:
                file.write(content)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            partial.replace(path)
            if durable:
                sync_folder(path.parent)
        except OSError:
            with suppress(OSError):  # to free the room that the partial file takes
                partial.unlink()
            raise


def sync_folder(folder: Path) -> None:
    """Wait until the names of the files in a folder would survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_folder_is_visible(storage: Path) -> None:
    """Raise `BadInputError` where this node does not see the storage folder.

    The driver checks the nodes that it finds at the start; this is for a node that joins later.
    """
    if not storage.is_dir():
        raise BadInputError(f"the node {socket.gethostname()} does not see --storage {storage}; mount it there")


def wait_for_file(path: str) -> bool:
    """Wait up to `VISIBILITY_WAIT_SECONDS` for a file, and return whether it exists."""
    for _ in range(VISIBILITY_WAIT_SECONDS):
        if Path(path).exists():
            return True
        time.sleep(1)
    return False

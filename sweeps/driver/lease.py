"""One driver at a time for a sweep: a lease on its parent run, which ends with the driver.

A living driver increases a number in a tag of the parent run: its heartbeat. Another driver that finds a lease watches
this tag for a while by its own clock. So neither clocks that differ nor a clock that jumps can make a living driver
look dead.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from trainables.errors import BadInputError, TrackingError
from trainables.persistence.connection import DRIVER_TAG, HEARTBEAT_TAG, STORAGE_TAG
from trainables.persistence.store import Store

HEARTBEAT_SECONDS = 5.0
WATCH_SECONDS = 30.0
RACE_SECONDS = 1.0  # after taking a lease, a driver reads it again: of two that took it at once, the later one keeps it


def is_alive(store: Store, driver: str) -> bool:
    """Return whether a driver still holds its lease, and its heartbeat increases within `WATCH_SECONDS`.

    Args:
        store: The store of the driver's sweep.
        driver: The driver, as `<parent run>/<name>`.
    """
    parent_run_id, _, _ = driver.partition("/")
    first = store.read_tags(parent_run_id) if parent_run_id else {}
    if first.get(DRIVER_TAG) != driver:
        return False
    deadline = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < deadline:
        time.sleep(HEARTBEAT_SECONDS / 2)
        now = store.read_tags(parent_run_id)
        if now.get(DRIVER_TAG) != driver:
            return False
        if now.get(HEARTBEAT_TAG) != first.get(HEARTBEAT_TAG):
            return True
    return False


@contextmanager
def hold_lease(store: Store, sweep: str, parent_run_id: str, storage: str, say: Callable[[str], None]) -> Iterator[str]:
    """Hold the sweep's lease while the context lasts; it yields the driver as `<parent run>/<name>`.

    Args:
        store: The store of the sweep's runs.
        sweep: The sweep's name, for messages.
        parent_run_id: The sweep's parent run.
        storage: Host and path of the storage folder, whose lock this process holds. A lease from the same folder is
            taken over, as its driver must be dead.
        say: Prints a message.

    Raises:
        BadInputError: A living driver holds the lease.
    """
    dead = None
    while (tags := store.read_tags(parent_run_id)).get(DRIVER_TAG, dead) != dead and tags.get(STORAGE_TAG) != storage:
        say(f"{sweep} has a driver with --storage {tags.get(STORAGE_TAG)}: watching for a sign of life")
        if is_alive(store, tags[DRIVER_TAG]):
            raise BadInputError(
                f"{sweep} trains already, with --storage {tags.get(STORAGE_TAG)}; wait for that to end, or stop it"
            )
        dead = tags[DRIVER_TAG]  # the lease is free, unless a third driver has taken it meanwhile
    driver = f"{parent_run_id}/{uuid.uuid4().hex[:12]}"
    store.set_tags(parent_run_id, {DRIVER_TAG: driver, STORAGE_TAG: storage, HEARTBEAT_TAG: "0"})
    time.sleep(RACE_SECONDS)
    if store.read_tags(parent_run_id).get(DRIVER_TAG) != driver:
        raise BadInputError(f"{sweep} was started twice at the same moment; the other one continues")
    ended = threading.Event()
    thread = threading.Thread(target=send_heartbeats, args=(store, driver, ended, say), daemon=True)
    thread.start()
    try:
        yield driver
    finally:
        ended.set()
        thread.join()
        with suppress(TrackingError):
            if store.read_tags(parent_run_id).get(DRIVER_TAG) == driver:
                store.remove_tag(parent_run_id, DRIVER_TAG)


def send_heartbeats(store: Store, driver: str, ended: threading.Event, say: Callable[[str], None]) -> None:
    """Send heartbeats until `ended` is set, and stop the driver if its lease is lost.

    While the store is unreachable, heartbeats are skipped.
    """
    parent_run_id, _, _ = driver.partition("/")
    count = 0
    while not ended.wait(HEARTBEAT_SECONDS):
        count += 1
        with suppress(TrackingError):
            if store.read_tags(parent_run_id).get(DRIVER_TAG) != driver:
                say("another driver has taken over this sweep: stopping")
                os.kill(os.getpid(), signal.SIGINT)
                return
            store.set_tags(parent_run_id, {HEARTBEAT_TAG: str(count)})

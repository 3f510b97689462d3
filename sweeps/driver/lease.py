"""One driver at a time for a sweep: a claim on its parent run that dies with its driver.

A driver that lives counts up a tag of its parent run. Whoever meets a claim watches that tag for a while by its own
clock, so that neither clocks that differ nor a clock that jumps can make a living driver look dead.
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


RACE_SECONDS = 1.0  # two drivers that claim at the same moment each read again after this time: the later one stays


def is_alive(store: Store, driver: str) -> bool:
    """Whether a driver, `<parent run>/<name>`, lives: its claim stands, and its beat goes on within `WATCH_SECONDS`."""
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
    """Claim the sweep for as long as the context lasts; the driver's name.

    Args:
        store: Where the sweep's runs are.
        sweep: Its name, for messages.
        parent_run_id: Of the sweep.
        storage: Host and folder. Who holds the lock of this folder may take over a claim from it: its owner is dead.
        say: Tells the person who waits what for.

    Raises:
        BadInputError: A living driver has claimed the sweep.
    """
    dead = None
    while (tags := store.read_tags(parent_run_id)).get(DRIVER_TAG, dead) != dead and tags.get(STORAGE_TAG) != storage:
        say(f"{sweep} is claimed with --storage {tags.get(STORAGE_TAG)}: watching for a sign of life")
        if is_alive(store, tags[DRIVER_TAG]):
            raise BadInputError(
                f"{sweep} trains already, with --storage {tags.get(STORAGE_TAG)}; wait for that to end, or stop it"
            )
        dead = tags[DRIVER_TAG]  # unless yet another driver has claimed the sweep meanwhile, the way is free
    driver = f"{parent_run_id}/{uuid.uuid4().hex[:12]}"
    store.set_tags(parent_run_id, {DRIVER_TAG: driver, STORAGE_TAG: storage, HEARTBEAT_TAG: "0"})
    time.sleep(RACE_SECONDS)
    if store.read_tags(parent_run_id).get(DRIVER_TAG) != driver:
        raise BadInputError(f"{sweep} was started twice at the same moment; the other one goes on")
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
    """Count up the beat until the end; a store that is away misses some. Stop the driver if its claim is lost."""
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

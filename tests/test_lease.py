from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any

import pytest

from sweeps.driver import lease
from sweeps.driver.lease import hold_lease, is_alive
from trainables.errors import BadInputError, TrackingError
from trainables.persistence.connection import DRIVER_TAG, HEARTBEAT_TAG, STORAGE_TAG
from trainables.persistence.store import Store


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.6)
    monkeypatch.setattr(lease, "RACE_SECONDS", 0.0)


@pytest.fixture
def parent(store: Store) -> str:
    return store.ensure_parent("part3", "digits")[1]


@pytest.fixture
def messages() -> list[str]:
    return []


def test_a_lease_lasts_as_long_as_its_context(store: Store, parent: str, messages: list[str]) -> None:
    with hold_lease(store, "part3", parent, "here", messages.append) as driver:
        assert is_alive(store, driver)
    assert not is_alive(store, driver)
    assert messages == []


def test_a_second_driver_is_refused_while_the_first_one_lives(store: Store, parent: str, messages: list[str]) -> None:
    with (
        hold_lease(store, "part3", parent, "here", messages.append),
        pytest.raises(BadInputError, match="part3 trains already, with --storage here"),
        hold_lease(store, "part3", parent, "there", messages.append),
    ):
        pass
    assert "watching for a sign of life" in messages[0]


def test_a_lease_of_a_dead_driver_is_taken_over(store: Store, parent: str, messages: list[str]) -> None:
    store.set_tags(parent, {DRIVER_TAG: f"{parent}/dead", STORAGE_TAG: "here", HEARTBEAT_TAG: "7"})
    assert not is_alive(store, f"{parent}/dead")
    with hold_lease(store, "part3", parent, "there", messages.append) as driver:
        assert driver != f"{parent}/dead"


@pytest.mark.parametrize("driver", ["", "x", "0123456789abcdef/x"])
def test_a_driver_whose_parent_run_is_missing_is_dead(driver: str, store: Store) -> None:
    assert not is_alive(store, driver)


def test_a_lease_that_changes_hands_while_it_is_watched_is_watched_again(
    store: Store, parent: str, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a driver watches the lease of a dead one, the dead driver's command is started again."""
    store.set_tags(parent, {DRIVER_TAG: f"{parent}/dead", STORAGE_TAG: "here", HEARTBEAT_TAG: "7"})
    with ExitStack() as stack:

        def restart(store: Store, driver: str) -> bool:
            monkeypatch.setattr(lease, "is_alive", is_alive)
            stack.enter_context(hold_lease(store, "part3", parent, "here", messages.append))
            return False

        monkeypatch.setattr(lease, "is_alive", restart)
        with (
            pytest.raises(BadInputError, match="trains already, with --storage here"),
            hold_lease(store, "part3", parent, "there", messages.append),
        ):
            pass


def test_a_lease_from_the_same_storage_is_taken_over_without_watching(
    store: Store, parent: str, messages: list[str]
) -> None:
    store.set_tags(parent, {DRIVER_TAG: f"{parent}/dead", STORAGE_TAG: "here", HEARTBEAT_TAG: "7"})
    with hold_lease(store, "part3", parent, "here", messages.append):
        assert messages == []


def test_of_two_drivers_started_at_the_same_moment_one_is_refused(
    store: Store, parent: str, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each driver writes its lease before it sees that of the other."""
    other = f"{parent}/other"
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: store.set_tags(parent, {DRIVER_TAG: other}))
    with (
        pytest.raises(BadInputError, match="started twice at the same moment"),
        hold_lease(store, "part3", parent, "here", messages.append),
    ):
        pass
    assert store.read_tags(parent)[DRIVER_TAG] == other


def test_a_driver_that_lost_its_lease_stops(store: Store, parent: str, messages: list[str]) -> None:
    """Another driver has taken over, for example while this one slept for longer than others watch."""

    def keep_lease() -> None:
        with hold_lease(store, "part3", parent, "here", messages.append):
            store.set_tags(parent, {DRIVER_TAG: f"{parent}/other"})
            threading.Event().wait(10)

    with pytest.raises(KeyboardInterrupt):
        keep_lease()
    assert "taken over" in messages[0]
    assert store.read_tags(parent)[DRIVER_TAG] == f"{parent}/other"


def test_a_driver_that_misses_heartbeats_while_the_store_is_away_stays_alive(
    store: Store, parent: str, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_tags, answers = store.set_tags, iter([TrackingError("away")] * 3)

    def flaky(*words: Any) -> None:
        for error in answers:
            raise error
        set_tags(*words)

    with hold_lease(store, "part3", parent, "here", messages.append) as driver:
        monkeypatch.setattr(store, "set_tags", flaky)
        assert is_alive(store, driver)

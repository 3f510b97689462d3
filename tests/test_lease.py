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
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.6)
    monkeypatch.setattr(lease, "RACE_SECONDS", 0.0)


@pytest.fixture
def parent(store: Store) -> str:
    return store.ensure_parent("part3", "digits")[1]


@pytest.fixture
def said() -> list[str]:
    return []


def test_a_claim_lives_as_long_as_its_context(store: Store, parent: str, said: list[str]) -> None:
    with hold_lease(store, "part3", parent, "here", said.append) as driver:
        assert is_alive(store, driver)
    assert not is_alive(store, driver)
    assert said == []


def test_a_second_driver_says_so(store: Store, parent: str, said: list[str]) -> None:
    with (
        hold_lease(store, "part3", parent, "here", said.append),
        pytest.raises(BadInputError, match="part3 trains already, with --storage here"),
        hold_lease(store, "part3", parent, "there", said.append),
    ):
        pass
    assert "watching for a sign of life" in said[0]


def test_a_dead_drivers_claim_expires(store: Store, parent: str, said: list[str]) -> None:
    store.set_tags(parent, {DRIVER_TAG: f"{parent}/dead", STORAGE_TAG: "here", HEARTBEAT_TAG: "7"})
    assert not is_alive(store, f"{parent}/dead")
    with hold_lease(store, "part3", parent, "there", said.append) as driver:
        assert driver != f"{parent}/dead"


@pytest.mark.parametrize("driver", ["", "x", "0123456789abcdef/x"])
def test_a_driver_of_a_run_that_is_not_there_is_dead(driver: str, store: Store) -> None:
    assert not is_alive(store, driver)


def test_a_claim_that_changes_hands_while_it_is_watched_is_watched_again(
    store: Store, parent: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one driver watches a dead one's claim, the dead one's command is started again."""
    store.set_tags(parent, {DRIVER_TAG: f"{parent}/dead", STORAGE_TAG: "here", HEARTBEAT_TAG: "7"})
    with ExitStack() as stack:

        def restart(store: Store, driver: str) -> bool:
            monkeypatch.setattr(lease, "is_alive", is_alive)
            stack.enter_context(hold_lease(store, "part3", parent, "here", said.append))
            return False

        monkeypatch.setattr(lease, "is_alive", restart)
        with (
            pytest.raises(BadInputError, match="trains already, with --storage here"),
            hold_lease(store, "part3", parent, "there", said.append),
        ):
            pass


def test_who_holds_the_storage_need_not_watch(store: Store, parent: str, said: list[str]) -> None:
    store.set_tags(parent, {DRIVER_TAG: f"{parent}/dead", STORAGE_TAG: "here", HEARTBEAT_TAG: "7"})
    with hold_lease(store, "part3", parent, "here", said.append):
        assert said == []


def test_of_two_that_start_at_the_same_moment_one_goes_on(
    store: Store, parent: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each writes its claim before it sees the other's."""
    other = f"{parent}/other"
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: store.set_tags(parent, {DRIVER_TAG: other}))
    with (
        pytest.raises(BadInputError, match="started twice at the same moment"),
        hold_lease(store, "part3", parent, "here", said.append),
    ):
        pass
    assert store.read_tags(parent)[DRIVER_TAG] == other


def test_a_driver_that_lost_its_lease_stops(store: Store, parent: str, said: list[str]) -> None:
    """Asleep for longer than others watch, say: another one has taken over."""

    def sleep() -> None:
        with hold_lease(store, "part3", parent, "here", said.append):
            store.set_tags(parent, {DRIVER_TAG: f"{parent}/other"})
            threading.Event().wait(10)

    with pytest.raises(KeyboardInterrupt):
        sleep()
    assert "taken over" in said[0]
    assert store.read_tags(parent)[DRIVER_TAG] == f"{parent}/other"


def test_a_store_that_is_away_costs_heartbeats_only(
    store: Store, parent: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tag, answers = store.set_tags, iter([TrackingError("away")] * 3)

    def flaky(*words: Any) -> None:
        for error in answers:
            raise error
        tag(*words)

    with hold_lease(store, "part3", parent, "here", said.append) as driver:
        monkeypatch.setattr(store, "set_tags", flaky)
        assert is_alive(store, driver)

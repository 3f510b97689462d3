from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any

import pytest

from sweeps import claim
from sweeps.claim import alive, claimed
from trainables.tracking import BEAT, DRIVER, STORAGE, Store, TrackingError
from trainables.trial import BadInputError


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(claim, "WATCH_SECONDS", 0.6)
    monkeypatch.setattr(claim, "RACE_SECONDS", 0.0)


@pytest.fixture
def parent(store: Store) -> str:
    return store.parent("part3", "digits")[1]


@pytest.fixture
def said() -> list[str]:
    return []


def test_a_claim_lives_as_long_as_its_context(store: Store, parent: str, said: list[str]) -> None:
    with claimed(store, "part3", parent, "here", said.append) as driver:
        assert alive(store, driver)
    assert not alive(store, driver)
    assert said == []


def test_a_second_driver_says_so(store: Store, parent: str, said: list[str]) -> None:
    with (
        claimed(store, "part3", parent, "here", said.append),
        pytest.raises(BadInputError, match="part3 trains already, with --storage here"),
        claimed(store, "part3", parent, "there", said.append),
    ):
        pass
    assert "watching for a sign of life" in said[0]


def test_a_dead_drivers_claim_expires(store: Store, parent: str, said: list[str]) -> None:
    store.tag(parent, {DRIVER: f"{parent}/dead", STORAGE: "here", BEAT: "7"})
    assert not alive(store, f"{parent}/dead")
    with claimed(store, "part3", parent, "there", said.append) as driver:
        assert driver != f"{parent}/dead"


@pytest.mark.parametrize("driver", ["", "x", "0123456789abcdef/x"])
def test_a_driver_of_a_run_that_is_not_there_is_dead(driver: str, store: Store) -> None:
    assert not alive(store, driver)


def test_a_claim_that_changes_hands_while_it_is_watched_is_watched_again(
    store: Store, parent: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one driver watches a dead one's claim, the dead one's command is started again."""
    store.tag(parent, {DRIVER: f"{parent}/dead", STORAGE: "here", BEAT: "7"})
    with ExitStack() as stack:

        def restart(store: Store, driver: str) -> bool:
            monkeypatch.setattr(claim, "alive", alive)
            stack.enter_context(claimed(store, "part3", parent, "here", said.append))
            return False

        monkeypatch.setattr(claim, "alive", restart)
        with (
            pytest.raises(BadInputError, match="trains already, with --storage here"),
            claimed(store, "part3", parent, "there", said.append),
        ):
            pass


def test_who_holds_the_storage_need_not_watch(store: Store, parent: str, said: list[str]) -> None:
    store.tag(parent, {DRIVER: f"{parent}/dead", STORAGE: "here", BEAT: "7"})
    with claimed(store, "part3", parent, "here", said.append):
        assert said == []


def test_of_two_that_start_at_the_same_moment_one_goes_on(
    store: Store, parent: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each writes its claim before it sees the other's."""
    other = f"{parent}/other"
    monkeypatch.setattr(claim.time, "sleep", lambda seconds: store.tag(parent, {DRIVER: other}))
    with (
        pytest.raises(BadInputError, match="started twice at the same moment"),
        claimed(store, "part3", parent, "here", said.append),
    ):
        pass
    assert store.tags(parent)[DRIVER] == other


def test_a_driver_that_lost_its_claim_stops(store: Store, parent: str, said: list[str]) -> None:
    """Asleep for longer than others watch, say: another one has taken over."""

    def sleep() -> None:
        with claimed(store, "part3", parent, "here", said.append):
            store.tag(parent, {DRIVER: f"{parent}/other"})
            threading.Event().wait(10)

    with pytest.raises(KeyboardInterrupt):
        sleep()
    assert "taken over" in said[0]
    assert store.tags(parent)[DRIVER] == f"{parent}/other"


def test_a_store_that_is_away_costs_beats_only(
    store: Store, parent: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tag, answers = store.tag, iter([TrackingError("away")] * 3)

    def flaky(*words: Any) -> None:
        for error in answers:
            raise error
        tag(*words)

    with claimed(store, "part3", parent, "here", said.append) as driver:
        monkeypatch.setattr(store, "tag", flaky)
        assert alive(store, driver)

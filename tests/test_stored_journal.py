"""The journal of a search in the tracking store."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainables.persistence.store import Store
from trainables.persistence.stored_journal import StoredJournal

NAME = "search/0123/round-0000.json"


def open_journal(folder: Path, *, writing: bool = True) -> StoredJournal:
    return StoredJournal(Store(f"sqlite:///{folder}/mlflow.db"), "search", "digits", writing=writing)


def test_what_is_added_is_read_by_the_next_process_and_is_of_one_data_set(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    assert journal.read(NAME) is None
    journal.add(NAME, "first")
    assert journal.read(NAME) == "first"
    assert journal.read("search/0123/round-0001.json") is None
    again = open_journal(tmp_path)
    assert again.read(NAME) == "first"
    again.add("search/0123/round-0001.json", "second")
    assert again.read("search/0123/round-0001.json") == "second"
    other = StoredJournal(again.store, "search", "mnist", writing=True)
    assert other.read(NAME) is None


def test_a_command_that_only_looks_keeps_nothing(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, writing=False)
    journal.add(NAME, "first")
    assert journal.read(NAME) is None
    assert journal.store.find_parents() == []


def test_a_process_that_dies_while_it_writes_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = open_journal(tmp_path)
    journal.store.ensure_parent("search", "digits")

    def die(source: str, target: str) -> None:
        Path(target).write_text("fir", encoding="utf-8")
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("shutil.copyfile", die)
        with pytest.raises(KeyboardInterrupt):
            journal.store.add_to_parent("search", "digits", write(tmp_path / "new"))
    assert open_journal(tmp_path).read(NAME) is None
    journal.add(NAME, "first")
    assert open_journal(tmp_path).read(NAME) == "first"


def write(folder: Path) -> Path:
    """Return a folder that holds the first round's file."""
    (folder / NAME).parent.mkdir(parents=True)
    (folder / NAME).write_text("first", encoding="utf-8")
    return folder

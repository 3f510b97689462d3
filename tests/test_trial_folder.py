from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_trial
from hypothesis import given
from hypothesis import strategies as st

from trainables import files
from trainables.errors import BadInputError, StorageError
from trainables.persistence import trial_folder
from trainables.persistence.trial_folder import TrialFolder


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    folder = TrialFolder(tmp_path, make_trial())
    folder.path.mkdir(parents=True)
    return folder


def list_files(folder: TrialFolder) -> list[str]:
    return sorted(path.name for path in folder.path.iterdir())


def test_the_two_newest_checkpoints_are_kept(folder: TrialFolder) -> None:
    for step in (1, 20, 300):
        folder.write_checkpoint(step, {"step": step})
    assert list_files(folder) == ["000000020.checkpoint", "000000300.checkpoint"]
    content = folder.read_newest_checkpoint()
    assert content is not None
    assert content["step"] == 300


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[:-50])
    elif how == "a bit flipped":
        path.write_bytes(content[:-50] + bytes([content[-50] ^ 4]) + content[-49:])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "foreign":
        other = TrialFolder(path.parent.parent.parent, make_trial(seed=7))
        other.path.mkdir(parents=True)
        other.write_checkpoint(1, {"step": 1})
        path.write_bytes((other.path / "000000001.checkpoint").read_bytes())
    elif how == "a pickle":
        torch.save({"trial_id": print}, path)
    else:
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize("how", ["truncated", "a bit flipped", "empty", "foreign", "a pickle", "a folder"])
def test_after_a_damaged_checkpoint_the_one_before_is_read(how: str, folder: TrialFolder) -> None:
    folder.remember_run("abc")
    folder.write_checkpoint(1, {"step": 1})
    folder.write_checkpoint(2, {"step": 2})
    damage(folder.path / "000000002.checkpoint", how)
    content = folder.read_newest_checkpoint()
    assert content is not None
    assert content["step"] == 1
    assert folder.run_id is None  # the run's points may differ in their last bits from those to come
    [note] = folder.notes
    assert "000000002.checkpoint could not be used" in note
    folder.read_newest_checkpoint()
    assert len(folder.notes) == 1  # the damaged file was set aside, and is reported once


def test_a_damaged_result_is_set_aside(folder: TrialFolder) -> None:
    folder.remember_run("abc")
    folder.write_result({"value": 3})
    damage(folder.path / "result.checkpoint", "truncated")
    assert folder.read_result() is None
    assert not folder.has_result
    assert folder.run_id is None
    assert len(folder.notes) == 1


@given(position=st.integers(min_value=0), bit=st.integers(min_value=0, max_value=7))
def test_no_flipped_bit_goes_unseen(position: int, bit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = TrialFolder(tmp_path_factory.mktemp("storage"), make_trial())
    folder.path.mkdir(parents=True)
    folder.write_checkpoint(1, {"step": 1})
    path = folder.path / "000000001.checkpoint"
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1 << bit
    path.write_bytes(content)
    assert folder.read_newest_checkpoint() is None


def test_a_write_that_fails_leaves_the_checkpoint_before(folder: TrialFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write_checkpoint(1, {"step": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot write .*000000002\.checkpoint \(No space left on device\)"):
        folder.write_checkpoint(2, {"step": 2})
    assert list_files(folder) == ["000000001.checkpoint"]


def test_a_file_in_place_of_the_folder_is_reported(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path, make_trial())
    folder.path.parent.mkdir()
    folder.path.touch()
    with pytest.raises(StorageError, match="cannot write"), folder.lock():
        pass
    assert folder.notes == []
    assert not folder.has_result


def test_partial_files_of_a_dead_writer_are_removed(folder: TrialFolder) -> None:
    (folder.path / "000000002.checkpoint.partial").touch()
    with folder.lock():
        assert list_files(folder) == ["lock"]


def start_holder(target: Callable[..., None], path: Path) -> tuple[Any, Any]:
    """Start a process that holds the trial's folder; return it once it does, with the event that lets it go on."""
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=target, args=(path, make_trial(), held, release))
    process.start()
    assert held.wait(30)
    return process, release


def hold_and_remove(path: Path, trial: Any, held: Any, release: Any) -> None:
    folder = TrialFolder(path, trial)
    with folder.lock():
        held.set()
        release.wait(30)
        folder.remove()


def test_a_folder_that_its_holder_removes_can_still_be_locked(tmp_path: Path) -> None:
    process, release = start_holder(hold_and_remove, tmp_path)
    folder = TrialFolder(tmp_path, make_trial())
    threading.Timer(0.5, release.set).start()
    with folder.lock():
        assert list_files(folder) == ["lock"]
    process.join()


def hold(path: Path, trial: Any, held: Any, release: Any) -> None:
    with TrialFolder(path, trial).lock():
        held.set()
        release.wait(30)


def test_one_process_at_a_time_holds_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process, _ = start_holder(hold, tmp_path)
    folder = TrialFolder(tmp_path, make_trial())
    monkeypatch.setattr(trial_folder, "LOCK_WAIT_SECONDS", 0.2)
    with pytest.raises(BadInputError, match="another process trains in"), folder.lock():
        pass
    process.kill()  # a dead process holds nothing
    process.join()
    with folder.lock():
        pass


def test_starts_are_counted_by_driver_until_a_checkpoint(folder: TrialFolder) -> None:
    assert [folder.record_start("a"), folder.record_start("a"), folder.record_start("b")] == [1, 2, 1]
    folder.write_checkpoint(1, {})
    assert folder.record_start("b") == 1


def test_a_result_is_kept_until_removed(folder: TrialFolder) -> None:
    assert not folder.has_result
    assert folder.read_result() is None
    folder.write_result({"value": 3})
    assert folder.has_result
    content = folder.read_result()
    assert content is not None
    assert content["value"] == 3
    folder.remove()
    assert not folder.path.exists()

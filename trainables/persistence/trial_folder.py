"""What a trial keeps on disk until the tracking store has its result: a folder a trial, named by its id.

    <storage>/trials/<trial id>/
        lock                  held by the process that trains the trial
        <step>.checkpoint     all that decides its future; the two newest are kept
        result.checkpoint     a trained trial's result, until the store has it
        run_id                the tracking run that points of this folder's checkpoints have gone to
        starts                how often the trial was started since its last checkpoint
        notes.txt, error.txt  what a person should know of it

A checkpoint is a SHA-256 digest followed by what `torch.save` writes, so that no damage goes unseen: `torch.load`
alone does not notice a flipped bit. Files appear under their names whole or not at all.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from trainables.errors import BadInputError
from trainables.files import report_write_errors, sync_folder
from trainables.trial import Trial

CHECKPOINTS_KEPT = 2  # checkpoints: the newest, and the one before in case the newest turns out to be damaged


DIGEST_BYTES = 32


RESULT_FILE = "result.checkpoint"


# A process whose node is gone may hold its lock on a shared file system until the server's lease ends (NFS: 90 s).
LOCK_WAIT_SECONDS = 120.0


class TrialFolder:
    """A trial's folder below `storage`."""

    def __init__(self, storage: Path, trial: Trial) -> None:
        self.path = storage / "trials" / trial.id
        self.trial = trial

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder alone; a process that was told to die may take a moment to let go of it.

        Raises:
            BadInputError: Another process trains the trial.
            StorageError: The folder cannot be written.
        """
        with report_write_errors(self.path):
            lock = FileLock(self.path / "lock", timeout=LOCK_WAIT_SECONDS)
            while not lock.is_locked:
                self.path.mkdir(parents=True, exist_ok=True)
                try:
                    lock.acquire()
                except Timeout:
                    raise BadInputError(f"another process trains in {self.path}; wait for it, or end it") from None
                except FileNotFoundError:
                    continue  # whoever held the lock has finished, and removed the folder
                if not (self.path / "lock").exists():  # the same, a moment later
                    lock.release()
            for partial in self.path.glob("*.partial"):  # its writer died
                partial.unlink()
        try:
            yield
        finally:
            lock.release()

    def write_checkpoint(self, step: int, content: dict[str, Any]) -> None:
        """Write the checkpoint of a step, and remove those but the newest two.

        Raises:
            StorageError: It could not be written; those before are still there.
        """
        self._write(f"{step:09d}.checkpoint", content)
        with report_write_errors(self.path):
            for old in self._checkpoints()[CHECKPOINTS_KEPT:]:
                old.unlink()
            (self.path / "starts").unlink(missing_ok=True)

    def read_newest_checkpoint(self) -> dict[str, Any] | None:
        """What the newest usable checkpoint holds; None if there is none.

        Where a newer one is damaged, points that it covered may be in the store, and training again from an older one
        may end in other last bits: the folder then forgets its run, so that a new one takes its place.
        """
        for path in self._checkpoints():
            content = self._read(path)
            if content is not None:
                return content
            self.forget_run()
        return None

    def write_result(self, content: dict[str, Any]) -> None:
        """Write what a trained trial leaves.

        Raises:
            StorageError: It could not be written.
        """
        self._write(RESULT_FILE, content)

    def read_result(self) -> dict[str, Any] | None:
        """What `write_result` kept; None if it is not there or damaged. Damage has the consequences of `newest`."""
        if not self.has_result:
            return None
        content = self._read(self.path / RESULT_FILE)
        if content is None:
            self.forget_run()
        return content

    @property
    def has_result(self) -> bool:
        """Whether a result is kept here."""
        return (self.path / RESULT_FILE).exists()

    def remove(self) -> None:
        """Remove the folder and all in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    @property
    def run_id(self) -> str | None:
        """The run that this folder's points go to."""
        return self._text("run_id") or None

    def remember_run(self, run_id: str) -> None:
        """Bind the folder to a run, before the first of its points is sent."""
        if self.run_id != run_id:
            self._replace("run_id", run_id.encode())

    def forget_run(self) -> None:
        """Bind the folder to no run."""
        with report_write_errors(self.path):
            (self.path / "run_id").unlink(missing_ok=True)

    def read_starts(self, driver: str) -> int:
        """How often a driver has started the trial since its last checkpoint."""
        words = self._text("starts").split()
        return int(words[1]) if len(words) == 2 and words[0] == driver and words[1].isdigit() else 0

    def record_start(self, driver: str) -> int:
        """Count a start of the trial by a driver; how many there were since its last checkpoint, with this one."""
        starts = self.read_starts(driver) + 1
        if starts == 1:
            (self.path / "error.txt").unlink(missing_ok=True)
        self._replace("starts", f"{driver} {starts}".encode())
        return starts

    def reset_starts(self) -> None:
        """Count the next start as the first."""
        with suppress(OSError):
            (self.path / "starts").unlink(missing_ok=True)

    def add_note(self, text: str) -> None:
        """Keep a sentence for the person who runs the sweep, as far as there is room for it."""
        with suppress(OSError), (self.path / "notes.txt").open("a") as file:
            file.write(text + "\n")

    @property
    def notes(self) -> list[str]:
        """The different sentences kept, in order."""
        return list(dict.fromkeys(self._text("notes.txt").splitlines()))

    def write_error(self, traceback: str) -> None:
        """Keep the traceback of what ended the trial."""
        with suppress(OSError):
            (self.path / "error.txt").write_text(traceback)

    def describe_last_error(self) -> str:
        """What ended the trial the last time, and where to read more of it."""
        lines = self._text("error.txt").strip().splitlines()
        return f"{lines[-1]} (see {self.path / 'error.txt'})" if lines else "its process was killed"

    def _checkpoints(self) -> list[Path]:
        """The newest first."""
        return sorted(self.path.glob("[0-9]*.checkpoint"), reverse=True)

    def _text(self, name: str) -> str:
        try:
            return (self.path / name).read_text(errors="replace")
        except OSError:  # mostly, because it is not there
            return ""

    def _write(self, name: str, content: dict[str, Any]) -> None:
        import torch

        buffer = io.BytesIO()
        torch.save({**content, "trial_id": self.trial.id}, buffer)
        payload = buffer.getvalue()
        self._replace(name, hashlib.sha256(payload).digest() + payload, durable=True)

    def _replace(self, name: str, content: bytes, *, durable: bool = False) -> None:
        """Put a file in place, whole; a durable one outlives a power cut."""
        partial = self.path / f"{name}.partial"
        with report_write_errors(self.path / name):
            try:
                with partial.open("wb") as file:
                    file.write(content)
                    if durable:
                        file.flush()
                        os.fsync(file.fileno())
                partial.replace(self.path / name)
                if durable:
                    sync_folder(self.path)
            except OSError:
                with suppress(OSError):  # it takes up room that is needed
                    partial.unlink()
                raise

    def _read(self, path: Path) -> dict[str, Any] | None:
        """A checkpoint's content; a file that cannot be used is set aside, and noted."""
        import torch  # takes seconds; a rerun that finds nothing to do needs none of it

        try:
            raw = path.read_bytes()
            digest, payload = raw[:DIGEST_BYTES], raw[DIGEST_BYTES:]
            if hashlib.sha256(payload).digest() != digest:
                raise ValueError("it is damaged or not a checkpoint")
            content: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
            if content["trial_id"] != self.trial.id:
                raise ValueError(f"it belongs to trial {content['trial_id']}")
        except FileNotFoundError:
            return None
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
            self.add_note(f"{path} could not be used ({error}): the trial went on from what it had before")
            with suppress(OSError):
                path.replace(path.with_suffix(".unusable"))
            return None
        return content

"""A trial's folder: what is kept on disk until the tracking store has the trial's result.

    <storage>/trials/<trial id>/
        lock                  held by the process that trains the trial
        <step>.checkpoint     everything needed to continue the trial; the two newest are kept
        result.checkpoint     the result of a trained trial, until the store has it
        run_id                the id of the run that the points of these checkpoints were sent to
        starts                the number of starts since the last checkpoint, with the driver that counted them
        notes.txt, error.txt  what the user should know of the trial
        artifacts/            the files of a result while they are sent
        *.unusable            a checkpoint or result that is damaged, or of other data, set aside

A checkpoint is a SHA-256 digest followed by what `torch.save` writes, as `torch.load` alone would not notice a flipped
bit. Files appear under their names whole or not at all.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from trainables.checksums import describe_difference, is_other_data
from trainables.errors import BadInputError
from trainables.files import convert_write_errors, write_atomically
from trainables.persistence.connection import CHECKSUM_TAG
from trainables.trial import Trial

CHECKPOINTS_KEPT = 2  # the newest, and the one before in case the newest turns out to be damaged
DIGEST_BYTES = 32
RESULT_FILE = "result.checkpoint"
# What reading and decoding a file raises that cannot be used
UNUSABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError)
# The lock of a process whose node is gone may persist on a shared file system until the server releases it (NFS: 90 s).
LOCK_WAIT_SECONDS = 120.0


def encode_checkpoint(content: dict[str, Any], trial: Trial, checksum: str) -> bytes:
    """Return the bytes of a checkpoint of a trial, whose data have this checksum."""
    import torch  # takes seconds, and a rerun that finds nothing to do does not need it

    buffer = io.BytesIO()
    torch.save({**content, "trial_id": trial.id, CHECKSUM_TAG: checksum}, buffer)
    payload = buffer.getvalue()
    return hashlib.sha256(payload).digest() + payload


def decode_checkpoint(raw: bytes, trial_id: str, dataset: str, checksum: str) -> dict[str, Any]:
    """Return the content of a checkpoint.

    Args:
        raw: Its bytes.
        trial_id: The trial that it is to be of.
        dataset: The name of the data set.
        checksum: The checksum of the data set that was loaded, if one was.

    Raises:
        ValueError: It is damaged, of another trial, or of other data. Damage may raise any error of `UNUSABLE`.
    """
    import torch

    digest, payload = raw[:DIGEST_BYTES], raw[DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        raise ValueError("it is damaged or not a checkpoint")
    content: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    if content["trial_id"] != trial_id:
        raise ValueError(f"it belongs to trial {content['trial_id']}")
    found = content.get(CHECKSUM_TAG, "")  # earlier versions wrote none
    if is_other_data(dataset, found, checksum):
        difference = describe_difference(dataset, found, checksum)
        raise ValueError(f"it was trained on other data than this {dataset}: {difference}")
    return content


class TrialFolder:
    """A trial's folder in the storage folder."""

    def __init__(self, storage: Path, trial: Trial, checksum: str = "") -> None:
        """Name the folder.

        Args:
            storage: The storage folder.
            trial: The trial.
            checksum: The checksum of the data set that was loaded, if one was.
        """
        self.path = storage / "trials" / trial.id
        self.trial = trial
        self.checksum = checksum

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder's lock; wait for a process that was told to die and still holds it.

        Raises:
            BadInputError: Another process trains the trial.
            StorageError: The folder cannot be written.
        """
        with convert_write_errors(self.path):
            lock = FileLock(self.path / "lock", timeout=LOCK_WAIT_SECONDS)
            while not lock.is_locked:
                self.path.mkdir(parents=True, exist_ok=True)
                try:
                    lock.acquire()
                except Timeout:
                    raise BadInputError(f"another process trains in {self.path}; wait for it, or end it") from None
                except FileNotFoundError:
                    continue  # the process that held the lock has finished, and removed the folder
                if not (self.path / "lock").exists():  # it did so a moment later
                    lock.release()
            for partial in self.path.glob("*.partial"):  # left by a writer that died
                partial.unlink()
        try:
            yield
        finally:
            lock.release()

    def write_checkpoint(self, step: int, content: dict[str, Any]) -> None:
        """Write the checkpoint of a step, and remove all but the newest two.

        Raises:
            StorageError: It could not be written. Earlier checkpoints are still there.
        """
        self._write(f"{step:09d}.checkpoint", content)
        with convert_write_errors(self.path):
            for old in self._checkpoints()[CHECKPOINTS_KEPT:]:
                old.unlink()
            (self.path / "starts").unlink(missing_ok=True)

    def read_newest_checkpoint(self) -> dict[str, Any] | None:
        """Return the content of the newest usable checkpoint, or None if there is none.

        If a newer one is damaged, the store may have points that it covered, while training again from an older one may
        differ in the last bits. The id of the run is then deleted, so that a new run takes its place.
        """
        for path in self._checkpoints():
            content = self._read(path)
            if content is not None:
                return content
            self.forget_run()
        return None

    def write_result(self, content: dict[str, Any]) -> None:
        """Write the result of a trained trial.

        Raises:
            StorageError: It could not be written.
        """
        self._write(RESULT_FILE, content)

    def read_result(self) -> dict[str, Any] | None:
        """Return the content that `write_result` wrote, or None if there is none or it is damaged.

        After damage the folder forgets its run, as in `read_newest_checkpoint`.
        """
        if not self.has_result:
            return None
        content = self._read(self.path / RESULT_FILE)
        if content is None:
            self.forget_run()
        return content

    @property
    def has_result(self) -> bool:
        """True if the folder holds a result."""
        return (self.path / RESULT_FILE).exists()

    def remove(self) -> None:
        """Remove the folder and everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    @property
    def run_id(self) -> str | None:
        """The id of the run that this folder's points go to, if there is one."""
        return self._text("run_id") or None

    def remember_run(self, run_id: str) -> None:
        """Store the id of the run that the points go to. Call this before the first point is sent."""
        if self.run_id != run_id:
            write_atomically(self.path / "run_id", run_id.encode())

    def forget_run(self) -> None:
        """Forget the run that the points went to."""
        with convert_write_errors(self.path):
            (self.path / "run_id").unlink(missing_ok=True)

    def read_starts(self, driver: str) -> int:
        """Return how often a driver has started the trial since its last checkpoint."""
        words = self._text("starts").split()
        return int(words[1]) if len(words) == 2 and words[0] == driver and words[1].isdigit() else 0

    def record_start(self, driver: str) -> int:
        """Count a start of the trial by a driver, and return the number of starts since its last checkpoint."""
        starts = self.read_starts(driver) + 1
        if starts == 1:
            (self.path / "error.txt").unlink(missing_ok=True)
        write_atomically(self.path / "starts", f"{driver} {starts}".encode())
        return starts

    def reset_starts(self) -> None:
        """Make the next start count as the first."""
        with suppress(OSError):
            (self.path / "starts").unlink(missing_ok=True)

    def add_note(self, text: str) -> None:
        """Add a sentence for the user, if there is room for it on the disk."""
        with suppress(OSError), (self.path / "notes.txt").open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    @property
    def notes(self) -> list[str]:
        """The distinct sentences that were added, in order."""
        return list(dict.fromkeys(self._text("notes.txt").splitlines()))

    def write_error(self, traceback: str) -> None:
        """Write the traceback of the error that ended the trial, if there is room for it on the disk."""
        with suppress(OSError):
            (self.path / "error.txt").write_text(traceback, encoding="utf-8")

    def describe_last_error(self) -> str:
        """Return the last line of the error that ended the trial, and the file that has all of it."""
        lines = self._text("error.txt").strip().splitlines()
        return f"{lines[-1]} (see {self.path / 'error.txt'})" if lines else "its process was killed"

    def set_aside(self, reason: str) -> None:
        """Set all checkpoints and the result aside, and forget the run that the points went to."""
        result = [self.path / RESULT_FILE] if self.has_result else []
        for path in [*self._checkpoints(), *result]:
            self._set_aside(path, reason)
        self.forget_run()

    def _checkpoints(self) -> list[Path]:
        """Return the checkpoints' files, the newest first."""
        return sorted(self.path.glob("[0-9]*.checkpoint"), reverse=True)

    def _text(self, name: str) -> str:
        """Return the text of a file in the folder, empty if it cannot be read."""
        try:
            return (self.path / name).read_text(encoding="utf-8", errors="replace")
        except OSError:  # in most cases because it does not exist
            return ""

    def _write(self, name: str, content: dict[str, Any]) -> None:
        """Write a checkpoint or a result so that it survives a power cut."""
        write_atomically(self.path / name, encode_checkpoint(content, self.trial, self.checksum), durable=True)

    def _read(self, path: Path) -> dict[str, Any] | None:
        """Return a checkpoint's content, or None; a file that cannot be used is renamed, with a note for the user."""
        try:
            return decode_checkpoint(path.read_bytes(), self.trial.id, self.trial.dataset, self.checksum)
        except FileNotFoundError:
            return None
        except UNUSABLE as error:
            self._set_aside(path, str(error))
            return None

    def _set_aside(self, path: Path, reason: str) -> None:
        """Rename a file that cannot be used, with a note for the user."""
        self.add_note(f"{path} could not be used ({reason}): the trial went on from what it had before")
        with suppress(OSError):
            path.replace(path.with_suffix(".unusable"))

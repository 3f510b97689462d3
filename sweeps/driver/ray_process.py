"""The process that holds Ray, as the driver sees it: start it, ask it, watch it, end it.

Ray may block for minutes, or end the process that uses it, for example when the head of its cluster has gone. So the
driver keeps Ray in a process of its own (`ray_main.py`) and never calls Ray itself. It can end that process at any
moment, deliver results and print its summary.

Quick to import, as the driver needs nothing of Ray.
"""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from sweeps.driver.resources import Node, read_memory_use
from sweeps.driver.signals import delay_signals
from trainables.errors import BadInputError, UserError

BEAT_SECONDS = 2.0  # between two signs of life of Ray, once it has started
SILENCE_SECONDS = 15.0  # without a sign of life, after which the user is told
LINE_SECONDS = 60.0  # between two lines that say what is waited for
JOIN_SECONDS = 60.0  # in which a cluster must answer
STOP_SECONDS = 30.0  # in which Tune must end its trials
EXIT_SECONDS = 10.0  # in which processes must end, and their files be removed
CONNECT_SECONDS = 5.0  # in which a machine must accept a connection
FULL_MEMORY = 0.9  # the use of memory that is worth a word
SHUT_DOWN = "shut down"  # the request after which the process ends
LOG_NAME = "ray.log"  # the output of the process; it is moved to the storage folder where Ray failed


class Message(Enum):
    """The kinds of messages that the process sends; a message is a kind and its content."""

    READY = auto()  # Ray is imported; None
    STARTED = auto()  # the address of the head (GCS) of Ray's cluster, as (host, port)
    BEAT = auto()  # a sign of life: `Beat`
    REPORT = auto()  # a pack's name and `PackReport`
    RESULT = auto()  # what the function returned
    ERROR = auto()  # a `UserError`
    CRASH = auto()  # the text of any other exception


@dataclass(frozen=True)
class Beat:
    """A sign of life of Ray.

    Attributes:
        alive: Whether Ray's process on this machine (its raylet) lives.
        total: All that the nodes have together.
        free: What of it is free.
    """

    alive: bool
    total: Node
    free: Node


class RayFailedError(UserError):
    """The end of Ray before the end of a sweep."""


class RayProcess:
    """The process that holds Ray.

    Attributes:
        folder: The folder of Ray's files, which the first start makes and `close` removes.
        head: The address of the head of Ray's cluster, once Ray has started.
        beat: The last sign of life.
    """

    def __init__(self, address: str | None, folder: Path, storage: Path, say: Callable[[str], None]) -> None:
        self.address = address
        self.folder = folder
        self.storage = storage
        self.say = say
        self.head: tuple[str, int] | None = None
        self.beat: Beat | None = None
        self.busy = False
        (storage / LOG_NAME).unlink(missing_ok=True)
        make_private_folder(folder)
        self.connection, theirs = Pipe()
        with (folder / LOG_NAME).open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "sweeps.driver.ray_main", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # a signal to the driver's group is for the driver, which then stops Ray in order
            )
        theirs.close()

    def ask(self, activity: str, name: str, *arguments: Any, on_report: Callable[..., None] | None = None) -> Any:
        """Call a function of `RayHolder` in the process, and return what it returns.

        Args:
            activity: What is waited for meanwhile, as lines say it.
            name: The function.
            arguments: Its arguments.
            on_report: Called with the name and the report of a pack.

        Raises:
            UserError: The function raised it.
            RayFailedError: Ray failed, or the process ended.
        """
        self.busy = True
        with suppress(BrokenPipeError):  # the process has ended, which is noticed below
            self.connection.send((name, arguments))
        watch = Watch(self, activity)
        while True:
            try:
                message = self.connection.recv() if self.connection.poll(1.0) else None
            except (EOFError, ConnectionResetError):
                raise self.fail(self.describe_end()) from None
            if message is None:
                watch.look()
                continue
            kind, content = message
            if kind is Message.REPORT and on_report:
                on_report(*content)
            if kind in (Message.RESULT, Message.ERROR):
                self.busy = False
                if kind is Message.ERROR:
                    raise content
                return content
            if kind is Message.CRASH:
                raise self.fail(content)
            watch.note(kind, content)

    def stop_training(self) -> Mapping[str, Any] | None:
        """End the request to train, and return its result; kill the process if it does not end in time.

        A second Ctrl-C kills it at once.
        """
        deadline = time.monotonic() + STOP_SECONDS
        try:
            while time.monotonic() < deadline:
                self.process.send_signal(signal.SIGUSR1)  # again and again, as Tune may not have begun to handle it
                if self.connection.poll(1.0):
                    kind, content = self.connection.recv()
                    if kind is Message.RESULT:
                        self.busy = False
                        return dict(content)
        except (KeyboardInterrupt, EOFError, ConnectionResetError):
            pass
        self.kill()
        return None

    def fail(self, reason: str) -> RayFailedError:
        """Kill the process, keep its log, and return the error that says why."""
        self.kill()
        log = self.storage / LOG_NAME
        try:
            shutil.copyfile(self.folder / LOG_NAME, log)
            where = f" (more in {log})"
        except OSError:
            where = ""
        return RayFailedError(f"Ray has failed: {reason}{where}")

    def describe_end(self) -> str:
        """Return why the process ended."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(EXIT_SECONDS)
        status = self.process.returncode
        if status is not None and status < 0:
            short = "; the machine may have been short of memory" if status == -signal.SIGKILL else ""
            return f"its process was ended by {signal.Signals(-status).name}{short}"
        text = (self.folder / LOG_NAME).read_text(encoding="utf-8", errors="replace") if self.folder.exists() else ""
        lines = [line for line in text.splitlines() if line.strip()]
        # Lines of Ray begin with a time, process ids and the name of a source file.
        return re.sub(r"^\[.*?\] \S+:\d+: *", "", lines[-1]) if lines else "its process ended without a word"

    def kill(self) -> None:
        """Kill the process; Ray's processes end with it."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End the process, and remove the folder; signals wait until this is done."""
        with delay_signals():
            if not self.busy:
                with suppress(OSError, subprocess.TimeoutExpired):
                    self.connection.send((SHUT_DOWN, ()))
                    self.process.wait(EXIT_SECONDS)
            self.kill()
            self.connection.close()
            deadline = time.monotonic() + EXIT_SECONDS  # Ray's processes may still write while they end
            while self.folder.exists() and time.monotonic() < deadline:
                shutil.rmtree(self.folder, ignore_errors=True)
                time.sleep(0.1)


class Watch:
    """A watch over a request: says what is waited for, and notices that Ray does not answer."""

    def __init__(self, ray: RayProcess, activity: str) -> None:
        self.ray = ray
        self.activity = activity
        self.silent = False  # whether the user has been told so
        self.heard = self.changed = self.said = time.monotonic()

    def note(self, kind: Message, content: Any) -> None:
        """Note a message that does not end the request.

        Raises:
            RayFailedError: Ray's process on this machine has ended.
        """
        self.heard = time.monotonic()
        if kind is Message.STARTED:
            self.ray.head = content
        elif kind is Message.REPORT:
            self.changed = self.heard
        elif kind is Message.BEAT:
            self.ray.beat = content
            if not content.alive:
                raise self.ray.fail("its process on this machine (raylet) has ended")
        if self.silent:
            self.ray.say("Ray answers again")
            self.silent = False

    def look(self) -> None:
        """Do what is due while there is no message.

        Raises:
            BadInputError: A cluster that was to be joined does not answer.
            RayFailedError: The head of Ray's cluster has ended.
        """
        now = time.monotonic()
        joining = self.ray.head is None and self.ray.address is not None
        if now - self.heard > SILENCE_SECONDS and (joining or self.ray.beat is not None):
            self.look_at_head(now, joining=joining)
        if now - max(self.changed, self.said) > LINE_SECONDS:
            self.said = now
            self.ray.say(f"Still waiting after {(now - self.changed) / 60:.0f} min: {self.describe_wait()}")

    def look_at_head(self, now: float, *, joining: bool) -> None:
        """Look why Ray does not answer, and say so once."""
        if joining and now - self.heard > JOIN_SECONDS:
            self.ray.kill()
            raise BadInputError(
                f"no Ray cluster answers at RAY_ADDRESS={self.ray.address} (something accepts connections there, but "
                f"Ray was not heard in {JOIN_SECONDS:.0f} seconds); restart it, or unset RAY_ADDRESS"
            )
        place = f"RAY_ADDRESS={self.ray.address}" if joining else "its head at {}:{}".format(*self.ray.head or ("", 0))
        problem = "" if joining or self.ray.head is None else try_connection(*self.ray.head)
        if problem == "Connection refused":
            raise self.ray.fail(f"{place} (GCS) has ended")
        if not self.silent:
            self.silent = True
            reason = f" ({problem}; has the network changed?)" if problem else ""
            self.ray.say(
                f"Ray has not answered for {now - self.heard:.0f} seconds, {place}{reason}: waiting. "
                "Ctrl-C stops the sweep, and the same command continues it"
            )

    def describe_wait(self) -> str:
        """Return what is waited for, and what this machine and the cluster are short of."""
        parts = [self.activity]
        if beat := self.ray.beat:
            parts.append(
                f"free: {beat.free.cpus:g} of {beat.total.cpus:g} CPUs and {beat.free.gpus:g} of {beat.total.gpus:g} "
                "GPUs"
            )
        if (use := read_memory_use()) >= FULL_MEMORY:
            parts.append(f"{use:.0%} of this machine's memory is in use")
        return "; ".join(parts)


def try_connection(host: str, port: int) -> str:
    """Return why a connection cannot be made, or nothing if it can."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def check_address(address: str) -> None:
    """Raise `BadInputError` where nothing listens at the address of a cluster, for which Ray would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":  # Ray looks for a cluster that was started on this machine
        return
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise BadInputError(f"RAY_ADDRESS={address} is no address of a Ray cluster; give HOST:PORT, or unset it")
    if problem := try_connection(host.strip("[]"), int(port)):
        raise BadInputError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({problem}); start it, or unset RAY_ADDRESS"
        )


def make_private_folder(folder: Path) -> None:
    """Recreate the folder for Ray's files, retrying while processes of a killed driver still write into the old one.

    Raises:
        BadInputError: The folder cannot be made.
    """
    deadline = time.monotonic() + EXIT_SECONDS
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(mode=0o700, parents=True)
        except OSError as error:
            if time.monotonic() > deadline:
                raise BadInputError(
                    f"cannot make the folder {folder} for Ray's files ({error.strerror}); remove it, or set RAY_TMPDIR"
                ) from None
            time.sleep(1)
        else:
            return

"""A watch over Ray: what is waited for is said once a minute, and a Ray that does not answer within half a minute.

Long epochs, a laptop that sleeps, a full cluster and nodes that come late are no failures. So nothing is concluded from
the lack of progress: Ray is asked whether its head and its process on this machine live.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from sweeps.driver.resources import Node, read_memory_use
from trainables.errors import BadInputError, UserError

BEAT_SECONDS = 2.0  # between two signs of life of Ray, once it has started
SILENCE_SECONDS = 15.0  # without a sign of life, after which the user is told
LINE_SECONDS = 60.0  # between two lines that say what is waited for
JOIN_SECONDS = 60.0  # in which a cluster must answer
LOOK_SECONDS = 4.0  # between two looks at Ray's processes
MAX_REFUSALS = 2  # in a row, until a process counts as ended
CONNECT_SECONDS = 5.0  # in which a machine must accept a connection
REFUSED = os.strerror(errno.ECONNREFUSED)
HEAD = "the head of its cluster (GCS)"
RAYLET = "its process on this machine (raylet)"
FULL_MEMORY = 0.9  # the use of memory that is worth a word


class Message(Enum):
    """The kinds of messages that the process sends; a message is a kind and its content."""

    READY = auto()  # Ray is imported; None
    STARTED = auto()  # the addresses of Ray's processes that must live: name → (host, port)
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
    """The end of Ray before the end of a sweep; the text is the reason."""


class RayKilledError(RayFailedError):
    """The end, by a signal, of the process that holds Ray."""


class Watch:
    """A watch over the process that holds Ray.

    Attributes:
        address: The address of the cluster that is to be joined; None if Ray runs on this machine alone.
        services: Host and port of Ray's processes that must live, by name, once Ray has started.
        refusals: How often in a row each of them has refused a connection.
        beat: The last sign of life.
    """

    def __init__(self, address: str | None, say: Callable[[str], None]) -> None:
        self.address = address
        self.say = say
        self.services: dict[str, tuple[str, int]] = {}
        self.refusals: Counter[str] = Counter()
        self.beat: Beat | None = None
        self.begin("Ray starts")

    def begin(self, activity: str) -> None:
        """Begin to wait for something."""
        self.activity = activity
        self.silent = False  # whether the user has been told so
        self.heard = self.changed = self.said = self.looked = time.monotonic()

    def note(self, kind: Message, content: Any) -> None:
        """Note a message.

        Raises:
            RayFailedError: Ray's process on this machine has ended.
        """
        self.heard = time.monotonic()
        if kind is Message.STARTED:
            self.services = content
        elif kind is Message.REPORT:
            self.changed = self.heard
        elif kind is Message.BEAT:
            self.beat = content
            if not content.alive:
                raise RayFailedError(f"{RAYLET} has ended")
        if self.silent and kind in (Message.STARTED, Message.BEAT):
            self.say("Ray answers again")
            self.silent = False

    def look(self) -> None:
        """Do what is due while there is no message.

        Raises:
            BadInputError: The cluster that is to be joined does not answer.
            RayFailedError: The head of Ray's cluster has ended.
        """
        now = time.monotonic()
        if now - self.looked > LOOK_SECONDS:
            self.looked = now
            self.look_at_services()
            if not self.services and self.address is not None and now - self.heard > SILENCE_SECONDS:
                self.look_at_joining(self.address)
        if now - max(self.changed, self.said) > LINE_SECONDS:
            self.said = now
            self.say(f"Still waiting after {(now - self.changed) / 60:.0f} min: {self.describe_wait()}")

    def look_at_joining(self, address: str) -> None:
        """Look for how long a cluster has not answered that is to be joined."""
        if time.monotonic() - self.heard > JOIN_SECONDS:
            raise BadInputError(
                f"no Ray cluster answers at RAY_ADDRESS={address} (Ray did not answer within {JOIN_SECONDS:.0f} "
                "seconds); start it again, or unset RAY_ADDRESS"
            )
        self.report_silence(f"RAY_ADDRESS={address}")

    def look_at_services(self) -> None:
        """Look whether Ray's processes live."""
        problems = {name: try_connection(*address) for name, address in self.services.items()}
        for name, problem in problems.items():
            self.refusals[name] = self.refusals[name] + 1 if problem == REFUSED else 0
            if self.refusals[name] >= MAX_REFUSALS:
                raise RayFailedError(f"{name} has ended")
        if self.services and time.monotonic() - self.heard > SILENCE_SECONDS:
            causes = [f"{name} cannot be reached: {problem}" for name, problem in problems.items() if problem]
            self.report_silence("; ".join(causes) or "its processes accept connections")

    def report_silence(self, what: str) -> None:
        """Tell the user, once, that Ray does not answer."""
        if not self.silent:
            self.silent = True
            self.say(
                f"Ray has not answered for {time.monotonic() - self.heard:.0f} seconds ({what}). The sweep waits for "
                "it; Ctrl-C stops the sweep, and the same command continues it"
            )

    def describe_wait(self) -> str:
        """Return what is waited for, and what this machine and the cluster are short of."""
        parts = [self.activity]
        if self.beat:
            total, free = self.beat.total, self.beat.free
            parts.append(f"free: {free.cpus:g} of {total.cpus:g} CPUs and {free.gpus:g} of {total.gpus:g} GPUs")
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

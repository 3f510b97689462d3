"""The process that holds Ray, as the driver sees it: start it, ask it, end it.

Ray may block for minutes, or end the process that uses it, for example when the head of its cluster has gone. So the
driver keeps Ray in a process of its own (`ray_main.py`) and never calls Ray itself. It can end that process at any
moment, deliver results and print its summary.

Quick to import, as the driver needs nothing of Ray.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from sweeps.driver.signals import delay_signals
from sweeps.driver.watch import REFUSED, Message, RayFailedError, RayKilledError, Watch, check_address, try_connection
from trainables.errors import BadInputError

STOP_SECONDS = 30.0  # in which Tune must end its trials
EXIT_SECONDS = 10.0  # in which processes must end, and their files be removed
SHUT_DOWN = "shut down"  # the request after which the process ends
LOG_NAME = "ray.log"  # the output of the process; it is copied to the storage folder where Ray failed


class RayProcess:
    """The process that holds Ray.

    Attributes:
        folder: The folder of Ray's files, which is made here and removed by `close`.
        busy: Whether a request is not answered yet.
    """

    def __init__(self, address: str | None, folder: Path, storage: Path, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.storage = storage
        self.watch = Watch(address, say)
        self.busy = False
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
            RayFailedError: Ray failed, or the process ended; `RayKilledError` if a signal ended it.
        """
        self.busy = True
        self.watch.begin(activity)
        try:
            with suppress(BrokenPipeError):  # the process has ended, which is noticed when nothing comes
                self.connection.send((name, arguments))
            while True:
                kind, content = self.receive()
                if kind is Message.REPORT and on_report:
                    on_report(*content)
                if kind is Message.CRASH:
                    raise RayFailedError(content)
                if kind in (Message.RESULT, Message.ERROR):
                    break
        except RayFailedError as error:
            raise self.fail(error) from None
        self.busy = False
        if kind is Message.ERROR:
            raise content
        return content

    def receive(self) -> tuple[Message, Any]:
        """Return the next message, with an eye on Ray while there is none.

        Raises:
            BadInputError: The cluster that is to be joined does not answer.
            RayFailedError: Ray or the process has ended.
        """
        try:
            while not self.connection.poll(1.0):
                self.watch.look()
            kind, content = self.connection.recv()
        except (EOFError, ConnectionResetError):
            raise self.explain_end() from None
        self.watch.note(kind, content)
        return kind, content

    def stop_training(self) -> Mapping[str, Any] | None:
        """End the request to train, and return its result; kill the process if it does not end in time.

        A second Ctrl-C kills it at once.
        """
        deadline = time.monotonic() + (0 if self.watch.silent else STOP_SECONDS)
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

    def fail(self, reason: RayFailedError) -> RayFailedError:
        """Kill the process, keep its log, and return the error for the user, of the same class."""
        self.kill()
        log = self.storage / LOG_NAME
        try:
            shutil.copyfile(self.folder / LOG_NAME, log)
            where = f" (more in {log})"
        except OSError:
            where = ""
        return type(reason)(f"Ray has failed: {reason}{where}")

    def explain_end(self) -> RayFailedError:
        """Return the reason why the process ended."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(EXIT_SECONDS)
        status = self.process.returncode
        if status is not None and status < 0:
            short = "; the machine may have been short of memory" if status == -signal.SIGKILL else ""
            return RayKilledError(f"its process was ended by {signal.Signals(-status).name}{short}")
        if ended := [name for name, address in self.watch.services.items() if try_connection(*address) == REFUSED]:
            return RayFailedError(f"{' and '.join(ended)} {'have' if len(ended) > 1 else 'has'} ended")
        text = (self.folder / LOG_NAME).read_text(encoding="utf-8", errors="replace") if self.folder.exists() else ""
        lines = [line for line in text.splitlines() if line.strip()]
        # Lines of Ray begin with a time, process ids and the name of a source file.
        last = re.sub(r"^\[.*?\] \S+:\d+: *", "", lines[-1]) if lines else "its process ended without a word"
        return RayFailedError(last)

    def kill(self) -> None:
        """Kill the process, and those of Ray that it has started."""
        with suppress(ProcessLookupError, PermissionError):  # there is none any more; macOS: only some that have ended
            os.killpg(self.process.pid, signal.SIGKILL)
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


def start_ray_process(
    address: str | None, folder: Path, storage: Path, say: Callable[[str], None], stack: ExitStack
) -> RayProcess:
    """Start the process that holds Ray; it ends when `stack` closes.

    Raises:
        BadInputError: Nothing listens at the address of the cluster, or the folder cannot be made.
    """
    if address is not None:
        check_address(address)
    with delay_signals():
        process = RayProcess(address, folder, storage, say)
        stack.callback(process.close)
    return process


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

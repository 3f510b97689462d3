"""The process that holds Ray: it answers the driver's requests, one after another.

`python -m sweeps.driver.ray_main DESCRIPTOR` is started by `ray_process.py`, which has the other end of the connection.
It prints nothing for the user. Whatever is sent is a pair, as `Message` lists them.
"""

from __future__ import annotations

import faulthandler
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sweeps.driver.autotune import Tuning, autotune
from sweeps.driver.packing import ImageCounts
from sweeps.driver.ray_process import SHUT_DOWN
from sweeps.driver.resources import Node
from sweeps.driver.watch import BEAT_SECONDS, Message
from trainables import datasets
from trainables.datasets import Dataset
from trainables.errors import UserError
from trainables.trial import XOR, Trial
from trainables.worker.pack import Outcome, Pack, PackReport, WorkerSettings


class RayHolder:
    """Ray, the data set, and the functions that the driver can ask for by their names."""

    def __init__(self, send: Callable[[Message, Any], None]) -> None:
        self.send = send
        self.data: Dataset | None = None

    def start(self, address: str | None, tracking_uri: str, machine: Node, folder: Path) -> list[Node]:
        """Start or join Ray, and return the nodes."""
        from sweeps.driver import cluster  # with Ray, which takes seconds to import

        nodes = cluster.start_or_join(address, tracking_uri, machine, folder)
        self.send(Message.STARTED, cluster.list_services())
        threading.Thread(target=self.send_beats, daemon=True).start()
        return nodes

    def load(self, trial: Trial, data_root: Path) -> tuple[ImageCounts, str]:
        """Load a trial's data set, and return its counts and its checksum."""
        self.data = datasets.load_dataset(trial.dataset, data_root, trial.pipeline)
        return ImageCounts.from_dataset(self.data), self.data.checksum

    def start_and_load(
        self, address: str | None, tracking_uri: str, machine: Node, folder: Path, trial: Trial, data_root: Path
    ) -> tuple[list[Node], tuple[ImageCounts, str] | None]:
        """Do what `start` and, except for XOR, `load` do, at the same time."""
        with ThreadPoolExecutor(1) as thread:
            loaded = None if trial.dataset == XOR else thread.submit(self.load, trial, data_root)
            nodes = self.start(address, tracking_uri, machine, folder)
        return nodes, loaded.result() if loaded else None

    def check_storage_is_shared(self, storage: Path) -> None:
        """Raise `BadInputError` where a living node does not see what this machine writes into `storage`."""
        from sweeps.driver import cluster

        cluster.check_storage_is_shared(storage)

    def check_gpu(self) -> None:
        """Raise `BadInputError` where torch cannot use the GPU that trials on this machine were promised."""
        from sweeps.driver import cluster

        cluster.check_gpu()

    def autotune(
        self,
        trials: Sequence[Trial],
        gpus: Mapping[str, float],
        unknown: Collection[str],
        alone: Collection[str],
        most: int | None,
        cpus: int,
        storage: Path,
    ) -> Tuning:
        """Return what autotuning finds for the data set that was loaded."""
        if self.data is None:
            raise ValueError("no data set is loaded")
        return autotune(trials, gpus, unknown, alone, most, cpus, storage, self.data)

    def train(self, packs: Sequence[Pack], settings: WorkerSettings, at_once: int, folder: Path) -> dict[str, Outcome]:
        """Train packs, sending their reports meanwhile, and return trial id → outcome."""
        from sweeps.driver import launch

        def forward(pack: Pack, report: PackReport) -> None:
            self.send(Message.REPORT, (pack.name, report))

        return launch.train_packs(packs, self.data, settings, at_once, folder, forward)

    def send_beats(self) -> None:
        """Tell the driver again and again that Ray answers, and what it has."""
        from sweeps.driver import cluster

        while True:
            with suppress(Exception):  # Ray raises errors of many kinds where it cannot answer, also while it ends
                self.send(Message.BEAT, cluster.look_at_cluster())
            time.sleep(BEAT_SECONDS)


def answer(holder: RayHolder, name: str, arguments: Sequence[Any]) -> tuple[Message, Any]:
    """Call one of the holder's functions, and return the message that tells the driver what came of it."""
    try:
        return Message.RESULT, getattr(holder, name)(*arguments)
    except UserError as error:
        return Message.ERROR, error
    except BaseException as error:
        traceback.print_exc()  # into this process's log
        return Message.CRASH, " ".join(str(error).split()) or type(error).__name__


def settle_environment() -> None:
    """Set the variables that scikit-learn would set when it is imported, to the same values.

    It is imported in a thread while Ray starts. Ray's machine code reads the environment then, and where a variable is
    added at the same moment, it reads memory that is no longer there: about one start in a hundred ended by SIGSEGV.
    """
    os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "True")
    os.environ.setdefault("KMP_INIT_AT_FORK", "FALSE")


def main() -> None:
    """Answer requests until the driver closes the connection."""
    settle_environment()
    faulthandler.enable()  # a crash in a library's machine code leaves a traceback in this process's log
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides when to stop
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # the signal that stops Tune, which handles it while it trains
    connection = Connection(int(sys.argv[1]))
    lock = threading.Lock()

    def send(kind: Message, content: Any) -> None:
        with lock:
            connection.send((kind, content))

    requests: queue.SimpleQueue[tuple[str, Sequence[Any]]] = queue.SimpleQueue()

    def receive() -> None:
        try:
            while True:
                requests.put(connection.recv())
        except (EOFError, OSError):  # the driver has ended; Ray's processes end with this one
            os._exit(1)

    threading.Thread(target=receive, daemon=True).start()
    holder = RayHolder(send)
    import ray  # now, while the driver asks the store; it takes seconds

    send(Message.READY, None)
    while (request := requests.get())[0] != SHUT_DOWN:
        send(*answer(holder, *request))
    ray.shutdown()


if __name__ == "__main__":
    main()

"""The command-line options that say how trials are run."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from sweeps.driver.packing import parse_pack_size
from sweeps.driver.resources import parse_gpu_requests
from sweeps.experiment import UserPath, expand_home, get_default_data_root
from trainables.errors import BadInputError, check_positive

DEFAULT_STORAGE = Path("storage")


def get_default_storage() -> Path:
    """Return the folder that `SWEEPS_STORAGE` names, or `storage` in the current folder."""
    return expand_home(os.environ.get("SWEEPS_STORAGE") or DEFAULT_STORAGE)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Resources and folders for the trials. None of these options changes a result, except for rounding."""

    data_root: UserPath = field(default_factory=get_default_data_root)
    """Folder of the data sets; missing files are downloaded into it. SWEEPS_DATA_ROOT sets the default."""
    storage: UserPath = field(default_factory=get_default_storage)
    """Folder for the checkpoints of unfinished trials. On a cluster, every node must see it.
    SWEEPS_STORAGE sets the default."""
    cpus_per_trial: int = 1
    """CPUs, and so threads, of each process that trains."""
    gpus_per_trial: tuple[str, ...] = ()
    """GPUs of each process that trains: a fraction, a number, 0, or auto (from the memory that training takes).
    For one architecture: mlp_1=0.1. Default: 0.25 where a node has a GPU, else 0."""
    pack: str = "auto"
    """The most trials that share a process. 1: a process for each trial. auto: chosen for speed.
    A trial computes the same in any pack, except for rounding."""
    compile_steps: bool = False
    """Compile the training steps of stacks, for GPUs. Each kind of stack takes up to a minute at first."""
    max_concurrent: int | None = None
    """The most processes that train at once. Default: as many as the resources allow."""
    checkpoint_seconds: float = 60.0
    """The most training time that a trial loses if its process dies.
    At the end of an epoch a checkpoint is due after a twelfth of this time."""
    no_continue: bool = False
    """Train every trial from its start, even where the store has the end of one with fewer epochs."""
    dry_run: bool = False
    """Print what would run, and stop."""
    address: str | None = None
    """Run this command as a job of the Ray cluster with this dashboard, and print the job's log.
    Through a tunnel: http://127.0.0.1:8265. Options that are not given have the cluster's defaults.
    The job continues if you stop this command; the same command finds it again."""

    @property
    def private_folder(self) -> Path:
        """The folder of Ray's sockets and logs, with a short path, as sockets need one.

        It is the same for every driver with this storage, so that the next one removes what a killed one has left.
        """
        name = hashlib.sha256(str(self.storage.absolute()).encode()).hexdigest()[:8]
        return Path(os.environ.get("RAY_TMPDIR") or "/tmp") / f"neural-sweeps-{os.getuid()}-{name}"

    def check(self) -> None:
        """Raise `BadInputError` where a value is out of range or the storage folder cannot be written."""
        check_positive("--cpus-per-trial", self.cpus_per_trial, whole=True)
        if self.max_concurrent is not None:
            check_positive("--max-concurrent", self.max_concurrent, whole=True)
        check_positive("--checkpoint-seconds", self.checkpoint_seconds, whole=False)
        parse_gpu_requests(self.gpus_per_trial)
        parse_pack_size(self.pack)
        storage = self.storage.absolute()
        try:
            existing = next(folder for folder in (storage, *storage.parents) if folder.exists())
            for name in storage.relative_to(existing).parts:
                (existing / name).exists()  # raises where a name is too long to become a folder
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            raise BadInputError(
                f"--storage {self.storage} cannot be written ({error.strerror}); name a folder that can"
            ) from None

"""TODO."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from sweeps.driver.packing import parse_pack_size
from sweeps.driver.resources import parse_gpu_requests
from sweeps.experiment import get_default_data_root
from trainables.errors import BadInputError, check_positive


def get_default_storage() -> Path:
    """What `SWEEPS_STORAGE` says, or a folder in the current one."""
    return Path(os.environ.get("SWEEPS_STORAGE") or "storage")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run them; nothing here changes a result, but for the last bits that follow the number of CPUs."""

    data_root: Path = field(default_factory=get_default_data_root)
    """Folder of the data sets; what is missing is downloaded into it. SWEEPS_DATA_ROOT sets the default."""
    storage: Path = field(default_factory=get_default_storage)
    """Folder for checkpoints of unfinished trials; on a cluster, one that every node sees. SWEEPS_STORAGE sets the
    default."""
    cpus_per_trial: int = 1
    """Also the number of threads a trial trains with."""
    gpus_per_trial: tuple[str, ...] = ()
    """A fraction of a GPU, several GPUs, 0, or auto (measures the memory that training takes); for one architecture:
    mlp_1=0.1. Default: 0.25 where a node has a GPU, else 0."""
    pack: str = "auto"
    """Trials that share a process, at most; 1 packs none. auto: as many as pays, which a few steps of training show.
    Packed or not, a trial computes the same but for rounding."""
    compile_steps: bool = False
    """Compile the steps of trials that train side by side, for GPUs: it takes up to a minute at first."""
    max_concurrent: int | None = None
    """At most this many processes that train at once. Default: as many as the resources allow."""
    checkpoint_seconds: float = 60.0
    """The most work a trial loses with its process; at an epoch's end it checkpoints after a twelfth of that."""
    dry_run: bool = False
    """Print what would run, and stop."""
    address: str | None = None
    """Run all this as a job of the cluster whose dashboard is there, with the cluster's defaults, and follow its log:
    http://127.0.0.1:8265 through a tunnel. The job goes on without this computer; the same command finds it again."""

    def check(self) -> None:
        """Raise `BadInputError` where a value is out of range or the storage cannot be written."""
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

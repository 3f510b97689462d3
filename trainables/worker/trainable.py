"""What Ray Tune runs, and what it is told: a pack of trials, in a process that stays for the next pack.

Quick to import: drivers read this as well, before they know whether anything is to be trained. And Ray reads settings
when it is imported, which `sweeps/launch.py` makes first.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from trainables.accelerated.backends import get_environment

if TYPE_CHECKING:
    from trainables.datasets import Dataset
from trainables.worker.pack import Pack, WorkerSettings


def train_pack_in_tune(config: dict[str, str], *, data: Dataset | None, settings: WorkerSettings) -> None:
    """Train the trials of the pack in `config["pack"]`; report to Ray Tune what `members.Progress` says.

    Args:
        config: What Ray Tune chose.
        data: The data set; None for "xor", which has its own.
        settings: The same for all packs of a sweep.
    """
    os.environ.update(get_environment(settings.convolutions))  # which torch, imported from here on, reads once

    from ray import tune

    from trainables.worker import worker

    worker.train_pack(Pack.from_json(config["pack"]), data, settings, tune.report)

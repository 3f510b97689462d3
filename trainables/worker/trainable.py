"""The function that Ray Tune calls, in a process that Ray reuses for the next pack.

Quick to import, as the driver imports it too: Ray and torch read settings from the environment when they are imported.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from trainables.accelerated.backends import get_environment
from trainables.worker.pack import REPORT_KEY, WorkerSettings, get_pack

if TYPE_CHECKING:
    from trainables.datasets import Dataset


def train_pack_in_tune(config: dict[str, str], *, data: Dataset | None, settings: WorkerSettings) -> None:
    """Train the trials of the pack in `config["pack"]`, and report their progress to Ray Tune.

    Args:
        config: The configuration that Ray Tune chose.
        data: The data set; None for "xor", which has its own.
        settings: The settings of all packs of the sweep.
    """
    os.environ.update(get_environment(settings.backend))  # torch, imported from here on, reads it once

    from ray import tune

    from trainables.worker.worker import train_pack

    train_pack(get_pack(config), data, settings, lambda report: tune.report({REPORT_KEY: report}))

"""The one file that starts Ray: trains trials side by side and says how far they are."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from ray import tune
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from sweeps.driver.progress import ProgressBar, get_pack
from trainables.datasets import Dataset
from trainables.worker.pack import Outcome, Pack, WorkerSettings
from trainables.worker.trainable import train_pack_in_tune

# Ray reads these when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")


os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")


os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")


# Tune would save all trials again and again, for a restore that we never do.
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")


if not os.environ.get("RAY_ADDRESS"):  # our own cluster of one machine answers nobody else
    os.environ.setdefault("RAY_AUTH_MODE", "token")


# A trial whose process dies is started again from its last checkpoint, as often as it comes further (`STARTS` in
# `trainables/members.py`); this, times the trials of a pack, ends those that die before they can count.
MAX_STARTS_PER_TRIAL = 50


T = TypeVar("T")


U = TypeVar("U")


def train_packs(
    packs: Sequence[Pack],
    data: Dataset | None,
    settings: WorkerSettings,
    at_once: int,
    folder: Path,
    console: Console,
) -> dict[str, Outcome]:
    """Train packs of trials, `at_once` packs at a time at most; Tune's own files, of no use afterwards, go to `folder`.

    Returns:
        trial id → what came of it. Trials stopped by Ctrl-C are not among them.
    """
    on_interrupt = signal.getsignal(signal.SIGINT)  # Tune leaves its own handler in place
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        speed_estimate_period=600,
    ) as progress:
        results = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(train_pack_in_tune, data=data, settings=settings),
                lambda config: tune.PlacementGroupFactory([{"CPU": settings.threads, "GPU": get_pack(config).gpus}]),
            ),
            param_space={"pack": tune.grid_search([pack.to_json() for pack in packs])},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=at_once,
                reuse_actors=True,
                trial_name_creator=lambda t: get_pack(t.config).name,
                trial_dirname_creator=lambda t: get_pack(t.config).name,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder),
                failure_config=tune.FailureConfig(
                    max_failures=MAX_STARTS_PER_TRIAL * max(len(pack.trials) for pack in packs)
                ),
                callbacks=[ProgressBar(progress, packs)],
                verbose=0,
            ),
        ).fit()
    signal.signal(signal.SIGINT, on_interrupt)
    shutil.rmtree(folder / "tune", ignore_errors=True)
    found = (results[index] for index in range(len(results)))
    return {trial_id: ending for result in found for trial_id, ending in read_outcomes(result).items()}


def read_outcomes(result: tune.Result) -> dict[str, Outcome]:
    """What a pack's last report said of its trials, and what Tune says of those that it could not report."""
    reported = (result.metrics or {}).get("endings", {})
    found = {
        trial_id: Outcome(said.get("error"), said.get("out_of_memory", False), said.get("notes", ()))
        for trial_id, said in reported.items()
    }
    if result.error is not None and result.config:
        error = Outcome(error=str(result.error).strip().splitlines()[-1])
        return {trial.id: error for trial in get_pack(result.config).trials} | found
    return found

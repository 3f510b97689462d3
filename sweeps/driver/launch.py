"""Launching packs with Ray Tune, and reading the outcomes of their trials."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

from ray import tune
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from sweeps.driver.progress import ProgressBar
from trainables.datasets import Dataset
from trainables.worker.pack import REPORT_KEY, Outcome, Pack, PackReport, WorkerSettings, get_pack
from trainables.worker.trainable import train_pack_in_tune

# A trial whose process dies is started again from its last checkpoint, as long as it gets further each time
# (`MAX_STARTS` in `trainables/worker/active_trial.py`). Multiplied by a pack's trials, this bound ends
# processes that die before they can count their starts.
MAX_STARTS_PER_TRIAL = 50
TUNE_FOLDER = "tune"


def train_packs(
    packs: Sequence[Pack],
    data: Dataset | None,
    settings: WorkerSettings,
    at_once: int,
    folder: Path,
    console: Console,
) -> dict[str, Outcome]:
    """Train packs of trials with Ray Tune.

    Args:
        packs: The packs.
        data: The data set; None for XOR.
        settings: The settings of all workers.
        at_once: The most packs that train at once.
        folder: The folder for Tune's own files, which are removed at the end.
        console: The console that shows the progress.

    Returns:
        Trial id → outcome, without the trials that Ctrl-C has stopped.
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
        run_config = tune.RunConfig(
            name=TUNE_FOLDER,
            storage_path=str(folder),
            failure_config=tune.FailureConfig(max_failures=MAX_STARTS_PER_TRIAL * max(len(p.trials) for p in packs)),
            callbacks=[ProgressBar(progress, packs)],
            verbose=0,
        )
        results = make_tuner(packs, data, settings, at_once, run_config).fit()
    signal.signal(signal.SIGINT, on_interrupt)
    shutil.rmtree(folder / TUNE_FOLDER, ignore_errors=True)
    found = (read_outcomes(results[index]) for index in range(len(results)))
    return {trial_id: outcome for outcomes in found for trial_id, outcome in outcomes.items()}


def make_tuner(
    packs: Sequence[Pack], data: Dataset | None, settings: WorkerSettings, at_once: int, run_config: tune.RunConfig
) -> tune.Tuner:
    """Return Ray Tune's object that trains each pack as one of Tune's trials."""
    return tune.Tuner(
        tune.with_resources(
            tune.with_parameters(train_pack_in_tune, data=data, settings=settings),
            lambda config: tune.PlacementGroupFactory([{"CPU": settings.threads, "GPU": get_pack(config).gpus}]),
        ),
        param_space={"pack": tune.grid_search([pack.to_json() for pack in packs])},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=at_once,
            reuse_actors=True,
            trial_name_creator=lambda trial: get_pack(trial.config).name,
            trial_dirname_creator=lambda trial: get_pack(trial.config).name,
        ),
        run_config=run_config,
    )


def read_outcomes(result: tune.Result) -> dict[str, Outcome]:
    """Return the outcomes in a pack's last report, and Tune's error for the trials that had none."""
    report: PackReport = (result.metrics or {}).get(REPORT_KEY, PackReport())
    if result.error is None or not result.config:
        return dict(report.outcomes)
    error = Outcome(error=str(result.error).strip().splitlines()[-1])
    return {trial.id: error for trial in get_pack(result.config).trials} | dict(report.outcomes)

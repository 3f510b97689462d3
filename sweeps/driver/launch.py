"""Launching packs with Ray Tune, and reading the outcomes of their trials."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune

from trainables.datasets import Dataset
from trainables.worker.pack import REPORT_KEY, Outcome, Pack, PackReport, WorkerSettings, get_pack
from trainables.worker.trainable import train_pack_in_tune

# A trial whose process dies is started again from its last checkpoint, as long as it gets further each time
# (`MAX_STARTS` in `trainables/worker/active_trial.py`). Multiplied by a pack's trials, this bound ends
# processes that die before they can count their starts.
MAX_STARTS_PER_TRIAL = 50
TUNE_FOLDER = "tune"

OnReport = Callable[[Pack, PackReport], None]
"""A function that is called with each report of a pack."""


class ForwardReports(tune.Callback):
    """Tune's callback that passes on each report of a pack, and makes one where its process starts or dies."""

    def __init__(self, on_report: OnReport) -> None:
        self.on_report = on_report
        self.reports: dict[str, PackReport] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for Tuner.restore, which is not used

    def forward(self, trial: Any, report: PackReport) -> None:
        """Pass on the report of the pack that is Tune's trial `trial`."""
        pack = get_pack(trial.config)
        self.reports[pack.name] = report
        self.on_report(pack, report)

    def find_last(self, trial: Any) -> PackReport:
        """Return the last report of the pack that is Tune's trial `trial`."""
        return self.reports.get(get_pack(trial.config).name, PackReport())

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.forward(trial, replace(self.find_last(trial), running=1))  # until the first report

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.forward(trial, result.get(REPORT_KEY, PackReport()))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        pack = get_pack(trial.config)
        failed = {trial.id: Outcome("its process died") for trial in pack.trials}
        self.forward(trial, PackReport(pack.epochs, 0, failed | dict(self.find_last(trial).outcomes)))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.forward(trial, replace(self.find_last(trial), running=0))


def train_packs(
    packs: Sequence[Pack],
    data: Dataset | None,
    settings: WorkerSettings,
    at_once: int,
    folder: Path,
    on_report: OnReport,
) -> dict[str, Outcome]:
    """Train packs of trials with Ray Tune; SIGUSR1 stops it.

    Args:
        packs: The packs.
        data: The data set; None for XOR.
        settings: The settings of all workers.
        at_once: The most packs that train at once.
        folder: The folder for Tune's own files, which are removed at the end.
        on_report: Called with each report of a pack.

    Returns:
        Trial id → outcome, without the trials that were stopped.
    """
    run_config = tune.RunConfig(
        name=TUNE_FOLDER,
        storage_path=str(folder),
        failure_config=tune.FailureConfig(max_failures=MAX_STARTS_PER_TRIAL * max(len(p.trials) for p in packs)),
        callbacks=[ForwardReports(on_report)],
        verbose=0,
    )
    results = make_tuner(packs, data, settings, at_once, run_config).fit()
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

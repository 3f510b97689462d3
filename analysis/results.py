"""Results of a sweep, loaded from the tracking store onto named axes, and selections and means of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from sweeps.intervals import compute_mean_interval, compute_share_interval
from sweeps.stuck import is_stuck_result
from sweeps.sweep import Sweep
from trainables.architectures import build
from trainables.errors import BadInputError
from trainables.persistence.store import Store
from trainables.persistence.stored_run import StoredRun, describe_ignored
from trainables.persistence.trial_run import MODEL_ARTIFACT
from trainables.result import Result
from trainables.trial import Trial

if TYPE_CHECKING:
    from torch import nn

READERS = 8  # results that are read at the same time from a server
MAX_TRIALS_NAMED = 12  # in a list of trials; it counts the others


@dataclass(frozen=True)
class SweepResults:
    """Results of the trials that a sweep names.

    Attributes:
        data: Arrays with the sweep's axes as dimensions. There is one for each recorded quantity, which has the
            dimension `step` too, and `test_accuracy`, `trial_id`, `diverged` and `stuck` (see `sweeps/stuck.py`). A
            missing trial has NaN, the id "" and False. A trial that diverged has NaN after its last record and as its
            test accuracy, and is not stuck. The test accuracies of a search's round are not read: they are all NaN.
        by_trial: Exact result of each finished trial by its id.
        missing: Labels of the trials that are not finished; empty unless missing trials were allowed.
        sweep: Sweep whose trials were loaded.
        store: Store that they were loaded from.
        runs: Run of each finished trial by the trial's id.
    """

    data: xr.Dataset
    by_trial: Mapping[str, Result]
    missing: Sequence[str]
    sweep: Sweep
    store: Store
    runs: Mapping[str, StoredRun]

    @property
    def diverged(self) -> list[str]:
        """Labels of the trials that diverged, in the sweep's order."""
        return self._list_marked("diverged")

    @property
    def stuck(self) -> list[str]:
        """Labels of the trials that are stuck at chance, in the sweep's order."""
        return self._list_marked("stuck")

    def _list_marked(self, mark: str) -> list[str]:
        """Return the labels of the trials for which a variable of `data` is true."""
        marked = set(self.data.trial_id.values[self.data[mark].values].tolist())
        return [label for trial_id, label in self.sweep.labels().items() if trial_id in marked]

    def find_trial(self, trial_id: str) -> Trial:
        """Return the sweep's trial with this id."""
        return next(trial for trial in self.sweep.trials() if trial.id == trial_id)

    def load_model(self, trial_id: str, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Load the trained network of a trial from its run's artifact, and put it in eval mode.

        Only tensors are read from the file, so that no code in it can run.

        Args:
            trial_id: Id of a finished trial.
            input_shape: Shape of an image, `(channels, height, width)`.
            classes: Number of the network's outputs.

        Raises:
            BadInputError: The artifact is missing or damaged.
        """
        import torch

        trial = self.find_trial(trial_id)
        network = build(
            trial.architecture, input_shape, classes=classes, activation=trial.activation, pooling=trial.pooling
        )
        with self.store.open_artifact(self.runs[trial_id], MODEL_ARTIFACT) as path:
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return network.eval()


def load_results(sweep: Sweep, store: Store, fill: str, *, allow_missing: bool = False) -> SweepResults:
    """Load the results of a sweep's trials from the store.

    Args:
        sweep: Sweep whose trials are loaded, and no others.
        store: Store to load them from.
        fill: Command that trains the missing trials, for the error's message.
        allow_missing: True to load the finished trials even if others are missing.

    Raises:
        BadInputError: A trial is missing although all must be there, none is finished, one has two finished runs, or
            an artifact cannot be read.
    """
    recorded = store.find_runs()
    found: dict[str, StoredRun] = {}
    missing: list[str] = []
    labels = sweep.labels()
    for trial in sweep.trials():
        runs = [run for run in recorded.get(trial.id, []) if run.finished]
        if len(runs) > 1:
            ids = ", ".join(run.run_id for run in runs)
            raise BadInputError(
                f"'{labels[trial.id]}' has {len(runs)} finished runs ({ids}); delete all but one in the MLflow UI"
            )
        if runs:
            found[trial.id] = runs[0]
        else:
            missing.append(labels[trial.id])
    if not found or (missing and not allow_missing):
        ignored = describe_ignored(store.ignored.values(), labels)
        sentence = describe_missing(len(sweep.trials()), missing, fill, allow_missing)
        raise BadInputError(f"{sentence}; {ignored}" if ignored else sentence)
    by_trial = read_results(store, found)
    return SweepResults(arrange_on_axes(sweep, by_trial), by_trial, missing, sweep, store, found)


def read_results(store: Store, runs: Mapping[str, StoredRun]) -> dict[str, Result]:
    """Read the results of runs by trial id, several at a time from a server, as most of the time it is waited for."""
    at_once = READERS if store.uri.startswith("http") else 1
    with ThreadPoolExecutor(at_once) as pool:
        return dict(zip(runs, pool.map(store.read_result, runs.values()), strict=True))


def describe_missing(trials: int, missing: Sequence[str], fill: str, allow_missing: bool) -> str:
    """Return a sentence that counts and names the missing trials and gives the command that trains them.

    Args:
        trials: Number of the sweep's trials.
        missing: Labels of the missing trials.
        fill: Command that trains them.
        allow_missing: True if `--allow-missing` is given already; if it is not, the sentence suggests it.
    """
    hint = "" if allow_missing else ", or draw what is there with --allow-missing"
    return f"{len(missing)} of {trials} trials are not finished ({name_trials(missing)}); train them with: {fill}{hint}"


def name_trials(names: Sequence[str]) -> str:
    """Return the names of some trials, as text that counts those that it does not name."""
    more = f" and {len(names) - MAX_TRIALS_NAMED} more" if len(names) > MAX_TRIALS_NAMED else ""
    return "; ".join(names[:MAX_TRIALS_NAMED]) + more


def arrange_on_axes(sweep: Sweep, by_trial: Mapping[str, Result]) -> xr.Dataset:
    """Arrange results on the sweep's axes and on the union of their steps, with NaN where a trial has no record.

    Returns:
        The dataset that `SweepResults.data` describes.

    Raises:
        BadInputError: A result does not have the curves that its trial records.
    """
    dims = list(sweep.axes)
    shape = tuple(len(values) for values in sweep.axes.values())
    steps = np.unique(np.concatenate([result.steps for result in by_trial.values()]))
    quantities = list(dict.fromkeys(name for result in by_trial.values() for name in result.curves))
    curves = {name: np.full((*shape, len(steps)), np.nan) for name in quantities}
    test_accuracy = np.full(shape, np.nan)
    diverged, stuck = np.full(shape, False), np.full(shape, False)
    ids = np.full(shape, "", dtype="<U16")
    for index, (_, trial) in zip(np.ndindex(shape), sweep.cells(), strict=True):
        if (result := by_trial.get(trial.id)) is not None:
            check_curves(trial, result)
            ids[index] = trial.id
            if sweep.shows_test:
                test_accuracy[index] = result.test_accuracy
            diverged[index] = result.diverged
            stuck[index] = is_stuck_result(trial, result)
            recorded = np.searchsorted(steps, result.steps)
            for name, curve in result.curves.items():
                curves[name][index][recorded] = curve
    return xr.Dataset(
        {
            **{name: ([*dims, "step"], curve) for name, curve in curves.items()},
            "test_accuracy": (dims, test_accuracy),
            "trial_id": (dims, ids),
            "diverged": (dims, diverged),
            "stuck": (dims, stuck),
        },
        coords={**{name: list(values) for name, values in sweep.axes.items()}, "step": steps},
    )


def check_curves(trial: Trial, result: Result) -> None:
    """Raise `BadInputError` if a result does not have one value of each of the trial's quantities at every step."""
    lengths = {name: len(curve) for name, curve in result.curves.items()}
    if set(lengths) != set(trial.quantities) or set(lengths.values()) - {len(result.steps)} or not len(result.steps):
        raise BadInputError(
            f"the artifact of trial {trial.id} holds {lengths} records for {len(result.steps)} steps, not one of each "
            f"of {', '.join(trial.quantities)} a step; put back a good copy of it, or delete its run in the MLflow UI "
            "and run the sweep again"
        )


def select_finished(data: xr.Dataset, **values: Any) -> xr.Dataset:
    """Select the finished trials at the given values of all axes but the seed, along `seed`.

    Trials that diverged are finished too. Means must leave them out with `select_completed`.
    """
    runs = data.sel(values)
    return runs.isel(seed=(runs.trial_id != "").values)


def select_completed(runs: xr.Dataset) -> xr.Dataset:
    """Select the trials that trained to the end, without diverging, among finished trials along one dimension."""
    return runs.isel({runs.diverged.dims[0]: ~runs.diverged.values})


def select_learnt(runs: xr.Dataset) -> xr.Dataset:
    """Select the trials that trained to the end and are not stuck, among finished trials along one dimension."""
    return runs.isel({runs.diverged.dims[0]: ~runs.diverged.values & ~runs.stuck.values})


def list_diverged_seeds(runs: xr.Dataset) -> list[int]:
    """Return the seeds of the trials that diverged, among finished trials along `seed`."""
    return [int(seed) for seed in runs.seed.values[runs.diverged.values]]


def list_stuck_seeds(runs: xr.Dataset) -> list[int]:
    """Return the seeds of the trials that are stuck, among finished trials along `seed`."""
    return [int(seed) for seed in runs.seed.values[runs.stuck.values]]


def summarise_learnt(runs: xr.Dataset) -> dict[str, float]:
    """Return the share of finished trials that learnt, with its 95 % interval by Wilson, and their mean test accuracy.

    The share, from 0 to 1, is of all finished trials: those that diverged have not learnt either. The keys are columns
    of tables; the mean is in %.

    Args:
        runs: Finished trials along one dimension.
    """
    learnt = select_learnt(runs)
    share = compute_share_interval(learnt.diverged.size, runs.diverged.size)
    return {
        "learnt_share": share.share,
        "learnt_share_ci95_low": share.low,
        "learnt_share_ci95_high": share.high,
        "learnt_mean": float(compute_mean_interval(learnt.test_accuracy.values).mean),
    }


def find_best_run(data: xr.Dataset) -> xr.Dataset | None:
    """Return the trial with the highest test accuracy, or None if all trials are missing or diverged."""
    if not data.test_accuracy.notnull().any():
        return None
    return data.isel(data.test_accuracy.argmax(...))


def compute_mean_curve(curves: xr.DataArray) -> list[float]:
    """Return the mean curve over `seed`: NaN where one of the curves is NaN, and empty without any seed."""
    return curves.mean("seed", skipna=False).values.tolist() if curves.sizes["seed"] else []


def has_any_finished(sweep: Sweep, store: Store) -> bool:
    """Return True if at least one of the sweep's trials is finished in the store."""
    recorded = store.find_runs()
    return any(run.finished for trial in sweep.trials() for run in recorded.get(trial.id, []))


def list_accuracies_by_epoch(run: xr.Dataset) -> dict[str, Any]:
    """Return a trial's accuracies on the whole training and test sets after each epoch, in the format of exports.

    The entry "diverged" is there only if the trial diverged; the lists then end with the last recorded epoch. The entry
    "stuck" is there only if the trial is stuck.
    """
    return {
        "train_accuracy": run.train_set_accuracy.dropna("step").values.tolist(),
        "test_accuracy": run.test_set_accuracy.dropna("step").values.tolist(),
        **({"diverged": True} if run.diverged else {}),
        **({"stuck": True} if run.stuck else {}),
    }

"""From the tracking store to named axes: loads exactly the trials that a sweep names, and raises on gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from sweeps.sweep import Sweep
from trainables.architectures import build
from trainables.errors import BadInputError
from trainables.persistence.store import Store, StoredRun
from trainables.persistence.trial_run import MODEL_ARTIFACT
from trainables.result import Result
from trainables.trial import Trial

if TYPE_CHECKING:
    from torch import nn

MAX_TRIALS_NAMED = 12  # missing trials listed in a message


@dataclass(frozen=True)
class SweepResults:
    """A sweep's results.

    Attributes:
        data: A variable for each recorded quantity, with the sweep's axes and `step` as dimensions; `test_accuracy`,
            `trial_id` and `diverged` with the axes alone. NaN, "" and False where a trial is missing; NaN after the
            last record of a trial that diverged, and as its test accuracy.
        results: trial id → its exact result.
        missing: Readable names of the trials that are not there, empty unless that was allowed.
        sweep: Where all this comes from.
        store: Where all this comes from.
        runs: trial id → its run.
    """

    data: xr.Dataset
    results: Mapping[str, Result]
    missing: Sequence[str]
    sweep: Sweep
    store: Store
    runs: Mapping[str, StoredRun]

    @property
    def diverged(self) -> list[str]:
        """Readable names of the trials that diverged, in the sweep's order."""
        diverged = {trial_id for trial_id, result in self.results.items() if result.diverged}
        return [name for trial_id, name in self.sweep.labels().items() if trial_id in diverged]

    def trial(self, trial_id: str) -> Trial:
        """The trial of an id."""
        return next(trial for trial in self.sweep.trials() if trial.id == trial_id)

    def model(self, trial_id: str, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
        """The trained network of a trial, in eval mode, from its run's artifact (read without pickle)."""
        import torch

        trial = self.trial(trial_id)
        network = build(
            trial.architecture, input_shape, classes=classes, activation=trial.activation, pooling=trial.pooling
        )
        with self.store.open_artifact(self.runs[trial_id], MODEL_ARTIFACT) as path:
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return network.eval()


def load_results(sweep: Sweep, store: Store, *, fill: str, allow_missing: bool = False) -> SweepResults:
    """Load the sweep's trials, all of them or, if allowed, those that are finished.

    Args:
        fill: The command that trains what is missing, for the message.

    Raises:
        BadInputError: A trial is missing, has two finished runs, or has an artifact that cannot be read.
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
        raise BadInputError(describe_missing(len(sweep.trials()), missing, fill, allow_missing))
    results = {trial_id: store.read_result(run) for trial_id, run in found.items()}
    return SweepResults(arrange_on_axes(sweep, results), results, missing, sweep, store, found)


def describe_missing(trials: int, missing: Sequence[str], fill: str, allow_missing: bool) -> str:
    """One sentence that names the missing trials and how to get them."""
    more = f" and {len(missing) - MAX_TRIALS_NAMED} more" if len(missing) > MAX_TRIALS_NAMED else ""
    hint = "" if allow_missing else ", or draw what is there with --allow-missing"
    names = "; ".join(missing[:MAX_TRIALS_NAMED])
    return f"{len(missing)} of {trials} trials are not finished ({names}{more}); train them with: {fill}{hint}"


def arrange_on_axes(sweep: Sweep, results: Mapping[str, Result]) -> xr.Dataset:
    """Arrange results on the sweep's axes, on the union of their steps: NaN where a trial has no record."""
    dims = list(sweep.axes)
    shape = tuple(len(values) for values in sweep.axes.values())
    steps = np.unique(np.concatenate([result.steps for result in results.values()]))
    quantities = list(dict.fromkeys(name for result in results.values() for name in result.curves))
    curves = {name: np.full((*shape, len(steps)), np.nan) for name in quantities}
    test_accuracy = np.full(shape, np.nan)
    diverged = np.full(shape, False)
    ids = np.full(shape, "", dtype="<U16")
    for index, (_, trial) in zip(np.ndindex(shape), sweep.cells(), strict=True):
        check_curves(trial, results.get(trial.id))
        if (result := results.get(trial.id)) is not None:
            ids[index] = trial.id
            test_accuracy[index] = result.test_accuracy
            diverged[index] = result.diverged
            where = np.searchsorted(steps, result.steps)
            for name, curve in result.curves.items():
                curves[name][index][where] = curve
    return xr.Dataset(
        {
            **{name: ([*dims, "step"], curve) for name, curve in curves.items()},
            "test_accuracy": (dims, test_accuracy),
            "trial_id": (dims, ids),
            "diverged": (dims, diverged),
        },
        coords={**{name: list(values) for name, values in sweep.axes.items()}, "step": steps},
    )


def check_curves(trial: Trial, result: Result | None) -> None:
    """Raise `BadInputError` if an artifact does not hold what its trial records."""
    if result is None:
        return
    lengths = {name: len(curve) for name, curve in result.curves.items()}
    if set(lengths) != set(trial.quantities) or set(lengths.values()) - {len(result.steps)}:
        raise BadInputError(
            f"the artifact of trial {trial.id} holds {lengths} records for {len(result.steps)} steps, not one of each "
            f"of {', '.join(trial.quantities)} a step; delete its run in the MLflow UI and run the sweep again"
        )


def select_finished(data: xr.Dataset, **values: Any) -> xr.Dataset:
    """The finished trials at these values of all axes but the seed, along `seed`: none of them is missing.

    Those that diverged are among them. `completed` leaves them out, which every mean must do.
    """
    runs = data.sel(values)
    return runs.isel(seed=(runs.trial_id != "").values)


def select_completed(runs: xr.Dataset) -> xr.Dataset:
    """Those of finished trials, along one dimension, that trained to the end: none of them diverged."""
    return runs.isel({runs.diverged.dims[0]: ~runs.diverged.values})


def list_diverged_seeds(runs: xr.Dataset) -> list[int]:
    """The seeds of the trials along `seed` that diverged."""
    return [int(seed) for seed in runs.seed.values[runs.diverged.values]]


def find_best_run(data: xr.Dataset) -> xr.Dataset | None:
    """The trial with the highest test accuracy; None where all trials are missing or diverged."""
    if not data.test_accuracy.notnull().any():
        return None
    return data.isel(data.test_accuracy.argmax(...))


def compute_mean_curve(curves: xr.DataArray) -> list[float]:
    """The mean over seeds, NaN where a value is not finite; empty where no seed is there."""
    return curves.mean("seed", skipna=False).values.tolist() if curves.sizes["seed"] else []


def has_any_finished(sweep: Sweep, store: Store) -> bool:
    """Whether the store has at least one of the sweep's trials."""
    recorded = store.find_runs()
    return any(run.finished for trial in sweep.trials() for run in recorded.get(trial.id, []))


def list_accuracies_by_epoch(run: xr.Dataset) -> dict[str, Any]:
    """A run's accuracies on the whole sets after every epoch, in the exports' format; one that diverged says so."""
    return {
        "train_accuracy": run.train_set_accuracy.dropna("step").values.tolist(),
        "test_accuracy": run.test_set_accuracy.dropna("step").values.tolist(),
        **({"diverged": True} if run.diverged else {}),
    }

"""Every analysis on runs made by hand: known means in its exports, and gaps that it draws around."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import analysis.grid
import analysis.mnist
import analysis.part3
import analysis.part4
import analysis.part5
import analysis.pooling
import analysis.xor
from analysis.output import Drawing, GalleryDrawing, Output
from analysis.part5 import Part5Drawing
from analysis.results import load
from sweeps.grid import Grid
from sweeps.mnist import Mnist
from sweeps.options import Selection
from sweeps.part3 import Part3
from sweeps.part4 import Part4
from sweeps.part5 import Part5
from sweeps.pooling import Pooling
from sweeps.xor import Xor
from trainables.architectures import build
from trainables.result import Result
from trainables.tracking import Store
from trainables.training import record_steps
from trainables.trial import Trial
from trainables.xor import initial_weights

IMAGES = 1297  # of digits, without the validation images


def hand_made(trial: Trial) -> Result:
    """Every curve of seed s is s everywhere, so that the mean over seeds 0 … S−1 is (S − 1) / 2."""
    steps = record_steps(trial, 4 if trial.dataset == "xor" else IMAGES if trial.pipeline is None else 1437)
    curves: dict[str, Any] = {name: np.full(len(steps), trial.seed, np.float32) for name in trial.quantities}
    weights = initial_weights(trial.seed) if trial.dataset == "xor" else np.full((16, 1, 3, 3), trial.seed, np.float32)
    return Result(steps, curves, 50.0 + trial.seed, weights)


def save_model(trial: Trial) -> Callable[[Path], None]:
    """An untrained network in the place of a trained one."""
    channels = 3 if trial.pipeline == "colour" else 1
    model = build(
        trial.architecture,
        (channels, 32, 32),
        classes=2 if trial.task else 10,
        activation=trial.activation,
        pooling=trial.pooling,
    )
    return lambda path: torch.save(model.state_dict(), path)


def record(store: Store, selection: Selection, leave_out: Callable[[Trial], bool] = lambda trial: False) -> None:
    """Write all trials of all stages into the store, but for some."""
    experiment_id, parent = store.parent(selection.experiment, "digits")
    for sweep in selection.stages(lambda trial: None):
        for trial in sweep.trials():
            if not leave_out(trial):
                run = store.open(trial, sweep.labels()[trial.id], experiment_id, parent, {})
                result = hand_made(trial)
                model = save_model(trial) if selection.experiment in ("mnist", "pooling") else None
                run.finish(result, int(result.steps[-1]), {}, model)


def draw(store: Store, selection: Any, folder: Path, module: Any, drawing: Drawing) -> None:
    stages = [load(s, store, fill="", allow_missing=True) for s in selection.stages(store.reader())]
    module.draw(selection, stages, Output(folder), drawing)


SMALL: dict[str, Any] = {"dataset": "digits", "seeds": 3, "epochs": 2}
CASES: list[tuple[Selection, Any, Drawing]] = [
    (Part3(**SMALL, architectures=("mlp_1", "cnn_3")), analysis.part3, Drawing()),
    (Part4(**SMALL, architectures=("mlp_1", "cnn_3")), analysis.part4, Drawing()),
    (Part5(**SMALL, schedule_epochs=3, milestones=(20, 40)), analysis.part5, Part5Drawing()),
    (Xor(seeds=3, epochs=3), analysis.xor, Drawing()),
    (Mnist(**SMALL), analysis.mnist, GalleryDrawing()),
    (Pooling(**SMALL, batch_sizes=(25, 50)), analysis.pooling, GalleryDrawing()),
    (Grid(**SMALL, architectures=("mlp_1", "cnn_3"), batch_sizes=(10, 50)), analysis.grid, analysis.grid.GridDrawing()),
]
LAST: dict[str, Callable[[Trial], bool]] = {  # the value of one axis of which nothing is there
    "part3": lambda trial: trial.architecture == "cnn_3",
    "part4": lambda trial: trial.activation == "sigmoid" and trial.architecture == "cnn_3",
    "part5": lambda trial: trial.learning_rate == 0.001,
    "xor": lambda trial: trial.noise_sigma == 2,
    "mnist": lambda trial: trial.task == "even_odd",
    "pooling": lambda trial: trial.batch_size == 50,
    "grid": lambda trial: trial.batch_size == 50,
}


@pytest.mark.parametrize(("selection", "module", "drawing"), CASES, ids=[case[0].experiment for case in CASES])
@pytest.mark.slow
@pytest.mark.parametrize("gap", ["a seed", "a value"])
def test_draws_what_is_there(
    selection: Selection, module: Any, drawing: Drawing, gap: str, store: Store, tmp_path: Path
) -> None:
    name = selection.experiment
    leave_out = {"a seed": lambda trial: trial.seed == 1, "a value": LAST[name]}[gap]
    record(store, selection, leave_out)
    draw(store, selection, tmp_path / "out", module, drawing)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files >= {"curves.png" if name == "grid" else f"{name}.png", "table.md"}
    seeds = [0, 2] if gap == "a seed" else [0, 1, 2]
    check = EXPORTS.get(name)
    if check is not None:
        check(tmp_path / "out", seeds)


def exported(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


def check_part4(folder: Path, seeds: list[int]) -> None:
    export = exported(folder, "part4_mlp_1")
    assert export["sigmoid_grad_curve"] == [np.mean(seeds)] * 5
    assert export["relu_loss_curve"] == [np.mean(seeds)] * 5


def check_part5(folder: Path, seeds: list[int]) -> None:
    assert exported(folder, "part5_cnn_3")["val_acc_curve_01"] == [np.mean(seeds)] * 5
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["seeds"] for row in rows] == [str(len(seeds))] * 2
    assert rows[0]["epochs_to_60"] == "never"


def check_xor(folder: Path, seeds: list[int]) -> None:
    assert {row["seed"] for row in exported(folder, "xor")["seeds"]} == {46, *seeds}


def check_mnist(folder: Path, seeds: list[int]) -> None:
    trials = exported(folder, "mnist")["trials"]
    assert {trial["seed"] for trial in trials} == set(seeds)
    assert all(trial["test_accuracy"] == [trial["seed"]] * 2 for trial in trials)


def check_pooling(folder: Path, seeds: list[int]) -> None:
    export = exported(folder, "pooling")
    assert export["parameters"] == {"a": 34538, "b": 34538, "c": 22058}
    assert {trial["seed"] for trial in export["trials"]} == set(seeds)


def check_grid(folder: Path, seeds: list[int]) -> None:
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["seeds"], float(row["test_mean"])) for row in rows} == {(str(len(seeds)), 50 + np.mean(seeds))}


EXPORTS: dict[str, Callable[[Path, list[int]], None]] = {
    "part4": check_part4,
    "part5": check_part5,
    "xor": check_xor,
    "mnist": check_mnist,
    "pooling": check_pooling,
    "grid": check_grid,
}

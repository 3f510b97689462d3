"""Analysis on runs made by hand, with known means, gaps and duplicates."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import make_sweep
from matplotlib.figure import Figure

from analysis import figures
from analysis.output import Drawing, Output, finite, markdown
from analysis.part3 import draw
from analysis.results import Loaded, load
from sweeps.part3 import Part3
from sweeps.sweep import Sweep
from trainables.result import Result
from trainables.tracking import Store
from trainables.trial import BadInputError, Trial

RECORDS = 6
FILL = "python sweeps/part3.py"


def hand_made(trial: Trial) -> Result:
    """Curves whose mean over seeds 0 … S−1 is known: seed s adds s to every point."""
    rising = np.arange(RECORDS, dtype=np.float32)
    shape = (32, 784) if trial.architecture.startswith("mlp") else (16, 1, 3, 3)
    return Result(
        steps=np.arange(10, 10 * RECORDS + 1, 10),
        curves={
            "train_loss": 10 - rising + trial.seed,
            "train_accuracy": 10 * rising + trial.seed,
            "val_accuracy": 9 * rising + trial.seed,
        },
        test_accuracy=80.0 + trial.seed,
        first_layer=np.full(shape, trial.seed, np.float32),
    )


def record(store: Store, sweep: Sweep, *, leave_out: tuple[str, ...] = ()) -> None:
    """Write the sweep's trials into the store, but for some."""
    experiment_id, parent = store.parent(sweep.name, "digits")
    for trial in sweep.trials():
        if sweep.labels()[trial.id] not in leave_out:
            run = store.open(trial, sweep.labels()[trial.id], experiment_id, parent, {})
            run.finish(hand_made(trial), 10 * RECORDS, {})


def test_named_axes(store: Store) -> None:
    sweep = make_sweep(seeds=3)
    record(store, sweep)
    data = load(sweep, store, fill=FILL).data
    assert dict(data.train_loss.sizes) == {"seed": 3, "architecture": 2, "step": RECORDS}
    assert data.step.values.tolist() == [10, 20, 30, 40, 50, 60]
    assert data.test_accuracy.sel(architecture="cnn_3", seed=2) == 82
    assert data.train_loss.sel(architecture="mlp_1").mean("seed").values.tolist() == [11, 10, 9, 8, 7, 6]


def test_trials_of_other_sweeps_are_left_out(store: Store) -> None:
    record(store, make_sweep(seeds=3))
    assert load(make_sweep(seeds=2), store, fill=FILL).data.sizes["seed"] == 2


def test_gaps_are_named_with_the_command_that_fills_them(store: Store) -> None:
    sweep = make_sweep(seeds=2)
    record(store, sweep, leave_out=("cnn_3 · seed 1",))
    with pytest.raises(
        BadInputError, match=r"1 of 4 trials are not finished \(cnn_3 · seed 1\); train them with: pyth"
    ):
        load(sweep, store, fill=FILL)


def test_a_running_trial_is_a_gap(store: Store) -> None:
    sweep = make_sweep(seeds=1)
    record(store, sweep, leave_out=("cnn_3 · seed 0",))
    store.open(sweep.trials()[1], "cnn_3 · seed 0", *store.parent("part3", "digits"), {})
    with pytest.raises(BadInputError, match="cnn_3 · seed 0"):
        load(sweep, store, fill=FILL)


def test_allowed_gaps_are_nan_and_reported(store: Store) -> None:
    sweep = make_sweep(seeds=2)
    record(store, sweep, leave_out=("cnn_3 · seed 1",))
    loaded = load(sweep, store, fill=FILL, allow_missing=True)
    assert loaded.missing == ["cnn_3 · seed 1"]
    assert np.isnan(loaded.data.val_accuracy.sel(architecture="cnn_3", seed=1)).all()
    assert not np.isnan(loaded.data.val_accuracy.sel(architecture="cnn_3", seed=0)).any()


def test_nothing_at_all_is_an_error_even_if_gaps_are_allowed(store: Store) -> None:
    with pytest.raises(BadInputError, match="4 of 4 trials are not finished"):
        load(make_sweep(), store, fill=FILL, allow_missing=True)


def test_two_finished_runs_of_a_trial_are_an_error(store: Store) -> None:
    sweep = make_sweep(seeds=1)
    record(store, sweep)
    [first] = store.recorded()[sweep.trials()[0].id]
    twin = store.client.create_run(store.parent("part3", "digits")[0], tags={"trial_id": sweep.trials()[0].id})
    store.client.set_terminated(twin.info.run_id)
    with pytest.raises(BadInputError, match=f"'mlp_1 · seed 0' has 2 finished runs .*{first.run_id}"):
        load(sweep, store, fill=FILL)


def test_an_artifact_without_a_quantity_is_an_error(store: Store) -> None:
    sweep = make_sweep(seeds=1)
    experiment_id, parent = store.parent(sweep.name, "digits")
    for trial in sweep.trials():
        result = hand_made(trial)
        del result.curves["val_accuracy"]
        store.open(trial, "x", experiment_id, parent, {}).finish(result, 60, {})
    with pytest.raises(BadInputError, match="not one of each of train_loss, train_accuracy, val_accuracy"):
        load(sweep, store, fill=FILL)


@pytest.fixture
def loaded(store: Store) -> Loaded:
    sweep = make_sweep(seeds=3)
    record(store, sweep)
    return load(sweep, store, fill=FILL)


def test_part3_writes_what_the_report_asks(loaded: Loaded, tmp_path: Path) -> None:
    output = Output(tmp_path / "figures")
    draw(Part3(epochs=2, dataset="digits"), [loaded], output, Drawing())
    assert {path.name for path in output.written} == {
        *("part3.png", "part3.pdf", "table.csv", "table.md"),
        *("weights_mlp_1.png", "weights_cnn_3.png", "part3_mlp_1.json", "part3_cnn_3.json"),
    }
    assert all(path.stat().st_size > 0 for path in output.written)
    export = json.loads((tmp_path / "figures" / "part3_cnn_3.json").read_text())
    assert list(export) == ["name", "loss_curve", "train_acc_curve", "val_acc_curve", "test_acc", "weights"]
    assert export["name"] == "cnn_3"
    assert export["loss_curve"] == [11, 10, 9, 8, 7, 6]
    assert export["train_acc_curve"] == [1, 11, 21, 31, 41, 51]
    assert export["val_acc_curve"] == [1, 10, 19, 28, 37, 46]
    assert export["test_acc"] == 82
    assert np.array(export["weights"]).shape == (16, 1, 3, 3)
    assert np.array(export["weights"]).max() == 2  # of the best run, seed 2
    with (tmp_path / "figures" / "table.csv").open() as file:
        [row, _] = csv.DictReader(file)
    assert (row["architecture"], row["seeds"], float(row["test_mean"]), float(row["best_test"])) == (
        "mlp_1",
        "3",
        81,
        82,
    )
    assert float(row["test_ci95_high"]) == pytest.approx(81 + 4.302653 / 3**0.5)  # t of 2 degrees of freedom, SD 1
    assert float(row["test_sd"]) == 1


def test_part3_draws_around_gaps(store: Store, tmp_path: Path) -> None:
    sweep = make_sweep(seeds=2)
    record(store, sweep, leave_out=("cnn_3 · seed 0", "cnn_3 · seed 1", "mlp_1 · seed 1"))
    loaded = load(sweep, store, fill=FILL, allow_missing=True)
    draw(Part3(epochs=2, dataset="digits"), [loaded], Output(tmp_path), Drawing())
    assert not (tmp_path / "part3_cnn_3.json").exists()
    assert json.loads((tmp_path / "part3_mlp_1.json").read_text())["loss_curve"] == [10, 9, 8, 7, 6, 5]


def test_an_incomplete_figure_says_so(tmp_path: Path) -> None:
    figure = Figure()
    Output(tmp_path).figure(figure, "x", missing=["cnn_3 · seed 1"])
    assert [text.get_text() for text in figure.texts] == ["incomplete: 1 trials missing"]


@pytest.mark.parametrize(
    ("seeds", "meaning"),
    [(1, "a single seed"), (3, "thin lines: the 3 seeds"), (6, "95 % CI of the mean")],
)
def test_a_band_says_what_it_is(store: Store, seeds: int, meaning: str) -> None:
    sweep = make_sweep(seeds=seeds)
    record(store, sweep)
    band = figures.band(load(sweep, store, fill=FILL).data.train_loss.sel(architecture="mlp_1"))
    assert meaning in band.meaning
    if seeds == 6:
        half = 2.570582 * np.std(range(6), ddof=1) / 6**0.5
        np.testing.assert_allclose(band.high - band.low, 2 * half, rtol=1e-5)
    else:
        assert np.isnan(band.low).all()
    assert band.runs.shape == (seeds, RECORDS)


def test_a_diverged_seed_is_not_averaged_in_silently(loaded: Loaded) -> None:
    curves = loaded.data.train_loss.sel(architecture="mlp_1").copy()
    curves[1, 3:] = np.nan
    band = figures.band(curves)
    assert np.isfinite(band.mean[:3]).all()
    assert np.isnan(band.mean[3:]).all()


def test_tiles_of_mlp_and_cnn() -> None:
    assert figures.tiles(np.zeros((32, 784), np.float32)).shape == (32, 28, 28)
    assert figures.tiles(np.zeros((32, 3 * 1024), np.float32)).shape == (96, 32, 32)
    assert figures.tiles(np.zeros((16, 3, 5, 5), np.float32)).shape == (48, 5, 5)


def test_numbers_that_are_not_finite_become_null() -> None:
    assert finite({"a": [1.0, float("nan")], "b": float("inf")}) == {"a": [1.0, None], "b": None}


def test_markdown_table() -> None:
    assert markdown([{"name": "a", "x": 1.234}]) == "| name | x |\n| --- | --- |\n| a | 1.23 |\n"

"""Loading and analysis of results made by hand: known means, missing, doubled and diverged trials."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from conftest import make_sweep
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import bands, figures, style, tiles
from analysis.output import DrawOptions, Output, format_markdown, main, replace_non_finite
from analysis.part3 import draw
from analysis.results import (
    SweepResults,
    find_best_run,
    has_any_finished,
    list_diverged_seeds,
    load_results,
    select_completed,
    select_finished,
)
from sweeps.driver.plan import Plan
from sweeps.driver.summary import group_by_setting, make_result_table
from sweeps.part3 import Part3
from sweeps.sweep import Sweep
from trainables.errors import BadInputError
from trainables.persistence.store import Store
from trainables.persistence.trial_run import RESULT_ARTIFACT, TrialRun
from trainables.result import Result
from trainables.trial import Trial

RECORDS = 6
DIVERGED_RECORDS = 4  # records of a trial that diverged
FILL = "python sweeps/part3.py"


def make_result(trial: Trial) -> Result:
    """Make a result with known means over seeds 0 … S−1: seed s adds s to every point of the curves."""
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


def cut_short(result: Result) -> Result:
    """Return the result of a trial that diverged: a huge loss, then NaN at its fourth and last record."""
    curves = {name: curve[:DIVERGED_RECORDS].copy() for name, curve in result.curves.items()}
    curves["train_loss"][-2:] = 1e30, np.nan
    return Result(result.steps[:DIVERGED_RECORDS], curves, float("nan"), result.first_layer)


def record(
    store: Store, sweep: Sweep, *, leave_out: tuple[str, ...] = (), diverged: tuple[str, ...] = ()
) -> dict[str, Result]:
    """Write the sweep's trials into the store, except those to leave out; return their results by label."""
    written = {}
    for trial in sweep.trials():
        name = sweep.labels()[trial.id]
        if name not in leave_out:
            written[name] = cut_short(make_result(trial)) if name in diverged else make_result(trial)
            write_run(store, trial, name, written[name])
    return written


def open_run(store: Store, trial: Trial, name: str) -> TrialRun:
    """Open the trial's run in the store, below the parent run of part 3."""
    return store.open_run(trial, name, *store.ensure_parent("part3", "digits"), {}, run_id=None)


def write_run(store: Store, trial: Trial, name: str, result: Result) -> None:
    """Write a finished trial into the store."""
    with TemporaryDirectory() as folder:
        result.save(Path(folder) / RESULT_ARTIFACT)
        open_run(store, trial, name).finish(result, int(result.steps[-1]), {}, Path(folder))


def test_results_have_named_axes(store: Store) -> None:
    sweep = make_sweep(seeds=3)
    record(store, sweep)
    data = load_results(sweep, store, fill=FILL).data
    assert dict(data.train_loss.sizes) == {"seed": 3, "architecture": 2, "step": RECORDS}
    assert data.step.values.tolist() == [10, 20, 30, 40, 50, 60]
    assert data.test_accuracy.sel(architecture="cnn_3", seed=2) == 82
    assert data.train_loss.sel(architecture="mlp_1").mean("seed").values.tolist() == [11, 10, 9, 8, 7, 6]


def test_trials_of_other_sweeps_are_left_out(store: Store) -> None:
    record(store, make_sweep(seeds=3))
    assert load_results(make_sweep(seeds=2), store, fill=FILL).data.sizes["seed"] == 2


def test_missing_trials_are_named_with_the_command_that_trains_them(store: Store) -> None:
    sweep = make_sweep(seeds=2)
    record(store, sweep, leave_out=("cnn_3 · seed 1",))
    with pytest.raises(
        BadInputError, match=r"1 of 4 trials are not finished \(cnn_3 · seed 1\); train them with: pyth"
    ):
        load_results(sweep, store, fill=FILL)


def test_a_running_trial_counts_as_missing(store: Store) -> None:
    sweep = make_sweep(seeds=1)
    record(store, sweep, leave_out=("cnn_3 · seed 0",))
    open_run(store, sweep.trials()[1], "cnn_3 · seed 0")
    with pytest.raises(BadInputError, match="cnn_3 · seed 0"):
        load_results(sweep, store, fill=FILL)


def test_missing_trials_that_are_allowed_are_nan_and_reported(store: Store) -> None:
    sweep = make_sweep(seeds=2)
    record(store, sweep, leave_out=("cnn_3 · seed 1",))
    results = load_results(sweep, store, fill=FILL, allow_missing=True)
    assert results.missing == ["cnn_3 · seed 1"]
    assert np.isnan(results.data.val_accuracy.sel(architecture="cnn_3", seed=1)).all()
    assert not np.isnan(results.data.val_accuracy.sel(architecture="cnn_3", seed=0)).any()


def test_a_store_without_trials_is_an_error_even_if_missing_ones_are_allowed(store: Store) -> None:
    with pytest.raises(BadInputError, match="4 of 4 trials are not finished"):
        load_results(make_sweep(), store, fill=FILL, allow_missing=True)


def test_two_finished_runs_of_a_trial_are_an_error(store: Store) -> None:
    sweep = make_sweep(seeds=1)
    record(store, sweep)
    [first] = store.find_runs()[sweep.trials()[0].id]
    twin = store.client.create_run(store.ensure_parent("part3", "digits")[0], tags={"trial_id": sweep.trials()[0].id})
    store.client.set_terminated(twin.info.run_id)
    with pytest.raises(BadInputError, match=f"'mlp_1 · seed 0' has 2 finished runs .*{first.run_id}"):
        load_results(sweep, store, fill=FILL)


def test_an_artifact_without_a_quantity_is_an_error(store: Store) -> None:
    sweep = make_sweep(seeds=1)
    for trial in sweep.trials():
        result = make_result(trial)
        del result.curves["val_accuracy"]
        write_run(store, trial, "x", result)
    with pytest.raises(BadInputError, match="not one of each of train_loss, train_accuracy, val_accuracy"):
        load_results(sweep, store, fill=FILL)


@pytest.fixture
def results(store: Store) -> SweepResults:
    sweep = make_sweep(seeds=3)
    record(store, sweep)
    return load_results(sweep, store, fill=FILL)


def test_part3_writes_the_files_that_the_report_asks_for(results: SweepResults, tmp_path: Path) -> None:
    output = Output(tmp_path / "figures")
    draw(Part3(epochs=2, dataset="digits"), [results], output, DrawOptions())
    assert {path.name for path in output.written} == {
        *("part3.png", "part3.pdf", "table.csv", "table.md"),
        *("weights_mlp_1.png", "weights_mlp_1.pdf", "weights_cnn_3.png", "weights_cnn_3.pdf"),
        *("part3_mlp_1.json", "part3_cnn_3.json"),
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
    assert np.array(export["weights"]).max() == 2  # weights of the best run, that of seed 2
    with (tmp_path / "figures" / "table.csv").open() as file:
        [row, _] = csv.DictReader(file)
    assert (row["architecture"], row["seeds"], float(row["test_mean"]), float(row["best_test"])) == (
        "mlp_1",
        "3",
        81,
        82,
    )
    assert float(row["test_ci95_high"]) == pytest.approx(81 + 4.302653 / 3**0.5)  # t with 2 degrees of freedom; SD 1
    assert float(row["test_sd"]) == 1


def test_part3_draws_the_trials_that_are_not_missing(store: Store, tmp_path: Path) -> None:
    sweep = make_sweep(seeds=2)
    record(store, sweep, leave_out=("cnn_3 · seed 0", "cnn_3 · seed 1", "mlp_1 · seed 1"))
    results = load_results(sweep, store, fill=FILL, allow_missing=True)
    draw(Part3(epochs=2, dataset="digits"), [results], Output(tmp_path), DrawOptions())
    assert not (tmp_path / "part3_cnn_3.json").exists()
    assert json.loads((tmp_path / "part3_mlp_1.json").read_text())["loss_curve"] == [10, 9, 8, 7, 6, 5]


def draw_note(stage: SweepResults, folder: Path) -> list[str]:
    """Return the lines of the note on a wide figure of a stage."""
    figure = Figure(figsize=(20, 2))
    Output(folder).save_figure(figure, "x", "A figure.", stage)
    return [line for text in figure.texts for line in text.get_text().splitlines()]


def test_a_figure_names_the_trials_that_it_leaves_out(store: Store, results: SweepResults, tmp_path: Path) -> None:
    assert draw_note(results, tmp_path) == []
    sweep = make_sweep(seeds=5)
    record(store, sweep, leave_out=("cnn_3 · seed 3",), diverged=("mlp_1 · seed 3", "mlp_1 · seed 4", "cnn_3 · seed 4"))
    few = load_results(sweep, store, fill=FILL, allow_missing=True)
    assert draw_note(few, tmp_path) == [
        "incomplete: 1 trial missing",
        "3 trials diverged, not in the means: mlp_1 · seed 3; mlp_1 · seed 4; cnn_3 · seed 4",
    ]


def test_a_note_names_only_the_first_trials(store: Store, tmp_path: Path) -> None:
    sweep = make_sweep(seeds=3)
    record(store, sweep, diverged=tuple(sweep.labels().values()))
    [line] = draw_note(load_results(sweep, store, fill=FILL), tmp_path)
    assert line.startswith("6 trials diverged, not in the means: ")
    assert line.endswith("; …")
    assert line.count("seed") == 3


@pytest.mark.parametrize(
    ("seeds", "meaning"),
    [
        (1, "Curves of a single seed."),
        (3, "Mean curves, n = 3 seeds; thin lines: single seeds."),
        (6, "thin lines: single seeds; bands: 95 % CI of the mean (Student's t, n = 6)."),
    ],
)
def test_a_band_describes_its_meaning(store: Store, seeds: int, meaning: str) -> None:
    sweep = make_sweep(seeds=seeds)
    record(store, sweep)
    band = bands.compute_band(
        select_finished(load_results(sweep, store, fill=FILL).data, architecture="mlp_1"), "train_loss"
    )
    assert meaning in bands.describe_bands([band])
    if seeds == 6:
        half = 2.570582 * np.std(range(6), ddof=1) / 6**0.5
        np.testing.assert_allclose(band.high - band.low, 2 * half, rtol=1e-5)
    else:
        assert np.isnan(band.low).all()
    assert band.runs.shape == (seeds, RECORDS)


def test_a_value_that_is_not_finite_leaves_a_gap_in_the_mean(results: SweepResults) -> None:
    runs = select_finished(results.data, architecture="mlp_1").copy(deep=True)
    runs.train_loss[1, 3:] = np.inf
    band = bands.compute_band(runs, "train_loss")
    assert np.isfinite(band.mean[:3]).all()
    assert np.isnan(band.mean[3:]).all()


# Trials that diverged


def draw_part3(store: Store, folder: Path, *diverged: str) -> SweepResults:
    """Draw part 3 with three seeds, some of which diverged."""
    sweep = make_sweep(seeds=3)
    record(store, sweep, diverged=diverged)
    results = load_results(sweep, store, fill=FILL)
    draw(Part3(epochs=2, dataset="digits"), [results], Output(folder), DrawOptions())
    return results


def read_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_diverged_trial_is_loaded_and_marked(store: Store) -> None:
    sweep = make_sweep(seeds=3)
    record(store, sweep, leave_out=("cnn_3 · seed 0",), diverged=("cnn_3 · seed 1",))
    results = load_results(sweep, store, fill=FILL, allow_missing=True)
    assert results.diverged == ["cnn_3 · seed 1"]
    assert results.data.diverged.sel(architecture="cnn_3").values.tolist() == [False, True, False]
    assert not results.data.diverged.sel(architecture="mlp_1").any()
    accuracy = results.data.train_accuracy.sel(architecture="cnn_3", seed=1).values
    np.testing.assert_array_equal(accuracy, [1, 11, 21, 31, np.nan, np.nan])
    runs = select_finished(results.data, architecture="cnn_3")
    assert runs.seed.values.tolist() == [1, 2]
    assert select_completed(runs).seed.values.tolist() == [2]
    assert list_diverged_seeds(runs) == [1]


def test_part3_leaves_a_diverged_seed_out_of_means_and_of_the_best_run(store: Store, tmp_path: Path) -> None:
    draw_part3(store, tmp_path, "cnn_3 · seed 2")
    export = json.loads((tmp_path / "part3_cnn_3.json").read_text())
    assert export["loss_curve"] == [10.5, 9.5, 8.5, 7.5, 6.5, 5.5]  # the mean of seeds 0 and 1, up to the last record
    assert export["test_acc"] == 81
    assert np.array(export["weights"]).max() == 1
    assert export["diverged_seeds"] == [2]
    assert "diverged_seeds" not in json.loads((tmp_path / "part3_mlp_1.json").read_text())
    mlp_1, cnn_3 = read_rows(tmp_path)
    assert (mlp_1["seeds"], mlp_1["diverged"], float(mlp_1["test_mean"])) == ("3", "0", 81)
    assert (cnn_3["seeds"], cnn_3["diverged"], float(cnn_3["test_mean"])) == ("2", "1", 80.5)


def test_part3_has_no_means_for_an_architecture_whose_seeds_all_diverged(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_part3(store, tmp_path, *(f"cnn_3 · seed {seed}" for seed in range(3)))
    assert "All trials of cnn_3 diverged" in capsys.readouterr().out
    assert not (tmp_path / "weights_cnn_3.png").exists()
    export = json.loads((tmp_path / "part3_cnn_3.json").read_text())
    assert list(export.values()) == ["cnn_3", [], [], [], None, None, [0, 1, 2]]
    assert (read_rows(tmp_path)[1]["seeds"], read_rows(tmp_path)[1]["diverged"]) == ("0", "3")
    assert "| cnn_3 | 0 | 3 | – | – | – | – | – | – |" in (tmp_path / "table.md").read_text()


def test_part3_draws_only_its_curves_if_all_trials_diverged(store: Store, tmp_path: Path) -> None:
    results = draw_part3(store, tmp_path, *make_sweep(seeds=3).labels().values())
    assert {path.name for path in tmp_path.glob("*.png")} == {"part3.png"}
    assert find_best_run(results.data) is None


def test_a_band_is_over_the_trials_that_did_not_diverge(store: Store) -> None:
    sweep = make_sweep(seeds=6)
    record(store, sweep, diverged=("mlp_1 · seed 5",))
    band = bands.compute_band(
        select_finished(load_results(sweep, store, fill=FILL).data, architecture="mlp_1"), "train_loss"
    )
    assert band.mean.tolist() == [12, 11, 10, 9, 8, 7]
    assert "n = 5 seeds" in bands.describe_bands([band])
    np.testing.assert_allclose((band.high - band.low) / 2, 2.776445 * np.std(range(5), ddof=1) / 5**0.5, rtol=1e-5)
    np.testing.assert_allclose(band.diverged, [[15, 14, 1e30, np.nan, np.nan, np.nan]])
    assert "×" in bands.describe_bands([band])


def draw_losses(store: Store, *diverged: str) -> tuple[bands.Band, Axes]:
    """Draw the losses of mlp_1 with three seeds, some of which diverged."""
    record(store, make_sweep(seeds=3), diverged=diverged)
    data = load_results(make_sweep(seeds=3), store, fill=FILL).data
    band = bands.compute_band(select_finished(data, architecture="mlp_1"), "train_loss")
    axes = Figure().subplots()
    figures.draw_band(axes, band, style.PALETTE[0])
    figures.limit_y_range(axes, [band])
    return band, axes


def test_a_diverged_run_is_drawn_to_its_end_but_the_other_runs_decide_the_range(store: Store) -> None:
    _, axes = draw_losses(store, "mlp_1 · seed 1")
    [cross] = [line for line in axes.lines if line.get_marker() == "x"]
    assert (cross.get_xdata().tolist(), cross.get_ydata().tolist()) == ([30], [pytest.approx(1e30)])  # type: ignore[union-attr]
    assert axes.get_ylim() == pytest.approx((4.65, 12.35))  # from 5 (seed 0, at the end) to 12 (seed 2, at the start)


def test_a_band_whose_runs_all_diverged_has_no_mean(store: Store) -> None:
    band, axes = draw_losses(store, *(f"mlp_1 · seed {seed}" for seed in range(3)))
    assert np.isnan(band.mean).all()
    assert band.diverged.shape == (3, RECORDS)
    assert bands.describe_bands([band]) == "No mean curves, as all trials diverged. A × is where a diverged trial ends."
    assert axes.get_ylim()[1] > 1e30  # only the diverged trials are left to decide the range


def test_limits_on_a_log_scale_ignore_zeros(results: SweepResults) -> None:
    band = bands.compute_band(select_finished(results.data, architecture="mlp_1"), "train_accuracy")
    assert band.runs[0, 0] == 0
    axes = Figure().subplots()
    axes.set_yscale("log")
    figures.limit_y_range(axes, [band])
    assert axes.get_ylim() == pytest.approx((1 / 52**0.05, 52 * 52**0.05))  # 1 is the start of seed 1


def test_the_script_names_the_trials_that_diverged(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Part3(dataset="digits", seeds=2, epochs=2, architectures=("mlp_1", "cnn_3"))
    record(store, options.sweep(), diverged=("cnn_3 · seed 1",))
    words = "part3.py --dataset digits --seeds 2 --epochs 2 --architectures mlp_1 cnn_3 --tracking-uri"
    monkeypatch.setattr("sys.argv", [*words.split(), store.uri, "--out", str(tmp_path / "out")])
    monkeypatch.setattr("sweeps.cli.stop_on_signals", lambda: None)
    with pytest.raises(SystemExit) as end:
        main(Part3, draw, "")
    assert end.value.code == 0
    assert "1 trial diverged, not in the means: cnn_3 · seed 1\n" in capsys.readouterr().out


def test_the_table_of_a_sweep_counts_diverged_trials(store: Store) -> None:
    sweep = make_sweep(seeds=2)
    record(store, sweep, diverged=("cnn_3 · seed 0", "cnn_3 · seed 1", "mlp_1 · seed 1"))
    table = make_result_table(group_by_setting(Plan(sweep, sweep.trials(), store.find_runs()), set()))
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert columns["trials"] == ["1", "0"]
    assert columns["diverged"] == ["1", "2"]
    assert columns["best\nrun"] == ["80.00", "–"]


def test_a_running_trial_does_not_count_as_finished(store: Store) -> None:
    sweep = make_sweep(seeds=1)
    open_run(store, sweep.trials()[0], "x")
    assert not has_any_finished(sweep, store)
    record(store, sweep, leave_out=("mlp_1 · seed 0",))
    assert has_any_finished(sweep, store)


def test_first_layer_weights_become_one_tile_per_unit_and_channel() -> None:
    assert tiles.reshape_to_tiles(np.zeros((32, 784), np.float32)).shape == (32, 28, 28)
    assert tiles.reshape_to_tiles(np.zeros((32, 3 * 1024), np.float32)).shape == (96, 32, 32)
    assert tiles.reshape_to_tiles(np.zeros((16, 3, 5, 5), np.float32)).shape == (48, 5, 5)


def test_numbers_that_are_not_finite_become_null() -> None:
    assert replace_non_finite({"a": [1.0, float("nan")], "b": float("inf")}) == {"a": [1.0, None], "b": None}


def test_a_markdown_table_has_a_dash_for_nan() -> None:
    rows = [{"name": "a", "x": 1.234}, {"name": "b", "x": float("nan")}]
    assert format_markdown(rows) == "| name | x |\n| --- | --- |\n| a | 1.23 |\n| b | – |\n"

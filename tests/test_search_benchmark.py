"""The benchmark of searches: its curves, its replay, what its rivals count, and a small run of all parts."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.search import HALVING, OURS
from benchmarks.search_curves import (
    Evaluation,
    SearchRun,
    compute_ratios,
    find_incumbents,
    list_incumbents,
    summarise,
    trace,
)
from benchmarks.search_replay import (
    Table,
    cut,
    make_grids,
    make_table,
    make_table_search,
    replay_grid,
    replay_optuna,
    replay_search,
)
from benchmarks.search_report import REGRET, PartReport, save_figure
from benchmarks.search_rivals import gather_reports, make_grid
from trainables.errors import BadInputError
from trainables.result import Result
from trainables.trial import Trial

ROOT = Path(__file__).resolve().parent.parent
SPACE = {
    "architecture": ["mlp_2", "cnn_3"],
    "learning_rate": {"low": 0.001, "high": 0.1, "whole": False},
    "batch_size": {"low": 20, "high": 80, "whole": True},
    "activation": ["relu", "tanh"],
    "pooling": ["max", "avg"],
    "optimizer": ["adam", "sgd"],
}


def make_run(scores: list[float], seconds: list[float | None], seed: int = 0, method: str = "ours") -> SearchRun:
    rows = zip(scores, seconds, strict=True)
    found = [Evaluation(3 * n, second, score, {"n": score}) for n, (score, second) in enumerate(rows, start=1)]
    return SearchRun(method, seed, found, max((s for s in seconds if s is not None), default=None))


def read_made_up(trial: Trial) -> Result:
    """Make up a result whose validation accuracy rises by a point with every record."""
    steps = np.arange(10, 26 * trial.epochs + 1, 10) if trial.batch_size == 50 else np.arange(10, 65 * trial.epochs, 10)
    level = (
        80
        + (trial.architecture == "cnn_3") * 2
        + (trial.optimizer == "adam")
        - abs(math.log10(trial.learning_rate) + 2)
    )
    curve = level + np.arange(len(steps)) / len(steps)
    return Result(steps, {"val_accuracy": curve}, 90.0, np.zeros((1, 1)))


@pytest.fixture
def table() -> Table:
    return make_table(make_grids("digits", 2, (0.001, 0.01, 0.1), (20, 50)), read_made_up)


def test_an_incumbent_is_better_than_all_before_it() -> None:
    run = make_run([50, 80, 70, 80, 90], [9.0, 4.0, 5.0, 6.0, 7.0])
    assert [e.score for e in find_incumbents(run.evaluations, "epochs")] == [50, 80, 90]
    assert [e.score for e in find_incumbents(run.evaluations, "seconds")] == [80, 90]
    assert run.incumbent is not None
    assert run.incumbent.score == 90
    assert run.seconds == 9


def test_a_curve_has_the_value_of_the_incumbent_from_its_end_on() -> None:
    run = make_run([50, 80, 70], [2.0, 4.0, 6.0])
    traced = trace(run, lambda e: 100 - e.score, "epochs", np.array([0.0, 2.9, 3, 6, 9, np.inf]))
    np.testing.assert_array_equal(traced, [math.nan, math.nan, 50, 20, 20, 20])


def test_incumbents_of_either_axis_are_confirmed_once() -> None:
    runs = [make_run([50, 80], [3.0, 2.0]), make_run([80, 60], [None, None])]
    assert [settings["n"] for settings in list_incumbents(runs).values()] == [50, 80]


def test_a_ratio_is_of_the_same_turn() -> None:
    runs = [
        *(make_run([1], [10.0 * (seed + 1)], seed) for seed in range(3)),
        *(make_run([1], [20.0], seed, "rival") for seed in range(2)),
        make_run([1], [None], 0, "without times"),
    ]
    assert compute_ratios(runs, "ours", lambda run: run.seconds) == {"rival": {"median": 0.75, "each": [0.5, 1.0]}}


def test_an_interval_needs_two_values() -> None:
    assert summarise([1.0, math.nan]) == {"mean": 1.0, "n": 1}
    assert summarise([1.0, 3.0])["low"] < 1


def test_a_grid_fits_into_its_budget() -> None:
    points = make_grid(SPACE, 20)
    assert len(points) == 20
    assert len({json.dumps(point) for point in points}) == 20
    assert sorted({point["learning_rate"] for point in points}) == pytest.approx(list(np.geomspace(0.001, 0.1, 5)))
    assert {point["batch_size"] for point in points} == {40}
    assert [point["learning_rate"] for point in make_grid(SPACE, 3)] == pytest.approx([0.01] * 3)


def test_reports_of_stopped_trials_count_in_the_budget() -> None:
    reports = [({"n": 1}, np.array([[1.0, 50], [3.0, 60], [5.0, 70]])), ({"n": 2}, np.array([[2.0, 40]]))]
    trials = gather_reports(reports)
    assert [(trial["settings"]["n"], trial["epochs"], trial["score"]) for trial in trials] == [(2, 2, 40), (1, 4, 70)]


def test_a_shorter_trial_has_the_beginning_of_the_result(table: Table) -> None:
    [trial] = {t for grid in make_grids("digits", 2, (0.01,), (50,))[:1] for t in grid.sweep().trials()[:1]}
    result = read_made_up(trial)
    assert list(cut(result, replace(trial, epochs=1)).steps) == [10, 20]
    assert table.scores[trial.id][0] == pytest.approx(result.curves["val_accuracy"][:2].mean())
    assert table.scores[trial.id][1] == pytest.approx(result.curves["val_accuracy"][2:].mean())


def test_a_table_survives_its_file(table: Table, tmp_path: Path) -> None:
    table.save(tmp_path / "table.json")
    assert Table.load(tmp_path / "table.json") == table
    (tmp_path / "table.json").write_text("{}")
    with pytest.raises(BadInputError, match="is no table"):
        Table.load(tmp_path / "table.json")


@pytest.mark.parametrize("method", OURS)
def test_a_search_is_replayed_within_its_budget(table: Table, method: str) -> None:
    search = replace(make_table_search(table, 24), **OURS[method], seed=3)
    run = replay_search(table, search, method)
    again = replay_search(table, search, method)
    assert run == again
    used = [evaluation.epochs for evaluation in run.evaluations]
    assert used == sorted(used)
    assert used[-1] <= 24
    if method != HALVING:
        assert used == [2 * n for n in range(1, len(used) + 1)]
    for evaluation in run.evaluations:
        trial = Trial(**search.make_settings(evaluation.settings, 2, 0))
        assert evaluation.score == pytest.approx(table.scores[trial.id][-1])


def test_rivals_are_replayed_and_a_full_budget_finds_the_best(table: Table) -> None:
    optuna = replay_optuna(table, make_table_search(table, 24), "Optuna")
    assert [evaluation.epochs for evaluation in optuna.evaluations] == list(range(2, 25, 2))
    grid = replay_grid(table, 2 * len(table.scores), 5, "grid")
    assert grid.incumbent is not None
    assert grid.incumbent.score == table.best


def test_a_report_has_numbers_a_table_and_a_figure(tmp_path: Path) -> None:
    runs = [make_run([50, 80 + s], [2.0, 4.0 + s], s, m) for m in ("ours", "rival") for s in range(5)]
    report = PartReport("wall", runs, 6, lambda e: 90 - e.score, REGRET, ("epochs", "seconds"), {}, {}, "ours")
    numbers = report.to_json()
    assert numbers["methods"]["ours"]["regret, the end"]["mean"] == 8
    assert numbers["methods"]["ours"]["regret, half the budget"]["mean"] == 40
    json.dumps(numbers, allow_nan=False)
    assert report.make_table().row_count == 2 * 5 + 1  # two methods with five measures, and a ratio
    save_figure([report], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_run_measures_its_parts(table: Table, tmp_path: Path) -> None:
    table.save(tmp_path / "table.json")
    script = [sys.executable, str(ROOT / "benchmarks" / "search.py"), "--small", "--parts", "epochs", "long", "replay"]
    places = ["--out", str(tmp_path / "search.json"), "--table", str(tmp_path / "table.json")]
    unwanted = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAY_AUTH_MODE")
    environment = {name: text for name, text in os.environ.items() if name not in unwanted}
    done = subprocess.run(
        [*script, *places], cwd=tmp_path, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    results = json.loads((tmp_path / "search.json").read_text())["results"]
    assert list(results) == ["epochs", "long", "replay"]
    assert list(results["epochs"]["methods"]) == ["ours, TPE", "grid", "OptunaSearch with ASHA"]
    [ratios] = [value for name, value in results["long"].items() if name != "methods"]
    assert ratios["to the end of the last trial"]["Optuna, two processes"]["median"] > 0
    assert (tmp_path / "search.png").exists()

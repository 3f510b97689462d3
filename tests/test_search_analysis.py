"""The analysis of a search, on results made by hand: what it reads, what it exports, and what it says."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import optuna
import pytest

import analysis.search
from analysis.experiments import EXPERIMENTS
from analysis.notes import list_notes
from analysis.output import Output, load_stages
from analysis.parallel import list_round
from analysis.results import SweepResults
from analysis.search import SearchDrawOptions
from analysis.search_figures import find_front
from analysis.sections import choose_options, make_section
from analysis.snapshot import Snapshot
from sweeps.confirmation import FIRST_SEED
from sweeps.search import Search
from sweeps.sweep import Sweep
from trainables.errors import BadInputError
from trainables.persistence.store import Store
from trainables.persistence.stored_journal import StoredJournal
from trainables.persistence.trial_run import RESULT_ARTIFACT
from trainables.result import Result
from trainables.training import list_record_steps
from trainables.trial import Trial

TRAINING_IMAGES = 1297  # of digits, after the validation images are held out
TEST_MARK = 1.25  # the test accuracy of a round's trial is its validation accuracy plus this
SMALL: dict[str, Any] = {
    "dataset": "digits",
    "architectures": ("mlp_1", "cnn_3"),
    "learning_rates": ("0.001:0.1",),
    "batch_sizes": ("20:80",),
    "poolings": ("max",),
    "epochs": 2,
    "budget": "24",
    "confirm_best": 2,
    "confirm_seeds": 6,
    "sampler": "random",
}


class Searched(NamedTuple):
    """A store, the options of a search in it, and the trials of its stages."""

    store: Store
    options: Search
    recorded: list[tuple[Sweep, Trial]]


def compute_accuracy(trial: Trial) -> float:
    """Return a validation accuracy: best at the rate 0.01, lower on fresh seeds, at chance for SGD with tanh."""
    if trial.optimizer == "sgd" and trial.activation == "tanh":
        return 10.0
    luck = np.random.default_rng(int(trial.id, 16)).normal(0, 0.4)
    fresh = 2.0 if trial.seed >= FIRST_SEED else 0.0
    return 80 - 4 * abs(math.log10(trial.learning_rate) + 2) + 3 * (trial.architecture == "cnn_3") + luck - fresh


def make_result(trial: Trial) -> Result:
    """Make the result of a trial whose validation accuracy is the same at each record."""
    steps = list_record_steps(trial, TRAINING_IMAGES)
    accuracy = compute_accuracy(trial)
    curves: dict[str, Any] = {name: np.full(len(steps), accuracy, np.float32) for name in trial.quantities}
    return Result(steps, curves, accuracy + TEST_MARK, np.zeros((16, 1, 3, 3), np.float32))


def record(
    store: Store, options: Search, leave_out: Callable[[Trial], bool] = lambda trial: False
) -> list[tuple[Sweep, Trial]]:
    """Run a search with results made by hand, and return the trials of its stages."""
    journal = StoredJournal(store, "search", options.dataset, writing=True)
    experiment_id, parent = store.ensure_parent("search", options.dataset)
    results: dict[str, Result] = {}
    recorded = []
    for sweep in options.stages(lambda trial: results.get(trial.id), journal):
        for trial in sweep.trials():
            results[trial.id] = make_result(trial)
            recorded.append((sweep, trial))
            if not leave_out(trial):
                run = store.open_run(trial, sweep.labels()[trial.id], experiment_id, parent, {}, run_id=None)
                with TemporaryDirectory() as folder:
                    results[trial.id].save(Path(folder) / RESULT_ARTIFACT)
                    run.finish(results[trial.id], int(results[trial.id].steps[-1]), {}, Path(folder))
    return recorded


@pytest.fixture(scope="module")
def searched(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """Make a store with a finished search, which tests only read."""
    path = tmp_path_factory.mktemp("searched") / "mlflow.db"
    shutil.copy(empty_database, path)
    store, options = Store(f"sqlite:///{path}"), Search(**SMALL)
    return Searched(store, options, record(store, options))


def draw(
    store: Store, options: Search, folder: Path, draw_options: SearchDrawOptions | None = None
) -> tuple[Output, list[SweepResults]]:
    """Load and draw a search as its script does, and return what was written with the results of the stages."""
    _, stages, _ = load_stages(options, Snapshot(store.uri), fill="", allow_missing=True)
    output = Output(folder, formats=("png",))
    analysis.search.draw(options, stages, output, draw_options or SearchDrawOptions())
    return output, stages


def read_export(folder: Path) -> Any:
    return json.loads((folder / "search.json").read_text())


class BlindResult(Result):
    """The result of a suggestion: whoever reads its test accuracy fails."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("test_accuracy", "test_correct"):
            raise AssertionError(f"{name} of a suggestion was read")
        return super().__getattribute__(name)

    @property
    def diverged(self) -> bool:  # a result says so by its test accuracy
        return not np.isfinite(self.curves["train_loss"][-1])


def test_nothing_reads_the_test_accuracy_of_a_suggestion(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Search(**{**SMALL, "budget": "36", "confirm_seeds": 2}, halving=2)
    recorded = record(store, options)
    seen: list[str] = []
    read = Store.read_result

    def read_blindly(self: Store, run: Any) -> Result:
        result = read(self, run)
        if run.trial_id in fresh:
            return result
        seen.append(run.trial_id)
        return BlindResult(result.steps, result.curves, result.test_accuracy, result.first_layer)

    fresh = {trial.id for _, trial in recorded if trial.seed >= FIRST_SEED}
    monkeypatch.setattr(Store, "read_result", read_blindly)
    with pytest.raises(AssertionError, match="test_accuracy of a suggestion"):
        _ = BlindResult(*([np.zeros(1)] * 4)).test_accuracy  # type: ignore[arg-type]
    draw_options = SearchDrawOptions(export_study=f"sqlite:///{tmp_path / 'study.db'}")
    output, stages = draw(store, options, tmp_path / "out", draw_options)
    assert set(seen) == {trial.id for _, trial in recorded} - fresh
    assert len(seen) == len(set(seen))  # each result was read once
    names = [saved.name for saved in output.figures]
    assert names == ["progress", "parallel", "sizes", "importance", "curves", "confirmation"]
    assert all(np.isnan(stage.data.test_accuracy).all() for stage in stages[:-1])
    text = json.dumps(read_export(tmp_path / "out")["suggestions"])
    texts = [
        text,
        (tmp_path / "out" / "suggestions.csv").read_text(),
        *(saved.description for saved in output.figures[:-1]),
    ]
    for _, trial in recorded:
        if trial.id not in fresh:
            tested = compute_accuracy(trial) + TEST_MARK
            assert not any(f"{tested:.2f}" in found or f"{tested:.4f}"[:-1] in found for found in texts)


def test_the_export_has_all_suggestions_in_order_and_the_confirmation(searched: Searched, tmp_path: Path) -> None:
    store, options, recorded = searched
    draw(store, options, tmp_path)
    export = read_export(tmp_path)
    assert [*export] == ["suggestions", "confirmed", "optimism"]
    suggestions = export["suggestions"]
    assert [s["number"] for s in suggestions] == [*range(12)]
    assert all([*s] == ["number", "trial_id", "params", "score"] for s in suggestions)
    trials = {trial.id: trial for _, trial in recorded}
    for s in suggestions:
        trial, accuracy = trials[s["trial_id"]], compute_accuracy(trials[s["trial_id"]])
        assert s["score"] == pytest.approx(0 if accuracy == 10 else accuracy, abs=1e-4)
        assert s["params"]["learning_rate"] == trial.learning_rate
        assert [*s["params"]] == ["architecture", "learning_rate", "batch_size", "activation", "pooling", "optimizer"]
    confirmed = export["confirmed"]
    assert len(confirmed) == 3
    assert [found["is_default"] for found in confirmed] == [False, False, True]
    for found in confirmed:
        own = [
            compute_accuracy(trial) + TEST_MARK
            for trial in trials.values()
            if trial.seed >= FIRST_SEED and all(getattr(trial, k) == v for k, v in found["settings"].items())
        ]
        assert found["test_accuracy"] == pytest.approx(own)
        assert found["mean"] == pytest.approx(np.mean(own))
        assert found["low"] < found["mean"] < found["high"]
    best = max(suggestions, key=lambda s: s["score"])
    own = [v - TEST_MARK for v in confirmed[0]["test_accuracy"]]
    assert export["optimism"] == pytest.approx(best["score"] - np.mean(own), abs=1e-3)


def test_answers_say_no_more_than_the_seeds_show(searched: Searched, tmp_path: Path) -> None:
    options = Search(**{**SMALL, "confirm_seeds": 1})
    output, _ = draw(searched.store, options, tmp_path)
    best, optimism, importance = output.answers
    assert best.question == Search.question
    assert "one seed cannot tell it from chance" in best.sentence
    assert "too little is known of how seeds vary" in optimism.sentence
    assert "one search does not show how much others would differ" in importance.sentence
    assert sum(estimate.value for estimate in importance.estimates) == pytest.approx(100)


def test_a_search_that_was_too_optimistic_is_said_to_be(searched: Searched, tmp_path: Path) -> None:
    output, _ = draw(searched.store, searched.options, tmp_path)
    assert "so the search was too optimistic." in output.answers[1].sentence
    assert 1 < output.answers[1].estimates[0].low < output.answers[1].estimates[0].high < 4


@pytest.mark.slow
def test_repeated_searches_are_told_apart(store: Store, tmp_path: Path) -> None:
    options = Search(**{**SMALL, "budget": "16", "confirm_seeds": 1}, searches=5)
    record(store, options)
    output, _ = draw(store, options, tmp_path)
    suggestions = read_export(tmp_path)["suggestions"]
    assert [(s["search"], s["number"]) for s in suggestions] == [(k, i) for k in range(5) for i in range(8)]
    with (tmp_path / "suggestions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    assert {row["search"] for row in rows} == set("01234")
    [table] = [table for table in output.tables if table.name == "suggestions"]
    assert len(table.rows) == analysis.search.ROWS_SHOWN
    assert table.caption.endswith("The first 20 of 40; suggestions.csv has all.")
    [progress] = [saved.figure for saved in output.figures if saved.name == "progress"]
    caption = " ".join(progress._supxlabel.get_text().split())
    assert "Line: mean over 5 searches; thin lines: single searches; band: 95 % CI of the mean" in caption


def test_an_unfinished_search_is_drawn_without_its_confirmation(searched: Searched, tmp_path: Path) -> None:
    raised = Search(**{**SMALL, "budget": "32"})  # its last round was never trained
    output, stages = draw(searched.store, raised, tmp_path)
    assert len(stages) == 3
    export = read_export(tmp_path)
    assert (len(export["suggestions"]), export["confirmed"], export["optimism"]) == (12, [], None)
    assert "confirmation" not in [saved.name for saved in output.figures]
    assert [answer.question for answer in output.answers] == ["Which parameters matter?"]


def test_a_search_whose_first_trial_is_missing_is_not_drawn(store: Store, tmp_path: Path) -> None:
    options = Search(**{**SMALL, "budget": "8", "confirm_seeds": 1})
    first = options.first_stage().trials()[0]
    record(store, options, leave_out=lambda trial: trial == first)
    with pytest.raises(BadInputError, match="no suggestion of the search can be scored yet"):
        draw(store, options, tmp_path)


@pytest.mark.slow
def test_a_confirmation_with_a_missing_seed_is_not_judged(store: Store, tmp_path: Path) -> None:
    options = Search(**SMALL)
    record(store, options, leave_out=lambda trial: trial.seed == FIRST_SEED + 1 and trial.learning_rate == 0.01)
    output, _ = draw(store, options, tmp_path)
    assert [found["is_default"] for found in read_export(tmp_path)["confirmed"]] == [False, False]
    assert read_export(tmp_path)["optimism"] is None
    assert [answer.question for answer in output.answers] == ["Which parameters matter?"]


def test_the_journal_holds_and_not_what_optuna_would_suggest_today(
    searched: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, options, _ = searched
    monkeypatch.setattr("sweeps.rounds.ask_round", lambda *_: pytest.fail("Optuna was asked"))
    draw(store, options, tmp_path)
    assert len(read_export(tmp_path)["suggestions"]) == 12


def test_a_report_finds_a_search_by_its_journal(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Search(**Search.quick_defaults, quick=True, tracking_uri=store.uri)
    record(store, options)
    monkeypatch.setattr("sweeps.rounds.ask_round", lambda *_: pytest.fail("Optuna was asked"))
    snapshot = Snapshot(store.uri)
    [chosen] = choose_options(["search"], snapshot, quick=True)
    section = make_section(chosen, snapshot, tmp_path, tmp_path)
    assert section.problem == section.ended_early == ""
    assert [table.name for table in section.output.tables] == ["confirmation", "suggestions"]
    assert section.output.answers


def test_rounds_have_a_note_of_their_own(searched: Searched, tmp_path: Path) -> None:
    _, stages = draw(searched.store, searched.options, tmp_path)
    failed = sum(s["score"] == 0 for s in read_export(tmp_path)["suggestions"])
    assert failed
    [note] = list_notes(stages)
    trials = "1 trial" if failed == 1 else f"{failed} trials"
    verb = "is" if failed == 1 else "are"
    assert note.startswith(f"{trials} of the search diverged or {verb} stuck at chance, scored 0 %: ")
    with (tmp_path / "suggestions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["came_to"] for row in rows].count("diverged or stuck at chance") == failed


# The study for Optuna's dashboard


@pytest.mark.slow
def test_a_study_has_the_suggestions_and_is_not_overwritten(store: Store, tmp_path: Path) -> None:
    options = Search(**SMALL, halving=2)
    record(store, options)
    uri = f"sqlite:///{tmp_path / 'study.db'}"
    draw(store, options, tmp_path / "out", SearchDrawOptions(export_study=uri))
    [name] = optuna.get_all_study_names(uri)
    study = optuna.load_study(study_name=name, storage=uri)
    suggestions = read_export(tmp_path / "out")["suggestions"]
    assert [trial.user_attrs["trial_id"] for trial in study.trials] == [s["trial_id"] for s in suggestions]
    assert [trial.value for trial in study.trials if trial.state.name == "COMPLETE"] == [
        s["score"] for s in suggestions if s["score"] is not None
    ]
    assert {trial.state.name for trial in study.trials} == {"COMPLETE", "PRUNED"}
    with pytest.raises(BadInputError, match=f"has a study {name} already"):
        draw(store, options, tmp_path / "out", SearchDrawOptions(export_study=uri))
    assert len(optuna.load_study(study_name=name, storage=uri).trials) == len(suggestions)


@pytest.mark.parametrize("uri", ["study.db", "sqlite:////no/such/folder/study.db", "nothing://user:secret@host/db"])
def test_a_database_that_cannot_be_used_is_one_sentence(uri: str) -> None:
    with pytest.raises(BadInputError, match="--export-study cannot write to") as raised:
        analysis.search.export_studies(uri, "digits", [])
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


# Parts


def test_the_pareto_front_has_what_no_smaller_network_reaches() -> None:
    points = [(10, 50.0, "a"), (10, 60.0, "b"), (20, 55.0, "c"), (30, 60.0, "d"), (40, 70.0, "e")]
    assert [name for _, _, name in find_front(points)] == ["b", "e"]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.0001, 0.1, [0.0001, 0.001, 0.01, 0.1]), (20, 200, [20, 50, 100, 200]), (0.01, 0.011, [0.01, 0.011])],
)
def test_an_axis_of_ratios_has_round_labels(low: float, high: float, ticks: list[float]) -> None:
    assert list_round(low, high) == pytest.approx(ticks)


def test_a_search_is_part_of_every_report() -> None:
    assert EXPERIMENTS["search"].question == Search.question

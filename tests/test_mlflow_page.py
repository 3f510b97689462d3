"""A sweep's page in MLflow's UI: what it says, what its views hold, and that it stands in nobody's way."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import mlflow
import numpy as np
import pytest
from test_results import make_result, record, write_run

from sweeps import mlflow_ui
from sweeps.driver import sweep_page
from sweeps.driver.description import describe_answer, make_key, write_section
from sweeps.driver.plan import Plan
from sweeps.driver.sections import compose, format_section, parse_section
from sweeps.driver.stages import Stage
from sweeps.driver.sweep_page import SweepPage, describe_progress
from sweeps.experiment import SweepOptions
from sweeps.grid import Grid
from sweeps.mnist import Mnist
from sweeps.part3 import Part3
from sweeps.part5 import Part5
from sweeps.pooling import Pooling
from sweeps.sweep import Sweep
from sweeps.xor import Xor
from trainables.errors import TrackingError
from trainables.persistence.connection import OUTCOME_TAG
from trainables.persistence.presentation import Presentation
from trainables.persistence.store import Store
from trainables.persistence.stored_run import StoredRun

OPTIONS = Part3(dataset="digits", seeds=2, epochs=1, architectures=("mlp_1", "mlp_2"))


def make_page(store: Store, options: SweepOptions, sweeps: Sequence[Sweep] = ()) -> SweepPage:
    """Return a page whose last word is written, as after a command with these options."""
    sweeps = sweeps or [options.first_stage()]
    page = SweepPage(store, options)
    page.place(*store.ensure_parent(options.experiment, sweeps[0].trials()[0].dataset))
    for sweep in sweeps:
        plan = Plan(sweep, sweep.trials(), store.find_runs())
        page.add(Stage(plan, plan.find_stuck(store.read_trial)))
    page.end()
    return page


def read_note(store: Store, experiment: str = "part3") -> str:
    return str(store.client.get_experiment_by_name(experiment).tags[mlflow_ui.NOTE_TAG])


def read_view(store: Store, key: str, experiment: str = "part3") -> dict[str, Any]:
    tag = store.client.get_experiment_by_name(experiment).tags[mlflow_ui.VIEW_PREFIX + key]
    return dict(json.loads(json.loads(tag)["state"]))


def search(store: Store, condition: str) -> set[str]:
    """Return the trial ids that MLflow finds for a condition."""
    runs = store.client.search_runs([*store.experiments], condition, max_results=1000)
    return {run.data.tags["trial_id"] for run in runs}


def make_plan(sweep: Sweep, accuracies: Mapping[str, Sequence[float]]) -> Plan:
    """Return a plan whose runs exist nowhere but here: architecture → test accuracies of seeds 0, 1, …"""
    runs: dict[str, list[StoredRun]] = {}
    for trial in sweep.trials():
        values = accuracies.get(trial.architecture, ())
        if trial.seed < len(values):
            metrics = {} if np.isnan(values[trial.seed]) else {"test_accuracy": values[trial.seed]}
            settings = dict.fromkeys(("storage", "driver", "artifact_uri", "checksum", "outcome"), "")
            runs[trial.id] = [
                StoredRun(
                    trial_id=trial.id,
                    run_id=trial.id,
                    name=trial.id,
                    status="FINISHED",
                    experiment=sweep.name,
                    metrics=metrics,
                    diverged=not metrics,
                    dataset=trial.dataset,
                    provenance={},
                    training_seconds=1.0,
                    end=None,
                    **settings,
                )
            ]
    return Plan(sweep, sweep.trials(), runs)


def answer(accuracies: Mapping[str, Sequence[float]]) -> str:
    sweep = Part3(dataset="digits", seeds=max(map(len, accuracies.values())), architectures=(*accuracies,)).sweep()
    return describe_answer(Stage(make_plan(sweep, accuracies)))


def test_the_answer_claims_what_the_seeds_show() -> None:
    clear = {"mlp_1": [80.0, 80.1, 80.2], "cnn_3": [90.0, 90.1, 90.2], "cnn_4": [90.1, 90.0, 90.2]}
    assert answer(clear) == (
        "cnn_3 leads with a test accuracy of 90.10 % (89.85 – 90.35, n = 3), ahead of mlp_1. Not distinguishable from "
        "it: cnn_4."
    )
    vague = answer({"mlp_1": [80.0, 90.0], "cnn_3": [85.0, 89.0]})
    assert vague.startswith("No setting is shown to lead; cnn_3 has the highest mean test accuracy, 87.00 % (")
    assert answer({"mlp_1": [80.0], "cnn_3": [85.0]}) == (
        "cnn_3 has a test accuracy of 85.00 % (n = 1). Which setting is best cannot be said from one seed."
    )
    assert answer({"mlp_1": [float("nan")]}) == "All trials have diverged."
    assert answer({"mlp_1": [80.0, 82.0]}).startswith("The test accuracy is 81.00 % (68.29 – 93.71, n = 2).")
    assert describe_answer(Stage(make_plan(OPTIONS.sweep(), {}))) == "No trial has finished yet."
    assert describe_answer(Stage(make_plan(Xor().sweep(), {"xor": [50.0] * 20}))) == ""


def test_an_answer_without_any_effect_seldom_claims_one() -> None:
    """At most 5 % may; of 300, fewer than 28 then come out with a probability of 99.9 %."""
    generator = np.random.default_rng(0)
    claims = sum(
        "leads" in answer({name: [*generator.normal(90, 1, 3)] for name in ("mlp_1", "cnn_3", "cnn_4")})
        for _ in range(300)
    )
    assert claims < 28


def test_a_stuck_seed_is_no_lead() -> None:
    """By its mean alone, a setting of which all seeds are stuck would be behind."""
    sweep = Part3(dataset="digits", seeds=2, architectures=("mlp_1", "cnn_3")).sweep()
    plan = make_plan(sweep, {"mlp_1": [90.0, 90.1], "cnn_3": [10.0, 10.1]})
    stuck = {trial.id for trial in sweep.trials() if trial.architecture == "cnn_3"}
    assert "leads" in describe_answer(Stage(plan))
    assert "No setting is shown to lead" in describe_answer(Stage(plan, stuck))


def test_even_and_odd_are_not_compared_with_ten_classes() -> None:
    sweep = Mnist(dataset="digits", seeds=2, learning_rates=(0.1,)).sweep()
    text = describe_answer(Stage(make_plan(sweep, {"logistic": [90.0, 91.0]})))
    assert text.startswith("digits · rate 0.1 has a test accuracy of 90.50 %")


def test_a_description_has_the_answer_first_then_question_links_table_and_commands(store: Store) -> None:
    record(store, OPTIONS.sweep())
    page = make_page(store, OPTIONS)
    note = read_note(store)
    first = note.split("\n\n")[1]
    assert first.startswith("**digits: No setting is shown to lead; mlp_1 has the highest mean test accuracy, 80.50 %")
    assert " Finished: 4 trials (" in first
    assert "### digits, 1 epoch, adam, rate 0.01, batch 50" in note
    assert f"*{Part3.question}*" in note
    assert f"[Curves by architecture]({page.link})" in note
    assert "| mlp_1 | 2 | 80.50 | 74.15 – 86.85 | 81.00 |" in note
    words = "--seeds 2 --dataset digits --epochs 1 --architectures mlp_1 mlp_2"
    assert f"```\npython sweeps/part3.py {words}\npython analysis/part3.py {words}\n```" in note
    assert store.read_tags(page.parent_run_id)[mlflow_ui.NOTE_TAG] == note
    assert store.client.get_experiment_by_name("part3").tags["mlflow.experimentKind"] == "custom_model_development"


def test_what_people_write_around_our_part_stays(store: Store) -> None:
    record(store, OPTIONS.sweep())
    make_page(store, OPTIONS)
    experiment = store.client.get_experiment_by_name("part3").experiment_id
    store.client.set_experiment_tag(experiment, mlflow_ui.NOTE_TAG, f"Before.\n\n{read_note(store)}\n\nAfter.")
    make_page(store, OPTIONS)
    assert read_note(store).startswith("Before.\n\n<!-- neural-sweeps: begin")
    assert read_note(store).endswith("neural-sweeps: end -->\n\nAfter.")
    assert read_note(store).count("### digits") == 1


def test_the_same_command_again_changes_nothing_but_the_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    record(store, OPTIONS.sweep())
    page = make_page(store, OPTIONS)

    def read_everything() -> Any:
        experiment = store.client.get_experiment_by_name("part3")
        run = store.client.get_run(page.parent_run_id)
        history = {name: len(store.client.get_metric_history(run.info.run_id, name)) for name in run.data.metrics}
        return dict(experiment.tags), dict(run.data.tags), run.data.metrics, history

    before = read_everything()
    monkeypatch.setattr(SweepPage, "_write_results", lambda _: pytest.fail("results were written again"))
    make_page(store, OPTIONS)
    after = read_everything()
    times = [parse_section(tags[mlflow_ui.SECTION_PREFIX + page.key])["at"] for _, tags, *_ in (before, after)]
    shown = [time[:16].replace("T", " ") for time in times]
    text = json.dumps(before).replace(times[0], times[1]).replace(shown[0], shown[1])
    assert json.loads(text) == json.loads(json.dumps(after))


def test_each_rate_has_its_section_and_its_view(store: Store) -> None:
    slow = Part3(dataset="digits", seeds=2, epochs=1, architectures=("mlp_1", "mlp_2"), learning_rate=0.001)
    record(store, OPTIONS.sweep())
    record(store, slow.sweep())
    keys = [make_page(store, options).key for options in (OPTIONS, slow)]
    note = read_note(store)
    assert note.index("rate 0.001, batch 50") < note.index("rate 0.01, batch 50")  # what was run last comes first
    for key, options in zip(keys, (OPTIONS, slow), strict=True):
        view = read_view(store, key)
        assert search(store, view["searchFilter"]) == {trial.id for trial in options.sweep().trials()}
        assert view["groupBy"]["groupByKeys"] == [{"mode": "param", "groupByData": "architecture"}]
        assert [chart["metricKey"] for chart in view["compareRunCharts"]][:2] == ["val_accuracy", "train_loss"]
    metrics = store.client.get_run(make_page(store, slow).parent_run_id).data.metrics
    assert metrics["results/mlp_1: test accuracy mean: epochs 1"] == 80.5
    assert metrics["results/mlp_1: n: epochs 1 learning rate 0.001"] == 2
    assert metrics["results/all trials: hours of training: epochs 1"] == 0


def test_a_selection_keeps_its_key_with_more_seeds_and_values() -> None:
    more = Part3(dataset="digits", seeds=9, epochs=1, architectures=("cnn_3",), tracking_uri="sqlite:///other.db")
    assert make_key(more) == make_key(OPTIONS)
    assert make_key(Part3(dataset="digits", seeds=2, epochs=2)) != make_key(OPTIONS)


def test_a_rate_that_was_given_alone_is_a_condition_and_no_group(store: Store) -> None:
    """Else the mean would go over the rates of an earlier command."""
    first = Grid(dataset="digits", seeds=1, epochs=1, architectures=("mlp_1", "mlp_2"), learning_rates=(0.01,))
    second = Grid(dataset="digits", seeds=1, epochs=1, architectures=("mlp_1", "mlp_2"), learning_rates=(0.001,))
    for options in (first, second):
        for trial in options.sweep().trials():
            write_run(store, trial, options.sweep().labels()[trial.id], make_result(trial))
    words = parse_qs(make_page(store, second).link.partition("?")[2])
    assert search(store, words["searchFilter"][0]) == {trial.id for trial in second.sweep().trials()}


def test_a_schedule_is_not_in_the_mean_of_the_constant_rate_that_it_starts_with(store: Store) -> None:
    options = Part5(dataset="digits", architecture="mlp_2", epochs=2, schedule_epochs=2)
    constant, scheduled = options.sweep(), options.make_scheduled_sweep(((30, 0.01),))
    for sweep in (constant, scheduled):
        for trial in sweep.trials():
            run = store.open_run(
                trial,
                sweep.labels()[trial.id],
                *store.ensure_parent("part5", "digits"),
                {},
                run_id=None,
                parameters=sweep.parameters().get(trial.id),
            )
            store.end_run(run.run_id, "FINISHED")
    key = make_page(store, options, [constant, scheduled]).key
    for view_key, sweep in ((key, constant), (f"{key}-1", scheduled)):
        found = search(store, read_view(store, view_key, "part5")["searchFilter"])
        assert found == {trial.id for trial in sweep.trials()}
    assert read_view(store, f"{key}-1", "part5")["groupBy"]["groupByKeys"][0]["groupByData"] == "schedule"


def test_runs_have_the_names_of_their_models_as_parameters(store: Store) -> None:
    sweep = Pooling(dataset="digits", batch_sizes=(10,)).sweep()
    trial = sweep.trials()[1]
    parent = store.ensure_parent("pooling", "digits")
    run = store.open_run(trial, "b", *parent, {}, run_id=None, parameters=sweep.parameters()[trial.id])
    assert store.client.get_run(run.run_id).data.params["model"] == "b"


def test_a_diverged_trial_is_named_and_in_no_view(store: Store) -> None:
    record(store, OPTIONS.sweep(), diverged=("mlp_2 · seed 1",))
    page = make_page(store, OPTIONS)
    assert "1 trial diverged, and is in no mean: mlp_2 · seed 1." in read_note(store)
    left = {trial.id for label, trial in zip(OPTIONS.sweep().labels().values(), OPTIONS.sweep().trials(), strict=True)}
    runs = store.find_runs()
    left = {trial_id for trial_id in left if not runs[trial_id][0].diverged}
    assert search(store, read_view(store, page.key)["searchFilter"]) == left
    assert len(left) == 3


def test_outcomes_can_be_searched(store: Store) -> None:
    record(store, OPTIONS.sweep(), diverged=("mlp_2 · seed 1",), leave_out=("mlp_1 · seed 1",))
    trials = {
        label: trial for trial, label in zip(OPTIONS.sweep().trials(), OPTIONS.sweep().labels().values(), strict=True)
    }
    store.open_run(trials["mlp_1 · seed 1"], "x", *store.ensure_parent("part3", "digits"), {}, run_id=None)
    plan = Plan(OPTIONS.sweep(), OPTIONS.sweep().trials(), store.find_runs())
    page = SweepPage(store, OPTIONS)
    page.place(*store.ensure_parent("part3", "digits"))
    page.add(Stage(plan, {trials["mlp_2 · seed 0"].id}))
    expected = {
        "unfinished": "mlp_1 · seed 1",
        "trained": "mlp_1 · seed 0",
        "stuck": "mlp_2 · seed 0",
        "diverged": "mlp_2 · seed 1",
    }
    for outcome, label in expected.items():
        assert search(store, f"tags.{OUTCOME_TAG} = '{outcome}'") == {trials[label].id}


def test_trials_of_another_sweep_are_counted_and_linked(store: Store) -> None:
    record(store, OPTIONS.sweep())
    grid = Grid(dataset="digits", seeds=2, epochs=1, architectures=("mlp_1", "mlp_2"))
    page = make_page(store, grid)
    assert "4 of its 4 trials were trained by another sweep, and lie in [part3](#/experiments/" in read_note(
        store, "grid"
    )
    words = parse_qs(page.link.partition("?")[2])
    assert search(store, words["searchFilter"][0]) == {trial.id for trial in grid.sweep().trials()}
    assert json.loads(words["experiments"][0]) == sorted(
        known for known, name in store.experiments.items() if name in ("part3", "grid")
    )


def test_a_description_of_a_thousand_trials_fits(store: Store) -> None:
    rates = tuple(round(0.001 * n, 3) for n in range(1, 101))
    grid = Grid(dataset="digits", seeds=10, epochs=1, architectures=("mlp_1",), learning_rates=rates)
    plan = make_plan(grid.sweep(), {"mlp_1": [*np.linspace(80, 90, 10)]})
    section = write_section(grid, [Stage(plan)], ["[x](#)"], {})
    assert "*60 more settings in the table among the artifacts.*" in section.body
    assert "the table above is of all 1,000 trials" in section.body
    assert "of 100 settings" in section.answer
    fields = {
        "title": section.title,
        "answer": section.answer,
        "body": section.body * 3,
        "status": "x",
        "training": False,
    }
    texts = [format_section({**fields, "at": f"2026-01-{day:02}T10:00:00"}) for day in range(1, 9)]
    assert all(len(text) <= mlflow_ui.MAX_RUN_TAG and parse_section(text) for text in texts)
    tags = {f"{mlflow_ui.SECTION_PREFIX}{number}": text for number, text in enumerate(texts)}
    note = compose("Mine.", [tags], mlflow_ui.MAX_NOTE)
    assert len(note) <= mlflow_ui.MAX_NOTE
    assert "older selections on the parent runs" in note
    assert note.endswith("Mine.")


def test_damaged_sections_are_no_obstacle() -> None:
    tags = {f"{mlflow_ui.SECTION_PREFIX}{n}": text for n, text in enumerate(("", "{", "[]", '{"title": 1}'))}
    assert compose("Mine.", [tags], 1000).endswith("Mine.")
    begun = f"{mlflow_ui.BEGIN}\n\nhalf"
    assert compose(begun, [tags], 1000).endswith("half")


@pytest.fixture
def page(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[SweepPage]:
    """Return a page of four trials of which none is finished, whose thread looks often."""
    monkeypatch.setattr(sweep_page, "PROGRESS_SECONDS", 0.01)
    monkeypatch.setattr(sweep_page, "WAIT_SECONDS", 0.1)
    page = SweepPage(store, OPTIONS)
    page.place(*store.ensure_parent("part3", "digits"))
    return page


def test_progress_moves_while_a_sweep_trains(page: SweepPage, store: Store) -> None:
    plan = Plan(OPTIONS.sweep(), OPTIONS.sweep().trials(), {})
    written = threading.Event()
    original = page._write

    def write(status: str, *, training: bool) -> bool:
        result = original(status, training=training)
        written.set()
        return result

    page._write = write  # type: ignore[method-assign]
    with page.follow(plan):
        for finished, left in ((0, float("nan")), (1, 720.0)):
            page.note(finished, left)
            status = describe_progress(finished, 4, left)
            while not (written.wait(10) and status in read_note(store)):
                written.clear()
    assert "**digits: Training: 1 of 4 trials finished, about 12 min left (" in read_note(store)
    page.add(Stage(plan))
    page.end()
    assert "Stopped with 0 of 4 trials finished (" in read_note(store)


def test_a_store_that_is_away_stops_and_delays_nothing(
    page: SweepPage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Plan(OPTIONS.sweep(), OPTIONS.sweep().trials(), {})
    back = threading.Event()

    def hang(_: Presentation) -> Any:
        back.wait(20)
        raise TrackingError("the store is away")

    monkeypatch.setattr(Presentation, "find_parents", hang)
    with page.follow(plan):
        page.note(1, 60.0)
    assert not back.is_set()
    page.add(Stage(plan))
    page.end()  # the thread holds the lock still
    assert capsys.readouterr().out == ""
    back.set()
    with page.lock:
        pass
    page.end()
    assert "note: MLflow's page of this sweep is not up to date: the store is away" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.0, "0 s"), (44.0, "40 s"), (720.0, "12 min"), (9000.0, "2.5 h"), (float("nan"), "")]
)
def test_the_time_left_has_a_unit_that_suits_it(seconds: float, text: str) -> None:
    assert (
        describe_progress(32, 50, seconds)
        == f"Training: 32 of 50 trials finished{f', about {text} left' if text else ''}"
    )


def test_this_mlflow_knows_the_words_that_views_are_made_of() -> None:
    """If this fails with another version, do what sweeps/mlflow_ui.py says at its top."""
    scripts = (Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js").glob("*.js")
    text = "\n".join(script.read_text(encoding="utf-8") for script in scripts)
    view = mlflow_ui.make_view(
        name="x", condition="", groups=["architecture"], quantities=["train_loss"], parent_run_id="p", milliseconds=0
    )
    state = json.loads(json.loads(view)["state"])
    words = [*state, *state["groupBy"], *state["groupBy"]["groupByKeys"][0], *state["compareRunSections"][0]]
    words += [*state["compareRunCharts"][0], "viewStateShareKey", "workflowType", "compareRunsMode"]
    words += [mlflow_ui.VIEW_PREFIX, "mlflow.experimentKind", mlflow_ui.NOTE_TAG, "compare-experiments"]
    assert [word for word in words if word not in text] == []

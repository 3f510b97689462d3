from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import find_artifacts, make_trial

from trainables.commands import hide_password
from trainables.errors import BadInputError, TrackingError
from trainables.persistence.connection import DRIVER_TAG, resolve_uri, retry_for
from trainables.persistence.store import Store
from trainables.persistence.trial_run import RESULT_ARTIFACT, TrialRun
from trainables.result import Result


def make_result(records: int = 700) -> Result:
    generator = np.random.default_rng(0)
    return Result(
        steps=np.arange(10, 10 * records + 1, 10),
        curves={
            name: generator.random(records, np.float32) for name in ("train_loss", "train_accuracy", "val_accuracy")
        },
        test_accuracy=87.5,
        first_layer=generator.random((32, 784), np.float32),
    )


def open_run(store: Store, name: str = "mlp_1 · seed 0", **changes: Any) -> TrialRun:
    experiment_id, parent = store.ensure_parent("part3", "digits")
    runs = store.find_runs().get(make_trial(**changes).id, [])
    own = runs[0].run_id if runs else None
    return store.open_run(
        make_trial(**changes), name, experiment_id, parent, {"git_commit": "abc", DRIVER_TAG: ""}, run_id=own
    )


def finish(run: TrialRun, result: Result, tags: dict[str, str], folder: Path) -> None:
    """Finish a run with its one artifact."""
    artifacts = folder / "artifacts"
    artifacts.mkdir(exist_ok=True)
    result.save(artifacts / RESULT_ARTIFACT)
    run.finish(result, 7000, tags, artifacts)


def read_points(store: Store, run_id: str) -> dict[str, list[tuple[int, float, int]]]:
    """Return every point of the run's curves as (step, value, timestamp)."""
    names = store.client.get_run(run_id).data.metrics
    history = {name: store.client.get_metric_history(run_id, name) for name in names}
    return {name: sorted((m.step, m.value, m.timestamp) for m in metrics) for name, metrics in history.items()}


def test_a_finished_run_holds_settings_tags_curves_and_result(store: Store, tmp_path: Path) -> None:
    result = make_result()
    run = open_run(store)
    finish(run, result, {"device": "cpu"}, tmp_path)
    mlflow_run = store.client.get_run(run.run_id)
    assert mlflow_run.info.run_name == "mlp_1 · seed 0"
    assert mlflow_run.info.status == "FINISHED"
    assert mlflow_run.data.params["architecture"] == "mlp_1"
    assert mlflow_run.data.params["learning_rate"] == "0.01"
    assert mlflow_run.data.tags["trial_id"] == make_trial().id
    assert mlflow_run.data.tags["git_commit"] == "abc"
    assert mlflow_run.data.tags["device"] == "cpu"
    assert mlflow_run.data.tags["mlflow.parentRunId"] == store.ensure_parent("part3", "digits")[1]
    assert mlflow_run.data.metrics["test_accuracy"] == 87.5
    written = read_points(store, run.run_id)
    for name, curve in result.curves.items():
        assert [(step, value) for step, value, _ in written[name]] == list(
            zip(result.steps.tolist(), curve.tolist(), strict=True)
        )
    [stored_run] = store.find_runs()[make_trial().id]
    assert stored_run.finished
    assert stored_run.experiment == "part3"
    read = store.read_result(stored_run)
    np.testing.assert_array_equal(read.first_layer, result.first_layer)
    assert {name: curve.tobytes() for name, curve in read.curves.items()} == {
        name: curve.tobytes() for name, curve in result.curves.items()
    }


def test_points_sent_again_are_stored_once(store: Store, tmp_path: Path) -> None:
    """A process dies after sending points; its successor sends those again that its checkpoint holds, and more."""
    result = make_result()
    first = open_run(store)
    first.send_records(result.steps[:300], {name: curve[:300] for name, curve in result.curves.items()})
    second = open_run(store)
    assert second.run_id == first.run_id
    second.send_records(result.steps[:500], {name: curve[:500] for name, curve in result.curves.items()})
    finish(second, result, {}, tmp_path)
    third = open_run(store)
    assert third.finished
    for name, written in read_points(store, first.run_id).items():
        if name != "test_accuracy":
            assert Counter(step for step, _, _ in written) == Counter(result.steps.tolist())
    assert len(store.find_runs()) == 1


def test_a_trials_run_is_found_in_any_experiment(store: Store) -> None:
    run = open_run(store)
    experiment_id, parent = store.ensure_parent("grid", "digits")
    again = store.open_run(make_trial(), "another name", experiment_id, parent, {DRIVER_TAG: ""}, run_id=None)
    assert again.run_id == run.run_id


def test_a_closed_run_that_is_opened_again_is_running(store: Store) -> None:
    run = open_run(store)
    store.end_run(run.run_id, "KILLED")
    assert store.find_runs()[make_trial().id][0].status == "KILLED"
    open_run(store)
    assert store.find_runs()[make_trial().id][0].status == "RUNNING"


def test_each_sweep_and_data_set_have_one_parent_run(store: Store) -> None:
    assert store.ensure_parent("part3", "digits") == store.ensure_parent("part3", "digits")
    assert store.ensure_parent("part3", "digits")[0] == store.ensure_parent("part3", "mnist")[0]
    assert store.ensure_parent("part3", "digits")[1] != store.ensure_parent("part3", "mnist")[1]
    assert store.client.get_run(store.ensure_parent("part3", "digits")[1]).info.status == "FINISHED"


def test_two_drivers_that_start_at_the_same_moment_use_the_same_parent(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Store(store.uri)
    create, made = store.client.create_run, []

    def race(*words: Any, **named: Any) -> Any:
        monkeypatch.setattr(store.client, "create_run", create)
        made.append(other.ensure_parent("part3", "digits")[1])
        return create(*words, **named)

    monkeypatch.setattr(store.client, "create_run", race)
    assert store.ensure_parent("part3", "digits")[1] == made[0]
    assert other.ensure_parent("part3", "digits")[1] == made[0]


def test_a_store_finds_runs_that_others_made_after_it_was_opened(store: Store) -> None:
    early = Store(store.uri)
    open_run(store)
    assert make_trial().id in early.find_runs()


def test_a_deleted_experiment_is_named(store: Store) -> None:
    store.client.delete_experiment(store.ensure_parent("part3", "digits")[0])
    with pytest.raises(BadInputError, match="experiment 'part3' was deleted"):
        Store(store.uri).ensure_parent("part3", "digits")


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign"])
def test_the_error_names_a_damaged_artifact(store: Store, damage: str, tmp_path: Path) -> None:
    run = open_run(store)
    finish(run, make_result(), {}, tmp_path)
    artifact = find_artifacts(store, run.run_id) / "result.npz"
    if damage == "missing":
        artifact.unlink()
    elif damage == "truncated":
        artifact.write_bytes(artifact.read_bytes()[:1000])
    else:
        np.savez(artifact, something=np.zeros(3))
    [stored_run] = store.find_runs()[make_trial().id]
    with pytest.raises(BadInputError, match=r"artifact result\.npz"):
        store.read_result(stored_run)


def test_artifacts_are_read_without_pickle(tmp_path: Path) -> None:
    path = tmp_path / "result.npz"
    np.savez(path, steps=np.array([print], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        Result.load(path)


@pytest.mark.parametrize(
    "uri",
    ["mlruns", "file:///tmp/mlruns", "ftp://host/x", "", "sqlite://mlflow.db", "sqlite:x.db", "sqlite:///:memory:"],
)
def test_an_unsupported_uri_is_refused(uri: str) -> None:
    with pytest.raises(BadInputError, match=r"use sqlite:///FILE or http://HOST:PORT"):
        Store(uri)


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/nowhere/mlflow.db"])
def test_a_store_that_cannot_be_reached_is_named(uri: str) -> None:
    with pytest.raises(TrackingError, match=f"the tracking store {uri} cannot be used"):
        Store(uri)


def test_relative_sqlite_files_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert resolve_uri("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"
    assert resolve_uri("http://host:5000") == "http://host:5000"


def test_a_run_that_was_made_although_its_request_failed_is_not_doubled(store: Store) -> None:
    """The store made a run, but the process saw an error and asked again."""
    experiment_id, parent = store.ensure_parent("part3", "digits")
    lost = open_run(store)
    second = store.open_run(make_trial(), "x", experiment_id, parent, {DRIVER_TAG: ""}, run_id=None)
    assert second.run_id == lost.run_id
    second.send_records([10], {"train_loss": np.ones(1)})
    store.client.create_run(experiment_id, tags={"trial_id": make_trial().id, DRIVER_TAG: ""})
    third = store.open_run(make_trial(), "x", experiment_id, parent, {DRIVER_TAG: ""}, run_id=second.run_id)
    assert third.run_id == second.run_id
    assert [run.run_id for run in store.find_runs()[make_trial().id]] == [second.run_id]


def test_a_run_of_another_driver_is_left_alone(store: Store) -> None:
    experiment_id, parent = store.ensure_parent("part3", "digits")
    run = store.open_run(make_trial(), "x", experiment_id, parent, {DRIVER_TAG: "p/a"}, run_id=None)
    with pytest.raises(BadInputError, match="'x' trains in another sweep"):
        store.open_run(make_trial(), "x", experiment_id, parent, {DRIVER_TAG: "p/b"}, run_id=None)
    store.end_run(run.run_id, "KILLED")
    assert (
        store.open_run(make_trial(), "x", experiment_id, parent, {DRIVER_TAG: "p/b"}, run_id=None).run_id == run.run_id
    )


def test_infinity_and_nan_are_stored_once_too(store: Store) -> None:
    run = open_run(store)
    curve = {"train_loss": np.array([1, np.inf, np.nan], np.float32)}
    run.send_records([10, 20, 30], curve)
    open_run(store).send_records([10, 20, 30], curve)
    assert len(read_points(store, run.run_id)["train_loss"]) == 3


def test_a_call_is_repeated_until_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.persistence.connection.time.sleep", lambda seconds: None)
    answers = iter([TrackingError("away"), TrackingError("away"), 5])

    def ask() -> int:
        answer = next(answers)
        if isinstance(answer, TrackingError):
            raise answer
        return answer  # type: ignore[return-value]

    assert retry_for(ask, 60) == 5
    with pytest.raises(TrackingError, match="closed"):
        retry_for(lambda: (_ for _ in ()).throw(TrackingError("closed")), 0)


def test_a_password_is_not_shown() -> None:
    assert hide_password("postgresql://me:secret@host/db") == "postgresql://me:…@host/db"

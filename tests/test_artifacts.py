"""The files of runs: where they are written and found when a project moves, is copied, or is reached in two ways."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import find_artifacts, make_sweep, make_trial
from test_results import make_result, record, write_run

from trainables.errors import BadInputError, TrackingError
from trainables.persistence.store import Store, StoredRun

SWEEP = make_sweep(seeds=1)


def make_project(folder: Path, database: Path) -> Store:
    """Make a folder with a copy of an empty database, and record a sweep of two trials in it."""
    folder.mkdir()
    shutil.copy(database, folder / "mlflow.db")
    store = open_project(folder)
    record(store, SWEEP)
    return store


def open_project(folder: Path) -> Store:
    return Store(f"sqlite:///{folder / 'mlflow.db'}")


def read_all(store: Store) -> list[float]:
    """Return the test accuracies in the artifacts of all finished trials."""
    return sorted(store.read_result(run).test_accuracy for runs in store.find_runs().values() for run in runs)


def list_files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def find_first_run(store: Store) -> StoredRun:
    [run] = store.find_runs()[SWEEP.trials()[0].id]
    return run


def test_artifacts_go_where_the_database_goes(empty_database: Path, tmp_path: Path) -> None:
    make_project(tmp_path / "project", empty_database)
    (tmp_path / "project").rename(tmp_path / "moved")
    moved = open_project(tmp_path / "moved")
    assert read_all(moved) == [80, 80]
    write_run(moved, make_trial(seed=1), "mlp_1 · seed 1", make_result(make_trial(seed=1)))
    assert read_all(moved) == [80, 80, 81]
    assert not (tmp_path / "project").exists()


def test_a_copied_project_leaves_the_original_alone(empty_database: Path, tmp_path: Path) -> None:
    make_project(tmp_path / "project", empty_database)
    shutil.copytree(tmp_path / "project", tmp_path / "copy")
    before = list_files(tmp_path / "project")
    copy = open_project(tmp_path / "copy")
    write_run(copy, make_trial(seed=1), "mlp_1 · seed 1", make_result(make_trial(seed=1)))
    assert list_files(tmp_path / "project") == before
    for path in (tmp_path / "project").rglob("result.npz"):
        path.write_bytes(b"the copy does not read this")
    assert read_all(copy) == [80, 80, 81]
    lost = tmp_path / "copy" / "mlartifacts" / "part3" / find_first_run(copy).run_id / "artifacts" / "result.npz"
    lost.unlink()
    with pytest.raises(BadInputError, match=r"is missing: it is not in .*/copy/mlartifacts/part3/"):
        copy.read_result(find_first_run(copy))


def test_a_database_without_its_artifacts_uses_those_that_it_names(empty_database: Path, tmp_path: Path) -> None:
    """A database that was copied alone, and trials that are recorded in the copy afterwards."""
    make_project(tmp_path / "project", empty_database)
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "project" / "mlflow.db", tmp_path / "copy")
    copy = open_project(tmp_path / "copy")
    write_run(copy, make_trial(seed=1), "mlp_1 · seed 1", make_result(make_trial(seed=1)))
    assert read_all(copy) == [80, 80, 81]
    assert len(list((tmp_path / "copy").rglob("result.npz"))) == 1


def test_a_database_behind_a_link_has_one_place_for_artifacts(empty_database: Path, tmp_path: Path) -> None:
    store = make_project(tmp_path / "project", empty_database)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "mlflow.db").symlink_to(tmp_path / "project" / "mlflow.db")
    linked = open_project(tmp_path / "links")
    write_run(linked, make_trial(seed=1), "mlp_1 · seed 1", make_result(make_trial(seed=1)))
    assert read_all(linked) == read_all(store) == [80, 80, 81]
    assert not (tmp_path / "links" / "mlartifacts").exists()
    (tmp_path / "project" / "mlartifacts").rename(tmp_path / "links" / "mlartifacts")  # as earlier versions wrote them
    assert read_all(linked) == [80, 80, 81]


def test_artifacts_of_an_experiment_that_was_made_elsewhere_stay_there(empty_database: Path, tmp_path: Path) -> None:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    store = open_project(tmp_path)
    store.client.create_experiment("part3", artifact_location=str(tmp_path / "elsewhere"))
    record(store, SWEEP)
    assert read_all(store) == [80, 80]
    assert len(list((tmp_path / "elsewhere").rglob("result.npz"))) == 2
    assert not (tmp_path / "mlartifacts").exists()


@pytest.mark.parametrize("lost", ["mlartifacts", "mlartifacts/part3"])
def test_what_is_gone_is_named_with_the_places_and_nothing_is_to_be_deleted(
    lost: str, empty_database: Path, tmp_path: Path
) -> None:
    make_project(tmp_path / "project", empty_database)
    shutil.rmtree(tmp_path / "project" / lost)
    (tmp_path / "project").rename(tmp_path / "moved")
    moved = open_project(tmp_path / "moved")
    with pytest.raises(BadInputError) as raised:
        moved.read_result(find_first_run(moved))
    sentence = str(raised.value)
    assert "the artifact result.npz of 'mlp_1 · seed 0' " in sentence
    assert f"{tmp_path}/moved/mlartifacts/part3/" in sentence
    assert f"{tmp_path}/project/mlartifacts/part3/" in sentence
    assert "put the folder mlartifacts of its project back beside the database" in sentence
    assert "delete" not in sentence
    assert "again" not in sentence


def test_a_damaged_file_is_not_called_missing(store: Store) -> None:
    record(store, SWEEP)
    run = find_first_run(store)
    path = find_artifacts(store, run.run_id) / "result.npz"
    np.savez(path, something=np.zeros(3))
    with pytest.raises(BadInputError, match=r"is damaged .*; put back a good copy of it, or delete that run"):
        store.read_result(run)


def test_a_file_that_may_not_be_read_is_neither_missing_nor_damaged(store: Store) -> None:
    record(store, SWEEP)
    with (
        pytest.raises(BadInputError, match=r"cannot be read \(Permission denied: .*; restore access to it"),
        store.open_artifact(find_first_run(store), "result.npz"),
    ):
        raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("mlflow-artifacts:/1", "name that server with --tracking-uri"),
        ("mars://x", "Could not find a registered artifact repository"),
        ("s3://bucket-of-nobody/x", "Unable to locate credentials"),
        ("/proc/nowhere", "No such file or directory"),
        ("gs://bucket/x", "pip install google-cloud-storage"),
    ],
)
def test_artifacts_that_cannot_be_written_are_refused_before_training(
    location: str, words: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    store.client.create_experiment("part3", artifact_location=location)
    with pytest.raises(BadInputError, match=f"artifacts of part3 · digits cannot be written to {location}.*{words}"):
        store.ensure_parent("part3", "digits")


def test_artifacts_behind_a_server_are_not_called_missing(store: Store) -> None:
    """A trial that was recorded through a server, whose database is then named directly."""
    record(store, SWEEP)
    run = find_first_run(store)
    there = StoredRun(**{**vars(run), "artifact_uri": f"mlflow-artifacts:/1/{run.run_id}/artifacts"})
    with pytest.raises(TrackingError, match=r"result\.npz .* fetched from mlflow-artifacts:/1/.*; name that server"):
        store.read_result(there)

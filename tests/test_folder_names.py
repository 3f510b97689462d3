"""Folders whose names mean something in a URL: every name works for the store and its artifacts, or is refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote, unquote

import pytest
from conftest import make_trial
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from test_results import make_result, write_run

from trainables.errors import BadInputError
from trainables.persistence.connection import get_missing_file, get_mlflow_uri, resolve_uri
from trainables.persistence.store import Store

# Characters that mean something in a URI, a shell or a path are drawn as often as all others together.
CHARACTERS = st.sampled_from("%?#:;@=&+ '\"\\~.,*$!|<>()[]{}^`-0123456789abcdefAF") | st.characters(
    categories=["L", "M", "N", "P", "S", "Zs"]
)
NAMES = st.text(CHARACTERS, min_size=1, max_size=30).filter(
    lambda name: "/" not in name and name not in (".", "..") and len(name.encode()) < 200
)
DANGEROUS = [
    "a%20b",
    "100%",
    "%2e%2e",
    "a?b=c",
    "?",
    "a#b",
    ":memory:",
    "a:b",
    "a;b",
    "me@host",
    "~",
    "-x",
    " ",
    "ü%C3%BC",
]


def examples(names: list[str]):  # type: ignore[no-untyped-def]
    """Return a decorator that adds one explicit example of a property for each name."""

    def decorate(test):  # type: ignore[no-untyped-def]
        for name in names:
            test = example(name=name)(test)
        return test

    return decorate


@contextmanager
def in_folder(path: Path) -> Iterator[None]:
    """Make the path the current folder for as long as the context lasts."""
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


def list_tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def use_store(uri: str) -> None:
    """Record a trial and read it, as a driver with this URI and a worker with the resolved one do."""
    trial = make_trial()
    write_run(Store(uri), trial, "mlp_1 · seed 0", make_result(trial))
    worker = Store(Store(uri).uri)
    [run] = worker.find_runs()[trial.id]
    assert worker.read_result(run).test_accuracy == 80
    with worker.open_artifact(run, "result.npz"):
        pass
    seen_by_mlflow = MlflowClient(get_mlflow_uri(worker.uri)).list_artifacts(run.run_id)
    assert [file.path for file in seen_by_mlflow] == ["result.npz"]


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("absolute", [False, True])
@examples(DANGEROUS)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(name=NAMES)
def test_a_folder_of_any_name_holds_a_store(absolute: bool, empty_database: Path, name: str) -> None:
    """Nothing outside the folder is made, and the project in the folder of the decoded name is not opened."""
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        folder = root / name
        decoded = root / unquote(name).replace("\0", "").replace("/", "") if unquote(name) != name else None
        if decoded is not None and not decoded.exists():
            decoded.mkdir(parents=True)
            (decoded / "mlflow.db").write_bytes(b"another project's")
        folder.mkdir(exist_ok=True)
        before = list_tree(root)
        shutil.copy(empty_database, folder / "mlflow.db")
        with in_folder(folder):
            use_store(f"sqlite:///{folder}/mlflow.db" if absolute else "sqlite:///mlflow.db")
        assert {path for path in list_tree(root) - before if not path.startswith(f"{name}/")} == set()
        assert (folder / "mlartifacts" / "part3").is_dir()


@examples(DANGEROUS)
@given(name=NAMES)
def test_a_resolved_uri_names_the_same_file_for_everyone(name: str) -> None:
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "project"  # whatever the name decodes to is inside the temporary folder
        resolved = resolve_uri(f"sqlite:///{folder}/{name}/mlflow.db")
        assert resolved == f"sqlite:///{folder}/{name}/mlflow.db" == resolve_uri(resolved)
        assert unquote(get_mlflow_uri(resolved).partition(":///")[2]) == f"{folder}/{name}/mlflow.db"


def test_a_new_store_in_a_folder_with_a_percent_sign_is_made_there(tmp_path: Path) -> None:
    folder = tmp_path / "a%20b"
    folder.mkdir()
    Store(f"sqlite:///{folder}/mlflow.db")
    assert (folder / "mlflow.db").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == ["a%20b"]


def test_an_encoded_path_is_refused_where_its_decoded_file_exists(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "mlflow.db").touch()
    for look in (resolve_uri, get_missing_file):
        with pytest.raises(BadInputError, match="write the path in --tracking-uri as it is"):
            look(f"sqlite:///{quote(str(tmp_path / 'a b'))}/mlflow.db")
    assert [path.name for path in tmp_path.iterdir()] == ["a b"]


def test_a_path_that_is_no_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(BadInputError, match="is not UTF-8 text; rename the folder"):
        Store("sqlite:///mlflow.db")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("uri", ["sqlite:///a.db?timeout=5", "sqlite:///x/file:a.db?uri=true&mode=ro", "sqlite:///?"])
def test_options_after_a_question_mark_are_refused(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInputError, match="use sqlite:///FILE"):
        Store(uri)
    assert list(tmp_path.iterdir()) == []


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///~/runs/x.db") == f"sqlite:///{tmp_path}/home/runs/x.db"
    assert resolve_uri(f"sqlite:///{tmp_path}/~/x.db") == f"sqlite:///{tmp_path}/~/x.db"
    assert resolve_uri("sqlite:///~nobody-of-this-name/x.db") == f"sqlite:///{tmp_path}/~nobody-of-this-name/x.db"

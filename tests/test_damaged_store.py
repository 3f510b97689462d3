"""Damage to the tracking store: a sweep and its analysis still work, or end with one sentence.

`python tests/test_damaged_store.py` counts the cases.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import find_artifacts, make_sweep
from test_results import make_result, record

from analysis.results import load_results
from sweeps.cli import run_to_exit_status
from sweeps.driver.options import RunOptions
from sweeps.driver.run import run
from sweeps.part3 import Part3
from trainables.errors import UserError
from trainables.persistence.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")]
SWEEP = make_sweep(seeds=1)
CUTS = 16  # truncated copies of an artifact, and as many of the database
FLIPS = 150  # copies of an artifact with one bit flipped


@pytest.fixture(scope="module")
def template(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a store with two finished trials, and their artifacts beside it."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    shutil.copy(empty_database, path)
    record(Store(f"sqlite:///{path}"), SWEEP)
    return path


@pytest.fixture
def database(template: Path, tmp_path: Path) -> Path:
    """Copy the template's database; the copy shares the template's artifacts."""
    return Path(shutil.copy(template, tmp_path / "mlflow.db"))


def analyse(database: Path) -> str | None:
    """Open a store and load the sweep; return the error message if one of them fails."""
    try:
        return load_and_check(Store(f"sqlite:///{database}"))
    except UserError as error:
        return str(error)


def load_and_check(store: Store) -> str | None:
    """Load the sweep, and check that its results are as recorded; return the error message if loading fails."""
    try:
        results = load_results(SWEEP, store, fill="python sweeps/part3.py")
    except UserError as error:
        return str(error)
    for trial in SWEEP.trials():
        actual, expected = results.by_trial[trial.id], make_result(trial)
        assert actual.test_accuracy == expected.test_accuracy
        np.testing.assert_array_equal(actual.steps, expected.steps)
        np.testing.assert_array_equal(actual.first_layer, expected.first_layer)
        np.testing.assert_equal(actual.curves, expected.curves)
    return None


def dry_run(database: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Dry-run the sweep, and return its exit status and output, which must hold no traceback."""
    options = Part3(
        dataset="digits", seeds=1, architectures=("mlp_1", "cnn_3"), epochs=2, batch_size=10,
        tracking_uri=f"sqlite:///{database}",
    )  # fmt: skip
    status = run_to_exit_status(lambda: run(options, RunOptions(dry_run=True, storage=database.parent / "storage")))
    out, err = capsys.readouterr()
    assert status in (0, 2)
    assert (err.count("\n"), err.startswith("error: ")) == ((1, True) if status else (0, False)), err
    return status, out + err


def sql(*statements: str) -> Callable[[Path], object]:
    """Return a function that damages a database by SQL statements."""

    def damage(database: Path) -> None:
        connection = sqlite3.connect(database)
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.close()

    return damage


# case → (damage, part of the analysis's error message or None if it succeeds, part of the sweep's output)
DATABASES: dict[str, tuple[Callable[[Path], object], str | None, str]] = {
    "runs deleted": (sql("UPDATE runs SET lifecycle_stage = 'deleted'"), "2 of 2 trials are not finished", "2 missing"),
    "experiment deleted": (sql("UPDATE experiments SET lifecycle_stage = 'deleted'"), "not finished", "2 missing"),
    "all rows gone": (sql("DELETE FROM tags", "DELETE FROM metrics", "DELETE FROM runs"), "not finished", "2 missing"),
    "tags gone": (sql("DELETE FROM tags"), "2 of 2 trials are not finished", "2 missing"),
    "trial ids gone": (sql("DELETE FROM tags WHERE key = 'trial_id'"), "not finished", "2 missing"),
    "trial ids empty": (sql("UPDATE tags SET value = '' WHERE key = 'trial_id'"), "not finished", "2 missing"),
    "trial ids equal": (sql("UPDATE tags SET value = 'x' WHERE key = 'trial_id'"), "not finished", "2 missing"),
    "parents gone": (sql("DELETE FROM tags WHERE key = 'mlflow.parentRunId'"), None, "2 done"),
    "names gone": (sql("UPDATE runs SET name = NULL", "DELETE FROM tags WHERE key LIKE 'mlflow.%'"), None, "2 done"),
    "metrics gone": (sql("DELETE FROM latest_metrics", "DELETE FROM metrics"), None, "2 done"),
    "params gone": (sql("DELETE FROM params"), None, "2 done"),
    "runs unfinished": (sql("UPDATE runs SET status = 'RUNNING'"), "not finished", "2 missing"),
    "artifacts elsewhere": (sql("UPDATE runs SET artifact_uri = '/nowhere'"), "artifact result.npz", "2 done"),
    "artifacts on Mars": (sql("UPDATE runs SET artifact_uri = 'mars://x'"), "artifact result.npz", "2 done"),
    "a table gone": (sql("DROP TABLE runs"), "cannot be used", "error: "),
    "a column gone": (sql("ALTER TABLE runs RENAME COLUMN status TO state"), "cannot be used", "error: "),
    "a schema to come": (sql("UPDATE alembic_version SET version_num = 'ffff'"), "cannot be used", "error: "),
    "not a database": (lambda path: path.write_bytes(b"x" * 5000), "cannot be used", "error: "),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be used", "error: "),
    "empty": (lambda path: path.write_bytes(b""), "not finished", "2 missing"),
}


@pytest.mark.parametrize("case", DATABASES)
def test_a_damaged_database_is_used_or_refused_in_one_sentence(
    case: str, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, analysis, sweep = DATABASES[case]
    damage(database)
    sentence = analyse(database)
    assert (sentence is None) if analysis is None else (sentence is not None and analysis in sentence)
    assert sweep in dry_run(database, capsys)[1]


@pytest.mark.parametrize("part", range(4))
def test_a_truncated_database_is_refused_and_left_unchanged(
    part: int, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = database.read_bytes()
    for cut in range(part, CUTS, 4):
        damaged = whole[: 1000 + (len(whole) - 1000) * cut // CUTS]  # SQLite takes less than 512 bytes for a new file
        database.write_bytes(damaged)
        assert analyse(database) is not None
        dry_run(database, capsys)
        assert database.read_bytes() == damaged  # so that a person can still repair it


@pytest.fixture(scope="module")
def whole_store(template: Path) -> Store:
    return Store(f"sqlite:///{template}")


def find_artifact(store: Store) -> Path:
    """Return the path of the artifact of `mlp_1`."""
    [run] = store.find_runs()[SWEEP.trials()[0].id]
    return find_artifacts(store, run.run_id) / "result.npz"


def rewrite(path: Path, **changes: np.ndarray | None) -> None:
    """Write the artifact again with other arrays; those that are None are left out."""
    with np.load(path) as arrays:
        content = {name: arrays[name] for name in arrays} | changes
    np.savez(path, **{name: array for name, array in content.items() if array is not None})


ARTIFACTS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"x" * 2000),
    "another archive": lambda path: np.savez(path, something=np.zeros(3)),
    "a single array": lambda path: (np.save(path, np.zeros(3)), path.with_suffix(".npz.npy").replace(path)),
    "without steps": lambda path: rewrite(path, steps=None),
    "without a curve": lambda path: rewrite(path, curve_val_accuracy=None),
    "with a foreign curve": lambda path: rewrite(path, curve_other=np.zeros(6)),
    "with a short curve": lambda path: rewrite(path, curve_val_accuracy=np.zeros(3)),
    "with a curve of two axes": lambda path: rewrite(path, curve_val_accuracy=np.zeros((6, 2))),
    "with a curve of words": lambda path: rewrite(path, curve_val_accuracy=np.array(list("abcdef"))),
    "with steps of two axes": lambda path: rewrite(path, steps=np.zeros((6, 2), int)),
    "with steps that fall": lambda path: rewrite(path, steps=np.arange(60, 0, -10)),
    "with steps of fractions": lambda path: rewrite(path, steps=np.linspace(0, 1, 6)),
    "with several accuracies": lambda path: rewrite(path, test_accuracy=np.zeros(3)),
    "with an accuracy in words": lambda path: rewrite(path, test_accuracy=np.array("high")),
    "with objects": lambda path: np.savez(path, steps=np.array([print], dtype=object)),
}


@pytest.fixture
def damaged_artifact(whole_store: Store) -> Iterator[Path]:
    """Yield the path of an artifact, and restore the artifact afterwards."""
    path = find_artifact(whole_store)
    whole = path.read_bytes()
    yield path
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    path.write_bytes(whole)


@pytest.mark.parametrize("case", ARTIFACTS)
def test_a_damaged_artifact_is_refused_with_advice(case: str, whole_store: Store, damaged_artifact: Path) -> None:
    ARTIFACTS[case](damaged_artifact)
    sentence = load_and_check(whole_store)
    assert sentence is not None
    assert "artifact" in sentence
    missing = case == "missing"  # what is missing may be elsewhere, so the advice is not to delete anything
    assert ("put it back there" in sentence, "delete" in sentence) == (missing, not missing)


def test_a_truncated_artifact_is_refused(whole_store: Store, damaged_artifact: Path) -> None:
    whole = damaged_artifact.read_bytes()
    for cut in range(CUTS):
        damaged_artifact.write_bytes(whole[: len(whole) * cut // CUTS])
        assert load_and_check(whole_store) is not None


def test_a_flipped_bit_in_an_artifact_is_noticed_or_harmless(whole_store: Store, damaged_artifact: Path) -> None:
    """Nearly all flips are noticed; the others, such as in the archive's dates, change nothing that is read."""
    whole = damaged_artifact.read_bytes()
    generator = np.random.default_rng(0)
    noticed = 0
    for position, bit in zip(
        generator.integers(len(whole), size=FLIPS), generator.integers(8, size=FLIPS), strict=True
    ):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(bit)
        damaged_artifact.write_bytes(damaged)
        noticed += load_and_check(whole_store) is not None
    assert noticed > FLIPS * 0.9


if __name__ == "__main__":
    print(f"databases damaged {2 * len(DATABASES)}, truncated {2 * CUTS} (the sweep and its analysis each)")
    print(f"artifacts damaged {len(ARTIFACTS)}, truncated {CUTS}, bits flipped {FLIPS}")

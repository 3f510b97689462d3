"""Opening a sqlite store: several processes at once, in a folder that may only be read, half made tables."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from trainables.errors import TrackingError
from trainables.persistence import connection
from trainables.persistence.store import Store

ROOT = Path(__file__).resolve().parent.parent
# Opens one new file in several processes at the same moment, round after round, and prints what went wrong.
RACE = """
import os, sys, time
from trainables.persistence.store import Store

folder, processes, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for number in range(rounds):
    start = time.time() + 0.5
    for _ in range(processes):
        if os.fork() == 0:
            time.sleep(max(0.0, start - time.time()))  # on a busy machine, the moment may have passed
            try:
                print(*Store(f"sqlite:///{folder}/{number}.db").ensure_parent("part3", "digits"), flush=True)
            except Exception as error:
                print("failed:", error, flush=True)
            os._exit(0)
    for _ in range(processes):
        os.wait()
"""


@pytest.mark.slow
@pytest.mark.timeout(180)  # making a database takes seconds of a quiet machine
def test_processes_that_open_a_new_file_at_once_all_succeed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACE, str(tmp_path), "3", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    lines = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 6
    assert not [line for line in lines if line.startswith("failed")]
    assert len(set(lines)) == 2  # one experiment and one parent run for each file


def test_a_process_waits_for_the_one_that_opens_the_file(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(empty_database, tmp_path / "mlflow.db"))
    monkeypatch.setattr(connection, "OPENING_SECONDS", 0.1)
    with (
        FileLock(f"{path}.lock"),
        pytest.raises(TrackingError, match="another process has been opening"),
    ):
        Store(f"sqlite:///{path}")


def test_a_store_whose_lock_cannot_be_made_is_opened(empty_database: Path, tmp_path: Path) -> None:
    """As in a folder that may only be read; root may write everywhere, so a folder takes the place of the file."""
    path = Path(shutil.copy(empty_database, tmp_path / "mlflow.db"))
    (tmp_path / "mlflow.db.lock").mkdir()
    tmp_path.chmod(0o555)
    try:
        assert Store(f"sqlite:///{path}").find_runs() == {}
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize(
    "statements",
    [
        ["DROP TABLE secrets", "UPDATE alembic_version SET version_num = 'cfd24bdc0731'"],
        ["DELETE FROM alembic_version", "CREATE TABLE _alembic_tmp_tags (a INT)", "DROP TABLE secrets"],
        ["DELETE FROM alembic_version"],
    ],
)
def test_half_made_tables_are_named(statements: list[str], empty_database: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(empty_database, tmp_path / "mlflow.db"))
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    with pytest.raises(TrackingError, match="a process that was killed has left its tables half made"):
        Store(f"sqlite:///{path}")

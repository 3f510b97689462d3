"""Commands in messages: they work when pasted, and show no password."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_sweep, run_sweep
from test_results import record

from sweeps.experiment import JOB_ADDRESS_VARIABLE
from sweeps.part3 import Part3
from trainables.commands import hide_password, join_command, name_program, name_script
from trainables.errors import BadInputError
from trainables.persistence.connection import resolve_uri
from trainables.persistence.failures import convert_store_errors
from trainables.persistence.store import Store

ROOT = Path(__file__).resolve().parent.parent
SECRET = "postgresql://me:s3c/r@t@host/db"


def paste(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a shell does in which nothing is set up, this environment's programs included."""
    return subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        env={"PATH": os.defpath, "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(autouse=True)
def unset_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "SWEEPS_STORAGE", "SWEEPS_DATA_ROOT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
def test_the_command_that_restores_an_experiment_does(empty_database: Path, tmp_path: Path) -> None:
    folder = tmp_path / "100% a%20b; c"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    store = Store(f"sqlite:///{folder}/mlflow.db")
    store.client.delete_experiment(store.ensure_parent("part3", "digits")[0])
    with pytest.raises(BadInputError) as raised:
        store.ensure_parent("part3", "digits")
    command = re.search(r"restore it with: (.*), or use another store", str(raised.value))
    assert command is not None
    (tmp_path / "elsewhere").mkdir()
    before = set(tmp_path.rglob("*"))
    done = paste(command[1], tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    assert store.ensure_parent("part3", "digits")
    assert set(tmp_path.rglob("*")) - before == set()


@pytest.mark.slow
def test_the_command_that_trains_what_is_missing_is_run_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my runs; 100%"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///it's.db")
    command = Part3(quick=True, **Part3.quick_defaults | {"seeds": 1}).format_command("sweeps")
    done = paste(f"{command} --dry-run", folder)
    assert done.returncode == 0, done.stderr
    assert "part3: 5 trials, 0 done, 5 missing" in done.stdout
    record(Store("sqlite:///it's.db"), make_sweep(seeds=1))
    command = Part3(
        dataset="digits", seeds=1, epochs=2, batch_size=10, architectures=("mlp_1", "cnn_3")
    ).format_command("sweeps")
    assert "part3: 2 trials, 2 done, 0 missing" in paste(f"{command} --dry-run", folder).stdout


def test_a_program_is_named_as_the_shell_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = tmp_path / "our env" / "bin"
    ours.mkdir(parents=True)
    for name in ("python", "python3", "mlflow"):
        (ours / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(ours / "python3"))
    monkeypatch.setenv("PATH", str(ours))
    assert (name_program("python"), name_program("mlflow"), name_program("absent")) == ("python", "mlflow", "absent")
    monkeypatch.setenv("PATH", os.defpath)
    assert name_program("python") == f"'{ours}/python3'"
    assert name_program("mlflow") == f"'{ours}/mlflow'"


def test_a_script_is_named_from_the_current_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    assert name_script(ROOT / "sweeps" / "part3.py") == "sweeps/part3.py"
    monkeypatch.chdir(tmp_path)
    assert name_script(ROOT / "sweeps" / "part3.py") == f"{ROOT}/sweeps/part3.py"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me:…@host/db"),
        ("postgresql://me:s3c/r@t@host/db", "postgresql://me:…@host/db"),
        ("http://me:pa ss@host:5000", "http://me:…@host:5000"),
        ("http://:secret@host:5000", "http://:…@host:5000"),
        ("postgresql://host/db?user=me&password=secret", "postgresql://host/db?user=me&password=…"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3Dsecret", "mssql+pyodbc:///?odbc_connect=…"),
        ("http://host:5000", "http://host:5000"),
        ("http://[::1]:5000", "http://[::1]:5000"),
        ("sqlite:////a/me:b@c/x.db", "sqlite:////a/me:b@c/x.db"),
    ],
)
def test_a_password_is_not_shown(uri: str, shown: str) -> None:
    assert hide_password(uri) == shown


def test_a_command_names_the_variable_in_the_place_of_a_password() -> None:
    note = " (with MLFLOW_TRACKING_URI set to the store's URI, whose password is not printed)"
    expected = """python 'a b.py' --tracking-uri "$MLFLOW_TRACKING_URI" --quick""" + note
    assert join_command("python", ["a b.py", "--tracking-uri", SECRET, "--quick"]) == expected
    expected = expected.replace("--tracking-uri ", "--tracking-uri=")
    assert join_command("python", ["a b.py", f"--tracking-uri={SECRET}", "--quick"]) == expected


def test_no_message_shows_a_password(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [Part3(tracking_uri=SECRET).format_command("sweeps"), Part3(tracking_uri=SECRET).describe_browsing("#/x")]
    texts.append(Part3(tracking_uri="http://me:s3c/r@t@host:5000").describe_browsing("#/x"))
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    for error in (f"cannot reach {SECRET}", "wrong: hunter2", f"retry {SECRET.replace('s3c/r@t', 's3c%2Fr%40t')}"):
        with pytest.raises(Exception, match="cannot be used") as raised, convert_store_errors(SECRET):
            raise ValueError(error)
        texts.append(str(raised.value))
    with pytest.raises(BadInputError, match="neither a database nor a server") as refused:
        resolve_uri(SECRET.replace("postgresql", "oracle"))
    assert run_sweep(monkeypatch, "--quick", "--tracking-uri", "http://me:s3cr3t@127.0.0.1:9") == 2
    texts += [str(refused.value), capsys.readouterr().err]
    assert not [text for text in texts if "s3c" in text or "hunter2" in text]


@pytest.mark.parametrize(
    ("uri", "job", "shown"),
    [
        ("sqlite:///mlflow.db", "", "python analysis/ui.py part3"),
        ("sqlite:///x y.db", "", "python analysis/ui.py part3 --tracking-uri 'sqlite:///x y.db'"),
        ("postgresql://h/d?a=1&b=2", "", "python analysis/ui.py part3 --tracking-uri 'postgresql://h/d?a=1&b=2'"),
        (SECRET, "", 'python analysis/ui.py part3 --tracking-uri "$MLFLOW_TRACKING_URI" (with MLFLOW_TRACKING_URI set'),
        ("http://host:5000/", "", "http://host:5000/#/page"),
        ("http://10.0.0.1:5000", "http://127.0.0.1:8265", "http://127.0.0.1:5000/#/page"),  # through the job's tunnel
    ],
)
def test_the_way_to_mlflows_ui_is_an_address_or_a_command(
    uri: str, job: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    monkeypatch.setattr("sweeps.experiment.name_program", lambda name: name)
    monkeypatch.setenv(JOB_ADDRESS_VARIABLE, job)
    assert Part3(tracking_uri=uri).describe_browsing("#/page").startswith(shown)

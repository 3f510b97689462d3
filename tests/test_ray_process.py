from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import make_trial

from sweeps.driver import ray_process
from sweeps.driver.options import RunOptions
from sweeps.driver.packing import ImageCounts
from sweeps.driver.ray_process import LOG_NAME, RayProcess, make_private_folder
from sweeps.driver.signals import delay_signals
from sweeps.driver.trainer import Trainer
from sweeps.driver.watch import RayFailedError, RayKilledError
from trainables.errors import BadInputError

pytestmark = pytest.mark.slow  # the process imports Ray


@pytest.fixture
def process(tmp_path: Path) -> Iterator[RayProcess]:
    """Start a process without Ray's own processes; it has a storage folder."""
    (tmp_path / "storage").mkdir()
    process = RayProcess(None, tmp_path / "ray", tmp_path / "storage", print)
    yield process
    process.close()
    assert not process.folder.exists()


def test_a_request_is_answered_with_a_result_or_with_its_error(process: RayProcess, tmp_path: Path) -> None:
    counts, checksum = process.ask("loading", "load", make_trial(), tmp_path)
    assert counts == ImageCounts((1, 32, 32), 1297, 140, 360)
    assert len(checksum) == 16
    with pytest.raises(BadInputError, match="no usable mnist files"):
        process.ask("loading", "load", make_trial(dataset="mnist"), tmp_path / "none")
    assert process.ask("loading", "load", make_trial(), tmp_path)[0] == counts  # it goes on after an error


def test_a_process_that_dies_is_named_with_its_signal(process: RayProcess, tmp_path: Path) -> None:
    process.process.kill()
    with pytest.raises(RayFailedError, match=r"^Ray has failed: its process was ended by SIGKILL; .* memory \(more in"):
        process.ask("loading", "load", make_trial(), tmp_path)
    assert (tmp_path / "storage" / LOG_NAME).exists()


def test_loading_data_while_ray_starts_adds_no_environment_variable(tmp_path: Path) -> None:
    """Ray's machine code reads the environment meanwhile, and can crash where a variable is added."""
    code = f"""
import sys
from pathlib import Path
from sweeps.driver.ray_main import RayHolder, settle_environment
from trainables.trial import Trial

settle_environment()
sys.addaudithook(lambda event, words: print(event, words) if event in ("os.putenv", "os.unsetenv") else None)
trial = Trial(dataset="digits", architecture="mlp_1", learning_rate=0.1, epochs=1, seed=0)
counts, _ = RayHolder(print).load(trial, Path({str(tmp_path)!r}))
print(counts.test)
"""
    names = ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "360\n"


def test_ray_is_started_once_more_where_a_signal_ends_its_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A crash in a library loses nothing while Ray starts, so it does not end the sweep."""
    with ExitStack() as stack:
        trainer = Trainer(RunOptions(storage=tmp_path), None, stack, lambda *_: None)
        trainer.ray.process.send_signal(signal.SIGSEGV)
        trainer.start_patiently(make_trial(), f"sqlite:///{tmp_path}/mlflow.db")
        assert len(trainer.nodes) == 1
        assert trainer.images == ImageCounts((1, 32, 32), 1297, 140, 360)
    assert "its process was ended by SIGSEGV (more in" in (said := capsys.readouterr().out)
    assert "starting it once more" in " ".join(said.split())


def test_ray_is_not_started_a_third_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[str] = []

    def start(trainer: Trainer, *_: object) -> None:
        starts.append("start")
        raise RayKilledError("killed")

    monkeypatch.setattr(Trainer, "start", start)
    with ExitStack() as stack:
        trainer = Trainer(RunOptions(storage=tmp_path), None, stack, lambda *_: None)
        with pytest.raises(RayKilledError):
            trainer.start_patiently(make_trial(), "sqlite:///none")
    assert len(starts) == 2


def test_an_unexpected_error_ends_the_process_with_its_reason(process: RayProcess, tmp_path: Path) -> None:
    with pytest.raises(RayFailedError, match=r"Ray has failed: .*no_such_function"):
        process.ask("nothing", "no_such_function")
    assert "Traceback" in (tmp_path / "storage" / LOG_NAME).read_text()
    assert process.process.returncode == -signal.SIGKILL


def test_training_that_does_not_stop_is_killed(
    process: RayProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process.ask("loading", "load", make_trial(), tmp_path)  # from then on it ignores the signal to stop
    monkeypatch.setattr(ray_process, "STOP_SECONDS", 1)
    process.busy = True
    assert process.stop_training() is None
    assert process.process.returncode == -signal.SIGKILL


def test_the_process_ends_with_the_driver(tmp_path: Path) -> None:
    """A driver that is killed can close nothing."""
    code = f"""
from pathlib import Path
from sweeps.driver.ray_process import RayProcess

process = RayProcess(None, Path({str(tmp_path)!r}) / "ray", Path({str(tmp_path)!r}), print)
print(process.process.pid, flush=True)
input()
"""
    driver = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert driver.stdin is not None
    assert driver.stdout is not None
    pid = int(driver.stdout.readline())
    driver.kill()
    driver.wait()
    driver.stdin.close()
    driver.stdout.close()
    deadline = time.monotonic() + 20
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    """Return whether a process exists, and is not only waiting for its parent to notice its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_signals_wait_for_the_end_of_a_block() -> None:
    steps: list[int] = []

    def send_signals() -> None:
        with delay_signals():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)
                steps.append(number)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        send_signals()
    assert len(steps) == 3
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_the_private_folder_replaces_an_old_one_and_is_for_its_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "ray"
    folder.mkdir(parents=True)
    (folder / "old").touch()
    make_private_folder(folder)
    assert list(folder.iterdir()) == []
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_private_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_process, "EXIT_SECONDS", 0)
    (tmp_path / "file").touch()
    with pytest.raises(BadInputError, match=r"cannot make the folder .*ray .*Not a directory.*RAY_TMPDIR"):
        make_private_folder(tmp_path / "file" / "ray")

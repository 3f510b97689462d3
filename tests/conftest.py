"""Small data sets, trials, sweeps and stores that tests share."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from hypothesis import settings

from sweeps.cli import main
from sweeps.driver.resources import Node
from sweeps.driver.signals import STOP_SIGNALS
from sweeps.driver.trainer import Trainer
from sweeps.part3 import Part3
from sweeps.sweep import Sweep
from trainables.datasets import Dataset
from trainables.persistence.store import Store
from trainables.trial import Trial

signal.signal(signal.SIGINT, signal.default_int_handler)  # `pytest &` in a shell script starts with SIGINT ignored
settings.register_profile("without deadlines", deadline=None)  # a test must not fail because the machine is busy
settings.load_profile("without deadlines")


@pytest.fixture(autouse=True)
def keep_signal_handlers() -> Iterator[None]:
    """Undo what a script's main function does to the handlers of signals."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")


def make_dataset(channels: int = 1, side: int = 28, train: int = 130, seed: int = 0) -> Dataset:
    """Make random images whose class shows as a bright row, so that networks learn something."""
    generator = np.random.default_rng(seed)

    def make_images(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n, dtype=np.int64) % 10
        images = generator.normal(0, 1, (n, channels, side, side)).astype(np.float32)
        images[np.arange(n), :, labels * 2] += 3
        return images, labels

    train_images, train_labels = make_images(train)
    val_images, val_labels = make_images(40)
    test_images, test_labels = make_images(30)
    return Dataset(
        name="digits",
        train_images=train_images,
        train_labels=train_labels,
        val_images=val_images,
        val_labels=val_labels,
        test_images=test_images,
        test_labels=test_labels,
        classes=10,
        checksum="0" * 16,
    )


def make_trial(**changes: object) -> Trial:
    """Make a small trial; `changes` override its settings."""
    settings: dict[str, object] = {
        "dataset": "digits",
        "architecture": "mlp_1",
        "learning_rate": 0.01,
        "epochs": 2,
        "seed": 0,
        "batch_size": 10,
    }
    return Trial(**{**settings, **changes})  # type: ignore[arg-type]


def make_sweep(seeds: int = 2) -> Sweep:
    """Make a sweep of two architectures over some seeds."""
    return Sweep(
        name="part3",
        axes={"seed": range(seeds), "architecture": ("mlp_1", "cnn_3")},
        fixed={"dataset": "digits", "learning_rate": 0.01, "epochs": 2, "batch_size": 10},
    )


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an empty MLflow database, once as it takes seconds; tests copy it."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    Store(f"sqlite:///{path}")
    return path


@pytest.fixture
def store(empty_database: Path, tmp_path: Path) -> Store:
    path = tmp_path / "mlflow.db"
    shutil.copy(empty_database, path)
    return Store(f"sqlite:///{path}")


def find_artifacts(store: Store, run_id: str) -> Path:
    """Return the folder of a run's artifacts that MLflow stores."""
    return Path(unquote(urlsplit(store.client.get_run(run_id).info.artifact_uri).path))


def run_sweep(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run `python sweeps/part3.py WORDS` in this process, and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["sweeps/part3.py", *words])
    with pytest.raises(SystemExit) as exit_info:
        main(Part3, "Part 3.")
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


class FakeRayProcess:
    """Stands for the process that holds Ray, without one."""

    folders: ClassVar[list[Path]] = []

    def __init__(self, address: str | None, folder: Path, *_: Any) -> None:
        self.folders.append(folder)

    def ask(self, activity: str, name: str, *arguments: Any) -> list[Node]:
        return [Node(4, 1)]

    def close(self) -> None:
        pass


@pytest.fixture
def train_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sweeps do all but train."""
    monkeypatch.setattr("sweeps.driver.ray_process.RayProcess", FakeRayProcess)
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: {})

"""The command lines of sweeps and analyses: one dataclass of options that select trials, one that runs them."""

from __future__ import annotations

import os
import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from sweeps.driver.options import RunOptions
from sweeps.sweep import MAX_TRIALS, Sweep
from trainables.errors import check_choice, check_positive
from trainables.result import Result
from trainables.trial import IMAGE_DATASETS, Trial

MAIN_ARCHITECTURES = ("mlp_1", "mlp_2", "cnn_3", "cnn_4", "cnn_5")


Stages = Generator[Sweep, None, str | None]


ReadResult = Callable[[Trial], Result | None]


JOB_ADDRESS_VARIABLE = "SWEEPS_JOB_ADDRESS"  # environment variable of a job: the --address that it was submitted with


MLFLOW_PORT = 5000  # of a cluster's head, and of the tunnel to it


def get_default_tracking_uri() -> str:
    """What `MLFLOW_TRACKING_URI` says, or a sqlite file in the current folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


def get_default_data_root() -> Path:
    """What `SWEEPS_DATA_ROOT` says, or a folder in the current one."""
    return Path(os.environ.get("SWEEPS_DATA_ROOT") or "data")


@dataclass(frozen=True, kw_only=True)
class SweepOptions(ABC):
    """Which trials; a sweep and its analysis take the same."""

    experiment: ClassVar[str]
    """Name of the sweep, of its MLflow experiment and of its two scripts."""
    quick_defaults: ClassVar[Mapping[str, Any]] = {}
    """What `--quick` changes."""

    seeds: int = 1
    """How many seeds: 0 to N-1. More can be added later."""
    tracking_uri: str = field(default_factory=get_default_tracking_uri)
    """Where MLflow keeps the runs; MLFLOW_TRACKING_URI sets the default."""
    quick: bool = False
    """A version of a minute or two on bundled data; other options still apply."""

    @abstractmethod
    def sweep(self) -> Sweep:
        """The sweep that the options describe.

        Raises:
            BadInputError: An option's value is out of range.
        """

    def stages(self, read: ReadResult) -> Stages:
        """The sweeps to run one after the other: one, unless what to train next depends on results.

        Args:
            read: Gives a trial's result, None if it is not finished.

        Returns:
            If the stages end early, a sentence that says why.
        """
        yield self.sweep()
        return None

    def seed_range(self) -> range:
        """The seeds 0 to N−1."""
        check_positive("--seeds", self.seeds, whole=True, most=MAX_TRIALS)
        return range(self.seeds)

    def command(self, room: str, running: RunOptions | None = None) -> str:
        """The command line of the experiment's script in `room` (`sweeps` or `analysis`) with these options."""
        usual = type(self)(**self.quick_defaults, quick=True) if self.quick else type(self)()
        words = [
            "python",
            f"{room}/{self.experiment}.py",
            *(["--quick"] if self.quick else []),
            *format_options(self, usual),
        ]
        if running:
            words += format_options(running, RunOptions())
        if address := os.environ.get(
            JOB_ADDRESS_VARIABLE
        ):  # to be typed where the job came from, with the tunnels open
            there = f"MLFLOW_TRACKING_URI=http://{urlsplit(address).hostname}:{MLFLOW_PORT}"
            words = [*words, "--address", address] if room == "sweeps" else [there, *words]
        return shlex.join(words)


@dataclass(frozen=True, kw_only=True)
class ImageSweepOptions(SweepOptions):
    """Which trials, of networks that train on images."""

    dataset: str = "cifar10"
    """cifar10, fashion_mnist, mnist or digits."""
    epochs: int = 15

    def image_settings(self) -> dict[str, Any]:
        """The settings of `Trial` that these options give."""
        check_choice("dataset", self.dataset, IMAGE_DATASETS)
        return {"dataset": self.dataset, "epochs": self.epochs}


@dataclass(frozen=True, kw_only=True)
class MainSweepOptions(ImageSweepOptions):
    """Which trials, of the five main architectures."""

    architectures: tuple[str, ...] = MAIN_ARCHITECTURES
    """Any of mlp_1, mlp_2, cnn_3, cnn_4, cnn_5."""
    batch_size: int = 50
    learning_rate: float = 0.01

    def main_settings(self) -> dict[str, Any]:
        """The settings of `Trial` that these options give, but for the architecture."""
        for architecture in self.architectures:
            check_choice("architecture", architecture, MAIN_ARCHITECTURES)
        return {**self.image_settings(), "batch_size": self.batch_size, "learning_rate": self.learning_rate}


def format_options(options: Any, usual: Any) -> list[str]:
    """The words of a command line that turn the options `usual` into `options`."""
    words: list[str] = []
    for name in (f.name for f in fields(options)):
        value = getattr(options, name)
        if value != getattr(usual, name):
            flag, values = f"--{name.replace('_', '-')}", value if isinstance(value, tuple) else (value,)
            # a value such as the folder -x would be taken for an option if it stood alone
            words += [f"{flag}={value}"] if str(value).startswith("-") else [flag, *(str(v) for v in values)]
    return words

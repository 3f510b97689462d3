"""Experiments: the command-line options that select trials, and the sweeps that follow from them."""

from __future__ import annotations

import os
import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

from tyro.constructors import PrimitiveConstructorSpec

from sweeps.journal import Journal
from sweeps.sweep import MAX_TRIALS, ReadResult, Sweep
from trainables.commands import URI_VARIABLE, hide_password, join_command, name_program, name_script
from trainables.errors import check_choice, check_positive
from trainables.trial import IMAGE_DATASETS

MAIN_ARCHITECTURES = ("mlp_1", "mlp_2", "cnn_3", "cnn_4", "cnn_5")
JOB_ADDRESS_VARIABLE = "SWEEPS_JOB_ADDRESS"  # environment variable of a job: the --address that it was submitted to
CODE_FOLDER = Path(__file__).resolve().parent.parent
DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"
DEFAULT_DATA_ROOT = Path("data")
SELECTING_LITTLE = ("seeds", "quick", "tracking_uri")  # options that do not tell one selection from another
MLFLOW_PORT = 5000  # of MLflow on a cluster's head, and of the tunnel to it


class StagesEndedEarly(Exception):  # noqa: N818 (it is no error)
    """The end of an experiment's stages before the last; its text is a sentence that gives the reason."""


def expand_home(path: str | Path) -> Path:
    """Return the path with `~` expanded as shells do, where an option such as `--storage=~/x` keeps it from them."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path.expanduser raises for unknown users)


UserPath = Annotated[
    Path,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: expand_home(words[0]),
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda path: [str(path)],
    ),
]
"""A path on the command line, which may begin with `~`."""


def get_default_tracking_uri() -> str:
    """Return the value of `MLFLOW_TRACKING_URI`, or a sqlite file in the current folder."""
    return os.environ.get(URI_VARIABLE) or DEFAULT_TRACKING_URI


def get_default_data_root() -> Path:
    """Return the folder that `SWEEPS_DATA_ROOT` names, or `data` in the current folder."""
    return expand_home(os.environ.get("SWEEPS_DATA_ROOT") or DEFAULT_DATA_ROOT)


@dataclass(frozen=True, kw_only=True)
class SweepOptions(ABC):
    """Options that select trials; a sweep and its analysis take the same.

    Attributes:
        experiment: The name of the sweep, of its MLflow experiment, and of its two scripts.
        question: The question that it is to answer.
        quick_defaults: The defaults under `--quick`, where they differ.
    """

    experiment: ClassVar[str]
    question: ClassVar[str] = ""
    quick_defaults: ClassVar[Mapping[str, Any]] = {}

    seeds: int = 1
    """Number of seeds N; the seeds are 0 to N-1. You can add more later."""
    tracking_uri: str = field(default_factory=get_default_tracking_uri)
    """MLflow's tracking store. MLFLOW_TRACKING_URI sets the default."""
    quick: bool = False
    """Run a short version on bundled data, which takes a minute or two. Other options still apply."""

    @abstractmethod
    def sweep(self) -> Sweep:
        """Return the sweep that the options describe.

        Raises:
            BadInputError: An option's value is out of range.
        """

    def stages(self, read: ReadResult, journal: Journal | None = None) -> Iterator[Sweep]:
        """Yield the sweeps to run one after the other: just one, unless a later one depends on results.

        Args:
            read: Reads a trial's result.
            journal: Files that a search keeps beside its trials; None to keep none.

        Raises:
            StagesEndedEarly: The next sweep cannot be determined from the results.
        """
        yield self.sweep()

    def describe_plan(self) -> Sequence[str]:
        """Return sentences on what is to come that the plan of the first stage does not show."""
        return ()

    def first_stage(self, journal: Journal | None = None) -> Sweep:
        """Return the sweep that depends on no results.

        Args:
            journal: Files that a search keeps beside its trials; None if there are none.

        Raises:
            BadInputError: An option's value is out of range.
        """
        return next(iter(self.stages(lambda trial: None, journal)))

    def seed_range(self) -> range:
        """Return the seeds 0 to N-1."""
        check_positive("--seeds", self.seeds, whole=True, maximum=MAX_TRIALS)
        return range(self.seeds)

    def select(self) -> dict[str, Any]:
        """Return the options that tell one selection of trials from another, without what the sweep varies."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in SELECTING_LITTLE}
        return {name: value for name, value in values.items() if not isinstance(value, tuple)}

    def list_words(self, usual_store: str | None = None) -> list[str]:
        """Return the words of a command line that give these options.

        Args:
            usual_store: The store that a command without the option has; None to leave the store out in any case.
        """
        usual = type(self)(**self.quick_defaults, quick=True) if self.quick else type(self)()
        usual = replace(usual, tracking_uri=self.tracking_uri if usual_store is None else usual_store)
        return [*(["--quick"] if self.quick else []), *format_options(self, usual)]

    def describe_browsing(self, path: str) -> str:
        """Return the address that shows the sweep in MLflow's UI, or the command that starts the UI over its store.

        Args:
            path: The part of the address after the server's.
        """
        address = os.environ.get(JOB_ADDRESS_VARIABLE)  # of a job, which the user follows through the tunnels
        server = f"http://{urlsplit(address).hostname}:{MLFLOW_PORT}" if address else self.tracking_uri
        if server.startswith("http"):
            return f"{hide_password(server).rstrip('/')}/{path}"
        words = [name_script(CODE_FOLDER / "analysis" / "ui.py"), self.experiment]
        store = [] if self.tracking_uri == DEFAULT_TRACKING_URI else ["--tracking-uri", self.tracking_uri]
        return join_command(name_program("python"), [*words, *store])

    def format_command(self, folder: str, more: Sequence[str] = ()) -> str:
        """Return the command line that runs the experiment's script with these options, from the current folder.

        Args:
            folder: The script's folder, `sweeps` or `analysis`.
            more: Further words of the command line.
        """
        if address := os.environ.get(JOB_ADDRESS_VARIABLE):  # to be typed where the job came from, through the tunnels
            words = ["python", f"{folder}/{self.experiment}.py", *self.list_words(get_default_tracking_uri()), *more]
            there = f"{URI_VARIABLE}=http://{urlsplit(address).hostname}:{MLFLOW_PORT}"
            return shlex.join([*words, "--address", address] if folder == "sweeps" else [there, *words])
        words = self.list_words(DEFAULT_TRACKING_URI)  # a shell may lack the variable that this process had
        script = name_script(CODE_FOLDER / folder / f"{self.experiment}.py")
        return join_command(name_program("python"), [script, *words, *more])


@dataclass(frozen=True, kw_only=True)
class ImageSweepOptions(SweepOptions):
    """Options that select trials of networks that train on images."""

    dataset: str = "cifar10"
    """cifar10, fashion_mnist, mnist or digits."""
    epochs: int = 15
    """Epochs of each trial."""

    def image_settings(self) -> dict[str, Any]:
        """Return the settings of `Trial` that these options give."""
        check_choice("dataset", self.dataset, IMAGE_DATASETS)
        return {"dataset": self.dataset, "epochs": self.epochs}


@dataclass(frozen=True, kw_only=True)
class MainSweepOptions(ImageSweepOptions):
    """Options that select trials of the five main architectures."""

    architectures: tuple[str, ...] = MAIN_ARCHITECTURES
    """Any of mlp_1, mlp_2, cnn_3, cnn_4, cnn_5."""
    batch_size: int = 50
    """Images in a training batch."""
    learning_rate: float = 0.01
    """Learning rate of the optimiser."""

    def main_settings(self) -> dict[str, Any]:
        """Return the settings of `Trial` that these options give, except for the architecture."""
        for architecture in self.architectures:
            check_choice("architecture", architecture, MAIN_ARCHITECTURES)
        return {**self.image_settings(), "batch_size": self.batch_size, "learning_rate": self.learning_rate}


def format_options(options: Any, usual: Any) -> list[str]:
    """Return the words of a command line that change the options `usual` to `options`, both of one dataclass."""
    words: list[str] = []
    for name in (f.name for f in fields(options)):
        value = getattr(options, name)
        if value != getattr(usual, name):
            flag, values = f"--{name.replace('_', '-')}", value if isinstance(value, tuple) else (value,)
            # a value such as the folder -x would be taken for an option if it stood alone
            words += [f"{flag}={value}"] if str(value).startswith("-") else [flag, *(str(v) for v in values)]
    return words

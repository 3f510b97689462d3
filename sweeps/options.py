"""The command lines of sweeps and analyses: one dataclass of options that select trials, one that runs them."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

import tyro

from sweeps.packs import parse_pack
from sweeps.resources import parse_gpus
from sweeps.sweep import MOST_TRIALS, Sweep
from trainables.result import Result
from trainables.trial import IMAGE_DATASETS, BadInputError, Trial, check_choice, check_positive

MAIN_ARCHITECTURES = ("mlp_1", "mlp_2", "cnn_3", "cnn_4", "cnn_5")
Stages = Generator[Sweep, None, str | None]
Read = Callable[[Trial], Result | None]
JOB_ADDRESS = "SWEEPS_JOB_ADDRESS"  # environment variable of a job: the --address that it was submitted with
MLFLOW_PORT = 5000  # of a cluster's head, and of the tunnel to it
S = TypeVar("S", bound="Selection")
T = TypeVar("T")


def default_tracking_uri() -> str:
    """What `MLFLOW_TRACKING_URI` says, or a sqlite file in the current folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


def default_data_root() -> Path:
    """What `SWEEPS_DATA_ROOT` says, or a folder in the current one."""
    return Path(os.environ.get("SWEEPS_DATA_ROOT") or "data")


def default_storage() -> Path:
    """What `SWEEPS_STORAGE` says, or a folder in the current one."""
    return Path(os.environ.get("SWEEPS_STORAGE") or "storage")


@dataclass(frozen=True, kw_only=True)
class Selection(ABC):
    """Which trials; a sweep and its analysis take the same."""

    experiment: ClassVar[str]
    """Name of the sweep, of its MLflow experiment and of its two scripts."""
    quick_defaults: ClassVar[Mapping[str, Any]] = {}
    """What `--quick` changes."""

    seeds: int = 1
    """How many seeds: 0 to N-1. More can be added later."""
    tracking_uri: str = field(default_factory=default_tracking_uri)
    """Where MLflow keeps the runs; MLFLOW_TRACKING_URI sets the default."""
    quick: bool = False
    """A version of a minute or two on bundled data; other options still apply."""

    @abstractmethod
    def sweep(self) -> Sweep:
        """The sweep that the options describe.

        Raises:
            BadInputError: An option's value is out of range.
        """

    def stages(self, read: Read) -> Stages:
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
        check_positive("--seeds", self.seeds, whole=True, most=MOST_TRIALS)
        return range(self.seeds)

    def command(self, room: str, running: Running | None = None) -> str:
        """The command line of the experiment's script in `room` (`sweeps` or `analysis`) with these options."""
        usual = type(self)(**self.quick_defaults, quick=True) if self.quick else type(self)()
        words = ["python", f"{room}/{self.experiment}.py", *(["--quick"] if self.quick else []), *flags(self, usual)]
        if running:
            words += flags(running, Running())
        if address := os.environ.get(JOB_ADDRESS):  # to be typed where the job came from, with the tunnels open
            there = f"MLFLOW_TRACKING_URI=http://{urlsplit(address).hostname}:{MLFLOW_PORT}"
            words = [*words, "--address", address] if room == "sweeps" else [there, *words]
        return shlex.join(words)


@dataclass(frozen=True, kw_only=True)
class ImageSelection(Selection):
    """Which trials, of networks that train on images."""

    dataset: str = "cifar10"
    """cifar10, fashion_mnist, mnist or digits."""
    epochs: int = 15

    def image_settings(self) -> dict[str, Any]:
        """The settings of `Trial` that these options give."""
        check_choice("dataset", self.dataset, IMAGE_DATASETS)
        return {"dataset": self.dataset, "epochs": self.epochs}


@dataclass(frozen=True, kw_only=True)
class MainSelection(ImageSelection):
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


@dataclass(frozen=True, kw_only=True)
class Running:
    """How to run them; nothing here changes a result, but for the last bits that follow the number of CPUs."""

    data_root: Path = field(default_factory=default_data_root)
    """Folder of the data sets; what is missing is downloaded into it. SWEEPS_DATA_ROOT sets the default."""
    storage: Path = field(default_factory=default_storage)
    """Folder for checkpoints of unfinished trials; on a cluster, one that every node sees. SWEEPS_STORAGE sets the
    default."""
    cpus_per_trial: int = 1
    """Also the number of threads a trial trains with."""
    gpus_per_trial: tuple[str, ...] = ()
    """A fraction of a GPU, several GPUs, 0, or auto (measures the memory that training takes); for one architecture:
    mlp_1=0.1. Default: 0.25 where a node has a GPU, else 0."""
    pack: str = "auto"
    """Trials that share a process, at most; 1 packs none. auto: as many as pays, which a few steps of training show.
    Packed or not, a trial computes the same but for rounding."""
    compile_steps: bool = False
    """Compile the steps of trials that train side by side, for GPUs: it takes up to a minute at first."""
    max_concurrent: int | None = None
    """At most this many processes that train at once. Default: as many as the resources allow."""
    checkpoint_seconds: float = 60.0
    """The most work a trial loses with its process; at an epoch's end it checkpoints after a twelfth of that."""
    dry_run: bool = False
    """Print what would run, and stop."""
    address: str | None = None
    """Run all this as a job of the cluster whose dashboard is there, with the cluster's defaults, and follow its log:
    http://127.0.0.1:8265 through a tunnel. The job goes on without this computer; the same command finds it again."""

    def check(self) -> None:
        """Raise `BadInputError` where a value is out of range or the storage cannot be written."""
        check_positive("--cpus-per-trial", self.cpus_per_trial, whole=True)
        if self.max_concurrent is not None:
            check_positive("--max-concurrent", self.max_concurrent, whole=True)
        check_positive("--checkpoint-seconds", self.checkpoint_seconds, whole=False)
        parse_gpus(self.gpus_per_trial)
        parse_pack(self.pack)
        storage = self.storage.absolute()
        try:
            existing = next(folder for folder in (storage, *storage.parents) if folder.exists())
            for name in storage.relative_to(existing).parts:
                (existing / name).exists()  # raises where a name is too long to become a folder
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            raise BadInputError(
                f"--storage {self.storage} cannot be written ({error.strerror}); name a folder that can"
            ) from None


def flags(options: Any, usual: Any) -> list[str]:
    """The words of a command line that turn the options `usual` into `options`."""
    words: list[str] = []
    for name in (f.name for f in fields(options)):
        value = getattr(options, name)
        if value != getattr(usual, name):
            flag, values = f"--{name.replace('_', '-')}", value if isinstance(value, tuple) else (value,)
            # a value such as the folder -x would be taken for an option if it stood alone
            words += [f"{flag}={value}"] if str(value).startswith("-") else [flag, *(str(v) for v in values)]
    return words


def parse(selection: type[S], other: type[T], description: str | None) -> tuple[S, T]:
    """Parse the command line into options that select trials and other options, `--quick` moving the defaults."""
    group = other.__name__.lower()  # the heading of its options in --help
    command = make_dataclass("command", [("selection", selection), (group, other)])
    start = selection(**selection.quick_defaults) if "--quick" in sys.argv[1:] else selection()
    parsed = tyro.cli(
        command,
        default=command(**{"selection": start, group: other()}),
        description=description,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    return parsed.selection, getattr(parsed, group)


def main(selection: type[Selection], description: str | None) -> None:
    """A sweep script: parse the command line, run what is missing, exit."""

    def script() -> int:
        options, running = parse(selection, Running, description)
        # MLflow, Ray and SciPy take seconds to import, which --help need not wait for.
        if running.address is not None:
            from sweeps.jobs import run_as_job

            return run_as_job(options, running.address, sys.argv)
        from sweeps.run import run

        return run(options, running)

    sys.exit(exit_status(script))


def next_stage(stages: Stages) -> tuple[Sweep | None, str | None]:
    """The next sweep; or None, and why the stages end early if they do."""
    try:
        return next(stages), None
    except StopIteration as end:
        return None, end.value


def stop_on_signals() -> None:
    """Let SIGTERM, and SIGHUP unless ignored (nohup), do what Ctrl-C does: Ray Tune stops cleanly on SIGINT only."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell script starts what it ends with &
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGINT))


def exit_status(main: Callable[[], int]) -> int:
    """Run a script's main function: bad input becomes one sentence and status 2, Ctrl-C and SIGTERM status 130."""
    stop_on_signals()
    try:
        return main()
    except BadInputError as error:
        print("error:", *str(error).splitlines(), file=sys.stderr)  # a path or a library's reason may have several
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130

"""The one file that starts Ray: trains trials side by side and says how far they are."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

# Ray reads these when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
# Tune would save all trials again and again, for a restore that we never do.
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")
if not os.environ.get("RAY_ADDRESS"):  # our own cluster of one machine answers nobody else
    os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray
from ray import tune
from ray._private import services
from ray.tune import Callback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from sweeps.options import stop_on_signals
from sweeps.resources import Node, with_planned
from trainables.checkpoints import appears, writing
from trainables.datasets import Dataset
from trainables.probe import Probed, fastest_for_convolutions, probe
from trainables.trainable import Pack, Settings, trainable
from trainables.trial import BadInputError, Trial

# A trial whose process dies is started again from its last checkpoint, as often as it comes further (`STARTS` in
# `trainables/members.py`); this, times the trials of a pack, ends those that die before they can count.
MOST_STARTS = 50
DYING_SECONDS = 10
T = TypeVar("T")
U = TypeVar("U")
LOG_SECONDS = 30  # between two lines of progress, where no terminal shows a bar
LAUNCHER_CONFIG = Path("~/ray_bootstrap_config.yaml").expanduser()  # JSON, as the launcher writes it
PACKAGE = Path(__file__).resolve().parent.parent / "trainables"  # all that workers import


@dataclass(frozen=True)
class Ending:
    """What came of a trial that was not stopped.

    Attributes:
        error: Why it could not be trained.
        out_of_memory: With a larger share of a GPU it could.
        notes: What else a person should know.
    """

    error: str | None = None
    out_of_memory: bool = False
    notes: Sequence[str] = ()


def connect(address: str | None, machine: Node, folder: Path) -> list[Node]:
    """Start Ray on this machine with its files in `folder`, or join the cluster at `address`; its living nodes.

    Raises:
        BadInputError: There is no cluster at `address`.
    """
    for name in ("ray", "ray.tune", "ray.air"):  # what fails is reported in our own summary
        logging.getLogger(name).setLevel(logging.CRITICAL)
    prepare(folder)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is None:
        cpus, gpus = int(machine.cpus), int(machine.gpus)
        # Outside this process group: a signal to the group (`timeout python sweeps/…`, a closed terminal) is meant for
        # the driver, which stops the others in order. It could not if the same signal had ended Ray's processes.
        popen = partial(services.ConsolePopen, process_group=0)
        try:
            with mock.patch.object(services, "ConsolePopen", popen):
                ray.init("local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, _temp_dir=str(folder), **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BadInputError(f"Ray cannot start on this machine, with its files in {folder} ({reason})") from None
    else:
        try:
            ray.init(address, runtime_env={"py_modules": [str(PACKAGE)]}, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BadInputError(
                f"no Ray cluster answers at RAY_ADDRESS={address} ({reason}); start it, or unset RAY_ADDRESS"
            ) from None
    stop_on_signals()  # Ray has put its own handler in the place of ours
    living = [Node(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)) for node in living_nodes()]
    return living if address is None else with_planned(living, launcher_config())


def living_nodes() -> list[dict[str, Any]]:
    """What Ray knows of the nodes that live."""
    return [node for node in ray.nodes() if node["Alive"]]


def launcher_config() -> dict[str, Any]:
    """What the cluster launcher leaves on the head, where drivers and jobs run; empty if no launcher started it."""
    try:
        return dict(json.loads(LAUNCHER_CONFIG.read_text()))
    except FileNotFoundError:
        return {}


def check_shared(storage: Path) -> None:
    """Raise `BadInputError` where a living node does not see what this machine writes into `storage`."""
    others = [node for node in living_nodes() if node["NodeID"] != ray.get_runtime_context().get_node_id()]
    with writing(storage), tempfile.NamedTemporaryFile(dir=storage, prefix=".seen-by-all-nodes-") as file:
        answers = [
            ray.remote(appears)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            .remote(file.name)
            for node in others
        ]
        names = (node["NodeManagerHostname"] for node in others)
        # A node that has vanished meanwhile trains nothing.
        blind = sorted({name for name, answer in zip(names, answers, strict=True) if not tried(answer, True)})
    if blind:
        raise BadInputError(
            f"--storage {storage} is not shared: {', '.join(blind)} "
            f"{'do' if len(blind) > 1 else 'does'} not see what this machine writes there; name a folder on a file "
            "system that all nodes mount"
        )


def probed(
    trials: Mapping[str, Sequence[Trial]],
    data: Dataset,
    cpus: int,
    gpus: Mapping[str, float],
    convolutions: str | None,
) -> dict[str, Probed]:
    """What a few steps of each architecture's training take, where it will train; nothing where that failed.

    Args:
        trials: By architecture, trials that could train side by side.
        gpus: By architecture, the share of a GPU; a whole one to measure the memory, as what others use would count.
    """
    if not trials:
        return {}
    shared = ray.put(data)
    task = ray.remote(num_cpus=cpus)(probe)
    answers = [
        task.options(num_gpus=gpus[name]).remote(some, shared, cpus, convolutions) for name, some in trials.items()
    ]
    found = {name: tried(answer, None) for name, answer in zip(trials, answers, strict=True)}
    return {name: probed for name, probed in found.items() if probed is not None}


def fastest_convolutions(cpus: int) -> str | None:
    """How convolutions are computed fastest where trials train; None if trying failed."""
    return tried(ray.remote(num_cpus=cpus)(fastest_for_convolutions).remote(cpus), None)


def tried(answer: ray.ObjectRef[T], otherwise: U) -> T | U:
    """What was found by trying; `otherwise` where that failed: trials will say why, if they fail as well."""
    try:
        return ray.get(answer)
    except ray.exceptions.RayError:
        return otherwise


def prepare(folder: Path) -> None:
    """Make the private folder anew. A killed driver's processes may write into the old one while they die.

    Raises:
        BadInputError: It cannot be made.
    """
    for _ in range(DYING_SECONDS):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(mode=0o700, parents=True)
        except OSError as error:
            reason = error.strerror
            time.sleep(1)
        else:
            return
    raise BadInputError(f"cannot make the folder {folder} for Ray's files ({reason}); remove it, or set RAY_TMPDIR")


def check_gpu() -> None:
    """Raise `BadInputError` where torch cannot use the GPU that trials on this machine were promised."""
    import torch  # takes seconds, and only trials on GPUs need to know

    if not torch.cuda.is_available():
        raise BadInputError("torch finds no usable GPU on this machine; train on the CPU with --gpus-per-trial 0")


def disconnect(folder: Path) -> None:
    """Stop Ray on this machine, or leave the cluster, and clear away what it kept in `folder`."""
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def train(
    packs: Sequence[Pack],
    data: Dataset | None,
    settings: Settings,
    at_once: int,
    folder: Path,
    console: Console,
) -> dict[str, Ending]:
    """Train packs of trials, `at_once` packs at a time at most; Tune's own files, of no use afterwards, go to `folder`.

    Returns:
        trial id → what came of it. Trials stopped by Ctrl-C are not among them.
    """
    on_interrupt = signal.getsignal(signal.SIGINT)  # Tune leaves its own handler in place
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        speed_estimate_period=600,
    ) as progress:
        results = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(trainable, data=data, settings=settings),
                lambda config: tune.PlacementGroupFactory([{"CPU": settings.threads, "GPU": pack_of(config).gpus}]),
            ),
            param_space={"pack": tune.grid_search([pack.to_json() for pack in packs])},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=at_once,
                reuse_actors=True,
                trial_name_creator=lambda t: pack_of(t.config).name,
                trial_dirname_creator=lambda t: pack_of(t.config).name,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder),
                failure_config=tune.FailureConfig(max_failures=MOST_STARTS * max(len(pack.trials) for pack in packs)),
                callbacks=[Bar(progress, packs)],
                verbose=0,
            ),
        ).fit()
    signal.signal(signal.SIGINT, on_interrupt)
    shutil.rmtree(folder / "tune", ignore_errors=True)
    found = (results[index] for index in range(len(results)))
    return {trial_id: ending for result in found for trial_id, ending in endings(result).items()}


@lru_cache(maxsize=100_000)
def parsed(text: str) -> Pack:
    """A pack, parsed once however often Tune's callbacks ask."""
    return Pack.from_json(text)


def pack_of(config: Mapping[str, str]) -> Pack:
    """The pack that Tune's trial with this configuration is."""
    return parsed(config["pack"])


def endings(result: tune.Result) -> dict[str, Ending]:
    """What a pack's last report said of its trials, and what Tune says of those that it could not report."""
    reported = (result.metrics or {}).get("endings", {})
    found = {
        trial_id: Ending(said.get("error"), said.get("out_of_memory", False), said.get("notes", ()))
        for trial_id, said in reported.items()
    }
    if result.error is not None and result.config:
        error = Ending(error=str(result.error).strip().splitlines()[-1])
        return {trial.id: error for trial in pack_of(result.config).trials} | found
    return found


@dataclass
class Packed:
    """How far a pack has come.

    Attributes:
        epochs: Trained, of all its trials.
    """

    epochs: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0


class Bar(Callback):
    """Keeps a progress bar: the share of all epochs that is trained, and trials by state; in a log, a line at times."""

    def __init__(self, progress: Progress, packs: Sequence[Pack]) -> None:
        self.progress = progress
        self.states = {pack.name: Packed() for pack in packs}
        self.trials = sum(len(pack.trials) for pack in packs)
        self.task = progress.add_task("", total=sum(trial.epochs for pack in packs for trial in pack.trials))
        self.written = time.monotonic()
        self.draw()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for Tuner.restore, which is never used here; a live bar can't be

    def draw(self) -> None:
        """Show the state."""
        running, done, failed, epochs = (
            sum(getattr(state, what) for state in self.states.values())
            for what in ("running", "done", "failed", "epochs")
        )
        waiting = self.trials - done - failed - running
        states = f"trials: {done} done, {running} running, {waiting} waiting, {failed} failed"
        self.progress.update(self.task, description=states, completed=epochs)
        if self.progress.disable and time.monotonic() - self.written >= LOG_SECONDS:
            self.written = time.monotonic()
            task = self.progress.tasks[0]
            left = "" if task.time_remaining is None else f", about {timedelta(seconds=task.time_remaining)} left"
            self.progress.console.print(f"{states}: {task.percentage:.0f} %{left}", highlight=False, soft_wrap=True)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.states[pack_of(trial.config).name].running = 1  # at first
        self.draw()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        endings = result.get("endings", {})
        failed = sum(bool(said.get("error")) for said in endings.values())
        state = Packed(result.get("epochs", 0), result.get("running", 0), len(endings) - failed, failed)
        self.states[pack_of(trial.config).name] = state
        self.draw()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        pack = pack_of(trial.config)
        state = self.states[pack.name]
        state.epochs, state.running = sum(trial.epochs for trial in pack.trials), 0
        state.failed = len(pack.trials) - state.done
        self.draw()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.states[pack_of(trial.config).name].running = 0
        self.draw()

"""Injector of faults into the processes under test.

Python imports this file when it starts, if `PYTHONPATH` names the folder that the file is in. Environment
variables choose the faults:

    CHAOS_STEP_SECONDS   seconds to sleep after every optimiser step, so that faults hit trials in mid-training
    CHAOS_DIE            the place (a key of `PLACES`) where one process dies by SIGKILL, or where an answer is lost
    CHAOS_TOKEN          a file: the process that removes it injects the fault, so that the fault happens only once
    CHAOS_NO_TRAINING    raise an error if any step is trained
    CHAOS_GPU_MEMORY     let training run out of GPU memory on less than this fraction of a GPU
    CHAOS_PATIENCE       seconds to wait for an unreachable store, instead of two minutes
    CHAOS_CLOCK_SECONDS  seconds by which `time.time` jumps in all processes once one of them has trained 100 steps

No fault is left out silently: a variable, place, module or attribute that does not exist ends the process. Without
any of the variables, importing this file changes nothing.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import itertools
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = (
    "CHAOS_STEP_SECONDS",
    "CHAOS_DIE",
    "CHAOS_TOKEN",
    "CHAOS_NO_TRAINING",
    "CHAOS_GPU_MEMORY",
    "CHAOS_PATIENCE",
    "CHAOS_CLOCK_SECONDS",
)
CLOCK_JUMP_STEPS = 100  # steps that a process trains before the clock jumps

token = Path(os.environ.get("CHAOS_TOKEN", "/"))
probing = False  # whether this process is timing a few steps to plan with, which must not be slowed down


class InjectionError(SystemExit):
    """Error for a fault that cannot be injected.

    It ends the process: of an ordinary exception in this file Python would only print a message, and continue.
    """


class Patch(NamedTuple):
    """Change of a function, a method or a constant, made right after its module is imported.

    Attributes:
        module: Full name of a module of this repository.
        attribute: Name in the module: `function`, `Class.method` or `CONSTANT`.
        change: Function that takes the old value and returns the new one.
    """

    module: str
    attribute: str
    change: Callable[[Any], Any]

    def check_module(self) -> None:
        """Check that the repository has the module, without importing it.

        Raises:
            InjectionError: The module's file does not exist.
        """
        path = ROOT.joinpath(*self.module.split(".")).with_suffix(".py")
        if not path.is_file():
            raise InjectionError(f"chaos: {self.module}.{self.attribute} cannot be patched: there is no file {path}")

    def apply(self, module: ModuleType) -> None:
        """Put the changed value in the place of the old one.

        Raises:
            InjectionError: The module does not have the attribute.
        """
        *owners, name = self.attribute.split(".")
        owner: Any = module
        try:
            for part in owners:
                owner = getattr(owner, part)
            original = getattr(owner, name)
        except AttributeError as error:
            raise InjectionError(f"chaos: {self.module}.{self.attribute} cannot be patched: {error}") from None
        setattr(owner, name, self.change(original))


def always(*_: Any, **__: Any) -> bool:
    """Return True, for every call."""
    return True


def act_after(action: Callable[[], None], condition: Callable[..., bool] = always) -> Callable[[Any], Any]:
    """Return a change that makes a function do `action` after every call whose arguments meet `condition`."""

    def change(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            value = original(*args, **kwargs)
            if condition(*args, **kwargs):
                action()
            return value

        return call

    return change


def take_token() -> bool:
    """Remove the token; return whether this process was the one to do it."""
    try:
        token.unlink()
    except FileNotFoundError:
        return False
    return True


def die() -> None:
    """Kill this process as a power cut would, if the token is still there."""
    if take_token():
        os.kill(os.getpid(), signal.SIGKILL)


def lose_answer() -> None:
    """Raise the error of a connection that broke before the store's answer came, if the token is still there."""
    if take_token():
        raise ConnectionError("the answer was lost")


def refuse_training() -> None:
    """Raise an error, where nothing should train."""
    raise AssertionError("a step was trained")


def run_out_of_memory() -> None:
    """Raise PyTorch's error for a GPU with too little memory."""
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory")


def sends_points(*_: Any, metrics: Sequence[Any] = (), **__: Any) -> bool:
    """Return whether a call of `log_batch` sends points of curves; the test accuracy alone is a single metric."""
    return len(metrics) > 1


def sends_result(_: Any, source: Path) -> bool:
    """Return whether a call of `RunArtifacts.write` sends a trial's result; a driver tries with another file."""
    return (source / "result.npz").exists()


def knows_scores(_: Any, suggestions: Sequence[Any], *__: Any, **___: Any) -> bool:
    """Return whether a call of `ask_round` asks for a round after the first."""
    return len(suggestions) > 0


def is_for_trial(*_: Any, tags: Mapping[str, str], **__: Any) -> bool:
    """Return whether a call of `create_run` makes the run of a trial, not a parent run."""
    return "trial_id" in tags


def is_not_probing(*_: Any, **__: Any) -> bool:
    """Return whether a step belongs to a trial, and not to the probe that times steps to plan with."""
    return not probing


# place -> the patch that injects the fault there. `MlflowClient` is patched where `store` imports it: nothing else
# makes a client, and the class is the same for all modules.
PLACES: dict[str, Patch] = {
    "checkpoint written": Patch("trainables.persistence.trial_folder", "TrialFolder.write_checkpoint", act_after(die)),
    "points sent": Patch("trainables.persistence.store", "MlflowClient.log_batch", act_after(die, sends_points)),
    "result written": Patch("trainables.persistence.trial_folder", "TrialFolder.write_result", act_after(die)),
    "artifacts sent": Patch("trainables.persistence.artifacts", "RunArtifacts.write", act_after(die, sends_result)),
    "run finished": Patch("trainables.persistence.trial_run", "TrialRun.finish", act_after(die)),
    "round asked for": Patch("sweeps.sampling", "ask_round", act_after(die, knows_scores)),
    "round finished": Patch("sweeps.rounds", "History.keep_seconds", act_after(die)),
    "run made": Patch("trainables.persistence.store", "MlflowClient.create_run", act_after(lose_answer, is_for_trial)),
}


def mark_as_probing(time_steps: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that times steps, changed so that the steps in it take their real time."""

    def call(*args: Any, **kwargs: Any) -> Any:
        global probing
        probing = True
        try:
            return time_steps(*args, **kwargs)
        finally:
            probing = False

    return call


def list_step_actions(environment: Mapping[str, str]) -> Iterator[Callable[[], None]]:
    """Yield what the environment asks to be done after every optimiser step."""
    if seconds := environment.get("CHAOS_STEP_SECONDS"):
        yield lambda: time.sleep(float(seconds))
    if environment.get("CHAOS_NO_TRAINING"):
        yield refuse_training
    if environment.get("CHAOS_CLOCK_SECONDS"):
        steps = itertools.count()
        yield lambda: token.unlink(missing_ok=True) if next(steps) == CLOCK_JUMP_STEPS else None


def list_patches(environment: Mapping[str, str]) -> list[Patch]:
    """Return the patches that inject the faults that the environment asks for.

    Raises:
        InjectionError: The environment names a variable or a place that does not exist.
    """
    if unknown := [name for name in environment if name.startswith("CHAOS_") and name not in VARIABLES]:
        raise InjectionError(f"chaos: unknown variables {', '.join(unknown)}; there are {', '.join(VARIABLES)}")
    patches = []
    if place := environment.get("CHAOS_DIE"):
        if place not in PLACES:
            raise InjectionError(f"chaos: CHAOS_DIE names an unknown place '{place}'; there are {', '.join(PLACES)}")
        patches.append(PLACES[place])
    actions = list(list_step_actions(environment))
    for change in (act_after(action, is_not_probing) for action in actions):
        patches.append(Patch("trainables.training", "take_step", change))
        patches.append(Patch("trainables.accelerated.stack", "Stack.take_step", change))
    if actions:
        patches.append(Patch("trainables.accelerated.probe", "time_steps", mark_as_probing))
    if fraction := environment.get("CHAOS_GPU_MEMORY"):
        change = act_after(run_out_of_memory, lambda gpus: gpus < float(fraction))
        patches.append(Patch("trainables.process", "choose_device", change))
    if seconds := environment.get("CHAOS_PATIENCE"):
        patches.append(Patch("sweeps.driver.recovery", "STORE_PATIENCE_SECONDS", lambda _: float(seconds)))
    return patches


class PatchingFinder(importlib.abc.MetaPathFinder):
    """Import hook that applies patches right after their module is imported, before another module copies a name."""

    def __init__(self, patches: Sequence[Patch]) -> None:
        self.patches: dict[str, list[Patch]] = defaultdict(list)
        for patch in patches:
            self.patches[patch.module].append(patch)

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in self.patches:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            raise InjectionError(f"chaos: {name} cannot be patched: it cannot be imported")
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            for patch in self.patches[name]:
                patch.apply(module)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


def shift_clock(seconds: float) -> None:
    """Let `time.time` and `time.time_ns` jump by some seconds once the token is gone."""
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + (0 if token.exists() else seconds)
    time.time_ns = lambda: real_ns() + (0 if token.exists() else int(seconds * 1e9))


def install(environment: Mapping[str, str]) -> None:
    """Inject the faults that the environment asks for into this process.

    Raises:
        InjectionError: One of them cannot be injected.
    """
    patches = list_patches(environment)
    for patch in patches:
        patch.check_module()
    sys.meta_path.insert(0, PatchingFinder(patches))
    if seconds := environment.get("CHAOS_CLOCK_SECONDS"):
        shift_clock(float(seconds))


if any(name.startswith("CHAOS_") for name in os.environ):
    install(os.environ)

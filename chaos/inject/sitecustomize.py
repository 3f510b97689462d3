"""Faults inside the processes under test; Python imports this file at start-up, where it is on `PYTHONPATH`.

What to do comes from the environment:

    CHAOS_STEP_SECONDS   sleep so long after every optimiser step, so that faults meet trials in the middle
    CHAOS_DIE            die by SIGKILL at this place (the keys of `DEATHS`), once: who removes the token dies
    CHAOS_TOKEN          a file that the one to die removes
    CHAOS_NO_TRAINING    raise if a step is trained
    CHAOS_GPU_MEMORY     training runs out of GPU memory on less than this part of a GPU
    CHAOS_PATIENCE       wait so many seconds for a store that is away, in the place of two minutes
    CHAOS_CLOCK_SECONDS  `time.time` steps by so much in all processes once one of them has trained 100 steps
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

token = Path(os.environ.get("CHAOS_TOKEN", "/"))
probing = False


def always(*_: Any, **__: Any) -> bool:
    """Every call."""
    return True


def after(module: ModuleType, name: str, what: Callable[[], None], when: Callable[..., bool] = always) -> None:
    """Do something after every call of a function, or of a method `Class.method`, whose arguments meet `when`."""
    *owners, last = name.split(".")
    owner: Any = module
    for part in owners:
        owner = getattr(owner, part)
    original = getattr(owner, last)

    def call(*args: Any, **kwargs: Any) -> Any:
        value = original(*args, **kwargs)
        if when(*args, **kwargs):
            what()
        return value

    setattr(owner, last, call)


def die() -> None:
    """End this process as a power cut would, if nobody has yet."""
    try:
        token.unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def lose_the_answer() -> None:
    """Fail as if the store's answer had not come, if nobody has yet."""
    try:
        token.unlink()
    except FileNotFoundError:
        return
    raise ConnectionError("the answer was lost")


def refuse() -> None:
    """Fail where nothing should train."""
    raise AssertionError("a step was trained")


def run_out_of_memory() -> None:
    """Fail as PyTorch does where a GPU has too little memory."""
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory")


def points(*_: Any, metrics: Sequence[Any] = (), **__: Any) -> bool:
    """Whether a call of `log_batch` sends points of curves."""
    return len(metrics) > 1


def of_a_trial(*_: Any, tags: Mapping[str, str], **__: Any) -> bool:
    """Whether a call of `create_run` is for a trial."""
    return "trial_id" in tags


# place → (module, function, what happens after it, which calls)
DEATHS: dict[str, tuple[str, str, Callable[[], None], Callable[..., bool]]] = {
    "checkpoint written": ("trainables.checkpoints", "TrialFolder.write_checkpoint", die, always),
    "points sent": ("trainables.tracking", "MlflowClient.log_batch", die, points),
    "result written": ("trainables.checkpoints", "TrialFolder.write_result", die, always),
    "artifacts sent": ("trainables.tracking", "MlflowClient.log_artifacts", die, always),
    "run finished": ("trainables.tracking", "TrialRun.finish", die, always),
    "run made": ("trainables.tracking", "MlflowClient.create_run", lose_the_answer, of_a_trial),
}


def let_probe(module: ModuleType) -> None:
    """Let the steps that are only tried, to plan with, take their real time."""
    original = module.step_seconds

    def call(*args: Any) -> Any:
        global probing
        probing = True
        try:
            return original(*args)
        finally:
            probing = False

    module.step_seconds = call  # type: ignore[attr-defined]


def after_a_step() -> Iterator[Callable[[], None]]:
    """What to do after every optimiser step, by the environment."""
    if seconds := os.environ.get("CHAOS_STEP_SECONDS"):
        yield lambda: time.sleep(float(seconds))
    if os.environ.get("CHAOS_NO_TRAINING"):
        yield refuse
    if os.environ.get("CHAOS_CLOCK_SECONDS"):
        steps = itertools.count()
        yield lambda: token.unlink(missing_ok=True) if next(steps) == 100 else None


def patches() -> dict[str, list[Callable[[ModuleType], None]]]:
    """What to change in which module, by the environment."""
    found: dict[str, list[Callable[[ModuleType], None]]] = {}
    if place := os.environ.get("CHAOS_DIE"):
        module, name, what, when = DEATHS[place]
        found.setdefault(module, []).append(partial(after, name=name, what=what, when=when))
    for harm in after_a_step():
        for where, step in (("trainables.training", "take_step"), ("trainables.stack", "Stack.take_step")):
            found.setdefault(where, []).append(partial(after, name=step, what=harm, when=lambda *_: not probing))
            found["trainables.probe"] = [let_probe]
    if part := os.environ.get("CHAOS_GPU_MEMORY"):
        too_little = lambda gpus: gpus < float(part)  # noqa: E731
        found["trainables.members"] = [lambda m: after(m, "device_for", run_out_of_memory, too_little)]
    if patience := os.environ.get("CHAOS_PATIENCE"):
        found["sweeps.run"] = [lambda m: setattr(m, "PATIENCE_SECONDS", float(patience))]
    return found


class Patcher(importlib.abc.MetaPathFinder):
    """Applies the patches right after a module is first imported."""

    def __init__(self) -> None:
        self.patches = patches()

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in self.patches:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.loader is not None
        execute, changes = spec.loader.exec_module, self.patches.pop(name)

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            for change in changes:
                change(module)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


def step_the_clock(seconds: float) -> None:
    """Let `time.time` and `time.time_ns` jump once the token is gone."""
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + (0 if token.exists() else seconds)
    time.time_ns = lambda: real_ns() + (0 if token.exists() else int(seconds * 1e9))


sys.meta_path.insert(0, Patcher())
if clock := os.environ.get("CHAOS_CLOCK_SECONDS"):
    step_the_clock(float(clock))

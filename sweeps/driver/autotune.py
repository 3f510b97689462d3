"""Autotuning: a few steps of training show the fastest backend, whether stacks are faster, and the memory they take.

The findings stay in the storage folder, in `measured.json`. This saves the next sweep the time, and gives trials that
are added later the same last bits. Without the file they are measured again.

Quick to import: Ray, which takes seconds, is imported where something is measured.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sweeps.driver.packing import MAX_STACKED_ON_GPU, MAX_STACKED_TRIALS, remove_stack_differences
from trainables.accelerated.backends import ONEDNN_VARIABLE, get_processor_name
from trainables.accelerated.probe import ProbeResult, find_fastest_backend, probe_stack
from trainables.architectures import has_convolution
from trainables.datasets import Dataset
from trainables.files import write_atomically
from trainables.trial import Trial

CACHE_FILE = "measured.json"
# Keys of the file, which must stay as they are: files of earlier versions are read.
BACKEND_KEY = "fastest way to compute convolutions"
SPEEDUP_KEY = "speedup side by side"
SIZE_KEY = "trials side by side"


@dataclass(frozen=True)
class Tuning:
    """Findings from which a sweep's packs and allocation follow.

    Attributes:
        stacked: Architecture → the most trials in a stack, for those whose trials train faster in stacks.
        memory: Architecture → the fraction of a GPU's memory that a pack takes, where that was to be measured.
        backend: The backend of convolutions on the CPU: the user's choice, or else the fastest; None if none was
            needed, or if comparing them failed.
    """

    stacked: Mapping[str, int] = field(default_factory=dict)
    memory: Mapping[str, float] = field(default_factory=dict)
    backend: str | None = None


def autotune(
    trials: Sequence[Trial],
    gpus: Mapping[str, float],
    unknown: Collection[str],
    alone: Collection[str],
    most: int | None,
    cpus: int,
    storage: Path,
    data: Dataset,
) -> Tuning:
    """Look up what is known about these trials on this machine, and measure the rest.

    Args:
        trials: The trials to train.
        gpus: Architecture → GPUs of a pack.
        unknown: Architectures whose share of a GPU is to be measured (`auto`), every time anew.
        alone: Architectures whose trials do not train side by side, so that nothing of it is measured.
        most: The most trials in a pack; None: as many as pay.
        cpus: The CPUs, and so the threads, of a pack.
        storage: The folder of the file with earlier findings.
        data: The data set.
    """
    path = storage / CACHE_FILE
    cache = read_cache(path)
    known = cache.setdefault(f"{get_processor_name()}, {cpus} threads, torch {version('torch')}", {})
    before = dict(known)
    backend = choose_backend(known, any(not gpus[name] and has_convolution(name) for name in gpus), cpus)
    # The trials with the largest batches take the most memory.
    largest = {trial.architecture: trial for trial in sorted(trials, key=lambda trial: trial.batch_size)}
    limits = limit_stacks(gpus, alone, most)
    stacks = {name: [replace(largest[name], seed=seed) for seed in range(limits[name])] for name in gpus}
    descriptions = {name: describe_stack(stack[0], "GPU" if gpus[name] else "CPU") for name, stack in stacks.items()}
    keys = {name: f"{SPEEDUP_KEY}: {text}" for name, text in descriptions.items()}
    # On the CPU, and where the user limits packs, the size is known without a measurement.
    size_keys = {name: f"{SIZE_KEY}: {descriptions[name]}" for name in gpus if gpus[name] and most is None}
    needed = {name: {keys[name], size_keys.get(name, keys[name])} for name in gpus}
    wanted = [name for name in gpus if name in unknown or (limits[name] > 1 and not needed[name] <= known.keys())]
    # A process that measures memory needs a GPU for itself, as the memory of others would count.
    shares = {name: 1.0 if name in unknown else gpus[name] for name in wanted}
    found = probe_architectures({name: stacks[name] for name in wanted}, data, cpus, shares, backend)
    known.update((keys[name], result.speedup) for name, result in found.items())
    known.update((size_keys[name], result.size) for name, result in found.items() if name in size_keys)
    if known != before:
        write_atomically(path, (json.dumps(cache, indent=1) + "\n").encode())
    faster = [name for name in gpus if limits[name] > 1 and known.get(keys[name], 0) > 1]
    return Tuning(
        stacked={name: int(known.get(size_keys.get(name, ""), limits[name])) for name in faster},
        memory={name: result.memory for name, result in found.items() if result.memory is not None},
        backend=backend,
    )


def limit_stacks(gpus: Mapping[str, float], alone: Collection[str], most: int | None) -> dict[str, int]:
    """Return the most trials that a stack of each architecture may have; the arguments are those of `autotune`."""
    usual = {name: MAX_STACKED_ON_GPU if gpus[name] else MAX_STACKED_TRIALS for name in gpus}
    return {name: 1 if name in alone else most or usual[name] for name in gpus}


def choose_backend(known: dict[str, Any], needed: bool, cpus: int) -> str | None:
    """Return the backend of convolutions: the user's choice, or else the fastest, which is added to `known`."""
    backend: str | None = os.environ.get(ONEDNN_VARIABLE) or known.get(BACKEND_KEY)
    if backend is None and needed:
        backend = find_fastest_backend_of_worker(cpus)
        known.update({BACKEND_KEY: backend} if backend else {})
    return backend


def describe_stack(trial: Trial, device: str) -> str:
    """Return what keys say of a stack: a description, and the id of a trial that stands for the stack."""
    same = replace(remove_stack_differences(trial), epochs=1, record_every_steps=None, quantities=("train_loss",))
    stack = f"{trial.architecture} on {trial.dataset} in batches of {trial.batch_size} ({same.id})"
    return f"{stack}, {device}"


def read_cache(path: Path) -> dict[str, dict[str, Any]]:
    """Return the earlier findings, machine → key → value; none if the file is missing or damaged."""
    try:
        return {str(machine): dict(known) for machine, known in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def probe_architectures(
    stacks: Mapping[str, Sequence[Trial]], data: Dataset, cpus: int, gpus: Mapping[str, float], backend: str | None
) -> dict[str, ProbeResult]:
    """Measure a few steps of each architecture's training, on the nodes that will train.

    Args:
        stacks: Architecture → trials that could train in a stack.
        data: The data set.
        cpus: The CPUs of a pack.
        gpus: Architecture → GPUs of the process that measures.
        backend: The backend of a trial that trains alone.

    Returns:
        Architecture → result, without those where measuring failed.
    """
    if not stacks:
        return {}
    import ray

    from sweeps.driver.cluster import get_or_default

    shared = ray.put(data)
    task = ray.remote(num_cpus=cpus)(probe_stack)
    answers = [
        task.options(num_gpus=gpus[name]).remote(trials, shared, cpus, backend, gpus[name])
        for name, trials in stacks.items()
    ]
    found = {name: get_or_default(answer, None) for name, answer in zip(stacks, answers, strict=True)}
    return {name: result for name, result in found.items() if result is not None}


def find_fastest_backend_of_worker(cpus: int) -> str | None:
    """Return the fastest backend of convolutions on a node that will train, or None if comparing them failed."""
    import ray

    from sweeps.driver.cluster import get_or_default

    return get_or_default(ray.remote(num_cpus=cpus)(find_fastest_backend).remote(cpus), None)

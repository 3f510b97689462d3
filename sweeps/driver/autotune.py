"""What is tried before a sweep is planned: how fast its training is in one way and in another, on the machine at hand.

What was found stays in the storage folder, in `measured.json`: it saves the next sweep the time, and gives trials that
are added later the same last bits. Without the file it is measured again.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.driver.packing import remove_stack_differences
from trainables.accelerated.backends import ONEDNN_VARIABLE
from trainables.architectures import has_convolution
from trainables.files import report_write_errors
from trainables.trial import Trial

if TYPE_CHECKING:
    from trainables.datasets import Dataset
import ray

from sweeps.driver.cluster import get_or_default
from trainables.accelerated.probe import ProbeResult, find_fastest_backend, probe_stack
from trainables.datasets import Dataset

CACHE_FILE = "measured.json"


BACKEND_KEY = "fastest way to compute convolutions"


@dataclass(frozen=True)
class Tuning:
    """What to plan a sweep with.

    Attributes:
        stacked: Architectures whose trials train faster side by side.
        memory: By architecture, the part of a GPU's memory that a pack takes up, where that was asked for.
        convolutions: How they are computed on the CPU (`probe.fastest_for_convolutions`); None: it was not tried.
    """

    stacked: Collection[str] = ()
    memory: Mapping[str, float] = field(default_factory=dict)
    convolutions: str | None = None


def autotune(
    trials: Sequence[Trial],
    gpus: Mapping[str, float],
    unknown: Collection[str],
    most: int,
    data: Dataset,
    cpus: int,
    storage: Path,
) -> Tuning:
    """Look up what is known, and try the rest.

    Args:
        gpus: By architecture, the share of a GPU of a pack.
        unknown: Architectures whose share is to follow from the memory that they use, which is measured anew.
        most: Trials in a pack.
    """
    from sweeps.driver import autotune

    path = storage / CACHE_FILE
    everything = read_cache(path)
    machine = f"{get_processor_name()}, {cpus} threads, torch {version('torch')}"
    known = everything.setdefault(machine, {})
    # Those with the largest batches, which take the most memory, and as many as a pack may have.
    largest = {trial.architecture: trial for trial in sorted(trials, key=lambda trial: trial.batch_size)}
    packs = {name: [replace(largest[name], seed=seed) for seed in range(most)] for name in gpus}
    keys = {
        name: f"speedup side by side: {describe_stack(pack[0])}, {'GPU' if gpus[name] else 'CPU'}"
        for name, pack in packs.items()
    }
    wanted = [name for name in gpus if name in unknown or (most > 1 and keys[name] not in known)]
    shares = {name: 1.0 if name in unknown else gpus[name] for name in wanted}
    before = dict(known)
    convolutions = os.environ.get(ONEDNN_VARIABLE) or known.get(
        BACKEND_KEY
    )  # somebody has chosen, or it has been tried
    if convolutions is None and any(not gpus[name] and has_convolution(name) for name in gpus):
        convolutions = autotune.find_fastest_backend_of_worker(cpus)
        known.update({BACKEND_KEY: convolutions} if convolutions else {})
    seen = autotune.probe_architectures({name: packs[name] for name in wanted}, data, cpus, shares, convolutions)
    known.update((keys[name], probed.speedup) for name, probed in seen.items())
    if known != before:
        write_cache(path, everything)
    return Tuning(
        stacked=[name for name in gpus if most > 1 and known.get(keys[name], 0) > 1],
        memory={name: probed.memory for name, probed in seen.items() if probed.memory is not None},
        convolutions=convolutions,
    )


def describe_stack(trial: Trial) -> str:
    """What decides how much faster trials train side by side, in words and as the id of a trial."""
    same = replace(remove_stack_differences(trial), epochs=1, record_every_steps=None, quantities=("train_loss",))
    return f"{trial.architecture} on {trial.dataset} in batches of {trial.batch_size} ({same.id})"


def read_cache(path: Path) -> dict[str, dict[str, Any]]:
    """By machine, then by what was measured; nothing of a file that is damaged."""
    try:
        return {str(machine): dict(known) for machine, known in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def write_cache(path: Path, content: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the file in place, whole."""
    with report_write_errors(path):
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(path)


def get_processor_name() -> str:
    """The name of this machine's processor, as Linux has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def probe_architectures(
    trials: Mapping[str, Sequence[Trial]],
    data: Dataset,
    cpus: int,
    gpus: Mapping[str, float],
    convolutions: str | None,
) -> dict[str, ProbeResult]:
    """What a few steps of each architecture's training take, where it will train; nothing where that failed.

    Args:
        trials: By architecture, trials that could train side by side.
        gpus: By architecture, the share of a GPU; a whole one to measure the memory, as what others use would count.
    """
    if not trials:
        return {}
    shared = ray.put(data)
    task = ray.remote(num_cpus=cpus)(probe_stack)
    answers = [
        task.options(num_gpus=gpus[name]).remote(some, shared, cpus, convolutions) for name, some in trials.items()
    ]
    found = {name: get_or_default(answer, None) for name, answer in zip(trials, answers, strict=True)}
    return {name: probed for name, probed in found.items() if probed is not None}


def find_fastest_backend_of_worker(cpus: int) -> str | None:
    """How convolutions are computed fastest where trials train; None if trying failed."""
    return get_or_default(ray.remote(num_cpus=cpus)(find_fastest_backend).remote(cpus), None)

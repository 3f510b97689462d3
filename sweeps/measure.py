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

from sweeps.packs import stackable
from trainables.architectures import convolves
from trainables.checkpoints import writing
from trainables.probe import ONEDNN
from trainables.trial import Trial

if TYPE_CHECKING:
    from trainables.datasets import Dataset

FILE = "measured.json"
CONVOLUTIONS = "fastest way to compute convolutions"


@dataclass(frozen=True)
class Measured:
    """What to plan a sweep with.

    Attributes:
        stacked: Architectures whose trials train faster side by side.
        memory: By architecture, the part of a GPU's memory that a pack takes up, where that was asked for.
        convolutions: How they are computed on the CPU (`probe.fastest_for_convolutions`); None: it was not tried.
    """

    stacked: Collection[str] = ()
    memory: Mapping[str, float] = field(default_factory=dict)
    convolutions: str | None = None


def measure(
    trials: Sequence[Trial],
    gpus: Mapping[str, float],
    unknown: Collection[str],
    most: int,
    data: Dataset,
    cpus: int,
    storage: Path,
) -> Measured:
    """Look up what is known, and try the rest.

    Args:
        gpus: By architecture, the share of a GPU of a pack.
        unknown: Architectures whose share is to follow from the memory that they use, which is measured anew.
        most: Trials in a pack.
    """
    from sweeps import launch

    path = storage / FILE
    everything = read(path)
    machine = f"{processor()}, {cpus} threads, torch {version('torch')}"
    known = everything.setdefault(machine, {})
    # Those with the largest batches, which take the most memory, and as many as a pack may have.
    largest = {trial.architecture: trial for trial in sorted(trials, key=lambda trial: trial.batch_size)}
    packs = {name: [replace(largest[name], seed=seed) for seed in range(most)] for name in gpus}
    keys = {
        name: f"speedup side by side: {alike(pack[0])}, {'GPU' if gpus[name] else 'CPU'}"
        for name, pack in packs.items()
    }
    wanted = [name for name in gpus if name in unknown or (most > 1 and keys[name] not in known)]
    shares = {name: 1.0 if name in unknown else gpus[name] for name in wanted}
    before = dict(known)
    convolutions = os.environ.get(ONEDNN) or known.get(CONVOLUTIONS)  # somebody has chosen, or it has been tried
    if convolutions is None and any(not gpus[name] and convolves(name) for name in gpus):
        convolutions = launch.fastest_convolutions(cpus)
        known.update({CONVOLUTIONS: convolutions} if convolutions else {})
    seen = launch.probed({name: packs[name] for name in wanted}, data, cpus, shares, convolutions)
    known.update((keys[name], probed.speedup) for name, probed in seen.items())
    if known != before:
        write(path, everything)
    return Measured(
        stacked=[name for name in gpus if most > 1 and known.get(keys[name], 0) > 1],
        memory={name: probed.memory for name, probed in seen.items() if probed.memory is not None},
        convolutions=convolutions,
    )


def alike(trial: Trial) -> str:
    """What decides how much faster trials train side by side, in words and as the id of a trial."""
    same = replace(stackable(trial), epochs=1, record_every_steps=None, quantities=("train_loss",))
    return f"{trial.architecture} on {trial.dataset} in batches of {trial.batch_size} ({same.id})"


def read(path: Path) -> dict[str, dict[str, Any]]:
    """By machine, then by what was measured; nothing of a file that is damaged."""
    try:
        return {str(machine): dict(known) for machine, known in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def write(path: Path, content: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the file in place, whole."""
    with writing(path):
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(path)


def processor() -> str:
    """The name of this machine's processor, as Linux has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())

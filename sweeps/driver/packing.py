"""Packs: which trials share a process. Pure, and free of Ray and torch.

To Ray Tune, a pack is a single trial. Trials that train side by side in a stack share a pack, as many as keep all
processes busy. So do trials that are so short that starting a process for each would take a good part of the time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from trainables.architectures import count_flops
from trainables.datasets import Dataset
from trainables.errors import BadInputError, quote
from trainables.trial import Trial
from trainables.worker.pack import Pack

MAX_STACKED_TRIALS = 16  # larger stacks gained nothing on the CPU
MAX_STACKED_ON_GPU = 256  # on a GPU as many as pay, which autotuning finds
SEQUENTIAL_PACK_SECONDS = 20.0  # the training time that a pack aims at whose trials train one after another
MIN_PACKS_PER_PROCESS = 4  # so that all processes end at about the same time
# Rough figures, on the slow side: an error makes packs a little too large or too small, and nothing else.
FLOPS_PER_SECOND = 2e10
STEP_OVERHEAD_SECONDS = 5e-4
XOR_TRIAL_SECONDS = 1.0


@dataclass(frozen=True)
class ImageCounts:
    """The shape of a data set's images, and the number of images in each part."""

    shape: tuple[int, int, int]
    train: int
    val: int
    test: int

    @staticmethod
    def from_dataset(data: Dataset) -> ImageCounts:
        """Return the counts of a data set."""
        return ImageCounts(data.input_shape, len(data.train_labels), len(data.val_labels), len(data.test_labels))


def parse_pack_size(word: str) -> int | None:
    """Return the most trials in a pack that `--pack` asks for; None for `auto`.

    Raises:
        BadInputError: The word is neither a positive whole number nor "auto".
    """
    if word == "auto":
        return None
    if not word.isdecimal() or int(word) < 1:
        raise BadInputError(f"--pack is {quote(word)}; it must be auto, or a whole number of trials from 1 on")
    return int(word)


def remove_stack_differences(trial: Trial) -> Trial:
    """Return the trial without seed and learning rates: trials that are then equal can train in one stack."""
    return replace(trial, seed=0, learning_rate=1.0, milestones=())


def find_single_architectures(trials: Sequence[Trial]) -> set[str]:
    """Return the architectures of which no two trials could train side by side."""
    mates = Counter(remove_stack_differences(trial) for trial in trials)
    return {trial.architecture for trial in trials} - {trial.architecture for trial, n in mates.items() if n > 1}


def estimate_seconds(trial: Trial, images: ImageCounts | None) -> float:
    """Return a rough estimate of the seconds that a trial trains on one core; `images` is None for XOR."""
    if images is None:
        return XOR_TRIAL_SECONDS * trial.epochs / 2000
    steps = trial.epochs * trial.steps_per_epoch(images.train)
    records = steps // trial.record_interval(images.train)
    seen = {"val_accuracy": images.val, "train_set_accuracy": images.train, "test_set_accuracy": images.test}
    forward = 3 * trial.epochs * images.train + records * sum(seen.get(name, 0) for name in trial.quantities)
    return steps * STEP_OVERHEAD_SECONDS + forward * count_flops(trial.architecture, images.shape) / FLOPS_PER_SECOND


def make_packs(
    trials: Sequence[Trial],
    names: Mapping[str, str],
    gpus: Mapping[str, float],
    images: ImageCounts | None,
    stacked: Mapping[str, int],
    at_once: int,
    most: int | None,
    gpu_count: int = 0,
) -> list[Pack]:
    """Put trials into packs, ordered by their first trials.

    Args:
        trials: The trials, in the sweep's order.
        names: Trial id → readable name.
        gpus: Trial id → GPUs; the trials of a pack have the same.
        images: The sizes of the data set; None for XOR.
        stacked: Architecture → the most trials in a stack, for those whose trials train in stacks.
        at_once: The number of packs that run at once.
        most: The most trials in a pack; None: as many as make the sweep fast.
        gpu_count: The number of GPUs. One stack on each is faster than several, which would take turns.
    """
    groups: dict[tuple[float, Trial | str], list[Trial]] = {}
    for trial in trials:
        alike = remove_stack_differences(trial) if trial.architecture in stacked else trial.architecture
        groups.setdefault((gpus[trial.id], alike), []).append(trial)
    parts: list[Sequence[Trial]] = []
    for group in groups.values():
        if group[0].architecture in stacked:
            places = min(at_once, gpu_count) if gpu_count and gpus[group[0].id] else at_once
            size = min(most or stacked[group[0].architecture], math.ceil(len(group) / places))
        else:
            short = int(SEQUENTIAL_PACK_SECONDS / max(estimate_seconds(trial, images) for trial in group))
            size = min(short, len(group) // (MIN_PACKS_PER_PROCESS * at_once), most or len(group))
        parts += split_evenly(group, max(1, size))
    order = {trial.id: position for position, trial in enumerate(trials)}
    parts.sort(key=lambda part: order[part[0].id])
    return [Pack(tuple(part), tuple(names[trial.id] for trial in part), gpus[part[0].id]) for part in parts]


def split_evenly(trials: Sequence[Trial], size: int) -> Iterator[Sequence[Trial]]:
    """Return as few parts as possible, of at most `size` trials each, and as equal as possible."""
    parts = math.ceil(len(trials) / size)
    bounds = [len(trials) * part // parts for part in range(parts + 1)]
    return (trials[first:last] for first, last in pairwise(bounds))

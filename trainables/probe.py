"""What training takes where it will take place, tried in a few steps before a sweep plans with it.

Quick to import, for drivers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from trainables.datasets import Dataset
from trainables.trial import Trial

if TYPE_CHECKING:
    import torch

STEPS = 3  # a turn
TURNS = 3  # of which the fastest counts, against whatever else the machine does


@dataclass(frozen=True)
class Probed:
    """What was seen.

    Attributes:
        speedup: How many times as fast a stack trains as its members do one after another.
        memory: The part of a GPU's memory that the process took up with the stack; None without a GPU.
    """

    speedup: float
    memory: float | None


def probe(trials: Sequence[Trial], data: Dataset, threads: int) -> Probed:
    """Train some steps of trials of one kind, side by side and one alone.

    On a GPU in a process of its own, and with a GPU of its own: the memory that others use there would be counted.
    """
    import torch

    from trainables import stack, training

    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps = 1 + TURNS * STEPS
    unrecorded = [replace(trial, epochs=steps, milestones=(), record_every_steps=steps * 10**6) for trial in trials]
    try:
        tensors = training.tensors(data, device, trials[0].task)
        states = [training.start(trial, tensors, fused=True) for trial in unrecorded]
        together = step_seconds(stack.train(unrecorded, tensors, states), device)
        state = training.start(unrecorded[0], tensors)
        alone = step_seconds(training.train(unrecorded[0], tensors, state), device)
        images = tensors.test_images[: 2 * training.EVALUATION_BATCH]
        training.accuracy(state.model, images, tensors.test_labels[: len(images)])
    except torch.OutOfMemoryError:  # a trial will say so itself
        return Probed(0.0, 1.0)
    if device.type == "cpu":
        return Probed(len(trials) * alone / together, None)
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    return Probed(len(trials) * alone / together, 1 - free_bytes / total_bytes)


def step_seconds(steps: Iterator[None], device: torch.device) -> float:
    """Of a step, at the fastest; the first step, which sets things up, does not count."""
    import torch

    def turn(length: int) -> float:
        started = time.perf_counter()
        for _ in islice(steps, length):
            pass
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / length

    turn(1)
    return min(turn(STEPS) for _ in range(TURNS))

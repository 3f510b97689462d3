"""What training takes where it will take place, tried in a few steps before a sweep plans with it.

Quick to import, for drivers.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from trainables.datasets import Dataset
from trainables.trial import Trial

if TYPE_CHECKING:
    import torch
from trainables.accelerated.backends import NATIVE, ONEDNN_VARIABLE, PYTORCH, get_environment

STEPS_PER_TURN = 3  # a turn


MIN_TURNS = 3  # at least, of which the fastest counts, against whatever else the machine does


MAX_TURNS = 100


CPU_PROBE_TRIALS = 4


MIN_PROBE_SECONDS = 0.2


WORTHWHILE_TIME_RATIO = 0.95  # of the time: less is noise


@dataclass(frozen=True)
class ProbeResult:
    """What was seen.

    Attributes:
        speedup: How many times as fast a stack trains as its members do one after another.
        memory: The part of a GPU's memory that the process took up with the stack; None without a GPU.
    """

    speedup: float
    memory: float | None


def probe_stack(trials: Sequence[Trial], data: Dataset, threads: int, convolutions: str | None) -> ProbeResult:
    """Train some steps of trials of one kind, side by side and one alone; on a CPU of a few, which tells enough.

    On a GPU in a process of its own, and with a GPU of its own: the memory that others use there would be counted.
    """
    os.environ.update(get_environment(convolutions))  # which torch, imported from here on, reads once
    import torch

    from trainables import training
    from trainables.accelerated import stack
    from trainables.accelerated.convolutions import CompilerError, choose_forward

    training.prepare_process(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        trials = trials[:CPU_PROBE_TRIALS]
    steps = 1 + MAX_TURNS * STEPS_PER_TURN
    unrecorded = [replace(trial, epochs=steps, milestones=(), record_every_steps=steps * 10**6) for trial in trials]
    try:
        tensors = training.to_tensors(data, device, trials[0].task)
        states = [training.start(trial, tensors) for trial in unrecorded]
        together = time_steps(stack.train_stack(unrecorded, tensors, states), device)
        state = training.start(unrecorded[0], tensors)
        with suppress(CompilerError):  # on another kind of machine
            state.forward = choose_forward(trials[0].architecture, convolutions, device)
        alone = time_steps(training.train(unrecorded[0], tensors, state), device)
        if device.type == "cuda":  # whose memory this takes as well
            images = tensors.test_images[: 2 * training.EVALUATION_BATCH]
            training.compute_accuracy(state.model, images, tensors.test_labels[: len(images)])
    except torch.OutOfMemoryError:  # a trial will say so itself
        return ProbeResult(0.0, 1.0)
    if device.type == "cpu":
        return ProbeResult(len(trials) * alone / together, None)
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    return ProbeResult(len(trials) * alone / together, 1 - free_bytes / total_bytes)


def find_fastest_backend(threads: int) -> str:
    """How convolutions are computed fastest on this machine.

    Returns:
        `OWN`, `THEIRS`, or the instruction set that PyTorch's (oneDNN) are to be limited to. With AVX-512 they compute
        channels in blocks of 16, so that layers of 8 channels waste half of the work, and some processors do such an
        instruction in two halves anyway.
    """

    def seconds(way: str) -> float:
        # In a process of its own: oneDNN looks once.
        command = [sys.executable, str(Path(__file__)), str(threads), way]
        environment = {**inherited, **get_environment(way), "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
        return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)

    inherited = {name: value for name, value in os.environ.items() if name != ONEDNN_VARIABLE}
    flags = Path("/proc/cpuinfo")  # Linux's
    wide = flags.exists() and "avx512f" in flags.read_text()
    took = {way: seconds(way) for way in (PYTORCH, NATIVE, *(["AVX2"] if wide else []))}
    fastest = min(took, key=lambda way: took[way])
    return fastest if took[fastest] < WORTHWHILE_TIME_RATIO * took[PYTORCH] else PYTORCH


def time_convolutions(threads: int, way: str) -> float:
    """Of a step of each convolutional architecture of the reports' main part, with its part of a record.

    Infinite where there is no compiler for convolutions of our own.
    """
    import torch

    from trainables import training
    from trainables.accelerated.convolutions import CompilerError, choose_forward
    from trainables.architectures import build

    training.prepare_process(threads)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(50, 1, 28, 28, generator=generator)
    many = images.repeat(12, 1, 1, 1)  # 6,000 every tenth step
    try:
        forward = choose_forward("cnn_3", way, torch.device("cpu"))
    except CompilerError:
        return math.inf

    def steps() -> Iterator[None]:
        while True:
            for model in models:
                forward(model, images).sum().backward()
                training.compute_accuracy(model, many, torch.zeros(600), forward)
            yield

    models = [build(name, (1, 28, 28)).to(memory_format=torch.channels_last) for name in ("cnn_3", "cnn_4", "cnn_5")]
    return time_steps(steps(), torch.device("cpu"))


def time_steps(steps: Iterator[None], device: torch.device) -> float:
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
    deadline = time.monotonic() + MIN_PROBE_SECONDS
    turns = [turn(STEPS_PER_TURN) for _ in range(MIN_TURNS)]
    while len(turns) < MAX_TURNS and time.monotonic() < deadline:
        turns.append(turn(STEPS_PER_TURN))
    return min(turns)


if __name__ == "__main__":
    print(time_convolutions(int(sys.argv[1]), sys.argv[2]))

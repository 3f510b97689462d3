"""Probes before a sweep: a few steps of training on the machine that will train, to plan with their time and memory.

`python -m trainables.accelerated.probe THREADS BACKEND` prints the time of a backend's convolutions. This module is
imported by drivers, so it imports torch only inside functions.
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

from trainables.accelerated.backends import NATIVE, ONEDNN_VARIABLE, PYTORCH, get_environment
from trainables.datasets import Dataset
from trainables.trial import Trial

if TYPE_CHECKING:
    import torch

    from trainables.training import Tensors

# Steps are timed in rounds. The fastest round counts: in the others the machine may have done something else as well.
STEPS_PER_ROUND = 3
MIN_ROUNDS = 3
MAX_ROUNDS = 100
MIN_PROBE_SECONDS = 0.2  # no new round begins after this time, once there were `MIN_ROUNDS`
STACK_SIZES = (16, 64, 256)  # numbers of trials in a stack that are tried on a GPU
WORTHWHILE_STACK_RATIO = 0.9  # a larger stack must take less of the time per trial
CPU_PROBE_TRIALS = 4  # trials of a stack that is probed on the CPU; more would tell nothing new
WORTHWHILE_TIME_RATIO = 0.95  # a backend must take less of PyTorch's time, as smaller gains may be chance


@dataclass(frozen=True)
class ProbeResult:
    """The speedup of a stack, and the GPU memory that it needs.

    Attributes:
        speedup: The time of the members' steps one after another, divided by that of a step of the stack.
        memory: The fraction of a GPU's memory that was in use with the stack; None without a GPU.
        size: The number of trials in the stack. On a GPU larger ones took no less time per trial, or too much memory.
    """

    speedup: float
    memory: float | None
    size: int


def probe_stack(trials: Sequence[Trial], data: Dataset, threads: int, backend: str | None, gpus: float) -> ProbeResult:
    """Train some steps of a trial alone, and of stacks of such trials: on a GPU, of several sizes.

    On a GPU, call this in a new process that has the GPU to itself: memory that others use would be counted as well.

    Args:
        trials: Trials that can be stacked; on the CPU, only `CPU_PROBE_TRIALS` of them are used.
        backend: The convolution backend of the trial that trains alone: see `backends`.
        gpus: The share of a GPU, or the number of GPUs, within whose memory the stack is to stay; 0: use the CPU.

    Returns:
        The result; a speedup of 0 and all of the memory if the GPU has too little.
    """
    os.environ.update(get_environment(backend))  # torch reads it when it is imported, for the first time here
    import torch

    from trainables import training
    from trainables.accelerated.convolutions import CompilerError, choose_forward
    from trainables.process import limit_memory, prepare_process

    prepare_process(threads)
    device = torch.device("cuda" if gpus and torch.cuda.is_available() else "cpu")
    steps = 1 + MAX_ROUNDS * STEPS_PER_ROUND
    unrecorded = [replace(trial, epochs=steps, milestones=(), record_every_steps=steps * 10**6) for trial in trials]
    try:
        if device.type == "cuda":
            limit_memory(gpus)
        tensors = training.to_tensors(data, device, trials[0].task)
        state = training.start(unrecorded[0], tensors)
        with suppress(CompilerError):  # this machine may differ from the one that chose the backend
            state.forward = choose_forward(trials[0].architecture, backend, device)
        alone = time_steps(training.train(unrecorded[0], tensors, state), device)
        if device.type == "cpu":
            together = time_stack(unrecorded[:CPU_PROBE_TRIALS], tensors)
            size = len(trials[:CPU_PROBE_TRIALS])
            return ProbeResult(size * alone / together, None, size)
        images = tensors.test_images[: 2 * training.EVALUATION_BATCH]  # evaluation takes memory as well
        training.compute_accuracy(state.model, images, tensors.test_labels[: len(images)])
        return find_best_size(unrecorded, tensors, alone)
    except torch.OutOfMemoryError:  # the trials themselves will report it
        return ProbeResult(0.0, 1.0, 1)


def find_best_size(trials: Sequence[Trial], tensors: Tensors, alone: float) -> ProbeResult:
    """Find the size of stacks that takes the least time per trial on a GPU, by trying larger ones while that pays.

    Args:
        trials: As many trials as a stack may have.
        tensors: The data set.
        alone: The seconds of a step of one trial alone.

    Raises:
        torch.OutOfMemoryError: The smallest stack does not fit.
    """
    import torch

    best: ProbeResult | None = None
    for size in [*(size for size in STACK_SIZES if size < len(trials)), len(trials)]:
        torch.cuda.empty_cache()  # what a smaller stack has used
        try:
            speedup = size * alone / time_stack(trials[:size], tensors)
        except torch.OutOfMemoryError:
            if best is None:
                raise
            return best
        if best is not None and best.speedup > WORTHWHILE_STACK_RATIO * speedup:
            return best
        free_bytes, total_bytes = torch.cuda.mem_get_info()
        best = ProbeResult(speedup, 1 - free_bytes / total_bytes, size)
    if best is None:
        raise ValueError("there is no trial to stack")
    return best


def time_stack(trials: Sequence[Trial], tensors: Tensors) -> float:
    """Return the seconds of a step of a stack; on a GPU, a pass over validation images has taken its memory as well."""
    from trainables import training
    from trainables.accelerated import stack

    states = [training.start(trial, tensors) for trial in trials]
    device = tensors.train_images.device
    seconds = time_steps(stack.train_stack(trials, tensors, states), device)
    if device.type == "cuda":
        joined = stack.Stack(list(zip(trials, states, strict=True)), tensors)
        images = tensors.test_images[: joined.evaluation_batch]
        joined.compute_accuracies(images, tensors.test_labels[: len(images)])
    return seconds


def find_fastest_backend(threads: int) -> str:
    """Find the fastest convolution backend on this machine by timing each one in a process of its own.

    Returns:
        `NATIVE`, `PYTORCH`, or "AVX2", to which PyTorch's convolutions are then to be limited. With AVX-512, oneDNN
        computes channels in blocks of 16, so that layers of 8 channels waste half of the work, and some processors
        execute such an instruction in two halves anyway.
    """

    def time_backend(backend: str) -> float:
        # Run this file's own package, which Ray may have copied; -P keeps the current folder off Python's path.
        command = [sys.executable, "-P", "-m", "trainables.accelerated.probe", str(threads), backend]
        environment = {**inherited, **get_environment(backend), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)

    inherited = {name: value for name, value in os.environ.items() if name != ONEDNN_VARIABLE}
    cpuinfo = Path("/proc/cpuinfo")  # only on Linux
    has_avx512 = cpuinfo.exists() and "avx512f" in cpuinfo.read_text(encoding="utf-8", errors="replace")
    seconds = {backend: time_backend(backend) for backend in (PYTORCH, NATIVE, *(["AVX2"] if has_avx512 else []))}
    fastest = min(seconds, key=lambda backend: seconds[backend])
    return fastest if seconds[fastest] < WORTHWHILE_TIME_RATIO * seconds[PYTORCH] else PYTORCH


def time_convolutions(threads: int, backend: str) -> float:
    """Return the seconds per training step, validation included, summed over the CNNs of the reports' main part.

    Returns:
        The seconds of one step of `cnn_3`, `cnn_4` and `cnn_5`, in the fastest round; infinity if the backend is
        `NATIVE` and cannot be compiled here.
    """
    import torch

    from trainables import training
    from trainables.accelerated.convolutions import CompilerError, choose_forward
    from trainables.architectures import build
    from trainables.process import prepare_process

    prepare_process(threads)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(50, 1, 28, 28, generator=generator)
    validation_images = images.repeat(12, 1, 1, 1)  # a step's share: a record, every 10 steps, takes 6,000 images
    try:
        forward = choose_forward("cnn_3", backend, torch.device("cpu"))
    except CompilerError:
        return math.inf

    def steps() -> Iterator[None]:
        while True:
            for model in models:
                forward(model, images).sum().backward()
                training.compute_accuracy(model, validation_images, torch.zeros(600), forward)
            yield

    models = [build(name, (1, 28, 28)).to(memory_format=torch.channels_last) for name in ("cnn_3", "cnn_4", "cnn_5")]
    return time_steps(steps(), torch.device("cpu"))


def time_steps(steps: Iterator[None], device: torch.device) -> float:
    """Return the seconds per step in the fastest round; the very first step, which sets things up, does not count."""
    import torch

    def time_round(length: int) -> float:
        started = time.perf_counter()
        for _ in islice(steps, length):
            pass
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / length

    time_round(1)
    deadline = time.monotonic() + MIN_PROBE_SECONDS
    rounds = [time_round(STEPS_PER_ROUND) for _ in range(MIN_ROUNDS)]
    while len(rounds) < MAX_ROUNDS and time.monotonic() < deadline:
        rounds.append(time_round(STEPS_PER_ROUND))
    return min(rounds)


if __name__ == "__main__":
    print(time_convolutions(int(sys.argv[1]), sys.argv[2]))

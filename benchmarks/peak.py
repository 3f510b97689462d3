"""How much of what the processor can do, on one thread, training and validation do.

The yardstick is a product of two large float32 matrices, measured before and after every turn. Only floating-point
operations of matrix products and convolutions are counted, two a multiplication: forward those of
`architectures.flops`; in training three times as many, less those of the first layer once, as no gradient of the
images is computed.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch

from trainables import datasets, training
from trainables.accelerated import stack
from trainables.accelerated.backends import ONEDNN_VARIABLE, get_environment
from trainables.accelerated.convolutions import choose_forward
from trainables.accelerated.probe import find_fastest_backend
from trainables.architectures import ARCHITECTURES, Conv, compute_output_shape, count_flops
from trainables.trial import Trial

SIDE = 2048  # of the matrices
MEMBERS = 5  # of a stack
STEPS = {"mlp": 300, "cnn": 40}  # a turn


def sgemm(threads: int, repeats: int = 3) -> float:
    """Floating-point operations a second of a matrix product, the fastest of some."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        left, right = torch.randn(2, SIDE, SIDE)
        out = left @ right
        return 2 * SIDE**3 / min(seconds(lambda: torch.mm(left, right, out=out)) for _ in range(repeats))
    finally:
        torch.set_num_threads(before)


def seconds(call: Callable[[], object]) -> float:
    """That a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def training_flops(architecture: str, shape: tuple[int, int, int]) -> int:
    """Floating-point operations that training takes an image."""
    first = ARCHITECTURES[architecture][0]
    after = compute_output_shape(first, shape)
    window = first.kernel**2 * shape[0] if isinstance(first, Conv) else math.prod(shape)
    return 3 * count_flops(architecture, shape) - 2 * window * math.prod(after)


def fraction(work: Callable[[], object], operations: int, turns: int) -> float:
    """The part of the peak that `work`, of so many floating-point operations, reaches: the median of some turns."""
    work()
    found = []
    before = sgemm(1)
    for _ in range(turns):
        took = seconds(work)
        after = sgemm(1)
        found.append(operations / took / ((before + after) / 2))
        before = after
    return statistics.median(found)


def fractions(architecture: str, dataset: str, data_root: Path, turns: int) -> dict[str, float]:
    """Of training without records, and of a pass over the validation images. Called in a process of its own.

    MLPs train in a stack of `MEMBERS`, CNNs one alone, as sweeps do it on a CPU.
    """
    way = os.environ.get(ONEDNN_VARIABLE) or find_fastest_backend(1)
    os.environ.update(get_environment(way))  # as sweeps do
    training.prepare_process(1)
    stacked = architecture.startswith("mlp")
    data = training.to_tensors(datasets.load_dataset(dataset, data_root), "cpu")
    trials = [
        Trial(
            dataset=dataset,
            architecture=architecture,
            learning_rate=0.001,
            epochs=1000,
            seed=seed,
            record_every_steps=10**9,
        )
        for seed in range(MEMBERS if stacked else 1)
    ]
    states = [training.start(trial, data) for trial in trials]
    steps = STEPS["mlp" if stacked else "cnn"]
    progress: Iterator[None]
    if stacked:
        progress = stack.train_stack(trials, data, states)
        together = stack.Stack([(trial, training.start(trial, data)) for trial in trials], data)
        validate: Callable[[], object] = lambda: together.accuracies(data.val_images, data.val_labels)  # noqa: E731
    else:
        state = states[0]
        state.forward = choose_forward(architecture, way, torch.device("cpu"))
        progress = training.train(trials[0], data, state)
        validate = lambda: training.compute_accuracy(state.model, data.val_images, data.val_labels, state.forward)  # noqa: E731
    trained = steps * trials[0].batch_size * len(trials) * training_flops(architecture, data.input_shape)
    validated = len(data.val_images) * len(trials) * count_flops(architecture, data.input_shape)
    return {
        "training": fraction(lambda: list(islice(progress, steps)), trained, turns),
        "validation": fraction(validate, validated, turns),
    }

"""Measures the fraction of one core's peak that training and validation reach.

The peak is the speed of a product of two large float32 matrices on one thread, measured before and after every turn.
Only the floating-point operations of matrix products and convolutions are counted; a multiplication and its addition
count as two. A forward pass has those that `architectures.count_flops` counts. A training step has three times as many,
minus once those of the first layer, as no gradient of the images is computed.
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
from trainables.process import prepare_process
from trainables.trial import Trial

MATRIX_ROWS = 2048  # rows and columns of the matrices
STACK_MEMBERS = 5  # trials in a stack
STEPS_PER_TURN = {"mlp": 300, "cnn": 40}


def measure_peak(threads: int, repeats: int = 3) -> float:
    """Return the floating-point operations per second of a product of large matrices, at the fastest repeat."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        left, right = torch.randn(2, MATRIX_ROWS, MATRIX_ROWS)
        out = left @ right
        return 2 * MATRIX_ROWS**3 / min(time_call(lambda: torch.mm(left, right, out=out)) for _ in range(repeats))
    finally:
        torch.set_num_threads(before)


def time_call(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def count_training_flops(architecture: str, shape: tuple[int, int, int]) -> int:
    """Return the floating-point operations of a training step for each image `(channels, height, width)`."""
    first = ARCHITECTURES[architecture][0]
    after = compute_output_shape(first, shape)
    window = first.kernel**2 * shape[0] if isinstance(first, Conv) else math.prod(shape)
    return 3 * count_flops(architecture, shape) - 2 * window * math.prod(after)


def measure_fraction(work: Callable[[], object], operations: int, turns: int) -> float:
    """Return the fraction of the peak that a piece of work reaches: the median of some turns.

    Args:
        work: Function that does the work once.
        operations: Floating-point operations of the work.
        turns: Number of turns; one more before them does not count.
    """
    work()
    found = []
    before = measure_peak(1)
    for _ in range(turns):
        seconds = time_call(work)
        after = measure_peak(1)
        found.append(operations / seconds / ((before + after) / 2))
        before = after
    return statistics.median(found)


def measure_fractions(architecture: str, dataset: str, data_root: Path, turns: int) -> dict[str, float]:
    """Measure the fraction of the peak that training without records reaches, and a pass over the validation images.

    This must be called in a process of its own. MLPs train in a stack of `STACK_MEMBERS`, CNNs alone, as in sweeps on
    a CPU.
    """
    backend = os.environ.get(ONEDNN_VARIABLE) or find_fastest_backend(1)
    os.environ.update(get_environment(backend))
    prepare_process(1)
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
        for seed in range(STACK_MEMBERS if stacked else 1)
    ]
    states = [training.start(trial, data) for trial in trials]
    steps = STEPS_PER_TURN["mlp" if stacked else "cnn"]
    training_steps: Iterator[None]
    if stacked:
        training_steps = stack.train_stack(trials, data, states)
        joint = stack.Stack([(trial, training.start(trial, data)) for trial in trials], data)
        validate: Callable[[], object] = lambda: joint.compute_accuracies(data.val_images, data.val_labels)  # noqa: E731
    else:
        state = states[0]
        state.forward = choose_forward(architecture, backend, torch.device("cpu"))
        training_steps = training.train(trials[0], data, state)
        validate = lambda: training.compute_accuracy(state.model, data.val_images, data.val_labels, state.forward)  # noqa: E731
    trained = steps * trials[0].batch_size * len(trials) * count_training_flops(architecture, data.input_shape)
    validated = len(data.val_images) * len(trials) * count_flops(architecture, data.input_shape)
    return {
        "training": measure_fraction(lambda: list(islice(training_steps, steps)), trained, turns),
        "validation": measure_fraction(validate, validated, turns),
    }

"""Training one trial: records as it goes, and a result at the end. Knows neither Ray nor MLflow.

    state = start(trial, data)
    for _ in train(trial, data, state): ...   # after every step
    result = finish(trial, data, state)

`state_dict(state)` holds all that decides a trial's future; a trial resumed from it equals an uninterrupted one bit
for bit on the CPU with the same number of threads. The order of the images is a pure function of seed and epoch, so
that no random generator has to be kept.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from trainables.architectures import build, get_first_layer
from trainables.datasets import Dataset
from trainables.result import Result
from trainables.trial import Trial

EVALUATION_BATCH = 2500  # images a forward pass outside training: a GPU should not idle, nor run out of memory


# What a network makes of images `(n, channels, height, width)`: logits `(n, classes)`
Forward = Callable[[nn.Sequential, Tensor], Tensor]


def forward_torch(model: nn.Sequential, images: Tensor) -> Tensor:
    """The pass as PyTorch computes it; outside training, on the CPU, for some images at a time."""
    if images.is_cuda or torch.is_grad_enabled():
        outputs: Tensor = model(images)
        return outputs
    return torch.cat([forward_by_module(model, some) for some in images.split(CPU_CHUNK_IMAGES)])


def forward_by_module(model: nn.Sequential, images: Tensor) -> Tensor:
    """The pass outside training on the CPU.

    ReLU works in place and maxima are taken of slices, which is the same to the last bit; the CNNs of the reports' main
    part took an eighth less time with it.
    """
    outputs = images
    for module in model:
        match module:
            case nn.ReLU() if outputs is not images:
                outputs = functional.relu_(outputs)
            case nn.MaxPool2d(kernel_size=2, stride=2, padding=0):
                outputs = max_pool(outputs)
            case _:
                outputs = module(outputs)
    return outputs


def max_pool(images: Tensor) -> Tensor:
    """Maxima of 2×2 windows with stride 2: `(n, channels, h, w)` → `(n, channels, h // 2, w // 2)`."""
    height, width = (size // 2 * 2 for size in images.shape[2:])
    rows = torch.maximum(images[:, :, 0:height:2], images[:, :, 1:height:2])
    return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])


@dataclass(frozen=True)
class Tensors:
    """A data set on the trial's device: images float32 `(n, channels, height, width)`, labels int64 `(n,)`."""

    train_images: Tensor
    train_labels: Tensor
    val_images: Tensor
    val_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    input_shape: tuple[int, int, int]
    classes: int


@dataclass
class State:
    """A trial in training.

    Attributes:
        step: Optimiser steps taken, counted across epochs.
        curves: `(quantities, records)` float32 on the device; columns from `records` on are not yet filled.
        diverged: The loss of the last record is NaN or infinite: training has ended there.
        forward: The network's pass, in training and outside; a stack has its own.
    """

    model: nn.Sequential
    optimizer: torch.optim.Optimizer
    step: int
    curves: Tensor
    diverged: bool = False
    forward: Forward = forward_torch


@dataclass(frozen=True)
class StepOutput:
    """What a quantity may look at: the step just taken by a trial, or by all members of a stack, and the data.

    Attributes:
        loss: `()`, or `(members,)`; as logits, from the step's forward pass, before its update.
        logits: `(n, classes)`, or `(members, n, classes)`.
        labels: `(n,)`, or `(members, n)`.
        accuracy: Gives the accuracy in percent of the updated model on images with these labels; as `loss`.
        gradient_norm: Gives the norm of the first layer's gradient; as `loss`.
    """

    loss: Tensor
    logits: Tensor
    labels: Tensor
    data: Tensors
    accuracy: Callable[[Tensor, Tensor], Tensor]
    gradient_norm: Callable[[], Tensor]


def prepare_process(threads: int) -> None:
    """Set a process up to train on so many threads, and to keep the memory of freed tensors for the next ones.

    glibc gives freed blocks back to the system unless a larger one has been freed before, up to 32 MB. Without this, a
    process that trains `cnn_3` had 26,000 page faults a second, and was a tenth slower.
    """
    torch.set_num_threads(threads)
    torch.empty(31 * 2**20, dtype=torch.uint8)


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of `labels` `(n,)` are the largest of `logits` `(…, n, classes)`: `(…)`."""
    return (logits.argmax(dim=-1) == labels).sum(dim=-1)


def compute_accuracy(model: nn.Sequential, images: Tensor, labels: Tensor, forward: Forward = forward_torch) -> Tensor:
    """Accuracy in percent of the model in eval mode on all images, a tensor without dimensions on the device."""
    model.eval()
    with torch.inference_mode():
        batches = zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True)
        hits = [count_correct(forward(model, x), y) for x, y in batches]
        total = torch.stack(hits).sum()
    model.train()
    return 100 * total / len(labels)


def compute_gradient_norm(model: nn.Module) -> Tensor:
    """That of the first layer's gradient of the step just taken."""
    gradient = get_first_layer(model).grad
    assert gradient is not None
    norm: Tensor = torch.linalg.vector_norm(gradient)
    return norm


QUANTITY_FUNCTIONS: dict[str, Callable[[StepOutput], Tensor]] = {
    "train_loss": lambda m: m.loss.detach(),
    "train_accuracy": lambda m: 100 * count_correct(m.logits, m.labels) / m.labels.shape[-1],
    "val_accuracy": lambda m: m.accuracy(m.data.val_images, m.data.val_labels),
    "gradient_norm": lambda m: m.gradient_norm(),
    "train_set_accuracy": lambda m: m.accuracy(m.data.train_images, m.data.train_labels),
    "test_set_accuracy": lambda m: m.accuracy(m.data.test_images, m.data.test_labels),
}

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def to_tensors(data: Dataset, device: torch.device | str, task: str | None = None) -> Tensors:
    """The data set on the device, labelled for the trial's task; on the CPU the images are shared, not copied."""

    def tensor(array: NDArray[Any]) -> Tensor:
        with warnings.catch_warnings():  # arrays from Ray's object store are read-only, and nothing here writes to them
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(array).to(device)

    def labels(array: NDArray[np.int64]) -> Tensor:
        return tensor(array % 2 if task == "even_odd" else array)

    return Tensors(
        train_images=tensor(data.train_images),
        train_labels=labels(data.train_labels),
        val_images=tensor(data.val_images),
        val_labels=labels(data.val_labels),
        test_images=tensor(data.test_images),
        test_labels=labels(data.test_labels),
        input_shape=data.input_shape,
        classes=2 if task == "even_odd" else data.classes,
    )


def list_record_steps(trial: Trial, train_images: int) -> NDArray[np.int64]:
    """The optimiser steps at which the trial records, `(records,)`."""
    interval = trial.record_interval(train_images)
    return np.arange(interval, trial.epochs * trial.steps_per_epoch(train_images) + 1, interval)


def draw_epoch_order(seed: int, epoch: int, images: int) -> Tensor:
    """The order of the images in an epoch `(images,)`: a permutation that seed and epoch alone decide."""
    generator = np.random.default_rng((seed, epoch))
    return torch.from_numpy(generator.permutation(images))


def move_order(order: Tensor, device: torch.device) -> Tensor:
    """An order where the images are, without waiting for a GPU."""
    return order.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else order


def start(trial: Trial, data: Tensors) -> State:
    """A trial before its first step: PyTorch's default initialisation, drawn from the trial's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trial.seed)
        model = build(
            trial.architecture,
            data.input_shape,
            classes=data.classes,
            activation=trial.activation,
            pooling=trial.pooling,
        )
    device = data.train_images.device
    # For PyTorch's convolutions on the CPU: 1.1 to 1.4 times as fast in training, 1.4 to 2 times in validation
    model.to(device).to(memory_format=torch.channels_last)  # in place
    optimizer = OPTIMIZERS[trial.optimizer](model.parameters(), lr=trial.learning_rate, fused=True)
    records = len(list_record_steps(trial, len(data.train_images)))
    return State(model, optimizer, 0, torch.zeros(len(trial.quantities), records, device=device))


def train(trial: Trial, data: Tensors, state: State) -> Iterator[None]:
    """Train from where `state` is to the last epoch's end, yielding after every step.

    A record whose loss is NaN or infinite is the last: nothing that follows it would mean anything.
    """
    images = len(data.train_images)
    per_epoch, interval = trial.steps_per_epoch(images), trial.record_interval(images)
    while not has_ended(trial, data, state):
        epoch, taken = divmod(state.step, per_epoch)
        order = move_order(draw_epoch_order(trial.seed, epoch, images), data.train_images.device)
        for batch in order.split(trial.batch_size)[taken:]:
            moment = take_step(trial, data, state, batch)
            if state.step % interval == 0:
                record_quantities(trial.quantities, moment, state.curves, state.step // interval - 1)
                state.diverged = not bool(torch.isfinite(moment.loss))
            yield
            if state.diverged:
                return


def has_ended(trial: Trial, data: Tensors, state: State) -> bool:
    """Whether the trial has trained to its end, or diverged."""
    return state.diverged or state.step >= trial.epochs * trial.steps_per_epoch(len(data.train_images))


def take_step(trial: Trial, data: Tensors, state: State, batch: Tensor) -> StepOutput:
    """One optimiser step on the images whose indices are `batch` `(batch size,)`."""
    advance_step(trial, state)
    labels = data.train_labels.index_select(0, batch)
    logits = state.forward(state.model, data.train_images.index_select(0, batch))  # (batch size, classes)
    loss = functional.cross_entropy(logits, labels)
    state.optimizer.zero_grad()
    loss.backward()
    state.optimizer.step()
    return StepOutput(
        *(loss, logits, labels, data),
        accuracy=partial(compute_accuracy, state.model, forward=state.forward),
        gradient_norm=partial(compute_gradient_norm, state.model),
    )


def advance_step(trial: Trial, state: State) -> None:
    """Count the next step, and set its learning rate."""
    state.step += 1
    for group in state.optimizer.param_groups:
        group["lr"] = trial.learning_rate_at(state.step)


def record_quantities(quantities: Sequence[str], moment: StepOutput, curves: Tensor, column: int) -> None:
    """Note quantities in a column of `curves` `(quantities, records)` or `(members, quantities, records)`."""
    for row, quantity in enumerate(quantities):
        curves[..., row, column] = QUANTITY_FUNCTIONS[quantity](moment)


def make_state_dict(state: State, records: int) -> dict[str, Any]:
    """All that decides the trial's future and the curves so far, as tensors and plain values."""
    return {
        "step": state.step,
        "diverged": state.diverged,
        "model": copy_weights(state),
        "optimizer": state.optimizer.state_dict(),
        "curves": state.curves[:, :records].to("cpu", copy=True),  # of a stack's, not all
    }


def copy_weights(state: State) -> dict[str, Tensor]:
    """The model's parameters by name, on the CPU, each with memory of its own."""
    return {name: value.to("cpu", copy=True) for name, value in state.model.state_dict().items()}


def load_state_dict(state: State, saved: dict[str, Any]) -> None:
    """Put a fresh `state` where `saved` was."""
    state.model.load_state_dict(saved["model"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.curves[:, : saved["curves"].shape[1]] = saved["curves"].to(state.curves.device)
    state.step = saved["step"]
    state.diverged = saved["diverged"]


def fetch_curves(trial: Trial, state: State, records: int) -> dict[str, NDArray[np.float32]]:
    """The first `records` records by name, each `(records,)`, fetched from the device at once."""
    filled = state.curves[:, :records].cpu().numpy().copy()
    return dict(zip(trial.quantities, filled, strict=True))


def finish(trial: Trial, data: Tensors, state: State) -> Result:
    """The result of a trial trained to its end. Nothing else looks at test images but `test_set_accuracy`."""
    steps = list_record_steps(trial, len(data.train_images))
    steps = steps[steps <= state.step]  # all of them, unless it diverged
    test_accuracy = math.nan
    if not state.diverged:
        test_accuracy = float(compute_accuracy(state.model, data.test_images, data.test_labels, state.forward))
    return Result(
        steps=steps,
        curves=fetch_curves(trial, state, len(steps)),
        test_accuracy=test_accuracy,
        first_layer=get_first_layer(state.model).detach().cpu().numpy().copy(),
    )


# Images that go through PyTorch's layers at a time, outside training on the CPU: convolutional networks were fastest
# with 50 to 100, by a tenth over 250.
CPU_CHUNK_IMAGES = 96

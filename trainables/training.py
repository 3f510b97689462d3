"""Training of one trial, without Ray or MLflow: records on the way, a result at the end.

    state = start(trial, data)
    for _ in train(trial, data, state): ...  # after every step
    result = finish(trial, data, state)

On the CPU, with the same number of threads, a trial that is resumed from `make_state_dict` equals an uninterrupted one
bit for bit. The order of the images depends on seed and epoch alone, so that no random generator has to be saved.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainables.architectures import build, get_first_layer
from trainables.datasets import Dataset
from trainables.result import Result
from trainables.trial import Trial

EVALUATION_BATCH = 2500  # images in a forward pass outside training: enough to keep a GPU busy, within its memory

CPU_CHUNK_IMAGES = 96  # outside training on the CPU: convolutional networks were a tenth slower with 250

# A forward pass: a network and images `(n, channels, height, width)` → logits `(n, classes)`
Forward = Callable[[nn.Sequential, Tensor], Tensor]


def forward_torch(model: nn.Sequential, images: Tensor) -> Tensor:
    """Run a forward pass by PyTorch; outside training on the CPU, `CPU_CHUNK_IMAGES` images at a time."""
    if images.is_cuda or torch.is_grad_enabled():
        return cast("Tensor", model(images))
    return torch.cat([forward_by_module(model, chunk) for chunk in images.split(CPU_CHUNK_IMAGES)])


def forward_by_module(model: nn.Sequential, images: Tensor) -> Tensor:
    """Run a forward pass outside training on the CPU, faster than `model(images)` and equal to it to the last bit.

    ReLU works in place, and max pooling compares slices: `cnn_3` to `cnn_5` took an eighth less time.
    """
    outputs = images
    for module in model:
        match module:
            case nn.ReLU() if outputs is not images:
                outputs = nn.functional.relu_(outputs)
            case nn.MaxPool2d(kernel_size=2, stride=2, padding=0):
                height, width = (size // 2 * 2 for size in outputs.shape[2:])  # without an odd last row or column
                rows = torch.maximum(outputs[:, :, 0:height:2], outputs[:, :, 1:height:2])
                outputs = torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])
            case _:
                outputs = module(outputs)
    return outputs


@dataclass(frozen=True)
class Tensors:
    """A data set on one device: images float32 `(n, channels, height, width)`, labels int64 `(n,)`."""

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
    """The state of a trial in training.

    Attributes:
        step: Optimiser steps taken, counted across epochs.
        curves: `(quantities, records)` float32 on the device, for all records of the trial; zero if not yet recorded.
        diverged: True if the loss of the last record is NaN or infinite, which ends training.
        forward: The forward pass, in training and outside; stacks do not use it.
    """

    model: nn.Sequential
    optimizer: torch.optim.Optimizer
    step: int
    curves: Tensor
    diverged: bool = False
    forward: Forward = forward_torch


@dataclass(frozen=True)
class StepOutput:
    """The output of one step of a trial, or of all members of a stack, from which quantities are computed.

    Attributes:
        loss: `()` or `(members,)`, from the step's forward pass and so before its update; logits likewise.
        logits: `(n, classes)` or `(members, n, classes)`.
        labels: `(n,)` or `(members, n)`.
        accuracy: Function of images and labels: the accuracy of the updated model in percent, shaped as `loss`.
        gradient_norm: Function that returns the norm of the first layer's gradient, shaped as `loss`.
    """

    loss: Tensor
    logits: Tensor
    labels: Tensor
    data: Tensors
    accuracy: Callable[[Tensor, Tensor], Tensor]
    gradient_norm: Callable[[], Tensor]


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Count correct predictions: logits `(…, n, classes)` and labels `(n,)` or `(…, n)` → `(…)`."""
    return (logits.argmax(dim=-1) == labels).sum(dim=-1)


def find_correct(model: nn.Sequential, images: Tensor, labels: Tensor, forward: Forward = forward_torch) -> Tensor:
    """Find the images that the model names right in eval mode, as bools `(n,)` on the device."""
    model.eval()
    with torch.inference_mode():
        predicted = torch.cat([forward(model, batch).argmax(dim=-1) for batch in images.split(EVALUATION_BATCH)])
    model.train()
    return predicted == labels


def compute_accuracy(model: nn.Sequential, images: Tensor, labels: Tensor, forward: Forward = forward_torch) -> Tensor:
    """Compute the model's accuracy on all images in percent, in eval mode, as a scalar tensor on the device."""
    return 100 * find_correct(model, images, labels, forward).sum() / len(labels)


def compute_gradient_norm(model: nn.Module) -> Tensor:
    """Compute the Euclidean norm of the first layer's gradient, as the last step has left it."""
    return cast("Tensor", torch.linalg.vector_norm(cast("Tensor", get_first_layer(model).grad)))


QUANTITY_FUNCTIONS: dict[str, Callable[[StepOutput], Tensor]] = {
    "train_loss": lambda output: output.loss.detach(),
    "train_accuracy": lambda output: 100 * count_correct(output.logits, output.labels) / output.labels.shape[-1],
    "val_accuracy": lambda output: output.accuracy(output.data.val_images, output.data.val_labels),
    "gradient_norm": lambda output: output.gradient_norm(),
    "train_set_accuracy": lambda output: output.accuracy(output.data.train_images, output.data.train_labels),
    "test_set_accuracy": lambda output: output.accuracy(output.data.test_images, output.data.test_labels),
}

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def to_tensors(data: Dataset, device: torch.device | str, task: str | None = None) -> Tensors:
    """Put a data set on a device, with labels for the trial's task; on the CPU, images are shared, not copied."""

    def tensor(array: NDArray[Any]) -> Tensor:
        with warnings.catch_warnings():  # arrays from Ray's object store are read-only; nothing here writes to them
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(array).to(device)

    def labels(array: NDArray[np.int64]) -> Tensor:
        return tensor(array % 2 if task == "even_odd" else array)

    return Tensors(
        *(tensor(data.train_images), labels(data.train_labels)),
        *(tensor(data.val_images), labels(data.val_labels)),
        *(tensor(data.test_images), labels(data.test_labels)),
        input_shape=data.input_shape,
        classes=2 if task == "even_odd" else data.classes,
    )


def list_record_steps(trial: Trial, train_images: int) -> NDArray[np.int64]:
    """Return the optimiser steps at which the trial records, `(records,)`."""
    interval = trial.record_interval(train_images)
    return np.arange(interval, trial.epochs * trial.steps_per_epoch(train_images) + 1, interval)


def draw_epoch_order(seed: int, epoch: int, images: int) -> Tensor:
    """Return the order of the images in an epoch, `(images,)`: a permutation that seed and epoch alone decide."""
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(images))


def move_order(order: Tensor, device: torch.device) -> Tensor:
    """Return an order on the images' device; a copy to a GPU is only queued, not waited for."""
    return order.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else order


def start(trial: Trial, data: Tensors) -> State:
    """Return the state of a trial before its first step: PyTorch's default initialisation with the trial's seed."""
    kinds = {"activation": trial.activation, "pooling": trial.pooling}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trial.seed)
        model = build(trial.architecture, data.input_shape, classes=data.classes, **kinds)
    device = data.train_images.device
    # This makes PyTorch's convolutions on the CPU 1.1 to 1.4 times as fast in training, 1.4 to 2 times in validation.
    model.to(device).to(memory_format=torch.channels_last)  # both work in place
    optimizer = OPTIMIZERS[trial.optimizer](model.parameters(), lr=trial.learning_rate, fused=True)
    records = len(list_record_steps(trial, len(data.train_images)))
    return State(model, optimizer, 0, torch.zeros(len(trial.quantities), records, device=device))


def train(trial: Trial, data: Tensors, state: State) -> Iterator[None]:
    """Continue training to the last epoch's end, or to a record of NaN or infinite loss, yielding after every step."""
    images = len(data.train_images)
    steps_per_epoch, interval = trial.steps_per_epoch(images), trial.record_interval(images)
    while not has_ended(trial, data, state):
        epoch, taken = divmod(state.step, steps_per_epoch)
        order = move_order(draw_epoch_order(trial.seed, epoch, images), data.train_images.device)
        for batch in order.split(trial.batch_size)[taken:]:
            output = take_step(trial, data, state, batch)
            if state.step % interval == 0:
                record_quantities(trial.quantities, output, state.curves, state.step // interval - 1)
                state.diverged = not bool(torch.isfinite(output.loss))
            yield
            if state.diverged:  # nothing after this record would mean anything
                return


def has_ended(trial: Trial, data: Tensors, state: State) -> bool:
    """Return whether the trial has trained to its end or diverged."""
    return state.diverged or state.step >= trial.epochs * trial.steps_per_epoch(len(data.train_images))


def take_step(trial: Trial, data: Tensors, state: State, batch: Tensor) -> StepOutput:
    """Take one optimiser step on the images whose indices are `batch` `(batch size,)`."""
    advance_step(trial, state)
    labels = data.train_labels.index_select(0, batch)
    logits = state.forward(state.model, data.train_images.index_select(0, batch))  # (batch size, classes)
    loss = nn.functional.cross_entropy(logits, labels)
    state.optimizer.zero_grad()
    loss.backward()
    state.optimizer.step()
    accuracy = partial(compute_accuracy, state.model, forward=state.forward)
    return StepOutput(loss, logits, labels, data, accuracy, partial(compute_gradient_norm, state.model))


def advance_step(trial: Trial, state: State) -> None:
    """Increase the step count by one, and set the learning rate of that step."""
    state.step += 1
    for group in state.optimizer.param_groups:
        group["lr"] = trial.learning_rate_at(state.step)


def record_quantities(quantities: Sequence[str], output: StepOutput, curves: Tensor, column: int) -> None:
    """Write quantities into a column of `curves`, `(quantities, records)` or `(members, quantities, records)`."""
    for row, quantity in enumerate(quantities):
        curves[..., row, column] = QUANTITY_FUNCTIONS[quantity](output)


def make_state_dict(state: State, records: int) -> dict[str, Any]:
    """Return the first `records` records and everything that decides how training continues, for `torch.save`."""
    return {
        "step": state.step,
        "diverged": state.diverged,
        "model": copy_weights(state),
        "optimizer": copy_tensors(state.optimizer.state_dict()),
        "curves": state.curves[:, :records].to("cpu", copy=True),  # in a stack, a view of all members' curves
    }


def copy_weights(state: State) -> dict[str, Tensor]:
    """Copy the model's parameters to the CPU, by name, each into memory of its own."""
    return {name: value.to("cpu", copy=True) for name, value in state.model.state_dict().items()}


def copy_tensors(value: Any) -> Any:
    """Copy what an optimiser's state dict holds, its tensors to the CPU, each into memory of its own."""
    if isinstance(value, dict):
        return {key: copy_tensors(each) for key, each in value.items()}
    return value.to("cpu", copy=True) if isinstance(value, Tensor) else value


def load_state_dict(state: State, saved: dict[str, Any]) -> None:
    """Continue a fresh `state` from `saved`, made by `make_state_dict`."""
    state.model.load_state_dict(saved["model"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.curves[:, : saved["curves"].shape[1]] = saved["curves"].to(state.curves.device)
    state.step = saved["step"]
    state.diverged = saved["diverged"]


def fetch_curves(trial: Trial, state: State, records: int) -> dict[str, NDArray[np.float32]]:
    """Return the first `records` records by quantity, each `(records,)`, fetched from the device in one copy."""
    return dict(zip(trial.quantities, state.curves[:, :records].cpu().numpy().copy(), strict=True))


def finish(trial: Trial, data: Tensors, state: State) -> Result:
    """Return the result of a trial that has ended; only this and `test_set_accuracy` look at the test images."""
    steps = list_record_steps(trial, len(data.train_images))
    steps = steps[steps <= state.step]  # all of them, unless the trial diverged
    curves = fetch_curves(trial, state, len(steps))
    first_layer = get_first_layer(state.model).detach().cpu().numpy().copy()
    if state.diverged:
        return Result(steps, curves, math.nan, first_layer)
    correct = find_correct(state.model, data.test_images, data.test_labels, state.forward)
    return Result(steps, curves, float(100 * correct.sum() / len(correct)), first_layer, correct.cpu().numpy())

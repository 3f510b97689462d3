"""Throughput of stacks: beside single trials, a plain script, and what launches, memory and arithmetic allow.

A step trains on 50 images of Fashion-MNIST's size; every tenth is followed by a record, with 6,000 validation images.
The pixels are random, which changes no time. Times are medians over turns.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from trainables import training
from trainables.accelerated.stack import Stack, train_stack
from trainables.architectures import ARCHITECTURES, build, count_flops
from trainables.datasets import Dataset
from trainables.training import Tensors
from trainables.trial import Trial

BATCH_SIZE = 50
STEPS_PER_RECORD = 10
STACK_SIZES = (1, 4, 16, 64, 256)
COUNTED_MEMBERS = (1, 2)  # operators and bytes of these are counted, and follow for larger stacks
COUNTED_IMAGES = 1000  # of a validation pass whose operators are counted; stacks on the CPU take as many at a time
# Operators that launch nothing, or only take memory
FREE = {
    f"aten::{name}"
    for name in (
        *("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "squeeze", "unsqueeze"),
        *("expand", "t", "mT", "transpose", "permute", "movedim", "select", "slice", "split", "unbind", "alias"),
        *("as_strided", "detach", "empty", "empty_like", "new_empty"),
    )
}
ADAM_BYTES = 28  # per parameter and step: gradient, parameter and two moments are read, and the last three written


@dataclass(frozen=True)
class Size:
    """The extent of the measurements.

    Attributes:
        images: Images for training, validation and test.
        architectures: The architectures.
        stacks: Numbers of members.
        seconds: The time of a measurement, which has at least two turns of ten steps.
    """

    images: tuple[int, int, int]
    architectures: Sequence[str]
    stacks: Sequence[int]
    seconds: float


FULL = Size((54_000, 6_000, 10_000), tuple(ARCHITECTURES), STACK_SIZES, 0.3)
SMALL = Size((600, 100, 100), ("mlp_1", "cnn_3"), (1, 4), 0.05)


@dataclass(frozen=True)
class Machine:
    """The limits that the machine reaches.

    Attributes:
        launch: Seconds in which Python launches an operation.
        bandwidth: Bytes per second that a copy reads and writes.
        flops: Floating-point operations per second of a product of matrices in float32.
    """

    launch: float
    bandwidth: float
    flops: float


@dataclass(frozen=True)
class Cost:
    """The cost of a step and its share of a record, for all members of a stack.

    Attributes:
        launches: Operations that are launched, without a CUDA graph.
        bytes: Bytes of all inputs and outputs, as if nothing stayed in a cache.
        flops: Floating-point operations.
    """

    launches: float
    bytes: float
    flops: float


@dataclass(frozen=True)
class Row:
    """Microseconds per step of a trial, for an architecture and a number of members.

    Attributes:
        stack: Of a stack.
        alone: Of a trial that trains alone.
        script: Of a plain script with `DataLoader`.
        launches: Bound by launches, one by one as without a CUDA graph.
        memory: Bound by memory.
        arithmetic: Bound by arithmetic.
    """

    architecture: str
    members: int
    stack: float
    alone: float
    script: float
    launches: float
    memory: float
    arithmetic: float

    @property
    def speedup(self) -> float:
        """The time of trials one after another, divided by that of the stack."""
        return self.alone / self.stack

    def to_json(self) -> dict[str, Any]:
        """Return the numbers of the row, the speedup included."""
        return {**asdict(self), "speedup": self.speedup}


def make_data(size: Size) -> Dataset:
    """Return random images with random labels."""
    generator = np.random.default_rng(0)
    parts: dict[str, Any] = {}
    for part, images in zip(("train", "val", "test"), size.images, strict=True):
        parts[f"{part}_images"] = generator.random((images, 1, 28, 28), dtype=np.float32)
        parts[f"{part}_labels"] = generator.integers(0, 10, images)
    return Dataset(name="fashion_mnist", **parts, classes=10, checksum="0" * 16)


def make_trial(architecture: str, seed: int) -> Trial:
    """Return a trial that is longer than any measurement."""
    return Trial(
        dataset="fashion_mnist",
        architecture=architecture,
        learning_rate=0.001,
        epochs=1000,
        seed=seed,
        batch_size=BATCH_SIZE,
        record_every_steps=STEPS_PER_RECORD,
    )


def wait(device: torch.device) -> None:
    """Wait until a GPU has done all that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def time_steps(steps: Iterator[Any], device: torch.device, seconds: float) -> float:
    """Return the median time of a step, in turns of a record each; a turn before them does not count."""
    times: list[float] = []
    deadline = math.inf
    while len(times) < 3 or time.perf_counter() < deadline:
        started = time.perf_counter()
        list(islice(steps, STEPS_PER_RECORD))
        wait(device)
        times.append((time.perf_counter() - started) / STEPS_PER_RECORD)
        if len(times) == 1:
            deadline = time.perf_counter() + seconds
    return statistics.median(times[1:])


def time_alone(architecture: str, data: Tensors, seconds: float) -> float:
    """Return the seconds per step of a trial that trains alone."""
    trial = make_trial(architecture, 0)
    return time_steps(training.train(trial, data, training.start(trial, data)), data.train_images.device, seconds)


def time_stack(architecture: str, members: int, data: Tensors, seconds: float) -> float:
    """Return the seconds per step of a stack."""
    trials = [make_trial(architecture, seed) for seed in range(members)]
    states = [training.start(trial, data) for trial in trials]
    return time_steps(train_stack(trials, data, states), data.train_images.device, seconds)


def time_script(architecture: str, data: Dataset, device: torch.device, seconds: float) -> float:
    """Return the seconds per step of a script as one would write it: `DataLoader`, Adam, and records."""
    parts = [(data.train_images, data.train_labels), (data.val_images, data.val_labels)]
    sets = [TensorDataset(torch.from_numpy(images), torch.from_numpy(labels)) for images, labels in parts]
    batches = DataLoader(sets[0], batch_size=BATCH_SIZE, shuffle=True, pin_memory=device.type == "cuda")
    validation = DataLoader(sets[1], batch_size=1000)
    model = build(architecture, data.input_shape).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)

    def train() -> Iterator[None]:
        step = 0
        while True:
            for images, labels in batches:
                step += 1
                on_device = labels.to(device)
                logits = model(images.to(device))
                loss = functional.cross_entropy(logits, on_device)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if step % STEPS_PER_RECORD == 0:
                    records = [loss.item(), (logits.argmax(1) == on_device).float().mean().item()]
                    model.eval()
                    with torch.no_grad():
                        hits = [(model(x.to(device)).argmax(1) == y.to(device)).sum().item() for x, y in validation]
                    model.train()
                    records.append(sum(hits) / len(data.val_labels))
                yield

    return time_steps(train(), device, seconds)


def measure_machine(device: torch.device) -> Machine:
    """Measure how fast the machine launches, copies and multiplies."""
    small = device.type == "cpu"
    one = torch.zeros(1, device=device)
    source = torch.zeros(2**24 if small else 2**28, device=device)
    matrix = torch.rand(512 if small else 8192, 512 if small else 8192, device=device)

    def fastest(function: Callable[[], object], times: int) -> float:
        function()
        wait(device)
        found = []
        for _ in range(3):
            started = time.perf_counter()
            for _ in range(times):
                function()
            wait(device)
            found.append((time.perf_counter() - started) / times)
        return min(found)

    target = torch.empty_like(source)
    return Machine(
        launch=fastest(lambda: one.add_(1), 1000),
        bandwidth=2 * source.nbytes / fastest(lambda: target.copy_(source), 3),
        flops=2 * len(matrix) ** 3 / fastest(lambda: matrix @ matrix, 3),
    )


class Counter(TorchDispatchMode):
    """Counts the operators that launch something, and the bytes of their inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches = 0
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name not in FREE:
            self.launches += 1
            gathers = func._schema.name == "aten::index_select"  # reads no more of the data set than it returns
            self.bytes += sum(count_bytes(value) for value in (result if gathers else args[0], *args[1:], result))
        return result


def count_bytes(value: Any) -> int:
    """Return the bytes of the distinct numbers of tensors; an expanded one has few."""
    if isinstance(value, Tensor):
        return value.element_size() * math.prod(
            n for n, stride in zip(value.shape, value.stride(), strict=True) if stride
        )
    return sum(count_bytes(each) for each in value) if isinstance(value, list | tuple) else 0


def count_costs(architecture: str, data: Tensors, members: int, validation_images: int) -> Cost:
    """Return what a step of a stack and a tenth of a record cost, counted on the CPU.

    Args:
        architecture: The architecture.
        data: A data set on the CPU with at most `COUNTED_IMAGES` validation images.
        members: The number of members.
        validation_images: The validation images of a record.
    """
    trials = [make_trial(architecture, seed) for seed in range(members)]
    stack = Stack([(trial, training.start(trial, data)) for trial in trials], data)
    batch = torch.stack([torch.arange(BATCH_SIZE)] * members)
    stack.take_step(batch)
    parameters = sum(value.numel() for value in stack.parameters.values())
    with Counter() as step:
        output = stack.take_step(batch)
    with Counter() as record:
        training.record_quantities(trials[0].quantities, output, stack.curves, 0)
    adam = 4 * sum(value.nbytes for value in stack.parameters.values())  # the arguments of its one operator
    passes = validation_images / len(data.val_images)
    forward = 3 * BATCH_SIZE + validation_images / STEPS_PER_RECORD
    return Cost(
        launches=step.launches + record.launches / STEPS_PER_RECORD,
        bytes=step.bytes - adam + ADAM_BYTES * parameters + record.bytes * passes / STEPS_PER_RECORD,
        flops=members * forward * count_flops(architecture, data.input_shape),
    )


def extrapolate(costs: Sequence[Cost], members: int) -> Cost:
    """Return the cost of a larger stack from those of one and two members: launches stay, the rest grows in line."""
    one, two = costs
    more = members - 1
    return Cost(
        launches=two.launches if more else one.launches,
        bytes=one.bytes + more * (two.bytes - one.bytes),
        flops=one.flops + more * (two.flops - one.flops),
    )


def measure(size: Size, device: torch.device, say: Callable[[str], None]) -> tuple[Machine, list[Row]]:
    """Measure all architectures and stacks, saying each row."""
    raw = make_data(size)
    data = training.to_tensors(raw, device)
    counted = training.to_tensors(raw, "cpu")
    counted = replace(
        counted, val_images=counted.val_images[:COUNTED_IMAGES], val_labels=counted.val_labels[:COUNTED_IMAGES]
    )
    machine = measure_machine(device)
    rows = []
    for architecture in size.architectures:
        alone = time_alone(architecture, data, 3 * size.seconds)
        script = time_script(architecture, raw, device, size.seconds)
        costs = [count_costs(architecture, counted, members, size.images[1]) for members in COUNTED_MEMBERS]
        for members in size.stacks:
            cost = extrapolate(costs, members)
            seconds = time_stack(architecture, members, data, size.seconds)
            bounds = (cost.launches * machine.launch, cost.bytes / machine.bandwidth, cost.flops / machine.flops)
            per_trial = [1e6 * value / members for value in (seconds, *bounds)]
            rows.append(Row(architecture, members, per_trial[0], 1e6 * alone, 1e6 * script, *per_trial[1:]))
            say(describe(rows[-1]))
    return machine, rows


def describe(row: Row) -> str:
    """Return a row as a sentence."""
    return (
        f"{row.members} {row.architecture}: {row.stack:.1f} µs per step of a trial, "
        f"{row.speedup:.1f} times as fast as one after another"
    )


def make_table(rows: Sequence[Row]) -> str:
    """Return the rows as a table in Markdown; an asterisk marks the largest of a row's bounds."""
    titles = ["stack of", "µs per step of a trial", "alone", "plain script", "faster than alone", "than the script"]
    titles += ["bound: launches", "memory", "arithmetic"]
    lines = ["| " + " | ".join(titles) + " |", "|---|" + "---:|" * (len(titles) - 1)]
    for row in rows:
        bounds = (row.launches, row.memory, row.arithmetic)
        words = [f"{row.members} `{row.architecture}`", f"{row.stack:.1f}", f"{row.alone:.0f}", f"{row.script:.0f}"]
        words += [f"{row.speedup:.1f}", f"{row.script / row.stack:.1f}"]
        words += [f"{bound:.1f}{'*' if bound == max(bounds) else ''}" for bound in bounds]
        lines.append("| " + " | ".join(words) + " |")
    return "\n".join(lines) + "\n"


def draw_figure(rows: Sequence[Row], path: Path) -> bool:
    """Draw the time per step over the size of stacks, and return whether matplotlib is here to do it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    names = list(dict.fromkeys(row.architecture for row in rows))
    figure = Figure(figsize=(9, 2.4 * math.ceil(len(names) / 4) + 0.6), layout="constrained")
    axes = figure.subplots(math.ceil(len(names) / 4), min(4, len(names)), squeeze=False, sharex=True, sharey=True)
    for name, axis in zip(names, axes.flat, strict=False):
        own = [row for row in rows if row.architecture == name]
        members = [row.members for row in own]
        axis.loglog(members, [row.stack for row in own], "o-", color="C0", label="stack")
        axis.axhline(own[0].alone, color="C1", label="one after another")
        axis.axhline(own[0].script, color="C3", linestyle="--", label="plain script")
        axis.loglog(members, [row.launches for row in own], ":", color="C7", label="limit by launches")
        limit = [max(row.memory, row.arithmetic) for row in own]
        axis.loglog(members, limit, "-.", color="C7", label="limit by memory or arithmetic")
        axis.set_title(name, fontsize=9)
        axis.set_xticks(members, [str(number) for number in members])
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    figure.supxlabel("trials in the stack", fontsize=9)
    figure.supylabel("µs per step of a trial", fontsize=9)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=8)
    figure.savefig(path, dpi=110)
    return True

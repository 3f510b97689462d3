"""What our training loop costs over a bare torch loop that does the same arithmetic.

Both train the same network on the same images, record every tenth step on the whole validation set, and take turns
in one process, so that the machine's noise meets both alike. The table gives medians over the turns.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from trainables import datasets, training
from trainables.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    dataset: str = "fashion_mnist"
    data_root: Path = Path("data")
    architectures: tuple[str, ...] = ("mlp_1", "cnn_3")
    steps: int = 50
    """Optimiser steps a turn, a multiple of 10."""
    turns: int = 7
    threads: int = 1
    evaluation_batches: tuple[int, ...] = (50, 100, 250, 500, 1000, 5000)
    """Sizes to compare for the forward pass over the validation set."""
    out: Path = Path("benchmarks/training_loop.json")


def bare(trial: Trial, data: training.Tensors, steps: int) -> float:
    """Seconds a step of a loop written without any of the project's training code."""
    model = training.start(trial, data).model
    optimizer = torch.optim.Adam(model.parameters(), lr=trial.learning_rate)
    order = torch.randperm(len(data.train_images))
    losses, train_accuracies, val_accuracies = [], [], []
    started = time.perf_counter()
    for step in range(1, steps + 1):
        batch = order[(step - 1) * trial.batch_size : step * trial.batch_size]
        labels = data.train_labels[batch]
        logits = model(data.train_images[batch])
        loss = functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            model.eval()
            with torch.inference_mode():
                hits = 0
                for first in range(0, len(data.val_images), training.EVALUATION_BATCH):
                    chunk = slice(first, first + training.EVALUATION_BATCH)
                    hits += (model(data.val_images[chunk]).argmax(1) == data.val_labels[chunk]).sum()
            model.train()
            losses.append(loss.item())
            train_accuracies.append(float((logits.argmax(1) == labels).float().mean()))
            val_accuracies.append(float(hits) / len(data.val_images))
    return (time.perf_counter() - started) / steps


def ours(trial: Trial, data: training.Tensors, steps: int) -> float:
    """Seconds a step of the project's loop."""
    state = training.start(trial, data)
    started = time.perf_counter()
    for _ in training.train(trial, data, state):
        if state.step >= steps:
            break
    return (time.perf_counter() - started) / steps


def evaluation(model: torch.nn.Module, data: training.Tensors, batch: int) -> float:
    """Seconds of a forward pass over the validation set in batches of `batch`."""
    started = time.perf_counter()
    with torch.inference_mode():
        for images in data.val_images.split(batch):
            model(images)
    return time.perf_counter() - started


def main(options: Options) -> None:
    """Measure, print, save."""
    torch.set_num_threads(options.threads)
    data = training.tensors(datasets.load(options.dataset, options.data_root), "cpu")
    console = Console()
    table = Table(title=f"Milliseconds a step, validation included ({options.dataset}, {options.threads} thread)")
    for heading in ("architecture", "bare loop", "ours", "ours / bare"):
        table.add_column(heading, justify="right")
    sizes = Table(title=f"Milliseconds a pass over {len(data.val_images):,} validation images, by batch size")
    for heading in ("architecture", *map(str, options.evaluation_batches)):
        sizes.add_column(heading, justify="right")
    measured = {}
    for architecture in options.architectures:
        trial = Trial(dataset=options.dataset, architecture=architecture, learning_rate=0.01, epochs=1, seed=0)
        pairs = [(bare(trial, data, options.steps), ours(trial, data, options.steps)) for _ in range(options.turns)]
        bare_ms, ours_ms = (1000 * statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(our / plain for plain, our in pairs)
        model = training.start(trial, data).model
        passes = {
            batch: 1000 * min(evaluation(model, data, batch) for _ in range(3)) for batch in options.evaluation_batches
        }
        measured[architecture] = {"bare_ms": bare_ms, "ours_ms": ours_ms, "ratio": ratio, "evaluation_ms": passes}
        table.add_row(architecture, f"{bare_ms:.2f}", f"{ours_ms:.2f}", f"{ratio:.3f}")
        sizes.add_row(architecture, *(f"{milliseconds:.0f}" for milliseconds in passes.values()))
    console.print(table, sizes)
    machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
    options.out.write_text(json.dumps({"machine": machine, "threads": options.threads, **measured}, indent=1) + "\n")
    console.print(f"Saved to {options.out}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

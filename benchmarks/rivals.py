"""Rivals that `bench.py` compares sweeps with: a training script of a student, and a sweep as in Ray's tutorial.

They build the same networks from the project's tables, and use none of its other code. Each trains with Adam in batches
of 50. At every tenth step it records loss and accuracy of the batch, and the accuracy on all validation images. The
last line of its output is the list of seconds per step, as JSON. The start-up is not counted.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from trainables.architectures import build

BATCH_SIZE = 50
VALIDATION_BATCH_SIZE = 250  # larger batches are slower, as they leave the processor's caches; smaller ones no faster
STEPS_PER_RECORD = 10
LEARNING_RATE = 0.01

Batches = Iterator[tuple[Tensor, Tensor]]
"""Images `(n, channels, height, width)` and labels `(n,)` of one batch after another."""


def load(path: Path) -> dict[str, Tensor]:
    """Return the images and labels for training and validation that `bench.py` saved, by name."""
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def build_network(architecture: str, data: dict[str, Tensor]) -> nn.Sequential:
    """Return the network, as PyTorch initialises it."""
    channels, height, width = data["train_images"].shape[1:]
    return build(architecture, (channels, height, width))


def make_plain_batches(data: dict[str, Tensor]) -> tuple[Batches, DataLoader[Any]]:
    """Return endless training batches, and a pass over the validation images, from PyTorch's `DataLoader`."""
    train = DataLoader(TensorDataset(data["train_images"], data["train_labels"]), batch_size=BATCH_SIZE, shuffle=True)
    validation = DataLoader(TensorDataset(data["val_images"], data["val_labels"]), batch_size=VALIDATION_BATCH_SIZE)
    return (batch for _ in iter(int, 1) for batch in train), validation


def make_lean_batches(data: dict[str, Tensor]) -> tuple[Batches, list[tuple[Tensor, Tensor]]]:
    """Return endless training batches, and a pass over the validation images, cut from the tensors."""

    def train() -> Batches:
        while True:
            for indices in torch.randperm(len(data["train_images"])).split(BATCH_SIZE):
                yield data["train_images"][indices], data["train_labels"][indices]

    validation = zip(
        data["val_images"].split(VALIDATION_BATCH_SIZE), data["val_labels"].split(VALIDATION_BATCH_SIZE), strict=True
    )
    return train(), list(validation)


def take_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Train one step on a batch; return its loss and logits."""
    logits = model(images)
    loss = functional.cross_entropy(logits, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss, logits


def time_script(architecture: str, data: dict[str, Tensor], steps: int, turns: int, *, lean: bool) -> list[float]:
    """Train as a plain script does, on PyTorch's default number of threads, with records.

    Args:
        architecture: The architecture to train.
        data: Images and labels by name.
        steps: Steps of a turn.
        turns: Number of turns; one more before them does not count.
        lean: Cut batches from tensors, instead of using PyTorch's `DataLoader`.

    Returns:
        The seconds per step of each turn.
    """
    model = build_network(architecture, data)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    batches, validation = make_lean_batches(data) if lean else make_plain_batches(data)
    losses, train_accuracies, val_accuracies = [], [], []
    ends = [time.perf_counter()]
    for step, (images, labels) in enumerate(batches, start=1):
        loss, logits = take_step(model, optimizer, images, labels)
        if step % STEPS_PER_RECORD == 0:
            losses.append(loss.item())
            train_accuracies.append((logits.argmax(1) == labels).float().mean().item())
            val_accuracies.append(evaluate(model, validation))
        if step % steps == 0:
            ends.append(time.perf_counter())
            if len(ends) == turns + 2:
                break
    return [(end - start) / steps for start, end in pairwise(ends[1:])]


def evaluate(model: nn.Module, batches: Any) -> float:
    """Return the fraction of the images that the model classifies correctly."""
    model.eval()
    hits = images_seen = 0
    with torch.no_grad():
        for images, labels in batches:
            hits += (model(images).argmax(1) == labels).sum().item()
            images_seen += len(labels)
    model.train()
    return hits / images_seen


def time_tutorial(architecture: str, data: dict[str, Tensor], steps: int, folder: Path) -> list[float]:
    """Run a sweep as in Ray's PyTorch tutorial: one trial per CPU, each with its own seed, reported to MLflow.

    The time is counted from the moment when every trial has reported once, until the first trial sends its last report,
    so that all trials train all the time; the steps of all trials in that time count. Unlike the tutorial's sweep, this
    one writes no checkpoints.

    Returns:
        The seconds per step, as a list with one value.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reads these variables when it is imported
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    def train(config: dict[str, Any], data: dict[str, Tensor]) -> None:
        torch.manual_seed(config["seed"])
        model = build_network(architecture, data)
        optimizer = torch.optim.Adam(model.parameters(), lr=config["lr"])
        batches, validation = make_plain_batches(data)
        for step, (images, labels) in enumerate(batches, start=1):
            loss, logits = take_step(model, optimizer, images, labels)
            if step % STEPS_PER_RECORD == 0:
                accuracy = (logits.argmax(1) == labels).float().mean().item()
                validated = evaluate(model, validation)
                seen = {"train_loss": loss.item(), "train_accuracy": accuracy, "val_accuracy": validated}
                tune.report({**seen, "at": time.time()})
            if step == steps:
                break

    folder = folder.absolute()
    at_once = os.cpu_count() or 1
    ray.init("local", num_cpus=at_once, include_dashboard=False, log_to_driver=False, _temp_dir=str(folder / "ray"))
    try:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(train, data=data), {"cpu": 1}),
            param_space={"seed": tune.grid_search(list(range(at_once))), "lr": LEARNING_RATE},
            run_config=tune.RunConfig(
                storage_path=str(folder / "results"),
                callbacks=[MLflowLoggerCallback(f"sqlite:///{folder}/mlflow.db", experiment_name="tutorial")],
                verbose=0,
            ),
        )
        results = tuner.fit()
        frames = [results[trial].metrics_dataframe for trial in range(at_once)]
    finally:
        ray.shutdown()
    reports = [frame["at"].to_numpy() for frame in frames if frame is not None]
    start, end = max(times[0] for times in reports), min(times[-1] for times in reports)
    within = sum(int(((times > start) & (times <= end)).sum()) for times in reports)
    return [(end - start) / (within * STEPS_PER_RECORD)]


def main(
    kind: Literal["plain", "lean", "tutorial"], architecture: str, data: Path, folder: Path, steps: int, turns: int
) -> None:
    """Train and print the seconds per step of every turn.

    Args:
        kind: The rival: a plain script, a lean script, or the tutorial's sweep.
        architecture: The architecture to train.
        data: File with images and labels, written by `bench.py`.
        folder: Folder for the files of the tutorial's sweep.
        steps: Steps of a turn, or of each trial of the tutorial's sweep.
        turns: Number of turns of a script.
    """
    arrays = load(data)
    if kind == "tutorial":
        seconds = time_tutorial(architecture, arrays, steps, folder)
    else:
        seconds = time_script(architecture, arrays, steps, turns, lean=kind == "lean")
    print(json.dumps(seconds))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)

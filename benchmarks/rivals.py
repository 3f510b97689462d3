"""What `bench.py` compares sweeps with: training as a student writes it, and as a reader of Ray's tutorial does.

They build the same networks from the project's tables, and use none of its other code. Each trains with Adam in
batches of 50, and every tenth step notes loss and accuracy of the batch and the accuracy on all validation images.
What they measured is the last line that they print, as JSON. None has its start-up counted.
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

BATCH = 50
VALIDATION_BATCH = 250  # as good as any smaller one for the processor's caches, and better than larger ones
RECORD_EVERY = 10
LEARNING_RATE = 0.01

Batches = Iterator[tuple[Tensor, Tensor]]


def load(path: Path) -> dict[str, Tensor]:
    """The arrays that `bench.py` saved: images and labels for training and validation."""
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def network(architecture: str, data: dict[str, Tensor]) -> nn.Sequential:
    """The network, as PyTorch initialises it."""
    channels, height, width = data["train_images"].shape[1:]
    return build(architecture, (channels, height, width))


def plain_batches(data: dict[str, Tensor]) -> tuple[Batches, DataLoader[Any]]:
    """Training batches without end, and a pass over the validation images, from PyTorch's `DataLoader`."""
    train = DataLoader(TensorDataset(data["train_images"], data["train_labels"]), batch_size=BATCH, shuffle=True)
    validation = DataLoader(TensorDataset(data["val_images"], data["val_labels"]), batch_size=VALIDATION_BATCH)
    return (batch for _ in iter(int, 1) for batch in train), validation


def lean_batches(data: dict[str, Tensor]) -> tuple[Batches, list[tuple[Tensor, Tensor]]]:
    """The same, cut from the tensors."""

    def train() -> Batches:
        while True:
            for indices in torch.randperm(len(data["train_images"])).split(BATCH):
                yield data["train_images"][indices], data["train_labels"][indices]

    validation = zip(
        data["val_images"].split(VALIDATION_BATCH), data["val_labels"].split(VALIDATION_BATCH), strict=True
    )
    return train(), list(validation)


def take_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """One step of training on a batch; its loss and logits."""
    logits = model(images)
    loss = functional.cross_entropy(logits, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss, logits


def script(architecture: str, data: dict[str, Tensor], steps: int, turns: int, *, lean: bool) -> list[float]:
    """Seconds a step in each of some turns of `steps` steps, records included, on as many threads as PyTorch takes.

    One turn before them is not counted.
    """
    model = network(architecture, data)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    batches, validation = lean_batches(data) if lean else plain_batches(data)
    losses, train_accuracies, val_accuracies = [], [], []
    ends = [time.perf_counter()]
    for step, (images, labels) in enumerate(batches, start=1):
        loss, logits = take_step(model, optimizer, images, labels)
        if step % RECORD_EVERY == 0:
            losses.append(loss.item())
            train_accuracies.append((logits.argmax(1) == labels).float().mean().item())
            val_accuracies.append(evaluate(model, validation))
        if step % steps == 0:
            ends.append(time.perf_counter())
            if len(ends) == turns + 2:
                break
    return [(end - start) / steps for start, end in pairwise(ends[1:])]


def evaluate(model: nn.Module, batches: Any) -> float:
    """The part of the images that the model gets right."""
    model.eval()
    hits = images_seen = 0
    with torch.no_grad():
        for images, labels in batches:
            hits += (model(images).argmax(1) == labels).sum().item()
            images_seen += len(labels)
    model.train()
    return hits / images_seen


def tutorial(architecture: str, data: dict[str, Tensor], steps: int, folder: Path) -> list[float]:
    """Seconds a step of a sweep written as in Ray's PyTorch tutorial: a trial a seed and CPU, reported to MLflow.

    Counted is from when the last trial reports first until the first reports last, so that none waits for others to
    start or end, and the steps of all in that time. It writes no checkpoints, which the tutorial does.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    def train(config: dict[str, Any], data: dict[str, Tensor]) -> None:
        torch.manual_seed(config["seed"])
        model = network(architecture, data)
        optimizer = torch.optim.Adam(model.parameters(), lr=config["lr"])
        batches, validation = plain_batches(data)
        for step, (images, labels) in enumerate(batches, start=1):
            loss, logits = take_step(model, optimizer, images, labels)
            if step % RECORD_EVERY == 0:
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
    return [(end - start) / (within * RECORD_EVERY)]


def main(
    kind: Literal["plain", "lean", "tutorial"], architecture: str, data: Path, folder: Path, steps: int, turns: int
) -> None:
    """Train and print the seconds a step of every turn."""
    arrays = load(data)
    if kind == "tutorial":
        seconds = tutorial(architecture, arrays, steps, folder)
    else:
        seconds = script(architecture, arrays, steps, turns, lean=kind == "lean")
    print(json.dumps(seconds))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)

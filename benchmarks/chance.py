"""Measures how often the rule of sweeps/stuck.py errs: on networks that learnt nothing, and on such that learnt little.

For each data set and each accuracy that a trial can be judged by, the numbers of right images are drawn: of a network
that names one class for all images, of one that names classes at random, and of one that names some points more than
the share of the largest class right. With `--untrained`, networks are built that have not been trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from numpy.typing import NDArray
from scipy import stats

from sweeps.experiment import MAIN_ARCHITECTURES, get_default_data_root
from sweeps.stuck import BATCHES, LEVEL, SOURCES, count_part, find_most_by_chance
from trainables.trial import IMAGE_DATASETS, Trial

POINTS = (1, 2, 3, 5)  # above the share of the largest class
LEVELS = (0.05, 0.01, 0.001)
RECORDS_EVERY = 10  # steps
QUANTITIES = {"val_accuracy": ("val_accuracy",), "train_set_accuracy": ("train_set_accuracy",), BATCHES: (BATCHES,)}


class Case(NamedTuple):
    """The images by which a trial is judged.

    Attributes:
        name: Data set and accuracy.
        counts: Images of each class in the part of the data that they are from.
        images: Number of images; less than the sum of `counts` if they are the batches of an epoch.
    """

    name: str
    counts: Sequence[int]
    images: int

    @property
    def share(self) -> float:
        """Share of the largest class."""
        return max(self.counts) / sum(self.counts)

    @property
    def most(self) -> int:
        """Largest number of right images that is not above chance."""
        return find_most_by_chance(self.images, self.share)


def list_cases() -> Iterator[Case]:
    """Yield every data set with every accuracy, as the experiments record it, with batches of 50 images."""
    for dataset in IMAGE_DATASETS:
        for source in SOURCES:
            for task in (None, "even_odd") if source == "train_set_accuracy" and dataset != "cifar10" else (None,):
                trial = Trial(
                    dataset=dataset,
                    task=task,
                    pipeline="unit" if source == "train_set_accuracy" else None,
                    architecture="mlp_1",
                    learning_rate=0.1,
                    epochs=5,
                    seed=0,
                    quantities=QUANTITIES.get(source, ("train_loss",)),
                )
                counts = count_part(trial, source)
                images = count_last_epoch(trial, sum(counts)) if source == BATCHES else sum(counts)
                yield Case(f"{dataset}{f' {task}' if task else ''}, {source}", counts, images)


def count_last_epoch(trial: Trial, train_images: int) -> int:
    """Return the number of images in the recorded batches of the last epoch."""
    per_epoch = trial.steps_per_epoch(train_images)
    steps = np.arange(RECORDS_EVERY, trial.epochs * per_epoch + 1, RECORDS_EVERY)
    last = steps[steps > steps[-1] - per_epoch]
    rest = train_images - (per_epoch - 1) * trial.batch_size
    return int(np.where(last % per_epoch == 0, rest, trial.batch_size).sum())


def draw_one_class(case: Case, draws: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Draw the numbers of right images of networks that name one class, each as often, for all images."""
    classes = np.array(case.counts)[generator.integers(len(case.counts), size=draws)]
    return generator.hypergeometric(classes, sum(case.counts) - classes, case.images)


def measure_case(case: Case, draws: int, generator: np.random.Generator) -> list[str]:
    """Return the cells of a case's row."""
    most = case.most
    one_class = np.mean(draw_one_class(case, draws, generator) > most)
    at_random = np.mean(generator.binomial(case.images, 1 / len(case.counts), draws) > most)
    weak = [np.mean(generator.binomial(case.images, case.share + points / 100, draws) <= most) for points in POINTS]
    return [
        case.name,
        f"{case.images:,}",
        f"{100 * case.share:.2f}",
        f"{100 * (most + 1) / case.images:.2f}",
        *(f"{100 * rate:.2f}" for rate in (one_class, at_random, *weak)),
    ]


def find_recognised(images: int, share: float, level: float) -> float:
    """Return the points above the largest class's share from which on 99 % of networks count as learnt."""
    most = stats.binom.isf(level, images, share)
    points = np.arange(0, 50, 0.01)
    return float(points[np.argmax(stats.binom.cdf(most, images, share + points / 100) <= 0.01)])


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    for row in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(row)} |")


def measure_untrained(dataset: str, data_root: Path, seeds: int) -> Iterator[list[str]]:
    """Yield the rows of a data set: how many untrained networks count as learnt.

    Those of the five architectures are judged by the validation images, as in parts 3 and 5, and logistic regression by
    the training images, as in the MNIST sweep.
    """
    import torch

    from trainables.architectures import build
    from trainables.datasets import load_dataset
    from trainables.training import find_correct

    grey, unit = load_dataset(dataset, data_root), load_dataset(dataset, data_root, "unit")
    cases = [
        (MAIN_ARCHITECTURES, "relu", grey.val_images, grey.val_labels),
        (MAIN_ARCHITECTURES, "sigmoid", grey.val_images, grey.val_labels),
        (("logistic",), None, unit.train_images, unit.train_labels),
    ]
    for architectures, activation, images, labels in cases:
        counts = np.bincount(labels)
        most = find_most_by_chance(len(labels), float(counts.max() / len(labels)))
        correct = []
        for architecture in architectures:
            for seed in range(seeds):
                torch.manual_seed(seed)
                model = build(architecture, grey.input_shape, classes=10, activation=activation, pooling="max")
                correct.append(int(find_correct(model, torch.from_numpy(images), torch.from_numpy(labels)).sum()))
        learnt, highest = 100 * np.mean(np.array(correct) > most), 100 * max(correct) / len(labels)
        name = f"{dataset}, {activation or 'logistic'}"
        yield [name, f"{len(labels):,}", str(len(correct)), f"{learnt:.1f}", f"{highest:.1f}"]


def main(
    draws: int = 100_000, untrained: int = 0, untrained_on: tuple[str, ...] = ("digits",), data_root: Path | None = None
) -> None:
    """Draw, and print the tables.

    Args:
        draws: Number of networks that are drawn for each number.
        untrained: Number of seeds of untrained networks of each of the five architectures.
        untrained_on: Data sets that these are judged on.
        data_root: Folder of the data sets.
    """
    generator = np.random.default_rng(0)
    cases = list(list_cases())
    print(f"\nIn % of {draws:,} draws, level {LEVEL}:\n")
    weak = [f"stuck at +{points}" for points in POINTS]
    head = [
        "judged by",
        "images",
        "largest class (%)",
        "learnt from (%)",
        "learnt: one class",
        "learnt: at random",
        *weak,
    ]
    print_table(head, [measure_case(case, draws, generator) for case in cases])
    print("\nPoints above the largest class's share from which on 99 % of networks count as learnt, by level:\n")
    sizes = [
        next(case for case in cases if case.name == name)
        for name in ("digits, val_accuracy", "cifar10, val_accuracy", "mnist, train_set_accuracy")
    ]
    rows = [
        [f"{case.images:,}", *(f"{find_recognised(case.images, case.share, level):.1f}" for level in LEVELS)]
        for case in sizes
    ]
    print_table(["images", *map(str, LEVELS)], rows)
    if untrained:
        print("\nUntrained networks, in % of their number:\n")
        root = data_root or get_default_data_root()
        found = [row for dataset in untrained_on for row in measure_untrained(dataset, root, untrained)]
        print_table(["data set, networks", "images", "networks", "count as learnt", "highest accuracy (%)"], found)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)

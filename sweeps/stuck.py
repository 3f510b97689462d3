"""The rule by which a trial is stuck: when training ends, it names images no better than chance does. Pure.

A trial that has finished without diverging is stuck if it names no more images right than always naming the largest
class of those images would, but for luck: the share p₀ of that class is what a one-sided binomial test compares with.
With k of n images right, a trial has learnt if P(X ≥ k) ≤ `LEVEL` for X ~ Binomial(n, p₀), and is stuck otherwise.

The images are those of the first accuracy in `SOURCES` that the trial records. A network whose units have died names
one class for all images, so its accuracy is p₀ or less on images that are all counted: the test never takes it for one
that has learnt. It takes one that names classes at random for one that has learnt in `LEVEL` of all cases at most, and
on few images it cannot tell a weak learner from chance; docs/statistics.md has both rates, measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from trainables.class_counts import count_images
from trainables.result import Result
from trainables.trial import XOR, Trial

LEVEL = 0.01  # of the test; a smaller one takes more weak learners for stuck, most of all on the 140 of `digits`
BATCHES = "train_accuracy"  # recorded on single batches, and judged over all records of the last epoch
TEST = "test_accuracy"  # every finished trial has it

# Accuracy → part of the data set that it is measured on. A trial is judged by the first of these that it records.
SOURCES = {"val_accuracy": "val", "train_set_accuracy": "train", BATCHES: "train", TEST: "test"}


def choose_source(trial: Trial) -> str | None:
    """Return the name of the accuracy by which a trial is judged, or None for "xor", which has none."""
    if trial.dataset == XOR:
        return None
    return next((name for name in SOURCES if name in trial.quantities), TEST)


def is_stuck(trial: Trial, accuracies: Mapping[str, float]) -> bool:
    """Return whether a trial that has finished without diverging is stuck, without its curves.

    Args:
        trial: The trial, which is not judged by `BATCHES`; no experiment has one that is.
        accuracies: Accuracies at the end in % by name, that of `choose_source` among them.
    """
    source = choose_source(trial)
    if source is None:
        return False
    counts = count_part(trial, source)
    return is_by_chance(accuracies[source] / 100 * sum(counts), sum(counts), counts)


def is_stuck_result(trial: Trial, result: Result) -> bool:
    """Return whether a trial is stuck, from its result; a trial that diverged is not."""
    source = choose_source(trial)
    if source is None or result.diverged:
        return False
    if source == TEST:
        return is_stuck(trial, {TEST: result.test_accuracy})
    curve = result.curves[source]
    if source != BATCHES:
        return is_stuck(trial, {source: float(curve[-1])})
    counts = count_part(trial, source)
    sizes = list_batch_sizes(trial, result.steps, sum(counts))
    is_last_epoch = result.steps > result.steps[-1] - trial.steps_per_epoch(sum(counts))
    correct = float((curve / 100 * sizes)[is_last_epoch].sum())
    return is_by_chance(correct, int(sizes[is_last_epoch].sum()), counts)


def count_part(trial: Trial, source: str) -> list[int]:
    """Return the number of images of each class in the part of the trial's data that an accuracy is measured on."""
    return count_images(trial.dataset, trial.pipeline, trial.task, SOURCES[source])


def list_batch_sizes(trial: Trial, steps: NDArray[np.int64], train_images: int) -> NDArray[np.int64]:
    """Return the number of images in the batches of some steps, `(records,)`; the last of an epoch has the rest."""
    steps_per_epoch = trial.steps_per_epoch(train_images)
    rest = train_images - (steps_per_epoch - 1) * trial.batch_size
    return np.where(steps % steps_per_epoch == 0, rest, trial.batch_size)


def is_by_chance(correct: float, images: int, counts: Sequence[int]) -> bool:
    """Return whether a number of right images is not above chance.

    Args:
        correct: Number of right images, which an accuracy in % gives up to rounding.
        images: Number of images.
        counts: Images of each class in the part of the data that they are from.
    """
    return round(correct) <= find_most_by_chance(images, max(counts) / sum(counts))


@cache
def find_most_by_chance(images: int, share: float) -> int:
    """Return the largest number of right images that the test takes for chance.

    Args:
        images: Number of images.
        share: Share of the largest class.
    """
    from scipy import stats  # imported here because it takes half a second, and a plan does not need it

    return int(stats.binom.isf(LEVEL, images, share))  # the least k with P(X > k) ≤ LEVEL

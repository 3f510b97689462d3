"""Confirmation for `search.py`: settings on fresh seeds, trained with one routine whatever method has found them."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench import CORES, say
from sweeps.confirmation import FIRST_SEED
from sweeps.rounds import compute_score
from sweeps.search import Search
from trainables import datasets, training
from trainables.process import prepare_process
from trainables.trial import Trial


@cache
def load_tensors(dataset: str, data_root: Path) -> training.Tensors:
    """Return a data set on the CPU, once for all trials of a process."""
    return training.to_tensors(datasets.load_dataset(dataset, data_root), "cpu")


def train_alone(trial: Trial, data_root: Path) -> tuple[float, float]:
    """Train a trial in this process, and return its score and its test accuracy in %."""
    data = load_tensors(trial.dataset, data_root)
    state = training.start(trial, data)
    for _ in training.train(trial, data, state):
        pass
    result = training.finish(trial, data, state)
    return compute_score(trial, result), result.test_accuracy


def confirm(
    search: Search, settings: Mapping[str, Mapping[str, Any]], seeds: int, data_root: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """Train settings on fresh seeds, and return their mean scores and their mean test accuracies in %, by their key.

    The mean test accuracy is NaN where a seed diverged.
    """
    fresh = range(FIRST_SEED, FIRST_SEED + seeds)
    by_key = {
        key: [Trial(**search.make_settings(params, search.epochs, seed)) for seed in fresh]
        for key, params in settings.items()
    }
    trials = list(dict.fromkeys(trial for family in by_key.values() for trial in family))
    say(f"confirming {len(by_key)} settings with {len(trials)} trials …")
    context = get_context("spawn")
    with ProcessPoolExecutor(CORES, context, initializer=prepare_process, initargs=(1,)) as pool:
        found = pool.map(partial(train_alone, data_root=data_root), trials, chunksize=4)
        by_trial = dict(zip(trials, found, strict=True))
    means = {key: np.mean([by_trial[trial] for trial in family], axis=0) for key, family in by_key.items()}
    scores, tests = ({key: float(mean[column]) for key, mean in means.items()} for column in (0, 1))
    return scores, tests

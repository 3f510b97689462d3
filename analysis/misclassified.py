"""Test images that a trained network gets wrong, by the class it predicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from analysis import figures
from analysis.results import SweepResults
from trainables.datasets import load_dataset


def draw_misclassified(loaded: SweepResults, trial_id: str, data_root: Path, title: str) -> Figure:
    """Ten misclassified test images for each predicted class, fewer where there are fewer, in the test set's order."""
    import torch

    from trainables.training import to_tensors

    trial = loaded.trial(trial_id)
    data = load_dataset(trial.dataset, data_root, trial.pipeline)
    test = to_tensors(data, "cpu", trial.task)
    model = loaded.model(trial_id, data.input_shape, test.classes)
    with torch.inference_mode():
        predicted = torch.cat([model(x).argmax(1) for x in test.test_images.split(1000)]).numpy()
    actual = test.test_labels.numpy()
    names = ("even", "odd") if trial.task == "even_odd" else tuple(map(str, range(test.classes)))
    wrong = {
        name: np.flatnonzero((predicted == label) & (actual != label))[: figures.GALLERY_COLUMNS]
        for label, name in enumerate(names)
    }
    return figures.draw_gallery(
        {f"{name} ": data.test_images[index] for name, index in wrong.items()},
        {f"{name} ": [f"is {names[actual[i]]}" for i in index] for name, index in wrong.items()},
        f"{title}: test images it takes for the class at the left ({(predicted != actual).sum():,} of "
        f"{len(actual):,} are wrong)",
    )

"""Gallery of the test images that a trained network gets wrong, by the class that it predicts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analysis import style, tiles
from analysis.results import SweepResults
from trainables.datasets import load_dataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def describe_empty(wrong: Mapping[str, NDArray[np.int64]]) -> str:
    """Return words that name the classes that no image is wrongly taken for, or "" if there are none."""
    empty = [name for name, index in wrong.items() if len(index) == 0]
    return f", none for {style.join_names(empty)}" if empty else ""


def draw_misclassified(results: SweepResults, trial_id: str, data_root: Path, title: str) -> tuple[Figure, str]:
    """Draw the first misclassified test images of each predicted class, ten at most, in the test set's order.

    Args:
        results: Results of the sweep that the trial belongs to.
        trial_id: Id of the trial whose network is shown.
        data_root: Folder of the data sets.
        title: Name of the network, for the beginning of the figure's title.

    Returns:
        The figure, and what it shows in words.
    """
    import torch

    from trainables.training import to_tensors

    trial = results.find_trial(trial_id)
    data = load_dataset(trial.dataset, data_root, trial.pipeline)
    test = to_tensors(data, "cpu", trial.task)
    model = results.load_model(trial_id, data.input_shape, test.classes)
    with torch.inference_mode():
        predicted = torch.cat([model(x).argmax(1) for x in test.test_images.split(1000)]).numpy()
    actual = test.test_labels.numpy()
    names = ("even", "odd") if trial.task == "even_odd" else tuple(map(str, range(test.classes)))
    wrong = {
        name: np.flatnonzero((predicted == label) & (actual != label))[: tiles.GALLERY_COLUMNS]
        for label, name in enumerate(names)
    }
    counts = f"{(predicted != actual).sum():,} of {len(actual):,} are wrong"
    figure = tiles.draw_gallery(
        {name: data.test_images[index] for name, index in wrong.items()},
        {name: [f"is {names[actual[i]]}" for i in index] for name, index in wrong.items()},
        f"{title}: test images that it takes for the class at the left{describe_empty(wrong)} ({counts})",
    )
    numbers = ", ".join(f"{len(index)} for {name}" for name, index in wrong.items())
    return figure, (
        f"Test images that the network of {title} names wrong, in a row for each class that it takes them for, with "
        f"the right class above each; {counts}. Shown are the first ones: {numbers}."
    )

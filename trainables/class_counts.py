"""Numbers of images in each class: constants, as the content of each data set is fixed.

Quick to import: a driver and an analysis count the images of a part without loading a data set.
"""

from __future__ import annotations

from trainables.datasets import VALIDATION_FRACTION

# Images with the labels 0 to 9 in the files' training part and in their test part. digits and Fashion-MNIST: counted.
# MNIST and CIFAR-10: as their authors publish them; `checksums.py` and torchvision tell other files apart.
CLASS_COUNTS: dict[str, dict[str, tuple[int, ...]]] = {
    "cifar10": {"train": (5000,) * 10, "test": (1000,) * 10},
    "fashion_mnist": {"train": (6000,) * 10, "test": (1000,) * 10},
    "mnist": {
        "train": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        "test": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    },
    "digits": {
        "train": (142, 146, 142, 146, 145, 145, 145, 143, 139, 144),
        "test": (36, 36, 35, 37, 36, 37, 36, 36, 35, 36),
    },
}


def count_images(dataset: str, pipeline: str | None, task: str | None, part: str) -> list[int]:
    """Return the number of images of each class in a part of a data set, as a trial sees it.

    Args:
        dataset: One of `IMAGE_DATASETS`.
        pipeline: A value of `Trial.pipeline`. None holds out validation images, the same number from every class.
        task: A value of `Trial.task`, which decides the classes.
        part: "train" (without the validation images), "val" or "test".
    """
    counts = CLASS_COUNTS[dataset]["test" if part == "test" else "train"]
    held_out = round(VALIDATION_FRACTION * sum(counts) / len(counts)) if pipeline is None else 0
    if part == "val":
        counts = (held_out,) * len(counts)
    elif part == "train":
        counts = tuple(count - held_out for count in counts)
    return [sum(counts[0::2]), sum(counts[1::2])] if task == "even_odd" else [*counts]

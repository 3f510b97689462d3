"""The arrays that trials train on: raw images after a preprocessing pipeline and a fixed stratified split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainables.checksums import describe_difference, is_other_data
from trainables.errors import BadInputError, check_choice
from trainables.sources import SOURCES, SPLIT_SEED, RawImages, check_raw
from trainables.trial import IMAGE_DATASETS

VALIDATION_FRACTION = 0.1  # of the training images, if the pipeline holds any out

# Means and standard deviations of each channel's training pixels, scaled to [0, 1]. CIFAR-10: as given in the course's
# reports. MNIST and Fashion-MNIST: the values in common use (MNIST: from PyTorch's example; Fashion-MNIST: recomputed
# from its 60,000 images). digits: computed from its images.
NORMALISATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "digits": ((0.3053,), (0.3760,)),
}

# Weights of red, green and blue: ITU-R 601 luma, rounded as in torchvision's Grayscale
LUMA_WEIGHTS = (0.2989, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The arrays of a data set: images float32 `(n, channels, height, width)`, labels int64 `(n,)` counted from 0.

    With a pipeline that holds no images out, the validation arrays are empty.

    Attributes:
        checksum: 16 hexadecimal digits that identify the raw images and labels.
    """

    name: str
    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    val_images: NDArray[np.float32]
    val_labels: NDArray[np.int64]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int64]
    classes: int
    checksum: str

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one image: `(channels, height, width)`."""
        _, channels, height, width = self.train_images.shape
        return channels, height, width


def load_dataset(name: str, data_root: Path, pipeline: str | None = None) -> Dataset:
    """Load a data set and apply a trial's pipeline to it; files that are missing are downloaded.

    Args:
        name: One of `IMAGE_DATASETS`.
        data_root: Folder of the files; `digits` needs none.
        pipeline: A value of `Trial.pipeline`. None scales the pixels to [0, 1], normalises each channel, converts to
            one grey channel, and holds out the validation images. The others hold no images out.

    Raises:
        BadInputError: The name is unknown, files are damaged, they are missing and cannot be downloaded, or the data
            are not those that recorded trials have trained on.
    """
    check_choice("dataset", name, IMAGE_DATASETS)
    raw = SOURCES[name](data_root)
    check_raw(name, raw)
    checksum = compute_checksum(raw)
    check_checksum(name, checksum)
    everything = np.arange(len(raw.train_labels))
    train, val = split_stratified(raw.train_labels) if pipeline is None else (everything, everything[:0])
    transform = PIPELINES[pipeline]
    images = transform(raw.train_images, raw.white, name)
    return Dataset(
        name=name,
        train_images=images[train] if len(val) else images,
        train_labels=raw.train_labels[train],
        val_images=images[val],
        val_labels=raw.train_labels[val],
        test_images=transform(raw.test_images, raw.white, name),
        test_labels=raw.test_labels,
        classes=int(raw.train_labels.max()) + 1,
        checksum=checksum,
    )


def to_grey(images: NDArray[np.uint8], white: int, name: str) -> NDArray[np.float32]:
    """Scale to [0, 1], normalise each channel, and convert to grey.

    `(n, channels, height, width)` → `(n, 1, height, width)`.

    Args:
        white: The value of a white pixel.
        name: The data set, whose means and standard deviations are in `NORMALISATION`.
    """
    mean, std = NORMALISATION[name]
    weights = LUMA_WEIGHTS if len(mean) == 3 else (1.0,)
    result = np.zeros((len(images), 1, *images.shape[2:]), np.float32)
    for channel, (weight, channel_mean, channel_std) in enumerate(zip(weights, mean, std, strict=True)):
        scaled = images[:, channel].astype(np.float32) / np.float32(white)  # (n, height, width)
        result[:, 0] += np.float32(weight) * ((scaled - np.float32(channel_mean)) / np.float32(channel_std))
    return result


def to_unit_range(images: NDArray[np.uint8], white: int, name: str) -> NDArray[np.float32]:
    """Scale to [0, 1]; the shape stays the same."""
    return images.astype(np.float32) / np.float32(white)


def to_colour(images: NDArray[np.uint8], white: int, name: str) -> NDArray[np.float32]:
    """Scale to [-1, 1], which is to normalise with mean 0.5 and standard deviation 0.5, in three channels.

    `(n, 1 or 3, height, width)` → `(n, 3, height, width)`: a single channel is repeated.
    """
    scaled = (to_unit_range(images, white, name) - np.float32(0.5)) / np.float32(0.5)
    return scaled if images.shape[1] == 3 else scaled.repeat(3, axis=1)


def split_stratified(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of the training images and those of the validation images, both in ascending order.

    The validation set holds a tenth of the images, the same number from every class. They are drawn at random with
    `SPLIT_SEED`, so that the validation set is the same for every trial.
    """
    classes = int(labels.max()) + 1
    per_class = round(VALIDATION_FRACTION * len(labels) / classes)
    generator = np.random.default_rng(SPLIT_SEED)
    drawn = [generator.permutation(np.flatnonzero(labels == label))[:per_class] for label in range(classes)]
    val = np.sort(np.concatenate(drawn))
    return np.setdiff1d(np.arange(len(labels)), val), val


def compute_checksum(raw: RawImages) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of all raw images and labels."""
    digest = hashlib.sha256()
    for array in (raw.train_images, raw.train_labels, raw.test_images, raw.test_labels):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def check_checksum(name: str, checksum: str) -> None:
    """Check that what was read is the data set that recorded trials have trained on.

    Raises:
        BadInputError: It is not. As files were compared with their known content, a library has read something else:
            `digits` comes with scikit-learn, which may change it.
    """
    if is_other_data(name, checksum):
        raise BadInputError(
            f"{name} is not what it was for the trials that are recorded ({describe_difference(name, checksum)}): "
            "install the versions of scikit-learn and NumPy that constraints.txt names"
        )


# By `Trial.pipeline`: functions of raw images, the value of a white pixel, and the data set's name
PIPELINES: dict[str | None, Callable[[NDArray[np.uint8], int, str], NDArray[np.float32]]] = {
    None: to_grey,
    "unit": to_unit_range,
    "colour": to_colour,
}

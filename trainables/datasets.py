"""From raw images to the arrays that trials train on: sources, pipeline, and the fixed stratified split."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import socket
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainables.trial import IMAGE_DATASETS, BadInputError, check_choice

SPLIT_SEED = 0
VALIDATION_FRACTION = 0.1
FEWEST_OF_A_CLASS = 10  # of them one is held out
DOWNLOAD_TIMEOUT_SECONDS = 30.0
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist

# Mean and standard deviation of each channel's training pixels, scaled to [0, 1].
# CIFAR-10: as the course's reports have them. MNIST and Fashion-MNIST: the values in common use
# (MNIST: torch's own example; Fashion-MNIST: recomputed from its 60,000 images). digits: recomputed from the images.
NORMALISATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "digits": ((0.3053,), (0.3760,)),
}
# ITU-R 601 luma, rounded as torchvision's Grayscale rounds it.
LUMA = (0.2989, 0.587, 0.114)

# `(channels, height, width)` of an image.
SHAPES = {"cifar10": (3, 32, 32), "mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28), "digits": (1, 32, 32)}
CLASSES = 10

# SHA-256 of the decompressed training labels of Fashion-MNIST, whose files bear the same names as MNIST's.
FASHION_MNIST_LABELS = "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7"

IDX_FILES = tuple(
    f"{part}-{content}" for part in ("train", "t10k") for content in ("images-idx3-ubyte", "labels-idx1-ubyte")
)


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A data set as its source has it: images uint8 `(n, channels, height, width)` up to `white`, labels `(n,)`."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    white: int = 255


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What trials read: images float32 `(n, channels, height, width)`, labels int64 `(n,)` from 0 on.

    A pipeline that holds no images out leaves the validation arrays empty.
    """

    name: str
    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    val_images: NDArray[np.float32]
    val_labels: NDArray[np.int64]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int64]
    classes: int
    checksum: str  # of the raw images and labels

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """`(channels, height, width)` of one image."""
        _, channels, height, width = self.train_images.shape
        return channels, height, width


def load(name: str, data_root: Path, pipeline: str | None = None) -> Dataset:
    """Load a data set, downloading it once if need be, and put it through a trial's pipeline.

    Args:
        name: One of `IMAGE_DATASETS`.
        data_root: Folder of the files; `digits` needs none.
        pipeline: As `Trial.pipeline`. None: scale to [0, 1], normalise each channel, convert to one grey channel, hold
            out the validation images.

    Raises:
        BadInputError: The name is unknown, or the files are neither there nor to be had, or they are damaged.
    """
    check_choice("dataset", name, IMAGE_DATASETS)
    raw = SOURCES[name](data_root)
    check_raw(name, raw)
    everything = np.arange(len(raw.train_labels))
    train, val = split(raw.train_labels) if pipeline is None else (everything, everything[:0])
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
        checksum=checksum(raw),
    )


def grey(images: NDArray[np.uint8], white: int, name: str) -> NDArray[np.float32]:
    """Scale, normalise and make grey: `(n, channels, height, width)` → `(n, 1, height, width)`."""
    mean, std = NORMALISATION[name]
    weights = LUMA if len(mean) == 3 else (1.0,)
    result = np.zeros((len(images), 1, *images.shape[2:]), np.float32)
    for channel, (weight, channel_mean, channel_std) in enumerate(zip(weights, mean, std, strict=True)):
        scaled = images[:, channel].astype(np.float32) / np.float32(white)  # (n, height, width)
        result[:, 0] += np.float32(weight) * ((scaled - np.float32(channel_mean)) / np.float32(channel_std))
    return result


def unit(images: NDArray[np.uint8], white: int, name: str) -> NDArray[np.float32]:
    """Scale to [0, 1]."""
    return images.astype(np.float32) / np.float32(white)


def colour(images: NDArray[np.uint8], white: int, name: str) -> NDArray[np.float32]:
    """Scale to [-1, 1], each channel normalised with mean 0.5 and standard deviation 0.5; one channel is repeated.

    `(n, 1 or 3, height, width)` → `(n, 3, height, width)`.
    """
    scaled = (unit(images, white, name) - np.float32(0.5)) / np.float32(0.5)
    return scaled if images.shape[1] == 3 else scaled.repeat(3, axis=1)


def split(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the training and of the validation images, each rising.

    The validation set holds 10 % of the images, the same number from every class, drawn at random from `SPLIT_SEED`
    alone: it is the same for every trial.
    """
    classes = int(labels.max()) + 1
    per_class = round(VALIDATION_FRACTION * len(labels) / classes)
    generator = np.random.default_rng(SPLIT_SEED)
    drawn = [generator.permutation(np.flatnonzero(labels == label))[:per_class] for label in range(classes)]
    val = np.sort(np.concatenate(drawn))
    return np.setdiff1d(np.arange(len(labels)), val), val


def checksum(raw: Raw) -> str:
    """16 hexadecimal digits over all raw images and labels."""
    digest = hashlib.sha256()
    for array in (raw.train_images, raw.train_labels, raw.test_images, raw.test_labels):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def check_raw(name: str, raw: Raw) -> None:
    """Raise `BadInputError` where images and labels do not fit each other, the data set or its ten classes."""
    for part, images, labels in (
        ("training", raw.train_images, raw.train_labels),
        ("test", raw.test_images, raw.test_labels),
    ):
        if images.shape != (len(images), *SHAPES[name]) or labels.shape != (len(images),):
            raise BadInputError(
                f"the {part} images of {name} have shape {images.shape}, their labels {labels.shape}; expected one "
                f"label an image, and images of shape {SHAPES[name]}: delete the files and fetch them again"
            )
        if len(labels) == 0 or labels.min() < 0 or labels.max() >= CLASSES:
            raise BadInputError(
                f"the {part} labels of {name} are not all 0 to 9: delete the files and fetch them again"
            )
    fewest = int(np.bincount(raw.train_labels, minlength=CLASSES).min())
    if fewest < FEWEST_OF_A_CLASS:
        raise BadInputError(
            f"the training images of {name} have only {fewest} of some class; expected at least {FEWEST_OF_A_CLASS} "
            "of each, so that some can be held out: delete the files and fetch them again"
        )


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of unsigned bytes (format: the MNIST page; magic number 0x08 and the rank).

    Raises:
        BadInputError: The file is unreadable, truncated or of another format.
    """
    try:
        content = gzip.decompress(path.read_bytes())
        rank = content[3] if content[:3] == b"\x00\x00\x08" else 0
        shape = struct.unpack_from(f">{rank}I", content, 4)
        array = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
        if rank == 0 or array.size != math.prod(shape):
            raise ValueError(f"{array.size} bytes of content for shape {shape}")
        return array.reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, struct.error, zlib.error) as error:
        raise BadInputError(f"{path} is not a readable gzipped IDX file ({error}): fetch it again") from None


def load_idx(name: str, data_root: Path) -> Raw:
    """MNIST or Fashion-MNIST: flat `.gz` files in the data root, Debian's package, or torchvision's download.

    torchvision keeps the `.gz` files that it has downloaded. They are read like the others, rather than the unpacked
    copies beside them, because a `.gz` file has a checksum.
    """
    looked = []
    for place in [data_root, *([DEBIAN_FASHION_MNIST] if name == "fashion_mnist" else [])]:
        reason = why_not(name, place)
        if reason is None:
            return read_flat(place)
        looked.append(f"{place} ({reason})")
    import torchvision  # and with it torch, which takes seconds

    source = {"mnist": torchvision.datasets.MNIST, "fashion_mnist": torchvision.datasets.FashionMNIST}[name]
    downloaded = data_root / source.__name__ / "raw"
    with suppress(BadInputError):  # where they are damaged, torchvision fetches them again
        if why_not(name, downloaded) is None:
            return read_flat(downloaded)
    train, test = from_torchvision(source, name, data_root, lambda: [*looked, str(downloaded)])
    return raw_idx(train.data.numpy(), train.targets.numpy(), test.data.numpy(), test.targets.numpy())


def why_not(name: str, place: Path) -> str | None:
    """Why the four files in a folder are not those of MNIST or Fashion-MNIST; None if they are."""
    for file in IDX_FILES:
        if not os.path.isfile(place / f"{file}.gz"):  # noqa: PTH113 (Path.is_file raises where it may not look)
            return f"no file {file}.gz"
    labels = IDX_FILES[1]
    # the two sets' files bear the same names
    is_fashion = hashlib.sha256(read_idx(place / f"{labels}.gz").tobytes()).hexdigest() == FASHION_MNIST_LABELS
    return None if is_fashion == (name == "fashion_mnist") else f"{labels}.gz is not that of {name}"


def read_flat(place: Path) -> Raw:
    """The four files in a folder."""
    return raw_idx(*(read_idx(place / f"{file}.gz") for file in IDX_FILES))


def raw_idx(
    train_images: NDArray[np.uint8],
    train_labels: NDArray[np.integer],
    test_images: NDArray[np.uint8],
    test_labels: NDArray[np.integer],
) -> Raw:
    """Give the images `(n, height, width)` their one channel."""
    return Raw(
        train_images=train_images[:, None],
        train_labels=train_labels.astype(np.int64),
        test_images=test_images[:, None],
        test_labels=test_labels.astype(np.int64),
    )


def load_cifar10(data_root: Path) -> Raw:
    """CIFAR-10 through torchvision, which checks every file against its known MD5 before it opens it."""
    from torchvision.datasets import CIFAR10

    parts = from_torchvision(CIFAR10, "cifar10", data_root, lambda: unusable_cifar10(data_root))
    # torchvision holds (n, height, width, channels)
    (train_images, train_labels), (test_images, test_labels) = (
        (np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.asarray(part.targets, np.int64)) for part in parts
    )
    return Raw(train_images=train_images, train_labels=train_labels, test_images=test_images, test_labels=test_labels)


def unusable_cifar10(data_root: Path) -> list[str]:
    """The archive and the files of CIFAR-10 that are not there or damaged; just the folder if all are missing."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    def sound(path: Path, md5: str) -> bool:
        try:
            return bool(check_integrity(path, md5))
        except OSError:
            return False

    archive, folder = data_root / CIFAR10.filename, data_root / CIFAR10.base_folder
    batches = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
    known = [(archive, CIFAR10.tgz_md5), *((folder / name, md5) for name, md5 in batches)]
    bad = [path for path, md5 in known if not sound(path, md5)]
    if not any(os.path.lexists(folder / name) for name, _ in batches):
        bad = [folder, archive]
    return [f"{path} ({'damaged' if os.path.lexists(path) else 'not there'})" for path in bad]


def load_digits(data_root: Path) -> Raw:
    """scikit-learn's bundled digits, every pixel enlarged to 4×4: 1,437 training and 360 test images of 32×32."""
    from sklearn.datasets import load_digits as load_sklearn_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_sklearn_digits(return_X_y=True)  # (1797, 64) from 0 to 16, (1797,)
    images = images.astype(np.uint8).reshape(-1, 1, 8, 8).repeat(4, axis=2).repeat(4, axis=3)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels.astype(np.int64), test_size=0.2, stratify=labels, random_state=SPLIT_SEED
    )
    return Raw(
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        white=16,
    )


def from_torchvision(source: Any, name: str, data_root: Path, looked: Callable[[], list[str]]) -> tuple[Any, Any]:
    """Training and test part of one of torchvision's data sets, downloaded once, under a lock, if it is not there.

    Args:
        looked: Says for the message which places have no usable files.

    Raises:
        BadInputError: It can neither be read nor downloaded; says where was looked and what works offline.
    """
    from filelock import FileLock

    def both(*, download: bool) -> tuple[Any, Any]:
        return tuple(source(str(data_root), train=train, download=download) for train in (True, False))

    timeout = socket.getdefaulttimeout()
    try:
        try:
            return both(download=False)
        except Exception:
            data_root.mkdir(parents=True, exist_ok=True)
            with FileLock(data_root / ".lock"):
                socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)  # torchvision sets none
                return both(download=True)
    except Exception as error:  # urllib, http, tarfile, zlib, pickle, NumPy and torchvision each raise their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInputError(
            f"no usable {name} files: looked in {', '.join(looked())}, then tried to download them to {data_root} "
            f"({reason}); put the files there (delete them first if they are damaged), connect to the network, "
            "or use --dataset digits, which works offline"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)


SOURCES: dict[str, Callable[[Path], Raw]] = {
    "cifar10": load_cifar10,
    "fashion_mnist": lambda data_root: load_idx("fashion_mnist", data_root),
    "mnist": lambda data_root: load_idx("mnist", data_root),
    "digits": load_digits,
}

PIPELINES: dict[str | None, Callable[[NDArray[np.uint8], int, str], NDArray[np.float32]]] = {
    None: grey,
    "unit": unit,
    "colour": colour,
}

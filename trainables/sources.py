"""Files of the data sets: find them, download what is missing, and check what was read."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainables.architectures import CLASSES
from trainables.errors import BadInputError
from trainables.idx_files import OtherDataSetError, read_idx_folder

SPLIT_SEED = 0  # of the validation split, and of the split of `digits` into training and test images
MIN_IMAGES_PER_CLASS = 10  # for training; a tenth of them, so at least one, is held out for validation
DOWNLOAD_TIMEOUT_SECONDS = 30.0
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it

# `(channels, height, width)` of one image
IMAGE_SHAPES = {"cifar10": (3, 32, 32), "mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28), "digits": (1, 32, 32)}

TORCHVISION_NAMES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}


@dataclass(frozen=True, kw_only=True)
class RawImages:
    """A data set as its files hold it: images uint8 `(n, channels, height, width)` and labels int64 `(n,)`.

    Attributes:
        white: The value of a white pixel; black is 0.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    white: int = 255


def check_raw(name: str, raw: RawImages) -> None:
    """Check that images and labels fit each other, the data set of this name, and its ten classes.

    Raises:
        BadInputError: They do not fit, or a class has too few training images.
    """
    for part, images, labels in (
        ("training", raw.train_images, raw.train_labels),
        ("test", raw.test_images, raw.test_labels),
    ):
        if images.shape != (len(images), *IMAGE_SHAPES[name]) or labels.shape != (len(images),):
            raise BadInputError(
                f"the {part} images of {name} have shape {images.shape}, their labels {labels.shape}; expected one "
                f"label an image, and images of shape {IMAGE_SHAPES[name]}: delete the files and fetch them again"
            )
        if len(labels) == 0 or labels.min() < 0 or labels.max() >= CLASSES:
            raise BadInputError(
                f"the {part} labels of {name} are not all 0 to 9: delete the files and fetch them again"
            )
    fewest = int(np.bincount(raw.train_labels, minlength=CLASSES).min())
    if fewest < MIN_IMAGES_PER_CLASS:
        raise BadInputError(
            f"the training images of {name} have only {fewest} of some class; expected at least {MIN_IMAGES_PER_CLASS} "
            "of each, so that some can be held out: delete the files and fetch them again"
        )


def load_idx(name: str, data_root: Path) -> RawImages:
    """Load MNIST or Fashion-MNIST from the first place that has its files, or download them.

    The places are the data root, the folder of Debian's package (for Fashion-MNIST), and torchvision's folder in the
    data root. Every file is compared with its known content, wherever it was found.

    Raises:
        BadInputError: A file is damaged or has another content, or there are none and they cannot be downloaded.
    """
    unusable = []
    for place in [data_root, *([DEBIAN_FASHION_MNIST] if name == "fashion_mnist" else [])]:
        try:
            return make_raw(*read_idx_folder(name, place))
        except (FileNotFoundError, OtherDataSetError) as error:
            unusable.append(f"{place} ({error})")
    downloaded = data_root / TORCHVISION_NAMES[name] / "raw"
    with suppress(FileNotFoundError, BadInputError):  # torchvision may download what is missing or damaged
        return make_raw(*read_idx_folder(name, downloaded))
    from torchvision import datasets  # here, because it imports torch, which takes seconds

    source = getattr(datasets, TORCHVISION_NAMES[name])
    load_torchvision(source, name, data_root, lambda: [*unusable, str(downloaded)])
    try:
        return make_raw(*read_idx_folder(name, downloaded))  # torchvision itself takes any files of these names
    except (FileNotFoundError, OtherDataSetError) as error:  # FileNotFoundError: torchvision has old files, unchecked
        folder = downloaded.parent
        raise BadInputError(f"{error} ({folder}); delete that folder, and run the same command again") from None


def make_raw(
    train_images: NDArray[np.uint8],
    train_labels: NDArray[np.integer],
    test_images: NDArray[np.uint8],
    test_labels: NDArray[np.integer],
) -> RawImages:
    """Make a `RawImages` from images `(n, height, width)`, which get one channel, and labels `(n,)`."""
    return RawImages(
        train_images=train_images[:, None],
        train_labels=train_labels.astype(np.int64),
        test_images=test_images[:, None],
        test_labels=test_labels.astype(np.int64),
    )


def load_cifar10(data_root: Path) -> RawImages:
    """Load CIFAR-10 through torchvision, which checks every file against its known MD5 before opening it.

    Raises:
        BadInputError: Files are missing or damaged, and the archive cannot be downloaded.
    """
    from torchvision.datasets import CIFAR10

    parts = load_torchvision(CIFAR10, "cifar10", data_root, lambda: find_unusable_cifar10(data_root))
    # torchvision's arrays are (n, height, width, channels).
    (train_images, train_labels), (test_images, test_labels) = (
        (np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.asarray(part.targets, np.int64)) for part in parts
    )
    return RawImages(
        train_images=train_images, train_labels=train_labels, test_images=test_images, test_labels=test_labels
    )


def find_unusable_cifar10(data_root: Path) -> list[str]:
    """List the missing or damaged files of CIFAR-10, its archive included, for a message.

    If no batch file is there, the list names only their folder and the archive.
    """
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    def is_intact(path: Path, md5: str) -> bool:
        try:
            return bool(check_integrity(path, md5))
        except OSError:
            return False

    archive, folder = data_root / CIFAR10.filename, data_root / CIFAR10.base_folder
    batches = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
    known = [(archive, CIFAR10.tgz_md5), *((folder / name, md5) for name, md5 in batches)]
    bad = [path for path, md5 in known if not is_intact(path, md5)]
    if not any(os.path.lexists(folder / name) for name, _ in batches):
        bad = [folder, archive]
    return [f"{path} ({'damaged' if os.path.lexists(path) else 'not there'})" for path in bad]


def load_digits(data_root: Path) -> RawImages:
    """Load the digits bundled with scikit-learn: 1,437 training and 360 test images.

    Every pixel of the 8×8 images is enlarged to 4×4 pixels, which gives images of 32×32.
    """
    from sklearn.datasets import load_digits as load_sklearn_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_sklearn_digits(return_X_y=True)  # (1797, 64) with values from 0 to 16, (1797,)
    images = images.astype(np.uint8).reshape(-1, 1, 8, 8).repeat(4, axis=2).repeat(4, axis=3)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels.astype(np.int64), test_size=0.2, stratify=labels, random_state=SPLIT_SEED
    )
    return RawImages(
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        white=16,
    )


def load_torchvision(source: Any, name: str, data_root: Path, unusable: Callable[[], list[str]]) -> tuple[Any, Any]:
    """Return the training and the test part of one of torchvision's data sets.

    Files that are missing or damaged are downloaded. A lock in the data root keeps processes from downloading at the
    same time.

    Args:
        source: The data set's class in `torchvision.datasets`.
        name: The data set's name in messages.
        unusable: Returns the places without usable files, for the error message; called only if it is needed.

    Raises:
        BadInputError: The files can neither be read nor downloaded. The message names the places that were searched,
            and the data set that works offline.
    """
    from filelock import FileLock

    def load_parts(*, download: bool) -> tuple[Any, Any]:
        return tuple(source(str(data_root), train=train, download=download) for train in (True, False))

    timeout = socket.getdefaulttimeout()
    try:
        try:
            return load_parts(download=False)
        except Exception:
            data_root.mkdir(parents=True, exist_ok=True)
            with FileLock(data_root / ".lock"):
                socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)  # torchvision sets no time limit
                return load_parts(download=True)
    except Exception as error:  # urllib, http, tarfile, zlib, pickle, NumPy, torchvision each raise their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInputError(
            f"no usable {name} files: looked in {', '.join(unusable())}, then tried to download them to {data_root} "
            f"({reason}); put the files there (delete them first if they are damaged), connect to the network, "
            "or use --dataset digits, which works offline"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)


SOURCES: dict[str, Callable[[Path], RawImages]] = {
    "cifar10": load_cifar10,
    "fashion_mnist": lambda data_root: load_idx("fashion_mnist", data_root),
    "mnist": lambda data_root: load_idx("mnist", data_root),
    "digits": load_digits,
}

"""The files of MNIST and Fashion-MNIST: their format, and the content that each must have."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainables.errors import BadInputError

# MD5 of the unpacked content of the four files of each data set, which have the same names: training images and labels,
# test images and labels. Each may be packed, with the ending `.gz`, or not. Sources: MNIST's are published in many
# places; Fashion-MNIST's were computed from Debian's package dataset-fashion-mnist.
KNOWN_MD5 = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}
IDX_FILES = tuple(KNOWN_MD5["mnist"])


class OtherDataSetError(BadInputError):
    """A file that belongs to another data set whose files have the same names."""


def read_idx(name: str, file: str, place: Path) -> NDArray[np.uint8]:
    """Return the array in a file of MNIST or Fashion-MNIST, from its packed or unpacked copy in a folder.

    Raises:
        FileNotFoundError: There is no copy.
        OtherDataSetError: The file is that of the other data set.
        BadInputError: No copy is readable and has the data set's known content.
    """
    problems: list[Exception] = []
    for path in (place / f"{file}.gz", place / file):
        try:
            if os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises in a folder without permission)
                content = read_content(path)
                array = parse_idx(content)
                check_content(name, file, path, content)
                return array
        except BadInputError as error:
            problems.append(error)
        except (OSError, EOFError, ValueError, IndexError, struct.error, zlib.error) as error:
            kind = "gzipped IDX" if path.suffix == ".gz" else "IDX"
            problems.append(BadInputError(f"{path} is not a readable {kind} file ({error}): fetch it again"))
    raise [*problems, FileNotFoundError(f"no file {file}.gz")][0]


def read_content(path: Path) -> bytes:
    """Return the unpacked content of a file."""
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


def parse_idx(content: bytes) -> NDArray[np.uint8]:
    """Return the array in the content of an IDX file of unsigned bytes.

    The MNIST page describes the format: two zero bytes, the type (0x08 for unsigned bytes), the number of dimensions,
    the size of each as a big-endian uint32, then the values.

    Raises:
        ValueError, IndexError, struct.error: The content is truncated or of another format.
    """
    rank = content[3] if content[:3] == b"\x00\x00\x08" else 0
    shape = struct.unpack_from(f">{rank}I", content, 4)
    array = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if rank == 0 or array.size != math.prod(shape):
        raise ValueError(f"{array.size} bytes of content for shape {shape}")
    return array.reshape(shape)


def check_content(name: str, file: str, path: Path, content: bytes) -> None:
    """Check that a file has the known content of the data set's file.

    Raises:
        OtherDataSetError: It has that of the other data set.
        BadInputError: It has an unknown content.
    """
    md5, expected = hashlib.md5(content, usedforsecurity=False).hexdigest(), KNOWN_MD5[name][file]
    if md5 == expected:
        return
    for other, known in KNOWN_MD5.items():
        if md5 in known.values():
            raise OtherDataSetError(f"{path} is a file of {other}, not {file} of {name}")
    raise BadInputError(
        f"{path} is not {file} of {name}: the MD5 of its unpacked content is {md5}, expected {expected}; fetch it again"
    )


def read_idx_folder(name: str, place: Path) -> list[NDArray[np.uint8]]:
    """Return the four arrays of MNIST or Fashion-MNIST from a folder, in the order of `IDX_FILES`.

    Raises:
        FileNotFoundError: A file is missing.
        OtherDataSetError: A file is that of the other data set.
        BadInputError: A file is damaged, or has an unknown content.
    """
    return [read_idx(name, file, place) for file in IDX_FILES]

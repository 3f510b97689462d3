"""Part 2: forward pass of a 2-D convolution layer in NumPy alone, and a grid of its outputs."""

from __future__ import annotations

import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray

from analysis import tiles
from analysis.output import Output
from sweeps.cli import run_to_exit_status
from sweeps.experiment import UserPath
from trainables.errors import BadInputError, check_positive

MAX_COLUMNS = 100  # columns of tiles in the figure, one for each kernel


def convolve(images: NDArray[Any], kernels: NDArray[Any]) -> NDArray[Any]:
    """Compute the cross-correlation of images and kernels without padding and with stride 1, as `torch.conv2d` does.

    There is no loop over pixels. `sliding_window_view` gives a view of every window of every image without copying,
    and one matrix product of the windows and the kernels, over channels and window pixels, gives all outputs at once.

    Args:
        images: Images, `(batch, in_channels, height, width)`.
        kernels: Kernels, `(out_channels, in_channels, kernel_height, kernel_width)`.

    Returns:
        Outputs, `(batch, out_channels, height - kernel_height + 1, width - kernel_width + 1)`. If both inputs hold
        whole numbers, the outputs are int64, because small integer types would overflow; if not, they have the type
        that NumPy promotes the inputs' types to.

    Raises:
        BadInputError: The shapes do not fit each other, or an array does not hold numbers.
    """
    check_shapes(images, kernels)
    if images.dtype.kind in "iub" and kernels.dtype.kind in "iub":
        images, kernels = images.astype(np.int64), kernels.astype(np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(images, kernels.shape[2:], axis=(2, 3))
    # (batch, in, rows, columns, kh, kw) · (out, in, kh, kw) → (batch, rows, columns, out)
    outputs = np.tensordot(windows, kernels, axes=((1, 4, 5), (1, 2, 3)))
    return outputs.transpose(0, 3, 1, 2)


def check_shapes(images: NDArray[Any], kernels: NDArray[Any]) -> None:
    """Raise `BadInputError` if the shapes or the types of images and kernels do not allow a convolution."""
    for name, array in (("input", images), ("kernel", kernels)):
        if array.ndim != 4 or 0 in array.shape:
            raise BadInputError(f"the {name} has shape {array.shape}; it must have four dimensions, none of them empty")
        if array.dtype.kind not in "iufb":
            raise BadInputError(f"the {name} has type {array.dtype}; it must hold whole or floating-point numbers")
    if images.shape[1] != kernels.shape[1]:
        raise BadInputError(
            f"the input has {images.shape[1]} channels and the kernel {kernels.shape[1]}; they must be the same"
        )
    if kernels.shape[2] > images.shape[2] or kernels.shape[3] > images.shape[3]:
        raise BadInputError(
            f"the kernel of {kernels.shape[2]}×{kernels.shape[3]} is larger than the image of "
            f"{images.shape[2]}×{images.shape[3]}; use a smaller kernel"
        )


def load_default_images(count: int = 5) -> NDArray[np.float64]:
    """Return the first of scikit-learn's digits, 0 to 4 by default, with every pixel enlarged to 4×4.

    Returns:
        Images, `(count, 1, 32, 32)`.
    """
    from sklearn.datasets import load_digits

    images = load_digits().images[:count, None]  # (count, 1, 8, 8)
    return np.asarray(images.repeat(4, axis=2).repeat(4, axis=3), np.float64)


def make_default_kernels() -> NDArray[np.float64]:
    """Return kernels of shape `(8, 1, 4, 4)` that detect edges in eight directions."""
    offsets = np.arange(4) - 1.5  # distances of rows and columns from the kernel's centre, in pixels
    angles = np.arange(8) * np.pi / 4
    ramps = [np.cos(a) * offsets[None, :] + np.sin(a) * offsets[:, None] for a in angles]
    return np.stack(ramps)[:, None]


def read_array(path: Path, name: str) -> NDArray[Any]:
    """Read an array from a `.npy` file, refusing pickled objects, which could run code.

    Args:
        path: File to read.
        name: Name of the array in error messages.

    Raises:
        BadInputError: The file cannot be read, or it holds several arrays.
    """
    try:
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise BadInputError(f"the {name} file {path} cannot be read ({error}); give a .npy file of numbers") from None
    if not isinstance(array, np.ndarray):
        raise BadInputError(f"the {name} file {path} holds several arrays; give a .npy file with one")
    return array


@dataclass(frozen=True, kw_only=True)
class Part2:
    """Images and kernels to convolve."""

    images: UserPath | None = None
    """.npy file of shape (batch, in_channels, height, width). By default, five enlarged digits."""
    kernels: UserPath | None = None
    """.npy file of shape (out_channels, in_channels, height, width). By default, eight edge detectors of 4×4."""
    show: int = 10
    """Maximum number of images in the figure."""
    out: UserPath = Path("figures/part2")
    """Folder for part2.png and part2.npy."""


def main(options: Part2) -> int:
    """Convolve the images, write the figure and the outputs, and print the shapes.

    Returns:
        The exit status 0.

    Raises:
        BadInputError: An option has no valid value, or a file cannot be read or written.
    """
    check_positive("--show", options.show, whole=True)
    images = load_default_images() if options.images is None else read_array(options.images, "input")
    kernels = make_default_kernels() if options.kernels is None else read_array(options.kernels, "kernel")
    outputs = convolve(images, kernels)
    if len(kernels) > MAX_COLUMNS:
        raise BadInputError(f"{len(kernels)} kernels do not fit in a figure; give {MAX_COLUMNS} at most")
    output = Output(options.out)
    with output.convert_write_errors():
        shown = outputs[: options.show]
        title = "Outputs: one row per image, one column per kernel; each tile on its own scale"
        height, width = shown.shape[2:]
        description = (
            f"Grey tiles with the outputs of the convolution of {len(shown)} images (rows) with {len(kernels)} kernels "
            f"(columns), {height} by {width} pixels each."
        )
        output.save_figure(tiles.draw_grid(shown, title), "part2", description)
        np.save(output.add_file("part2.npy"), outputs, allow_pickle=False)
    print("\n".join(str(path) for path in output.written))
    print(f"input {images.shape}, kernel {kernels.shape} → output {outputs.shape}")
    return 0


if __name__ == "__main__":
    sys.exit(run_to_exit_status(lambda: main(tyro.cli(Part2, description=__doc__))))

"""Part 2: the forward pass of a 2-D convolution layer in NumPy alone, and its outputs as one grid."""

from __future__ import annotations

import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.output import Output
from sweeps.cli import run_to_exit_status
from trainables.errors import BadInputError, check_positive

MAX_COLUMNS = 100  # of tiles in the figure


def convolve(images: NDArray[Any], kernels: NDArray[Any]) -> NDArray[Any]:
    """Cross-correlation without padding, stride 1, as in `torch.conv2d`, without a loop over pixels.

    `sliding_window_view` shows every window of every image, without copying; one matrix product of the windows with the
    kernels, over channels and window pixels, gives all outputs at once.

    Args:
        images: `(batch, in_channels, height, width)`.
        kernels: `(out_channels, in_channels, kernel_height, kernel_width)`.

    Returns:
        `(batch, out_channels, height - kernel_height + 1, width - kernel_width + 1)`: whole numbers as int64, which
        small integer types would overflow, others in the type that the inputs promote to.

    Raises:
        BadInputError: The shapes do not fit each other, or a type has no numbers.
    """
    check_shapes(images, kernels)
    if images.dtype.kind in "iub" and kernels.dtype.kind in "iub":
        images, kernels = images.astype(np.int64), kernels.astype(np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(images, kernels.shape[2:], axis=(2, 3))
    # (batch, in, rows, columns, kh, kw) · (out, in, kh, kw) → (batch, rows, columns, out)
    outputs = np.tensordot(windows, kernels, axes=((1, 4, 5), (1, 2, 3)))
    return outputs.transpose(0, 3, 1, 2)


def check_shapes(images: NDArray[Any], kernels: NDArray[Any]) -> None:
    """Raise `BadInputError` where two arrays cannot be convolved."""
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
    """Digits 0 to 4, enlarged: `(5, 1, 32, 32)`."""
    from sklearn.datasets import load_digits

    images = load_digits().images[:count, None]  # (5, 1, 8, 8)
    return np.asarray(images.repeat(4, axis=2).repeat(4, axis=3), np.float64)


def make_default_kernels() -> NDArray[np.float64]:
    """Edges in eight directions: `(8, 1, 4, 4)`."""
    place = np.arange(4) - 1.5
    angles = np.arange(8) * np.pi / 4
    ramps = [np.cos(a) * place[None, :] + np.sin(a) * place[:, None] for a in angles]
    return np.stack(ramps)[:, None]


def read_array(path: Path, name: str) -> NDArray[Any]:
    """An array from a `.npy` file, without pickle."""
    try:
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise BadInputError(f"the {name} file {path} cannot be read ({error}); give a .npy file of numbers") from None
    if not isinstance(array, np.ndarray):
        raise BadInputError(f"the {name} file {path} holds several arrays; give a .npy file with one")
    return array


def draw_grid(outputs: NDArray[Any]) -> Figure:
    """Outputs `(batch, out_channels, rows, columns)` as grey tiles: a row an image, a column a kernel."""
    batch, channels = outputs.shape[:2]
    figure = Figure(figsize=(1.1 * channels + 0.6, 1.1 * batch + 0.6), layout="constrained")
    for row, image in zip(figure.subplots(batch, channels, squeeze=False), outputs, strict=True):
        for axes, tile in zip(row, image, strict=True):
            axes.imshow(tile, cmap="gray", interpolation="nearest")
            axes.set_axis_off()
    figure.suptitle("Outputs: a row an image, a column a kernel; each tile on its own scale", fontsize=10)
    return figure


@dataclass(frozen=True, kw_only=True)
class Part2:
    """What to convolve."""

    images: Path | None = None
    """.npy file of shape (batch, in_channels, height, width). Default: five enlarged digits."""
    kernels: Path | None = None
    """.npy file of shape (out_channels, in_channels, height, width). Default: eight 4×4 edges."""
    show: int = 10
    """At most this many images in the figure."""
    out: Path = Path("figures/part2")
    """Folder for part2.png and part2.npy."""


def main(options: Part2) -> int:
    """Convolve, draw, save; the exit status."""
    check_positive("--show", options.show, whole=True)
    images = load_default_images() if options.images is None else read_array(options.images, "input")
    kernels = make_default_kernels() if options.kernels is None else read_array(options.kernels, "kernel")
    outputs = convolve(images, kernels)
    if len(kernels) > MAX_COLUMNS:
        raise BadInputError(f"{len(kernels)} kernels do not fit in a figure; give {MAX_COLUMNS} at most")
    output = Output(options.out)
    with output.writing():
        output.figure(draw_grid(outputs[: options.show]), "part2")
        np.save(output.path("part2.npy"), outputs, allow_pickle=False)
    print("\n".join(str(path) for path in output.written))
    print(f"input {images.shape}, kernel {kernels.shape} → output {outputs.shape}")
    return 0


if __name__ == "__main__":
    sys.exit(run_to_exit_status(lambda: main(tyro.cli(Part2, description=__doc__))))

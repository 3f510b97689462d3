"""Compares our convolutions with PyTorch's, for each layer of the reports' networks, as fractions of one core's peak.

The peak is measured with products of large matrices, as in `peak.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.peak import measure_peak, time_call
from sweeps.experiment import MAIN_ARCHITECTURES
from trainables.accelerated.backends import get_environment
from trainables.accelerated.convolutions import Convolution, put_images_innermost
from trainables.architectures import ARCHITECTURES, Conv, compute_output_shape
from trainables.process import prepare_process

INPUT_SHAPE = (1, 28, 28)
BATCH_SIZE = 50


def list_layers() -> Iterator[tuple[Conv, tuple[int, ...]]]:
    """Yield the different convolutional layers of the CNNs, each with the shape of its input."""
    seen = set()
    for name in MAIN_ARCHITECTURES:
        shape: tuple[int, ...] = INPUT_SHAPE
        for layer in ARCHITECTURES[name]:
            if isinstance(layer, Conv) and (layer, shape) not in seen:
                seen.add((layer, shape))
                yield layer, shape
            shape = compute_output_shape(layer, shape)


def time_fastest(call: Callable[[], object], turns: int) -> float:
    """Return the seconds that the fastest of some turns takes."""
    return min(time_call(call) for _ in range(turns))


def measure_layer(layer: Conv, shape: tuple[int, ...], turns: int) -> list[float]:
    """Measure the floating-point operations per second of a layer's passes.

    As in training, no gradient of the data set's images is computed.

    Args:
        layer: The layer.
        shape: The shape of its input, `(channels, height, width)`.
        turns: Number of turns of each pass, of which the fastest counts.

    Returns:
        The speeds of PyTorch's forward and backward pass, then those of ours.
    """
    channels = shape[0]
    images = torch.randn(BATCH_SIZE, *shape).to(memory_format=torch.channels_last)
    weight = torch.randn(layer.filters, channels, layer.kernel, layer.kernel)
    bias = torch.zeros(layer.filters)
    operations = 2 * layer.kernel**2 * channels * BATCH_SIZE * torch.Size(compute_output_shape(layer, shape)).numel()

    def theirs(inputs: Tensor, weight: Tensor) -> Tensor:
        return torch.conv2d(inputs, weight, bias)

    def ours(inputs: Tensor, weight: Tensor) -> Tensor:
        outputs: Tensor = Convolution.apply(inputs, weight, bias, 0, False)
        return outputs

    found = []
    for convolve, inputs, weights in (
        (theirs, images, weight.to(memory_format=torch.channels_last)),
        (ours, put_images_innermost(images.transpose(0, 1)), weight),
    ):
        forward = time_fastest(lambda: convolve(inputs, weights), turns)  # noqa: B023
        leaves = [inputs.clone().requires_grad_(shape != INPUT_SHAPE), weights.clone().requires_grad_()]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        outputs = convolve(*leaves)
        gradient = torch.randn_like(outputs)
        backward = time_fastest(lambda: torch.autograd.grad(outputs, wanted, gradient, retain_graph=True), turns)  # noqa: B023
        found += [operations / forward, len(wanted) * operations / backward]
    return found


def main(turns: int = 30, limit_to: str | None = None) -> None:
    """Measure all layers and print the table.

    Args:
        turns: Number of turns of each pass, of which the fastest counts.
        limit_to: The most modern instruction set that PyTorch's convolutions may use, such as AVX2.
    """
    os.environ.update(get_environment(limit_to))
    prepare_process(1)
    peak = measure_peak(1)
    table = Table(title=f"Fractions of the peak, {peak / 1e9:.0f} GFLOP/s; batches of {BATCH_SIZE}, one thread")
    for column in ("layer", "forward: PyTorch's", "ours", "backward: PyTorch's", "ours"):
        table.add_column(column, justify="left" if column == "layer" else "right", no_wrap=column == "layer")
    for layer, shape in list_layers():
        name = f"{layer.kernel}×{layer.kernel}, {shape[0]} → {layer.filters}, on {shape[1]}×{shape[2]}"
        theirs, theirs_back, ours, ours_back = measure_layer(layer, shape, turns)
        fractions = [f"{speed / peak:.2f}" for speed in (theirs, ours, theirs_back, ours_back)]
        table.add_row(name, *fractions)
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)

"""Our convolutions beside PyTorch's, a layer of the reports' networks at a time, as parts of the peak of one thread.

The peak is that of a product of large matrices, as in `peak.py`. `--limit-to AVX2` has PyTorch's limited to that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.peak import seconds, sgemm
from sweeps.experiment import MAIN_ARCHITECTURES
from trainables import training
from trainables.accelerated.backends import get_environment
from trainables.accelerated.convolutions import Convolution, put_images_innermost
from trainables.architectures import ARCHITECTURES, Conv, compute_output_shape

SHAPE = (1, 28, 28)
BATCH = 50


def layers() -> Iterator[tuple[Conv, tuple[int, ...]]]:
    """The convolutions of the CNNs, each once, with the shape of what comes in."""
    seen = set()
    for name in MAIN_ARCHITECTURES:
        shape: tuple[int, ...] = SHAPE
        for layer in ARCHITECTURES[name]:
            if isinstance(layer, Conv) and (layer, shape) not in seen:
                seen.add((layer, shape))
                yield layer, shape
            shape = compute_output_shape(layer, shape)


def fastest(call: Callable[[], object], turns: int) -> float:
    """Seconds of the fastest turn."""
    return min(seconds(call) for _ in range(turns))


def measure(layer: Conv, shape: tuple[int, ...], turns: int) -> list[float]:
    """Operations a second, forward and backward, of PyTorch's and of ours; as in training, no gradient of the data."""
    channels = shape[0]
    images = torch.randn(BATCH, *shape).to(memory_format=torch.channels_last)
    weight = torch.randn(layer.filters, channels, layer.kernel, layer.kernel)
    bias = torch.zeros(layer.filters)
    operations = 2 * layer.kernel**2 * channels * BATCH * torch.Size(compute_output_shape(layer, shape)).numel()

    def theirs(inputs: Tensor, weight: Tensor) -> Tensor:
        return torch.conv2d(inputs, weight, bias)

    def ours(inputs: Tensor, weight: Tensor) -> Tensor:
        outputs: Tensor = Convolution.apply(inputs, weight, bias, 0, False)
        return outputs

    found = []
    for computed, inputs, weights in (
        (theirs, images, weight.to(memory_format=torch.channels_last)),
        (ours, put_images_innermost(images.transpose(0, 1)), weight),
    ):
        forward = fastest(lambda: computed(inputs, weights), turns)  # noqa: B023
        leaves = [inputs.clone().requires_grad_(shape != SHAPE), weights.clone().requires_grad_()]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        outputs = computed(*leaves)
        gradient = torch.randn_like(outputs)
        both = fastest(lambda: torch.autograd.grad(outputs, wanted, gradient, retain_graph=True), turns)  # noqa: B023
        found += [operations / forward, len(wanted) * operations / both]
    return found


def main(turns: int = 30, limit_to: str | None = None) -> None:
    """Measure and print.

    Args:
        turns: Of each, of which the fastest counts.
        limit_to: An instruction set for PyTorch's convolutions, such as AVX2.
    """
    os.environ.update(get_environment(limit_to))
    training.prepare_process(1)
    peak = sgemm(1)
    table = Table(title=f"Parts of the peak, {peak / 1e9:.0f} GFLOP/s; batches of {BATCH}, one thread")
    for column in ("layer", "forward: PyTorch's", "ours", "backward: PyTorch's", "ours"):
        table.add_column(column, justify="left" if column == "layer" else "right", no_wrap=column == "layer")
    for layer, shape in layers():
        words = f"{layer.kernel}×{layer.kernel}, {shape[0]} → {layer.filters}, on {shape[1]}×{shape[2]}"
        theirs, theirs_back, ours, ours_back = measure(layer, shape, turns)
        parts = [f"{speed / peak:.2f}" for speed in (theirs, ours, theirs_back, ours_back)]
        table.add_row(words, *parts)
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)

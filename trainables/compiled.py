"""A network's forward pass, as it is or by compiled code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Forward = Callable[[nn.Sequential, Tensor], Tensor]


def plain(model: nn.Sequential, images: Tensor) -> Tensor:
    """What the model makes of images `(n, channels, height, width)`: `(n, classes)`, outside training.

    On the CPU ReLU works in place and maxima are taken of slices, which is the same to the last bit; the CNNs of the
    reports' main part took an eighth less time with it.
    """
    outputs = images
    for module in model:
        match module:
            case nn.ReLU() if not images.is_cuda and outputs is not images:
                outputs = functional.relu_(outputs)
            case nn.MaxPool2d() if not images.is_cuda:
                outputs = largest_of_windows(outputs)
            case _:
                outputs = module(outputs)
    return outputs


def largest_of_windows(images: Tensor) -> Tensor:
    """Maxima of 2×2 windows with stride 2: `(n, channels, h, w)` → `(n, channels, h // 2, w // 2)`."""
    height, width = (size // 2 * 2 for size in images.shape[2:])
    rows = torch.maximum(images[:, :, 0:height:2], images[:, :, 1:height:2])
    return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])


class Compiled:
    """The same by code that is compiled once for all models of a kind and a number of images; it takes seconds.

    PyTorch keeps the code on disk as well, for other processes. Where there is no compiler, or it fails, all goes on as
    it is, and it is not tried again in this process.
    """

    def __init__(self) -> None:
        self.forward: Forward = plain
        self.tried = False

    def __call__(self, model: nn.Sequential, images: Tensor) -> Tensor:
        if not self.tried:
            self.tried = True
            torch._inductor.config.compile_threads = 1  # no pool of processes beside each trial's own
            self.forward = torch.compile(plain, fullgraph=True, dynamic=False)
        try:
            return self.forward(model, images)
        except Exception:  # Dynamo, Inductor and the C++ compiler each raise their own
            if self.forward is plain:
                raise
            self.forward = plain
            return plain(model, images)


compiled = Compiled()

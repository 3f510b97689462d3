"""A network's forward pass, as it is or by compiled code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Forward = Callable[[nn.Module, Tensor], Tensor]


def plain(model: nn.Module, images: Tensor) -> Tensor:
    """What the model makes of images."""
    outputs: Tensor = model(images)
    return outputs


class Compiled:
    """The same by code that is compiled once for all models of a kind and a number of images; it takes seconds.

    PyTorch keeps the code on disk as well, for other processes. Where there is no compiler, or it fails, all goes on as
    it is, and it is not tried again in this process.
    """

    def __init__(self) -> None:
        self.forward: Forward = plain
        self.tried = False

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
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

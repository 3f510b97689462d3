"""A stack's training step as one CUDA graph, which the GPU runs after a single launch.

A step of a stack is dozens of operations, each of which takes the GPU microseconds. Launched one by one from Python,
they take ten times as long.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

StepFunction = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""A function that takes a step with a batch `(members, n)` of indices → losses, logits, labels."""

WARM_STEPS = 3  # steps before the graph is recorded, in which libraries choose algorithms and take memory


class StepGraph:
    """A step that is recorded after a few steps and then replayed; what it returns is overwritten by the next step.

    The batches that it takes have the size of the first one; the last batch of an epoch may be smaller.
    """

    def __init__(self, function: StepFunction, batch_size: int) -> None:
        self.function = function
        self.batch_size = batch_size
        self.stream = torch.cuda.Stream()
        self.warm_steps = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.batch: Tensor | None = None
        self.outputs: tuple[Tensor, Tensor, Tensor] | None = None

    def forget(self) -> None:
        """Record the step anew before it is taken again: a number that is part of the graph has changed."""
        self.graph = self.outputs = None

    def take(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take a step."""
        if batch.shape[1] != self.batch_size:
            return self.function(batch)
        if self.warm_steps < WARM_STEPS:
            self.warm_steps += 1
            return self._take_aside(batch)
        if self.graph is None or self.batch is None or self.outputs is None:
            self.batch = batch.clone()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream):  # records, and computes nothing
                self.outputs = self.function(self.batch)
        self.batch.copy_(batch)
        self.graph.replay()
        return self.outputs

    def _take_aside(self, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take a step operation by operation, on the stream on which the graph will be recorded."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            outputs = self.function(batch)
        torch.cuda.current_stream().wait_stream(self.stream)
        return outputs

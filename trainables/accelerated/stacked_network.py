"""The network of a stack: the passes of all members at once, compiled if wanted."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.func import functional_call, vmap
from torch.nn import functional

from trainables.architectures import build

# Parameters, images `(members, n, …)` and labels `(members, n)` → losses `(members,)`, logits `(members, n, classes)`
LossFunction = Callable[[Mapping[str, Tensor], Tensor, Tensor], tuple[Tensor, Tensor]]


class Linear(Function):
    """A fully connected layer of all members, as one batched product.

    `torch.func.vmap` of `nn.Linear` computes the same, but leaves the weights' gradients transposed in memory: with
    these, a backward pass of five small networks on the CPU took 1.8 times as long.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the outputs `(members, n, features)`.

        Args:
            ctx: Keeps what `backward` needs.
            inputs: `(members, n, inputs)`.
            weight: `(members, features, inputs)`.
            bias: `(members, features)`, or None.
        """
        ctx.save_for_backward(inputs, weight)
        if bias is None:
            return torch.bmm(inputs, weight.mT)
        return torch.baddbmm(bias.unsqueeze(1), inputs, weight.mT)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Compute the gradients for inputs, weight and bias from that for the outputs, `(members, n, features)`."""
        inputs, weight = ctx.saved_tensors
        return (
            torch.bmm(gradient, weight) if ctx.needs_input_grad[0] else None,
            torch.bmm(gradient.mT, inputs),
            gradient.sum(dim=1) if ctx.needs_input_grad[2] else None,
        )


def forward_stack(network: nn.Sequential, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Run each member's forward pass on its own inputs: `(members, n, …)` → `(members, n, classes)`.

    Args:
        network: A network of the members' shape, whose own parameters are not used.
        parameters: Name → `(members, …)`.
        inputs: Images, or the inputs of the first layer of `network`.
    """
    outputs = inputs
    for name, module in network.named_children():
        match module:
            case nn.Flatten():
                outputs = outputs.flatten(2)
            case nn.Linear():
                outputs = Linear.apply(outputs, parameters[f"{name}.weight"], parameters.get(f"{name}.bias"))
            case nn.Conv2d():
                own = {key: parameters[f"{name}.{key}"] for key, _ in module.named_parameters()}
                outputs = convolve(module, own, outputs)
            case nn.MaxPool2d() | nn.AvgPool2d():
                outputs = module(outputs.flatten(0, 1)).unflatten(0, outputs.shape[:2])
            case _:  # an activation
                outputs = module(outputs)
    return outputs


def convolve(module: nn.Conv2d, own: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Apply a convolution with each member's own parameters: `(members, n, …)` → `(members, n, …)`."""
    if inputs.is_cuda and not torch.compiler.is_compiling():
        from trainables.accelerated import gpu_convolutions  # imports Triton

        if gpu_convolutions.is_usable():
            return gpu_convolutions.apply_layer(inputs, own["weight"], own["bias"], int(module.padding[0]))
    outputs: Tensor = vmap(partial(functional_call, module))(own, (inputs,))
    return outputs


def compute_losses(
    network: nn.Sequential, parameters: Mapping[str, Tensor], images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute each member's mean loss on its own batch, and its logits; shapes as in `LossFunction`."""
    logits = forward_stack(network, parameters, images)
    each = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return each.view(labels.shape).mean(dim=1), logits


class CompiledLosses:
    """A loss function that compiles `compute_losses` at its first call; if that fails, it warns and runs it uncompiled.

    Compiling fuses operations. On a GPU, the CUDA graph that holds the whole step records the compiled ones.
    """

    def __init__(self, network: nn.Sequential) -> None:
        self.uncompiled: LossFunction = partial(compute_losses, network)
        self.chosen: LossFunction | None = None  # after the first call: compiled if possible

    def __call__(self, parameters: Mapping[str, Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.chosen is None:
            self.chosen = self.uncompiled
            try:
                function: LossFunction = torch.compile(self.uncompiled, fullgraph=True, dynamic=False)
                losses, _ = function(parameters, images, labels)  # compiles
                torch.autograd.grad(losses.sum(), list(parameters.values()))
                self.chosen = function
            except Exception as error:  # Dynamo, Inductor, Triton and the compilers below them raise their own
                reason = str(error).strip().partition("\n")[0]
                warnings.warn(f"training continues uncompiled: {type(error).__name__}: {reason}", stacklevel=2)
        return self.chosen(parameters, images, labels)


@cache
def get_compiled_losses(
    members: int, batch_size: int, device: torch.device, architecture: str, **shape: Any
) -> CompiledLosses:
    """Return the compiled loss function for a kind and size of stack, the same one at every call in a process.

    It is kept because a process trains one stack after another. Dynamo compiles eight of them in a process
    (`recompile_limit`); stacks of further kinds and sizes train uncompiled.

    Args:
        members: The number of members.
        shape: The keyword arguments of `architectures.build`.
    """
    with torch.device("meta"):  # layers without memory for parameters, which come with each call
        return CompiledLosses(build(architecture, **shape))

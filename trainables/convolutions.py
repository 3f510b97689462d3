"""A network's passes on the CPU, by PyTorch's convolutions or by our own.

Our own are in `convolutions.cpp`, which is compiled for the machine at hand at the first use and kept in the user's
cache. PyTorch's compute channels in blocks as wide as a register; networks whose layers have 1 to 16 channels leave
much of that idle, and ours put the images of a batch there.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

from trainables.architectures import convolves
from trainables.probe import OWN

SOURCE = Path(__file__).with_suffix(".cpp")
OPTIONS = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC")

# What a network makes of images `(n, channels, height, width)`: logits `(n, classes)`
Forward = Callable[[nn.Sequential, Tensor], Tensor]


def by_torch(model: nn.Sequential, images: Tensor) -> Tensor:
    """The pass as PyTorch computes it.

    Outside training, on the CPU, ReLU works in place and maxima are taken of slices, which is the same to the last bit;
    the CNNs of the reports' main part took an eighth less time with it.
    """
    if images.is_cuda or torch.is_grad_enabled():
        logits: Tensor = model(images)
        return logits
    outputs = images
    for module in model:
        match module:
            case nn.ReLU() if outputs is not images:
                outputs = functional.relu_(outputs)
            case nn.MaxPool2d():
                outputs = largest_of_windows(outputs)
            case _:
                outputs = module(outputs)
    return outputs


def largest_of_windows(images: Tensor) -> Tensor:
    """Maxima of 2×2 windows with stride 2: `(n, channels, h, w)` → `(n, channels, h // 2, w // 2)`."""
    height, width = (size // 2 * 2 for size in images.shape[2:])
    rows = torch.maximum(images[:, :, 0:height:2], images[:, :, 1:height:2])
    return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])


def passes(architecture: str, way: str | None, device: torch.device) -> Forward:
    """How a network's passes are computed where `way` was found to be the fastest (`probe.fastest_for_convolutions`).

    Raises:
        CompilerError: By our own convolutions, which this machine cannot compile.
    """
    if way != OWN or device.type != "cpu" or not convolves(architecture):
        return by_torch
    loaded()
    return by_our_own


def by_our_own(model: nn.Sequential, images: Tensor) -> Tensor:
    """The same but for rounding, with convolutions of our own, in training and outside.

    Between the layers channels and images have changed places, and the images lie side by side in memory: `(channels,
    n, height, width)` in PyTorch's channels-last format, so that its pooling and activations are as fast as ever.
    """
    outputs = images.transpose(0, 1)
    before: nn.Module | None = None
    for module, following in zip(model, [*model[1:], None], strict=True):
        match module:
            case nn.Conv2d(padding=(padding, _)):
                relu = isinstance(following, nn.ReLU)
                outputs = Convolution.apply(outputs, module.weight, module.bias, padding, relu)
            case nn.ReLU() if isinstance(before, nn.Conv2d):
                pass  # the convolution has done it
            case nn.Flatten():
                outputs = outputs.transpose(0, 1).flatten(1)
            case _:
                outputs = module(outputs)
        before = module
    return outputs


class Convolution(Function):
    """A layer with stride 1, and the ReLU that may follow it."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, padding: int, relu: bool) -> Tensor:
        """`(channels, n, height, width)`, `(outputs, channels, k, k)`, `(outputs,)` → `(outputs, n, …)`."""
        images = side_by_side(images)
        outputs = convolve(images, weight, bias, padding, relu)
        ctx.save_for_backward(images, weight, outputs if relu else None)
        ctx.padding = padding
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        """Of the outputs → of images, weight and bias."""
        images, weight, outputs = ctx.saved_tensors
        gradient = side_by_side(gradient)
        if outputs is not None:
            gradient = torch.ops.aten.threshold_backward(gradient, outputs, 0)
        of_images = None
        if ctx.needs_input_grad[0]:  # a convolution as well, with the kernel turned around
            turned = weight.flip(2, 3).transpose(0, 1)
            of_images = convolve(gradient, turned, None, weight.shape[2] - 1 - ctx.padding, relu=False)
        of_weight = torch.empty(weight.shape)
        loaded().weight_gradient(
            *(pointer(images), pointer(gradient), pointer(of_weight)), *sizes(images, weight, ctx.padding)
        )
        return of_images, of_weight, gradient.sum(dim=(1, 2, 3)), None, None


def convolve(images: Tensor, weight: Tensor, bias: Tensor | None, padding: int, relu: bool) -> Tensor:
    """`(channels, n, height, width)` → `(outputs, n, height + 2 · padding - k + 1, …)`, both channels-last."""
    _, n, height, width = images.shape
    shrink = weight.shape[2] - 1 - 2 * padding
    weight = weight.contiguous()
    outputs = torch.empty((len(weight), n, height - shrink, width - shrink), memory_format=torch.channels_last)
    loaded().convolve(
        *(pointer(images), pointer(weight), None if bias is None else pointer(bias), pointer(outputs)),
        *sizes(images, weight, padding),
        int(relu),
    )
    return outputs


def side_by_side(images: Tensor) -> Tensor:
    """The same `(channels, n, height, width)` with the images innermost in memory."""
    return images.contiguous(memory_format=torch.channels_last)


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    """Where a tensor's float32 numbers are."""
    assert tensor.dtype == torch.float32
    return ctypes.c_void_p(tensor.data_ptr())


def sizes(images: Tensor, weight: Tensor, padding: int) -> tuple[int, ...]:
    """The arguments that describe a layer: channels, height, width, images, outputs, kernel, padding."""
    channels, n, height, width = images.shape
    return channels, height, width, n, weight.shape[0], weight.shape[2], padding


class CompilerError(Exception):
    """Our own convolutions cannot be had on this machine: why."""


@cache
def loaded() -> ctypes.CDLL:
    """The compiled loops, from the cache if they have been compiled for such a machine before.

    Raises:
        CompilerError: There is no compiler, or it fails.
    """
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    try:
        # What the compiler defines names its version and the instructions that the processor has.
        defined = run([*compiler, *OPTIONS, "-dM", "-E", "-x", "c++", os.devnull])
        name = hashlib.sha256(f"{SOURCE.read_text()}{OPTIONS}{defined}".encode()).hexdigest()[:16]
        path = cache_folder() / f"convolutions-{name}.so"
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                made = Path(folder) / path.name
                run([*compiler, *OPTIONS, "-o", str(made), str(SOURCE)])
                made.replace(path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise CompilerError(str(error)) from error


def cache_folder() -> Path:
    """Of this project, by the convention of XDG."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "neural-sweeps"


def run(command: list[str]) -> str:
    """What a command prints.

    Raises:
        CompilerError: It failed.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompilerError(f"{command[0]} failed: {done.stderr.strip().partition(chr(10))[0]}")
    return done.stdout

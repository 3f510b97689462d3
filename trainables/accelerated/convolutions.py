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
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from trainables.accelerated.backends import NATIVE
from trainables.architectures import has_convolution
from trainables.training import CPU_CHUNK_IMAGES, Forward, forward_torch

SOURCE = Path(__file__).with_suffix(".cpp")


COMPILER_OPTIONS = ("-std=c++17", "-O3", "-march=native", "-fno-trapping-math", "-shared", "-fPIC")


def choose_forward(architecture: str, way: str | None, device: torch.device) -> Forward:
    """How a network's passes are computed where `way` was found to be the fastest (`probe.fastest_for_convolutions`).

    Raises:
        CompilerError: By our own convolutions, which this machine cannot compile.
    """
    if way != NATIVE or device.type != "cpu" or not has_convolution(architecture):
        return forward_torch
    load_library()
    return forward_native


def forward_native(model: nn.Sequential, images: Tensor) -> Tensor:
    """The same but for rounding, with convolutions of our own; outside training, if it can, by one call for all."""
    if torch.is_grad_enabled():
        return forward_by_layer(model, images)
    found = compute_logits(model, images)
    return (
        torch.cat([forward_by_layer(model, some) for some in images.split(CPU_CHUNK_IMAGES)])
        if found is None
        else found
    )


def forward_by_layer(model: nn.Sequential, images: Tensor) -> Tensor:
    """The pass with our convolutions and PyTorch's other layers.

    In between, channels and images have changed places, and the images lie side by side in memory: `(channels, n,
    height, width)` in PyTorch's channels-last format, so that its pooling and activations are as fast as ever.
    """
    modules = list(model)
    outputs = images.transpose(0, 1)
    for before, module, after in zip([None, *modules], modules, [*modules[1:], None], strict=False):
        match module:
            case nn.Conv2d():
                relu = isinstance(after, nn.ReLU)
                outputs = Convolution.apply(outputs, module.weight, module.bias, get_padding(module), relu)
            case nn.ReLU() if isinstance(before, nn.Conv2d):
                pass  # the convolution has done it
            case nn.Flatten():
                outputs = outputs.transpose(0, 1).flatten(1)
            case _:
                outputs = module(outputs)
    return outputs


class Convolution(Function):
    """A layer with stride 1, and the ReLU that may follow it."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, padding: int, relu: bool) -> Tensor:
        """`(channels, n, height, width)`, `(outputs, channels, k, k)`, `(outputs,)` → `(outputs, n, …)`."""
        images = put_images_innermost(images)
        outputs = convolve(images, None, weight, bias, padding, relu)
        ctx.save_for_backward(images, weight, outputs if relu else None)
        ctx.padding = padding
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        """Of the outputs → of images, weight and bias."""
        images, weight, outputs = ctx.saved_tensors
        gradient = put_images_innermost(gradient)
        of_images = None
        if ctx.needs_input_grad[0]:  # a convolution as well, with the kernel turned around
            turned = weight.flip(2, 3).transpose(0, 1)
            of_images = convolve(gradient, outputs, turned, None, weight.shape[2] - 1 - ctx.padding, relu=False)
        of_weight, of_bias = torch.empty(weight.shape), torch.empty(len(weight))
        layer = LayerStruct(len(images), *images.shape[2:], images.shape[1], *weight.shape[::3], ctx.padding)
        found = map(get_pointer, (images, outputs, gradient, of_weight, of_bias))
        load_library().layer_gradients(ctypes.byref(layer), *found)
        return of_images, of_weight, of_bias, None, None


def convolve(
    images: Tensor, outputs: Tensor | None, weight: Tensor, bias: Tensor | None, padding: int, relu: bool
) -> Tensor:
    """`(channels, n, height, width)` → `(outputs, n, height + 2 · padding - k + 1, …)`, both channels-last.

    Args:
        outputs: If the images are a gradient, those of the ReLU that it comes to.
    """
    channels, n, height, width = images.shape
    weight = weight.contiguous()
    shrink = weight.shape[2] - 1 - 2 * padding
    size = len(weight), n, height - shrink, width - shrink
    convolved = torch.empty(size, memory_format=torch.channels_last)
    layer = LayerStruct(channels, height, width, n, *weight.shape[::3], padding)
    load_library().layer_outputs(
        ctypes.byref(layer), *map(get_pointer, (images, outputs, weight, bias)), int(relu), get_pointer(convolved)
    )
    return convolved


def get_padding(convolution: nn.Conv2d) -> int:
    """Its padding; our own code computes square convolutions with stride 1 and less padding than the kernel's size."""
    kernel, padding = convolution.kernel_size, convolution.padding
    assert isinstance(padding, tuple)
    assert kernel[0] == kernel[1] > padding[0] == padding[1]
    assert (convolution.stride, convolution.dilation, convolution.groups) == ((1, 1), (1, 1), 1)
    return padding[0]


class LayerStruct(ctypes.Structure):
    """Of a convolution and what comes into it: the struct Layer of `convolutions.cpp`."""

    _fields_ = [
        (name, ctypes.c_int) for name in ("channels", "height", "width", "images", "outputs", "kernel", "padding")
    ]


class StepStruct(ctypes.Structure):
    """A layer of a network: the struct Step of `convolutions.cpp`."""

    CONVOLVE, FLATTEN, LARGEST, AVERAGE = range(4)
    _fields_ = [
        *((name, ctypes.c_int) for name in ("kind", "outputs", "kernel", "padding", "relu")),
        *((name, ctypes.c_void_p) for name in ("weights", "bias")),
    ]


def compute_logits(model: nn.Sequential, images: Tensor) -> Tensor | None:
    """Of images `(n, channels, height, width)`, by one call for all layers; None if it does not know one of them."""
    steps: list[StepStruct] = []
    used = [images.contiguous()]  # kept until the call is over

    def step(module: nn.Conv2d | nn.Linear, kernel: int, padding: int) -> StepStruct:
        used.append(module.weight.contiguous())
        sizes = len(module.weight), kernel, padding
        return StepStruct(StepStruct.CONVOLVE, *sizes, 0, get_pointer(used[-1]), get_pointer(module.bias))

    for module in model:
        match module:
            case nn.Conv2d():
                steps.append(step(module, module.kernel_size[0], get_padding(module)))
            case nn.Linear():
                steps.append(step(module, 1, 0))
            case nn.ReLU() if steps and steps[-1].kind == StepStruct.CONVOLVE:
                steps[-1].relu = 1
            case nn.Flatten():
                steps.append(StepStruct(StepStruct.FLATTEN))
            case nn.MaxPool2d(kernel_size=2, stride=2, padding=0):
                steps.append(StepStruct(StepStruct.LARGEST))
            case nn.AvgPool2d(kernel_size=2, stride=2, padding=0):
                steps.append(StepStruct(StepStruct.AVERAGE))
            case _:
                return None
    found = torch.empty(len(images), steps[-1].outputs)
    load_library().network_logits(
        (StepStruct * len(steps))(*steps), len(steps), get_pointer(used[0]), *images.shape, get_pointer(found)
    )
    return found


def put_images_innermost(images: Tensor) -> Tensor:
    """The same `(channels, n, height, width)` with the images innermost in memory."""
    return images.contiguous(memory_format=torch.channels_last)


def get_pointer(tensor: Tensor | None) -> int | None:
    """Where a tensor's float32 numbers are."""
    if tensor is None:
        return None
    assert tensor.dtype == torch.float32
    return tensor.data_ptr()


class CompilerError(Exception):
    """Our own convolutions cannot be had on this machine: why."""


@cache
def load_library() -> ctypes.CDLL:
    """The compiled loops, from the cache if they have been compiled for such a machine before.

    Raises:
        CompilerError: There is no compiler, or it fails.
    """
    try:
        compiler = [*shlex.split(os.environ.get("CXX", "c++")), *COMPILER_OPTIONS]
        # What the compiler defines names its version and the instructions that the processor has.
        defined = run_command([*compiler, "-dM", "-E", "-x", "c++", os.devnull])
        name = hashlib.sha256(f"{SOURCE.read_text()}{COMPILER_OPTIONS}{defined}".encode()).hexdigest()[:16]
        path = get_cache_folder() / f"convolutions-{name}.so"
        try:
            library = ctypes.CDLL(str(path))
        except OSError:  # it is not there, or none
            path.unlink(missing_ok=True)
            compile_library(compiler, path)
            library = ctypes.CDLL(str(path))
    except (OSError, ValueError, RuntimeError) as error:  # no compiler; a command line that is none; no home folder
        raise CompilerError(str(error)) from error
    address, number = ctypes.c_void_p, ctypes.c_int
    library.layer_outputs.argtypes = [*[address] * 5, number, address]
    library.layer_gradients.argtypes = [address] * 6
    library.network_logits.argtypes = [address, number, address, *[number] * 4, address]
    return library


def compile_library(compiler: Sequence[str], path: Path) -> None:
    """Compile into `path`, unless another process is first: what that has loaded must stay, on NFS as well."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, suppress(FileExistsError):
        made = Path(folder) / path.name
        run_command([*compiler, "-o", str(made), str(SOURCE)])
        with made.open("rb") as file:  # half a library would end the process that loads it
            os.fsync(file.fileno())
        path.hardlink_to(made)


def get_cache_folder() -> Path:
    """Of this project, by the convention of XDG."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "neural-sweeps"


def run_command(command: list[str]) -> str:
    """What a command prints.

    Raises:
        CompilerError: It failed.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompilerError(f"{command[0]} failed: {done.stderr.strip().partition(chr(10))[0]}")
    return done.stdout

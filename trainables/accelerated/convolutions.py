"""The native backend: forward passes on the CPU with convolutions of our own instead of PyTorch's.

The native convolutions are in `convolutions.cpp`, which is compiled for this machine at the first use and kept in the
user's cache. PyTorch's convolutions compute channels in blocks as wide as a register. Networks whose layers have only 1
to 16 channels leave much of such a block idle; the native convolutions fill registers with the images of a batch.
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


def choose_forward(architecture: str, backend: str | None, device: torch.device) -> Forward:
    """Return the function that computes an architecture's forward passes on a device.

    That is `forward_native` if the backend is `NATIVE`, the device is the CPU and the architecture has a convolution,
    and `forward_torch` otherwise.

    Args:
        backend: The backend that `probe.find_fastest_backend` has found, or None: see `backends`.

    Raises:
        CompilerError: The native convolutions are to be used, but cannot be compiled on this machine.
    """
    if backend != NATIVE or device.type != "cpu" or not has_convolution(architecture):
        return forward_torch
    load_library()
    return forward_native


def forward_native(model: nn.Sequential, images: Tensor) -> Tensor:
    """Run a forward pass with native convolutions, equal to `forward_torch` up to rounding.

    Outside training, one call computes all layers, if it supports all of them.
    """
    if torch.is_grad_enabled():
        return forward_by_layer(model, images)
    logits = compute_logits(model, images)
    if logits is None:
        logits = torch.cat([forward_by_layer(model, chunk) for chunk in images.split(CPU_CHUNK_IMAGES)])
    return logits


def forward_by_layer(model: nn.Sequential, images: Tensor) -> Tensor:
    """Run a forward pass with native convolutions and PyTorch's other layers, one layer after another.

    Until the network flattens its inputs, the axes of channels and images are exchanged: `(channels, n, height, width)`
    in PyTorch's channels-last format, so that the same pixel of all images is contiguous in memory. In this format,
    PyTorch's pooling and activations are as fast as usual.
    """
    modules = list(model)
    outputs = images.transpose(0, 1)
    for before, module, after in zip([None, *modules], modules, [*modules[1:], None], strict=False):
        match module:
            case nn.Conv2d():
                relu = isinstance(after, nn.ReLU)
                outputs = Convolution.apply(outputs, module.weight, module.bias, get_padding(module), relu)
            case nn.ReLU() if isinstance(before, nn.Conv2d):
                pass  # the convolution has computed it
            case nn.Flatten():
                outputs = outputs.transpose(0, 1).flatten(1)
            case _:
                outputs = module(outputs)
    return outputs


class Convolution(Function):
    """A native convolution with stride 1, together with the ReLU that may follow it."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, padding: int, relu: bool) -> Tensor:
        """Compute the outputs, `(outputs, n, height + 2 · padding - k + 1, …)`.

        Args:
            ctx: Keeps what `backward` needs.
            images: `(channels, n, height, width)`.
            weight: `(outputs, channels, k, k)`.
            bias: `(outputs,)`.
            padding: Rows and columns of zeros at each edge of the images.
            relu: Apply a ReLU to the outputs.
        """
        images = put_images_innermost(images)
        outputs = convolve(images, None, weight, bias, padding, relu)
        ctx.save_for_backward(images, weight, outputs if relu else None)
        ctx.padding = padding
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        """Compute the gradients for images, weight and bias from the gradient with respect to the outputs."""
        images, weight, outputs = ctx.saved_tensors
        gradient = put_images_innermost(gradient)
        images_gradient = None
        if ctx.needs_input_grad[0]:  # a convolution as well, with kernels turned by 180°
            turned = weight.flip(2, 3).transpose(0, 1)
            padding = weight.shape[2] - 1 - ctx.padding
            images_gradient = convolve(gradient, outputs, turned, None, padding, relu=False)
        weight_gradient, bias_gradient = torch.empty(weight.shape), torch.empty(len(weight))
        layer = LayerStruct(len(images), *images.shape[2:], images.shape[1], *weight.shape[::3], ctx.padding)
        pointers = map(get_pointer, (images, outputs, gradient, weight_gradient, bias_gradient))
        load_library().layer_gradients(ctypes.byref(layer), *pointers)
        return images_gradient, weight_gradient, bias_gradient, None, None


def convolve(
    images: Tensor, relu_outputs: Tensor | None, weight: Tensor, bias: Tensor | None, padding: int, relu: bool
) -> Tensor:
    """Convolve images `(channels, n, height, width)`; images and result are in channels-last format.

    Args:
        images: The images, or a gradient with respect to a convolution's outputs.
        relu_outputs: The outputs of the ReLU that the gradient belongs to: where they are 0, so is the gradient. None
            otherwise.
        weight: `(outputs, channels, k, k)`.
        bias: `(outputs,)`, or None for zeros.
        relu: Apply a ReLU to the result.

    Returns:
        `(outputs, n, height + 2 · padding - k + 1, width + 2 · padding - k + 1)`.
    """
    channels, n, height, width = images.shape
    weight = weight.contiguous()
    shrink = weight.shape[2] - 1 - 2 * padding
    size = len(weight), n, height - shrink, width - shrink
    convolved = torch.empty(size, memory_format=torch.channels_last)
    layer = LayerStruct(channels, height, width, n, *weight.shape[::3], padding)
    load_library().layer_outputs(
        ctypes.byref(layer), *map(get_pointer, (images, relu_outputs, weight, bias)), int(relu), get_pointer(convolved)
    )
    return convolved


def get_padding(convolution: nn.Conv2d) -> int:
    """Return a convolution's padding.

    Raises:
        ValueError: It is not one that the native code computes: with square kernels, stride 1, and less padding.
    """
    c, kernel, padding = convolution, convolution.kernel_size, convolution.padding
    square = kernel[0] == kernel[1] and not isinstance(padding, str) and padding[0] == padding[1] < kernel[0]
    if not square or (c.stride, c.dilation, c.groups) != ((1, 1), (1, 1), 1):
        raise ValueError(f"the native backend has no code for {c}")
    return int(padding[0])


class LayerStruct(ctypes.Structure):
    """The sizes of a convolution and of its input: `struct Layer` of `convolutions.cpp`."""

    _fields_ = [
        (name, ctypes.c_int) for name in ("channels", "height", "width", "images", "outputs", "kernel", "padding")
    ]


class StepStruct(ctypes.Structure):
    """A layer of a network outside training: `struct Step` of `convolutions.cpp`."""

    CONVOLVE, FLATTEN, LARGEST, AVERAGE = range(4)
    _fields_ = [
        *((name, ctypes.c_int) for name in ("kind", "outputs", "kernel", "padding", "relu")),
        *((name, ctypes.c_void_p) for name in ("weights", "bias")),
    ]


def compute_logits(model: nn.Sequential, images: Tensor) -> Tensor | None:
    """Compute the logits of images `(n, channels, height, width)` by one native call for all layers.

    Returns:
        `(n, classes)`, or None if the native code cannot compute one of the layers.
    """
    steps: list[StepStruct] = []
    in_use = [images.contiguous()]  # references that keep memory alive until the call has ended

    def make_step(module: nn.Conv2d | nn.Linear, kernel: int, padding: int) -> StepStruct:
        in_use.append(module.weight.contiguous())
        sizes = len(module.weight), kernel, padding
        return StepStruct(StepStruct.CONVOLVE, *sizes, 0, get_pointer(in_use[-1]), get_pointer(module.bias))

    for module in model:
        match module:
            case nn.Conv2d():
                steps.append(make_step(module, module.kernel_size[0], get_padding(module)))
            case nn.Linear():
                steps.append(make_step(module, 1, 0))
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
    logits = torch.empty(len(images), steps[-1].outputs)
    load_library().network_logits(
        (StepStruct * len(steps))(*steps), len(steps), get_pointer(in_use[0]), *images.shape, get_pointer(logits)
    )
    return logits


def put_images_innermost(images: Tensor) -> Tensor:
    """Return `(channels, n, height, width)` with the images innermost in memory: in channels-last format."""
    return images.contiguous(memory_format=torch.channels_last)


def get_pointer(tensor: Tensor | None) -> int | None:
    """Return the address of a tensor's float32 numbers; None for no tensor."""
    if tensor is None:
        return None
    if tensor.dtype != torch.float32:
        raise TypeError(f"the native backend computes with float32, not {tensor.dtype}")
    return tensor.data_ptr()


class CompilerError(Exception):
    """An error that says why the native convolutions cannot be compiled on this machine."""


@cache
def load_library() -> ctypes.CDLL:
    """Return the compiled library, from the user's cache if one for this kind of machine is there.

    Raises:
        CompilerError: There is no compiler, or it fails.
    """
    try:
        compiler = [*shlex.split(os.environ.get("CXX", "c++")), *COMPILER_OPTIONS]
        # The compiler's predefined macros contain its version and the instruction sets of this machine's processor.
        macros = run_command([*compiler, "-dM", "-E", "-x", "c++", os.devnull])
        name = hashlib.sha256(f"{SOURCE.read_text(encoding='utf-8')}{COMPILER_OPTIONS}{macros}".encode()).hexdigest()[
            :16
        ]
        path = get_cache_folder() / f"convolutions-{name}.so"
        try:
            library = ctypes.CDLL(str(path))
        except OSError:  # the file is missing, or is not a library
            path.unlink(missing_ok=True)
            compile_library(compiler, path)
            library = ctypes.CDLL(str(path))
    except (OSError, ValueError, RuntimeError) as error:  # no compiler; bad quoting in CXX; no home folder
        raise CompilerError(str(error)) from error
    address, number = ctypes.c_void_p, ctypes.c_int
    library.layer_outputs.argtypes = [*[address] * 5, number, address]
    library.layer_gradients.argtypes = [address] * 6
    library.network_logits.argtypes = [address, number, address, *[number] * 4, address]
    return library


def compile_library(compiler: Sequence[str], path: Path) -> None:
    """Compile the library into `path` atomically; keep a file that another process has just put there.

    A library must not be replaced while a process has it loaded: on NFS, that process would lose it.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, suppress(FileExistsError):
        compiled = Path(folder) / path.name
        run_command([*compiler, "-o", str(compiled), str(SOURCE)])
        with compiled.open("rb") as file:  # after a power cut, half a library would crash the process that loads it
            os.fsync(file.fileno())
        path.hardlink_to(compiled)


def get_cache_folder() -> Path:
    """Return this project's cache folder, as the XDG Base Directory Specification defines it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "neural-sweeps"


def run_command(command: list[str]) -> str:
    """Run a command and return what it prints.

    Raises:
        CompilerError: The command fails.
    """
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        raise CompilerError(f"{command[0]} failed: {done.stderr.strip().partition(chr(10))[0]}")
    return done.stdout

"""Convolutions of a stack's members on a GPU, each with its own weights, as kernels in Triton.

cuDNN has grouped convolutions for this, which are made for many channels; these networks have 1 to 32. Here a thread
keeps several neighbouring outputs of all filters in registers, so that what it loads is used many times. All sums are
taken in the same order at every call.

Imported only where a GPU trains, as Triton comes with PyTorch for CUDA alone.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

# The fastest of several sizes on an H200, for batches of 50 images and for validation
POSITIONS = 512  # outputs of each filter that a program computes
TAPS = 512  # at most this many weights of each filter have their gradients computed by a program
IMAGES_PER_PART = 2  # images over which such a program sums
WARPS = 4
WARP_THREADS = 32
MIN_CAPABILITY = (8, 0)  # the oldest GPUs that Triton supports


@triton.jit  # type: ignore[untyped-decorator]
def convolve_kernel(
    inputs: tl.tensor,
    weights: tl.tensor,
    bias: tl.tensor,
    outputs: tl.tensor,
    member_stride: tl.tensor,
    positions: tl.tensor,
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    filters: tl.constexpr,
    side: tl.constexpr,
    has_bias: tl.constexpr,
    block: tl.constexpr,
    lanes: tl.constexpr,
) -> None:
    """Compute `block` outputs of every filter of one member. A position is an image, a row and a column."""
    out_width: tl.constexpr = width - side + 1
    area: tl.constexpr = (height - side + 1) * out_width
    member = tl.program_id(1).to(tl.int64)
    position = tl.program_id(0) * block + tl.arange(0, block)
    known = tl.minimum(position, positions - 1)  # loads then need no mask
    image = known // area
    rest = known % area
    pixels = inputs + member * member_stride + image * (channels * height * width)
    pixels += rest // out_width * width + rest % out_width
    lane = tl.arange(0, lanes)
    own = tl.minimum(lane, filters - 1)
    taps = weights + member * (channels * side * side * filters) + own
    sums = tl.zeros((lanes, block), dtype=outputs.dtype.element_ty)
    for _ in range(channels):
        for _ in range(side):
            for column in tl.static_range(side):
                sums += tl.load(taps + column * filters)[:, None] * tl.load(pixels + column)[None, :]
            taps += side * filters
            pixels += width
        pixels += (height - side) * width
    if has_bias:
        sums += tl.load(bias + member * filters + own)[:, None]
    places = member * positions * filters + (image * filters)[None, :] * area + own[:, None] * area + rest[None, :]
    tl.store(outputs + places, sums, mask=(position < positions)[None, :] & (lane < filters)[:, None])


@triton.jit  # type: ignore[untyped-decorator]
def weight_gradient_kernel(
    inputs: tl.tensor,
    gradients: tl.tensor,
    parts: tl.tensor,
    member_stride: tl.tensor,
    images: tl.tensor,
    height: tl.constexpr,
    width: tl.constexpr,
    channels: tl.constexpr,
    filters: tl.constexpr,
    side: tl.constexpr,
    images_per_part: tl.constexpr,
    block: tl.constexpr,
    lanes: tl.constexpr,
) -> None:
    """Sum the gradients of up to `block` weights of every filter of one member over a few images."""
    out_width: tl.constexpr = width - side + 1
    out_height: tl.constexpr = height - side + 1
    area: tl.constexpr = out_height * out_width
    taps: tl.constexpr = channels * side * side
    member = tl.program_id(2).to(tl.int64)
    tap = tl.program_id(0) * block + tl.arange(0, block)
    known = tl.minimum(tap, taps - 1)
    offset = known // (side * side) * (height * width) + known % (side * side) // side * width + known % side
    lane = tl.arange(0, lanes)
    own = tl.minimum(lane, filters - 1)
    first = tl.program_id(1) * images_per_part
    sums = tl.zeros((lanes, block), dtype=parts.dtype.element_ty)
    for number in range(images_per_part):
        image = tl.minimum(first + number, images - 1)
        counts = (first + number < images).to(parts.dtype.element_ty)
        pixels = inputs + member * member_stride + image * (channels * height * width) + offset
        outputs = gradients + (member * images + image) * (filters * area) + own * area
        for _ in range(out_height):
            for column in range(out_width):
                sums += (counts * tl.load(outputs + column))[:, None] * tl.load(pixels + column)[None, :]
            pixels += width
            outputs += out_width
    row = (member * tl.num_programs(1) + tl.program_id(1)) * filters + own
    tl.store(parts + row[:, None] * taps + tap[None, :], sums, mask=(tap < taps)[None, :] & (lane < filters)[:, None])


def convolve(inputs: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve without padding: `(members, n, channels, h, w)` → `(members, n, filters, h', w')`.

    Args:
        inputs: The inputs; they may be an expanded view of inputs that all members share.
        weights: `(members, filters, channels, side, side)`.
        bias: `(members, filters)`, or None.
    """
    members, images, channels, height, width = inputs.shape
    filters, side = weights.shape[1], weights.shape[-1]
    out_height, out_width = height - side + 1, width - side + 1
    inputs = inputs if inputs[0].is_contiguous() else inputs.contiguous()
    outputs = inputs.new_empty(members, images, filters, out_height, out_width)
    filters_innermost = weights.permute(0, 2, 3, 4, 1).contiguous()
    positions = images * out_height * out_width
    convolve_kernel[(triton.cdiv(positions, POSITIONS), members)](
        *(inputs, filters_innermost, filters_innermost if bias is None else bias, outputs),
        *(inputs.stride(0), positions, height, width, channels, filters, side, bias is not None),
        block=POSITIONS,
        lanes=triton.next_power_of_2(filters),
        num_warps=WARPS,
    )
    return outputs


def compute_weight_gradient(inputs: Tensor, gradient: Tensor, side: int) -> Tensor:
    """Compute the weights' gradient `(members, filters, channels, side, side)` from that of the outputs."""
    members, images, channels, height, width = inputs.shape
    filters, taps = gradient.shape[2], channels * side * side
    inputs = inputs if inputs[0].is_contiguous() else inputs.contiguous()
    parts = inputs.new_empty(members, triton.cdiv(images, IMAGES_PER_PART), filters, taps)
    block = min(TAPS, triton.next_power_of_2(taps))
    weight_gradient_kernel[(triton.cdiv(taps, block), parts.shape[1], members)](
        *(inputs, gradient, parts, inputs.stride(0), images, height, width, channels, filters, side, IMAGES_PER_PART),
        block=block,
        lanes=triton.next_power_of_2(filters),
        num_warps=max(1, min(WARPS, block // WARP_THREADS)),
    )
    return parts.sum(dim=1).view(members, filters, channels, side, side)


class Convolution(Function):
    """A convolutional layer of all members, with stride 1 and without padding."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
        """Compute the outputs; shapes as in `convolve`."""
        ctx.save_for_backward(inputs, weights)
        return convolve(inputs, weights, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """Compute the gradients for inputs, weights and bias from that for the outputs."""
        inputs, weights = ctx.saved_tensors
        side, gradient = weights.shape[-1], gradient.contiguous()
        for_inputs = None
        if ctx.needs_input_grad[0]:  # a convolution over a frame of zeros, with the weights turned around
            framed = functional.pad(gradient, 4 * (side - 1,))
            for_inputs = convolve(framed, weights.flip(3, 4).transpose(1, 2), None)
        return for_inputs, compute_weight_gradient(inputs, gradient, side), gradient.sum(dim=(1, 3, 4))


def apply_layer(inputs: Tensor, weights: Tensor, bias: Tensor, padding: int) -> Tensor:
    """Apply a convolutional layer of all members, with zeros around the inputs."""
    outputs: Tensor = Convolution.apply(functional.pad(inputs, 4 * (padding,)) if padding else inputs, weights, bias)
    return outputs


@cache
def is_usable() -> bool:
    """Return whether Triton can compile for this GPU; if it should and cannot, warn."""
    if torch.cuda.get_device_capability() < MIN_CAPABILITY:
        return False
    try:
        convolve(*(torch.zeros(shape, device="cuda") for shape in ((1, 1, 1, 3, 3), (1, 1, 1, 2, 2), (1, 1))))
    except Exception as error:  # Triton and the C compiler below it raise their own
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"stacks train with cuDNN's convolutions: {type(error).__name__}: {reason}", stacklevel=2)
        return False
    return True

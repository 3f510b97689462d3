"""The kernels in Triton, without a GPU: run by Triton's interpreter, and compiled for two kinds of GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")  # comes with PyTorch for CUDA

ROOT = Path(__file__).resolve().parent.parent

INTERPRET = """
import torch
from torch.nn import functional

from trainables.accelerated.gpu_convolutions import apply_layer

for channels, filters, side, padding in ((1, 16, 3, 0), (4, 8, 3, 0), (3, 6, 5, 2)):
    shapes = ((2, 3, channels, 9, 9), (2, filters, channels, side, side), (2, filters))
    exact = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    actual = apply_layer(*exact, padding)
    expected = torch.stack([functional.conv2d(*member, padding=padding) for member in zip(*exact)])
    torch.testing.assert_close(actual, expected)
    gradient = torch.randn_like(expected)
    pair = [torch.autograd.grad(outputs, exact, gradient) for outputs in (actual, expected)]
    for found, wanted in zip(*pair):
        torch.testing.assert_close(found, wanted)
shared = torch.randn(3, 4, 9, 9).expand(2, 3, 4, 9, 9)  # as in validation
weights, bias = torch.randn(2, 8, 4, 3, 3), torch.zeros(2, 8)
expected = torch.stack([functional.conv2d(shared[0], own) for own in weights])
torch.testing.assert_close(apply_layer(shared, weights, bias, 0), expected, rtol=1e-4, atol=1e-4)
print("equal")
"""

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from trainables.accelerated import gpu_convolutions as g

SIZES = {"height": 11, "width": 11, "channels": 2, "filters": 4, "side": 3, "block": 32, "lanes": 4}
for kernel, more in (
    (g.convolve_kernel, {"has_bias": True, "block": 512}),
    (g.weight_gradient_kernel, {"images_per_part": 2}),
):
    constants = {**SIZES, **more}
    tensors = ("inputs", "weights", "bias", "outputs", "gradients", "parts")
    kinds = {name: "constexpr" if name in constants else "i32" for name in kernel.arg_names}
    kinds |= {name: "*fp32" for name in kernel.arg_names if name in tensors}
    source = ASTSource(kernel, kinds, {(kernel.arg_names.index(name),): value for name, value in constants.items()})
    for capability in (80, 90):
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 1})
        print(len(compiled.asm["cubin"]) > 0)
"""


def run(code: str, tmp_path: Path, **variables: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path), **variables}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_kernels_compute_what_pytorch_does(tmp_path: Path) -> None:
    assert run(INTERPRET, tmp_path, TRITON_INTERPRET="1") == "equal\n"


def test_the_kernels_compile_for_gpus(tmp_path: Path) -> None:
    assert run(COMPILE, tmp_path) == "True\n" * 4

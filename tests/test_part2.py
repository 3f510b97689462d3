from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis.part2 import Part2, convolve, load_default_images, main, make_default_kernels
from trainables.errors import BadInputError

ROOT = Path(__file__).resolve().parent.parent


@st.composite
def shapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Draw shapes of images and kernels that fit each other."""
    batch, inputs, outputs = (draw(st.integers(1, 4)) for _ in range(3))
    height, width = draw(st.integers(1, 10)), draw(st.integers(1, 10))
    kernel = draw(st.integers(1, height)), draw(st.integers(1, width))
    return (batch, inputs, height, width), (outputs, inputs, *kernel)


@given(shapes(), st.integers(0, 2**32 - 1))
def test_a_convolution_equals_that_of_torch_on_any_valid_shapes(
    pair: tuple[tuple[int, ...], tuple[int, ...]], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    images, kernels = (generator.normal(size=shape) for shape in pair)
    expected = torch.nn.functional.conv2d(torch.from_numpy(images), torch.from_numpy(kernels)).numpy()
    np.testing.assert_allclose(convolve(images, kernels), expected, atol=1e-10)


@given(shapes(), st.integers(0, 2**32 - 1))
def test_a_convolution_of_integers_is_exact(pair: tuple[tuple[int, ...], tuple[int, ...]], seed: int) -> None:
    generator = np.random.default_rng(seed)
    images, kernels = (generator.integers(-100, 100, shape) for shape in pair)
    outputs = convolve(images, kernels)
    expected = torch.nn.functional.conv2d(torch.from_numpy(images).double(), torch.from_numpy(kernels).double())
    assert outputs.dtype == np.int64
    assert outputs.tolist() == expected.long().tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, bool])
def test_small_integers_do_not_overflow(dtype: type) -> None:
    images = np.full((1, 1, 3, 3), 100, dtype)
    expected = int(images[0, 0, 0, 0]) * 4 * int(images[0, 0, 0, 0])
    assert convolve(images, images[:, :, :2, :2]).tolist() == [[[[expected] * 2] * 2]]


def test_a_convolution_computed_by_hand() -> None:
    image = np.arange(9).reshape(1, 1, 3, 3)
    kernel = np.array([[[[1, 0], [0, -1]]]])
    assert convolve(image, kernel).tolist() == [[[[-4, -4], [-4, -4]]]]  # 0 - 4, 1 - 5, 3 - 7, 4 - 8


@pytest.mark.parametrize(
    ("images", "kernels", "sentence"),
    [
        (np.zeros((3, 5, 5)), np.zeros((1, 1, 2, 2)), r"the input has shape \(3, 5, 5\); it must have four dimensions"),
        (np.zeros((1, 1, 5, 5)), np.zeros((2, 2)), "the kernel has shape"),
        (np.zeros((0, 1, 5, 5)), np.zeros((1, 1, 2, 2)), "none of them empty"),
        (np.zeros((1, 3, 5, 5)), np.zeros((1, 1, 2, 2)), "the input has 3 channels and the kernel 1"),
        (np.zeros((1, 1, 5, 5)), np.zeros((1, 1, 6, 2)), "the kernel of 6×2 is larger than the image of 5×5"),
        (np.full((1, 1, 5, 5), "a"), np.zeros((1, 1, 2, 2)), "must hold whole or floating-point numbers"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(images: np.ndarray, kernels: np.ndarray, sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence):
        convolve(images, kernels)


def test_files_are_read_and_outputs_and_a_figure_written(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 28, 28), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "kernels.npy", make_default_kernels())
    options = Part2(images=tmp_path / "images.npy", kernels=tmp_path / "kernels.npy", out=tmp_path / "out")
    assert main(options) == 0
    outputs = np.load(tmp_path / "out" / "part2.npy")
    assert outputs.shape == (5, 8, 25, 25)
    np.testing.assert_array_equal(outputs, convolve(images, make_default_kernels()))
    assert (tmp_path / "out" / "part2.png").stat().st_size > 1000


def test_the_default_kernels_fit_the_default_images() -> None:
    assert convolve(load_default_images(), make_default_kernels()).shape == (5, 8, 29, 29)


@pytest.mark.parametrize("content", [b"", b"not an array", b"PK\x03\x04 no archive", None])
def test_files_that_cannot_be_read_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "images.npy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInputError, match=r"the input file .*images.npy cannot be read"):
        main(Part2(images=path, out=tmp_path))


def test_pickled_files_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.array([print], dtype=object))
    with pytest.raises(BadInputError, match="cannot be read"):
        main(Part2(images=tmp_path / "images.npy", out=tmp_path))


@pytest.mark.slow
def test_figures_do_not_depend_on_the_users_settings_of_matplotlib(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfigure.figsize: 1, 1\nlines.linewidth: 9\n")
    users = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "MATPLOTLIBRC": str(tmp_path)}
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MPL", "MATPLOTLIB"))}
    for out, settings in (("clean", {}), ("users", users)):
        command = [sys.executable, "analysis/part2.py", "--out", str(tmp_path / out)]
        environment = {**clean, **settings, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    images = [(tmp_path / out / "part2.png").read_bytes() for out in ("clean", "users")]
    assert images[0] == images[1]

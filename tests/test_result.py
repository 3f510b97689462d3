from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.persistence.delivery import decode_result, encode_result
from trainables.result import CORRECT_BITS, TEST_IMAGES, Result


def make_result(correct: list[bool] | None) -> Result:
    accuracy = 50.0 if correct is None else 100 * sum(correct) / len(correct)
    found = None if correct is None else np.array(correct)
    curves = {"train_loss": np.ones(2, np.float32)}
    return Result(np.array([10, 20]), curves, accuracy, np.zeros((2, 2), np.float32), found)


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_a_result_keeps_which_test_images_were_right(correct: list[bool]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "result.npz"
        make_result(correct).save(path)
        found = Result.load(path).test_correct
    assert found is not None
    assert found.tolist() == correct


def test_results_of_earlier_versions_have_no_test_images(tmp_path: Path) -> None:
    make_result(None).save(tmp_path / "result.npz")  # as earlier versions wrote it
    assert Result.load(tmp_path / "result.npz").test_correct is None
    content = encode_result(make_result(None), 20, {}, model=None)
    del content["test_correct"]
    assert decode_result(content).test_correct is None


def test_a_kept_result_has_the_test_images(tmp_path: Path) -> None:
    found = decode_result(encode_result(make_result([True, False]), 20, {}, model=None)).test_correct
    assert found is not None
    assert found.tolist() == [True, False]


@pytest.mark.parametrize(
    ("bits", "images"), [(np.zeros(2, np.uint8), 8), (np.zeros(1, np.uint8), 0), (np.zeros(1, np.float32), 8)]
)
def test_damaged_bits_are_refused(bits: np.ndarray, images: int, tmp_path: Path) -> None:
    make_result(None).save(tmp_path / "result.npz")
    with np.load(tmp_path / "result.npz") as arrays:
        content = dict(arrays)
    np.savez(tmp_path / "result.npz", **content, **{CORRECT_BITS: bits, TEST_IMAGES: images})
    with pytest.raises(ValueError, match="one bit a test image"):
        Result.load(tmp_path / "result.npz")


def test_bits_that_are_not_those_of_the_accuracy_are_refused(tmp_path: Path) -> None:
    replace(make_result([True, False]), test_accuracy=60.0).save(tmp_path / "result.npz")
    with pytest.raises(ValueError, match="not that of the test images"):
        Result.load(tmp_path / "result.npz")

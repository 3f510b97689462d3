"""The result of a finished trial, and the `.npz` file that holds it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CORRECT_BITS, TEST_IMAGES = "test_correct", "test_images"  # arrays of the file


@dataclass(frozen=True)
class Result:
    """The recorded curves, the test accuracy and the first layer's weights of a finished trial.

    Attributes:
        steps: `(records,)`, the optimiser step of each record.
        curves: Quantity's name → `(records,)`, in float32, or float64 for "xor". If the trial diverged, its curves end
            with the record whose loss is NaN or infinite.
        test_accuracy: In percent, after training; NaN if the trial diverged.
        first_layer: `(features, inputs)` for an MLP, `(filters, channels, k, k)` for a CNN; for "xor", the weights of
            all layers, `(3, 3)`.
        test_correct: `(test images,)`, which test images the trained network names right; None if the trial diverged,
            for "xor", and in results of versions that did not store it.
    """

    steps: NDArray[np.int64]
    curves: dict[str, NDArray[np.floating]]
    test_accuracy: float
    first_layer: NDArray[np.floating]
    test_correct: NDArray[np.bool_] | None = None

    @property
    def diverged(self) -> bool:
        """True if training ended early, because a recorded loss was NaN or infinite."""
        return math.isnan(self.test_accuracy)

    def save(self, path: Path) -> None:
        """Write the result to one `.npz` file, without pickle."""
        packed = {} if self.test_correct is None else pack_bits(self.test_correct)
        np.savez(
            path,
            allow_pickle=False,
            steps=self.steps,
            test_accuracy=np.float64(self.test_accuracy),
            first_layer=self.first_layer,
            **{f"curve_{name}": curve for name, curve in self.curves.items()},
            **packed,
        )

    @staticmethod
    def load(path: Path) -> Result:
        """Read a file that `save` wrote.

        Raises:
            ValueError: The arrays are not of the kind that `save` writes.
            Exception: The file is missing or damaged: whatever zipfile and NumPy raise is not caught here.
        """
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            curves = {name.removeprefix("curve_"): arrays[name] for name in arrays if name.startswith("curve_")}
            correct = unpack_bits(arrays) if CORRECT_BITS in arrays else None
            result = Result(arrays["steps"], curves, float(arrays["test_accuracy"]), arrays["first_layer"], correct)
        if result.steps.ndim != 1 or result.steps.dtype.kind != "i" or (np.diff(result.steps) <= 0).any():
            raise ValueError("its steps are not increasing whole numbers")
        for array in (*curves.values(), result.first_layer):
            if array.dtype.kind != "f" or (array is not result.first_layer and array.shape != result.steps.shape):
                raise ValueError("its curves are not one number a step")
        if correct is not None and not math.isclose(100 * correct.mean(), result.test_accuracy, abs_tol=1e-3):
            raise ValueError("its test accuracy is not that of the test images that it names")
        return result


def pack_bits(correct: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """Return the arrays that hold one bit for each test image."""
    return {CORRECT_BITS: np.packbits(correct), TEST_IMAGES: np.array(len(correct))}


def unpack_bits(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Return which test images are named right, `(test images,)`, from the arrays that `pack_bits` made.

    Raises:
        ValueError: The arrays are not of the kind that `pack_bits` makes.
    """
    bits, images = arrays[CORRECT_BITS], int(arrays[TEST_IMAGES])
    if bits.dtype != np.uint8 or bits.ndim != 1 or images < 1 or len(bits) != -(-images // 8):
        raise ValueError("it does not hold one bit a test image")
    return np.unpackbits(bits, count=images).astype(np.bool_)

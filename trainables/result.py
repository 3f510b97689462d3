"""The result of a finished trial, and the `.npz` file that holds it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


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
    """

    steps: NDArray[np.int64]
    curves: dict[str, NDArray[np.floating]]
    test_accuracy: float
    first_layer: NDArray[np.floating]

    @property
    def diverged(self) -> bool:
        """True if training ended early, because a recorded loss was NaN or infinite."""
        return math.isnan(self.test_accuracy)

    def save(self, path: Path) -> None:
        """Write the result to one `.npz` file, without pickle."""
        np.savez(
            path,
            allow_pickle=False,
            steps=self.steps,
            test_accuracy=np.float64(self.test_accuracy),
            first_layer=self.first_layer,
            **{f"curve_{name}": curve for name, curve in self.curves.items()},
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
            result = Result(arrays["steps"], curves, float(arrays["test_accuracy"]), arrays["first_layer"])
        if result.steps.ndim != 1 or result.steps.dtype.kind != "i" or (np.diff(result.steps) <= 0).any():
            raise ValueError("its steps are not increasing whole numbers")
        for array in (*curves.values(), result.first_layer):
            if array.dtype.kind != "f" or (array is not result.first_layer and array.shape != result.steps.shape):
                raise ValueError("its curves are not one number a step")
        return result

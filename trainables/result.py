"""What a finished trial leaves, and the file that holds it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Result:
    """What a finished trial leaves.

    Attributes:
        steps: `(records,)` the optimiser step of each record.
        curves: name → `(records,)`; float32, float64 of "xor".
            Those of a trial that diverged end with the record whose loss is NaN or infinite.
        test_accuracy: In percent, after training; NaN of a trial that diverged.
        first_layer: `(features, inputs)` of an MLP, `(filters, channels, k, k)` of a CNN; all weights of "xor".
    """

    steps: NDArray[np.int64]
    curves: dict[str, NDArray[np.floating]]
    test_accuracy: float
    first_layer: NDArray[np.floating]

    @property
    def diverged(self) -> bool:
        """Whether training ended early, with a loss that is no number."""
        return math.isnan(self.test_accuracy)

    def save(self, path: Path) -> None:
        """Write all to one `.npz` file, without pickle."""
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
        """Read what `save` wrote; whatever a damaged file makes zipfile and NumPy raise passes through.

        Raises:
            ValueError: The arrays are not what `save` writes.
        """
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            curves = {name.removeprefix("curve_"): arrays[name] for name in arrays if name.startswith("curve_")}
            result = Result(arrays["steps"], curves, float(arrays["test_accuracy"]), arrays["first_layer"])
        if result.steps.ndim != 1 or result.steps.dtype.kind != "i" or (np.diff(result.steps) <= 0).any():
            raise ValueError("its steps are not rising whole numbers")
        for array in (*curves.values(), result.first_layer):
            if array.dtype.kind != "f" or (array is not result.first_layer and array.shape != result.steps.shape):
                raise ValueError("its curves are not one number a step")
        return result

"""Settings compared over their seeds: which of them leads, and which are not distinguishable from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis.answers import Answer, Claims, Draft, Estimate
from analysis.wording import choose_digits, describe_share, format_estimate, format_number, format_range, join_words
from sweeps.comparisons import compute_detectable_difference, compute_difference
from sweeps.intervals import compute_mean_interval


class Quantity(NamedTuple):
    """A quantity that settings are compared by.

    Attributes:
        name: Name in sentences.
        unit: Unit of its values.
        difference_unit: Unit of differences of its values.
        highest: Greatest possible value; the least is 0.
    """

    name: str
    unit: str
    difference_unit: str
    highest: float


TEST_ACCURACY = Quantity("test accuracy", "%", "percentage points", 100)
VALIDATION_ACCURACY = Quantity("validation accuracy", "%", "percentage points", 100)
TRAINING_LOSS = Quantity("final training loss", "", "", math.inf)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings with a value for each of their seeds.

    Attributes:
        names: Names of the settings.
        values: Values, `(settings, seeds)`; NaN where a trial is missing or has diverged.
        diverged: Whether trials behind a value have diverged, `(settings, seeds)`.
        stuck: Whether trials behind a value are stuck at chance, `(settings, seeds)`.
        quantity: What the values are.
        paired: True if a seed means the same in all settings, as where they share initial weights.
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]
    diverged: NDArray[np.bool_]
    stuck: NDArray[np.bool_]
    quantity: Quantity
    paired: bool

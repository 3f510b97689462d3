"""A sweep: axes and fixed settings, and the trials that follow from them. Pure data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from trainables.errors import BadInputError
from trainables.trial import Trial

MAX_TRIALS = 100_000  # more are a slip of the keyboard: listing them would fill the memory before anybody saw a plan
UNITS = {"seed": "seed ", "learning_rate": "rate ", "batch_size": "batch ", "noise_sigma": "σ "}

Axis = Sequence[Any] | Mapping[str, Mapping[str, Any]]


def check_axis(field: str, values: Axis) -> None:
    """Raise `BadInputError` where an axis has no value, or one twice."""
    if not values:
        raise BadInputError(f"the sweep has no value for {field}; give at least one")
    if len(set(values)) < len(values):
        raise BadInputError(f"the sweep has a value for {field} twice; give each once")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Axes, the slowest first, and the settings that all trials share.

    An axis is a field of `Trial` with its values, or a mapping from names to settings of several fields at once, where
    not every combination is wanted.

    Example:
        >>> sweep = Sweep(
        ...     name="demo",
        ...     axes={
        ...         "seed": range(2),
        ...         "model": {"a": {"architecture": "mlp_1"}, "b": {"architecture": "cnn_3", "pooling": "avg"}},
        ...     },
        ...     fixed={"dataset": "digits", "learning_rate": 0.01, "epochs": 5},
        ... )
        >>> list(sweep.labels().values())
        ['a · seed 0', 'b · seed 0', 'a · seed 1', 'b · seed 1']
    """

    name: str
    axes: Mapping[str, Axis]
    fixed: Mapping[str, Any]

    def __post_init__(self) -> None:
        combinations = math.prod(len(values) for values in self.axes.values())
        if combinations > MAX_TRIALS:
            raise BadInputError(
                f"the sweep has {combinations:,} combinations of its axes' values; {MAX_TRIALS:,} at most can run: "
                "give fewer seeds or values"
            )
        for field, values in self.axes.items():
            check_axis(field, values)

    def cells(self) -> Iterator[tuple[tuple[Any, ...], Trial]]:
        """Every combination of the axes' values (names, of a mapping), in the axes' order, with its trial."""
        for values in product(*self.axes.values()):
            settings = dict(self.fixed)
            for (name, axis), value in zip(self.axes.items(), values, strict=True):
                settings.update(axis[value] if isinstance(axis, Mapping) else {name: value})
            yield values, Trial(**settings)

    def trials(self) -> tuple[Trial, ...]:
        """The distinct trials in order: cells that compute the same share one."""
        return tuple(dict.fromkeys(trial for _, trial in self.cells()))

    def labels(self) -> dict[str, str]:
        """By trial id, a readable name from the values of the axes, the seed last: `cnn_3 · seed 4`."""
        labels: dict[str, str] = {}
        for values, trial in self.cells():
            parts = sorted(zip(self.axes, values, strict=True), key=lambda part: part[0] == "seed")
            applying = [(name, value) for name, value in parts if getattr(trial, name, value) is not None]
            labels.setdefault(trial.id, " · ".join(f"{UNITS.get(name, '')}{value}" for name, value in applying))
        return labels

"""A sweep: axes and fixed settings, and the trials that follow from them. Pure data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from trainables.trial import BadInputError, Trial

UNITS = {"seed": "seed ", "learning_rate": "rate ", "batch_size": "batch "}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Axes (field of `Trial` → values, the slowest first) and the settings that all trials share.

    Example:
        >>> sweep = Sweep(
        ...     name="demo",
        ...     axes={"seed": range(2), "architecture": ["mlp_1", "cnn_3"]},
        ...     fixed={"dataset": "digits", "learning_rate": 0.01, "epochs": 5},
        ... )
        >>> [sweep.label(trial) for trial in sweep.trials()]
        ['mlp_1 · seed 0', 'cnn_3 · seed 0', 'mlp_1 · seed 1', 'cnn_3 · seed 1']
    """

    name: str
    axes: Mapping[str, Sequence[Any]]
    fixed: Mapping[str, Any]

    def __post_init__(self) -> None:
        for field, values in self.axes.items():
            if not values:
                raise BadInputError(f"the sweep has no value for {field}; give at least one")

    def cells(self) -> Iterator[tuple[tuple[Any, ...], Trial]]:
        """Every combination of the axes' values, in the axes' order, with its trial."""
        for values in product(*self.axes.values()):
            yield values, Trial(**dict(zip(self.axes, values, strict=True)), **self.fixed)

    def trials(self) -> tuple[Trial, ...]:
        """The distinct trials in order: cells that compute the same share one."""
        return tuple(dict.fromkeys(trial for _, trial in self.cells()))

    def label(self, trial: Trial) -> str:
        """A readable name from the values of the axes, the seed last: `cnn_3 · seed 4`."""
        fields = sorted(self.axes, key=lambda field: field == "seed")
        values = [(field, getattr(trial, field)) for field in fields]
        return " · ".join(f"{UNITS.get(field, '')}{value}" for field, value in values if value is not None)

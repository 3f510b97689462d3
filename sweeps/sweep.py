"""Sweeps: axes and fixed settings, and the trials that follow from them. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from trainables.errors import BadInputError
from trainables.result import Result
from trainables.trial import Trial

MAX_TRIALS = 100_000  # more is surely a typing error, and a list of them would fill the memory before a plan is shown
NAME_PREFIXES = {"seed": "seed ", "learning_rate": "rate ", "batch_size": "batch ", "noise_sigma": "σ "}

ReadResult = Callable[[Trial], Result | None]
"""A function that reads a trial's result from the store, or returns None if the trial is not finished."""

Axis = Sequence[Any] | Mapping[str, Mapping[str, Any]]
"""The values of an axis, or its names with the settings that each stands for."""


def format_count(n: int, noun: str) -> str:
    """Return a number and a noun, such as "1 trial" or "3 missing trials"."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def check_axis(field: str, values: Axis) -> None:
    """Raise `BadInputError` where an axis has no value, or has one twice."""
    if not values:
        raise BadInputError(f"the sweep has no value for {field}; give at least one")
    if len(set(values)) < len(values):
        raise BadInputError(f"the sweep has a value for {field} twice; give each once")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Axes, and the settings that all trials share.

    An axis is a field of `Trial` with its values. Where not every combination is wanted, it is a mapping from names to
    settings of several fields at once.

    Attributes:
        name: The name of the experiment.
        axes: The axes; the first changes slowest from trial to trial.
        fixed: The settings of `Trial` that are the same for all.
        heading: What it is within its experiment, where that has many stages, such as "round 3".
        shows_test: Whether test accuracies are shown; a round of a search must not look at them.
        stacks_convolutions: Whether networks with convolutions may train side by side on a CPU, which changes their
            last bits.
        conclude: Returns sentences on what all stages have shown, given a function that reads a trial's result. Only
            the last stage of a search has it.

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
    heading: str = ""
    shows_test: bool = True
    stacks_convolutions: bool = True
    conclude: Callable[[ReadResult], Sequence[str]] | None = None

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
        """Yield every combination of the axes' values (the names of a mapping), with its trial."""
        yield from self._cells

    @cached_property
    def _cells(self) -> tuple[tuple[tuple[Any, ...], Trial], ...]:
        """The combinations, made once: they are asked for many times, and each trial's id is a hash."""
        cells = []
        for values in product(*self.axes.values()):
            settings = dict(self.fixed)
            for (name, axis), value in zip(self.axes.items(), values, strict=True):
                settings.update(axis[value] if isinstance(axis, Mapping) else {name: value})
            cells.append((values, Trial(**settings)))
        return tuple(cells)

    def trials(self) -> tuple[Trial, ...]:
        """Return the distinct trials in order: combinations that compute the same share a trial."""
        return tuple(dict.fromkeys(trial for _, trial in self.cells()))

    def parameters(self) -> dict[str, dict[str, str]]:
        """Return trial id → the names of its values on those axes that are mappings: `{"model": "a"}`."""
        named = [name for name, axis in self.axes.items() if isinstance(axis, Mapping)]
        found: dict[str, dict[str, str]] = {}
        for values, trial in self.cells() if named else ():
            by_axis = dict(zip(self.axes, values, strict=True))
            found.setdefault(trial.id, {name: str(by_axis[name]) for name in named})
        return found

    def labels(self) -> dict[str, str]:
        """Return trial id → readable name, from the values of the axes, the seed last: `cnn_3 · seed 4`."""
        labels: dict[str, str] = {}
        for values, trial in self.cells():
            parts = sorted(zip(self.axes, values, strict=True), key=lambda part: part[0] == "seed")
            applying = [(name, value) for name, value in parts if getattr(trial, name, value) is not None]
            labels.setdefault(trial.id, " · ".join(f"{NAME_PREFIXES.get(name, '')}{value}" for name, value in applying))
        return labels

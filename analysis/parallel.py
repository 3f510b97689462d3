"""Parallel coordinates: a vertical axis for each parameter of a search and one for the score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sweeps.rounds import WORST
from sweeps.space import Domain, Range, Space
from trainables.trial import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOTHING = "none"  # the label of a parameter that does not apply, such as the pooling of an MLP
FAILED_BELOW = 0.14  # part of the score's axis between those that failed and the worst of those that learnt
MULTIPLES = (1, 2, 5)  # of powers of ten, that label an axis
TICKS = 4  # of an axis with numbers, at most


@dataclass(frozen=True)
class Scale:
    """A vertical axis.

    Attributes:
        name: Name of the parameter, or "score".
        heights: Value → its height from 0 to 1, for the axis of a choice.
        ends: Values at the bottom and at the top, for an axis with numbers.
        log: Whether equal ratios are equally far apart.
        failed: Whether the lowest part of the axis stands for suggestions that have failed.
    """

    name: str
    heights: Mapping[Any, float]
    ends: tuple[float, float] = (0.0, 1.0)
    log: bool = False
    failed: bool = False

    def place(self, value: Any) -> float:
        """Return the height of a value."""
        if value in self.heights:
            return self.heights[value]
        low, high, value = (math.log(v) if self.log else float(v) for v in (*self.ends, value))
        height = (value - low) / (high - low) if high > low else 0.5
        return FAILED_BELOW + (1 - FAILED_BELOW) * height if self.failed else height

    def list_ticks(self) -> list[tuple[float, str]]:
        """Return heights with their labels."""
        if self.name != "score" and self.heights:
            return [(height, NOTHING if value is None else str(value)) for value, height in self.heights.items()]
        low, high = self.ends
        values = list_round(low, high) if self.log else [low, (low + high) / 2, high] if high > low else [low]
        label = "{:g}" if self.log else "{:.1f}"
        failed = [(0.0, "failed")] if self.failed else []
        return [*failed, *((self.place(value), label.format(value)) for value in values)]


def list_round(low: float, high: float) -> list[float]:
    """Return the ends of a range and round numbers between them that are not close to an end or to each other."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in (MULTIPLES, (1,)):
        inside = [m * 10.0**d for d in decades for m in multiples if 1.4 * low < m * 10.0**d < high / 1.4]
        if len(inside) <= TICKS - 1:
            break
    return [low, *(float(f"{value:.1g}") for value in inside), high]


def make_scales(space: Space, trials: Sequence[Trial], scores: Sequence[float]) -> list[Scale]:
    """Return the axes: of each parameter in which a space leaves a choice, and of the score.

    Args:
        space: The space.
        trials: Trials of the suggestions.
        scores: Their scores.
    """
    varied = {name: domain for name, domain in space.items() if isinstance(domain, Range) or len(domain) > 1}
    scales = [make_scale(name, domain, trials) for name, domain in varied.items()]
    learnt = [score for score in scores if score > WORST]
    failed = len(learnt) < len(scores)
    ends = (min(learnt), max(learnt)) if learnt else (0.0, 1.0)
    return [*scales, Scale("score", {WORST: 0.0} if failed else {}, ends, failed=failed)]


def make_scale(name: str, domain: Domain, trials: Sequence[Trial]) -> Scale:
    """Return the axis of a parameter: choices are equally far apart, and that of a parameter may not apply."""
    if isinstance(domain, Range):
        return Scale(name, {}, (domain.low, domain.high), log=True)
    values = [None] if any(getattr(trial, name) is None for trial in trials) else []
    values += domain
    return Scale(name, {value: index / max(1, len(values) - 1) for index, value in enumerate(values)})


def place(scales: Sequence[Scale], trial: Trial, score: float) -> list[float]:
    """Return the height of a suggestion on each axis."""
    return [*(scale.place(getattr(trial, scale.name)) for scale in scales[:-1]), scales[-1].place(score)]


def draw_scales(axes: Axes, scales: Sequence[Scale]) -> None:
    """Draw the vertical axes with their names and labels."""
    box = {"facecolor": "white", "alpha": 0.85, "linewidth": 0, "boxstyle": "round,pad=0.1"}
    for x, scale in enumerate(scales):
        axes.axvline(x, color="black", linewidth=0.8, zorder=2)
        for height, label in scale.list_ticks():
            axes.plot([x - 0.03, x + 0.03], [height, height], color="black", linewidth=0.8, zorder=2)
            axes.text(x + 0.06, height, label, ha="left", va="center", bbox=box, zorder=3, clip_on=False)
    names = [f"{scale.name} (%)" if scale.name == "score" else scale.name.replace("_", "\n") for scale in scales]
    axes.set_xticks(range(len(scales)), names)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(scales) - 0.35)
    axes.set_ylim(-0.04, 1.04)
    axes.spines[:].set_visible(False)
    axes.xaxis.set_tick_params(length=0)

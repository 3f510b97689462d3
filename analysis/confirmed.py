"""The confirmed settings of a search as a figure, as rows of a table, and as an export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis import bands, figures, style
from sweeps.confirmation import Confirmed
from sweeps.intervals import compute_mean_interval, format_mean
from sweeps.rounds import WORST

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"  # in "rate 0.01"
NAME_CHARACTERS = 24  # in a line of the names beside the panels
# The mark of the score that chose settings.
CHOSE: Any = {"linestyle": "", "marker": "o", "color": "black", "markerfacecolor": "white", "markersize": 7}
# The quantities of the two panels.
VALIDATION, TEST = "validation accuracy (%)", "test accuracy (%)"


@style.with_style
def draw_confirmation(confirmed: Sequence[Confirmed], dataset: str) -> tuple[Figure, str, str]:
    """Draw validation and test accuracy of each setting over fresh seeds, and the score that chose it.

    Returns:
        The figure, the name of its files, and what it shows in words.
    """
    figure = style.make_figure(0.62 * len(confirmed) + 2.2)
    panels = dict(zip((VALIDATION, TEST), figure.subplots(1, 2, sharey=True), strict=True))
    shown: dict[str, list[float]] = {VALIDATION: [], TEST: []}
    for row, found in enumerate(reversed(confirmed)):
        look, scores = style.STYLES[found.candidate.trial.architecture], np.asarray(found.scores, float)
        learnt = scores > WORST
        for name, values in ((VALIDATION, scores), (TEST, np.asarray(found.test_accuracies, float))):
            draw_seeds(panels[name], values, learnt, row, look)
            shown[name] += values[learnt & np.isfinite(values)].tolist()
        if score := found.candidate.score:
            panels[VALIDATION].plot(score, row + 0.3, **CHOSE)
            shown[VALIDATION].append(score)
    for name, axes in panels.items():
        if limits := figures.compute_limits(np.array(shown[name]), log=False):
            axes.set_xlim(limits)
        figures.label_axes(axes, name, "", "")
        axes.set_ylim(-0.5, len(confirmed) - 0.4)
    names = ["\n".join(wrap_name(found.candidate.name)) for found in reversed(confirmed)]
    panels[VALIDATION].set_yticks(range(len(confirmed)), names)
    seeds = len(confirmed[0].scores)
    figures.add_heading(figure, f"{dataset}: the best settings and the usual ones on fresh seeds")
    failed = sum(score <= WORST for found in confirmed for score in found.scores)
    figures.add_caption(
        figure,
        "Open circles: the score that chose the settings. Small symbols: single fresh seeds; large: their mean",
        f"(bars: 95 % CI, n = {seeds})." if seeds >= bands.MIN_RUNS_FOR_INTERVALS else f"(n = {seeds}).",
        f"Outside the axes, and in the means: {failed} that did not learn." if failed else "",
    )
    means = "; ".join(f"{found.candidate.name}, {format_mean(found.test_accuracies)} %" for found in confirmed)
    return figure, "confirmation", f"Mean test accuracy on {dataset} over {seeds} fresh seeds: {means}."


def wrap_name(name: str) -> list[str]:
    """Return the name of settings in short lines, the first of which says what it is."""
    title, _, settings = name.partition(": ")
    joined = ", ".join(part.replace(" ", NO_BREAK_SPACE) for part in settings.split(", "))
    return [f"{title}:", *style.wrap(joined, NAME_CHARACTERS / style.CHARACTERS_PER_INCH).splitlines()]


def draw_seeds(axes: Axes, values: NDArray[np.float64], learnt: NDArray[np.bool_], row: int, look: style.Style) -> None:
    """Draw the values of seeds on a row, and their mean, with an interval if they are enough and all of them learnt.

    Args:
        axes: Axes to draw on.
        values: Values in %, `(seeds,)`; NaN where a seed diverged.
        learnt: Whether each seed learnt, `(seeds,)`.
        row: Height at which to draw.
        look: Colour and marker.
    """
    kept = values[np.isfinite(values)]
    axes.plot(
        kept, np.full(len(kept), row), linestyle="", marker=look.marker, color=look.color, alpha=0.5, markersize=4
    )
    interval = compute_mean_interval(kept, lowest=0, highest=100)
    if len(kept) >= bands.MIN_RUNS_FOR_INTERVALS and learnt.all():
        error = np.abs(np.array([[interval.low], [interval.high]]) - interval.mean)
        axes.errorbar([float(interval.mean)], [row], xerr=error, color=look.color, linewidth=1.5, capsize=3)
    mark: dict[str, Any] = {"marker": look.marker, "color": look.color, "markeredgecolor": "black", "markersize": 9}
    axes.plot([float(interval.mean)], [row], linestyle="", zorder=3, **mark)


def make_row(confirmed: Confirmed) -> dict[str, Any]:
    """Return confirmed settings with their score, and the means over fresh seeds with their intervals."""
    score = confirmed.candidate.score
    row: dict[str, Any] = {"settings": confirmed.candidate.name, "seeds": len(confirmed.scores)}
    row["score"] = float("nan") if score is None else score
    for name, values in (("validation", confirmed.scores), ("test", confirmed.test_accuracies)):
        interval = compute_mean_interval(values, lowest=0, highest=100)
        row[f"{name}_mean"] = float(interval.mean)
        row |= {f"{name}_ci95_low": float(interval.low), f"{name}_ci95_high": float(interval.high)}
    return row


def make_export(confirmed: Confirmed) -> dict[str, Any]:
    """Return confirmed settings with their test accuracies over the fresh seeds."""
    interval = compute_mean_interval(confirmed.test_accuracies, lowest=0, highest=100)
    return {
        "settings": confirmed.candidate.settings,
        "test_accuracy": [*confirmed.test_accuracies],
        "mean": float(interval.mean),
        "low": float(interval.low),
        "high": float(interval.high),
        "is_default": confirmed.candidate.is_usual,
    }

"""Estimates + matplotlib Axes → Axes. One table of styles; colours are Okabe and Ito's, told apart by all readers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from sweeps.intervals import mean_interval

SMALLEST_SAMPLE_FOR_INTERVALS = 5
RECORDS_SHOWN = 25  # a running mean leaves about this many independent points of a noisy curve


@dataclass(frozen=True)
class Style:
    """How one thing looks in every figure: told apart by colour on a screen and by marker in print."""

    color: str
    marker: str


STYLES: Mapping[str, Style] = {
    "mlp_1": Style("#E69F00", "o"),
    "mlp_2": Style("#D55E00", "s"),
    "cnn_3": Style("#56B4E9", "^"),
    "cnn_4": Style("#0072B2", "D"),
    "cnn_5": Style("#009E73", "v"),
}


@dataclass(frozen=True)
class Band:
    """A curve's mean with a band, each `(steps,)`, and what the band is."""

    steps: NDArray[np.int64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    meaning: str


def window(records: int) -> int:
    """How many records a figure's running mean takes."""
    return max(1, records // RECORDS_SHOWN)


def running_mean(curves: xr.DataArray) -> xr.DataArray:
    """Centred running mean along `step`, shorter at the ends; for figures only, exports stay as recorded."""
    smoothed: xr.DataArray = curves.rolling(step=window(curves.sizes["step"]), center=True, min_periods=1).mean()
    return smoothed


def band(curves: xr.DataArray) -> Band:
    """Mean over `seed` of smoothed curves `(seed, step)`: with a 95 % interval, or the range if seeds are few."""
    values = running_mean(curves).transpose("seed", "step").to_numpy()
    interval = mean_interval(values, axis=0)
    seeds = int(interval.n.max())
    if seeds >= SMALLEST_SAMPLE_FOR_INTERVALS:
        low, high, meaning = interval.low, interval.high, f"95 % CI of the mean (Student's t, n = {seeds} seeds)"
    elif seeds > 1:
        present = values[~np.isnan(values).all(axis=1)]
        low, high, meaning = present.min(axis=0), present.max(axis=0), f"range over n = {seeds} seeds"
    else:
        low, high, meaning = interval.mean, interval.mean, "none (n = 1 seed)"
    return Band(curves["step"].to_numpy(), interval.mean, low, high, meaning)


def caption(data: xr.Dataset, example: Band) -> str:
    """What the curves of a figure are."""
    records = window(data.sizes["step"])
    smoothed = f", as a running mean of {records} records" if records > 1 else ""
    return f"Curves: mean over seeds{smoothed}. Band: {example.meaning}."


def draw_band(axes: Axes, curve: Band, style: Style, *, dashed: bool = False) -> None:
    """Draw a mean curve with its band."""
    axes.plot(curve.steps, curve.mean, color=style.color, linestyle="--" if dashed else "-", linewidth=1.4)
    axes.fill_between(curve.steps, curve.low, curve.high, color=style.color, alpha=0.15, linewidth=0)


def draw_point(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], style: Style) -> None:
    """Draw means of `x` and `y`, each `(seeds,)`, with 95 % intervals if seeds are enough, and every seed as a dot."""
    axes.plot(x, y, linestyle="", marker=".", color=style.color, alpha=0.5, markersize=5, zorder=2)
    intervals = [mean_interval(values) for values in (x, y)]
    mean_x, mean_y = (float(interval.mean) for interval in intervals)
    if intervals[0].n >= SMALLEST_SAMPLE_FOR_INTERVALS:
        half_x, half_y = (float(interval.high - interval.mean) for interval in intervals)
        axes.errorbar(mean_x, mean_y, xerr=half_x, yerr=half_y, color=style.color, linewidth=1)
    axes.plot(
        [mean_x],
        [mean_y],
        marker=style.marker,
        color=style.color,
        markersize=8,
        markeredgecolor="black",
        linestyle="",
        zorder=3,
    )


def legend_handle(name: str, style: Style) -> Line2D:
    """A legend entry: line and marker."""
    return Line2D([], [], color=style.color, marker=style.marker, label=name)


def label(axes: Axes, x: str, y: str, title: str) -> None:
    """Name both axes and the panel, with a light grid."""
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.grid(alpha=0.3)


def limit_to(axes: Axes, curves: list[Band]) -> None:
    """Let means, not wide bands, decide the y range."""
    values = np.concatenate([curve.mean for curve in curves])
    low, high = np.nanmin(values), np.nanmax(values)
    margin = 0.05 * max(high - low, 1e-9)
    axes.set_ylim(low - margin, high + margin)


def tiles(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """First-layer weights as images: `(tiles, height, width)`.

    The rows of an MLP `(features, inputs)` are reshaped to the square image, one tile a channel; filters of a CNN
    `(filters, channels, k, k)` give one tile a filter and channel.
    """
    if weights.ndim == 4:
        return weights.reshape(-1, *weights.shape[2:])
    inputs = weights.shape[1]
    channels = 1 if round(inputs**0.5) ** 2 == inputs else 3
    side = round((inputs / channels) ** 0.5)
    return weights.reshape(-1, side, side)


def tile_figure(images: NDArray[np.float32], title: str, columns: int = 8) -> Figure:
    """Images `(tiles, height, width)` as a grid of grey tiles on one scale, symmetric around zero."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(0.9 * columns + 1.2, 0.9 * rows + 0.9), layout="constrained")
    largest = float(np.abs(images).max()) or 1.0
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image in zip(grid.flat, images, strict=False):
        shown = axes.imshow(image, cmap="gray", vmin=-largest, vmax=largest, interpolation="nearest")
    figure.colorbar(shown, ax=grid, shrink=0.8, label="weight")
    figure.suptitle(title, fontsize=10)
    return figure

"""Drawing of means, intervals, weights and images on matplotlib's axes and figures, with one table of styles for all.

The colours are the palette of Okabe and Ito, which readers with a colour vision deficiency can tell apart too.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from sweeps.intervals import compute_mean_interval

MIN_RUNS_FOR_INTERVALS = 5  # fewer runs are drawn one by one, without an interval
GALLERY_COLUMNS = 10  # images in a row of a gallery
POINTS_SHOWN = 25  # a running mean leaves about this many independent points of a noisy curve


@dataclass(frozen=True)
class Style:
    """Colour and marker of one curve or point: readers tell it apart by colour on a screen, by marker in print."""

    color: str
    marker: str


# The palette in its own order, for values that have no style of their own.
PALETTE = tuple(
    Style(color, marker)
    for color, marker in zip(
        ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#000000"), "Dsvo^PX", strict=True
    )
)
# The styles of the main architectures, the same in every figure.
STYLES: Mapping[str, Style] = {
    "mlp_1": Style("#E69F00", "o"),
    "mlp_2": Style("#D55E00", "s"),
    "cnn_3": Style("#56B4E9", "^"),
    "cnn_4": Style("#0072B2", "D"),
    "cnn_5": Style("#009E73", "v"),
}


@dataclass(frozen=True)
class Band:
    """A mean curve, the interval or the single curves around it, and a text that tells which of the two they are.

    Attributes:
        steps: Optimiser steps or epochs, `(steps,)`.
        mean: Mean over `runs`, `(steps,)`; NaN where one of them has no finite value, or where there are no runs.
        low: Lower end of the interval, `(steps,)`; NaN where there is no interval.
        high: Upper end of the interval, `(steps,)`; NaN where there is no interval.
        runs: Curves of the runs that did not diverge, `(runs, steps)`. They are drawn one by one where they are too
            few for an interval.
        diverged: Curves of the runs that diverged, `(diverged runs, steps)`, NaN after their ends. They count in
            neither mean nor interval and are drawn one by one.
        meaning: Description of the band for the caption; empty if there are no runs.
    """

    steps: NDArray[np.int64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    runs: NDArray[np.float64]
    diverged: NDArray[np.float64]
    meaning: str


def choose_window(records: int) -> int:
    """Return the number of records that a running mean averages in a figure of a curve with `records` records."""
    return max(1, records // POINTS_SHOWN)


def compute_band(trials: xr.Dataset, quantity: str, *, sample: bool = True) -> Band:
    """Compute the mean curve of a quantity over trials, with its interval; trials that diverged are kept apart.

    All curves are running means along `step`. They are meant for figures only: exports hold the values as recorded.

    Args:
        trials: Finished trials along one dimension, with curves along `step`.
        quantity: Name of the variable that holds the curves.
        sample: True if the trials differ by chance alone, as seeds do. If they do not, an interval would mean nothing,
            and none is computed.
    """
    [over] = map(str, trials.diverged.dims)
    smooth = compute_running_mean(trials[quantity]).transpose(over, "step").to_numpy()
    runs, diverged = smooth[~trials.diverged.values], smooth[trials.diverged.values]
    n, records = runs.shape
    mean = runs.mean(axis=0) if n else np.full(records, np.nan)
    if sample and n >= MIN_RUNS_FOR_INTERVALS:
        highest = 100 if quantity.endswith("accuracy") else np.inf  # in %; no recorded quantity is below zero
        interval = compute_mean_interval(runs, lowest=0, highest=highest)
        low, high = (np.where(np.isnan(mean), np.nan, bound) for bound in (interval.low, interval.high))
        meaning = f"bands: 95 % CI of the mean (Student's t, n = {n} {over}s)"
    else:
        low = high = np.full(records, np.nan)
        meaning = f"thin lines: the {n} {over}s" if n > 1 else f"a single {over}"
    if choose_window(records) > 1:
        meaning += f", all as running means of {choose_window(records)} records"
    return Band(trials["step"].to_numpy(), mean, low, high, runs, diverged, meaning if n else "")


def compute_running_mean(curves: xr.DataArray) -> xr.DataArray:
    """Compute centred running means along `step`; the result is NaN where a curve itself is not finite.

    A window holds the records that `choose_window` says, fewer at both ends of a curve.
    """
    present = curves.where(np.isfinite(curves))
    smooth = present.rolling(step=choose_window(curves.sizes["step"]), center=True, min_periods=1).mean()
    return smooth.where(present.notnull())


def describe_bands(bands: Sequence[Band]) -> str:
    """Return sentences for a caption that explain a figure's curves and name each kind of band in it once."""
    meanings = dict.fromkeys(curve.meaning for curve in bands if curve.meaning)
    text = f"Mean curves; {'; '.join(meanings)}." if meanings else "No mean curves, as all trials diverged."
    return text + (" A × is where a diverged trial ends." if any(len(curve.diverged) for curve in bands) else "")


def draw_band(axes: Axes, curve: Band, style: Style, *, dashed: bool = False) -> None:
    """Draw a mean curve with its interval or its single runs; the runs that diverged end with a ×."""
    line = "--" if dashed else "-"
    for run in curve.diverged:
        axes.plot(curve.steps, run, color=style.color, linestyle=line, linewidth=0.5, alpha=0.7)
        last = np.flatnonzero(np.isfinite(run))[-1:]
        axes.plot(curve.steps[last], run[last], color=style.color, linestyle="", marker="x", markersize=7)
    if len(curve.runs) > 1 and np.isnan(curve.low).all():
        axes.plot(curve.steps, curve.runs.T, color=style.color, linestyle=line, linewidth=0.5, alpha=0.5)
    axes.fill_between(curve.steps, curve.low, curve.high, color=style.color, alpha=0.15, linewidth=0)
    marks: dict[str, Any] = {"marker": style.marker, "markersize": 4, "markevery": max(1, len(curve.steps) // 8)}
    axes.plot(curve.steps, curve.mean, color=style.color, linestyle=line, linewidth=1.4, **marks)


def draw_point(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], style: Style) -> None:
    """Draw every seed as a dot and the means as a marker, with 95 % intervals if there are enough seeds.

    Args:
        axes: Axes to draw on.
        x: Horizontal values, accuracies in %, `(seeds,)`.
        y: Vertical values, accuracies in %, `(seeds,)`.
        style: Colour, and marker of the means.
    """
    axes.plot(x, y, linestyle="", marker=".", color=style.color, alpha=0.5, markersize=5, zorder=2)
    intervals = [compute_mean_interval(values, lowest=0, highest=100) for values in (x, y)]
    mean_x, mean_y = (float(interval.mean) for interval in intervals)
    if intervals[0].n >= MIN_RUNS_FOR_INTERVALS:
        x_error, y_error = (
            [[float(interval.mean - interval.low)], [float(interval.high - interval.mean)]] for interval in intervals
        )
        axes.errorbar(mean_x, mean_y, xerr=x_error, yerr=y_error, color=style.color, linewidth=1)
    mark: dict[str, Any] = {"marker": style.marker, "markersize": 8, "markeredgecolor": "black"}
    axes.plot([mean_x], [mean_y], linestyle="", color=style.color, zorder=3, **mark)


def make_figure(width: float, height: float) -> Figure:
    """Make an empty figure, with its size in inches, whose layout keeps its parts from overlapping."""
    return Figure(figsize=(width, height), layout="constrained")


def make_line_handle(name: str, *, dashed: bool = False) -> Line2D:
    """Make a legend entry for a kind of line, whatever its colour."""
    return Line2D([], [], color="grey", linestyle="--" if dashed else "-", label=name)


def make_legend_handle(name: str, style: Style) -> Line2D:
    """Return a legend entry that shows a style's line and marker."""
    return Line2D([], [], color=style.color, marker=style.marker, label=name)


def label_axes(axes: Axes, x: str, y: str, title: str) -> None:
    """Set the labels of both axes and the panel's title, and draw a light grid."""
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.grid(alpha=0.3)


def limit_y_range(axes: Axes, curves: Sequence[Band]) -> None:
    """Fit the y range to the means, so that neither wide intervals nor diverging runs decide it.

    Without any mean the range stays as it is.
    """
    values = np.concatenate([np.zeros(0), *(curve.mean for curve in curves)])
    log = axes.get_yscale() == "log"
    values = values[np.isfinite(values) & ((values > 0) | (not log))]
    if len(values) == 0:
        return
    low, high = (np.log10(bound) if log else bound for bound in (values.min(), values.max()))
    margin = 0.05 * max(high - low, 1e-9)
    limits = np.array([low - margin, high + margin])
    axes.set_ylim(*(10**limits if log else limits))


def reshape_to_tiles(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return first-layer weights as square images of shape `(tiles, height, width)`.

    Args:
        weights: Weights of an MLP, `(features, inputs)`, which give one tile for each feature and channel, or filters
            of a CNN, `(filters, channels, k, k)`, which give one tile for each filter and channel.
    """
    if weights.ndim == 4:
        return weights.reshape(-1, *weights.shape[2:])
    inputs = weights.shape[1]
    channels = 1 if round(inputs**0.5) ** 2 == inputs else 3
    side = round((inputs / channels) ** 0.5)
    return weights.reshape(-1, side, side)


def draw_tiles(images: NDArray[np.float32], title: str, columns: int = 8) -> Figure:
    """Draw images of shape `(tiles, height, width)` as a grid of grey tiles on one scale, symmetric around zero."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = make_figure(0.9 * columns + 1.2, 0.9 * rows + 0.9)
    largest = float(np.abs(images).max()) or 1.0
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image in zip(grid.flat, images, strict=False):
        shown = axes.imshow(image, cmap="gray", vmin=-largest, vmax=largest, interpolation="nearest")
    figure.colorbar(shown, ax=grid, shrink=0.8, label="weight")
    figure.suptitle(title, fontsize=10)
    return figure


def add_caption(figure: Figure, text: str) -> None:
    """Add a caption below everything else in a figure."""
    figure.supxlabel("\n".join(textwrap.wrap(text, 130)), fontsize=9)


def draw_gallery(images: Mapping[str, NDArray[np.floating]], titles: Mapping[str, Sequence[str]], title: str) -> Figure:
    """Draw images as tiles, with one row for each name.

    Args:
        images: Images of each row by its name, `(n, channels, height, width)` with n at most `GALLERY_COLUMNS`. One
            channel is shown in grey, three in colour.
        titles: Texts above the images of each row, by its name.
        title: Title of the whole figure.
    """
    figure = make_figure(9, 0.95 * len(images) + 0.6)
    grid = figure.subplots(len(images), GALLERY_COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.set_frame_on(False)
    for row, (name, shown) in zip(grid, images.items(), strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axes, image, above in zip(row, shown, titles[name], strict=False):
            scaled = (image - image.min()) / max(float(np.ptp(image)), 1e-9)
            axes.imshow(scaled.transpose(1, 2, 0).squeeze(), cmap="gray", interpolation="nearest")
            axes.set_title(above, fontsize=7, pad=2)
    figure.suptitle(title, fontsize=10)
    return figure


def draw_accuracy_panel(axes: Axes, runs: xr.Dataset, epochs: int, title: str) -> Band:
    """Draw training accuracy (solid) and test accuracy (dashed) on the whole sets by epoch.

    Args:
        axes: Axes to draw on.
        runs: Finished trials along `seed`.
        epochs: Number of epochs on the x axis.
        title: Title of the panel.

    Returns:
        The band of the test accuracy.
    """

    def draw(quantity: str, style: Style, *, dashed: bool) -> Band:
        recorded = runs.dropna("step", how="all", subset=[quantity])  # all epochs, fewer if all seeds diverged
        band = compute_band(recorded.assign_coords(step=np.arange(1, recorded.sizes["step"] + 1)), quantity)
        draw_band(axes, band, style, dashed=dashed)
        return band

    draw("train_set_accuracy", PALETTE[0], dashed=False)
    test = draw("test_set_accuracy", PALETTE[1], dashed=True)
    label_axes(axes, "epoch", "accuracy (%)", title)
    axes.set_xticks(range(1, epochs + 1))
    return test


def add_accuracy_legend(figure: Figure) -> None:
    """Add the legend that all accuracy panels of a figure share."""
    handles = [
        Line2D([], [], color=PALETTE[0].color, marker=PALETTE[0].marker, label="training set"),
        Line2D([], [], color=PALETTE[1].color, marker=PALETTE[1].marker, linestyle="--", label="test set"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)

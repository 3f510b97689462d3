"""Drawing of mean curves, single runs and points on matplotlib's axes, and what stands around them on a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogFormatterMathtext, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from analysis import style
from analysis.bands import STUCK, Band, Points, Runs, compute_band
from sweeps.intervals import compute_mean_interval

RECORDS_DRAWN = 75  # a running mean changes so little in between that more points would only make files larger
MAX_NAMED = 4  # runs outside the axes that a caption names; it counts the others
DECADES_FOR_LOG = 2.0  # losses that span as many are drawn on a log scale
TRAINING, TEST = style.PALETTE[:2]  # styles of the accuracies on the training set and on the test set


def thin(records: int) -> NDArray[np.int64]:
    """Return the positions of the records that are drawn, the first and the last included."""
    return np.unique(np.linspace(0, records - 1, min(records, RECORDS_DRAWN)).round().astype(np.int64))


def draw_runs(axes: Axes, x: NDArray[Any], y: NDArray[np.float64], **line: Any) -> None:
    """Draw single curves, thin, as one line with gaps, which is much faster than a line each.

    Args:
        axes: Axes to draw on.
        x: Horizontal values, `(steps,)` or `(runs, steps)`.
        y: Vertical values, `(runs, steps)`.
        line: Properties of the line.
    """
    if len(y) == 0:
        return
    shown = thin(y.shape[1])
    gap = np.full((len(y), 1), np.nan)
    joined = [np.hstack([np.broadcast_to(values, y.shape)[:, shown], gap]).ravel() for values in (x, y)]
    axes.plot(*joined, **{"linewidth": 0.6, "alpha": 0.45, "zorder": 1.8, **line})


def draw_stuck_ends(axes: Axes, ends: NDArray[np.float64], look: style.Style, size: float) -> None:
    """Draw open symbols at the ends, `(runs, 2)`, of runs that are stuck at chance."""
    mark: dict[str, Any] = {"marker": look.marker, "markerfacecolor": "white", "markeredgewidth": 1, "zorder": 2.6}
    axes.plot(*ends.T, linestyle="", color=look.color, markersize=size, **mark)


def draw_band(axes: Axes, band: Band, look: style.Style, *, dashed: bool = False) -> None:
    """Draw a mean curve with its interval and its single runs.

    Runs that are stuck at chance are dotted and end with a large open symbol, runs that diverged end with a ×. The
    symbols on a dashed mean are open too, so that dashes need not be seen.
    """
    line = "--" if dashed else "-"
    color = look.color
    for run in band.diverged:
        last = np.flatnonzero(np.isfinite(run))[-1:]
        axes.plot(band.steps, run, color=color, linestyle=line, linewidth=0.6, alpha=0.7, zorder=1.8)
        axes.plot(band.steps[last], run[last], color=color, linestyle="", marker="x", markersize=7)
    if len(band.runs) > 1:
        draw_runs(axes, band.steps, band.runs[~band.stuck], color=color, linestyle=line)
    if band.stuck.any():
        draw_runs(axes, band.steps, band.runs[band.stuck], color=color, linestyle=":", linewidth=1, alpha=0.8)
        draw_stuck_ends(axes, band.ends[band.stuck], look, 8)
    shown = thin(len(band.steps))
    steps = band.steps[shown]
    if band.has_interval:
        axes.fill_between(steps, band.low[shown], band.high[shown], color=color, alpha=0.18, linewidth=0)
    marks: dict[str, Any] = {"marker": look.marker, "markevery": max(1, len(steps) // 6)}
    if dashed:
        marks["markerfacecolor"] = "white"
    axes.plot(steps, band.mean[shown], color=color, linestyle=line, **marks)


def draw_path(axes: Axes, x: Band, y: Band, look: style.Style) -> None:
    """Draw one quantity against another along training: thin for single runs, bold up to a symbol for their means."""
    for stuck, line in ((False, {"linestyle": "-"}), (True, {"linestyle": ":", "linewidth": 1, "alpha": 0.8})):
        draw_runs(axes, x.runs[x.stuck == stuck], y.runs[y.stuck == stuck], color=look.color, **line)
    shown = thin(len(x.steps))
    axes.plot(x.mean[shown], y.mean[shown], color=look.color)
    axes.plot(x.center[1:], y.center[1:], marker=look.marker, color=look.color, markersize=7)


def draw_points(axes: Axes, points: Points, look: style.Style) -> None:
    """Draw every run as a small symbol and the mean as a large one, with 95 % intervals if there are enough runs.

    A run that is stuck at chance is open. Where only some are, a large open symbol is the mean over those that learnt.
    """
    learnt, color = points.ends[~points.stuck], look.color
    axes.plot(*learnt.T, linestyle="", marker=look.marker, color=color, alpha=0.6, markersize=3.5, zorder=2)
    draw_stuck_ends(axes, points.ends[points.stuck], look, 5)
    if len(points.ends) == 0:
        return
    x, y = points.center
    mark: dict[str, Any] = {"marker": look.marker, "markersize": 9, "zorder": 3}
    if points.is_sample:
        interval = compute_mean_interval(points.ends, lowest=0, highest=100)
        error = np.abs(np.stack([interval.low, interval.high]) - interval.mean)  # (below and above, x and y)
        axes.errorbar(x, y, xerr=error[:, :1], yerr=error[:, 1:], color=color, linewidth=1)
    axes.plot([x], [y], linestyle="", color=color, markeredgecolor="black", **mark)
    if 0 < len(learnt) < len(points.ends):
        axes.plot(*learnt.mean(axis=0, keepdims=True).T, linestyle="", color=color, markerfacecolor="white", **mark)


def label_axes(axes: Axes, x: str, y: str, title: str) -> None:
    """Set the labels of both axes and the panel's title, and draw a light grid."""
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.grid()


def choose_loss_scale(axes: Axes, bands: Sequence[Band]) -> None:
    """Make the y axis logarithmic if the runs that decide its range span at least two decades."""
    values = collect_deciding(bands)
    values = values[values > 0]
    if len(values) and np.log10(values.max()) - np.log10(values.min()) >= DECADES_FOR_LOG:
        axes.set_yscale("log")


def collect_deciding(bands: Sequence[Band]) -> NDArray[np.float64]:
    """Return all finite values of the runs that decide the range of an axis, `(values,)`."""
    values: NDArray[np.float64] = np.concatenate([np.zeros(0), *(band.runs[band.deciding].ravel() for band in bands)])
    return np.asarray(values[np.isfinite(values)])


def limit_y_range(axes: Axes, bands: Sequence[Band]) -> None:
    """Fit the y range to the single runs, so that neither wide intervals nor diverging runs decide it.

    Nor do runs that are stuck at chance, where others of their setting learnt. Without any run, the range stays.
    """
    log = axes.get_yscale() == "log"
    if limits := compute_limits(collect_deciding(bands), log=log):
        axes.set_ylim(limits)
        if log:
            label_decades(axes)


def limit_ranges(axes: Axes, points: Sequence[Points]) -> None:
    """Fit the ranges of both axes to points, of those that `limit_y_range` would choose."""
    ends = np.concatenate([np.zeros((0, 2)), *(cloud.ends[cloud.deciding] for cloud in points)])
    for values, axis in zip(ends.T, (axes.xaxis, axes.yaxis), strict=True):
        if limits := compute_limits(values, log=False):
            axis.set_view_interval(*limits, ignore=True)


def compute_limits(values: NDArray[np.float64], *, log: bool) -> tuple[float, float] | None:
    """Return the ends of an axis that holds values with a margin, or None if there are none that it can show."""
    values = values[np.isfinite(values) & ((values > 0) | (not log))]
    if len(values) == 0:
        return None
    low, high = (np.log10(bound) if log else bound for bound in (values.min(), values.max()))
    margin = 0.05 * max(high - low, 1e-9 if log else 1e-3 * abs(high), 1e-9)
    return (10 ** (low - margin), 10 ** (high + margin)) if log else (low - margin, high + margin)


def label_decades(axes: Axes) -> None:
    """Label a logarithmic y axis, with plain numbers if these are short, and between powers of ten if it has few."""
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 10**DECADES_FOR_LOG else (1,)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    if low >= 1e-3 and high < 1e5:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}" if value >= 1 else f"{value:.3g}"))
    else:
        axes.yaxis.set_major_formatter(LogFormatterMathtext(labelOnlyBase=False, minor_thresholds=(np.inf, np.inf)))


def list_outside(axes: Axes, shown: Sequence[Runs]) -> list[str]:
    """Return the names of what lies outside the axes although it counts: stuck runs, and the means that they pull.

    Args:
        axes: Axes whose limits are set.
        shown: Bands or points on them.
    """
    limits = np.sort([axes.get_xlim(), axes.get_ylim()])
    found = []
    for runs in shown:
        if isinstance(runs, Band | Points) and not runs.deciding.all():
            ends = [*zip((f"{label} ({STUCK})" for label in runs.labels), runs.ends, strict=True)]
            ends.append((f"the mean over all seeds of {runs.name} ({runs.center[1]:.3g})", runs.center))
            found += [name for name, end in ends if not np.all((end >= limits[:, 0]) & (end <= limits[:, 1]))]
    return found


def describe_outside(names: Sequence[str]) -> str:
    """Return a sentence for a caption that names what lies outside the axes, or "" if nothing does."""
    distinct = list(dict.fromkeys(names))
    more = f"; {len(distinct) - MAX_NAMED} more" if len(distinct) > MAX_NAMED else ""
    return f"Outside the axes: {'; '.join(distinct[:MAX_NAMED])}{more}." if names else ""


def make_legend_handle(name: str, look: style.Style, *, dashed: bool = False) -> Line2D:
    """Return a legend entry that shows a style's line and marker."""
    face = "white" if dashed else look.color
    handle = Line2D([], [], color=look.color, marker=look.marker, markerfacecolor=face, label=name)
    handle.set_linestyle("--" if dashed else "-")
    return handle


def make_point_handle(name: str, look: style.Style) -> Line2D:
    """Return a legend entry that shows a style's marker alone."""
    return Line2D([], [], color=look.color, marker=look.marker, linestyle="", label=name)


def make_line_handle(name: str, *, dashed: bool = False) -> Line2D:
    """Make a legend entry for a kind of line, whatever its colour."""
    return Line2D([], [], color=style.MUTED, linestyle="--" if dashed else "-", label=name)


def make_legend_handles(styles: Mapping[str, style.Style]) -> list[Line2D]:
    """Return a legend entry for each name and its style."""
    return [make_legend_handle(name, look) for name, look in styles.items()]


def add_heading(figure: Figure, title: str, handles: Sequence[Line2D] = ()) -> None:
    """Add a title at the top of a figure, and below it a legend for all panels."""
    text = style.wrap_bold(title, figure.get_figwidth())
    if not handles:
        figure.suptitle(text)
        return
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = min(len(handles), max(1, int(figure.get_figwidth() / (0.62 + 0.078 * longest))))
    columns = -(-len(handles) // -(-len(handles) // columns))  # rows of about the same length
    # The title is that of the legend, as matplotlib reserves no space for a legend below a figure's title.
    bold = {"weight": "bold", "size": style.FONT_SIZE}
    legend = figure.legend(
        handles=handles, loc="outside upper center", ncols=columns, title=text, title_fontproperties=bold
    )
    legend.get_title().set_multialignment("center")


def add_caption(figure: Figure, *sentences: str) -> None:
    """Add a caption below everything else in a figure; empty sentences are left out."""
    text = style.wrap(" ".join(filter(None, sentences)), figure.get_figwidth())
    figure.supxlabel(text, x=0.01, horizontalalignment="left")


def draw_accuracy_panel(axes: Axes, runs: xr.Dataset, epochs: int, title: str) -> list[Band]:
    """Draw training accuracy (solid) and test accuracy (dashed) on the whole sets by epoch.

    Args:
        axes: Axes to draw on.
        runs: Finished trials along `seed`.
        epochs: Number of epochs on the x axis.
        title: Title of the panel.

    Returns:
        The bands of the training accuracy and of the test accuracy.
    """

    def draw(quantity: str, look: style.Style, *, dashed: bool) -> Band:
        recorded = runs.dropna("step", how="all", subset=[quantity])  # all epochs, fewer if all seeds diverged
        by_epoch = recorded.assign_coords(step=np.arange(1, recorded.sizes["step"] + 1))
        band = compute_band(by_epoch, quantity, title)
        draw_band(axes, band, look, dashed=dashed)
        return band

    bands = [draw("train_set_accuracy", TRAINING, dashed=False), draw("test_set_accuracy", TEST, dashed=True)]
    label_axes(axes, "epoch", "accuracy (%)", title)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    return bands


def finish_accuracy_panels(grid: NDArray[Any], bands: Sequence[Band]) -> str:
    """Fit the y range that accuracy panels share, and label only the outer axes.

    Args:
        grid: Axes, `(rows, columns)`, that share both axes; those without a panel are off.
        bands: All bands on them.

    Returns:
        A sentence for the caption about what lies outside, or "".
    """
    limit_y_range(grid[0, 0], bands)
    for axes in grid.flat:
        axes.label_outer()
    for above, below in zip(grid[:-1].flat, grid[1:].flat, strict=True):
        if not below.axison:
            above.xaxis.set_tick_params(labelbottom=True)
            above.set_xlabel("epoch")
    return describe_outside(list_outside(grid[0, 0], bands))


def make_accuracy_handles() -> list[Line2D]:
    """Return the legend entries that all accuracy panels of a figure share."""
    return [make_legend_handle("training set", TRAINING), make_legend_handle("test set", TEST, dashed=True)]

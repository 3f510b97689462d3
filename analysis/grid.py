"""The whole grid: mean curves by any axis, a heat map over any two, and a table sorted by accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from analysis import figures
from analysis.output import DrawOptions, Output, main
from analysis.results import SweepResults, select_completed
from sweeps.grid import Grid
from sweeps.intervals import compute_mean_interval
from trainables.errors import BadInputError, check_choice

AXES = ("architecture", "activation", "learning_rate", "batch_size", "pooling", "seed")


@dataclass(frozen=True, kw_only=True)
class GridDrawOptions(DrawOptions):
    """Where the figures go, and along which axes they are drawn."""

    quantity: str = "val_accuracy"
    """Of the mean curves: train_loss, train_accuracy or val_accuracy."""
    by: str = "architecture"
    """A curve for each value of this axis."""
    facet: str = "learning_rate"
    """A panel for each value of this axis."""
    heat_map: tuple[str, str] = ("architecture", "learning_rate")
    """Rows and columns of the heat map of mean test accuracy."""

    def check(self) -> None:
        """Raise `BadInputError` for an axis or a quantity that is none."""
        check_choice("quantity", self.quantity, ("train_loss", "train_accuracy", "val_accuracy"))
        for option, pair in (("--by and --facet", (self.by, self.facet)), ("--heat-map", self.heat_map)):
            for axis in pair:
                check_choice(f"axis of {option}", axis, AXES)
            if pair[0] == pair[1]:
                raise BadInputError(f"{option} name the axis '{pair[0]}' twice; name two of {', '.join(AXES)}")


def draw(selection: Grid, stages: Sequence[SweepResults], output: Output, drawing: GridDrawOptions) -> None:
    """Write the curves, the heat map and the table."""
    drawing.check()
    [loaded] = stages
    output.figure(draw_curves(loaded.data, drawing, selection.dataset), "curves", loaded, pdf=True)
    output.figure(draw_heat_map(loaded.data, drawing, selection.dataset), "heat_map", loaded, pdf=True)
    output.table(make_table(loaded), "table")


def select_runs(data: xr.Dataset, values: Mapping[str, Any]) -> xr.Dataset:
    """The distinct finished trials at these values of some axes, along `run`.

    A network without pooling fills the cells of every pooling with one trial, which counts once.
    """
    chosen = data.sel(values).reset_coords(drop=True)
    stacked = chosen.stack(run=[axis for axis in AXES if axis not in values], create_index=False)
    ids, first = np.unique(stacked.trial_id.values, return_index=True)
    return stacked.isel(run=np.sort(first[ids != ""]))


def draw_curves(data: xr.Dataset, drawing: GridDrawOptions, dataset: str) -> Figure:
    """A panel a value of one axis, a mean curve a value of another, over all else."""
    facets, lines = data[drawing.facet].values, data[drawing.by].values
    figure = Figure(figsize=(4.6 * len(facets) + 0.5, 4.8), layout="constrained")
    bands = []
    others = [axis for axis in AXES if axis not in (drawing.by, drawing.facet, "seed")]
    only_seeds = all(data.sizes[axis] == 1 for axis in others)
    styles = {value: choose_style(value, place) for place, value in enumerate(lines)}
    for axes, facet in zip(figure.subplots(1, len(facets), squeeze=False, sharey=True)[0], facets, strict=True):
        for value, style in styles.items():
            runs = select_runs(data, {drawing.by: value, drawing.facet: facet})
            recorded = runs.dropna("step", how="all", subset=[drawing.quantity])
            if recorded.sizes["run"] and recorded.sizes["step"]:
                bands.append(figures.compute_band(recorded, drawing.quantity, sample=only_seeds))
                figures.draw_band(axes, bands[-1], style)
        figures.label_axes(axes, "optimiser step", drawing.quantity.replace("_", " "), f"{drawing.facet} = {facet}")
    if any(len(band.diverged) for band in bands):
        figures.limit_y_range(axes, bands)  # one for all panels, which share the y axis
    handles = [figures.make_legend_handle(str(value), style) for value, style in styles.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(8, len(handles)))
    ends = "Means end where the shortest run does." if data.sizes["batch_size"] > 1 else ""
    figures.add_caption(figure, f"{dataset}, over all other axes. {figures.describe_bands(bands)} {ends}")
    return figure


def choose_style(value: Any, place: int) -> figures.Style:
    """An architecture's own style, or the next of the palette."""
    return figures.STYLES.get(str(value), figures.PALETTE[place % len(figures.PALETTE)])


def draw_heat_map(data: xr.Dataset, drawing: GridDrawOptions, dataset: str) -> Figure:
    """Mean test accuracy over two axes, with the numbers of seeds, trials and diverged trials in every cell."""
    rows, columns = (data[axis].values for axis in drawing.heat_map)
    means = np.full((len(rows), len(columns)), np.nan)
    figure = Figure(figsize=(1.3 * len(columns) + 3, 0.8 * len(rows) + 2.2), layout="constrained")
    axes = figure.subplots()
    for (i, row), (j, column) in ((r, c) for r in enumerate(rows) for c in enumerate(columns)):
        at = dict(zip(drawing.heat_map, (row, column), strict=True))
        if text := format_heat_map_cell(data, at):
            means[i, j] = select_completed(select_runs(data, at)).test_accuracy.mean()
            box = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "boxstyle": "round,pad=0.2"}
            axes.text(j, i, text, ha="center", va="center", fontsize=8, bbox=box)
    shown = axes.imshow(means, cmap="cividis", aspect="auto")
    axes.set_xticks(range(len(columns)), [str(value) for value in columns])
    axes.set_yticks(range(len(rows)), [str(value) for value in rows])
    axes.set(xlabel=drawing.heat_map[1].replace("_", " "), ylabel=drawing.heat_map[0].replace("_", " "))
    axes.set_title(f"{dataset}: mean test accuracy (%)")
    figure.colorbar(shown, ax=axes)
    return figure


def format_heat_map_cell(data: xr.Dataset, at: Mapping[str, Any]) -> str:
    """A heat map's cell in words: the mean test accuracy, over how many, and what it leaves out; empty for none."""
    runs = select_runs(data, at)
    kept, lines = select_completed(runs), []
    if kept.sizes["run"]:
        of_seeds = [at["seed"]] if "seed" in at else data.seed.values
        seeds = sum(select_completed(select_runs(data, {**at, "seed": seed})).sizes["run"] > 0 for seed in of_seeds)
        trials = f", {kept.sizes['run']} trials" if kept.sizes["run"] > seeds else ""
        lines = [f"{float(kept.test_accuracy.mean()):.1f}", f"{seeds} seed{'s' if seeds > 1 else ''}{trials}"]
    if diverged := int(runs.diverged.sum()):
        lines.append(f"{diverged} diverged")
    return "\n".join(lines)


def make_table(loaded: SweepResults) -> list[dict[str, Any]]:
    """A line a distinct setting, over seeds, the best mean test accuracy first."""
    groups: dict[tuple[str, ...], list[float]] = {}
    for trial in loaded.sweep.trials():
        if (result := loaded.results.get(trial.id)) is not None:
            settings = tuple(str(getattr(trial, axis)) for axis in AXES if axis != "seed")
            groups.setdefault(settings, []).append(result.test_accuracy)
    rows = []
    for settings, accuracies in groups.items():
        interval = compute_mean_interval(accuracies)  # which leaves out NaN, the test accuracy of a trial that diverged
        row: dict[str, Any] = dict(zip(AXES, settings, strict=False))
        row |= {"seeds": int(interval.n), "diverged": len(accuracies) - int(interval.n)}
        row |= {"test_mean": float(interval.mean)}
        rows.append(row | {"test_ci95_low": float(interval.low), "test_ci95_high": float(interval.high)})
    return sorted(rows, key=lambda row: -np.nan_to_num(row["test_mean"], nan=-np.inf))


if __name__ == "__main__":
    main(Grid, draw, __doc__, GridDrawOptions)

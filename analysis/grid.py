"""The whole grid: mean curves by any axis, a heat map over any two axes, and a table sorted by test accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from analysis import figures
from analysis.answers import Answer, write_answers
from analysis.differences import TEST_ACCURACY, gather_settings
from analysis.output import DrawOptions, Output, main
from analysis.ranking import draft_ranking
from analysis.results import SweepResults, select_completed, summarise_learnt
from analysis.wording import join_words
from sweeps.grid import Grid
from sweeps.intervals import compute_mean_interval
from trainables.architectures import ACT, POOL, Layer, has_layer
from trainables.errors import BadInputError, check_choice

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = ("architecture", "activation", "learning_rate", "batch_size", "pooling", "seed")  # axes of the sweep


@dataclass(frozen=True, kw_only=True)
class GridDrawOptions(DrawOptions):
    """Files to write, and axes of the sweep along which to draw."""

    quantity: str = "val_accuracy"
    """Quantity of the mean curves: train_loss, train_accuracy or val_accuracy."""
    by: str = "architecture"
    """Axis whose values get a curve each: architecture, activation, learning_rate, batch_size, pooling or seed."""
    facet: str = "learning_rate"
    """Axis whose values get a panel each."""
    heat_map: tuple[str, str] = ("architecture", "learning_rate")
    """Axes for the rows and the columns of the heat map of mean test accuracy."""

    def check(self) -> None:
        """Check the names of the quantity and the axes.

        Raises:
            BadInputError: A name is unknown, or two axes that must differ are the same.
        """
        check_choice("quantity", self.quantity, ("train_loss", "train_accuracy", "val_accuracy"))
        for option, pair in (("--by and --facet", (self.by, self.facet)), ("--heat-map", self.heat_map)):
            for axis in pair:
                check_choice(f"axis of {option}", axis, AXES)
            if pair[0] == pair[1]:
                raise BadInputError(f"{option} name the axis '{pair[0]}' twice; name two of {', '.join(AXES)}")


def draw(options: Grid, stages: Sequence[SweepResults], output: Output, draw_options: GridDrawOptions) -> None:
    """Write the curves, the heat map and the table."""
    draw_options.check()
    [results] = stages
    output.answers += answer(results.data)
    curves = draw_curves(results.data, draw_options, options.dataset)
    description = f"Mean curves of {draw_options.quantity}, by {draw_options.by} and {draw_options.facet}."
    output.save_figure(curves, "curves", description, results)
    heat_map = draw_heat_map(results.data, draw_options, options.dataset)
    description = f"Mean test accuracy by {' and '.join(draw_options.heat_map)}."
    output.save_figure(heat_map, "heat_map", description, results)
    output.save_table(make_table(results), "table", "Test accuracy (%) of each setting over its seeds.")


def answer(data: xr.Dataset) -> list[Answer]:
    """Answer what each axis of the grid does, averaged over the others with the seeds that have all of their trials.

    What an architecture does not have, as an MLP has no pooling, is compared in the others alone.
    """
    layers: dict[str, Layer] = {"activation": ACT, "pooling": POOL}
    forms = {"learning_rate": "rate {}", "batch_size": "batch size {}", "pooling": "{} pooling"}
    drafts = []
    for axis in AXES[:-1]:
        having = [
            name for name in data.architecture.values.tolist() if axis not in layers or has_layer(name, layers[axis])
        ]
        if data.sizes[axis] > 1 and having:
            runs = data.sel(architecture=having)
            settings = gather_settings(runs.test_accuracy, runs, axis, TEST_ACCURACY, form=forms.get(axis, "{}"))
            others = [each.replace("_", " ") for each in AXES[:-1] if each != axis and data.sizes[each] > 1]
            averaged = f", averaged over each {join_words(others)}" if others else ""
            topic = f"which {axis.replace('_', ' ')} generalises best{averaged}"
            drafts.append(draft_ranking(topic, settings))
    return write_answers(drafts)


def select_runs(data: xr.Dataset, values: Mapping[str, Any]) -> xr.Dataset:
    """Select the distinct finished trials at the given values of some axes, along a new dimension `run`.

    The trial of a network without pooling fills the cells of all poolings. It is counted once.
    """
    chosen = data.sel(values).reset_coords(drop=True)
    stacked = chosen.stack(run=[axis for axis in AXES if axis not in values], create_index=False)
    ids, first = np.unique(stacked.trial_id.values, return_index=True)
    return stacked.isel(run=np.sort(first[ids != ""]))


def draw_curves(data: xr.Dataset, draw_options: GridDrawOptions, dataset: str) -> Figure:
    """Draw a panel for each value of one axis, with a mean curve over all other axes for each value of a second."""
    by, facet, quantity = draw_options.by, draw_options.facet, draw_options.quantity
    panels, lines = data[facet].values, data[by].values
    figure = figures.make_figure(4.6 * len(panels) + 0.5, 4.8)
    bands = []
    only_seeds = all(data.sizes[axis] == 1 for axis in AXES if axis not in (by, facet, "seed"))
    styles = {value: choose_style(value, index) for index, value in enumerate(lines)}
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, strict=True):
        for value, style in styles.items():
            runs = select_runs(data, {by: value, facet: panel})
            recorded = runs.dropna("step", how="all", subset=[quantity])
            if recorded.sizes["run"] and recorded.sizes["step"]:
                bands.append(figures.compute_band(recorded, quantity, sample=only_seeds))
                figures.draw_band(axes, bands[-1], style)
        figures.label_axes(axes, "optimiser step", quantity.replace("_", " "), f"{facet} = {panel}")
    if any(len(band.diverged) for band in bands):
        figures.limit_y_range(axes, bands)  # the panels share the y axis, so one call sets the range of all
    handles = [figures.make_legend_handle(str(value), style) for value, style in styles.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(8, len(handles)))
    ends = "Means end where the shortest run does." if data.sizes["batch_size"] > 1 else ""
    figures.add_caption(figure, f"{dataset}, means over all other axes. {figures.describe_bands(bands)} {ends}")
    return figure


def choose_style(value: Any, index: int) -> figures.Style:
    """Return an architecture's own style, or the style at `index` of the palette for any other value."""
    return figures.STYLES.get(str(value), figures.PALETTE[index % len(figures.PALETTE)])


def draw_heat_map(data: xr.Dataset, draw_options: GridDrawOptions, dataset: str) -> Figure:
    """Draw the mean test accuracy over two axes, with the numbers of seeds, trials and diverged trials in each cell."""
    rows, columns = (data[axis].values for axis in draw_options.heat_map)
    means = np.full((len(rows), len(columns)), np.nan)
    figure = figures.make_figure(1.3 * len(columns) + 3, 0.8 * len(rows) + 2.2)
    axes = figure.subplots()
    for (i, row), (j, column) in ((r, c) for r in enumerate(rows) for c in enumerate(columns)):
        values = dict(zip(draw_options.heat_map, (row, column), strict=True))
        if text := format_heat_map_cell(data, values):
            means[i, j] = select_completed(select_runs(data, values)).test_accuracy.mean()
            box = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "boxstyle": "round,pad=0.2"}
            axes.text(j, i, text, ha="center", va="center", fontsize=8, bbox=box)
    shown = axes.imshow(means, cmap="cividis", aspect="auto")
    axes.set_xticks(range(len(columns)), [str(value) for value in columns])
    axes.set_yticks(range(len(rows)), [str(value) for value in rows])
    y_name, x_name = (axis.replace("_", " ") for axis in draw_options.heat_map)
    axes.set(xlabel=x_name, ylabel=y_name, title=f"{dataset}: mean test accuracy (%)")
    figure.colorbar(shown, ax=axes)
    return figure


def format_heat_map_cell(data: xr.Dataset, values: Mapping[str, Any]) -> str:
    """Return the text of a heat map's cell; it is empty if no trial at these values of the axes is finished.

    The lines of the text are the mean test accuracy, the numbers of seeds and trials behind it, and the number of
    trials that diverged and are not in the mean.
    """
    runs = select_runs(data, values)
    kept, lines = select_completed(runs), []
    if kept.sizes["run"]:
        all_seeds = [values["seed"]] if "seed" in values else data.seed.values
        seeds = sum(select_completed(select_runs(data, {**values, "seed": s})).sizes["run"] > 0 for s in all_seeds)
        trials = f", {kept.sizes['run']} trials" if kept.sizes["run"] > seeds else ""
        lines = [f"{float(kept.test_accuracy.mean()):.1f}", f"{seeds} seed{'s' if seeds > 1 else ''}{trials}"]
    if diverged := int(runs.diverged.sum()):
        lines.append(f"{diverged} diverged")
    return "\n".join(lines)


def make_table(results: SweepResults) -> list[dict[str, Any]]:
    """Return a row for each distinct setting, with its test accuracy over seeds, the highest mean first."""
    finished = select_runs(results.data[["trial_id", "test_accuracy", "diverged", "stuck"]], {})
    any_stuck = bool(finished.stuck.any())
    trials = {trial.id: trial for trial in results.sweep.trials()}
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, trial_id in enumerate(finished.trial_id.values):
        settings = tuple(str(getattr(trials[trial_id], axis)) for axis in AXES if axis != "seed")
        groups.setdefault(settings, []).append(index)
    rows = []
    for settings, indices in groups.items():
        runs = finished.isel(run=indices)
        interval = compute_mean_interval(select_completed(runs).test_accuracy.values, lowest=0, highest=100)
        row: dict[str, Any] = dict(zip(AXES, settings, strict=False))
        row |= {"seeds": int(interval.n), "diverged": int(runs.diverged.sum())}
        row |= {"stuck": int(runs.stuck.sum())} if any_stuck else {}
        row |= {"test_mean": float(interval.mean)}
        row |= {"test_ci95_low": float(interval.low), "test_ci95_high": float(interval.high)}
        rows.append(row | (summarise_learnt(runs) if any_stuck else {}))
    return sorted(rows, key=lambda row: -np.nan_to_num(row["test_mean"], nan=-np.inf))


if __name__ == "__main__":
    main(Grid, draw, __doc__, GridDrawOptions)

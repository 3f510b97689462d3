"""The whole grid: mean curves by any axis, a heat map over any two axes, and a table sorted by test accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from analysis import bands, figures, style
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
UNITS = {  # quantity → label of its axis
    "train_loss": "training loss (nats)",
    "train_accuracy": "training accuracy (%)",
    "val_accuracy": "validation accuracy (%)",
}


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
        check_choice("quantity", self.quantity, tuple(UNITS))
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
    curves, description = draw_curves(results.data, draw_options, options.dataset)
    output.save_figure(curves, "curves", description, results)
    heat_map, description = draw_heat_map(results.data, draw_options, options.dataset)
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
            form, paired = forms.get(axis, "{}"), axis != "architecture"  # networks have other weights from one seed
            settings = gather_settings(runs.test_accuracy, runs, axis, TEST_ACCURACY, paired=paired, form=form)
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


@style.with_style
def draw_curves(data: xr.Dataset, draw_options: GridDrawOptions, dataset: str) -> tuple[Figure, str]:
    """Draw a panel for each value of one axis, with a mean curve over all other axes for each value of a second.

    Returns:
        The figure, and what it shows in words.
    """
    by, facet, quantity = draw_options.by, draw_options.facet, draw_options.quantity
    values, lines = data[facet].values, data[by].values
    columns = min(2, len(values))
    rows = -(-len(values) // columns)
    figure = style.make_figure(2.4 * rows + 1.5)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    found: list[bands.Band] = []
    only_seeds = all(data.sizes[axis] == 1 for axis in AXES if axis not in (by, facet, "seed"))
    styles = {str(value): style.choose_style(str(value), index) for index, value in enumerate(lines)}
    for axes, value in zip(panels, values, strict=False):
        for line, (name, look) in zip(lines, styles.items(), strict=True):
            runs = select_runs(data, {by: line, facet: value})
            recorded = runs.dropna("step", how="all", subset=[quantity])
            if recorded.sizes["run"] and recorded.sizes["step"]:
                title = f"{name}, {name_axis(facet)} {value}"
                found.append(bands.compute_band(recorded, quantity, title, sample=only_seeds))
                figures.draw_band(axes, found[-1], look)
        figures.label_axes(axes, "optimiser step", UNITS[quantity], f"{name_axis(facet)} {value}")
    for axes in panels[len(values) :]:
        axes.set_axis_off()
    if quantity == "train_loss":
        figures.choose_loss_scale(panels[0], found)
    figures.limit_y_range(panels[0], found)  # the panels share the y axis, so one call sets the range of all
    title = f"{dataset}: {UNITS[quantity].partition(' (')[0]} by {name_axis(by)}"
    figures.add_heading(figure, title, figures.make_legend_handles(styles))
    outside = figures.describe_outside(figures.list_outside(panels[0], found))
    ends = "Means end where the shortest run does." if data.sizes["batch_size"] > 1 else ""
    over = "" if only_seeds else "Over all other axes."
    figures.add_caption(figure, over, bands.describe_bands(found), ends, outside)
    return figure, (
        f"{len(values)} panels, one for each {name_axis(facet)}, of {UNITS[quantity]} by optimiser step on {dataset}, "
        f"with a mean curve for each {name_axis(by)}. The means end at {bands.describe_last_means(found)}."
    )


def name_axis(axis: str) -> str:
    """Return an axis of the sweep in words."""
    return axis.replace("_", " ")


@style.with_style
def draw_heat_map(data: xr.Dataset, draw_options: GridDrawOptions, dataset: str) -> tuple[Figure, str]:
    """Draw the mean test accuracy over two axes, with the numbers of seeds, trials and diverged trials in each cell.

    Returns:
        The figure, and what it shows in words.
    """
    rows, columns = (data[axis].values for axis in draw_options.heat_map)
    means = np.full((len(rows), len(columns)), np.nan)
    figure = style.make_figure(0.75 * len(rows) + 1.4, max(style.HALF_PAGE_WIDTH, 1.05 * len(columns) + 2.2))
    axes = figure.subplots()
    named = []
    for (i, row), (j, column) in product(enumerate(rows), enumerate(columns)):
        values = dict(zip(draw_options.heat_map, (row, column), strict=True))
        if text := format_heat_map_cell(data, values):
            means[i, j] = select_completed(select_runs(data, values)).test_accuracy.mean()
            named.append(f"{row}, {column}: {' '.join(text.splitlines())}")
            box = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "boxstyle": "round,pad=0.2"}
            axes.text(j, i, text, ha="center", va="center", bbox=box)
    shown = axes.imshow(means, cmap="cividis", aspect="auto", interpolation="none")
    axes.set_xticks(range(len(columns)), [str(value) for value in columns])
    axes.set_yticks(range(len(rows)), [str(value) for value in rows])
    y_name, x_name = map(name_axis, draw_options.heat_map)
    axes.set(xlabel=x_name, ylabel=y_name)
    figures.add_heading(figure, f"{dataset}: mean test accuracy (%)")
    figure.colorbar(shown, ax=axes, label="mean test accuracy (%)")
    return figure, f"Mean test accuracy (%) on {dataset} by {y_name} and {x_name}. {'; '.join(named)}."


def format_heat_map_cell(data: xr.Dataset, values: Mapping[str, Any]) -> str:
    """Return the text of a heat map's cell; it is empty if no trial at these values of the axes is finished.

    The lines of the text are the mean test accuracy, the numbers of seeds and trials behind it, the number of these
    trials that are stuck, and the number of trials that diverged and are not in the mean.
    """
    runs = select_runs(data, values)
    kept, lines = select_completed(runs), []
    if kept.sizes["run"]:
        all_seeds = [values["seed"]] if "seed" in values else data.seed.values
        seeds = sum(select_completed(select_runs(data, {**values, "seed": s})).sizes["run"] > 0 for s in all_seeds)
        trials = f",\n{kept.sizes['run']} trials" if kept.sizes["run"] > seeds else ""
        lines = [f"{float(kept.test_accuracy.mean()):.1f}", f"{seeds} seed{'s' if seeds > 1 else ''}{trials}"]
    if stuck := int(kept.stuck.sum()):
        lines.append(f"{stuck} stuck")
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

"""Part 3: mean curves and test accuracies of the architectures, and first-layer weights of their best runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis import bands, figures, style, tiles
from analysis.answers import Answer, write_answers
from analysis.differences import TEST_ACCURACY, Comparison, gather_settings
from analysis.output import DrawOptions, Output, main
from analysis.ranking import Shown, draft_ranking
from analysis.results import (
    SweepResults,
    compute_mean_curve,
    find_best_run,
    list_diverged_seeds,
    list_stuck_seeds,
    select_completed,
    select_finished,
    summarise_learnt,
)
from analysis.seed_noise import write_best_seeds, write_images, write_order
from sweeps.intervals import compute_mean_interval
from sweeps.part3 import Part3
from trainables.architectures import count_layers, count_parameters
from trainables.sources import IMAGE_SHAPES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(options: Part3, stages: Sequence[SweepResults], output: Output, draw_options: DrawOptions) -> None:
    """Write the comparison, the weights, the exports and the table."""
    [results] = stages
    answers = answer(options, results)
    output.answers += answers
    records_per_epoch = results.data.sizes["step"] / options.epochs
    last_epoch = slice(-max(1, round(records_per_epoch)), None)
    finding = f"{options.dataset}: {answers[0].finding or style.join_names(list_finished_architectures(results.data))}"
    figure = draw_comparison(results.data, last_epoch, finding)
    output.save_figure(figure, "part3", describe_comparison(results.data, options.dataset, finding), results)
    rows = []
    for architecture in list_finished_architectures(results.data):
        runs = select_finished(results.data, architecture=architecture)
        weights = None
        if (best := find_best_run(runs)) is None:
            print(f"All trials of {architecture} diverged: there is no best run whose weights could be drawn.")
        else:
            weights = results.by_trial[str(best.trial_id.item())].first_layer
            score = f"seed {int(best.seed)}, test accuracy {float(best.test_accuracy):.2f} %"
            title = f"{architecture}, first layer of the best run ({score})"
            images = tiles.reshape_to_tiles(weights)
            description = (
                f"{len(images)} grey tiles of {images.shape[1]} by {images.shape[2]} pixels: the first layer's weights "
                f"of {architecture}, {score}. They range from {weights.min():.2f} (black) to {weights.max():.2f} "
                "(white) on one scale that is symmetric around zero."
            )
            output.save_figure(tiles.draw_tiles(images, title), f"weights_{architecture}", description, results)
        output.save_json(make_export(architecture, runs, weights), f"part3_{architecture}")
        rows.append(make_row(architecture, runs, last_epoch, any_stuck=bool(results.data.stuck.any())))
    output.save_table(rows, "table", "Test accuracy (%) of each architecture over its seeds.")


def answer(options: Part3, results: SweepResults) -> list[Answer]:
    """Answer which architecture generalises best, what size does, and what seeds and test images leave open."""
    data = results.data
    image = (1, *IMAGE_SHAPES[options.dataset][1:])
    names = options.architectures
    counts = {name: count_parameters(name, image) for name in names}
    parameters = {name: count.weights + count.biases for name, count in counts.items()}

    def write_more(comparison: Comparison, shown: Shown) -> list[Answer]:
        sizes = {"parameters": parameters, "layers": {name: count_layers(name) for name in names}}
        orders = [write_order(noun, by_name, comparison, shown) for noun, by_name in sizes.items() if len(names) > 1]
        return [*orders, write_best_seeds(settings), *write_images(comparison, results, "architecture")]

    settings = gather_settings(data.test_accuracy, data, "architecture", TEST_ACCURACY, paired=False)
    return write_answers([draft_ranking("which architecture generalises best", settings, write_more)])


def make_export(architecture: str, runs: xr.Dataset, weights: NDArray[np.floating] | None) -> dict[str, Any]:
    """Return an architecture's curves, best test accuracy and weights in the report's format.

    The curves are means over the seeds that did not diverge. The seeds that diverged are listed if there are any,
    and so are those that are stuck, which are in the means.
    """
    kept = select_completed(runs)
    return {
        "name": architecture,
        "loss_curve": compute_mean_curve(kept.train_loss),
        "train_acc_curve": compute_mean_curve(kept.train_accuracy),
        "val_acc_curve": compute_mean_curve(kept.val_accuracy),
        "test_acc": float(runs.test_accuracy.max()),
        "weights": None if weights is None else weights.tolist(),
        **({"diverged_seeds": list_diverged_seeds(runs)} if runs.diverged.any() else {}),
        **({"stuck_seeds": list_stuck_seeds(runs)} if runs.stuck.any() else {}),
    }


def list_finished_architectures(data: xr.Dataset) -> list[str]:
    """Return the architectures that have at least one finished trial."""
    return [str(name) for name in data.architecture.values if (data.trial_id.sel(architecture=name) != "").any()]


def make_row(
    architecture: str, runs: xr.Dataset, last_epoch: slice, *, any_stuck: bool
) -> dict[str, str | int | float]:
    """Return an architecture's row of the table.

    `best_test` is the only number that is selected on test data, as the report asks for it.

    Args:
        architecture: Name of the architecture.
        runs: Its finished trials along `seed`.
        last_epoch: Slice of the records of the last epoch.
        any_stuck: Whether the table has columns on trials that are stuck.
    """
    kept = select_completed(runs)
    test = compute_mean_interval(kept.test_accuracy.values, lowest=0, highest=100)
    validation = compute_mean_interval(kept.val_accuracy.isel(step=last_epoch).mean("step").values)
    return {
        "architecture": architecture,
        "seeds": int(test.n),
        "diverged": int(runs.diverged.sum()),
        **({"stuck": int(runs.stuck.sum())} if any_stuck else {}),
        "test_mean": float(test.mean),
        "test_ci95_low": float(test.low),
        "test_ci95_high": float(test.high),
        "test_sd": float(kept.test_accuracy.std("seed", ddof=1)) if test.n > 1 else float("nan"),
        **(summarise_learnt(runs) if any_stuck else {}),
        "best_test": float(runs.test_accuracy.max()),
        "val_mean_last_epoch": float(validation.mean),
    }


@style.with_style
def draw_comparison(data: xr.Dataset, last_epoch: slice, finding: str) -> Figure:
    """Draw 2×2 panels that compare all architectures: loss, accuracies, and accuracies against each other.

    Args:
        data: Results of the sweep.
        last_epoch: Slice of the records of the last epoch.
        finding: Title of the figure, a sentence that says what it shows.
    """
    figure = style.make_figure(7.4)
    panels = figure.subplots(2, 2).ravel()
    loss_axes, accuracy_axes, point_axes, path_axes = panels
    losses, accuracies, points = [], [], []
    styles = {name: style.choose_style(name, 0) for name in list_finished_architectures(data)}
    for name, look in styles.items():
        runs = select_finished(data, architecture=name)
        loss, train, validation = (
            bands.compute_band(runs, quantity, name) for quantity in ("train_loss", "train_accuracy", "val_accuracy")
        )
        figures.draw_band(loss_axes, loss, look)
        figures.draw_band(accuracy_axes, train, look)
        figures.draw_band(accuracy_axes, validation, look, dashed=True)
        figures.draw_path(path_axes, train, validation, look)
        points.append(make_points(name, runs, last_epoch))
        figures.draw_points(point_axes, points[-1], look)
        losses.append(loss)
        accuracies += [train, validation]
    figures.choose_loss_scale(loss_axes, losses)
    figures.limit_y_range(loss_axes, losses)
    figures.limit_y_range(accuracy_axes, accuracies)
    figures.limit_ranges(point_axes, points)
    figures.label_axes(loss_axes, "optimiser step", "training loss (nats)", "Training loss (cross-entropy)")
    figures.label_axes(accuracy_axes, "optimiser step", "accuracy (%)", "Training and validation")
    figures.label_axes(point_axes, "training accuracy, last epoch (%)", "test accuracy (%)", "Test against training")
    figures.label_axes(path_axes, "training accuracy (%)", "validation accuracy (%)", "Validation against training")
    lines = [figures.make_line_handle("training"), figures.make_line_handle("validation", dashed=True)]
    figures.add_heading(figure, finding, figures.make_legend_handles(styles) + lines)
    shown: tuple[Sequence[bands.Runs], ...] = (losses, accuracies, points)
    outside = [name for axes, runs in zip(panels[:3], shown, strict=True) for name in figures.list_outside(axes, runs)]
    captions = (bands.describe_bands(losses), bands.describe_points(points), figures.describe_outside(outside))
    figures.add_caption(figure, *captions)
    return figure


def make_points(architecture: str, runs: xr.Dataset, last_epoch: slice) -> bands.Points:
    """Return training accuracy, mean of the last epoch, and test accuracy of an architecture's seeds as points."""
    kept = select_completed(runs)
    return bands.Points(
        name=architecture,
        labels=bands.label_runs(kept, architecture),
        stuck=kept.stuck.values,
        x=kept.train_accuracy.isel(step=last_epoch).mean("step").values,
        y=kept.test_accuracy.values,
    )


def describe_comparison(data: xr.Dataset, dataset: str, finding: str) -> str:
    """Return the comparison in words, with the mean test accuracies."""
    means = []
    for name in list_finished_architectures(data):
        points = make_points(name, select_finished(data, architecture=name), slice(-1, None))
        if len(points.y):
            means.append(f"{name} {points.y.mean():.1f} %{bands.describe_stuck(points)}")
    return (
        f"{finding}. Four panels on {dataset}: training loss by step, training and validation accuracy by step, test "
        "against training accuracy, and validation against training accuracy. Mean test accuracies: "
        f"{'; '.join(means) or 'none, as all trials diverged'}."
    )


if __name__ == "__main__":
    main(Part3, draw, __doc__)

"""Part 3: mean curves and test accuracies of the architectures, and first-layer weights of their best runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis import figures
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
    output.answers += answer(options, results)
    records_per_epoch = results.data.sizes["step"] / options.epochs
    last_epoch = slice(-max(1, round(records_per_epoch)), None)
    description = "Training loss, training and validation accuracy by step, and test against training accuracy."
    output.save_figure(draw_comparison(results.data, last_epoch, options.dataset), "part3", description, results)
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
            tiles = figures.draw_tiles(figures.reshape_to_tiles(weights), title)
            output.save_figure(
                tiles, f"weights_{architecture}", f"The first layer's weights of {architecture}.", results
            )
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


def draw_comparison(data: xr.Dataset, last_epoch: slice, dataset: str) -> Figure:
    """Draw 2×2 panels that compare all architectures: loss, accuracies, and accuracies against each other."""
    figure = figures.make_figure(11, 8.5)
    (loss_axes, accuracy_axes), (point_axes, path_axes) = figure.subplots(2, 2)
    losses, accuracies, handles = [], [], []
    for architecture in list_finished_architectures(data):
        style = figures.STYLES[architecture]
        handles.append(figures.make_legend_handle(architecture, style))
        runs = select_finished(data, architecture=architecture)
        loss, train, validation = (
            figures.compute_band(runs, quantity) for quantity in ("train_loss", "train_accuracy", "val_accuracy")
        )
        figures.draw_band(loss_axes, loss, style)
        figures.draw_band(accuracy_axes, train, style)
        figures.draw_band(accuracy_axes, validation, style, dashed=True)
        path_axes.plot(train.mean, validation.mean, color=style.color, linewidth=1.2)
        path_axes.plot(train.mean[-1], validation.mean[-1], marker=style.marker, color=style.color, markeredgecolor="k")
        kept = select_completed(runs)
        final_train = kept.train_accuracy.isel(step=last_epoch).mean("step").values
        figures.draw_point(point_axes, final_train, kept.test_accuracy.values, style)
        losses.append(loss)
        accuracies += [train, validation]
    figures.limit_y_range(loss_axes, losses)
    figures.limit_y_range(accuracy_axes, accuracies)
    label = figures.label_axes
    label(loss_axes, "optimiser step", "training loss (cross-entropy)", "Training loss")
    label(accuracy_axes, "optimiser step", "accuracy (%)", "Accuracy: training (solid), validation (dashed)")
    label(point_axes, "training accuracy, mean of the last epoch (%)", "test accuracy (%)", "Test accuracy")
    label(path_axes, "training accuracy (%)", "validation accuracy (%)", "Validation against training accuracy")
    lines = [figures.make_line_handle("training"), figures.make_line_handle("validation", dashed=True)]
    accuracy_axes.legend(handles=lines, loc="lower right")
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    caption = figures.describe_bands(losses)
    figures.add_caption(figure, f"{dataset}. {caption} Small dots are single seeds.")
    return figure


if __name__ == "__main__":
    main(Part3, draw, __doc__)

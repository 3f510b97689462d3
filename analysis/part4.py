"""Part 4: training losses and gradients of the first layer with ReLU (solid) and with sigmoid (dashed)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from analysis import bands, figures, style
from analysis.answers import Answer, Draft, write_answers
from analysis.contrasts import Contrasts, draft_contrasts
from analysis.differences import TEST_ACCURACY, TRAINING_LOSS, Quantity, average_last_epoch, gather_settings
from analysis.gradients import draft_gradients
from analysis.output import NO_VALUE, DrawOptions, Output, main
from analysis.results import (
    SweepResults,
    compute_mean_curve,
    list_diverged_seeds,
    list_stuck_seeds,
    select_completed,
    select_finished,
    summarise_learnt,
)
from sweeps.part4 import Part4

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACTIVATIONS = ("relu", "sigmoid")


def draw(options: Part4, stages: Sequence[SweepResults], output: Output, draw_options: DrawOptions) -> None:
    """Write the two panels, the exports and the table of gradients."""
    [results] = stages
    output.answers += answer(options, results)
    figure, description = draw_panels(options, results.data)
    output.save_figure(figure, "part4", description, results)
    rows = []
    for architecture in options.architectures:
        runs = {name: select_finished(results.data, architecture=architecture, activation=name) for name in ACTIVATIONS}
        if all(found.sizes["seed"] for found in runs.values()):
            output.save_json(make_export(architecture, runs), f"part4_{architecture}")
            rows.append(make_row(architecture, runs, any_stuck=bool(results.data.stuck.any())))
    if rows:
        output.save_table(rows, "table", "Gradient norms of the first layer, medians over the steps.")


@style.with_style
def draw_panels(options: Part4, data: xr.Dataset) -> tuple[Figure, str]:
    """Draw training losses and gradient norms by step, with a colour for each architecture and dashes for sigmoid.

    Returns:
        The figure, and what it shows in words.
    """
    figure = style.make_figure(5.2)
    panels = dict(zip(("train_loss", "gradient_norm"), figure.subplots(1, 2), strict=True))
    found: dict[str, list[bands.Band]] = {quantity: [] for quantity in panels}
    styles = {name: style.choose_style(name, 0) for name in options.architectures}
    for architecture, activation in product(options.architectures, ACTIVATIONS):
        runs = select_finished(data, architecture=architecture, activation=activation)
        if runs.sizes["seed"]:
            for quantity, axes in panels.items():
                found[quantity].append(bands.compute_band(runs, quantity, f"{architecture} {activation}"))
                figures.draw_band(axes, found[quantity][-1], styles[architecture], dashed=activation == "sigmoid")
    figures.choose_loss_scale(panels["train_loss"], found["train_loss"])
    panels["gradient_norm"].set_yscale("log")
    outside: list[str] = []
    for quantity, axes in panels.items():
        figures.limit_y_range(axes, found[quantity])
        outside += figures.list_outside(axes, found[quantity])
    figures.label_axes(panels["train_loss"], "optimiser step", "training loss (nats)", "Training loss (cross-entropy)")
    figures.label_axes(panels["gradient_norm"], "optimiser step", "gradient norm", "Gradient of the first layer")
    lines = [figures.make_line_handle("relu"), figures.make_line_handle("sigmoid", dashed=True)]
    title = f"{options.dataset}: ReLU against sigmoid"
    figures.add_heading(figure, title, figures.make_legend_handles(styles) + lines)
    figures.add_caption(figure, bands.describe_bands(found["train_loss"]), figures.describe_outside(outside))
    return figure, (
        f"Two panels by optimiser step on {options.dataset}, with ReLU solid and sigmoid dashed. The mean training "
        f"losses end at {bands.describe_last_means(found['train_loss'])}. The mean gradient norms of the first layer, "
        f"on a log scale, end at {bands.describe_last_means(found['gradient_norm'])}."
    )


def answer(options: Part4, results: SweepResults) -> list[Answer]:
    """Answer what the activation does to test accuracy and training loss, and to the gradient of the first layer."""
    data = results.data

    def draft(topic: str, values: xr.DataArray, quantity: Quantity) -> Draft:
        contexts = {
            name: gather_settings(
                values.sel(architecture=name),
                data.sel(architecture=name),
                "activation",
                quantity,
                form=f"{{}} in {name}",
            )
            for name in options.architectures
        }
        return draft_contrasts(Contrasts(topic=topic, first="relu", second="sigmoid", contexts=contexts))

    losses = average_last_epoch(data.train_loss, options.epochs)
    return write_answers(
        [
            draft("which activation gives the higher test accuracy in each network", data.test_accuracy, TEST_ACCURACY),
            draft("which activation gives the lower training loss in each network", losses, TRAINING_LOSS),
            draft_gradients(data.gradient_norm.median("step", skipna=False), options.architectures),
        ]
    )


def make_export(architecture: str, runs: Mapping[str, xr.Dataset]) -> dict[str, Any]:
    """Return an architecture's mean curves in the report's format, and its diverged and stuck seeds if there are any.

    Args:
        architecture: Name of the architecture.
        runs: Its finished trials along `seed`, by activation.
    """
    kept = {activation: select_completed(found) for activation, found in runs.items()}
    diverged = {activation: seeds for activation, found in runs.items() if (seeds := list_diverged_seeds(found))}
    stuck = {activation: seeds for activation, found in runs.items() if (seeds := list_stuck_seeds(found))}
    return {
        "name": architecture,
        "relu_loss_curve": compute_mean_curve(kept["relu"].train_loss),
        "sigmoid_loss_curve": compute_mean_curve(kept["sigmoid"].train_loss),
        "relu_grad_curve": compute_mean_curve(kept["relu"].gradient_norm),
        "sigmoid_grad_curve": compute_mean_curve(kept["sigmoid"].gradient_norm),
        **({"diverged_seeds": diverged} if diverged else {}),
        **({"stuck_seeds": stuck} if stuck else {}),
    }


def make_row(architecture: str, runs: Mapping[str, xr.Dataset], *, any_stuck: bool) -> dict[str, Any]:
    """Return an architecture's row of the table: the median over steps of its mean gradient norms, and their ratio.

    Args:
        architecture: Name of the architecture.
        runs: Its finished trials along `seed`, by activation.
        any_stuck: Whether the table has columns on trials that are stuck, with each activation's share that learnt.
    """
    curves = {
        activation: compute_mean_curve(select_completed(found).gradient_norm) for activation, found in runs.items()
    }
    medians = {activation: float(np.median(curve)) if curve else np.nan for activation, curve in curves.items()}
    ratio = medians["relu"] / medians["sigmoid"] if medians["sigmoid"] else np.inf
    return {
        "architecture": architecture,
        "diverged": sum(int(found.diverged.sum()) for found in runs.values()),
        **({"stuck": sum(int(found.stuck.sum()) for found in runs.values())} if any_stuck else {}),
        **{f"{activation}_median_gradient": format_digits(median) for activation, median in medians.items()},
        "relu_over_sigmoid": format_digits(ratio),
        **{
            f"{activation}_{column}": value
            for activation, found in runs.items()
            for column, value in (summarise_learnt(found) if any_stuck else {}).items()
        },
    }


def format_digits(value: float) -> str:
    """Return a value with three significant digits as text, or a dash for NaN."""
    return NO_VALUE if np.isnan(value) else f"{value:.3g}"


if __name__ == "__main__":
    main(Part4, draw, __doc__)

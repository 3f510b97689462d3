"""Part 4: training losses and first-layer gradients with ReLU (solid) and with sigmoid (dashed)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import figures
from analysis.output import Drawing, Output, main
from analysis.results import Loaded, finished
from sweeps.part4 import Part4

ACTIVATIONS = ("relu", "sigmoid")


def draw(selection: Part4, stages: Sequence[Loaded], output: Output, drawing: Drawing) -> None:
    """Write the two panels, the exports and the table of gradients."""
    [loaded] = stages
    figure = Figure(figsize=(12, 5.4), layout="constrained")
    panels = dict(zip(("train_loss", "gradient_norm"), figure.subplots(1, 2), strict=True))
    bands, rows = [], []
    for architecture in selection.architectures:
        curves = {}
        for activation in ACTIVATIONS:
            runs = finished(loaded.data, architecture=architecture, activation=activation)
            if runs.sizes["seed"] == 0:
                continue
            for quantity, axes in panels.items():
                bands.append(figures.band(runs[quantity]))
                figures.draw_band(axes, bands[-1], figures.STYLES[architecture], dashed=activation == "sigmoid")
                curves[activation, quantity] = runs[quantity].mean("seed", skipna=False).values
        if len(curves) == 4:
            output.json(export(architecture, curves), f"part4_{architecture}")
            medians = [float(np.median(curves[activation, "gradient_norm"])) for activation in ACTIVATIONS]
            row = {f"{name}_median_gradient": f"{value:.3g}" for name, value in zip(ACTIVATIONS, medians, strict=True)}
            ratio = medians[0] / medians[1] if medians[1] else float("inf")
            rows.append({"architecture": architecture, **row, "relu_over_sigmoid": f"{ratio:.3g}"})
    panels["gradient_norm"].set_yscale("log")
    figures.label(panels["train_loss"], "optimiser step", "training loss (cross-entropy)", "Training loss")
    figures.label(panels["gradient_norm"], "optimiser step", "gradient norm, first layer", "Gradient magnitude")
    handles = [figures.legend_handle(name, figures.STYLES[name]) for name in selection.architectures]
    lines = [Line2D([], [], color="grey", label="relu"), Line2D([], [], color="grey", ls="--", label="sigmoid")]
    figure.legend(handles=handles + lines, loc="outside upper center", ncols=len(handles) + 2)
    figures.bottom_caption(figure, f"{selection.dataset}. {figures.caption(bands)}")
    output.figure(figure, "part4", missing=loaded.missing, pdf=True)
    if rows:
        output.table(rows, "table")


def export(architecture: str, curves: dict[tuple[str, str], np.ndarray]) -> dict[str, object]:
    """The report's format."""
    return {
        "name": architecture,
        "relu_loss_curve": curves["relu", "train_loss"].tolist(),
        "sigmoid_loss_curve": curves["sigmoid", "train_loss"].tolist(),
        "relu_grad_curve": curves["relu", "gradient_norm"].tolist(),
        "sigmoid_grad_curve": curves["sigmoid", "gradient_norm"].tolist(),
    }


if __name__ == "__main__":
    main(Part4, draw, __doc__)

"""Pooling × batch size: accuracy by epoch, what the best model gets wrong, and the parameter counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from analysis import figures
from analysis.misclassified import draw_gallery
from analysis.output import GalleryDrawing, Output, main, mean_cell
from analysis.part1 import closed_form
from analysis.results import Loaded, best_run, by_epoch, completed, finished
from sweeps.pooling import MODELS, Pooling

SIDES = {"cifar10": 32, "digits": 32, "mnist": 28, "fashion_mnist": 28}  # pixels


def draw(selection: Pooling, stages: Sequence[Loaded], output: Output, drawing: GalleryDrawing) -> None:
    """Write the panels, the gallery, the export and both tables."""
    [loaded] = stages
    figure = Figure(figsize=(3.4 * len(selection.batch_sizes), 9), layout="constrained")
    grid = figure.subplots(len(MODELS), len(selection.batch_sizes), squeeze=False, sharex=True, sharey=True)
    side = SIDES[selection.dataset]
    bands: list[figures.Band] = []
    trials: list[dict[str, Any]] = []
    rows = []
    for model, line in zip(MODELS, grid, strict=True):
        row: dict[str, Any] = {"model": model, "diverged": 0}
        for batch_size, axes in zip(selection.batch_sizes, line, strict=True):
            runs = finished(loaded.data, model=model, batch_size=batch_size)
            row["diverged"] += int(runs.diverged.sum())
            row[f"batch {batch_size}"] = mean_cell(completed(runs).test_accuracy.values)
            if runs.sizes["seed"]:
                bands.append(figures.accuracy_panel(axes, runs, selection.epochs, f"model {model}, batch {batch_size}"))
            trials += [
                {"model": model, "batch_size": batch_size, "seed": int(seed), **by_epoch(runs.sel(seed=seed))}
                for seed in runs.seed.values
            ]
        rows.append(row)
    figures.accuracy_legend(figure)
    figures.bottom_caption(figure, f"{selection.dataset}. {figures.caption(bands)}")
    output.figure(figure, "pooling", loaded, pdf=True)
    output.table(rows, "table")
    parameters = [parameter_row(model, side) for model in MODELS]
    output.table(parameters, "parameters")
    totals = {row["model"]: row["parameters"] for row in parameters}
    with_totals = [{**trial, "parameters": totals[trial["model"]]} for trial in trials]
    output.json({"trials": with_totals, "parameters": totals}, "pooling")
    if (best := best_run(loaded.data)) is None:
        print("All trials diverged: there is no best model whose mistakes could be shown.")
        return
    title = f"{selection.dataset}, model {best.model.item()}, batch {int(best.batch_size)}, seed {int(best.seed)}"
    title += " (best test accuracy)"
    gallery = draw_gallery(loaded, str(best.trial_id.item()), drawing.data_root, title)
    output.figure(gallery, "misclassified", loaded)


def parameter_row(model: str, side: int) -> dict[str, str | int]:
    """A line of the table of parameter counts."""
    counted = closed_form(MODELS[model]["architecture"], (3, side, side))
    total = counted.weights + counted.biases
    return {"model": model, "weights": counted.weights, "biases": counted.biases, "parameters": total}


if __name__ == "__main__":
    main(Pooling, draw, __doc__, GalleryDrawing)

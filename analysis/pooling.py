"""Pooling × batch size: accuracy by epoch, what the best model gets wrong, and the parameter counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from analysis import figures
from analysis.misclassified import draw_misclassified
from analysis.output import GalleryDrawOptions, Output, format_mean_cell, main
from analysis.results import SweepResults, find_best_run, list_accuracies_by_epoch, select_completed, select_finished
from sweeps.pooling import MODELS, Pooling
from trainables.architectures import count_parameters

SIDES = {"cifar10": 32, "digits": 32, "mnist": 28, "fashion_mnist": 28}  # pixels


def draw(selection: Pooling, stages: Sequence[SweepResults], output: Output, drawing: GalleryDrawOptions) -> None:
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
            runs = select_finished(loaded.data, model=model, batch_size=batch_size)
            row["diverged"] += int(runs.diverged.sum())
            row[f"batch {batch_size}"] = format_mean_cell(select_completed(runs).test_accuracy.values)
            if runs.sizes["seed"]:
                bands.append(
                    figures.draw_accuracy_panel(axes, runs, selection.epochs, f"model {model}, batch {batch_size}")
                )
            trials += [
                {
                    "model": model,
                    "batch_size": batch_size,
                    "seed": int(seed),
                    **list_accuracies_by_epoch(runs.sel(seed=seed)),
                }
                for seed in runs.seed.values
            ]
        rows.append(row)
    figures.add_accuracy_legend(figure)
    figures.add_caption(figure, f"{selection.dataset}. {figures.describe_bands(bands)}")
    output.figure(figure, "pooling", loaded, pdf=True)
    output.table(rows, "table")
    parameters = [make_parameter_row(model, side) for model in MODELS]
    output.table(parameters, "parameters")
    totals = {row["model"]: row["parameters"] for row in parameters}
    with_totals = [{**trial, "parameters": totals[trial["model"]]} for trial in trials]
    output.json({"trials": with_totals, "parameters": totals}, "pooling")
    if (best := find_best_run(loaded.data)) is None:
        print("All trials diverged: there is no best model whose mistakes could be shown.")
        return
    title = f"{selection.dataset}, model {best.model.item()}, batch {int(best.batch_size)}, seed {int(best.seed)}"
    title += " (best test accuracy)"
    gallery = draw_misclassified(loaded, str(best.trial_id.item()), drawing.data_root, title)
    output.figure(gallery, "misclassified", loaded)


def make_parameter_row(model: str, side: int) -> dict[str, str | int]:
    """A line of the table of parameter counts."""
    counted = count_parameters(MODELS[model]["architecture"], (3, side, side))
    total = counted.weights + counted.biases
    return {"model": model, "weights": counted.weights, "biases": counted.biases, "parameters": total}


if __name__ == "__main__":
    main(Pooling, draw, __doc__, GalleryDrawOptions)

"""Pooling × batch size: accuracy by epoch, mistakes of the best model, and numbers of parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from analysis import bands, figures, style
from analysis.answers import Answer, Draft, write_answers
from analysis.differences import TEST_ACCURACY, gather_settings
from analysis.misclassified import draw_misclassified
from analysis.output import GalleryDrawOptions, Output, format_mean_cell, main
from analysis.ranking import draft_ranking
from analysis.results import (
    SweepResults,
    find_best_run,
    list_accuracies_by_epoch,
    select_completed,
    select_finished,
    summarise_learnt,
)
from analysis.wording import join_words
from sweeps.pooling import MODELS, Pooling
from trainables.architectures import count_parameters
from trainables.sources import IMAGE_SHAPES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(options: Pooling, stages: Sequence[SweepResults], output: Output, draw_options: GalleryDrawOptions) -> None:
    """Write the panels, the gallery of mistakes, the export and both tables."""
    [results] = stages
    output.answers += answer(options, results)
    figure, description = draw_panels(options, results)
    output.save_figure(figure, "pooling", description, results)
    trials: list[dict[str, Any]] = []
    rows = []
    any_stuck = bool(results.data.stuck.any())
    for model in MODELS:
        row: dict[str, Any] = {"model": model, "diverged": 0, **({"stuck": 0} if any_stuck else {})}
        for batch_size in options.batch_sizes:
            runs = select_finished(results.data, model=model, batch_size=batch_size)
            row["diverged"] += int(runs.diverged.sum())
            row[f"batch {batch_size}"] = format_mean_cell(select_completed(runs).test_accuracy.values)
            if any_stuck:
                row["stuck"] += int(runs.stuck.sum())
                row |= {f"batch {batch_size} {column}": value for column, value in summarise_learnt(runs).items()}
            for seed in runs.seed.values:
                head = {"model": model, "batch_size": batch_size, "seed": int(seed)}
                trials.append({**head, **list_accuracies_by_epoch(runs.sel(seed=seed))})
        rows.append(row)
    output.save_table(rows, "table", "Test accuracy (%) after each epoch.")
    parameters = [make_parameter_row(model, options.dataset) for model in MODELS]
    output.save_table(parameters, "parameters", "Numbers of weights and biases.")
    totals = {row["model"]: row["parameters"] for row in parameters}
    with_totals = [{**trial, "parameters": totals[trial["model"]]} for trial in trials]
    output.save_json({"trials": with_totals, "parameters": totals}, "pooling")
    if (best := find_best_run(results.data)) is None:
        print("All trials diverged: there is no best model whose mistakes could be shown.")
        return
    title = f"{options.dataset}, model {best.model.item()}, batch {int(best.batch_size)}, seed {int(best.seed)}"
    title += " (best test accuracy)"
    gallery, description = draw_misclassified(results, str(best.trial_id.item()), draw_options.data_root, title)
    output.save_figure(gallery, "misclassified", description, results)


@style.with_style
def draw_panels(options: Pooling, results: SweepResults) -> tuple[Figure, str]:
    """Draw training and test accuracy by epoch, with a row for each batch size and a column for each model.

    Returns:
        The figure, and what it shows in words.
    """
    figure = style.make_figure(1.55 * len(options.batch_sizes) + 1.4)
    grid = figure.subplots(len(options.batch_sizes), len(MODELS), squeeze=False, sharex=True, sharey=True)
    found: list[bands.Band] = []
    for batch_size, line in zip(options.batch_sizes, grid, strict=True):
        for model, axes in zip(MODELS, line, strict=True):
            runs = select_finished(results.data, model=model, batch_size=batch_size)
            if runs.sizes["seed"]:
                title = f"model {model}, batch {batch_size}"
                found += figures.draw_accuracy_panel(axes, runs, options.epochs, title)
    outside = figures.finish_accuracy_panels(grid, found)
    title = f"{options.dataset}: pooling and batch size"
    figures.add_heading(figure, title, figures.make_accuracy_handles())
    models = "; ".join(f"{name}: {describe_model(name)}" for name in MODELS)
    figures.add_caption(figure, f"Models: {models}.", bands.describe_bands(found), outside)
    return figure, (
        f"{len(MODELS) * len(options.batch_sizes)} panels of training and test accuracy by epoch on {options.dataset}, "
        f"a row for each batch size, a column for each model. The means over seeds of the test accuracy end at "
        f"{bands.describe_last_means(found[1::2], ' %')}."
    )


def describe_model(name: str) -> str:
    """Return a model's pooling and padding in words."""
    padding = "no padding" if MODELS[name]["architecture"] == "conv_pool_valid" else "padding"
    kind = {"max": "max", "avg": "average"}[MODELS[name]["pooling"]]
    return f"{kind} pooling, {padding}"


def answer(options: Pooling, results: SweepResults) -> list[Answer]:
    """Answer what the kind of pooling, padding and the batch size do, each averaged over the other settings."""
    sizes = f"averaged over batch sizes {join_words([str(size) for size in options.batch_sizes])}"

    def draft(topic: str, axis: str, names: Mapping[Any, str]) -> Draft:
        data = results.data.sel({axis: list(names)})
        settings = gather_settings(data.test_accuracy, data, axis, TEST_ACCURACY)
        return draft_ranking(topic, replace(settings, names=tuple(names.values())))

    by_size = {size: f"batch size {size}" for size in options.batch_sizes}
    return write_answers(
        [
            draft(f"which pooling generalises better, {sizes}", "model", {"a": "max pooling", "b": "average pooling"}),
            draft(
                f"which generalises better, convolution with padding or without, {sizes}",
                "model",
                {"a": "convolution with padding", "c": "convolution without padding"},
            ),
            draft("which batch size generalises best, averaged over the models a, b and c", "batch_size", by_size),
        ]
    )


def make_parameter_row(model: str, dataset: str) -> dict[str, str | int]:
    """Return a model's row of the table of parameters, for the data set's images with three colour channels."""
    counted = count_parameters(MODELS[model]["architecture"], (3, *IMAGE_SHAPES[dataset][1:]))
    total = counted.weights + counted.biases
    return {"model": model, "weights": counted.weights, "biases": counted.biases, "parameters": total}


if __name__ == "__main__":
    main(Pooling, draw, __doc__, GalleryDrawOptions)

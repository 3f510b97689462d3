"""Part 5: constant learning rates, scheduled learning rates with their switches, and scheduled SGD against Adam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from analysis import bands, figures, style
from analysis.answers import Answer, write_answers
from analysis.differences import (
    TEST_ACCURACY,
    VALIDATION_ACCURACY,
    average_last_epoch,
    gather_settings,
    join_settings,
)
from analysis.notes import describe_diverged, describe_stuck
from analysis.output import NO_VALUE, DrawOptions, Output, format_mean_cell, main
from analysis.ranking import draft_ranking
from analysis.results import (
    SweepResults,
    compute_mean_curve,
    has_any_finished,
    list_diverged_seeds,
    list_stuck_seeds,
    load_results,
    select_completed,
    select_finished,
    summarise_learnt,
)
from sweeps.part3 import Part3
from sweeps.part5 import LEARNING_RATES, Part5
from sweeps.sweep import format_count
from trainables.persistence.stored_run import describe_ignored

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXPORT_NAMES = {0.1: "1", 0.01: "01", 0.001: "001"}  # learning rates as the report's format spells them


@dataclass(frozen=True, kw_only=True)
class Part5DrawOptions(DrawOptions):
    """Files to write, and the trials of part 3, trained with Adam, that scheduled SGD is compared with."""

    adam_epochs: int | None = None
    """Epochs of part 3's trials. By default, those that part 3 trains for, with or without --quick."""
    adam_learning_rate: float = 0.01
    """Learning rate of part 3's trials."""
    targets: tuple[float, ...] = (60.0, 70.0, 80.0, 85.0, 90.0)
    """Validation accuracies (%); the table gives the number of epochs until each is reached."""


def draw(options: Part5, stages: Sequence[SweepResults], output: Output, draw_options: Part5DrawOptions) -> None:
    """Write the constant rates, the schedule, the export and the comparison with Adam."""
    constant, *scheduled = stages
    figure, description = draw_constant(options, constant)
    output.save_figure(figure, "part5", description, constant)
    runs = {EXPORT_NAMES[rate]: select_finished(constant.data, learning_rate=rate) for rate in LEARNING_RATES}
    output.save_json(make_export(options.architecture, runs), f"part5_{options.architecture}")
    compared: dict[str, tuple[xr.Dataset, int]] = {}
    if scheduled:
        figure, description = draw_schedule(options, scheduled)
        output.save_figure(figure, "schedule", description, *scheduled)
        for stage in scheduled:
            [name] = stage.data.schedule.values
            compared[f"SGD {name}"] = (select_finished(stage.data, schedule=name), options.schedule_epochs)
    adam_options = make_part3_options(options, draw_options)
    fill = adam_options.format_command("sweeps")
    if has_any_finished(adam_options.sweep(), constant.store):
        adam = load_results(adam_options.sweep(), constant.store, fill=fill, allow_missing=True)
        found = select_finished(adam.data, architecture=options.architecture)
        compared[f"Adam {adam_options.learning_rate:g}"] = (found, adam_options.epochs)
        if adam.missing:
            count = format_count(len(adam.missing), "trial")
            print(f"The comparison lacks {count} of part 3. To train what is missing: {fill}")
        if adam.diverged:
            print(f"Of part 3, {describe_diverged(adam.diverged)}")
        if adam.stuck:
            print(f"Of part 3, {describe_stuck(adam.stuck)}")
    else:
        print(f"No trials of part 3 to compare with; train them with: {fill}")
    if line := describe_ignored(constant.store.ignored.values(), adam_options.sweep().labels()):
        print(f"Of part 3, {line}")
    output.answers += answer(options, constant, compared)
    if compared:
        any_stuck = any(bool(runs.stuck.any()) for runs, _ in compared.values())
        rows = [
            make_row(name, runs, epochs, draw_options.targets, any_stuck=any_stuck)
            for name, (runs, epochs) in compared.items()
        ]
        output.save_table(rows, "table", "Scheduled SGD against Adam.")


def answer(options: Part5, constant: SweepResults, compared: Mapping[str, tuple[xr.Dataset, int]]) -> list[Answer]:
    """Answer what a constant learning rate does, and what scheduled rates do against Adam.

    Args:
        options: Options of the sweep.
        constant: Results of the constant rates.
        compared: Finished trials along `seed`, and their epochs, by the name of the optimiser and its rates.
    """
    final = average_last_epoch(constant.data.val_accuracy, options.epochs)
    rates = gather_settings(final, constant.data, "learning_rate", VALIDATION_ACCURACY, form="rate {}")
    optimisers = {f"{name} ({epochs} epochs)": runs for name, (runs, epochs) in compared.items()}
    return write_answers(
        [
            draft_ranking("which constant learning rate ends with the highest validation accuracy", rates),
            draft_ranking("which optimiser generalises best", join_settings(optimisers, TEST_ACCURACY)),
        ]
    )


def make_export(architecture: str, runs: Mapping[str, xr.Dataset]) -> dict[str, Any]:
    """Return an architecture's mean curves in the report's format, and its diverged and stuck seeds if there are any.

    Args:
        architecture: Name of the architecture.
        runs: Its finished trials along `seed`, by learning rate as `EXPORT_NAMES` spells it.
    """
    kept = {rate: select_completed(found) for rate, found in runs.items()}
    diverged = {rate: seeds for rate, found in runs.items() if (seeds := list_diverged_seeds(found))}
    stuck = {rate: seeds for rate, found in runs.items() if (seeds := list_stuck_seeds(found))}
    return {
        "name": architecture,
        **{f"loss_curve_{rate}": compute_mean_curve(found.train_loss) for rate, found in kept.items()},
        **{f"val_acc_curve_{rate}": compute_mean_curve(found.val_accuracy) for rate, found in kept.items()},
        **({"diverged_seeds": diverged} if diverged else {}),
        **({"stuck_seeds": stuck} if stuck else {}),
    }


def make_part3_options(options: Part5, draw_options: Part5DrawOptions) -> Part3:
    """Return part 3's options for the same architecture, data set, batch size, seeds and store."""
    usual = Part3(**Part3.quick_defaults, quick=True) if options.quick else Part3()
    return Part3(
        dataset=options.dataset,
        seeds=options.seeds,
        epochs=usual.epochs if draw_options.adam_epochs is None else draw_options.adam_epochs,
        batch_size=options.batch_size,
        learning_rate=draw_options.adam_learning_rate,
        architectures=(options.architecture,),
        tracking_uri=options.tracking_uri,
        quick=options.quick,
    )


@style.with_style
def draw_constant(options: Part5, results: SweepResults) -> tuple[Figure, str]:
    """Draw training losses and validation accuracies in two panels, with one colour for each constant rate.

    Returns:
        The figure, and what it shows in words.
    """
    figure = style.make_figure(4.9)
    panels = dict(zip(("train_loss", "val_accuracy"), figure.subplots(1, 2), strict=True))
    found: dict[str, list[bands.Band]] = {quantity: [] for quantity in panels}
    styles = {f"rate {rate:g}": style.PALETTE[index] for index, rate in enumerate(LEARNING_RATES)}
    outside: list[str] = []
    for rate, (name, look) in zip(LEARNING_RATES, styles.items(), strict=True):
        runs = select_finished(results.data, learning_rate=rate)
        if runs.sizes["seed"]:
            for quantity, axes in panels.items():
                found[quantity].append(bands.compute_band(runs, quantity, name))
                figures.draw_band(axes, found[quantity][-1], look)
    figures.choose_loss_scale(panels["train_loss"], found["train_loss"])
    for quantity, axes in panels.items():
        figures.limit_y_range(axes, found[quantity])
        outside += figures.list_outside(axes, found[quantity])
    figures.label_axes(panels["train_loss"], "optimiser step", "training loss (nats)", "Training loss (cross-entropy)")
    figures.label_axes(panels["val_accuracy"], "optimiser step", "validation accuracy (%)", "Validation accuracy")
    title = f"{options.dataset}, {options.architecture}: SGD with constant learning rates"
    figures.add_heading(figure, title, figures.make_legend_handles(styles))
    figures.add_caption(figure, bands.describe_bands(found["train_loss"]), figures.describe_outside(outside))
    return figure, (
        f"Two panels by optimiser step for {options.architecture} on {options.dataset}, trained by SGD. The mean "
        f"training losses end at {bands.describe_last_means(found['train_loss'])}. The mean validation accuracies end "
        f"at {bands.describe_last_means(found['val_accuracy'], ' %')}."
    )


@style.with_style
def draw_schedule(options: Part5, stages: Sequence[SweepResults]) -> tuple[Figure, str]:
    """Draw the validation curves of the scheduled runs, with vertical lines where the learning rate switches.

    Returns:
        The figure, and what it shows in words.
    """
    figure = style.make_figure(4.5)
    axes = figure.subplots()
    found, styles = [], {}
    for stage, look in zip(stages, style.PALETTE, strict=False):
        [name] = map(str, stage.data.schedule.values)
        styles[name] = look
        found.append(bands.compute_band(select_finished(stage.data, schedule=name), "val_accuracy", name))
        figures.draw_band(axes, found[-1], look)
        for step, _ in stage.sweep.trials()[0].milestones:
            axes.axvline(step, color=look.color, linestyle=":", linewidth=1)
    figures.limit_y_range(axes, found)
    figures.label_axes(axes, "optimiser step", "validation accuracy (%)", "")
    title = f"{options.dataset}, {options.architecture}: SGD with scheduled learning rates"
    figures.add_heading(figure, title, figures.make_legend_handles(styles))
    outside = figures.describe_outside(figures.list_outside(axes, found))
    figures.add_caption(figure, bands.describe_bands(found), "Vertical lines: switches of the learning rate.", outside)
    return figure, (
        f"Validation accuracy by optimiser step for {options.architecture} on {options.dataset}, trained by SGD whose "
        f"learning rate starts at a value and switches. The means end at {bands.describe_last_means(found, ' %')}."
    )


def make_row(name: str, runs: xr.Dataset, epochs: int, targets: Sequence[float], *, any_stuck: bool) -> dict[str, Any]:
    """Return a row of the table: test accuracy, and epochs until the mean validation curve reaches each target.

    Args:
        name: Name of the optimiser and its learning rates.
        runs: Finished trials along `seed`.
        epochs: Epochs that each of them was to train for.
        targets: Validation accuracies in percent.
        any_stuck: Whether the table has columns on trials that are stuck.
    """
    kept = select_completed(runs)
    return {
        "optimiser": name,
        "seeds": kept.sizes["seed"],
        "diverged": int(runs.diverged.sum()),
        **({"stuck": int(runs.stuck.sum())} if any_stuck else {}),
        "epochs": epochs,
        "test_accuracy": format_mean_cell(kept.test_accuracy.values),
        **(summarise_learnt(runs) if any_stuck else {}),
        **{f"epochs_to_{target:g}": format_epochs_to(target, kept, epochs) for target in targets},
    }


def format_epochs_to(target: float, runs: xr.Dataset, epochs: int) -> str:
    """Return the number of epochs until the mean validation accuracy first reaches a target, or "never", as text.

    Args:
        target: Validation accuracy in percent.
        runs: Trials along `seed` that trained to the end; a dash stands for the number where there are none.
        epochs: Epochs that each of them trained for.
    """
    present = runs.dropna("step", how="all", subset=["val_accuracy"])
    above = np.flatnonzero(np.array(compute_mean_curve(present.val_accuracy)) >= target)
    if runs.sizes["seed"] == 0:
        return NO_VALUE
    return f"{float(present.step[above[0]] / present.step[-1]) * epochs:.2f}" if len(above) else "never"


if __name__ == "__main__":
    main(Part5, draw, __doc__, Part5DrawOptions)

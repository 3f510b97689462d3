"""MNIST: accuracy by epoch for each learning rate and for even against odd, and the best models' mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from analysis import bands, figures, style
from analysis.answers import Answer, Claims, Draft, write_answers
from analysis.differences import TEST_ACCURACY, estimate_mean, gather_settings
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
from analysis.wording import format_estimate
from sweeps.mnist import Mnist

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(options: Mnist, stages: Sequence[SweepResults], output: Output, draw_options: GalleryDrawOptions) -> None:
    """Write the panels, the galleries of mistakes, the export and the table."""
    [results] = stages
    output.answers += answer(options, results)
    settings = [str(setting) for setting in results.data.setting.values]
    any_stuck = bool(results.data.stuck.any())
    figure, description = draw_panels(options, results)
    output.save_figure(figure, "mnist", description, results)
    trials, rows = [], []
    for setting in settings:
        runs = select_finished(results.data, setting=setting)
        if runs.sizes["seed"] == 0:
            continue
        for seed in runs.seed.values:
            run = runs.sel(seed=seed)
            trial = results.find_trial(str(run.trial_id.item()))
            head = {"task": trial.task or "digits", "learning_rate": trial.learning_rate, "seed": int(seed)}
            trials.append({**head, **list_accuracies_by_epoch(run)})
        kept = select_completed(runs)
        row = {"setting": setting, "seeds": kept.sizes["seed"], "diverged": int(runs.diverged.sum())}
        if any_stuck:
            row["stuck"] = int(runs.stuck.sum())
        learnt = summarise_learnt(runs) if any_stuck else {}
        rows.append({**row, "test": format_mean_cell(kept.test_accuracy.values), **learnt})
    output.save_json({"trials": trials}, "mnist")
    output.save_table(rows, "table", "Accuracy (%) after the last epoch.")
    for task in ("digits", "even_odd"):
        best = find_best_run(results.data.sel(setting=[name for name in settings if name.startswith(task)]))
        if best is None:
            print(f"No gallery of {task}: none of its trials has trained to the end.")
            continue
        title = f"{options.dataset}, {best.setting.item()}, seed {int(best.seed)} (best test accuracy)"
        gallery, description = draw_misclassified(results, str(best.trial_id.item()), draw_options.data_root, title)
        output.save_figure(gallery, f"misclassified_{task}", description, results)


@style.with_style
def draw_panels(options: Mnist, results: SweepResults) -> tuple[Figure, str]:
    """Draw training and test accuracy by epoch, in a panel for each setting.

    Returns:
        The figure, and what it shows in words.
    """
    settings = [str(setting) for setting in results.data.setting.values]
    columns = min(3, len(settings))
    rows = -(-len(settings) // columns)
    figure = style.make_figure(1.9 * rows + 1.2)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    found: list[bands.Band] = []
    for axes in grid.flat[len(settings) :]:
        axes.set_axis_off()
    for axes, setting in zip(grid.flat, settings, strict=False):
        runs = select_finished(results.data, setting=setting)
        if runs.sizes["seed"]:
            found += figures.draw_accuracy_panel(axes, runs, options.epochs, setting)
    outside = figures.finish_accuracy_panels(grid, found)
    title = f"{options.dataset}: logistic regression by learning rate"
    figures.add_heading(figure, title, figures.make_accuracy_handles())
    figures.add_caption(figure, bands.describe_bands(found), outside)
    return figure, (
        f"{len(settings)} panels of training and test accuracy by epoch on {options.dataset}. The means over seeds of "
        f"the test accuracy end at {bands.describe_last_means(found[1::2], ' %')}."
    )


def answer(options: Mnist, results: SweepResults) -> list[Answer]:
    """Answer what the learning rate does, and how well even digits are told from odd ones."""
    *digits, even_odd = results.data.setting.values.tolist()
    data = results.data.sel(setting=digits)
    rates = gather_settings(data.test_accuracy, data, "setting", TEST_ACCURACY)
    rates = replace(rates, names=tuple(name.removeprefix("digits · ") for name in rates.names))
    values = results.data.test_accuracy.sel(setting=even_odd).values
    mean = estimate_mean(f"test accuracy of {even_odd}", values, TEST_ACCURACY)
    # Fashion-MNIST has ten classes of clothes, which are counted from 0.
    even = "even classes" if options.dataset == "fashion_mnist" else "even digits"

    def write_even_odd(claims: Claims) -> list[Answer]:
        question = f"How well does logistic regression tell {even} from odd ones?"
        if mean.n == 0:
            return [
                Answer(
                    question=question,
                    sentence=f"No trial of {even} against odd ones has trained to its end.",
                    estimates=(),
                )
            ]
        rate = even_odd.removeprefix("even_odd · ")
        accuracy = f"a test accuracy of {format_estimate(mean, 1)} at {rate}"
        sentence = f"{even.capitalize()} are told from odd ones with {accuracy}"
        lack = "; one seed does not show how much seeds vary" if mean.n == 1 else ""
        return [Answer(question=question, sentence=f"{sentence}{lack}.", estimates=(mean,))]

    topic = "which learning rate gives logistic regression the highest test accuracy"
    return write_answers([draft_ranking(topic, rates), Draft([], write_even_odd)])


if __name__ == "__main__":
    main(Mnist, draw, __doc__, GalleryDrawOptions)

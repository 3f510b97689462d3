"""MNIST: accuracy by epoch for each learning rate and for even against odd, and the best models' mistakes."""

from __future__ import annotations

from collections.abc import Sequence

from analysis import figures
from analysis.misclassified import draw_misclassified
from analysis.output import GalleryDrawOptions, Output, format_mean_cell, main
from analysis.results import (
    SweepResults,
    find_best_run,
    list_accuracies_by_epoch,
    select_completed,
    select_finished,
    summarise_learnt,
)
from sweeps.mnist import Mnist


def draw(options: Mnist, stages: Sequence[SweepResults], output: Output, draw_options: GalleryDrawOptions) -> None:
    """Write the panels, the galleries of mistakes, the export and the table."""
    [results] = stages
    settings = [str(setting) for setting in results.data.setting.values]
    any_stuck = bool(results.data.stuck.any())
    figure = figures.make_figure(3.2 * len(settings), 4.4)
    bands, trials, rows = [], [], []
    for axes, setting in zip(figure.subplots(1, len(settings), squeeze=False)[0], settings, strict=True):
        runs = select_finished(results.data, setting=setting)
        if runs.sizes["seed"] == 0:
            continue
        bands.append(figures.draw_accuracy_panel(axes, runs, options.epochs, setting))
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
    figures.add_accuracy_legend(figure)
    figures.add_caption(figure, f"{options.dataset}, logistic regression. {figures.describe_bands(bands)}")
    output.save_figure(figure, "mnist", "Training and test accuracy by epoch, in a panel for each setting.", results)
    output.save_json({"trials": trials}, "mnist")
    output.save_table(rows, "table", "Accuracy (%) after the last epoch.")
    for task in ("digits", "even_odd"):
        best = find_best_run(results.data.sel(setting=[name for name in settings if name.startswith(task)]))
        if best is None:
            print(f"No gallery of {task}: none of its trials has trained to the end.")
            continue
        title = f"{options.dataset}, {best.setting.item()}, seed {int(best.seed)} (best test accuracy)"
        gallery = draw_misclassified(results, str(best.trial_id.item()), draw_options.data_root, title)
        output.save_figure(gallery, f"misclassified_{task}", "Test images that the best model names wrong.", results)


if __name__ == "__main__":
    main(Mnist, draw, __doc__, GalleryDrawOptions)

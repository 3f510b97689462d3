"""MNIST: accuracy by epoch for every learning rate and for even-odd, and what the best models get wrong."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from analysis import figures
from analysis.misclassified import draw_gallery
from analysis.output import GalleryDrawing, Output, main
from analysis.results import Loaded, by_epoch, finished
from sweeps.intervals import mean_text
from sweeps.mnist import Mnist


def draw(selection: Mnist, stages: Sequence[Loaded], output: Output, drawing: GalleryDrawing) -> None:
    """Write the panels, the galleries, the export and the table."""
    [loaded] = stages
    settings = [str(setting) for setting in loaded.data.setting.values]
    figure = Figure(figsize=(3.2 * len(settings), 4.4), layout="constrained")
    bands, trials, rows = [], [], []
    for axes, setting in zip(figure.subplots(1, len(settings), squeeze=False)[0], settings, strict=True):
        runs = finished(loaded.data, setting=setting)
        if runs.sizes["seed"] == 0:
            continue
        bands.append(figures.accuracy_panel(axes, runs, selection.epochs, setting))
        for seed in runs.seed.values:
            one = runs.sel(seed=seed)
            trial = loaded.trial(str(one.trial_id.item()))
            head = {"task": trial.task or "digits", "learning_rate": trial.learning_rate, "seed": int(seed)}
            trials.append({**head, **by_epoch(one)})
        rows.append({"setting": setting, "seeds": runs.sizes["seed"], "test": mean_text(runs.test_accuracy.values)})
    figures.accuracy_legend(figure)
    figures.bottom_caption(figure, f"{selection.dataset}, logistic regression. {figures.caption(bands)}")
    output.figure(figure, "mnist", missing=loaded.missing, pdf=True)
    output.json({"trials": trials}, "mnist")
    output.table(rows, "table")
    for task in ("digits", "even_odd"):
        runs = loaded.data.sel(setting=[name for name in settings if name.startswith(task)])
        if not runs.test_accuracy.notnull().any():
            continue
        best = runs.isel(runs.test_accuracy.argmax(...))
        title = f"{selection.dataset}, {best.setting.item()}, seed {int(best.seed)} (best test accuracy)"
        gallery = draw_gallery(loaded, str(best.trial_id.item()), drawing.data_root, title)
        output.figure(gallery, f"misclassified_{task}", missing=loaded.missing)


if __name__ == "__main__":
    main(Mnist, draw, __doc__, GalleryDrawing)

"""Figures of a search and of its confirmation. Suggestions are drawn by their scores, never by test accuracies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis import bands, figures, parallel, style
from sweeps.intervals import compute_mean_interval
from sweeps.rounds import WORST, History
from sweeps.sweep import format_count
from trainables.class_counts import count_images
from trainables.result import Result
from trainables.trial import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCORE = "validation accuracy (%)"
BEST = style.Style("black", "")  # the best of all architectures
# Lines of the curves of suggestions, by how they ended.
CURVES: Mapping[str, Mapping[str, Any]] = {
    "full": {"linewidth": 1.1, "alpha": 0.85},
    "stopped": {"linewidth": 0.8, "alpha": 0.3},
    "failed": {"linewidth": 0.9, "alpha": 0.5, "linestyle": ":"},
}
RECORDS_OF_CURVE = 25  # hundreds of curves are drawn, and more points would only make the file larger


class Drawn(NamedTuple):
    """A figure with the name of its files and what it shows in words, in the order that `Output.save_figure` takes."""

    figure: Figure
    name: str
    description: str


def choose_styles(histories: Sequence[History]) -> dict[str, style.Style]:
    """Return the style of each architecture that was suggested, in the order of the space."""
    used = {suggestion.trial.architecture for history in histories for suggestion in history.suggestions}
    return {name: style.STYLES[name] for name in style.STYLES if name in used}


def describe_left_out(histories: Sequence[History]) -> str:
    """Return a sentence on the suggestions that have no score above zero: those that failed, and those stopped."""
    own = [s for history in histories for s in history.suggestions if not s.repeats]
    failed = sum(s.score is not None and s.score <= WORST for s in own)
    stopped = sum(s.score is None for s in own)
    words = [f"{failed} that diverged or {'is' if failed == 1 else 'are'} stuck at chance"] if failed else []
    words += [f"{stopped} stopped at a rung"] if stopped else []
    return f"Not shown: {' and '.join(words)}." if words else ""


@style.with_style
def draw_progress(histories: Sequence[History], dataset: str) -> Drawn:
    """Draw the best score so far by the epochs that searches have trained, and the score of each suggestion."""
    figure = style.make_figure(4.4)
    axes = figure.subplots()
    band = trace_best(histories)
    styles = choose_styles(histories)
    figures.draw_band(axes, band, BEST)
    learnt = []
    for name, look in styles.items():
        points = np.array([p for history in histories for p in list_scores(history, name)]).reshape(-1, 2)
        axes.plot(*points.T, linestyle="", marker=look.marker, color=look.color, alpha=0.7, markersize=4.5, zorder=1.5)
        learnt.append(points[:, 1])
    if limits := figures.compute_limits(np.concatenate(learnt), log=False):
        axes.set_ylim(limits)
    figures.label_axes(axes, "epochs trained by a search", SCORE, "")
    best = figures.make_legend_handle("best so far", BEST)
    points_of = [figures.make_point_handle(name, look) for name, look in styles.items()]
    figures.add_heading(figure, f"{dataset}: score of the suggestions, and the best so far", [best, *points_of])
    number = format_count(sum(len(history.complete) for history in histories), "suggestion")
    warning = "The best of many scores tends to be too high; the confirmation says by how much."
    figures.add_caption(figure, describe_best(band), describe_left_out(histories), warning)
    return Drawn(
        figure,
        "progress",
        f"Score by the epochs that were trained before it, for {number} on {dataset} trained at full length, and the "
        f"best score so far, which ends at {band.center[1]:.3g} %"
        f"{f' on average over {len(histories)} searches' if len(histories) > 1 else ''}.",
    )


def list_scores(history: History, architecture: str) -> list[tuple[float, float]]:
    """Return the epochs trained and the score of each suggestion of an architecture that has learnt."""
    epochs = dict(zip((s.number for s in history.suggestions), count_epochs(history), strict=True))
    return [(epochs[s.number], s.score or WORST) for s in history.complete if s.trial.architecture == architecture]


def count_epochs(history: History) -> NDArray[np.int64]:
    """Return the epochs that a search had trained when each of its suggestions ended, `(suggestions,)`."""
    own = [0 if s.repeats else max(s.scores) for s in history.suggestions]
    return np.cumsum(np.array(own, np.int64))


def trace_best(histories: Sequence[History]) -> bands.Band:
    """Return the best score so far by epochs, and its mean over searches, with an interval if they are enough."""
    traces = []
    for history in histories:
        scores = np.array([s.score or np.nan for s in history.suggestions])  # nothing is shown before one has learnt
        traces.append((count_epochs(history), np.fmax.accumulate(scores)))
    steps = np.unique(np.concatenate([epochs for epochs, _ in traces]))
    runs = np.full((len(traces), len(steps)), np.nan)
    for row, (epochs, best) in zip(runs, traces, strict=True):
        last = np.searchsorted(epochs, steps, side="right") - 1
        reached = (last >= 0) & (steps <= epochs[-1])
        row[reached] = best[last[reached]]
    steps, runs = np.repeat(steps, 2)[1:], np.repeat(runs, 2, axis=1)[:, :-1]  # it holds until the next one ends
    band = bands.Band(
        name="best so far",
        labels=[history.name for history in histories],
        stuck=np.zeros(len(runs), bool),
        steps=steps,
        mean=runs.mean(axis=0),
        low=np.full(len(steps), np.nan),
        high=np.full(len(steps), np.nan),
        runs=runs,
        diverged=np.zeros((0, len(steps))),
        over="search",
        window=1,
    )
    return bands.add_interval(band, 100) if band.is_sample else band


def describe_best(band: bands.Band) -> str:
    """Return a sentence for a caption on the line of the best score so far."""
    n = len(band.runs)
    if n == 1:
        return "One search."
    interval = f"; band: 95 % CI of the mean (Student's t, n = {n})" if band.has_interval else ""
    return f"Line: mean over {n} searches; thin lines: single searches{interval}."


@style.with_style
def draw_parallel(histories: Sequence[History], dataset: str) -> Drawn:
    """Draw each suggestion that was trained at full length as a line through its parameters and its score."""
    own = [(h, s) for h in histories for s in h.suggestions if s.score is not None and not s.repeats]
    scales = parallel.make_scales(histories[0].space, [s.trial for _, s in own], [s.score or WORST for _, s in own])
    figure = style.make_figure(4.0)
    axes = figure.subplots()
    bold = {id(s) for _, s in sorted(own, key=lambda pair: -(pair[1].score or WORST))[: max(1, len(own) // 10)]}
    styles = choose_styles(histories)
    for _, s in own:
        look = styles[s.trial.architecture]
        heights = parallel.place(scales, s.trial, s.score or WORST)
        if id(s) in bold:
            axes.plot(heights, color=look.color, marker=look.marker, linewidth=2.2, zorder=2.5)
        else:
            failed = (s.score or WORST) <= WORST
            axes.plot(heights, color=look.color, linestyle=":" if failed else "-", linewidth=0.8, alpha=0.5)
    parallel.draw_scales(axes, scales)
    title = f"{dataset}: parameters and scores of the suggestions"
    figures.add_heading(figure, title, figures.make_legend_handles(styles))
    stopped = sum(s.score is None for h in histories for s in h.suggestions if not s.repeats)
    caption = (
        f"A line is a suggestion trained at full length, n = {len(own)}; bold: the best {max(1, len(own) // 10)}.",
        "Dotted: diverged or stuck at chance." if any((s.score or WORST) <= WORST for _, s in own) else "",
        f"Not shown: {stopped} stopped at a rung." if stopped else "",
    )
    figures.add_caption(figure, *caption)
    best_history, best = max(own, key=lambda pair: pair[1].score or WORST)
    return Drawn(
        figure,
        "parallel",
        f"Parallel coordinates of {format_count(len(own), 'suggestion')} on {dataset}: one axis for each parameter and "
        f"one for the score. The best score is {best.score:.2f} % for {best_history.describe(best)}.",
    )


@style.with_style
def draw_importances(importances: Sequence[Mapping[str, float]], dataset: str) -> Drawn:
    """Draw Optuna's importance of each parameter, the greatest on top."""
    known = [found for found in importances if found]
    values = {name: np.array([found[name] for found in known]) for name in known[0]}
    names = sorted(values, key=lambda name: float(values[name].mean()))
    figure = style.make_figure(0.38 * len(names) + 1.9, style.HALF_PAGE_WIDTH)
    axes = figure.subplots()
    means = [float(values[name].mean()) for name in names]
    axes.barh(range(len(names)), means, color=style.PALETTE[6].color, height=0.6)
    for row, name in enumerate(names if len(known) > 1 else ()):
        axes.plot(values[name], np.full(len(known), row), linestyle="", marker="o", color=style.MUTED, markersize=3.5)
        if len(known) >= bands.MIN_RUNS_FOR_INTERVALS:
            draw_interval(axes, values[name], row, "black")
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_xlim(left=0)
    figures.label_axes(axes, "importance (%)", "", "")
    figures.add_heading(figure, f"{dataset}: Optuna's importance of parameters")
    many = f"Bars: means of {len(known)} searches; points: single searches." if len(known) > 1 else "One search."
    interval = "Lines: 95 % CI." if len(known) >= bands.MIN_RUNS_FOR_INTERVALS else ""
    figures.add_caption(figure, many, interval, "How well a parameter tells the best tenth from the rest.")
    shown = ", ".join(
        f"{name.replace('_', ' ')} {mean:.0f} %" for name, mean in zip(names[::-1], means[::-1], strict=True)
    )
    return Drawn(figure, "importance", f"Optuna's importance of each parameter for the search on {dataset}: {shown}.")


def draw_interval(axes: Axes, values: NDArray[np.float64], row: float, color: str) -> None:
    """Draw the mean of values with its 95 % interval as a horizontal line."""
    interval = compute_mean_interval(values, lowest=0, highest=100)
    error = np.abs(np.array([[interval.low], [interval.high]]) - interval.mean)
    axes.errorbar([float(interval.mean)], [row], xerr=error, color=color, linewidth=1.5, capsize=3, zorder=2.8)


@style.with_style
def draw_curves(histories: Sequence[History], results: Mapping[str, Result], dataset: str) -> Drawn:
    """Draw the validation curve of each suggestion by epoch, faint where it was stopped at a rung."""
    figure = style.make_figure(4.4)
    axes = figure.subplots()
    styles = choose_styles(histories)
    limits: list[NDArray[np.float64]] = []
    numbers = dict.fromkeys(CURVES, 0)
    for history in histories:
        for s in (s for s in history.suggestions if not s.repeats):
            trial = history.make_trial(s.params, max(s.scores))
            kind = "stopped" if s.score is None else "full" if s.score > WORST else "failed"
            x, y = get_curve(trial, results[trial.id])
            axes.plot(x, y, color=styles[trial.architecture].color, **CURVES[kind])
            numbers[kind] += 1
            limits += [] if kind == "failed" else [y]
    if limits and (ends := figures.compute_limits(np.concatenate(limits), log=False)):
        axes.set_ylim(ends)
    rungs = histories[0].rungs[:-1]
    for rung in rungs:
        axes.axvline(rung.epochs, color=style.MUTED, linestyle="--", linewidth=1)
    figures.label_axes(axes, "epoch", SCORE, "")
    handles = [figures.make_legend_handle(name, style.Style(look.color, "")) for name, look in styles.items()]
    figures.add_heading(figure, f"{dataset}: curves of the suggestions", handles)
    figures.add_caption(
        figure,
        f"Solid: {numbers['full']} trained at full length.",
        f"Faint: {numbers['stopped']} stopped at a rung (dashed lines)." if rungs else "",
        f"Dotted: {numbers['failed']} that diverged or are stuck at chance." if numbers["failed"] else "",
    )
    stopped = (
        f" {numbers['stopped']} were stopped at epochs {', '.join(str(r.epochs) for r in rungs)}." if rungs else ""
    )
    return Drawn(
        figure,
        "curves",
        f"Validation accuracy by epoch of each suggestion on {dataset}: {numbers['full']} were trained at full length, "
        f"{numbers['failed']} diverged or are stuck at chance.{stopped}",
    )


def get_curve(trial: Trial, result: Result) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return epochs and validation accuracies of a trial at some of its records."""
    images = sum(count_images(trial.dataset, trial.pipeline, trial.task, "train"))
    records = len(result.steps)
    shown = np.unique(np.linspace(0, records - 1, min(records, RECORDS_OF_CURVE)).round().astype(int))
    return result.steps[shown] / trial.steps_per_epoch(images), result.curves["val_accuracy"][shown]


@style.with_style
def draw_sizes(histories: Sequence[History], counts: Mapping[str, int], dataset: str) -> Drawn:
    """Draw scores against the number of trainable parameters, with the Pareto front.

    Args:
        histories: The searches.
        counts: Number of trainable parameters by architecture.
        dataset: Name of the data set.
    """
    found = [s for history in histories for s in history.complete]
    figure = style.make_figure(4.2)
    axes = figure.subplots()
    styles = choose_styles(histories)
    best: dict[str, float] = {}
    for s in found:
        best[s.trial.architecture] = max(best.get(s.trial.architecture, WORST), s.score or WORST)
        look = styles[s.trial.architecture]
        place = counts[s.trial.architecture], s.score or WORST
        axes.plot(*place, linestyle="", marker=look.marker, color=look.color, alpha=0.7)
    front = find_front([(counts[name], score, name) for name, score in best.items()])
    line = [*((size, score) for size, score, _ in front), (max(counts[name] for name in best), front[-1][1])]
    axes.plot(*zip(*line, strict=True), color="black", drawstyle="steps-post", zorder=1.5)
    axes.set_xscale("log")
    axes.margins(x=0.08)
    figures.label_axes(axes, "trainable parameters", SCORE, "")
    handles = [figures.make_point_handle(name, look) for name, look in styles.items() if name in best]
    handles.append(figures.make_legend_handle("Pareto front", BEST))
    figures.add_heading(figure, f"{dataset}: scores against the number of parameters", handles)
    figures.add_caption(figure, f"Scores of single seeds, n = {len(found)}.", describe_left_out(histories))
    shown = "; ".join(f"{name}, {size:,} parameters, {score:.2f} %" for size, score, name in front)
    return Drawn(
        figure, "sizes", f"Score against the number of trainable parameters on {dataset}. Pareto front: {shown}."
    )


def find_front(points: Sequence[tuple[int, float, str]]) -> list[tuple[int, float, str]]:
    """Return the points of which none other is as small and as good, the smallest first."""
    front: list[tuple[int, float, str]] = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front

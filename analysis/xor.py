"""XOR: the report's figures, and a test over many seeds of whether the loss grows with the noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis import figures, style
from analysis.noise import answer_noise
from analysis.output import DrawOptions, Output, main
from analysis.results import SweepResults
from sweeps.intervals import compute_mean_interval, compute_median_interval
from sweeps.xor import REPORT_SEED, Xor
from trainables.xor import POINTS, TARGETS, compute_loss, make_noisy_points, predict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The range of n values holds the median with probability 1 - 2 / 2^n, which is at least 95 % from six values on.
MIN_SEEDS_FOR_INTERVALS = 6
REPORT_LINE: dict[str, Any] = {"color": style.PALETTE[0].color, "linewidth": 1.8, "alpha": 1, "zorder": 2}


def draw(options: Xor, stages: Sequence[SweepResults], output: Output, draw_options: DrawOptions) -> None:
    """Write the decision surfaces, the loss curves, the losses by σ, the export and the table."""
    [results] = stages
    rows = [
        evaluate_trial(int(seed), float(sigma), results.by_trial[str(trial_id)].first_layer.astype(np.float64))
        for seed, by_sigma in zip(results.data.seed.values, results.data.trial_id.values, strict=True)
        for sigma, trial_id in zip(results.data.noise_sigma.values, by_sigma, strict=True)
        if trial_id
    ]
    output.answers += answer_noise(rows, REPORT_SEED)
    report = [row for row in rows if row["seed"] == REPORT_SEED]
    output.save_json({"report": [remove_seed(row) for row in report], "seeds": rows}, "xor")
    losses = "; ".join(f"σ = {row['sigma']:g}: {format_loss(row['clean_loss'])}" for row in report)
    description = (
        f"The output of the network of seed {REPORT_SEED} over the plane, a panel for each σ with the clean points and "
        f"one with the noisy points. Losses on the clean points: {losses}."
    )
    output.save_figure(draw_surfaces(results, report), "surfaces", description, results)
    last = results.data.train_loss.isel(step=-1)
    ends = "; ".join(
        f"σ = {sigma:g}: {format_loss(float(values.median()))}"
        for sigma in options.sigmas
        if (values := last.sel(noise_sigma=sigma).dropna("seed")).size
    )
    description = (
        f"The training loss of every seed by epoch on a log scale, a panel for each σ. Medians at the end: {ends}."
    )
    output.save_figure(draw_loss_curves(results.data), "loss", description, results)
    medians = "; ".join(
        f"σ = {sigma:g}: {format_loss(float(np.median(sample)))}"
        for sigma in options.sigmas
        if len(sample := select_sample(rows, sigma, "clean_loss"))
    )
    description = (
        f"The losses of every seed on the clean and on the noisy points by σ. Medians on the clean points: {medians}."
    )
    output.save_figure(draw_losses_by_sigma(rows, options), "xor", description, results)
    output.save_table(make_table(rows, options), "table", "The losses by σ.")


def evaluate_trial(seed: int, sigma: float, weights: NDArray[np.float64]) -> dict[str, Any]:
    """Return a row of the export: losses and predictions of a network on the clean points and on its noisy ones.

    Args:
        seed: Seed of the trial, which gives its noisy points.
        sigma: Standard deviation of their noise.
        weights: Weights after training, `(3 neurons, 3)`.
    """
    clean, noisy = predict(weights, POINTS), predict(weights, make_noisy_points(seed, sigma))
    return {
        "sigma": sigma,
        "clean_loss": compute_loss(clean),
        "noisy_loss": compute_loss(noisy),
        "clean_predictions": clean.tolist(),
        "noisy_predictions": noisy.tolist(),
        "seed": seed,
    }


def remove_seed(row: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a row without its seed, as the report's format has none."""
    return {name: value for name, value in row.items() if name != "seed"}


def format_loss(loss: float) -> str:
    """Return a loss as text: in thousands with commas, as a log of zero counts as 9,999, else with three digits."""
    return f"{loss:,.0f}" if loss >= 100 else f"{loss:.3g}"


@style.with_style
def draw_surfaces(results: SweepResults, report: Sequence[dict[str, Any]]) -> Figure:
    """Draw the report's decision surface for each σ, with the clean points and below it with the noisy points."""
    columns = min(4, max(1, len(report)))
    blocks = -(-max(1, len(report)) // columns)
    figure = style.make_figure(4.2 * blocks + 0.4)
    grid = figure.subplots(2 * blocks, columns, squeeze=False)
    for axes in grid.flat[2 * len(report) :] if blocks == 1 else grid.flat:
        axes.set_visible(False)
    for position, row in enumerate(report):
        sigma = row["sigma"]
        trial_id = str(results.data.trial_id.sel(seed=REPORT_SEED, noise_sigma=sigma).item())
        weights = results.by_trial[trial_id].first_layer.astype(np.float64)
        block, column = divmod(position, columns)
        for line, points, kind in ((0, POINTS, "clean"), (1, make_noisy_points(REPORT_SEED, sigma), "noisy")):
            axes = grid[2 * block + line, column]
            axes.set_visible(True)
            shown = draw_surface(axes, weights, points)
            axes.set_title(f"σ = {sigma:g}, {kind}\nloss {format_loss(row[f'{kind}_loss'])}")
            axes.set(xlabel="input 1" if line else "", ylabel="" if column else "input 2")
    if report:
        figure.colorbar(shown, ax=grid, label="prediction", shrink=0.6, location="bottom", aspect=40)
    title = f"XOR: decision surfaces of seed {REPORT_SEED} (● target 1, ▲ target 0)"
    figures.add_heading(figure, title)
    return figure


def draw_surface(axes: Axes, weights: NDArray[np.float64], points: NDArray[np.float64]) -> Any:
    """Draw a network's predictions on the plane around some points `(4, 2)`, and return the filled contours."""
    low, high = min(-0.5, points.min() - 0.5), max(1.5, points.max() + 0.5)
    ticks = np.linspace(low, high, 60)
    plane = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)  # (3600, 2)
    surface = predict(weights, plane).reshape(60, 60)
    shown = axes.contourf(ticks, ticks, surface, levels=np.linspace(0, 1, 11), cmap="cividis")
    for target, marker in ((1, "o"), (0, "^")):
        axes.plot(*points[target == TARGETS].T, linestyle="", marker=marker, color="white", markeredgecolor="black")
    return shown


@style.with_style
def draw_loss_curves(data: xr.Dataset) -> Figure:
    """Draw the loss on the training points by epoch: a bold curve for the report's seed, thin curves for the others."""
    sigmas = data.noise_sigma.values
    columns = min(2, len(sigmas))
    rows = -(-len(sigmas) // columns)
    figure = style.make_figure(2.1 * rows + 0.9)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes in panels[len(sigmas) :]:
        axes.set_axis_off()
    for axes, sigma in zip(panels, sigmas, strict=False):
        runs = data.train_loss.sel(noise_sigma=sigma)
        epochs = np.arange(1, runs.sizes["step"] + 1)
        figures.draw_runs(axes, epochs, runs.drop_sel(seed=REPORT_SEED).values, color=style.MUTED)
        figures.draw_runs(axes, epochs, runs.sel(seed=[REPORT_SEED]).values, **REPORT_LINE)
        axes.set_yscale("log")
        figures.label_axes(axes, "epoch", "summed loss (nats)", f"σ = {sigma:g}")
    figures.label_decades(panels[0])
    figures.add_heading(figure, "XOR: loss on the training points")
    figures.add_caption(
        figure, f"Bold: the report's seed {REPORT_SEED}. Thin: the {data.sizes['seed'] - 1} other seeds."
    )
    return figure


@style.with_style
def draw_losses_by_sigma(rows: Sequence[dict[str, Any]], options: Xor) -> Figure:
    """Draw the losses on the clean and on the noisy points by σ: medians with intervals, and every seed as a dot."""
    figure = style.make_figure(3.9)
    jitter = np.random.default_rng(0)
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), ("clean", "noisy"), strict=True):
        for position, sigma in enumerate(options.sigmas):
            losses = select_sample(rows, sigma, f"{kind}_loss")
            if len(losses) == 0:
                continue
            x = position + jitter.uniform(-0.12, 0.12, len(losses))
            axes.plot(x, losses, linestyle="", marker=".", color=style.MUTED, alpha=0.7)
            median, low, high, _ = compute_median_interval(losses)
            error = [[median - low], [high - median]]
            axes.errorbar(position + 0.28, median, yerr=error, marker="D", color=style.PALETTE[0].color, capsize=3)
        axes.set_xticks(range(len(options.sigmas)), [f"{sigma:g}" for sigma in options.sigmas])
        axes.set_yscale("log")
        figures.label_axes(axes, "standard deviation σ of the noise", "summed loss (nats)", f"On the {kind} points")
        figures.label_decades(axes)
    n = min(len(select_sample(rows, sigma, "clean_loss")) for sigma in options.sigmas)
    figures.add_heading(figure, "XOR: loss by noise")
    text = f"Grey: single seeds, {n} or more per σ. Diamonds: median with {describe_interval(n)}."
    figures.add_caption(figure, text, "The log of zero counts as 9,999.")
    return figure


def select_sample(rows: Sequence[dict[str, Any]], sigma: float, name: str) -> NDArray[np.float64]:
    """Return a quantity of the rows with this σ, `(seeds,)`.

    The report's seed is left out, because the report chose it; the other seeds are simply the first ones.
    """
    return np.array([row[name] for row in rows if row["sigma"] == sigma and row["seed"] != REPORT_SEED])


def describe_interval(n: int) -> str:
    """Return the caption's words for the interval that `compute_median_interval` gives for n values."""
    return (
        "its 95 % interval (order statistics)"
        if n >= MIN_SEEDS_FOR_INTERVALS
        else "no interval, as 95 % needs six seeds"
    )


def make_table(rows: Sequence[dict[str, Any]], options: Xor) -> list[dict[str, Any]]:
    """Return a row with the median losses for each σ, and a row that shows whether the loss grows with σ.

    The last row holds the rank correlation of loss and σ within a seed, as the mean over seeds with its interval.
    """
    result: list[dict[str, Any]] = []
    for sigma in options.sigmas:
        n = len(select_sample(rows, sigma, "clean_loss"))
        line: dict[str, Any] = {"sigma": f"{sigma:g}", "seeds": n}
        for kind in ("clean", "noisy"):
            median, low, high, _ = compute_median_interval(select_sample(rows, sigma, f"{kind}_loss"))
            line[f"{kind}_median"] = f"{median:.4g}"
            line[f"{kind}_ci95"] = "needs six seeds" if np.isnan(low) else f"{low:.4g} to {high:.4g}"
        result.append(line)
    if len(options.sigmas) > 1:
        n = len(compute_correlations(rows, options, "clean_loss"))
        trend: dict[str, Any] = {"sigma": "Spearman's ρ(loss, σ), mean over seeds", "seeds": n}
        for kind in ("clean", "noisy"):
            correlations = compute_correlations(rows, options, f"{kind}_loss")
            interval = compute_mean_interval(correlations, lowest=-1, highest=1)
            trend[f"{kind}_median"] = f"{float(interval.mean):.2f}"
            trend[f"{kind}_ci95"] = f"{float(interval.low):.2f} to {float(interval.high):.2f}"
        result.append(trend)
    return result


def compute_correlations(rows: Sequence[dict[str, Any]], options: Xor, name: str) -> list[float]:
    """Return Spearman's rank correlation of a loss with σ for each seed that has all trials.

    A seed whose losses are all equal counts as 0. The report's seed is left out.
    """
    from scipy.stats import spearmanr

    seeds = sorted({row["seed"] for row in rows} - {REPORT_SEED})
    by_seed = ([row[name] for row in sorted(rows, key=lambda r: r["sigma"]) if row["seed"] == seed] for seed in seeds)
    complete = [losses for losses in by_seed if len(losses) == len(options.sigmas)]
    return [
        float(spearmanr(sorted(options.sigmas), losses).statistic) if np.ptp(losses) else 0.0 for losses in complete
    ]


if __name__ == "__main__":
    main(Xor, draw, __doc__)

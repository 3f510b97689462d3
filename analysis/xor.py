"""XOR: the report's figures, and over many seeds whether the loss grows with the noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis import figures
from analysis.output import DrawOptions, Output, main
from analysis.results import SweepResults
from sweeps.intervals import compute_mean_interval
from sweeps.xor import REPORT_SEED, Xor
from trainables.xor import POINTS, TARGETS, compute_loss, make_noisy_points, predict

MIN_SEEDS_FOR_INTERVALS = 6  # for a 95 % interval of a median between order statistics: 1 - 2 / 2^6 > 0.95


def draw(selection: Xor, stages: Sequence[SweepResults], output: Output, drawing: DrawOptions) -> None:
    """Write points, loss curves, decision surfaces, the answer over seeds, and the export."""
    [loaded] = stages
    rows = [
        evaluate_trial(int(seed), float(sigma), loaded.results[str(trial_id)].first_layer.astype(np.float64))
        for seed, by_sigma in zip(loaded.data.seed.values, loaded.data.trial_id.values, strict=True)
        for sigma, trial_id in zip(loaded.data.noise_sigma.values, by_sigma, strict=True)
        if trial_id
    ]
    report = [row for row in rows if row["seed"] == REPORT_SEED]
    output.json({"report": [remove_seed(row) for row in report], "seeds": rows}, "xor")
    output.figure(draw_surfaces(loaded, report), "surfaces", loaded)
    output.figure(draw_loss_curves(loaded.data), "loss", loaded)
    output.figure(draw_losses_by_sigma(rows, selection), "xor", loaded, pdf=True)
    output.table(make_table(rows, selection), "table")


def evaluate_trial(seed: int, sigma: float, weights: NDArray[np.float64]) -> dict[str, Any]:
    """Losses and predictions of a trained network on the clean and on its own noisy points."""
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
    """The report's own format."""
    return {name: value for name, value in row.items() if name != "seed"}


def draw_surfaces(loaded: SweepResults, report: Sequence[dict[str, Any]]) -> Figure:
    """For the report's seed: the decision surface of every σ, with the clean (top) and the noisy points (bottom)."""
    figure = Figure(figsize=(3 * max(1, len(report)) + 0.8, 6.4), layout="constrained")
    grid = figure.subplots(2, max(1, len(report)), squeeze=False)
    for column, row in enumerate(report):
        sigma = row["sigma"]
        trial_id = str(loaded.data.trial_id.sel(seed=REPORT_SEED, noise_sigma=sigma).item())
        weights = loaded.results[trial_id].first_layer.astype(np.float64)
        for axes, points, name in (
            (grid[0, column], POINTS, "clean points"),
            (grid[1, column], make_noisy_points(REPORT_SEED, sigma), "noisy points"),
        ):
            shown = draw_surface(axes, weights, points)
            axes.set_title(f"σ = {sigma:g}, {name}, loss {row[f'{name.split()[0]}_loss']:.4g}", fontsize=9)
    if report:
        figure.colorbar(shown, ax=grid, label="prediction", shrink=0.8)
    figure.suptitle(f"Decision surfaces, seed {REPORT_SEED}: targets 1 as ●, 0 as ▲", fontsize=10)
    return figure


def draw_surface(axes: Axes, weights: NDArray[np.float64], points: NDArray[np.float64]) -> Any:
    """The network's prediction over the plane around the points."""
    low, high = min(-0.5, points.min() - 0.5), max(1.5, points.max() + 0.5)
    ticks = np.linspace(low, high, 60)
    plane = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)  # (3600, 2)
    surface = predict(weights, plane).reshape(60, 60)
    shown = axes.contourf(ticks, ticks, surface, levels=np.linspace(0, 1, 11), cmap="cividis")
    for target, marker in ((1, "o"), (0, "^")):
        axes.plot(*points[target == TARGETS].T, linestyle="", marker=marker, color="white", markeredgecolor="black")
    return shown


def draw_loss_curves(data: xr.Dataset) -> Figure:
    """Loss on the training points by epoch: the report's seed bold, the others thin."""
    sigmas = data.noise_sigma.values
    figure = Figure(figsize=(3.2 * len(sigmas), 3.6), layout="constrained")
    for axes, sigma in zip(figure.subplots(1, len(sigmas), squeeze=False)[0], sigmas, strict=True):
        runs = data.train_loss.sel(noise_sigma=sigma)
        epochs = np.arange(1, runs.sizes["step"] + 1)
        axes.plot(epochs, runs.drop_sel(seed=REPORT_SEED).values.T, color="grey", linewidth=0.5, alpha=0.6)
        axes.plot(epochs, runs.sel(seed=REPORT_SEED), color=figures.PALETTE[0].color, linewidth=1.8)
        axes.set_yscale("log")
        figures.label_axes(axes, "epoch", "summed loss, training points", f"σ = {sigma:g}")
    figures.add_caption(figure, f"Bold: the report's seed {REPORT_SEED}. Thin: the other seeds.")
    return figure


def draw_losses_by_sigma(rows: Sequence[dict[str, Any]], selection: Xor) -> Figure:
    """Loss by σ over the seeds, on both kinds of points: medians with intervals, and every seed as a dot."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    jitter = np.random.default_rng(0)
    for axes, kind in zip(figure.subplots(1, 2), ("clean", "noisy"), strict=True):
        for place, sigma in enumerate(selection.sigmas):
            losses = select_sample(rows, sigma, f"{kind}_loss")
            if len(losses) == 0:
                continue
            x = place + jitter.uniform(-0.12, 0.12, len(losses))
            axes.plot(x, losses, linestyle="", marker=".", color="grey", alpha=0.7)
            low, median, high = compute_median_interval(losses)
            error = [[median - low], [high - median]]
            axes.errorbar(place + 0.25, median, yerr=error, marker="D", color=figures.PALETTE[1].color, capsize=3)
        axes.set_xticks(range(len(selection.sigmas)), [f"{sigma:g}" for sigma in selection.sigmas])
        axes.set_yscale("log")
        figures.label_axes(axes, "noise σ", "summed loss", f"Loss on the {kind} points")
    n = min(len(select_sample(rows, sigma, "clean_loss")) for sigma in selection.sigmas)
    text = f"Grey: {n} or more seeds. Diamonds: median with {describe_interval(n)}."
    figures.add_caption(figure, text + " The log of zero counts as 9,999.")
    return figure


def select_sample(rows: Sequence[dict[str, Any]], sigma: float, name: str) -> NDArray[np.float64]:
    """A quantity over the sweep's own seeds; the report's seed, chosen by the report, is not one of them."""
    return np.array([row[name] for row in rows if row["sigma"] == sigma and row["seed"] != REPORT_SEED])


def describe_interval(n: int) -> str:
    """What `median_interval` gives for n values."""
    return (
        "its 95 % interval (order statistics)" if n >= MIN_SEEDS_FOR_INTERVALS else "the range, as 95 % needs six seeds"
    )


def compute_median_interval(values: NDArray[np.float64], confidence: float = 0.95) -> tuple[float, float, float]:
    """Median with an interval between order statistics, valid for any distribution; `values` `(n,)`.

    The losses are heavy-tailed (a log of zero counts as 9,999), so a mean would say little. The interval's coverage is
    at least `confidence`; with fewer than six values it is the whole range, which covers less.
    """
    from scipy.stats import binom

    ordered = np.sort(values)
    n = len(ordered)
    rank = max(int(binom.ppf((1 - confidence) / 2, n, 0.5)), 1)
    return float(ordered[rank - 1]), float(np.median(ordered)), float(ordered[n - rank])


def make_table(rows: Sequence[dict[str, Any]], selection: Xor) -> list[dict[str, Any]]:
    """Medians by σ, and the mean rank correlation of loss and σ within seeds with its interval: does the loss grow?"""
    result: list[dict[str, Any]] = []
    for sigma in selection.sigmas:
        n = len(select_sample(rows, sigma, "clean_loss"))
        line: dict[str, Any] = {"sigma": f"{sigma:g}", "seeds": n}
        for kind in ("clean", "noisy"):
            low, median, high = (
                compute_median_interval(select_sample(rows, sigma, f"{kind}_loss")) if n else (np.nan,) * 3
            )
            line[f"{kind}_median"] = f"{median:.4g}"
            line[f"{kind}_ci95"] = f"{low:.4g} to {high:.4g}" if n >= MIN_SEEDS_FOR_INTERVALS else "needs six seeds"
        result.append(line)
    if len(selection.sigmas) > 1:
        n = len(compute_correlations(rows, selection, "clean_loss"))
        trend: dict[str, Any] = {"sigma": "Spearman's ρ(loss, σ), mean over seeds", "seeds": n}
        for kind in ("clean", "noisy"):
            interval = compute_mean_interval(compute_correlations(rows, selection, f"{kind}_loss"))
            trend[f"{kind}_median"] = f"{float(interval.mean):.2f}"
            low, high = max(float(interval.low), -1.0), min(float(interval.high), 1.0)
            trend[f"{kind}_ci95"] = f"{low:.2f} to {high:.2f}"
        result.append(trend)
    return result


def compute_correlations(rows: Sequence[dict[str, Any]], selection: Xor, name: str) -> list[float]:
    """Rank correlation of a loss with σ, one a seed."""
    from scipy.stats import rankdata

    seeds = sorted({row["seed"] for row in rows} - {REPORT_SEED})
    by_seed = ([row[name] for row in sorted(rows, key=lambda r: r["sigma"]) if row["seed"] == seed] for seed in seeds)
    complete = [losses for losses in by_seed if len(losses) == len(selection.sigmas)]
    ranks = [rankdata(losses) for losses in complete]
    return [float(np.corrcoef(np.arange(len(r)), r)[0, 1]) if np.ptp(r) else 0.0 for r in ranks]


if __name__ == "__main__":
    main(Xor, draw, __doc__)

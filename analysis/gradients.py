"""The answer to what a sigmoid does to the first layer's gradient, by the depth of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis.answers import Answer, Claims, Draft, Estimate
from analysis.wording import format_factor, join_words
from sweeps.comparisons import Difference, compute_difference
from trainables.architectures import count_layers

MOST = 300.0  # largest logarithm of a ratio, which keeps intervals of two seeds within what a float can hold
QUESTION = "What does a sigmoid do to the first layer's gradient, and how does that go with depth?"


def draft_gradients(norms: xr.DataArray, architectures: Sequence[str]) -> Draft:
    """Draft the answer from the ratios of gradient norms, ReLU over sigmoid, in networks of different depth.

    Ratios are compared as logarithms: seed by seed within a network, and unpaired between the shallowest network and
    the deepest. So their means are geometric means.

    Args:
        norms: Typical gradient norms along architecture, activation and seed; NaN where there is none.
        architectures: Names of the networks.
    """
    positive = norms.where(norms > 0)
    samples: dict[str, NDArray[np.float64]] = {}
    found: dict[str, Difference] = {}
    for name in sorted(architectures, key=count_layers):
        relu, sigmoid = (
            np.log(positive.sel(architecture=name, activation=each).to_numpy()) for each in ("relu", "sigmoid")
        )
        found[name] = compute_difference(relu, sigmoid, paired=True, permute=False)
        samples[name] = relu - sigmoid
    shallow, *_, deep = [*samples] if len(samples) > 1 else [*samples, *samples]
    growth = None
    if count_layers(shallow) < count_layers(deep):
        growth = compute_difference(samples[deep], samples[shallow], paired=False, permute=False)

    def write(claims: Claims) -> list[Answer]:
        held = claims.held
        shown = {name for name, holds in zip(found, held, strict=False) if holds}
        clauses = describe_ratios(found, shown)
        estimates = [estimate_ratio(f"ReLU over sigmoid in {name}", difference) for name, difference in found.items()]
        if growth is not None:
            estimates.append(estimate_ratio(f"growth of that ratio from {shallow} to {deep}", growth))
            clauses += describe_growth(estimates[-1], shallow, deep, shown=held[-1])
        return [Answer(question=QUESTION, sentence="; ".join(clauses) + ".", estimates=tuple(estimates))]

    return Draft([difference.p for difference in (*found.values(), *([growth] if growth else []))], write)


def estimate_ratio(name: str, logs: Difference) -> Estimate:
    """Return a ratio with its interval, from a difference of logarithms."""
    value, low, high = np.exp(np.clip((logs.estimate, logs.low, logs.high), -MOST, MOST)).tolist()
    return Estimate(name=name, value=value, low=low, high=high, n=logs.n, unit="")


def invert(ratio: Estimate) -> Estimate:
    """Return one over a ratio."""
    return replace(ratio, value=1 / ratio.value, low=1 / ratio.high, high=1 / ratio.low)


def describe_ratios(found: Mapping[str, Difference], shown: set[str]) -> list[str]:
    """Return clauses on the networks whose gradient is smaller with one of the activations, and on the others.

    Args:
        found: Differences of logarithms, ReLU minus sigmoid, by network.
        shown: Networks in which the difference was shown.
    """
    ratios = {name: estimate_ratio(name, logs) for name, logs in found.items()}
    inverse = {name: invert(ratio) for name, ratio in ratios.items()}

    def list_factors(names: Sequence[str], factors: Mapping[str, Estimate]) -> str:
        return join_words([f"{format_factor(factors[name])} in {name} ({count_layers(name)} layers)" for name in names])

    present = [name for name in found if found[name].n]
    if not any(found[name].n > 1 for name in present):
        values = f": the norm with ReLU divided by that with the sigmoid is {list_factors(present, ratios)}"
        reason = f"one seed does not show how much seeds vary{values if present else ''}"
        return [f"It cannot be said what a sigmoid does to the gradient, as {reason}; train more with --seeds"]
    smaller = [name for name in present if name in shown and found[name].estimate > 0]
    larger = [name for name in present if name in shown and name not in smaller]
    rest = [name for name in present if name not in shown]
    clauses = [f"smaller by a factor of {list_factors(smaller, ratios)}"] if smaller else []
    clauses += [f"larger by a factor of {list_factors(larger, inverse)}"] if larger else []
    if not clauses:
        return [
            f"No effect of the sigmoid on the first layer's gradient was shown: ratios are {list_factors(rest, ratios)}"
        ]
    first = f"With a sigmoid, the first layer's gradient is, compared with ReLU, {' and '.join(clauses)}"
    return [first, *([f"in the others no difference was shown: {list_factors(rest, ratios)}"] if rest else [])]


def describe_growth(growth: Estimate, shallow: str, deep: str, *, shown: bool) -> list[str]:
    """Return a clause on how the ratio of gradients changes from the shallowest network to the deepest."""
    if growth.n < 2:
        return []
    if not shown:
        return [
            f"that this goes with depth was not shown: from {shallow} to {deep} the factor is {format_factor(growth)}"
        ]
    verb = "grows" if growth.value > 1 else "shrinks"
    return [f"this {verb} with depth: from {shallow} to {deep} by a factor of {format_factor(growth)}"]

"""The XOR network: two ReLU neurons and a sigmoid output in NumPy, updated in exactly the order of the report.

An epoch begins by predicting all four points. Then it visits the points in order. For each point, the derivative of the
loss uses the prediction from the beginning of the epoch, and everything else uses the current weights. Hidden neuron 0
is updated first, then hidden neuron 1, which sees the new weights of neuron 0, and last the output neuron, with the
gradient from before both. Any other order of the same steps gives other digits than those in the report.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import numpy as np
from numpy.typing import NDArray

from trainables.result import Result
from trainables.trial import Trial

POINTS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.float64)
TARGETS = np.array([1.0, 0.0, 0.0, 1.0])
LOG_OF_ZERO = -9_999.0  # used instead of −∞, as in the report

Weights = NDArray[np.float64]
"""Weights of the network, `(3 neurons, 3)`: hidden 0, hidden 1, output; each with two input weights, then the bias."""


def make_noisy_points(seed: int, sigma: float) -> NDArray[np.float64]:
    """Return the four points `(4, 2)` with added normal noise of standard deviation `sigma`."""
    return POINTS + np.random.RandomState(seed).normal(0, sigma, (4, 2))


def draw_initial_weights(seed: int) -> Weights:
    """Return the initial weights: three random numbers from the seed, the same three for every neuron."""
    return np.tile(np.random.RandomState(seed).rand(3), (3, 1))


def compute_sigmoid(x: float) -> float:
    """Compute 1 / (1 + e^−x) without overflow."""
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def compute_relu_slope(x: float) -> float:
    """Compute the report's derivative of ReLU, min(max(x, 0), 1); the true one is 1 for every positive x."""
    return min(max(x, 0.0), 1.0)


def compute_pre_activations(weights: Weights, x: float, y: float) -> tuple[float, float, float]:
    """Compute the pre-activations of hidden neuron 0, hidden neuron 1 and the output neuron at the point (x, y)."""
    (a, b, c), (d, e, f), (g, h, i) = weights.tolist()
    first, second = a * x + b * y + c, d * x + e * y + f
    return first, second, g * max(first, 0.0) + h * max(second, 0.0) + i


def predict(weights: Weights, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the network's outputs `(n,)` at points `(n, 2)`."""
    return np.array([compute_sigmoid(compute_pre_activations(weights, *point)[2]) for point in points.tolist()])


def compute_loss(predictions: NDArray[np.float64]) -> float:
    """Compute the binary cross-entropy summed over the four points; the log of zero counts as `LOG_OF_ZERO`."""
    likelihoods = np.where(TARGETS == 1, predictions, 1 - predictions)
    return sum(-math.log(p) if p > 0 else -LOG_OF_ZERO for p in likelihoods.tolist())


def update_weights(weights: Weights, point: NDArray[np.float64], slope: float, rate: float) -> None:
    """Update the weights in place for one point.

    Args:
        point: `(2,)`.
        slope: The derivative of the loss with respect to the point's prediction at the beginning of the epoch.
        rate: The learning rate.
    """
    x, y = point.tolist()

    def compute_output_delta() -> tuple[float, float, float]:
        first, second, output = compute_pre_activations(weights, x, y)
        p = compute_sigmoid(output)
        return first, second, slope * p * (1 - p)

    first, second, delta = compute_output_delta()
    output_gradient = delta * np.array([max(first, 0.0), max(second, 0.0), 1.0])
    for neuron in (0, 1):
        *hidden, delta = compute_output_delta()
        weights[neuron] -= (
            rate * delta * weights[2, neuron] * compute_relu_slope(hidden[neuron]) * np.array([x, y, 1.0])
        )
    weights[2] -= rate * output_gradient


def train_epochs(trial: Trial) -> Iterator[Weights]:
    """Train on the trial's noisy points, yielding the weights after every epoch.

    It is the same array each time, which the next epoch changes.
    """
    points = make_noisy_points(trial.seed, cast("float", trial.noise_sigma))
    weights = draw_initial_weights(trial.seed)
    for _ in range(trial.epochs):
        for point, target, p in zip(points, TARGETS, predict(weights, points).tolist(), strict=True):
            # The derivative of the loss is −1/p for target 1 and −1/(p − 1) for target 0. If the prediction is exactly
            # wrong, it is infinite, but the derivative of the sigmoid is zero: such a point changes nothing.
            divisor = p - 1 + target
            update_weights(weights, point, -1 / divisor if divisor else 0.0, trial.learning_rate)
        yield weights


def train(trial: Trial) -> Result:
    """Train an XOR trial to its end.

    Returns:
        The loss on the trial's noisy points after every epoch, the accuracy on the points without noise, and the final
        weights. A step is one point's update, so that an epoch has four.
    """
    points = make_noisy_points(trial.seed, cast("float", trial.noise_sigma))
    losses = []
    for weights in train_epochs(trial):
        losses.append(compute_loss(predict(weights, points)))
    right = (predict(weights, POINTS) > 0.5) == (TARGETS == 1)
    return Result(
        steps=4 * np.arange(1, trial.epochs + 1),
        curves={"train_loss": np.array(losses)},
        test_accuracy=float(100 * right.mean()),
        first_layer=weights,
    )

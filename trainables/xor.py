"""The XOR network: two ReLU neurons and a sigmoid output in NumPy, updated in the very order of the report.

In an epoch the four predictions are taken first. Then the points are visited in order: an update uses its point's stale
prediction in the derivative of the loss, and current weights everywhere else. Hidden neuron 0 is updated, then hidden
neuron 1, which sees neuron 0's new weights, then the output neuron with the gradient it had before the hidden updates.
With another order of the same steps the report's digits do not come out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from trainables.result import Result
from trainables.trial import Trial

POINTS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.float64)
TARGETS = np.array([1.0, 0.0, 0.0, 1.0])
LOG_OF_ZERO = -9_999.0

Weights = NDArray[np.float64]
"""`(3 neurons, 3)`: hidden 0, hidden 1, output; each two input weights, then the bias."""


def make_noisy_points(seed: int, sigma: float) -> NDArray[np.float64]:
    """The four points with normal noise of standard deviation `sigma`, `(4, 2)`."""
    return POINTS + np.random.RandomState(seed).normal(0, sigma, (4, 2))


def draw_initial_weights(seed: int) -> Weights:
    """Every neuron draws its three weights from the seed anew, so all three start alike."""
    return np.tile(np.random.RandomState(seed).rand(3), (3, 1))


def compute_sigmoid(x: float) -> float:
    """1 / (1 + e^−x), without overflow."""
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def compute_relu_slope(x: float) -> float:
    """The report's derivative of ReLU: min(max(x, 0), 1)."""
    return min(max(x, 0.0), 1.0)


def compute_pre_activations(weights: Weights, x: float, y: float) -> tuple[float, float, float]:
    """Pre-activations of hidden 0, hidden 1 and the output at a point."""
    (a, b, c), (d, e, f), (g, h, i) = weights.tolist()
    first, second = a * x + b * y + c, d * x + e * y + f
    return first, second, g * max(first, 0.0) + h * max(second, 0.0) + i


def predict(weights: Weights, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The network's outputs `(n,)` at points `(n, 2)`."""
    return np.array([compute_sigmoid(compute_pre_activations(weights, *point)[2]) for point in points.tolist()])


def compute_loss(predictions: NDArray[np.float64]) -> float:
    """Binary cross-entropy summed over the four points; the log of zero counts as −9,999."""
    likelihoods = np.where(TARGETS == 1, predictions, 1 - predictions)
    return sum(-math.log(p) if p > 0 else -LOG_OF_ZERO for p in likelihoods.tolist())


def update_weights(weights: Weights, point: NDArray[np.float64], slope: float, rate: float) -> None:
    """One point's update, in place; `slope` is the derivative of the loss by the point's stale prediction."""
    x, y = point.tolist()

    def output_delta() -> tuple[float, float, float]:
        first, second, output = compute_pre_activations(weights, x, y)
        p = compute_sigmoid(output)
        return first, second, slope * p * (1 - p)

    first, second, delta = output_delta()
    output_gradient = delta * np.array([max(first, 0.0), max(second, 0.0), 1.0])
    for neuron in (0, 1):
        *hidden, delta = output_delta()
        weights[neuron] -= (
            rate * delta * weights[2, neuron] * compute_relu_slope(hidden[neuron]) * np.array([x, y, 1.0])
        )
    weights[2] -= rate * output_gradient


def train_epochs(trial: Trial) -> Iterator[Weights]:
    """Train on the trial's points, yielding the weights after every epoch."""
    assert trial.noise_sigma is not None
    points = make_noisy_points(trial.seed, trial.noise_sigma)
    weights = draw_initial_weights(trial.seed)
    for _ in range(trial.epochs):
        for point, target, p in zip(points, TARGETS, predict(weights, points).tolist(), strict=True):
            wrong = p - 1 + target  # p for target 1, p − 1 for target 0
            # at an exactly wrong prediction the slope is infinite but the sigmoid's is zero: no update
            update_weights(weights, point, -1 / wrong if wrong else 0.0, trial.learning_rate)
        yield weights


def train(trial: Trial) -> Result:
    """Train an XOR trial to its end: the loss on its own points after every epoch, and the final weights."""
    assert trial.noise_sigma is not None
    points = make_noisy_points(trial.seed, trial.noise_sigma)
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

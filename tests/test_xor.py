from __future__ import annotations

import numpy as np
import pytest

from sweeps.xor import Xor
from trainables import xor
from trainables.trial import Trial

# The report's figures, to the digits it gives.
PREDICTIONS = [0.99169518, 0.00156162, 0.00156982, 0.99897341]
LOSS = 0.012500506655179712
NOISY_CLEAN_LOSS, NOISY_LOSS = 10005.716846832256, 0.06220229278014848


def find_trial(sigma: float, seed: int = 46, epochs: int = 2000) -> Trial:
    sweep = Xor(epochs=epochs).sweep()
    return next(t for t in sweep.trials() if (t.noise_sigma, t.seed) == (sigma, seed))


def test_the_reports_figures_without_noise() -> None:
    result = xor.train(find_trial(0.0))
    predictions = xor.predict(result.first_layer, xor.POINTS)
    np.testing.assert_allclose(predictions, PREDICTIONS, atol=5e-9)
    assert xor.compute_loss(predictions) == pytest.approx(LOSS, rel=1e-12)
    assert result.curves["train_loss"][-1] == pytest.approx(LOSS, rel=1e-12)
    assert result.test_accuracy == 100
    assert len(result.steps) == 2000


def test_the_reports_figures_with_noise() -> None:
    weights = xor.train(find_trial(0.5)).first_layer
    assert xor.compute_loss(xor.predict(weights, xor.POINTS)) == pytest.approx(NOISY_CLEAN_LOSS, rel=1e-12)
    assert xor.compute_loss(xor.predict(weights, xor.make_noisy_points(46, 0.5))) == pytest.approx(
        NOISY_LOSS, rel=1e-12
    )


def test_seeds_differ_in_weights_and_noise() -> None:
    assert not np.array_equal(xor.draw_initial_weights(0), xor.draw_initial_weights(1))
    assert not np.array_equal(xor.make_noisy_points(0, 1.0), xor.make_noisy_points(1, 1.0))
    np.testing.assert_array_equal(xor.make_noisy_points(0, 0.0), xor.POINTS)
    assert not np.array_equal(
        xor.train(find_trial(1.0, 0, 5)).first_layer, xor.train(find_trial(1.0, 1, 5)).first_layer
    )


def test_the_global_generator_is_left_alone() -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]  # noqa: NPY002
    xor.train(find_trial(1.0, epochs=2))
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # type: ignore[index]  # noqa: NPY002


def test_the_loss_of_certain_but_wrong_predictions_is_finite() -> None:
    assert xor.compute_loss(np.array([0.0, 1.0, 0.0, 1.0])) == 2 * 9999
    assert xor.compute_sigmoid(-1e9) == 0.0
    assert xor.compute_sigmoid(1e9) == 1.0

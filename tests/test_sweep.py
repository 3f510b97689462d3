from __future__ import annotations

import pytest
from conftest import make_sweep

from sweeps.sweep import Sweep
from trainables.errors import BadInputError


def test_the_first_axis_varies_slowest() -> None:
    sweep = make_sweep()
    assert list(sweep.labels().values()) == ["mlp_1 · seed 0", "cnn_3 · seed 0", "mlp_1 · seed 1", "cnn_3 · seed 1"]


def test_cells_that_compute_the_same_share_one_trial() -> None:
    sweep = Sweep(
        name="grid",
        axes={"architecture": ["mlp_1", "cnn_3"], "pooling": ["max", "avg"]},
        fixed={"dataset": "digits", "learning_rate": 0.01, "epochs": 1, "seed": 0},
    )
    assert len(list(sweep.cells())) == 4
    assert list(sweep.labels().values()) == ["mlp_1", "cnn_3 · max", "cnn_3 · avg"]


def test_an_axis_without_values_is_refused() -> None:
    with pytest.raises(BadInputError, match="no value for architecture"):
        Sweep(name="x", axes={"architecture": ()}, fixed={})


def test_a_value_given_twice_is_refused() -> None:
    with pytest.raises(BadInputError, match="a value for architecture twice"):
        Sweep(name="x", axes={"architecture": ("mlp_1", "mlp_1")}, fixed={})


def test_an_axis_may_set_several_settings_under_one_name() -> None:
    sweep = Sweep(
        name="x",
        axes={"model": {"a": {"architecture": "cnn_3", "pooling": "avg"}, "b": {"architecture": "mlp_1"}}},
        fixed={"dataset": "digits", "learning_rate": 0.01, "epochs": 1, "seed": 0},
    )
    assert [(trial.architecture, trial.pooling) for trial in sweep.trials()] == [("cnn_3", "avg"), ("mlp_1", None)]
    assert list(sweep.labels().values()) == ["a", "b"]

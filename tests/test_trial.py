from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from conftest import make_sweep, make_trial
from hypothesis import given
from hypothesis import strategies as st

from sweeps.sweep import Sweep
from trainables.architectures import ACTIVATIONS, ARCHITECTURES, POOLINGS
from trainables.errors import BadInputError
from trainables.trial import IMAGE_DATASETS, OPTIMIZERS, Trial

SETTINGS = st.fixed_dictionaries(
    {
        "dataset": st.sampled_from(IMAGE_DATASETS),
        "architecture": st.sampled_from(list(ARCHITECTURES)),
        "activation": st.sampled_from(list(ACTIVATIONS)),
        "pooling": st.sampled_from(list(POOLINGS)),
        "optimizer": st.sampled_from(OPTIMIZERS),
        "learning_rate": st.floats(1e-6, 10),
        "milestones": st.sampled_from([(), ((9900, 0.01),), ((9900, 0.01), (15300, 0.001))]),
        "batch_size": st.integers(1, 1000),
        "epochs": st.integers(1, 100),
        "seed": st.integers(0, 1000),
        "task": st.sampled_from([None, "even_odd"]),
        "record_every_steps": st.none() | st.integers(1, 100),
        "quantities": st.sampled_from([("train_loss",), ("train_loss", "val_accuracy"), ("gradient_norm",)]),
    }
)


@given(SETTINGS, SETTINGS)
def test_ids_are_equal_exactly_where_trials_are(one: dict[str, Any], other: dict[str, Any]) -> None:
    a, b = Trial(**one), Trial(**other)
    assert (a.id == b.id) == (a == b)


@given(SETTINGS, st.data())
def test_changing_one_field_that_applies_changes_the_id(settings: dict[str, Any], data: st.DataObject) -> None:
    other = data.draw(SETTINGS)
    trial = Trial(**settings)
    for field in dataclasses.fields(Trial):
        if field.name in ("architecture", "activation", "pooling"):
            continue  # whether activation and pooling apply depends on the architecture
        if field.name in ("pipeline", "noise_sigma"):
            continue  # not drawn, as they need other quantities and data
        changed = dataclasses.replace(trial, **{field.name: other[field.name]})
        assert (changed.id == trial.id) == (getattr(changed, field.name) == getattr(trial, field.name))


@given(SETTINGS)
def test_pooling_is_part_of_the_id_only_of_networks_that_pool(settings: dict[str, Any]) -> None:
    ids = {Trial(**{**settings, "pooling": pooling}).id for pooling in POOLINGS}
    assert len(ids) == (2 if "Pool" in str(ARCHITECTURES[settings["architecture"]]) else 1)


@given(st.integers(1, 20), st.integers(1, 20))
def test_growing_a_grid_changes_no_id(few: int, more: int) -> None:
    small, large = make_sweep(few), make_sweep(few + more)
    ids = {trial.id for trial in small.trials()}
    assert ids < {trial.id for trial in large.trials()}
    reordered = Sweep(name="other", axes=dict(reversed(small.axes.items())), fixed=small.fixed)
    assert {trial.id for trial in reordered.trials()} == ids


def test_the_id_is_the_same_in_every_process_and_version() -> None:
    """If this fails, stored trials are no longer found: only a change of what training computes may do that."""
    trial = Trial(dataset="cifar10", architecture="cnn_3", learning_rate=0.01, epochs=15, seed=0)
    assert trial.id == "d3d96c634928af3a"


def test_equal_values_written_differently_give_the_same_id() -> None:
    assert make_trial(learning_rate=1).id == make_trial(learning_rate=1.0).id
    assert make_trial(quantities=("val_accuracy", "train_loss")) == make_trial(
        quantities=("train_loss", "val_accuracy")
    )


def test_learning_rate_follows_the_milestones() -> None:
    trial = make_trial(learning_rate=0.1, milestones=((10, 0.01), (20, 0.001)))
    assert [trial.learning_rate_at(step) for step in (1, 10, 11, 20, 21)] == [0.1, 0.1, 0.01, 0.01, 0.001]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architecture": "cnn_9"}, "unknown architecture 'cnn_9'; choose from mlp_1"),
        ({"dataset": "imagenet"}, "unknown dataset 'imagenet'; choose from cifar10"),
        ({"activation": "relux"}, "unknown activation 'relux'"),
        ({"architecture": "cnn_3", "pooling": "median"}, "unknown pooling 'median'"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion'"),
        ({"quantities": ("speed",)}, "unknown quantity 'speed'"),
        ({"epochs": 0}, "epochs is 0; it must be a positive whole number"),
        ({"batch_size": -1}, "batch size is -1"),
        ({"learning_rate": 0.0}, "learning rate is 0.0"),
        ({"learning_rate": math.nan}, "learning rate is nan"),
        ({"learning_rate": math.inf}, "learning rate is inf"),
        ({"seed": -1}, "seed is -1"),
        ({"pipeline": "sepia"}, "unknown pipeline 'sepia'"),
        ({"pipeline": "unit"}, "val_accuracy cannot be recorded: pipeline 'unit' holds no images out"),
        ({"dataset": "xor"}, "unknown architecture 'mlp_1'; choose from xor"),
        ({"dataset": "xor", "architecture": "xor", "noise_sigma": -1}, "noise sigma is -1"),
        ({"milestones": ((20, 0.1), (10, 0.1))}, "milestones are at steps"),
        ({"milestones": ((20, -0.1),)}, "learning rate is -0.1"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence):
        make_trial(**changes)

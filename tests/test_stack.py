from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_dataset, make_trial
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables import datasets, training
from trainables.accelerated import stack, stacked_network
from trainables.architectures import ARCHITECTURES
from trainables.result import Result
from trainables.trial import QUANTITIES, Trial

MLPS = ("mlp_1", "mlp_2", "logistic")
CNNS = [pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES if name not in MLPS]
DATA = training.to_tensors(make_dataset(train=600), "cpu")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class NoGraph:
    """Stands for a CUDA graph, and computes each step."""

    def __init__(self, function: Any, batch_size: int) -> None:
        self.take = function

    def forget(self) -> None:
        pass


def train_alone(trial: Trial) -> Result:
    state = training.start(trial, DATA)
    for _ in training.train(trial, DATA, state):
        pass
    return training.finish(trial, DATA, state)


def train_together(trials: Sequence[Trial], *, compiled: bool = False) -> list[Result]:
    states = [training.start(trial, DATA) for trial in trials]
    for _ in stack.train_stack(trials, DATA, states, compiled=compiled):
        pass
    return [training.finish(trial, DATA, state) for trial, state in zip(trials, states, strict=True)]


def assert_same(one: Result, other: Result) -> None:
    """Assert that two results are equal to the last bit."""
    for name, curve in one.curves.items():
        assert curve.tobytes() == other.curves[name].tobytes(), name
    assert one.first_layer.tobytes() == other.first_layer.tobytes()
    np.testing.assert_equal(one.test_accuracy, other.test_accuracy)


def make_trials(architecture: str, seeds: Sequence[int], **changes: Any) -> list[Trial]:
    changes = {"architecture": architecture, "quantities": QUANTITIES, **changes}
    return [make_trial(seed=seed, learning_rate=0.001 * (1 + seed % 3), **changes) for seed in seeds]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("architecture", [*MLPS, *CNNS])
def test_a_stack_computes_what_single_trials_do(
    architecture: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In double precision, rounding stays so small that any other difference would show."""
    small = training.to_tensors(make_dataset(train=60), "cpu")
    images = {name: getattr(small, name).double() for name in ("train_images", "val_images", "test_images")}
    monkeypatch.setattr(f"{__name__}.DATA", replace(small, **images))
    torch.set_default_dtype(torch.float64)
    try:
        steps = {"batch_size": 10, "record_every_steps": 4}  # 12 steps in two epochs
        trials = make_trials(architecture, (3, 4), optimizer=optimizer, **steps)
        for trial, actual in zip(trials, train_together(trials), strict=True):
            expected = train_alone(trial)
            assert expected.steps.tolist() == [4, 8, 12]
            assert expected.curves["train_loss"].dtype == np.float64
            for name, curve in expected.curves.items():
                np.testing.assert_allclose(actual.curves[name], curve, rtol=1e-6, err_msg=name)
            np.testing.assert_allclose(actual.first_layer, expected.first_layer, atol=1e-9)
            assert actual.test_accuracy == expected.test_accuracy
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("architecture", [*MLPS, *CNNS])
def test_a_stack_follows_single_trials_for_a_hundred_steps(architecture: str, optimizer: str) -> None:
    """The curves agree to float tolerance, with a learning rate at which rounding grows slowly."""
    trials = [
        make_trial(architecture=architecture, optimizer=optimizer, learning_rate=1e-5, seed=seed, record_every_steps=50)
        for seed in (3, 4)
    ]
    for trial, actual in zip(trials, train_together(trials), strict=True):
        expected = train_alone(trial)
        assert expected.steps.tolist() == [50, 100]
        np.testing.assert_allclose(actual.curves["train_loss"], expected.curves["train_loss"], rtol=1e-4)
        np.testing.assert_allclose(actual.first_layer, expected.first_layer, atol=1e-4)


@settings(max_examples=25)
@given(
    architecture=st.sampled_from(MLPS),
    optimizer=st.sampled_from(["adam", "sgd"]),
    batch_size=st.integers(1, 70),
    seeds=st.lists(st.integers(0, 99), min_size=2, max_size=9, unique=True),
    data=st.data(),
)
def test_other_members_of_the_stack_change_no_bit(
    architecture: str, optimizer: str, batch_size: int, seeds: list[int], data: st.DataObject
) -> None:
    """This holds for fully connected networks on the CPU."""
    changes = {"optimizer": optimizer, "batch_size": batch_size, "epochs": 1, "record_every_steps": 4}
    trials = make_trials(architecture, seeds, **changes)
    one = data.draw(st.sampled_from(trials))
    [by_itself] = train_together([one])
    assert_same(train_together(trials)[trials.index(one)], by_itself)


def test_each_member_has_its_own_learning_rate_and_schedule() -> None:
    fast = make_trial(learning_rate=0.01, milestones=((30, 0.001),), batch_size=50)
    slow = make_trial(learning_rate=0.0001, batch_size=50)
    for trial, actual in zip((fast, slow), train_together([fast, slow]), strict=True):
        np.testing.assert_allclose(actual.curves["train_loss"], train_alone(trial).curves["train_loss"], rtol=1e-4)


def test_the_last_batch_of_an_epoch_may_be_smaller() -> None:
    trials = make_trials("mlp_1", (0, 1), batch_size=70)  # 600 images: the ninth batch has 40
    for trial, actual in zip(trials, train_together(trials), strict=True):
        np.testing.assert_allclose(actual.curves["train_loss"], train_alone(trial).curves["train_loss"], rtol=1e-4)


def test_a_diverged_member_leaves_the_stack_and_changes_no_other() -> None:
    good = make_trials("mlp_1", (0, 1), optimizer="sgd")
    bad = make_trial(optimizer="sgd", learning_rate=1e6, seed=7, quantities=QUANTITIES)
    first, diverged, second = train_together([good[0], bad, good[1]])
    assert diverged.diverged
    assert len(diverged.steps) < len(first.steps)
    for actual, expected in zip((first, second), train_together(good), strict=True):
        assert_same(actual, expected)
    np.testing.assert_equal(diverged.steps, train_alone(bad).steps)


def test_the_checkpoint_of_a_member_holds_nothing_of_the_others() -> None:
    """A member's parameters are views into the stack's, and saving a view would save the whole stack."""
    trials = make_trials("mlp_1", range(8))
    states = [training.start(trial, DATA) for trial in trials]
    next(stack.train_stack(trials, DATA, states))
    saved = training.make_state_dict(states[0], 1)
    assert saved["curves"].nbytes > 0
    for value in (saved["curves"], *saved["model"].values()):
        assert value.untyped_storage().nbytes() == value.nbytes


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_joint_optimiser_of_gpus_computes_what_single_ones_do(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates that differ, change and come in any order stay with their members, and checkpoints hold one member."""

    rates = [(0.01, ((7, 0.001),)), (0.002, ()), (0.01, ((7, 0.001),)), (0.01, ())]
    trials = [
        make_trial(optimizer=optimizer, learning_rate=rate, milestones=milestones, seed=seed, batch_size=50)
        for seed, (rate, milestones) in enumerate(rates)
    ]
    expected = train_together(trials)
    monkeypatch.setattr(stack, "is_on_gpu", lambda _: True)
    monkeypatch.setattr(stack, "StepGraph", NoGraph)
    states = [training.start(trial, DATA) for trial in trials]
    steps = stack.train_stack(trials, DATA, states)
    list(islice(steps, 9))
    saved = [training.make_state_dict(state, 0) for state in states]
    for one in saved:
        for value in (*one["model"].values(), *one["optimizer"]["state"].get(0, {}).values()):
            assert value is None or value.untyped_storage().nbytes() == value.nbytes
    list(steps)
    again = [training.start(trial, DATA) for trial in trials]
    for state, one in zip(again, saved, strict=True):
        training.load_state_dict(state, one)
    list(stack.train_stack(trials, DATA, again))
    for trial, state, resumed, result in zip(trials, states, again, expected, strict=True):
        assert state.optimizer.param_groups[0]["lr"] == trial.learning_rate_at(24)
        assert state.step == resumed.step == 24
        for name, value in state.model.state_dict().items():
            torch.testing.assert_close(value, resumed.model.state_dict()[name])
        np.testing.assert_allclose(training.finish(trial, DATA, state).first_layer, result.first_layer, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("architecture", "seeds"), [("mlp_1", (0, 1, 2)), ("cnn_3", (0, 1))])
def test_a_compiled_stack_computes_what_an_uncompiled_one_does(
    architecture: str, seeds: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They agree to float tolerance over 20 steps, in two epochs with smaller last batches, compiled once for both."""
    stacked_network.get_compiled_losses.cache_clear()
    torch.compiler.reset()
    calls: list[tuple[int, ...]] = []
    plain = stacked_network.compute_losses

    def spy(network: torch.nn.Sequential, parameters: Any, images: torch.Tensor, labels: torch.Tensor) -> Any:
        if not torch.compiler.is_compiling():
            calls.append(tuple(labels.shape))
        return plain(network, parameters, images, labels)

    monkeypatch.setattr(stacked_network, "compute_losses", spy)
    monkeypatch.setattr(stack, "compute_losses", spy)
    trials = make_trials(architecture, seeds, batch_size=62, record_every_steps=2)  # 600 images: the tenth batch has 42
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = train_together(trials, compiled=True)
    assert calls == 2 * [(len(seeds), 42)]
    for actual, expected in zip(compiled, train_together(trials), strict=True):
        assert expected.steps[-1] == 20
        for name in ("train_loss", "gradient_norm"):
            np.testing.assert_allclose(actual.curves[name], expected.curves[name], rtol=1e-3, err_msg=name)
        np.testing.assert_allclose(actual.first_layer, expected.first_layer, atol=1e-4)


def test_a_stack_that_cannot_be_compiled_trains_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilation is tried once, and the numbers are the same to the last bit."""
    stacked_network.get_compiled_losses.cache_clear()
    attempts: list[object] = []

    def compile_nothing(function: object, **_: object) -> None:
        attempts.append(function)
        raise RuntimeError("no compiler\nand where it was looked for")

    monkeypatch.setattr(torch, "compile", compile_nothing)
    trials = make_trials("mlp_1", (0, 1))
    with pytest.warns(UserWarning, match="uncompiled: RuntimeError: no compiler$"):
        uncompiled = train_together(trials, compiled=True)
    assert len(attempts) == 1
    for actual, expected in zip(uncompiled, train_together(trials), strict=True):
        assert_same(actual, expected)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_stacked_trials_are_as_accurate_as_single_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """On real images, mean test accuracies over 20 seeds differ by less than three standard errors."""
    monkeypatch.setattr(f"{__name__}.DATA", training.to_tensors(datasets.load_dataset("digits", Path("unused")), "cpu"))
    trials = make_trials("mlp_1", range(20), epochs=3, batch_size=50, quantities=("train_loss",))
    ends = (train_together(trials), [train_alone(trial) for trial in trials])
    accuracies = np.array([[result.test_accuracy for result in results] for results in ends])
    assert accuracies.std(axis=1).min() > 0
    error = np.sqrt(accuracies.var(axis=1, ddof=1).sum() / len(trials))
    assert abs(accuracies[0].mean() - accuracies[1].mean()) < 3 * error

from __future__ import annotations

import dataclasses
import io
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import make_dataset, make_trial, needs_compiler
from torch.nn import functional

from trainables import training
from trainables.accelerated.convolutions import forward_native
from trainables.architectures import ARCHITECTURES, build, get_first_layer
from trainables.result import Result
from trainables.training import Forward, forward_torch
from trainables.trial import Trial


@pytest.fixture(scope="module")
def data() -> training.Tensors:
    return training.to_tensors(make_dataset(), "cpu")


def train_fully(trial: Trial, data: training.Tensors, forward: Forward = forward_torch) -> Result:
    state = training.start(trial, data)
    state.forward = forward
    for _ in training.train(trial, data, state):
        pass
    return training.finish(trial, data, state)


def assert_same(one: Result, other: Result) -> None:
    for name, curve in one.curves.items():
        assert curve.tobytes() == other.curves[name].tobytes()
    assert one.first_layer.tobytes() == other.first_layer.tobytes()
    assert one.test_accuracy == other.test_accuracy


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_seed_gives_the_same_curves_bit_for_bit(data: training.Tensors, architecture: str) -> None:
    trial = make_trial(architecture=architecture)
    assert_same(train_fully(trial, data), train_fully(trial, data))


def test_earlier_trials_in_the_process_change_nothing(data: training.Tensors) -> None:
    alone = train_fully(make_trial(), data)
    torch.manual_seed(99)
    train_fully(make_trial(seed=5), data)
    assert_same(alone, train_fully(make_trial(), data))


def test_a_trial_leaves_the_global_generator_alone(data: training.Tensors) -> None:
    before = torch.get_rng_state()
    train_fully(make_trial(), data)
    assert torch.equal(torch.get_rng_state(), before)


def test_different_seeds_differ_in_start_and_order(data: training.Tensors) -> None:
    one, other = train_fully(make_trial(seed=0), data), train_fully(make_trial(seed=1), data)
    assert not np.array_equal(one.curves["train_loss"], other.curves["train_loss"])
    first, second = (next(training.start(make_trial(seed=s), data).model.parameters()) for s in (0, 1))
    assert not torch.equal(first, second)
    assert not torch.equal(training.draw_epoch_order(0, 0, 130), training.draw_epoch_order(1, 0, 130))


def test_every_epoch_sees_every_image_once_in_another_order() -> None:
    orders = [training.draw_epoch_order(3, epoch, 130).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(130)) for order in orders)
    assert orders[0] != orders[1] != orders[2]


def test_initial_weights_are_those_of_pytorch_with_the_seed(data: training.Tensors) -> None:
    trial = make_trial(architecture="cnn_3", seed=7)
    torch.manual_seed(7)
    expected = build("cnn_3", (1, 28, 28)).state_dict()
    actual = training.start(trial, data).model.state_dict()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_records_are_at_every_tenth_step_across_epochs(data: training.Tensors) -> None:
    trial = make_trial(batch_size=50, epochs=7)  # 3 steps in an epoch, the last of them with 30 images
    result = train_fully(trial, data)
    assert result.steps.tolist() == [10, 20]
    assert {name: len(curve) for name, curve in result.curves.items()} == dict.fromkeys(trial.quantities, 2)


def test_curves_have_the_lengths_of_the_reports() -> None:
    trial = make_trial(dataset="cifar10", batch_size=50, epochs=15)
    assert len(training.list_record_steps(trial, 45_000)) == 1350
    assert training.list_record_steps(make_trial(batch_size=50), 54_000)[-1] == 2160


def test_training_equals_a_plain_loop(data: training.Tensors) -> None:
    """A loop written out here, with the same start, order and definitions, gives the same records."""
    trial = make_trial(architecture="cnn_3", epochs=2)
    model = training.start(trial, data).model
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    expected = []
    step = 0
    for epoch in range(2):
        for batch in training.draw_epoch_order(0, epoch, 130).split(10):
            x, y = data.train_images[batch], data.train_labels[batch]
            logits = model(x)
            loss = functional.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % 10 == 0:
                with torch.no_grad():
                    val = (model(data.val_images).argmax(1) == data.val_labels).float().mean()
                train = (logits.argmax(1) == y).float().mean()
                expected.append([loss.item(), 100 * train.item(), 100 * val.item()])
    result = train_fully(trial, data)
    actual = np.stack([result.curves[name] for name in ("train_loss", "train_accuracy", "val_accuracy")], axis=1)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)
    assert result.test_accuracy == pytest.approx(
        100 * (model(data.test_images).argmax(1) == data.test_labels).float().mean().item()
    )


@pytest.mark.parametrize("stop_at", [10, 13, 20])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("forward", [forward_torch, pytest.param(forward_native, marks=needs_compiler)])
def test_a_resumed_trial_equals_an_uninterrupted_one(
    data: training.Tensors, stop_at: int, optimizer: str, forward: Forward
) -> None:
    """The trial is stopped at a record within the first epoch, at that epoch's end, and in the second epoch."""
    trial = make_trial(architecture="cnn_3", optimizer=optimizer, milestones=((15, 0.002),))
    state = training.start(trial, data)
    state.forward = forward
    for _ in training.train(trial, data, state):
        if state.step >= stop_at:
            break
    assert state.step == stop_at
    file = io.BytesIO()
    torch.save(training.make_state_dict(state, state.step // 10), file)
    file.seek(0)
    fresh = training.start(trial, data)
    fresh.forward = forward
    training.load_state_dict(fresh, torch.load(file, weights_only=True))
    for _ in training.train(trial, data, fresh):
        pass
    assert_same(train_fully(trial, data, forward), training.finish(trial, data, fresh))


def test_a_schedule_changes_only_what_comes_after_its_milestone(data: training.Tensors) -> None:
    plain = train_fully(make_trial(optimizer="sgd", learning_rate=0.1, epochs=3), data)
    scheduled = train_fully(make_trial(optimizer="sgd", learning_rate=0.1, epochs=3, milestones=((20, 0.001),)), data)
    np.testing.assert_array_equal(plain.curves["train_loss"][:2], scheduled.curves["train_loss"][:2])
    assert plain.curves["train_loss"][2] != scheduled.curves["train_loss"][2]


def test_evaluation_in_batches_equals_evaluation_at_once() -> None:
    model = build("mlp_1", (1, 28, 28))
    images, labels = torch.randn(1013, 1, 28, 28), torch.randint(0, 10, (1013,))
    expected = 100 * (model(images).argmax(1) == labels).sum().item() / 1013
    assert training.compute_accuracy(model, images, labels).item() == pytest.approx(expected)
    assert model.training


def test_tensors_share_the_memory_of_the_data_set() -> None:
    dataset = make_dataset()
    assert training.to_tensors(dataset, "cpu").train_images.data_ptr() == dataset.train_images.ctypes.data


@pytest.mark.parametrize("architecture", ["mlp_2", "cnn_5"])
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_gradient_norm_is_what_sgd_moves_the_first_layer_by(
    data: training.Tensors, architecture: str, activation: str
) -> None:
    """With plain SGD the gradient equals (w_k - w_{k+1}) / rate; float64 keeps rounding out of the comparison."""
    trial = make_trial(
        architecture=architecture,
        activation=activation,
        optimizer="sgd",
        learning_rate=0.01,
        quantities=("gradient_norm",),
    )
    double = dataclasses.replace(data, train_images=data.train_images.double())
    state = training.start(trial, double)
    state.model.double()
    for batch in training.draw_epoch_order(0, 0, 130).split(10)[:5]:
        before = get_first_layer(state.model).detach().clone()
        output = training.take_step(trial, double, state, batch)
        moved = (before - get_first_layer(state.model)).norm() / 0.01
        assert training.QUANTITY_FUNCTIONS["gradient_norm"](output).item() == pytest.approx(moved.item(), rel=1e-8)
        assert moved > 0


def test_records_can_be_at_the_end_of_every_epoch(data: training.Tensors) -> None:
    quantities = ("train_set_accuracy", "test_set_accuracy")
    trial = make_trial(batch_size=50, epochs=4, record_every_steps=None, quantities=quantities)
    result = train_fully(trial, data)
    assert result.steps.tolist() == [3, 6, 9, 12]
    assert result.curves["test_set_accuracy"][-1] == pytest.approx(result.test_accuracy)
    untrained = training.start(trial, data).model
    assert (
        training.compute_accuracy(untrained, data.train_images, data.train_labels)
        < result.curves["train_set_accuracy"][-1]
    )


def test_the_even_odd_task_has_labels_of_two_classes() -> None:
    dataset = make_dataset()
    tensors = training.to_tensors(dataset, "cpu", task="even_odd")
    assert tensors.classes == 2
    assert tensors.train_labels.tolist() == [label % 2 for label in dataset.train_labels]
    trial = make_trial(task="even_odd", architecture="logistic")
    assert training.start(trial, tensors).model(tensors.test_images).shape == (30, 2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_draws_no_random_number(architecture: str) -> None:
    """A checkpoint therefore needs no random generator to continue a trial."""
    data = training.to_tensors(make_dataset(side=32), "cpu")
    trial = make_trial(architecture=architecture, epochs=1)
    state = training.start(trial, data)
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    for _ in training.train(trial, data, state):
        pass
    assert torch.equal(torch.get_rng_state(), torch_before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


def test_a_trial_that_diverges_ends_at_that_record(data: training.Tensors) -> None:
    trial = make_trial(optimizer="sgd", learning_rate=1e6, epochs=4, record_every_steps=2)
    state = training.start(trial, data)
    seen = [state.step for _ in training.train(trial, data, state)]
    result = training.finish(trial, data, state)
    assert state.diverged
    assert seen == list(range(1, result.steps[-1] + 1))
    assert seen[-1] < 52
    assert np.isfinite(result.curves["train_loss"][:-1]).all()
    assert not np.isfinite(result.curves["train_loss"][-1])
    assert np.isnan(result.test_accuracy)
    assert result.diverged

    resumed = training.start(trial, data)
    training.load_state_dict(resumed, training.make_state_dict(state, len(result.steps)))
    assert list(training.train(trial, data, resumed)) == []
    again = training.finish(trial, data, resumed)
    assert again.curves["train_loss"].tobytes() == result.curves["train_loss"].tobytes()
    assert not train_fully(make_trial(), data).diverged


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tests how glibc keeps memory")
def test_tensors_reuse_memory_that_was_freed() -> None:
    script = """
import resource, sys, torch
from trainables.process import prepare_process
if sys.argv[1:]:
    prepare_process(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for megabytes in range(2, 30):  # each is larger than all before, for which glibc takes new memory and returns it
    torch.ones(megabytes * 2**18)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

    def page_faults(*words: str) -> int:
        command = [sys.executable, "-c", script, *words]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert page_faults("keep") < page_faults() / 5


def test_a_result_names_the_test_images_that_the_network_gets_right(data: training.Tensors) -> None:
    trial = make_trial(epochs=1)
    state = training.start(trial, data)
    result = train_fully(trial, data)
    assert result.test_correct is not None
    assert len(result.test_correct) == len(data.test_labels)
    assert result.test_accuracy == pytest.approx(100 * result.test_correct.mean(), abs=1e-4)
    for _ in training.train(trial, data, state):
        pass
    with torch.inference_mode():
        expected = state.model(data.test_images).argmax(dim=1) == data.test_labels
    assert result.test_correct.tolist() == expected.tolist()

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import make_dataset, make_trial
from torch import Tensor

from trainables import members, training
from trainables.architectures import ACTIVATIONS, ARCHITECTURES, POOLINGS, build
from trainables.compiled import Compiled, plain


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_pass_outside_training_equals_the_models(architecture: str, activation: str, pooling: str) -> None:
    model = build(architecture, (1, 31, 32), activation=activation, pooling=pooling)
    images = torch.randn(5, 1, 31, 32)
    before = images.clone()
    with torch.inference_mode():
        assert torch.equal(plain(model, images), model(images))
    assert torch.equal(images, before)


def test_without_a_compiler_all_goes_on_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[Callable[..., Tensor]] = []

    def compile_(function: Callable[..., Tensor], **_: Any) -> Callable[..., Tensor]:
        def fail(*_: Any) -> Tensor:
            tries.append(function)
            raise RuntimeError("no C++ compiler")

        return fail

    monkeypatch.setattr(torch, "compile", compile_)
    forward, model, images = Compiled(), build("cnn_3", (1, 28, 28)), torch.rand(3, 1, 28, 28)
    for _ in range(2):
        assert torch.equal(forward(model, images), model(images))
    assert tries == [plain]


def test_an_error_of_the_network_itself_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    with pytest.raises(RuntimeError, match="shape"):
        Compiled()(build("mlp_1", (1, 28, 28)), torch.rand(3, 1, 5, 5))


def test_long_trials_of_convolutional_networks_on_the_cpu_are_compiled() -> None:
    data = training.tensors(make_dataset(), "cpu")
    for changes, expected in (
        ({"architecture": "cnn_3", "epochs": 150_000}, True),
        ({"architecture": "cnn_3", "epochs": 15}, False),
        ({"architecture": "cnn_3", "epochs": 150_000, "quantities": ("train_loss",)}, False),
        ({"architecture": "mlp_1", "epochs": 1_000_000}, False),
    ):
        assert members.compiling_pays(make_trial(**changes), data) == expected, changes


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch compiles with g++")
def test_compiled_validation_finds_what_plain_validation_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one compilation for all trials, and in the loop of a trial."""
    monkeypatch.setitem(training.EVALUATION_BATCH, "cpu", 16)
    data = training.tensors(make_dataset(), "cpu")
    compiled, compilations = Compiled(), torch._dynamo.utils.counters["stats"]
    for seed in range(3):
        trial = make_trial(architecture="cnn_3", seed=seed)
        curves = []
        for forward in (plain, compiled):
            state = training.start(trial, data)
            state.forward = forward
            for _ in training.train(trial, data, state):
                pass
            curves.append(state.curves)
        assert torch.equal(*curves)
        if seed == 0:
            once = compilations["unique_graphs"]
    assert compiled.forward is not plain
    assert compilations["unique_graphs"] == once > 0

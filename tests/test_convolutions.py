from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_dataset, make_trial, needs_compiler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from trainables import training
from trainables.accelerated import convolutions
from trainables.accelerated.backends import NATIVE
from trainables.accelerated.convolutions import (
    CompilerError,
    Convolution,
    choose_forward,
    compute_logits,
    forward_native,
    get_padding,
    get_pointer,
    load_library,
)
from trainables.architectures import ACTIVATIONS, ARCHITECTURES, POOLINGS, build
from trainables.training import forward_torch

CPU = torch.device("cpu")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_torch_in_inference_mode_equals_the_model(architecture: str, activation: str, pooling: str) -> None:
    model = build(architecture, (1, 31, 32), activation=activation, pooling=pooling)
    images = torch.randn(5, 1, 31, 32)
    before = images.clone()
    with torch.inference_mode():
        assert torch.equal(forward_torch(model, images), model(images))
    assert torch.equal(images, before)


@st.composite
def layers(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, int]:
    """Draw images `(n, channels, height, width)`, and the weights, bias and padding of a layer, in double precision."""
    kernel = draw(st.integers(1, 7))
    padding = draw(st.integers(0, kernel - 1))
    channels, outputs, n = (draw(st.integers(1, most)) for most in (5, 19, 40))
    height, width = (draw(st.integers(max(1, kernel - 2 * padding), 12)) for _ in range(2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))

    def make(*shape: int) -> Tensor:
        # Float32 computes sums and products of small whole numbers exactly.
        return torch.randint(-3, 4, shape, generator=generator).double()

    return make(n, channels, height, width), make(outputs, channels, kernel, kernel), make(outputs), padding


@needs_compiler
@given(layers(), st.booleans())
def test_a_native_layer_and_its_gradients_equal_pytorchs(layer: tuple[Tensor, Tensor, Tensor, int], relu: bool) -> None:
    *tensors, padding = layer
    exact = [tensor.clone().requires_grad_() for tensor in tensors]
    single = [tensor.float().requires_grad_() for tensor in tensors]
    expected = functional.conv2d(*exact, padding=padding)
    expected = expected.relu() if relu else expected
    actual = Convolution.apply(single[0].transpose(0, 1), *single[1:], padding, relu).transpose(0, 1)
    assert torch.equal(actual, expected.float())
    weights = torch.arange(expected.numel()).view(expected.shape) % 5 - 2
    (expected * weights).sum().backward()
    (actual * weights).sum().backward()
    for one, other in zip(single, exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad.float())


@needs_compiler
def test_a_native_layer_reads_nothing_outside_its_input() -> None:
    """Memory around the input holds infinities; the batch sizes fill the last vector register to every degree."""
    for n in range(1, 40):
        memory = torch.full((10_000,), float("inf"))
        images = memory[5000 : 5000 + 2 * 4 * 5 * n].view(2, 4, 5, n).permute(0, 3, 1, 2)  # (channels, n, h, w)
        images.fill_(1)
        weight = torch.ones(3, 2, 3, 3, requires_grad=True)
        outputs = Convolution.apply(images, weight, torch.zeros(3), 0, False)
        assert torch.equal(outputs, torch.full_like(outputs, 18))
        outputs.sum().backward()
        assert torch.equal(weight.grad, torch.full((3, 2, 3, 3), 2.0 * 3 * n))


@needs_compiler
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if "mlp" not in name and name != "logistic"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_network_with_native_convolutions_agrees_with_pytorch(
    architecture: str, activation: str, pooling: str
) -> None:
    torch.manual_seed(0)
    model = build(architecture, (3, 31, 32), activation=activation, pooling=pooling)
    images, labels = torch.randn(37, 3, 31, 32), torch.arange(37) % 10
    exact = copy.deepcopy(model).double()
    expected = exact(images.double())
    actual = forward_native(model, images)
    torch.testing.assert_close(actual, expected.float(), rtol=1e-4, atol=1e-5)
    functional.cross_entropy(expected, labels).backward()
    functional.cross_entropy(actual, labels).backward()
    for one, other in zip(model.parameters(), exact.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad, other.grad.float(), rtol=1e-3, atol=1e-5)
    many = torch.randn(101, 3, 31, 32)  # several blocks, the last of which is not full
    with torch.inference_mode():
        assert (compute_logits(model, many) is None) == (activation != "relu")
        torch.testing.assert_close(forward_native(model, many), exact(many.double()).float(), rtol=1e-4, atol=1e-5)


@needs_compiler
def test_a_nan_stays_a_nan() -> None:
    model = build("cnn_3", (1, 28, 28))
    images = torch.zeros(2, 1, 28, 28)
    images[1] = float("nan")
    with torch.inference_mode():
        logits = forward_native(model, images)
    assert logits[0].isfinite().all()
    assert logits[1].isnan().all()


@needs_compiler
def test_an_activation_that_follows_no_convolution_is_computed() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 10))
    images = torch.randn(4, 1, 6, 6)
    torch.testing.assert_close(forward_native(model, images), model(images))


@needs_compiler
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_trial_with_native_convolutions_follows_one_with_those_of_pytorch(optimizer: str) -> None:
    """Their losses agree for 100 steps, and their accuracies up to one or two images."""
    data = training.to_tensors(make_dataset(), "cpu")
    trial = make_trial(
        architecture="cnn_3", optimizer=optimizer, learning_rate=0.001, batch_size=10, epochs=8, record_every_steps=1
    )
    curves = []
    for forward in (forward_torch, forward_native):
        state = training.start(trial, data)
        state.forward = forward
        for _ in training.train(trial, data, state):
            pass
        curves.append(training.finish(trial, data, state).curves)
    expected, actual = curves
    assert len(actual["train_loss"]) >= 100
    assert actual["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-3)
    assert actual["val_accuracy"] == pytest.approx(expected["val_accuracy"], abs=5.1)


@needs_compiler
def test_only_cnns_on_the_cpu_use_native_convolutions() -> None:
    assert choose_forward("cnn_3", NATIVE, CPU) is forward_native
    assert choose_forward("cnn_3", None, CPU) is choose_forward("cnn_3", "AVX2", CPU) is forward_torch
    assert choose_forward("mlp_1", NATIVE, CPU) is forward_torch
    assert choose_forward("cnn_3", NATIVE, torch.device("cuda")) is forward_torch


@pytest.mark.slow
@needs_compiler
def test_native_code_is_compiled_once_for_all_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two processes compile at the same time without harm; later ones find the library in the cache."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent.parent)}
    script = "from trainables.accelerated.convolutions import load_library; print(load_library()._name)"
    both = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    names = {process.communicate()[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert names == {str(path) for path in tmp_path.glob("neural-sweeps/*")}
    assert len(names) == 1
    commands: list[list[str]] = []
    run = convolutions.run_command
    monkeypatch.setattr(convolutions, "run_command", lambda command: (commands.append(command), run(command))[1])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load_library.__wrapped__()._name in names
    assert not [command for command in commands if "-o" in command]


@pytest.mark.slow
@needs_compiler
def test_native_code_is_compiled_in_an_ascii_locale(tmp_path: Path) -> None:
    ascii_locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent.parent), **ascii_locale}
    script = "from trainables.accelerated.convolutions import load_library; load_library()"
    subprocess.run([sys.executable, "-c", script], env={**os.environ, **environment}, check=True)


@pytest.mark.slow
@needs_compiler
def test_a_damaged_library_is_compiled_again(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent.parent)}
    script = "from trainables.accelerated.convolutions import load_library; load_library().layer_outputs"
    command = [sys.executable, "-c", script]
    subprocess.run(command, env=environment, check=True)
    [library] = tmp_path.glob("neural-sweeps/*")
    size = library.stat().st_size
    library.write_bytes(b"")  # as a full disk may leave it
    subprocess.run(command, env=environment, check=True)
    assert library.stat().st_size == size


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [("no-such-compiler", "No such file"), ("false", "false failed"), ("", "No such file"), ('"', "closing quotation")],
)
def test_the_error_gives_the_reason_why_compiling_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiler: str, reason: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setattr(convolutions, "load_library", load_library.__wrapped__)
    with pytest.raises(CompilerError, match=reason):
        choose_forward("cnn_3", NATIVE, CPU)
    assert choose_forward("cnn_3", None, CPU) is forward_torch


@pytest.mark.parametrize(
    "settings", [{"kernel_size": (3, 5)}, {"padding": (0, 1)}, {"padding": 3}, {"padding": "same"}, {"stride": 2}]
)
def test_a_convolution_that_the_native_code_does_not_compute_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the native backend has no code for Conv2d"):
        get_padding(nn.Conv2d(1, 1, **{"kernel_size": 3, **settings}))


def test_numbers_of_another_type_are_refused() -> None:
    with pytest.raises(TypeError, match="computes with float32"):
        get_pointer(torch.zeros(1, dtype=torch.float64))

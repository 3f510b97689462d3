from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainables.architectures import ACTIVATIONS, ARCHITECTURES, POOL, build, count_flops, get_first_layer, has_layer

# Inputs of the prediction layer on 1×32×32 images, as the reports give them
PREDICTION_INPUTS_32 = {"mlp_1": 32, "mlp_2": 64, "cnn_3": 16 * 3 * 3, "cnn_4": 16 * 4 * 4, "cnn_5": 8 * 4 * 4}


@pytest.mark.parametrize("architecture", PREDICTION_INPUTS_32)
def test_the_prediction_layer_has_the_sizes_that_the_reports_give(architecture: str) -> None:
    last = build(architecture, (1, 32, 32))[-1]
    assert isinstance(last, nn.Linear)
    assert (last.in_features, last.out_features) == (PREDICTION_INPUTS_32[architecture], 10)
    assert last.bias is not None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 32, 32), (3, 32, 32)])
def test_output_and_first_layer_shapes(architecture: str, shape: tuple[int, int, int]) -> None:
    model = build(architecture, shape, classes=7)
    assert model(torch.zeros(4, *shape)).shape == (4, 7)
    weights = get_first_layer(model)
    channels, height, width = shape
    kernel = 5 if architecture.startswith("conv_pool") else 3
    if architecture.startswith("mlp"):
        assert weights.shape == (32, channels * height * width)
    elif architecture == "logistic":
        assert weights.shape == (7, channels * height * width)
    else:
        assert weights.shape[1:] == (channels, kernel, kernel)


def test_mlp_2_has_no_bias_in_its_second_layer() -> None:
    biases = [m.bias is not None for m in build("mlp_2", (1, 28, 28)) if isinstance(m, nn.Linear)]
    assert biases == [True, False, True]


def test_layers_of_cnn_4_in_order() -> None:
    names = [type(m).__name__ for m in build("cnn_4", (1, 32, 32))]
    block = ["Conv2d", "ReLU"]
    assert names == [*block * 3, "MaxPool2d", *block, "MaxPool2d", "Flatten", "Linear"]


@pytest.mark.parametrize(("activation", "name"), ACTIVATIONS.items())
def test_every_activation_replaces_every_relu(activation: str, name: str) -> None:
    modules = [type(m).__name__ for m in build("cnn_5", (1, 32, 32), activation=activation)]
    assert modules.count(name) == 6
    assert activation == "relu" or "ReLU" not in modules


def test_average_pooling_replaces_max_pooling() -> None:
    modules = [type(m).__name__ for m in build("cnn_3", (1, 32, 32), pooling="avg")]
    assert modules.count("AvgPool2d") == 2
    assert "MaxPool2d" not in modules


def test_only_cnns_have_pooling_layers() -> None:
    assert [a for a in PREDICTION_INPUTS_32 if has_layer(a, POOL)] == ["cnn_3", "cnn_4", "cnn_5"]


def test_an_input_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="cnn_3 needs larger inputs than 8×8"):
        build("cnn_3", (1, 8, 8))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_count_flops_agrees_with_the_count_of_pytorch(architecture: str) -> None:
    with FlopCounterMode(display=False) as counter:
        build(architecture, (1, 32, 32))(torch.zeros(7, 1, 32, 32))
    assert 7 * count_flops(architecture, (1, 32, 32)) == counter.get_total_flops()

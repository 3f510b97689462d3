"""Architectures as tables of layers, the function that builds networks from them, and closed formulas of their cost.

The tables are plain data: command lines and plans read them without importing torch, and a new architecture is one
new line in `ARCHITECTURES`. Every network ends with a prediction layer (fully connected, with bias), which the tables
leave out because its size follows from the input's shape and the number of classes. There is no softmax, because the
cross-entropy loss takes logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Conv:
    """A convolution with `filters` square kernels of `kernel`×`kernel` pixels, stride 1 and a bias."""

    kernel: int
    filters: int
    padding: int = 0


@dataclass(frozen=True)
class Linear:
    """A fully connected layer with `features` outputs on the flattened input."""

    features: int
    bias: bool = True


@dataclass(frozen=True)
class Activation:
    """An activation layer; the trial's `activation` decides which function it applies."""


@dataclass(frozen=True)
class Pool:
    """A pooling layer over 2×2 windows with stride 2, of the kind that the trial's `pooling` names.

    An odd last row or column is dropped.
    """


Layer = Conv | Linear | Activation | Pool
ACT = Activation()
POOL = Pool()

CLASSES = 10  # in every image data set

# Names in trials, and the classes of torch.nn that they stand for: as strings, which need no import of torch.
ACTIVATIONS = {"relu": "ReLU", "sigmoid": "Sigmoid", "leaky_relu": "LeakyReLU", "tanh": "Tanh"}
POOLINGS = {"max": "MaxPool2d", "avg": "AvgPool2d"}

# All layers before the prediction layer.
ARCHITECTURES: dict[str, tuple[Layer, ...]] = {
    "mlp_1": (Linear(32), ACT),
    "mlp_2": (Linear(32), ACT, Linear(64, bias=False)),
    "cnn_3": (Conv(3, 16), ACT, Conv(5, 8), ACT, POOL, Conv(7, 16), POOL),
    "cnn_4": (Conv(3, 16), ACT, Conv(3, 8), ACT, Conv(5, 16), ACT, POOL, Conv(5, 16), ACT, POOL),
    "cnn_5": (
        *(Conv(3, 8), ACT, Conv(3, 16), ACT, Conv(3, 8), ACT, Conv(3, 16), ACT, POOL),
        *(Conv(3, 16), ACT, Conv(3, 8), ACT, POOL),
    ),
    "logistic": (),
    "conv_pool": (Conv(5, 16, padding=2), ACT, POOL, Conv(5, 32, padding=2), POOL),
    "conv_pool_valid": (Conv(5, 16), ACT, POOL, Conv(5, 32), POOL),
}


def has_layer(architecture: str, layer: Layer) -> bool:
    """Return whether the architecture has the given layer; one without a table, such as "xor", has none."""
    return layer in ARCHITECTURES.get(architecture, ())


def has_convolution(architecture: str) -> bool:
    """Return whether the architecture has a convolution."""
    return any(isinstance(layer, Conv) for layer in ARCHITECTURES.get(architecture, ()))


def count_layers(architecture: str) -> int:
    """Return the number of layers with weights, the prediction layer included."""
    return sum(isinstance(layer, Conv | Linear) for layer in ARCHITECTURES[architecture]) + 1


def compute_output_shape(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one example after `layer`: `(channels, height, width)`, or `(features,)` after a `Linear`."""
    match layer:
        case Linear(features=features):
            return (features,)
        case Activation():
            return shape
        case Conv(kernel=kernel, filters=filters, padding=padding):
            shrink = kernel - 1 - 2 * padding
            return (filters, shape[1] - shrink, shape[2] - shrink)
        case Pool():
            return (shape[0], shape[1] // 2, shape[2] // 2)


def count_flops(architecture: str, input_shape: tuple[int, int, int], classes: int = CLASSES) -> int:
    """Return the floating-point operations of one image's forward pass.

    A multiplication and the addition that follows it count as two operations. Biases, activations and pooling are left
    out, as in `torch.utils.flop_counter`.

    Args:
        input_shape: `(channels, height, width)` of one image.
    """
    total, shape = 0, tuple(input_shape)
    for layer in (*ARCHITECTURES[architecture], Linear(classes)):
        after = compute_output_shape(layer, shape)
        match layer:
            case Conv(kernel=kernel):
                total += 2 * kernel**2 * shape[0] * math.prod(after)
            case Linear():
                total += 2 * math.prod(shape) * math.prod(after)
        shape = after
    return total


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of weights and of biases of a network, and the sum that gives their total as text."""

    weights: int
    biases: int
    formula: str


def count_parameters(architecture: str, input_shape: tuple[int, int, int]) -> ParameterCount:
    """Count a network's weights and biases by closed formulas, without building it.

    A fully connected layer with N outputs on D inputs has D·N weights and N biases. A convolution with C filters of
    H×W pixels on C' channels has H·W·C·C' weights and C biases. Activations and pooling have none.

    Args:
        input_shape: `(channels, height, width)` of one image.
    """
    weights = biases = 0
    terms = []
    shape: tuple[int, ...] = input_shape
    for layer in (*ARCHITECTURES[architecture], Linear(CLASSES)):
        match layer:
            case Conv(kernel=kernel, filters=filters):
                weights += kernel * kernel * filters * shape[0]
                biases += filters
                terms.append(f"({kernel}·{kernel}·{filters}·{shape[0]} + {filters})")
            case Linear(features=features, bias=bias):
                inputs = math.prod(shape)
                weights += inputs * features
                biases += features * bias
                terms.append(f"({inputs}·{features} + {features})" if bias else f"{inputs}·{features}")
        shape = compute_output_shape(layer, shape)
    return ParameterCount(weights, biases, " + ".join(terms))


def build(
    architecture: str,
    input_shape: tuple[int, int, int],
    *,
    classes: int = CLASSES,
    activation: str | None = "relu",
    pooling: str | None = "max",
) -> nn.Sequential:
    """Build a network that maps images `(batch, *input_shape)` to logits `(batch, classes)`.

    Args:
        input_shape: `(channels, height, width)` of one image.
        activation: A key of `ACTIVATIONS`; may be None only if the architecture has no activation.
        pooling: A key of `POOLINGS`; may be None only if the architecture does not pool.

    Raises:
        ValueError: The input is too small for the architecture.
    """
    from torch import nn

    modules: list[nn.Module] = []
    shape: tuple[int, ...] = input_shape
    for layer in (*ARCHITECTURES[architecture], Linear(classes)):
        after = compute_output_shape(layer, shape)
        if min(after) < 1:
            raise ValueError(f"{architecture} needs larger inputs than {input_shape[1]}×{input_shape[2]} pixels")
        match layer:
            case Conv(kernel=kernel, filters=filters, padding=padding):
                modules.append(nn.Conv2d(shape[0], filters, kernel, padding=padding))
            case Linear(features=features, bias=bias):
                if len(shape) == 3:
                    modules.append(nn.Flatten())
                modules.append(nn.Linear(math.prod(shape), features, bias=bias))
            case Activation():
                modules.append(getattr(nn, ACTIVATIONS[cast("str", activation)])())
            case Pool():
                modules.append(getattr(nn, POOLINGS[cast("str", pooling)])(2))
        shape = after
    return nn.Sequential(*modules)


def get_first_layer(model: nn.Module) -> nn.Parameter:
    """Return the weights of the first layer: `(filters, channels, k, k)` of a CNN, `(features, inputs)` of an MLP."""
    return next(model.parameters())

"""Part 1: number of parameters of each architecture, by closed formula and as built, and number of training steps."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from analysis.output import Output
from sweeps.cli import run_to_exit_status
from sweeps.experiment import UserPath
from trainables.architectures import ARCHITECTURES, CLASSES, build, count_parameters
from trainables.errors import BadInputError, check_positive

MAX_INPUTS = 10_000_000  # numbers in one image; the networks are built, so they must fit in memory


@dataclass(frozen=True, kw_only=True)
class Part1:
    """Input shapes and training settings for the counts."""

    inputs: tuple[str, ...] = ("1x32x32", "1x28x28")
    """Shapes of the input, as CHANNELSxHEIGHTxWIDTH."""
    train_images: int = 45_000
    """Images to train on; 45,000 are those of CIFAR-10 without its validation images."""
    batch_size: int = 50
    """Images in a training step."""
    epochs: int = 15
    """Passes over the training images."""
    out: UserPath = Path("figures/part1")
    """Folder for part1.csv and part1.md."""


def count_built_parameters(architecture: str, input_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Build the network that is trained, and return the numbers of its weights and of its biases."""
    parameters = list(build(architecture, input_shape, classes=CLASSES).named_parameters())
    weights = sum(p.numel() for name, p in parameters if name.endswith("weight"))
    return weights, sum(p.numel() for _, p in parameters) - weights


def parse_shape(text: str) -> tuple[int, int, int]:
    """Parse a shape such as `"1x32x32"` into `(1, 32, 32)`.

    Raises:
        BadInputError: The text is not a shape, or an image of this shape has too many numbers.
    """
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and len(part) < 10 and int(part) > 0 for part in parts):
        raise BadInputError(f"input '{text}' is not a shape; write CHANNELSxHEIGHTxWIDTH, such as 1x32x32")
    channels, height, width = map(int, parts)
    if channels * height * width > MAX_INPUTS:
        raise BadInputError(f"input {text} has over {MAX_INPUTS:,} numbers; give a smaller one")
    return channels, height, width


def make_row(architecture: str, text: str) -> tuple[dict[str, Any], int]:
    """Return the table's row for an architecture and an input shape, and the number of parameters as built.

    Raises:
        BadInputError: The text is not a shape, or the shape does not fit the architecture.
    """
    shape = parse_shape(text)
    try:
        as_built = sum(count_built_parameters(architecture, shape))
    except ValueError as error:
        raise BadInputError(f"input {text} does not fit: {error}") from None
    counted = count_parameters(architecture, shape)
    row = {"architecture": architecture, "input": text, "weights": counted.weights, "biases": counted.biases}
    return {**row, "parameters": counted.weights + counted.biases, "formula": counted.formula}, as_built


def main(options: Part1) -> int:
    """Print and write the table of parameters, and print the number of steps.

    Returns:
        The exit status 0.

    Raises:
        BadInputError: An option has no valid value, or a file cannot be written.
    """
    check_positive("--batch-size", options.batch_size, whole=True)
    check_positive("--epochs", options.epochs, whole=True)
    check_positive("--train-images", options.train_images, whole=True)
    if not options.inputs:
        raise BadInputError("no input shape given; write at least one, such as --inputs 1x32x32")
    rows = []
    shown = Table(title="Parameters")
    for heading in ("architecture", "input", "weights", "biases", "parameters", "as built"):
        shown.add_column(heading, justify="left" if heading in ("architecture", "input") else "right")
    for text in options.inputs:
        for architecture in ARCHITECTURES:
            row, as_built = make_row(architecture, text)
            rows.append(row)
            numbers = (row["weights"], row["biases"], row["parameters"], as_built)
            shown.add_row(architecture, text, *(f"{number:,}" for number in numbers))
    console = Console()
    console.print(shown)
    per_epoch = -(-options.train_images // options.batch_size)
    console.print(
        f"{options.train_images:,} images in batches of {options.batch_size}: {per_epoch:,} steps an epoch, "
        f"{options.epochs * per_epoch:,} in {options.epochs} epochs"
    )
    output = Output(options.out)
    with output.convert_write_errors():
        output.save_table(rows, "part1", "Numbers of parameters, from the formulas and from the networks.")
    print("\n".join(str(path) for path in output.written))
    return 0


if __name__ == "__main__":
    sys.exit(run_to_exit_status(lambda: main(tyro.cli(Part1, description=__doc__))))

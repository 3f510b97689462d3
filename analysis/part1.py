"""Part 1: how many parameters each architecture has, by closed formula and as built, and how many steps it trains."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from analysis.output import Output
from sweeps.cli import run_to_exit_status
from trainables.architectures import ARCHITECTURES, CLASSES, build, count_parameters
from trainables.errors import BadInputError, check_positive

MAX_INPUTS = 10_000_000  # numbers in an image; the networks are built, so they must fit in memory


@dataclass(frozen=True, kw_only=True)
class Part1:
    """What to count."""

    inputs: tuple[str, ...] = ("1x32x32", "1x28x28")
    """Input shapes, as CHANNELSxHEIGHTxWIDTH."""
    train_images: int = 45_000
    """N, for the number of steps: 45,000 on CIFAR-10 without its validation images."""
    batch_size: int = 50
    epochs: int = 15
    out: Path = Path("figures/part1")
    """Folder for part1.csv and part1.md."""


def count_built_parameters(architecture: str, input_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Weights and biases of the network as it is trained."""
    parameters = list(build(architecture, input_shape, classes=CLASSES).named_parameters())
    weights = sum(p.numel() for name, p in parameters if name.endswith("weight"))
    return weights, sum(p.numel() for _, p in parameters) - weights


def parse_shape(text: str) -> tuple[int, int, int]:
    """`"1x32x32"` → `(1, 32, 32)`."""
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and len(part) < 10 and int(part) > 0 for part in parts):
        raise BadInputError(f"input '{text}' is not a shape; write CHANNELSxHEIGHTxWIDTH, such as 1x32x32")
    channels, height, width = map(int, parts)
    return channels, height, width


def main(options: Part1) -> int:
    """Print and write the table; the exit status."""
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
            shape = parse_shape(text)
            if math.prod(shape) > MAX_INPUTS:
                raise BadInputError(f"input {text} has over {MAX_INPUTS:,} numbers; give a smaller one")
            try:
                as_built = sum(count_built_parameters(architecture, shape))
            except ValueError as error:
                raise BadInputError(f"input {text} does not fit: {error}") from None
            counted = count_parameters(architecture, shape)
            total = counted.weights + counted.biases
            rows.append(
                {
                    "architecture": architecture,
                    "input": text,
                    "weights": counted.weights,
                    "biases": counted.biases,
                    "parameters": total,
                    "formula": counted.formula,
                }
            )
            numbers = (counted.weights, counted.biases, total, as_built)
            shown.add_row(architecture, text, *(f"{number:,}" for number in numbers))
    console = Console()
    console.print(shown)
    per_epoch = -(-options.train_images // options.batch_size)
    console.print(
        f"{options.train_images:,} images in batches of {options.batch_size}: {per_epoch:,} steps an epoch, "
        f"{options.epochs * per_epoch:,} in {options.epochs} epochs"
    )
    output = Output(options.out)
    with output.writing():
        output.table(rows, "part1")
    print("\n".join(str(path) for path in output.written))
    return 0


if __name__ == "__main__":
    sys.exit(run_to_exit_status(lambda: main(tyro.cli(Part1, description=__doc__))))

"""Pooling × batch size: max or average pooling, with and without padding, on colour images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sweeps.cli import main
from sweeps.experiment import ImageSweepOptions
from sweeps.sweep import Sweep

# The models by their names in the report.
MODELS = {
    "a": {"architecture": "conv_pool", "pooling": "max"},
    "b": {"architecture": "conv_pool", "pooling": "avg"},
    "c": {"architecture": "conv_pool_valid", "pooling": "max"},
}


@dataclass(frozen=True, kw_only=True)
class Pooling(ImageSweepOptions):
    """Options of the pooling sweep."""

    experiment = "pooling"
    question = "Is max or average pooling better, and with which batch size?"
    quick_defaults: ClassVar = {"dataset": "digits"}

    epochs: int = 3
    """Epochs of each trial."""
    batch_sizes: tuple[int, ...] = (10, 25, 50)
    """Images in a training batch."""

    def sweep(self) -> Sweep:
        return Sweep(
            name=self.experiment,
            axes={"seed": self.seed_range(), "model": MODELS, "batch_size": self.batch_sizes},
            fixed={
                **self.image_settings(),
                "pipeline": "colour",
                "activation": "leaky_relu",
                "optimizer": "sgd",
                "learning_rate": 0.01,
                "record_every_steps": None,
                "quantities": ("train_set_accuracy", "test_set_accuracy"),
            },
        )


if __name__ == "__main__":
    main(Pooling, __doc__)

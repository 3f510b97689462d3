"""The grid: any values of architecture × seed × activation × learning rate × batch size × pooling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sweeps.cli import main
from sweeps.experiment import MAIN_ARCHITECTURES, ImageSweepOptions
from sweeps.sweep import Sweep


@dataclass(frozen=True, kw_only=True)
class Grid(ImageSweepOptions):
    """Options of the grid: every combination of the values is a trial."""

    experiment = "grid"
    question = "How do combinations of architecture, activation, learning rate, batch size and pooling compare?"
    quick_defaults: ClassVar = {
        "dataset": "digits",
        "seeds": 2,
        "epochs": 2,
        "architectures": ("mlp_2", "cnn_3"),
        "learning_rates": (0.01, 0.001),
    }

    seeds: int = 3
    """Number of seeds N; the seeds are 0 to N-1. You can add more later."""
    architectures: tuple[str, ...] = MAIN_ARCHITECTURES
    """Any of mlp_1, mlp_2, cnn_3, cnn_4, cnn_5, logistic, conv_pool, conv_pool_valid."""
    activations: tuple[str, ...] = ("relu",)
    """Any of relu, sigmoid, leaky_relu, tanh."""
    learning_rates: tuple[float, ...] = (0.01,)
    """Learning rates of the optimiser."""
    batch_sizes: tuple[int, ...] = (50,)
    """Images in a training batch."""
    poolings: tuple[str, ...] = ("max",)
    """Any of max, avg. A network without pooling is trained once."""
    optimizer: str = "adam"
    """adam or sgd."""

    def sweep(self) -> Sweep:
        return Sweep(
            name=self.experiment,
            axes={
                "seed": self.seed_range(),
                "architecture": self.architectures,
                "activation": self.activations,
                "learning_rate": self.learning_rates,
                "batch_size": self.batch_sizes,
                "pooling": self.poolings,
            },
            fixed={
                **self.image_settings(),
                "optimizer": self.optimizer,
                "quantities": ("train_loss", "train_accuracy", "val_accuracy"),
            },
        )


if __name__ == "__main__":
    main(Grid, __doc__)

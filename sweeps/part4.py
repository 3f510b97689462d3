"""Part 4: ReLU against the logistic sigmoid, and what it does to the first layer's gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sweeps.options import MAIN_ARCHITECTURES, ImageSelection, main
from sweeps.sweep import Sweep
from trainables.trial import check_choice


@dataclass(frozen=True, kw_only=True)
class Part4(ImageSelection):
    """Which trials."""

    experiment = "part4"
    quick_defaults: ClassVar = {"dataset": "digits", "epochs": 5}

    architectures: tuple[str, ...] = MAIN_ARCHITECTURES
    """Any of mlp_1, mlp_2, cnn_3, cnn_4, cnn_5."""
    batch_size: int = 50
    learning_rate: float = 0.01
    """Of plain SGD, constant."""

    def sweep(self) -> Sweep:
        for architecture in self.architectures:
            check_choice("architecture", architecture, MAIN_ARCHITECTURES)
        return Sweep(
            name=self.experiment,
            axes={
                "seed": self.seed_range(),
                "architecture": self.architectures,
                "activation": ("relu", "sigmoid"),
            },
            fixed={
                **self.image_settings(),
                "batch_size": self.batch_size,
                "optimizer": "sgd",
                "learning_rate": self.learning_rate,
                "quantities": ("train_loss", "gradient_norm"),
            },
        )


if __name__ == "__main__":
    main(Part4, __doc__)

"""Part 4: ReLU against the logistic sigmoid, and what the sigmoid does to the first layer's gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sweeps.cli import main
from sweeps.experiment import MainSweepOptions
from sweeps.sweep import Sweep


@dataclass(frozen=True, kw_only=True)
class Part4(MainSweepOptions):
    """Options of part 4."""

    experiment = "part4"
    question = "What does a sigmoid in the place of ReLU do to training, and to the gradient of the first layer?"
    quick_defaults: ClassVar = {"dataset": "digits", "epochs": 5}

    def sweep(self) -> Sweep:
        return Sweep(
            name=self.experiment,
            axes={"seed": self.seed_range(), "architecture": self.architectures, "activation": ("relu", "sigmoid")},
            fixed={**self.main_settings(), "optimizer": "sgd", "quantities": ("train_loss", "gradient_norm")},
        )


if __name__ == "__main__":
    main(Part4, __doc__)

"""Part 3: the five architectures over many seeds, trained with Adam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sweeps.cli import main
from sweeps.experiment import MainSweepOptions
from sweeps.sweep import Sweep


@dataclass(frozen=True, kw_only=True)
class Part3(MainSweepOptions):
    """Which trials."""

    experiment = "part3"
    quick_defaults: ClassVar = {"dataset": "digits", "seeds": 3, "epochs": 5}

    seeds: int = 10
    """How many seeds: 0 to N-1. More can be added later."""
    learning_rate: float = 0.01
    """0.01 is the report's; Adam's own default is 0.001."""

    def sweep(self) -> Sweep:
        return Sweep(
            name=self.experiment,
            axes={"seed": self.seed_range(), "architecture": self.architectures},
            fixed={
                **self.main_settings(),
                "optimizer": "adam",
                "quantities": ("train_loss", "train_accuracy", "val_accuracy"),
            },
        )


if __name__ == "__main__":
    main(Part3, __doc__)

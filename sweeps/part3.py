"""Part 3: the five architectures over many seeds, trained with Adam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sweeps.cli import main
from sweeps.experiment import MainSweepOptions
from sweeps.sweep import Sweep


@dataclass(frozen=True, kw_only=True)
class Part3(MainSweepOptions):
    """Options of part 3."""

    experiment = "part3"
    question = "Which of the architectures generalises best, when each is trained with Adam from several seeds?"
    quick_defaults: ClassVar = {"dataset": "digits", "seeds": 3, "epochs": 5}

    seeds: int = 10
    """Number of seeds N; the seeds are 0 to N-1. You can add more later."""
    learning_rate: float = 0.01
    """Learning rate of Adam: the report has 0.01, and Adam's own default is 0.001."""

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

"""XOR: does the loss of a 2-2-1 network grow with the noise on its training points?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sweeps.cli import main
from sweeps.experiment import SweepOptions
from sweeps.sweep import Sweep
from trainables.trial import XOR

REPORT_SEED = 46  # the only seed that the report has used


@dataclass(frozen=True, kw_only=True)
class Xor(SweepOptions):
    """Options of the XOR sweep."""

    experiment = "xor"
    question = "Does the loss of a tiny network grow with the noise on its training points?"
    quick_defaults: ClassVar = {"seeds": 5}

    seeds: int = 20
    """Number of seeds N besides the report's own, 46; the seeds are 0 to N-1. You can add more later."""
    sigmas: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)
    """Standard deviations of the noise on the training points."""
    epochs: int = 2000
    """Epochs of each trial."""

    def sweep(self) -> Sweep:
        return Sweep(
            name=self.experiment,
            axes={
                "seed": (REPORT_SEED, *(seed for seed in self.seed_range() if seed != REPORT_SEED)),
                "noise_sigma": self.sigmas,
            },
            fixed={
                "dataset": XOR,
                "architecture": XOR,
                "optimizer": "sgd",
                "learning_rate": 0.1,
                "batch_size": 1,
                "epochs": self.epochs,
                "record_every_steps": None,
                "quantities": ("train_loss",),
            },
        )


if __name__ == "__main__":
    main(Xor, __doc__)

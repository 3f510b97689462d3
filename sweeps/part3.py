"""Part 3: the five architectures over many seeds, trained with Adam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sweeps.options import MAIN_ARCHITECTURES, ImageSelection, main
from sweeps.sweep import Sweep
from trainables.trial import check_choice


@dataclass(frozen=True, kw_only=True)
class Part3(ImageSelection):
    """Which trials."""

    experiment = "part3"
    quick_defaults: ClassVar = {"dataset": "digits", "seeds": 3, "epochs": 5}

    seeds: int = 10
    """How many seeds: 0 to N-1. More can be added later."""
    architectures: tuple[str, ...] = MAIN_ARCHITECTURES
    """Any of mlp_1, mlp_2, cnn_3, cnn_4, cnn_5."""
    batch_size: int = 50
    learning_rate: float = 0.01
    """0.01 is the report's; Adam's own default is 0.001."""

    def sweep(self) -> Sweep:
        for architecture in self.architectures:
            check_choice("architecture", architecture, MAIN_ARCHITECTURES)
        return Sweep(
            name=self.experiment,
            axes={"seed": self.seed_range(), "architecture": self.architectures},
            fixed={
                **self.image_settings(),
                "batch_size": self.batch_size,
                "optimizer": "adam",
                "learning_rate": self.learning_rate,
                "quantities": ("train_loss", "train_accuracy", "val_accuracy"),
            },
        )


if __name__ == "__main__":
    main(Part3, __doc__)

"""Part 3: the five architectures over many seeds, trained with Adam."""

from __future__ import annotations

from dataclasses import dataclass

from sweeps.options import MAIN_ARCHITECTURES, Selection, main
from sweeps.sweep import Sweep


@dataclass(frozen=True, kw_only=True)
class Part3(Selection):
    """Which trials."""

    experiment = "part3"

    architectures: tuple[str, ...] = MAIN_ARCHITECTURES
    """Any of mlp_1, mlp_2, cnn_3, cnn_4, cnn_5."""
    learning_rate: float = 0.01
    """0.01 is the report's; Adam's own default is 0.001."""

    def sweep(self) -> Sweep:
        return Sweep(
            name=self.experiment,
            axes={"seed": self.seed_range(), "architecture": self.architectures},
            fixed={
                "dataset": self.dataset,
                "optimizer": "adam",
                "learning_rate": self.learning_rate,
                "batch_size": self.batch_size,
                "epochs": self.epochs,
                "quantities": ("train_loss", "train_accuracy", "val_accuracy"),
            },
        )


if __name__ == "__main__":
    main(Part3, __doc__)

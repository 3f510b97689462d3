"""MNIST: multinomial logistic regression at several learning rates, and even against odd digits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sweeps.cli import main
from sweeps.experiment import ImageSweepOptions
from sweeps.sweep import Sweep, check_axis


@dataclass(frozen=True, kw_only=True)
class Mnist(ImageSweepOptions):
    """Options of the MNIST sweep."""

    experiment = "mnist"
    question = "How good is logistic regression, and at which learning rate?"
    quick_defaults: ClassVar = {"dataset": "digits", "seeds": 3}

    dataset: str = "mnist"
    """mnist, fashion_mnist or digits."""
    epochs: int = 5
    """Epochs of each trial."""
    batch_size: int = 100
    """Images in a training batch."""
    learning_rates: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 0.1)
    """Learning rates of plain SGD on the ten classes."""
    even_odd_rate: float = 0.01
    """Learning rate of plain SGD on even against odd labels."""

    def sweep(self) -> Sweep:
        check_axis("learning_rate", self.learning_rates)  # in the mapping below, equal rates would silently become one
        settings = {f"digits · rate {rate}": {"learning_rate": rate} for rate in self.learning_rates}
        even_odd = {"task": "even_odd", "learning_rate": self.even_odd_rate}
        return Sweep(
            name=self.experiment,
            axes={
                "seed": self.seed_range(),
                "setting": {**settings, f"even_odd · rate {self.even_odd_rate}": even_odd},
            },
            fixed={
                **self.image_settings(),
                "batch_size": self.batch_size,
                "pipeline": "unit",
                "architecture": "logistic",
                "optimizer": "sgd",
                "record_every_steps": None,
                "quantities": ("train_set_accuracy", "test_set_accuracy"),
            },
        )


if __name__ == "__main__":
    main(Mnist, __doc__)

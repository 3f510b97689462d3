"""Trials: the settings that decide a result, and the id that follows from them."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise

from trainables.architectures import ACT, ACTIVATIONS, ARCHITECTURES, POOL, POOLINGS, has_layer
from trainables.errors import BadInputError, check_choice, check_positive

# Raise this when training computes something else for the same settings: every trial then gets a new id.
VERSION = 3


IMAGE_DATASETS = ("cifar10", "fashion_mnist", "mnist", "digits")


XOR = "xor"  # names both the data set of four points and the network that trains on it


PIPELINES = ("unit", "colour")


TASKS = ("even_odd",)


OPTIMIZERS = ("adam", "sgd")


QUANTITIES = (
    "train_loss",  # mean loss of the step's batch
    "train_accuracy",  # accuracy on the step's batch, %
    "val_accuracy",  # accuracy on the whole validation set, %
    "gradient_norm",  # Euclidean norm of the gradient of the batch's loss with respect to the first layer's weights
    "train_set_accuracy",  # accuracy on the whole training set, %
    "test_set_accuracy",  # accuracy on the whole test set, %
)

# The upper limit of epochs, batch size, learning rate and noise: far beyond what anybody wants, and far below what
# would overflow a float32 or fill the memory.
MAX_SETTING = 1_000_000


MAX_SEED = 2**32 - 1  # the largest that NumPy takes


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The settings that decide a trial's result, and nothing else.

    The id hashes the fields that apply, that is those that are neither None nor empty. A later version can therefore
    add a field that is empty by default without renaming the trials that exist. A setting that changes nothing is
    removed: an MLP has no pooling.

    Attributes:
        dataset: One of `IMAGE_DATASETS`, or "xor".
        pipeline: How images become inputs. None: one grey channel, normalised, and a tenth of the training images held
            out for validation. "unit": pixels from 0 to 1. "colour": three channels from -1 to 1. The last two hold no
            images out.
        task: The classes to tell apart. None: those of the data set. "even_odd": the label modulo 2.
        noise_sigma: Standard deviation of the noise on the training points of "xor".
        milestones: `(step, learning rate)` pairs in order: the rate applies from the step after `step` on.
        record_every_steps: Optimiser steps between two records, counted across epochs; None: one record per epoch.
        quantities: The quantities to record, from `QUANTITIES`.

    Raises:
        BadInputError: A name is unknown, or a number is out of range.
    """

    dataset: str
    pipeline: str | None = None
    task: str | None = None
    noise_sigma: float | None = None
    architecture: str
    activation: str | None = "relu"
    pooling: str | None = "max"
    optimizer: str = "adam"
    learning_rate: float
    milestones: tuple[tuple[int, float], ...] = ()
    batch_size: int = 50
    epochs: int
    seed: int
    record_every_steps: int | None = 10
    quantities: tuple[str, ...] = ("train_loss", "train_accuracy", "val_accuracy")

    def __post_init__(self) -> None:
        if self.dataset == XOR:
            check_choice("architecture", self.architecture, (XOR,))
            if self.noise_sigma is None or not 0 <= self.noise_sigma <= MAX_SETTING:
                raise BadInputError(f"noise sigma is {self.noise_sigma}; it must be a number from 0 to {MAX_SETTING:,}")
            object.__setattr__(self, "noise_sigma", float(self.noise_sigma) + 0.0)  # -0.0 becomes 0.0, which it equals
        else:
            check_choice("dataset", self.dataset, IMAGE_DATASETS)
            check_choice("architecture", self.architecture, ARCHITECTURES)
        check_choice("pipeline", self.pipeline, (None, *PIPELINES))
        check_choice("task", self.task, (None, *TASKS))
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        for quantity in self.quantities:
            check_choice("quantity", quantity, QUANTITIES)
        if self.pipeline is not None and "val_accuracy" in self.quantities:
            raise BadInputError(f"val_accuracy cannot be recorded: pipeline '{self.pipeline}' holds no images out")
        for field, layer, allowed in (("activation", ACT, ACTIVATIONS), ("pooling", POOL, POOLINGS)):
            if has_layer(self.architecture, layer):
                check_choice(field, getattr(self, field), allowed)
            else:
                object.__setattr__(self, field, None)
        for field in ("batch_size", "epochs"):
            check_positive(field.replace("_", " "), getattr(self, field), whole=True, maximum=MAX_SETTING)
        if self.record_every_steps is not None:
            check_positive("the number of steps between records", self.record_every_steps, whole=True)
        if not 0 <= self.seed <= MAX_SEED or self.seed != int(self.seed):
            raise BadInputError(f"seed is {self.seed}; it must be a whole number from 0 to {MAX_SEED:,}")
        steps = [0, *(step for step, _ in self.milestones)]
        if any(later <= earlier for earlier, later in pairwise(steps)):
            raise BadInputError(f"milestones are at steps {steps[1:]}; they must be positive and increasing")
        for rate in (self.learning_rate, *(rate for _, rate in self.milestones)):
            check_positive("learning rate", rate, whole=False, maximum=MAX_SETTING)
        object.__setattr__(self, "learning_rate", float(self.learning_rate))
        object.__setattr__(self, "milestones", tuple((int(step), float(rate)) for step, rate in self.milestones))
        object.__setattr__(self, "quantities", tuple(q for q in QUANTITIES if q in self.quantities))

    @cached_property
    def id(self) -> str:
        """The first 16 hexadecimal digits of a hash of the settings and of `VERSION`."""
        return self._hash_without()

    @cached_property
    def family(self) -> str:
        """A hash like `id`, which trials share that differ only in epochs and milestones."""
        return self._hash_without("epochs", "milestones")

    def _hash_without(self, *names: str) -> str:
        """Return the first 16 hexadecimal digits of a hash of the settings but for some, and of `VERSION`."""
        kept = {name: value for name, value in asdict(self).items() if value not in (None, ()) and name not in names}
        text = json.dumps({"version": VERSION, **kept}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def steps_per_epoch(self, train_images: int) -> int:
        """Return ⌈images / batch size⌉: the last batch of an epoch may be smaller than the others."""
        return math.ceil(train_images / self.batch_size)

    def record_interval(self, train_images: int) -> int:
        """Return the number of optimiser steps between two records."""
        return self.record_every_steps or self.steps_per_epoch(train_images)

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of an optimiser step; the first is step 1."""
        reached = [rate for milestone, rate in self.milestones if step > milestone]
        return reached[-1] if reached else self.learning_rate

"""A trial: what is trained, and the name that follows from it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise

from trainables.architectures import ACT, ACTIVATIONS, ARCHITECTURES, POOL, POOLINGS, uses

# Bump when training computes something else for the same settings: every trial then gets a new id.
VERSION = 1

DATASETS = ("cifar10", "fashion_mnist", "mnist", "digits")
OPTIMIZERS = ("adam", "sgd")
QUANTITIES = ("train_loss", "train_accuracy", "val_accuracy")


class BadInputError(ValueError):
    """One sentence for the person at the terminal: the value, what is allowed, and what to do."""


def check_choice(what: str, value: object, allowed: Collection[str]) -> None:
    """Raise `BadInputError` unless `value` is one of `allowed`."""
    if value not in allowed:
        raise BadInputError(f"unknown {what} '{value}'; choose from {', '.join(allowed)}")


def check_positive(what: str, value: float, *, whole: bool) -> None:
    """Raise `BadInputError` unless `value` is a finite positive number, whole if asked."""
    if not math.isfinite(value) or value <= 0 or (whole and value != int(value)):
        raise BadInputError(f"{what} is {value}; it must be a positive {'whole ' if whole else ''}number")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Everything that decides a trial's result, and nothing else.

    The id hashes the fields that apply (not None, not empty), so a field that a later version adds, empty by default,
    renames no trial that exists. Settings that change nothing are normalised away: an MLP has no pooling.

    Attributes:
        milestones: `(step, learning rate)` pairs in order: that rate from the step after `step` on.
        record_every_steps: Optimiser steps between records, counted across epochs.
        quantities: What is recorded, from `QUANTITIES`.

    Raises:
        BadInputError: A name is unknown or a number out of range.
    """

    dataset: str
    architecture: str
    activation: str | None = "relu"
    pooling: str | None = "max"
    optimizer: str = "adam"
    learning_rate: float
    milestones: tuple[tuple[int, float], ...] = ()
    batch_size: int = 50
    epochs: int
    seed: int
    record_every_steps: int = 10
    quantities: tuple[str, ...] = QUANTITIES

    def __post_init__(self) -> None:
        check_choice("dataset", self.dataset, DATASETS)
        check_choice("architecture", self.architecture, ARCHITECTURES)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        for quantity in self.quantities:
            check_choice("quantity", quantity, QUANTITIES)
        for field, layer, allowed in (("activation", ACT, ACTIVATIONS), ("pooling", POOL, POOLINGS)):
            if uses(self.architecture, layer):
                check_choice(field, getattr(self, field), allowed)
            else:
                object.__setattr__(self, field, None)
        for field in ("batch_size", "epochs", "record_every_steps"):
            check_positive(field.replace("_", " "), getattr(self, field), whole=True)
        if self.seed < 0 or self.seed != int(self.seed):
            raise BadInputError(f"seed is {self.seed}; it must be a whole number, 0 or more")
        steps = [0, *(step for step, _ in self.milestones)]
        if any(later <= earlier for earlier, later in pairwise(steps)):
            raise BadInputError(f"milestones are at steps {steps[1:]}; they must be positive and rising")
        for rate in (self.learning_rate, *(rate for _, rate in self.milestones)):
            check_positive("learning rate", rate, whole=False)
        object.__setattr__(self, "learning_rate", float(self.learning_rate))
        object.__setattr__(self, "milestones", tuple((int(step), float(rate)) for step, rate in self.milestones))
        object.__setattr__(self, "quantities", tuple(q for q in QUANTITIES if q in self.quantities))

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits: a hash of the settings and of `VERSION`."""
        settings = {name: value for name, value in asdict(self).items() if value not in (None, ())}
        text = json.dumps({"version": VERSION, **settings}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of optimiser step `step`, counted from 1."""
        reached = [rate for milestone, rate in self.milestones if step > milestone]
        return reached[-1] if reached else self.learning_rate

"""Part 5: constant learning rates, then a schedule that switches where the validation curve stops rising."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sweeps.cli import main
from sweeps.experiment import MAIN_ARCHITECTURES, ImageSweepOptions, StagesEndedEarly
from sweeps.journal import Journal
from sweeps.sweep import Axis, ReadResult, Sweep
from trainables.errors import BadInputError, check_choice, check_positive
from trainables.trial import MAX_SETTING

Schedule = tuple[tuple[int, float], ...]
LEARNING_RATES = (0.1, 0.01, 0.001)
# The rule for a plateau, see `find_plateau`
TOLERANCE = 0.5  # percentage points
WINDOW_EPOCHS = 0.5
PATIENCE_EPOCHS = 2.0


def find_plateau(curve: NDArray[np.floating], window: int, patience: int, tolerance: float) -> int | None:
    """Return the number of records up to where a curve stops rising, or None if it has no plateau.

    The curve is smoothed by a trailing mean. Its plateau begins at the first record that the rest of the curve does not
    surpass by more than `tolerance`.

    Args:
        curve: `(records,)`.
        window: Records in the trailing mean.
        patience: Records that must follow, to show that the plateau lasts.
        tolerance: In the curve's unit.
    """
    if len(curve) < window + patience:
        return None
    smooth = np.convolve(curve, np.full(window, 1 / window), mode="valid")  # (records - window + 1,)
    reached = int(np.argmax(smooth >= smooth.max() - tolerance))
    return reached + window if reached + patience < len(smooth) else None


@dataclass(frozen=True, kw_only=True)
class Part5(ImageSweepOptions):
    """Options of part 5."""

    experiment = "part5"
    question = "Which constant learning rate is best for SGD, and does a schedule beat Adam?"
    quick_defaults: ClassVar = {"dataset": "digits", "architecture": "mlp_2", "epochs": 10, "schedule_epochs": 12}

    epochs: int = 20
    """Epochs at each of the constant rates 0.1, 0.01 and 0.001."""
    schedule_epochs: int = 30
    """Epochs of the trials with a schedule."""
    batch_size: int = 50
    """Images in a training batch."""
    architecture: str = "cnn_3"
    """Any of mlp_2, cnn_3, cnn_4, cnn_5."""
    milestones: tuple[int, ...] = ()
    """One or two steps after which the rate is divided by ten, instead of the plateaus that are found."""

    def sweep(self) -> Sweep:
        return self.make_sweep({"learning_rate": LEARNING_RATES}, epochs=self.epochs)

    def make_scheduled_sweep(self, schedule: Schedule) -> Sweep:
        """Return the sweep over seeds that starts with rate 0.1 and switches as `schedule` says."""
        name = " → ".join([str(LEARNING_RATES[0]), *(f"{rate} after step {step}" for step, rate in schedule)])
        axis = {"schedule": {name: {"learning_rate": LEARNING_RATES[0], "milestones": schedule}}}
        return self.make_sweep(axis, epochs=self.schedule_epochs)

    def make_sweep(self, axis: Mapping[str, Axis], epochs: int) -> Sweep:
        """Return a sweep over the seeds and one other axis."""
        return Sweep(
            name=self.experiment,
            axes={"seed": self.seed_range(), **axis},
            fixed={
                **self.image_settings(),
                "epochs": epochs,
                "batch_size": self.batch_size,
                "architecture": self.architecture,
                "optimizer": "sgd",
                "quantities": ("train_loss", "val_accuracy"),
            },
        )

    def stages(self, read: ReadResult, journal: Journal | None = None) -> Iterator[Sweep]:
        """Yield the constant rates, then 0.1 → 0.01 from the first plateau, then → 0.001 from the second."""
        self.check()
        yield self.sweep()
        schedule: Schedule = ()
        for number, rate in enumerate(LEARNING_RATES[1:]):
            given = self.milestones[number : number + 1]
            step = given[0] if given else self.plateau_step(schedule, read)
            if isinstance(step, str):
                raise StagesEndedEarly(f"No switch to rate {rate}: {step}.")
            schedule = (*schedule, (step, rate))
            yield self.make_scheduled_sweep(schedule)

    def plateau_step(self, schedule: Schedule, read: ReadResult) -> int | str:
        """Return the step where the mean validation curve over seeds stops rising, after the schedule's last switch.

        If there is no such step, return a clause that gives the reason.
        """
        sweep = self.make_scheduled_sweep(schedule) if schedule else self.sweep()
        trials = [trial for trial in sweep.trials() if trial.learning_rate == LEARNING_RATES[0]]
        results = [result for result in map(read, trials) if result is not None]
        if len(results) < len(trials):
            return "the trials before it are not finished; train what is missing, or give steps with --milestones"
        labels = sweep.labels()
        diverged = [labels[trial.id] for trial, result in zip(trials, results, strict=True) if result.diverged]
        if diverged:
            return f"{'; '.join(diverged)} diverged before it; give steps with --milestones"
        steps = results[0].steps
        curve = np.mean([result.curves["val_accuracy"] for result in results], axis=0)
        first = int(np.searchsorted(steps, schedule[-1][0], side="right")) if schedule else 0
        per_epoch = len(steps) / trials[0].epochs
        window, patience = (max(1, round(epochs * per_epoch)) for epochs in (WINDOW_EPOCHS, PATIENCE_EPOCHS))
        found = find_plateau(curve[first:], window, patience, TOLERANCE)
        if found is None:
            rule = "the validation curve before it has no plateau by the rule in sweeps/part5.py"
            return f"{rule}; train longer, or give steps with --milestones"
        return int(steps[first + found - 1])

    def check(self) -> None:
        """Raise `BadInputError` where an option is out of range."""
        check_positive("--schedule-epochs", self.schedule_epochs, whole=True, maximum=MAX_SETTING)
        check_choice("architecture", self.architecture, MAIN_ARCHITECTURES[1:])
        if len(self.milestones) > len(LEARNING_RATES) - 1:
            raise BadInputError(f"--milestones has {len(self.milestones)} steps; give one or two")
        if list(self.milestones) != sorted({step for step in self.milestones if step > 0}):
            raise BadInputError(f"--milestones is {self.milestones}; the steps must be positive and increasing")


if __name__ == "__main__":
    main(Part5, __doc__)

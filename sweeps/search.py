"""The search: Optuna looks for the best settings, and fresh seeds confirm what it finds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import tyro

from sweeps.cli import main
from sweeps.confirmation import FIRST_SEED, USUAL, choose_candidates, describe_confirmation, make_axis
from sweeps.experiment import MAIN_ARCHITECTURES, SELECTING_LITTLE, ImageSweepOptions, StagesEndedEarly
from sweeps.journal import Journal, NoJournal
from sweeps.rounds import History, Rung, count_epochs, make_rungs
from sweeps.space import Domain, Range, Space, check_space, parse_numbers
from sweeps.sweep import ReadResult, Sweep, format_count
from trainables.architectures import ACTIVATIONS, ARCHITECTURES, POOLINGS
from trainables.checksums import CHECKSUMS
from trainables.class_counts import count_images
from trainables.errors import BadInputError, check_positive
from trainables.trial import MAX_SETTING, OPTIMIZERS, Trial

QUANTITIES = ("train_loss", "train_accuracy", "val_accuracy")
EPOCHS = "epochs"  # the unit of a budget without a word
SECONDS = {"min": 60, "h": 3600}  # units of a budget in time
MIN_HALVING = 2


@dataclass(frozen=True, kw_only=True)
class Search(ImageSweepOptions):
    """Options of the search. Settings are a range LOW:HIGH, some values, or one value."""

    experiment = "search"
    question = "Which settings are best, and how much better than the usual ones are they on fresh seeds?"
    quick_defaults: ClassVar = {
        "dataset": "digits",
        "architectures": ("mlp_2", "cnn_3"),
        "learning_rates": ("0.0005:0.05",),
        "batch_sizes": ("20:80",),
        "epochs": 3,
        "budget": "48",
        "confirm_best": 2,
        "confirm_seeds": 4,
    }

    seeds: tyro.conf.Suppress[int] = 1  # each suggestion trains with one seed, that of the search
    architectures: tuple[str, ...] = MAIN_ARCHITECTURES
    """Any of mlp_1, mlp_2, cnn_3, cnn_4, cnn_5, logistic, conv_pool, conv_pool_valid."""
    learning_rates: tuple[str, ...] = ("0.0001:0.1",)
    """Learning rates of the optimiser: a range such as 0.0001:0.1, or values."""
    batch_sizes: tuple[str, ...] = ("20:200",)
    """Images in a training batch: a range such as 20:200, or values."""
    activations: tuple[str, ...] = ("relu", "leaky_relu", "tanh")
    """Any of relu, sigmoid, leaky_relu, tanh."""
    poolings: tuple[str, ...] = ("max", "avg")
    """Any of max, avg. It does not matter for a network without pooling."""
    optimizers: tuple[str, ...] = ("adam", "sgd")
    """Any of adam, sgd."""
    sampler: Literal["tpe", "gp", "random"] = "tpe"
    """Optuna's sampler: tree-structured Parzen estimator, Gaussian process, or random."""
    budget: str = "480"
    """Epochs that the search may train in all, or a time such as 30min or 2h. Without the confirmation.
    You can raise it later."""
    round_size: int = 4
    """Suggestions that are asked for at once, and so the most that train at once."""
    halving: int | None = None
    """Successive halving, for example by 3: a third of a round's suggestions trains on from each rung."""
    seed: int = 0
    """Seed of the search's suggestions, and of its trials."""
    searches: int = 1
    """Number of searches, with the seeds from --seed on, to see how much their results differ."""
    confirm_best: int = 3
    """Number of the best settings that are confirmed, beside the usual ones."""
    confirm_seeds: int = 10
    """Seeds that the confirmation trains each of them with. No search uses these seeds."""

    def sweep(self) -> Sweep:
        return self.first_stage()

    def select(self) -> dict[str, Any]:
        """Return all options but those that only let the same search go on, or confirm more."""
        little = (*SELECTING_LITTLE, "budget", "searches", "confirm_best", "confirm_seeds")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in little}

    @property
    def fresh_seeds(self) -> range:
        """The seeds of the confirmation, which no search uses."""
        return range(FIRST_SEED, FIRST_SEED + self.confirm_seeds)

    def make_space(self) -> Space:
        """Return the space that the options describe."""
        return {
            "architecture": self.architectures,
            "learning_rate": parse_numbers("--learning-rates", self.learning_rates, whole=False),
            "batch_size": parse_numbers("--batch-sizes", self.batch_sizes, whole=True),
            "activation": self.activations,
            "pooling": self.poolings,
            "optimizer": self.optimizers,
        }

    def make_settings(self, params: Mapping[str, Any], epochs: int, seed: int) -> dict[str, Any]:
        """Return the settings of the trial of some parameters, with a length and a seed."""
        return {**self.image_settings(), "quantities": QUANTITIES, **params, "epochs": epochs, "seed": seed}

    def make_histories(self) -> list[History]:
        """Return the searches, without any suggestion yet.

        Raises:
            BadInputError: An option's value is out of range.
        """
        space = self.make_space()
        self.check(space)
        rungs = make_rungs(self.epochs, self.round_size, self.halving)
        self.check_lengths(rungs[0].epochs, space["batch_size"], space)
        limit, unit = parse_budget(self.budget)
        if unit == EPOCHS and limit < (each := count_epochs(rungs)):
            raise BadInputError(
                f"--budget is {format_count(limit, 'epoch')}, but one round trains {each}; raise --budget, or lower "
                "--round-size or --epochs"
            )
        return [self.make_history(space, rungs, seed) for seed in range(self.seed, self.seed + self.searches)]

    def make_history(self, space: Space, rungs: Sequence[Rung], seed: int) -> History:
        """Return the search with a seed, without any suggestion yet."""

        def make_trial(params: Mapping[str, Any], epochs: int) -> Trial:
            return Trial(**self.make_settings(params, epochs, seed))

        identity = {
            "space": {name: format_domain(domain) for name, domain in space.items()},
            "dataset": self.dataset,
            "checksum": CHECKSUMS.get(self.dataset, ""),
            "epochs": self.epochs,
            "sampler": self.sampler,
            "round_size": self.round_size,
            "halving": self.halving,
            "seed": seed,
        }
        return History(
            name=f"search {seed}" if self.searches > 1 else "",
            space=space,
            sampler=self.sampler,
            seed=seed,
            rungs=rungs,
            make_trial=make_trial,
            identity=identity,
        )

    def check(self, space: Space) -> None:
        """Raise `BadInputError` where an option is out of range."""
        self.image_settings()
        allowed = {
            "architecture": [*ARCHITECTURES],
            "activation": [*ACTIVATIONS],
            "pooling": [*POOLINGS],
            "optimizer": OPTIMIZERS,
        }
        check_space(space, allowed)
        for name in ("epochs", "round_size", "searches", "confirm_best", "confirm_seeds"):
            check_positive(f"--{name.replace('_', '-')}", getattr(self, name), whole=True, maximum=MAX_SETTING)
        if self.seed < 0 or self.seed + self.searches > FIRST_SEED:
            raise BadInputError(
                f"--seed {self.seed} with --searches {self.searches}: the seeds of searches are from 0 to "
                f"{FIRST_SEED - 1}, as later ones confirm; give smaller numbers"
            )
        if self.halving is not None and not MIN_HALVING <= self.halving <= self.round_size:
            raise BadInputError(
                f"--halving is {self.halving}; it must be a whole number from {MIN_HALVING} to the --round-size, "
                f"which is {self.round_size}"
            )
        if self.halving is not None and self.sampler == "gp":
            raise BadInputError(
                "--sampler gp learns nothing from trials that --halving stops; use --sampler tpe, or no halving"
            )

    def check_lengths(self, epochs: int, batch_sizes: Domain, space: Space) -> None:
        """Raise `BadInputError` where the shortest trial with the largest batch would have no record for a score."""
        largest = int(batch_sizes.high if isinstance(batch_sizes, Range) else max(batch_sizes))
        any_params = {name: domain[0] for name, domain in space.items() if isinstance(domain, tuple)}
        settings = {**USUAL, **any_params, "batch_size": largest}
        trial = Trial(**self.make_settings(settings, epochs, self.seed))
        images = sum(count_images(trial.dataset, trial.pipeline, trial.task, "train"))
        steps, first = epochs * trial.steps_per_epoch(images), trial.record_interval(images)
        if steps < first:
            raise BadInputError(
                f"{format_count(epochs, 'epoch')} in batches of {largest} make {format_count(steps, 'step')}, but the "
                f"first record, by which a trial is scored, is at step {first}; raise --epochs or lower --batch-sizes"
            )

    def stages(self, read: ReadResult, journal: Journal | None = None) -> Iterator[Sweep]:
        """Yield the rungs of one round after the other, and then the confirmation."""
        histories = self.make_histories()
        yield from self.run_searches(histories, read, journal or NoJournal())
        if not any(history.complete for history in histories):
            raise StagesEndedEarly("No suggestion has learnt anything, so there is nothing to confirm.")
        yield self.make_confirmation(histories)

    def run_searches(self, histories: Sequence[History], read: ReadResult, journal: Journal) -> Iterator[Sweep]:
        """Yield the stages of searches that run in step; each is a rung of all that are still under way."""
        running = [(history, history.run(read, journal, self.allows_round)) for history in histories]
        while rungs := [(history, rung) for history, steps in running if (rung := next(steps, None)) is not None]:
            names = {
                suggestion.name: self.make_settings(suggestion.params, epochs, history.seed)
                for history, (epochs, suggestions) in rungs
                for suggestion in suggestions
            }
            yield Sweep(
                name=self.experiment,
                axes={"suggestion": names},
                fixed={},
                heading=self.describe_stage(histories, rungs[0][1][0]),
                shows_test=False,
                stacks_convolutions=False,
            )

    def allows_round(self, history: History) -> bool:
        """Return whether the budget of a search allows another round."""
        limit, unit = parse_budget(self.budget)
        if unit == EPOCHS:
            return history.epochs + count_epochs(history.rungs) <= limit
        return history.seconds < limit

    def describe_stage(self, histories: Sequence[History], epochs: int) -> str:
        """Return what stage searches are in: the round, the rung, what is used of the budget, and the best score."""
        limit, unit = parse_budget(self.budget)
        words = [f"round {max(len(h.suggestions) for h in histories) // self.round_size}"]
        if len(histories[0].rungs) > 1:
            words.append(f"to epoch {epochs}")
        if unit == EPOCHS:
            used = sum(history.epochs for history in histories)
            words.append(f"{used:,} of {limit * len(histories):,} epochs used before")
        if learnt := [suggestion for history in histories for suggestion in history.complete]:
            best = max(learnt, key=lambda suggestion: suggestion.score or 0.0)
            words.append(f"best validation accuracy so far {best.score:.2f} % ({best.name})")
        return ", ".join(words)

    def make_confirmation(self, histories: Sequence[History]) -> Sweep:
        """Return the sweep over fresh seeds of the best settings and the usual ones."""
        candidates = choose_candidates(histories, self.confirm_best)
        seeds = self.fresh_seeds
        ended = [history.ended for history in histories if history.ended]
        return Sweep(
            name=self.experiment,
            axes={"seed": seeds, "setting": make_axis(candidates)},
            fixed={**self.image_settings(), "quantities": QUANTITIES},
            heading="confirmation on fresh seeds",
            stacks_convolutions=False,
            conclude=lambda read: [*ended, *describe_confirmation(candidates, seeds, read)],
        )

    def describe_plan(self) -> Sequence[str]:
        """Return what the search and its confirmation will train."""
        limit, unit = parse_budget(self.budget)
        rungs = make_rungs(self.epochs, self.round_size, self.halving)
        each = count_epochs(rungs)
        lengths = " → ".join(f"{rung.trials} to epoch {rung.epochs}" for rung in rungs)
        rounds = f"{format_count(limit // each, 'round')} of {each} epochs" if unit == EPOCHS else "in rounds"
        many = f"; {self.searches} searches, each with this budget" if self.searches > 1 else ""
        settings = self.confirm_best + 1
        return [
            f"Budget: {self.budget}{f' epochs, {rounds}' if unit == EPOCHS else f', {rounds}'} ({lengths}){many}",
            f"Confirmation, not in the budget: {settings} settings × {format_count(self.confirm_seeds, 'seed')} × "
            f"{format_count(self.epochs, 'epoch')} = {settings * self.confirm_seeds * self.epochs:,} epochs at most",
        ]


def parse_budget(budget: str) -> tuple[int, str]:
    """Return a budget's number and unit: epochs, or seconds.

    Raises:
        BadInputError: It is neither a number of epochs nor a time.
    """
    found = re.fullmatch(r"(\d+)(min|h)?", budget)
    number = int(found[1]) if found else 0
    if found is None or not 0 < number <= MAX_SETTING:
        raise BadInputError(f"--budget is {budget}; give a number of epochs such as 60, or a time such as 30min or 2h")
    return (number * SECONDS[found[2]], "seconds") if found[2] else (number, EPOCHS)


def format_domain(domain: Domain) -> Any:
    """Return what a parameter may be as JSON can hold it."""
    return {"low": domain.low, "high": domain.high} if isinstance(domain, Range) else [*domain]


if __name__ == "__main__":
    main(Search, __doc__)

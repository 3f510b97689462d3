"""Suggestions of a search, and how Optuna is asked for them and told of their scores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sweeps.space import Space, fit_to_space, make_distributions
from trainables.trial import Trial

if TYPE_CHECKING:
    from optuna import Study
    from optuna import Trial as OptunaTrial
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

STARTUP_TRIALS = 10  # suggestions that are drawn at random before a sampler learns; Optuna's default, for all of them


@dataclass
class Suggestion:
    """A suggestion of Optuna, and what came of it.

    Attributes:
        number: Its place among the suggestions of its search, from 0.
        name: The name by which stages and messages call it.
        params: Value of every parameter of the space.
        trial: Its trial of full length.
        scores: Epochs → score in % of the trial of that length, for those that are trained.
        repeats: Whether an earlier suggestion of the search has the same trial.
    """

    number: int
    name: str
    params: Mapping[str, Any]
    trial: Trial
    scores: dict[int, float] = field(default_factory=dict)
    repeats: bool = False

    @property
    def score(self) -> float | None:
        """The score in % at full length; None if it was stopped, or is not trained yet."""
        return self.scores.get(self.trial.epochs)


def ask_round(
    space: Space,
    suggestions: Sequence[Suggestion],
    count: int,
    sampler: str,
    seed: int,
    make_trial: Callable[[Mapping[str, Any]], Trial],
) -> list[dict[str, Any]]:
    """Ask Optuna for a round of suggestions, and return their parameters.

    Each suggestion knows of those before it in its round, but not their scores, unless it repeats an older trial.

    Args:
        space: The space.
        suggestions: All suggestions of the rounds before, in order.
        count: Number of suggestions in a round.
        sampler: One of `--sampler`'s values.
        seed: The search's seed.
        make_trial: Returns the trial of some parameters.
    """
    study = make_study(space, suggestions)
    distributions = make_distributions(space)
    known = {suggestion.trial.id: suggestion for suggestion in suggestions}
    asked = []
    for number in range(len(suggestions), len(suggestions) + count):
        study.sampler = make_sampler(sampler, seed, number)
        suggested = study.ask(distributions)
        asked.append(fit_to_space(space, suggested.params))
        if repeated := known.get(make_trial(asked[-1]).id):
            tell(study, suggested, repeated)
    return asked


def tell(study: Study, suggested: OptunaTrial, repeated: Suggestion) -> None:
    """Tell Optuna the result of a suggestion whose trial an earlier one has had."""
    from optuna.trial import TrialState

    for epochs, score in repeated.scores.items():
        suggested.report(score, epochs)
    pruned = repeated.score is None
    study.tell(suggested, repeated.score, TrialState.PRUNED if pruned else TrialState.COMPLETE)


def make_study(space: Space, suggestions: Sequence[Suggestion]) -> Study:
    """Return a study in memory that holds suggestions: with their score, or pruned with those that they got."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for suggestion in suggestions:
        study.add_trial(make_optuna_trial(space, suggestion))
    return study


def make_optuna_trial(space: Space, suggestion: Suggestion) -> FrozenTrial:
    """Return a suggestion as a trial of Optuna, complete, or pruned at its last rung."""
    from optuna.trial import TrialState, create_trial

    complete = suggestion.score is not None
    return create_trial(
        params=dict(suggestion.params),
        distributions=make_distributions(space),
        state=TrialState.COMPLETE if complete else TrialState.PRUNED,
        value=suggestion.score,
        intermediate_values=dict(suggestion.scores),
        user_attrs={"trial_id": suggestion.trial.id},
    )


def make_sampler(name: str, seed: int, number: int) -> BaseSampler:
    """Return a sampler whose seed follows from that of the search and from the suggestion's number."""
    from optuna import samplers

    own = int(hashlib.sha256(f"{seed} {number}".encode()).hexdigest()[:8], 16)
    if name == "tpe":  # two defaults that changed between versions of Optuna are given
        return samplers.TPESampler(seed=own, n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=True)
    if name == "gp":
        import torch

        torch.set_num_threads(1)  # with more, sums would differ in their last bits between machines
        return samplers.GPSampler(seed=own, n_startup_trials=STARTUP_TRIALS, deterministic_objective=False)
    return samplers.RandomSampler(seed=own)

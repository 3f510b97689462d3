"""The confirmation of a search: its best settings and the usual ones on seeds that it never used. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sweeps.comparisons import Difference, compute_difference
from sweeps.intervals import format_mean
from sweeps.rounds import History, compute_score, find_settings
from sweeps.space import describe_params
from sweeps.sweep import ReadResult, format_count
from trainables.trial import Trial

FIRST_SEED = 1000  # of the confirmation; the seeds of searches are below, so that none is used twice
# The settings of part 3 of the reports, beside the architecture.
USUAL: dict[str, Any] = {
    "learning_rate": 0.01,
    "batch_size": 50,
    "activation": "relu",
    "pooling": "max",
    "optimizer": "adam",
}


@dataclass(frozen=True)
class Candidate:
    """Settings that are confirmed.

    Attributes:
        name: What it is, and its settings in a few words.
        trial: Its trial of full length on the first seed of the confirmation.
        score: Its best score in % in a search; None for the usual settings where no search has tried them.
        is_usual: Whether it has the usual settings.
    """

    name: str
    trial: Trial
    score: float | None
    is_usual: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a search's parameters, without those that do not apply."""
        found = {name: getattr(self.trial, name) for name in ("architecture", *USUAL)}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Confirmed:
    """A candidate and what its fresh seeds came to.

    Attributes:
        candidate: The candidate.
        scores: Score in % of each seed, by validation accuracy.
        test_accuracies: Test accuracy in % of each seed; NaN where it diverged.
    """

    candidate: Candidate
    scores: Sequence[float]
    test_accuracies: Sequence[float]

    @property
    def mean_score(self) -> float:
        """The mean score in % over the seeds."""
        return float(np.mean(self.scores))


def choose_candidates(histories: Sequence[History], count: int) -> list[Candidate]:
    """Return the settings with the best scores, best first, and the usual ones.

    The usual settings are those of part 3 with the architecture of the best suggestion, so that the difference to them
    is what the search has gained for that architecture.

    Args:
        histories: Searches, in one of which at least one suggestion has learnt.
        count: Number of settings, besides the usual ones.
    """
    found = [(h, s) for h in histories for s in h.complete]
    found.sort(key=lambda pair: (-(pair[1].score or 0), pair[0].seed, pair[1].number))
    by_id: dict[str, Candidate] = {}
    space = histories[0].space
    usual = replace(found[0][1].trial, **USUAL, seed=FIRST_SEED)
    for _, suggestion in found:
        trial = replace(suggestion.trial, seed=FIRST_SEED)
        if len(by_id) < count and trial.id not in by_id:
            words = describe_params(find_settings(trial, space))
            is_usual = trial.id == usual.id
            name = f"{suggestion.name}{' (usual)' if is_usual else ''}: {words}"
            by_id[trial.id] = Candidate(name, trial, suggestion.score, is_usual)
    if usual.id not in by_id:
        score = next((s.score for _, s in found if replace(s.trial, seed=FIRST_SEED).id == usual.id), None)
        words = describe_params({"architecture": usual.architecture, **{name: getattr(usual, name) for name in USUAL}})
        by_id[usual.id] = Candidate(f"usual settings: {words}", usual, score, is_usual=True)
    return [*by_id.values()]


def read_confirmed(candidates: Sequence[Candidate], seeds: Sequence[int], read: ReadResult) -> list[Confirmed]:
    """Return what the candidates came to, those left out of which a seed is not finished."""
    confirmed = []
    for candidate in candidates:
        trials = [replace(candidate.trial, seed=seed) for seed in seeds]
        results = [result for trial in trials if (result := read(trial)) is not None]
        if len(results) == len(trials):
            scores = [compute_score(trial, result) for trial, result in zip(trials, results, strict=True)]
            confirmed.append(Confirmed(candidate, scores, [result.test_accuracy for result in results]))
    return confirmed


def choose_winner(confirmed: Sequence[Confirmed]) -> Confirmed:
    """Return the candidate with the highest validation accuracy over the fresh seeds; test images choose nothing."""
    return max(confirmed, key=lambda found: found.mean_score)


def find_best_scored(confirmed: Sequence[Confirmed]) -> Confirmed:
    """Return the candidate with the best score in the search."""
    return max(confirmed, key=lambda found: found.candidate.score or 0.0)


def compute_optimism(confirmed: Sequence[Confirmed]) -> float:
    """Return by how many percentage points the best score of the search is above its mean over fresh seeds."""
    best = find_best_scored(confirmed)
    return (best.candidate.score or 0.0) - best.mean_score


def compare_with_usual(confirmed: Sequence[Confirmed]) -> Difference | None:
    """Return the difference of the winner's test accuracy to that of the usual settings; None if these win.

    It is paired by seed, in percentage points.
    """
    winner = choose_winner(confirmed)
    usual = next(found for found in confirmed if found.candidate.is_usual)
    if winner is usual:
        return None
    return compute_difference(winner.test_accuracies, usual.test_accuracies, paired=True, permute=False)


def describe_confirmation(candidates: Sequence[Candidate], seeds: Sequence[int], read: ReadResult) -> list[str]:
    """Return sentences on what the fresh seeds say: how optimistic the search was, which settings win, by how much."""
    confirmed = read_confirmed(candidates, seeds, read)
    if len(confirmed) < len(candidates):
        return []
    best = find_best_scored(confirmed)
    optimism, count = compute_optimism(confirmed), format_count(len(seeds), "fresh seed")
    too = f"{abs(optimism):.2f} percentage points too {'optimistic' if optimism > 0 else 'pessimistic'}"
    winner = choose_winner(confirmed)
    return [
        f"The best score of the search is a validation accuracy of {best.candidate.score:.2f} % "
        f"({best.candidate.name}). On {count} the same settings come to {format_mean(best.scores)} %, so the search "
        f"was {too}.",
        f"By validation accuracy on these seeds, the winner is {winner.candidate.name}. Its test accuracy is "
        f"{format_mean(winner.test_accuracies)} % (n = {len(seeds)}).",
        describe_gain(compare_with_usual(confirmed)),
    ]


def describe_gain(difference: Difference | None) -> str:
    """Return a sentence on the winner's difference to the usual settings, which says no more than the seeds show."""
    if difference is None:
        return "These are the usual settings: the search has found nothing better."
    amount = f"{difference.estimate:+.2f}"
    if np.isnan(difference.low):
        return (
            f"Its difference to the usual settings is {amount} percentage points; one seed cannot tell it from chance."
        )
    amount += f" ({difference.low:+.2f} to {difference.high:+.2f}) percentage points of test accuracy, paired by seed"
    if difference.low <= 0 <= difference.high:
        return f"It is not distinguishable from the usual settings: the difference is {amount}."
    return f"The difference to the usual settings is {amount}."


def make_axis(candidates: Sequence[Candidate]) -> Mapping[str, Mapping[str, Any]]:
    """Return the candidates as an axis of a sweep: name → settings."""
    return {candidate.name: candidate.settings for candidate in candidates}

"""The search: its progress, which parameters matter, and what fresh seeds confirm.

The test accuracy of a suggestion is never read: suggestions are shown by their scores, which are validation accuracies.
Only the settings that are confirmed have a test accuracy, over the fresh seeds of the confirmation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from analysis import confirmed, search_figures
from analysis.output import DrawOptions, Output, main
from analysis.results import SweepResults
from analysis.search_answers import answer
from analysis.snapshot import open_journal
from analysis.studies import compute_importances, export_studies
from sweeps.confirmation import (
    Candidate,
    Confirmed,
    choose_candidates,
    compute_optimism,
    read_confirmed,
)
from sweeps.experiment import StagesEndedEarly
from sweeps.rounds import WORST, History
from sweeps.sampling import Suggestion
from sweeps.search import Search
from trainables.architectures import count_parameters
from trainables.errors import BadInputError
from trainables.result import Result
from trainables.sources import IMAGE_SHAPES
from trainables.trial import Trial

ROWS_SHOWN = 20  # suggestions in a report's table; the file has all


@dataclass(frozen=True, kw_only=True)
class SearchDrawOptions(DrawOptions):
    """Files to write, and where to put the search as a study of Optuna."""

    export_study: str | None = None
    """Database to put the search into as a study of Optuna, such as sqlite:///study.db, for Optuna's dashboard."""


@dataclass(frozen=True)
class Found:
    """All that a search has found.

    Attributes:
        histories: Its searches, with the suggestions that have a score; those without any are left out.
        results: Result of each trial of their rounds by its id.
        candidates: Settings to be confirmed; empty if no suggestion has learnt.
        confirmed: Those of them whose fresh seeds are all finished.
        confirmation: Results of the confirmation; None if it has none yet.
    """

    histories: Sequence[History]
    results: Mapping[str, Result]
    candidates: Sequence[Candidate]
    confirmed: Sequence[Confirmed]
    confirmation: SweepResults | None

    @property
    def complete_confirmation(self) -> SweepResults | None:
        """The results of the confirmation if none is missing."""
        return self.confirmation if len(self.confirmed) == len(self.candidates) else None


def draw(options: Search, stages: Sequence[SweepResults], output: Output, draw_options: SearchDrawOptions) -> None:
    """Write the figures of the search and of its confirmation, the tables and the export."""
    found = find_search(options, stages)
    if not found.histories:
        raise BadInputError("no suggestion of the search can be scored yet, as its first trial is missing")
    if draw_options.export_study is not None:
        export_studies(draw_options.export_study, options.dataset, found.histories)
    counts = count_weights(options)
    importances = [compute_importances(history) for history in found.histories]
    output.answers += answer(
        options.question, found.confirmed, found.complete_confirmation, found.histories, importances
    )
    histories, dataset = found.histories, options.dataset
    if found.candidates:
        output.save_figure(*search_figures.draw_progress(histories, dataset))
        output.save_figure(*search_figures.draw_parallel(histories, dataset))
        output.save_figure(*search_figures.draw_sizes(histories, counts, dataset))
    if any(importances):
        output.save_figure(*search_figures.draw_importances(importances, dataset))
    output.save_figure(*search_figures.draw_curves(histories, found.results, dataset))
    if found.confirmed and found.confirmation:
        output.save_figure(*confirmed.draw_confirmation(found.confirmed, dataset), found.confirmation)
        rows = [confirmed.make_row(each) for each in found.confirmed]
        output.save_table(rows, "confirmation", "The confirmed settings; validation and test accuracy on fresh seeds.")
    caption = "All suggestions with their scores, which are validation accuracies (%), the best first."
    output.save_table(make_table(histories, counts), "suggestions", caption, ROWS_SHOWN)
    output.save_json(make_export(found), "search")


def find_search(options: Search, stages: Sequence[SweepResults]) -> Found:
    """Repeat the search with the results of its rounds, and read its confirmation."""
    results = {key: result for stage in stages if not stage.sweep.shows_test for key, result in stage.by_trial.items()}
    confirmation = next((stage for stage in stages if stage.sweep.shows_test), None)
    histories = options.make_histories()
    with suppress(StagesEndedEarly):  # a trial is missing
        for _ in options.run_searches(histories, lambda t: results.get(t.id), open_journal(options, stages[0].store)):
            pass
    for history in histories:
        history.suggestions = [suggestion for suggestion in history.suggestions if suggestion.scores]
    histories = [history for history in histories if history.suggestions]
    candidates: list[Candidate] = []
    if any(history.complete for history in histories):
        candidates = choose_candidates(histories, options.confirm_best)
    fresh = {} if confirmation is None else confirmation.by_trial
    come_to = read_confirmed(candidates, options.fresh_seeds, lambda trial: fresh.get(trial.id))
    return Found(histories, results, candidates, come_to, confirmation)


def count_weights(options: Search) -> dict[str, int]:
    """Return the number of trainable parameters of each architecture of a search."""
    image = (1, *IMAGE_SHAPES[options.dataset][1:])
    counted = {name: count_parameters(name, image) for name in options.architectures}
    return {name: count.weights + count.biases for name, count in counted.items()}


def make_table(histories: Sequence[History], counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return a row for each suggestion: its parameters, its score, and how far it came; the best first.

    Args:
        histories: The searches.
        counts: Number of trainable parameters by architecture.
    """
    found = [(history, suggestion) for history in histories for suggestion in history.suggestions]
    found.sort(key=lambda pair: (-get_last_score(pair[1]), pair[0].seed, pair[1].number))
    return [
        {
            **({"search": history.seed} if history.name else {}),
            "suggestion": suggestion.number,
            **{name: describe_value(suggestion.trial, name) for name in history.space},
            "parameters": f"{counts[suggestion.trial.architecture]}",
            "score": float("nan") if suggestion.score is None else suggestion.score,
            "came_to": describe_end(suggestion),
        }
        for history, suggestion in found
    ]


def get_last_score(suggestion: Suggestion) -> float:
    """Return the score by which suggestions are sorted, below all others for those that were stopped."""
    return suggestion.score if suggestion.score is not None else suggestion.scores[max(suggestion.scores)] - 100


def describe_value(trial: Trial, name: str) -> str:
    """Return a setting of a trial as text, with all of its digits; "" if it does not apply."""
    value = getattr(trial, name)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def describe_end(suggestion: Suggestion) -> str:
    """Return how far a suggestion came, in words."""
    if suggestion.repeats:
        return "repeats an earlier one"
    if suggestion.score is None:
        return f"stopped after epoch {max(suggestion.scores)}"
    return "full length" if suggestion.score > WORST else "diverged or stuck at chance"


def make_export(found: Found) -> dict[str, Any]:
    """Return the suggestions in order, the confirmed settings, and the optimism of the search."""
    return {
        "suggestions": [
            {
                **({"search": history.seed} if history.name else {}),
                "number": suggestion.number,
                "trial_id": suggestion.trial.id,
                "params": dict(suggestion.params),
                "score": suggestion.score,
            }
            for history in found.histories
            for suggestion in history.suggestions
        ],
        "confirmed": [confirmed.make_export(each) for each in found.confirmed],
        "optimism": compute_optimism(found.confirmed) if found.complete_confirmation else None,
    }


if __name__ == "__main__":
    main(Search, draw, __doc__, SearchDrawOptions)

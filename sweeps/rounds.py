"""One search, round by round: Optuna suggests, trials are scored, and Optuna is told.

A round has a fixed number of suggestions, whatever the machine. Each is asked of a fresh study that holds all scores so
far in the order of the suggestions, with a sampler whose seed follows from the search's seed and the suggestion's
number. So the same scores give the same suggestions, after any death and with any number of processes.

The journal keeps each round's suggestions before they train. Where Optuna would suggest something else today, the
journal holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from sweeps.experiment import StagesEndedEarly
from sweeps.journal import Journal, compute_digest, format_entry, parse_entry
from sweeps.sampling import Suggestion, ask_round
from sweeps.space import Space, describe_params
from sweeps.stuck import is_stuck_result
from sweeps.sweep import ReadResult
from trainables.class_counts import count_images
from trainables.result import Result
from trainables.trial import Trial

WORST = 0.0  # the score in % of a trial that diverged or is stuck at chance


def compute_score(trial: Trial, result: Result) -> float:
    """Return a trial's score: the mean validation accuracy in % over the records of its last epoch.

    Where that epoch has no record, it is that of the last record. It is `WORST` for a trial that diverged or is stuck.
    """
    if result.diverged or is_stuck_result(trial, result):
        return WORST
    images = sum(count_images(trial.dataset, trial.pipeline, trial.task, "train"))
    curve = result.curves["val_accuracy"]
    of_last_epoch = curve[result.steps > (trial.epochs - 1) * trial.steps_per_epoch(images)]
    return float(of_last_epoch.mean(dtype=float)) if len(of_last_epoch) else float(curve[-1])


@dataclass(frozen=True)
class Rung:
    """A length to which the suggestions of a round train.

    Attributes:
        epochs: Epochs of its trials.
        trials: Number of the suggestions that reach it.
    """

    epochs: int
    trials: int


def make_rungs(epochs: int, round_size: int, halving: int | None) -> list[Rung]:
    """Return the rungs of a round, shortest first: one, or those of successive halving.

    From each rung to the next, the number of suggestions is divided by `halving` and rounded down. The epochs are
    `epochs` divided by its powers and rounded up.
    """
    rungs = [Rung(epochs, round_size)]
    while halving is not None and rungs[0].epochs > 1 and round_size // halving ** len(rungs) >= 1:
        shorter = -(-epochs // halving ** len(rungs))
        rungs = [Rung(shorter, round_size), *rungs]
    sizes = [round_size // (halving or 1) ** number for number in range(len(rungs))]
    return [Rung(rung.epochs, size) for rung, size in zip(rungs, sizes, strict=True)]


def count_epochs(rungs: Sequence[Rung]) -> int:
    """Return the epochs that a round trains, as a suggestion goes on from the end of its shorter trial."""
    lengths = [0, *(rung.epochs for rung in rungs)]
    return sum(rung.trials * (rung.epochs - before) for rung, before in zip(rungs, lengths[:-1], strict=True))


@dataclass(kw_only=True)
class History:
    """One search: what it was asked to look through, and its suggestions so far.

    Attributes:
        space: The space.
        sampler: One of `--sampler`'s values.
        seed: The search's seed, which is also that of its trials.
        rungs: The rungs of each round.
        make_trial: Returns the trial of some parameters, of some length in epochs.
        identity: All that decides the suggestions, as JSON has it; the journal's folder is named by its digest.
        name: The name by which messages tell it from others, or "" if it is the only one.
        suggestions: The suggestions, in order.
        seconds: The time that the rounds so far have taken, without interruptions.
        ended: The reason why it ended before its budget, as a sentence, or "".
    """

    space: Space
    sampler: str
    seed: int
    rungs: Sequence[Rung]
    make_trial: Callable[[Mapping[str, Any], int], Trial]
    identity: Mapping[str, Any]
    name: str = ""
    suggestions: list[Suggestion] = field(default_factory=list)
    seconds: float = 0.0
    ended: str = ""

    @property
    def folder(self) -> str:
        """The folder of the journal among the artifacts of the sweep's parent run."""
        return f"search/{compute_digest(self.identity)[:16]}"

    @property
    def epochs(self) -> int:
        """The epochs of the distinct trials that were suggested, whoever has trained them."""
        return sum(max(s.scores, default=0) for s in self.suggestions if not s.repeats)

    @property
    def complete(self) -> list[Suggestion]:
        """The suggestions that were trained at full length, without failing to learn; the best first."""
        trained = [s for s in self.suggestions if not s.repeats and s.score is not None and s.score > WORST]
        return sorted(trained, key=lambda s: (-(s.score or WORST), s.number))

    def run(
        self, read: ReadResult, journal: Journal, goes_on: Callable[[History], bool]
    ) -> Iterator[tuple[int, list[Suggestion]]]:
        """Yield rung after rung: the epochs, and the suggestions to be trained to them before the next is asked for.

        Args:
            read: Reads a trial's result.
            journal: The files that keep the suggestions.
            goes_on: Whether the budget allows another round.

        Raises:
            StagesEndedEarly: A trial of a rung that was yielded is not finished.
        """
        number = 0
        while not self.ended and goes_on(self):
            started = monotonic()
            asked = self.get_round(number, journal)
            self.suggestions += asked
            alive = [s for s in asked if not s.repeats]
            if not alive:
                self.ended = f"{self.name or 'The search'} ends with round {number + 1}, which suggests nothing new."
            for rung in self.rungs if alive else ():
                alive = rank(alive, self.rungs)[: rung.trials]
                yield rung.epochs, sorted(alive, key=lambda s: s.number)
                for suggestion in alive:
                    self.score(suggestion, rung.epochs, read)
            self.copy_scores()
            self.seconds += self.keep_seconds(number, monotonic() - started, journal)
            number += 1

    def score(self, suggestion: Suggestion, epochs: int, read: ReadResult) -> None:
        """Read the result of a suggestion's trial of some length, and note its score."""
        trial = self.make_trial(suggestion.params, epochs)
        result = read(trial)
        if result is None:
            raise StagesEndedEarly(f"The search stops at {suggestion.name}, which is not trained to epoch {epochs}.")
        suggestion.scores[epochs] = compute_score(trial, result)

    def copy_scores(self) -> None:
        """Give suggestions that repeat a trial the scores of the first that had it."""
        first: dict[str, Suggestion] = {}
        for suggestion in self.suggestions:
            suggestion.scores = first.setdefault(suggestion.trial.id, suggestion).scores

    def get_round(self, number: int, journal: Journal) -> list[Suggestion]:
        """Return the suggestions of a round: the journal's, or Optuna's, which the journal keeps then."""
        name = f"{self.folder}/round-{number:04}.json"
        if (text := journal.read(name)) is not None:
            return self.make_suggestions(parse_entry(text, name)["suggestions"])
        count = self.rungs[0].trials
        params = ask_round(self.space, self.suggestions, count, self.sampler, self.seed, self.make_full_trial)
        made = self.make_suggestions([{"number": len(self.suggestions) + i, "params": p} for i, p in enumerate(params)])
        kept = [{"number": s.number, "params": s.params, "trial_id": s.trial.id} for s in made]
        journal.add(name, format_entry({"search": self.identity, "round": number, "suggestions": kept}))
        return made

    def make_full_trial(self, params: Mapping[str, Any]) -> Trial:
        """Return the trial of some parameters at full length."""
        return self.make_trial(params, self.rungs[-1].epochs)

    def make_suggestions(self, entries: Sequence[Mapping[str, Any]]) -> list[Suggestion]:
        """Return the suggestions of a round from their numbers and parameters."""
        known = {s.trial.id for s in self.suggestions}
        made = []
        for entry in entries:
            trial = self.make_full_trial(entry["params"])
            name = ", ".join(filter(None, (self.name, f"suggestion {entry['number']}")))
            made.append(Suggestion(entry["number"], name, entry["params"], trial, repeats=trial.id in known))
            known.add(trial.id)
        return made

    def keep_seconds(self, number: int, seconds: float, journal: Journal) -> float:
        """Keep the time that a round took, and return it; where the journal has one already, that holds."""
        name = f"{self.folder}/round-{number:04}-seconds.json"
        if (text := journal.read(name)) is not None:
            return float(parse_entry(text, name)["seconds"])
        journal.add(name, format_entry({"round": number, "seconds": round(seconds, 1)}))
        return seconds

    def describe(self, suggestion: Suggestion) -> str:
        """Return the settings of a suggestion in which the space leaves a choice, in a few words."""
        return describe_params(find_settings(suggestion.trial, self.space))


def rank(suggestions: Sequence[Suggestion], rungs: Sequence[Rung]) -> list[Suggestion]:
    """Return suggestions with the best first, by their scores at the last rung that they have reached."""
    lengths = [rung.epochs for rung in rungs]
    latest = {s.number: next((s.scores[n] for n in reversed(lengths) if n in s.scores), WORST) for s in suggestions}
    return sorted(suggestions, key=lambda s: (-latest[s.number], s.number))


def find_settings(trial: Trial, space: Space) -> dict[str, Any]:
    """Return the settings of a trial in which a space leaves a choice; those that do not apply to it are None."""
    varied = [name for name, domain in space.items() if not isinstance(domain, tuple) or len(domain) > 1]
    return {name: getattr(trial, name) for name in varied or space}

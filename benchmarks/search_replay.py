"""Searches replayed on a table of trained trials, which train nothing: samplers, and a grid in random order.

The table has the scores of all trials of a grid after every epoch. A search in it has only choices, those of the grid's
axes. As a short trial is the beginning of a longer one, halving can be replayed as well. ASHA cannot, as it depends on
which trial is faster. All searches see the same scores, those of the table's one seed, so repeats differ by the seeds
of the samplers alone; regret is the best score of the table minus that of the incumbent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.search_curves import Evaluation, SearchRun
from sweeps.grid import Grid
from sweeps.journal import NoJournal
from sweeps.rounds import History, compute_score
from sweeps.search import Search
from sweeps.space import make_distributions
from sweeps.sweep import ReadResult
from trainables.class_counts import count_images
from trainables.errors import BadInputError
from trainables.result import Result
from trainables.trial import OPTIMIZERS, Trial

TABLE_SEED = 0
PARAMETERS = ("architecture", "learning_rate", "batch_size", "activation", "pooling", "optimizer")


@dataclass(frozen=True)
class Table:
    """The scores of trained trials.

    Attributes:
        dataset: Name of the data set.
        epochs: Epochs of every trial.
        scores: Id of a trial → its score in % after every epoch.
        settings: Id of a trial → its settings of the search's parameters, those that do not apply as None.
    """

    dataset: str
    epochs: int
    scores: Mapping[str, Sequence[float]]
    settings: Mapping[str, Mapping[str, Any]]

    @property
    def best(self) -> float:
        """The best score in % at full length."""
        return max(scores[-1] for scores in self.scores.values())

    def read(self, trial: Trial) -> Result:
        """Return a result that has the scores of a trial, whatever its seed, as its records."""
        scores = self.scores[replace(trial, seed=TABLE_SEED, epochs=self.epochs).id][: trial.epochs]
        steps = count_steps(replace(trial, epochs=1)) * np.arange(1, trial.epochs + 1)
        return Result(steps, {"val_accuracy": np.array(scores)}, 0.0, np.zeros((1, 1)))

    def save(self, path: Path) -> None:
        """Write the table to a JSON file."""
        trials = [{"settings": self.settings[name], "scores": scores} for name, scores in self.scores.items()]
        path.write_text(json.dumps({"dataset": self.dataset, "epochs": self.epochs, "trials": trials}, indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> Table:
        """Read a file that `save` wrote.

        Raises:
            BadInputError: It is no such file.
        """
        try:
            content = json.loads(path.read_text())
            settings = {"dataset": content["dataset"], "epochs": content["epochs"], "seed": TABLE_SEED}
            made = [(Trial(**row["settings"], **settings), row) for row in content["trials"]]
            scores = {trial.id: row["scores"] for trial, row in made}
            return Table(content["dataset"], content["epochs"], scores, {t.id: row["settings"] for t, row in made})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInputError(f"--table {path} is no table of trained trials ({error}); name another file") from None


def make_grids(dataset: str, epochs: int, rates: Sequence[float], batch_sizes: Sequence[int]) -> list[Grid]:
    """Return the sweeps that train a table: one for each optimizer."""
    return [
        Grid(
            dataset=dataset,
            epochs=epochs,
            seeds=TABLE_SEED + 1,
            architectures=("mlp_2", "cnn_3"),
            learning_rates=tuple(rates),
            batch_sizes=tuple(batch_sizes),
            optimizer=optimizer,
        )
        for optimizer in OPTIMIZERS
    ]


def make_table(grids: Sequence[Grid], read: ReadResult) -> Table:
    """Return the table of finished sweeps.

    Raises:
        BadInputError: A trial is not finished.
    """
    scores, settings = {}, {}
    for trial in (trial for grid in grids for trial in grid.sweep().trials()):
        result = read(trial)
        if result is None:
            raise BadInputError("the table's trials are not all finished; run the benchmark again")
        if result.steps[0] > count_steps(replace(trial, epochs=1)):
            raise BadInputError(f"an epoch in batches of {trial.batch_size} has no record; give smaller batches")
        lengths = [replace(trial, epochs=epochs) for epochs in range(1, trial.epochs + 1)]
        scores[trial.id] = [compute_score(length, cut(result, length)) for length in lengths]
        settings[trial.id] = {name: getattr(trial, name) for name in PARAMETERS}
    return Table(grids[0].dataset, grids[0].epochs, scores, settings)


def count_steps(trial: Trial) -> int:
    """Return the steps of a trial."""
    return trial.epochs * trial.steps_per_epoch(sum(count_images(trial.dataset, trial.pipeline, trial.task, "train")))


def cut(result: Result, trial: Trial) -> Result:
    """Return the part of a result that a shorter trial would have had."""
    until = result.steps <= count_steps(trial)
    return replace(result, steps=result.steps[until], curves={name: c[until] for name, c in result.curves.items()})


def make_table_search(table: Table, budget: int) -> Search:
    """Return a search in the values that a table has."""
    values = {name: sorted({row[name] for row in table.settings.values()} - {None}) for name in PARAMETERS}
    return Search(
        dataset=table.dataset,
        epochs=table.epochs,
        budget=str(budget),
        architectures=tuple(values["architecture"]),
        learning_rates=tuple(f"{rate:g}" for rate in values["learning_rate"]),
        batch_sizes=tuple(map(str, values["batch_size"])),
        activations=tuple(values["activation"]),
        poolings=tuple(values["pooling"]),
        optimizers=tuple(values["optimizer"]),
    )


def list_evaluations(history: History, ends: Mapping[str, float] | None = None) -> list[Evaluation]:
    """Return the trials of full length of a finished search, in the order of its rungs.

    Args:
        history: The search.
        ends: Id of a trial → seconds after which it had ended; None where that means nothing.
    """
    found, used, size = [], 0, history.rungs[0].trials
    for first in range(0, len(history.suggestions), size):
        asked = [s for s in history.suggestions[first : first + size] if not s.repeats]
        before = 0
        for rung in history.rungs:
            for suggestion in (s for s in asked if rung.epochs in s.scores):
                used += rung.epochs - before
                if rung is history.rungs[-1]:
                    seconds = None if ends is None else ends[suggestion.trial.id]
                    found.append(Evaluation(used, seconds, suggestion.scores[rung.epochs], suggestion.params))
            before = rung.epochs
    return found


def replay_search(table: Table, search: Search, method: str) -> SearchRun:
    """Run one of our searches on a table."""
    [history] = search.make_histories()
    for _ in history.run(table.read, NoJournal(), search.allows_round):
        pass
    return SearchRun(method, search.seed, list_evaluations(history))


def replay_optuna(table: Table, search: Search, method: str) -> SearchRun:
    """Run plain Optuna on a table: its TPE sampler with defaults, one trial after the other."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=search.seed))
    distributions, found = make_distributions(search.make_space()), []
    for number in range(1, int(search.budget) // table.epochs + 1):
        suggested = study.ask(distributions)
        trial = Trial(**search.make_settings(suggested.params, table.epochs, TABLE_SEED))
        score = table.scores[trial.id][-1]
        study.tell(suggested, score)
        found.append(Evaluation(number * table.epochs, None, score, suggested.params))
    return SearchRun(method, search.seed, found)


def replay_grid(table: Table, budget: int, seed: int, method: str) -> SearchRun:
    """Take the trials of a table in an order that the seed decides, as far as the budget goes."""
    order = np.random.default_rng(seed).permutation([*table.scores])[: budget // table.epochs]
    found = [
        Evaluation(number * table.epochs, None, table.scores[str(name)][-1], table.settings[str(name)])
        for number, name in enumerate(order, start=1)
    ]
    return SearchRun(method, seed, found)

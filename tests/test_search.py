"""Searches: the same scores give the same suggestions, and nothing is chosen by test images before the confirmation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.confirmation import USUAL, choose_candidates, choose_winner, compute_optimism, read_confirmed
from sweeps.experiment import StagesEndedEarly
from sweeps.journal import format_entry, parse_entry
from sweeps.rounds import WORST, History, Rung, compute_score, count_epochs, make_rungs
from sweeps.search import Search
from sweeps.space import Range
from sweeps.sweep import Sweep
from trainables.errors import BadInputError
from trainables.result import Result
from trainables.trial import Trial

STEPS_PER_EPOCH = {size: math.ceil(1297 / size) for size in range(1, 1298)}  # of digits
SMALL = Search(
    dataset="digits",
    architectures=("mlp_2", "cnn_3"),
    learning_rates=("0.0005:0.05",),
    batch_sizes=("20:80",),
    epochs=3,
    budget="60",
    confirm_best=2,
    confirm_seeds=3,
)


class MemoryJournal:
    """A journal in memory, which refuses to write a file again."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}

    def read(self, name: str) -> str | None:
        return self.files.get(name)

    def add(self, name: str, text: str) -> None:
        assert name not in self.files
        self.files[name] = text

    @property
    def rounds(self) -> dict[str, str]:
        return {name: text for name, text in self.files.items() if "seconds" not in name}


def make_result(trial: Trial, accuracy: float, test_accuracy: float = 50.0) -> Result:
    """Return the result of a trial with this validation accuracy at every record of its last epoch."""
    per_epoch = STEPS_PER_EPOCH[trial.batch_size]
    steps = np.arange(10, trial.epochs * per_epoch + 1, 10)
    curve = np.where(steps > (trial.epochs - 1) * per_epoch, accuracy, 0).astype(np.float32)
    curve[-1] = accuracy
    return Result(steps, {"val_accuracy": curve}, test_accuracy, np.zeros((1, 1), np.float32))


def read_by_formula(trial: Trial) -> Result:
    """Return a result whose accuracy follows from the settings, with some noise from the trial's id."""
    distance = abs(math.log10(trial.learning_rate) + 2) + abs(math.log2(trial.batch_size / 40))
    noise = int(trial.id[:4], 16) / 65536
    accuracy = 90 - 10 * distance + 2 * (trial.architecture == "cnn_3") + noise + trial.epochs
    return make_result(trial, accuracy)


def run(search: Search, journal: MemoryJournal, read: Callable[[Trial], Result] = read_by_formula) -> list[Sweep]:
    """Return all stages of a search."""
    return list(search.stages(read, journal))


def make_histories(search: Search, journal: MemoryJournal | None = None) -> list[History]:
    """Return the histories of a search that has run to its end."""
    histories = search.make_histories()
    list(search.run_searches(histories, read_by_formula, journal or MemoryJournal()))
    return histories


@pytest.mark.parametrize(("sampler", "rounds"), [("tpe", 5), ("gp", 3), ("random", 5)])
def test_the_same_scores_give_the_same_suggestions(sampler: str, rounds: int) -> None:
    search = replace(SMALL, sampler=sampler, budget=str(12 * rounds))
    first, second = MemoryJournal(), MemoryJournal()
    stages = run(search, first)
    run(search, second)
    assert first.rounds == second.rounds
    assert len(first.rounds) == rounds
    assert [len(stage.trials()) for stage in stages[:-1]] == [4] * rounds


@pytest.mark.parametrize("halving", [None, 2])
def test_a_search_that_dies_after_any_stage_goes_on_as_if_it_had_not(halving: int | None) -> None:
    search = replace(SMALL, halving=halving)
    undisturbed = MemoryJournal()
    stages = run(search, undisturbed)
    for died_after in range(len(stages)):
        journal = MemoryJournal()
        list(islice(search.stages(read_by_formula, journal), died_after))
        again = run(search, journal)
        assert journal.rounds == undisturbed.rounds
        assert [stage.trials() for stage in again] == [stage.trials() for stage in stages]


def test_a_search_learns_from_its_scores() -> None:
    scores = [s.score for s in make_histories(replace(SMALL, budget="180"))[0].suggestions]
    assert np.mean(scores[30:]) > np.mean(scores[:10])


def test_a_larger_budget_continues_the_same_search() -> None:
    short, long = MemoryJournal(), MemoryJournal()
    run(SMALL, short)
    run(replace(SMALL, budget="84"), long)
    assert len(long.rounds) == 7
    assert short.rounds.items() < long.rounds.items()


def test_searches_in_step_suggest_what_each_suggests_alone() -> None:
    together = make_histories(replace(SMALL, searches=3, seed=4))
    alone = [make_histories(replace(SMALL, seed=seed))[0] for seed in (4, 5, 6)]
    assert [[s.params for s in h.suggestions] for h in together] == [[s.params for s in h.suggestions] for h in alone]


def test_the_journal_holds_where_optuna_would_suggest_something_else() -> None:
    journal = MemoryJournal()
    run(SMALL, journal)
    name = next(name for name in journal.files if name.endswith("round-0001.json"))
    entry = parse_entry(journal.files[name], name)
    entry["suggestions"][0]["params"]["learning_rate"] = 0.0123
    journal.files[name] = format_entry(entry)
    assert make_histories(SMALL, journal)[0].suggestions[4].params["learning_rate"] == 0.0123


@pytest.mark.parametrize("damage", ["", "{}", "[]", "null", '{"digest": "0"}'])
def test_a_damaged_journal_is_named(damage: str) -> None:
    journal = MemoryJournal()
    run(SMALL, journal)
    name = next(name for name in journal.files if name.endswith("round-0001.json"))
    journal.files[name] = damage
    with pytest.raises(BadInputError, match=r"round-0001\.json"):
        run(SMALL, journal)


def test_test_accuracies_change_no_suggestion_and_no_candidate() -> None:
    journals = MemoryJournal(), MemoryJournal()
    generator = np.random.default_rng(0)
    confirmations = [
        run(SMALL, journals[0])[-1],
        run(SMALL, journals[1], lambda t: replace(read_by_formula(t), test_accuracy=generator.uniform(0, 100)))[-1],
    ]
    assert journals[0].rounds == journals[1].rounds
    assert confirmations[0].axes == confirmations[1].axes


def test_rounds_show_no_test_accuracy_and_the_confirmation_does() -> None:
    stages = run(SMALL, MemoryJournal())
    assert [stage.shows_test for stage in stages] == [False] * 5 + [True]
    assert not any(stage.stacks_convolutions for stage in stages)


def test_a_search_that_suggests_nothing_new_ends_in_words() -> None:
    search = replace(
        SMALL,
        architectures=("mlp_2",),
        learning_rates=("0.01", "0.001"),
        batch_sizes=("50",),
        activations=("relu",),
        optimizers=("adam",),
    )
    journal = MemoryJournal()
    stages = run(search, journal)
    assert len({trial.learning_rate for stage in stages[:-1] for trial in stage.trials()}) <= 2
    [conclude] = [stage.conclude for stage in stages if stage.conclude]
    assert "suggests nothing new" in conclude(read_by_formula)[0]
    assert make_histories(search)[0].epochs <= 2 * 3  # a trial that is suggested again costs nothing


def test_what_diverged_or_is_stuck_scores_worst_and_is_not_confirmed() -> None:
    trial = Trial(dataset="digits", architecture="mlp_2", learning_rate=0.01, epochs=3, seed=0)
    assert compute_score(trial, make_result(trial, 90.0)) == 90.0
    assert compute_score(trial, make_result(trial, 10.0)) == WORST
    assert compute_score(trial, replace(make_result(trial, 90.0), test_accuracy=math.nan)) == WORST
    with pytest.raises(StagesEndedEarly, match="nothing to confirm"):
        run(SMALL, MemoryJournal(), lambda t: make_result(t, 10.0))


def test_a_score_is_the_mean_of_the_last_epoch_or_else_the_last_record() -> None:
    trial = Trial(dataset="digits", architecture="mlp_2", learning_rate=0.01, epochs=2, seed=0)  # 26 steps an epoch
    curve = np.array([20, 40, 60, 80, 90], np.float32)
    result = Result(np.arange(10, 51, 10), {"val_accuracy": curve}, 50.0, np.zeros((1, 1)))
    assert compute_score(trial, result) == pytest.approx((60 + 80 + 90) / 3)
    large = replace(trial, batch_size=200, epochs=3)  # 7 steps an epoch, so none of its records is in the last
    assert compute_score(large, replace(result, steps=np.array([10]), curves={"val_accuracy": curve[-1:]})) == 90


def test_halving_trains_what_arithmetic_says() -> None:
    assert make_rungs(9, 9, 3) == [Rung(1, 9), Rung(3, 3), Rung(9, 1)]
    assert make_rungs(15, 9, 3) == [Rung(2, 9), Rung(5, 3), Rung(15, 1)]
    assert make_rungs(15, 4, 3) == [Rung(5, 4), Rung(15, 1)]
    assert make_rungs(1, 9, 3) == [Rung(1, 9)]
    assert make_rungs(15, 4, None) == [Rung(15, 4)]
    assert count_epochs(make_rungs(9, 9, 3)) == 9 * 1 + 3 * 2 + 1 * 6
    [history] = make_histories(replace(SMALL, epochs=9, round_size=9, halving=3, budget="42"))
    assert history.epochs == 42
    lengths = [max(suggestion.scores) for suggestion in history.suggestions]
    assert [lengths.count(epochs) for epochs in (1, 3, 9)] == [12, 4, 2]


def test_halving_keeps_the_best_of_each_rung() -> None:
    [history] = make_histories(replace(SMALL, epochs=9, round_size=9, halving=3, budget="21"))
    by_first = sorted(history.suggestions, key=lambda s: -s.scores[1])
    assert {s.number for s in by_first[:3]} == {s.number for s in history.suggestions if len(s.scores) > 1}


def test_the_confirmation_uses_seeds_of_its_own_and_the_usual_settings_once() -> None:
    stages = run(replace(SMALL, searches=2), MemoryJournal())
    used = {trial.seed for stage in stages[:-1] for trial in stage.trials()}
    fresh = {trial.seed for trial in stages[-1].trials()}
    assert (used, fresh) == ({0, 1}, {1000, 1001, 1002})
    fixed = replace(
        SMALL, architectures=("cnn_3",), learning_rates=("0.01",), batch_sizes=("50",), optimizers=("adam",)
    )
    candidates = choose_candidates(make_histories(replace(fixed, activations=("relu",))), 3)
    assert [candidate.is_usual for candidate in candidates].count(True) == 1
    assert all(getattr(c.trial, name) == value for c in candidates if c.is_usual for name, value in USUAL.items())


def test_validation_images_choose_the_winner_and_the_optimism_is_of_the_best_score() -> None:
    candidates = choose_candidates(make_histories(SMALL), 2)
    by_id = {candidate.trial.id: place for place, candidate in enumerate(candidates)}

    def read(trial: Trial) -> Result:
        place = by_id[replace(trial, seed=1000).id]
        return make_result(trial, [70.0, 80.0, 60.0][place], [90.0, 50.0, 99.0][place])

    confirmed = read_confirmed(candidates, range(1000, 1003), read)
    assert choose_winner(confirmed).candidate is candidates[1]
    assert compute_optimism(confirmed) == pytest.approx((candidates[0].score or 0) - 70)


def test_numbers_of_a_range_have_three_digits_and_stay_in_it() -> None:
    @given(st.floats(1e-6, 1e6), st.booleans())
    @settings(max_examples=200)
    def check(value: float, whole: bool) -> None:
        domain = Range(20, 200, whole)
        fitted = domain.fit(value)
        assert 20 <= fitted <= 200
        assert float(f"{fitted:.3g}") == fitted
        assert not whole or isinstance(fitted, int)

    check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": "5"}, "one round trains 12"),
        ({"budget": "x"}, "--budget is x"),
        ({"budget": "0min"}, "--budget is 0min"),
        ({"budget": "-5"}, "--budget is -5"),
        ({"learning_rates": ("0.1:0.01",)}, "must be below"),
        ({"learning_rates": ("0.12345",)}, "significant digits"),
        ({"learning_rates": ("a:b",)}, "--learning-rates has a"),
        ({"learning_rates": ("0:0.1",)}, "--learning-rates has 0"),
        ({"learning_rates": ("nan",)}, "--learning-rates has nan"),
        ({"learning_rates": ("0.1:",)}, "--learning-rates has "),
        ({"learning_rates": ()}, "no value for learning rate"),
        ({"batch_sizes": ("10:20", "30")}, "one range"),
        ({"batch_sizes": ("12.5",)}, "whole number"),
        ({"batch_sizes": ("20:1000",), "epochs": 1}, "the first record"),
        ({"halving": 9}, "--halving is 9"),
        ({"halving": 1}, "--halving is 1"),
        ({"halving": 2, "sampler": "gp"}, "--sampler gp"),
        ({"seed": 995, "searches": 9}, "0 to 999"),
        ({"seed": -1}, "0 to 999"),
        ({"architectures": ("foo",)}, "foo"),
        ({"architectures": ()}, "no value for architecture"),
        ({"activations": ("relu", "relu")}, "twice"),
        ({"round_size": 0}, "--round-size is 0"),
        ({"confirm_seeds": 0}, "--confirm-seeds is 0"),
        ({"dataset": "foo"}, "foo"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(options: dict[str, object], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        replace(SMALL, **options).first_stage()  # type: ignore[arg-type]


def test_the_journal_is_json_that_names_each_trial() -> None:
    journal = MemoryJournal()
    stages = run(SMALL, journal)
    entry = json.loads(next(iter(journal.files.values())))
    assert [s["trial_id"] for s in entry["suggestions"]] == [trial.id for trial in stages[0].trials()]

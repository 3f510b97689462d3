from __future__ import annotations

from typing import Any

import pytest
from conftest import make_trial
from hypothesis import given
from hypothesis import strategies as st

from sweeps.driver.packing import (
    MAX_STACKED_TRIALS,
    ImageCounts,
    estimate_seconds,
    make_packs,
    parse_pack_size,
    remove_stack_differences,
)
from sweeps.xor import Xor
from trainables.errors import BadInputError
from trainables.trial import Trial
from trainables.worker.pack import Pack

FASHION = ImageCounts((1, 28, 28), 54_000, 6_000, 10_000)
TINY = ImageCounts((1, 32, 32), 1_300, 140, 360)


def pack(trials: list[Trial], images: ImageCounts | None = FASHION, **changes: Any) -> list[list[Trial]]:
    settings = {"stacked": ["mlp_1"], "gpus": {trial.id: 0.0 for trial in trials}, "at_once": 2, "most": None}
    names = {trial.id: f"name of {trial.id}" for trial in trials}
    found = make_packs(trials, names, images=images, **{**settings, **changes})
    assert all(some.names == tuple(names[trial.id] for trial in some.trials) for some in found)
    assert all(Pack.from_json(some.to_json()) == some for some in found)
    return [list(some.trials) for some in found]


def trials_of(architectures: tuple[str, ...], seeds: int, **changes: Any) -> list[Trial]:
    changes = {"dataset": "fashion_mnist", "batch_size": 50, "epochs": 15, **changes}
    return [make_trial(seed=seed, architecture=name, **changes) for seed in range(seeds) for name in architectures]


def sizes(found: list[list[Trial]]) -> list[int]:
    return [len(some) for some in found]


def test_what_stacks_is_spread_over_all_processes() -> None:
    found = pack(trials_of(("mlp_1", "cnn_3"), 10))
    assert sizes(found) == [5, *[1] * 5, 5, *[1] * 5]
    assert {trial.architecture for trial in found[0]} == {"mlp_1"}
    assert sizes(pack(trials_of(("mlp_1",), 10), at_once=100)) == [1] * 10
    assert sizes(pack(trials_of(("mlp_1",), 100), at_once=1)) == [14, 14, 14, 15, 14, 14, 15]


def test_rates_stack_and_other_settings_do_not() -> None:
    rates = [make_trial(learning_rate=rate) for rate in (0.1, 0.01)]
    assert sizes(pack(rates, at_once=1)) == [2]
    assert sizes(pack([make_trial(batch_size=size) for size in (10, 20)], at_once=1)) == [1, 1]
    assert sizes(pack(rates, at_once=1, gpus={rates[0].id: 0.5, rates[1].id: 1.0})) == [1, 1]


def test_short_trials_share_a_process_and_long_ones_do_not() -> None:
    short = trials_of(("cnn_3",), 100, dataset="digits", epochs=1)
    assert max(sizes(pack(short, TINY))) > 5
    assert sizes(pack(trials_of(("cnn_3",), 100))) == [1] * 100
    assert sizes(pack(short[:4], TINY)) == [1] * 4  # more would leave processes idle
    assert max(sizes(pack(list(Xor(seeds=30).sweep().trials()), None))) > 5


def test_nothing_is_packed_if_so_asked() -> None:
    assert sizes(pack(trials_of(("mlp_1",), 10), most=1)) == [1] * 10
    assert sizes(pack(trials_of(("mlp_1",), 10), at_once=1, most=3)) == [2, 3, 2, 3]


@given(
    seeds=st.integers(1, 60),
    architectures=st.lists(st.sampled_from(["mlp_1", "mlp_2", "cnn_3"]), min_size=1, unique=True),
    at_once=st.integers(1, 50),
    most=st.none() | st.integers(1, 40),
)
def test_every_trial_is_in_one_pack(seeds: int, architectures: list[str], at_once: int, most: int | None) -> None:
    trials = trials_of(tuple(architectures), seeds)
    found = pack(trials, TINY, at_once=at_once, most=most)
    assert sorted(trial.id for some in found for trial in some) == sorted(trial.id for trial in trials)
    for some in found:
        assert 1 <= len(some) <= (most or len(trials))
        if some[0].architecture == "mlp_1":
            assert len(some) <= (most or MAX_STACKED_TRIALS)
            assert len({remove_stack_differences(trial) for trial in some}) == 1


def test_a_trial_is_longer_with_more_to_do() -> None:
    [trial] = trials_of(("cnn_3",), 1)
    [more] = trials_of(("cnn_3",), 1, quantities=("val_accuracy", "train_set_accuracy"))
    assert estimate_seconds(trial, TINY) < estimate_seconds(trial, FASHION) < estimate_seconds(more, FASHION)
    assert estimate_seconds(trial, FASHION) == pytest.approx(
        15 * estimate_seconds(trials_of(("cnn_3",), 1, epochs=1)[0], FASHION), rel=0.01
    )


def test_what_pack_asks_for() -> None:
    assert [parse_pack_size(word) for word in ("auto", "1", "16")] == [None, 1, 16]
    for word in ("0", "-1", "1.5", "many", ""):
        with pytest.raises(BadInputError, match="must be auto, or a whole number of trials from 1 on"):
            parse_pack_size(word)

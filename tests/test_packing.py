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
    find_single_architectures,
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
    settings = {
        "stacked": {"mlp_1": MAX_STACKED_TRIALS},
        "gpus": {trial.id: 0.0 for trial in trials},
        "at_once": 2,
        "most": None,
    }
    names = {trial.id: f"name of {trial.id}" for trial in trials}
    packs = make_packs(trials, names, images=images, **{**settings, **changes})
    assert all(part.names == tuple(names[trial.id] for trial in part.trials) for part in packs)
    assert all(Pack.from_json(part.to_json()) == part for part in packs)
    return [list(part.trials) for part in packs]


def make_trials(architectures: tuple[str, ...], seeds: int, **changes: Any) -> list[Trial]:
    changes = {"dataset": "fashion_mnist", "batch_size": 50, "epochs": 15, **changes}
    return [make_trial(seed=seed, architecture=name, **changes) for seed in range(seeds) for name in architectures]


def list_sizes(packs: list[list[Trial]]) -> list[int]:
    return [len(part) for part in packs]


def test_trials_that_stack_are_spread_over_all_processes() -> None:
    packs = pack(make_trials(("mlp_1", "cnn_3"), 10))
    assert list_sizes(packs) == [5, *[1] * 5, 5, *[1] * 5]
    assert {trial.architecture for trial in packs[0]} == {"mlp_1"}
    assert list_sizes(pack(make_trials(("mlp_1",), 10), at_once=100)) == [1] * 10
    assert list_sizes(pack(make_trials(("mlp_1",), 100), at_once=1)) == [14, 14, 14, 15, 14, 14, 15]


def test_a_gpu_gets_one_stack_of_as_many_trials_as_pay() -> None:
    """A GPU would run several stacks in turn, so that trials are not spread over the processes that share it."""

    def sizes(trials: list[Trial], **changes: Any) -> list[int]:
        settings = {
            "gpus": {trial.id: 0.25 for trial in trials},
            "at_once": 4,
            "gpu_count": 1,
            "stacked": {"mlp_1": 256},
        }
        return list_sizes(pack(trials, **{**settings, **changes}))

    trials = make_trials(("mlp_1",), 64)
    assert sizes(trials) == [64]
    assert sizes(trials, at_once=8, gpu_count=2) == [32, 32]
    assert sizes(trials, at_once=1, gpu_count=2) == [64]
    assert sizes(trials, stacked={"mlp_1": 16}) == [16, 16, 16, 16]
    assert sizes(trials, most=32) == [32, 32]
    assert sizes(trials, gpus={trial.id: 0.0 for trial in trials}) == [16, 16, 16, 16]


def test_learning_rates_may_differ_within_a_pack_and_batch_sizes_may_not() -> None:
    rates = [make_trial(learning_rate=rate) for rate in (0.1, 0.01)]
    assert list_sizes(pack(rates, at_once=1)) == [2]
    assert list_sizes(pack([make_trial(batch_size=size) for size in (10, 20)], at_once=1)) == [1, 1]
    assert list_sizes(pack(rates, at_once=1, gpus={rates[0].id: 0.5, rates[1].id: 1.0})) == [1, 1]


def test_short_trials_share_a_process_and_long_ones_do_not() -> None:
    short = make_trials(("cnn_3",), 100, dataset="digits", epochs=1)
    assert max(list_sizes(pack(short, TINY))) > 5
    assert list_sizes(pack(make_trials(("cnn_3",), 100))) == [1] * 100
    assert list_sizes(pack(short[:4], TINY)) == [1] * 4  # larger packs would leave processes idle
    assert max(list_sizes(pack(list(Xor(seeds=30).sweep().trials()), None))) > 5


def test_the_largest_pack_can_be_set() -> None:
    assert list_sizes(pack(make_trials(("mlp_1",), 10), most=1)) == [1] * 10
    assert list_sizes(pack(make_trials(("mlp_1",), 10), at_once=1, most=3)) == [2, 3, 2, 3]


@given(
    seeds=st.integers(1, 60),
    architectures=st.lists(st.sampled_from(["mlp_1", "mlp_2", "cnn_3"]), min_size=1, unique=True),
    at_once=st.integers(1, 50),
    most=st.none() | st.integers(1, 40),
)
def test_every_trial_is_in_one_pack(seeds: int, architectures: list[str], at_once: int, most: int | None) -> None:
    trials = make_trials(tuple(architectures), seeds)
    packs = pack(trials, TINY, at_once=at_once, most=most)
    assert sorted(trial.id for part in packs for trial in part) == sorted(trial.id for trial in trials)
    for part in packs:
        assert 1 <= len(part) <= (most or len(trials))
        if part[0].architecture == "mlp_1":
            assert len(part) <= (most or MAX_STACKED_TRIALS)
            assert len({remove_stack_differences(trial) for trial in part}) == 1


def test_estimated_seconds_grow_with_the_work_of_a_trial() -> None:
    [trial] = make_trials(("cnn_3",), 1)
    [more] = make_trials(("cnn_3",), 1, quantities=("val_accuracy", "train_set_accuracy"))
    assert estimate_seconds(trial, TINY) < estimate_seconds(trial, FASHION) < estimate_seconds(more, FASHION)
    assert estimate_seconds(trial, FASHION) == pytest.approx(
        15 * estimate_seconds(make_trials(("cnn_3",), 1, epochs=1)[0], FASHION), rel=0.01
    )


def test_the_pack_size_is_auto_or_a_positive_whole_number() -> None:
    assert [parse_pack_size(word) for word in ("auto", "1", "16")] == [None, 1, 16]
    for word in ("0", "-1", "1.5", "many", ""):
        with pytest.raises(BadInputError, match="must be auto, or a whole number of trials from 1 on"):
            parse_pack_size(word)


def test_an_architecture_is_single_where_no_two_trials_could_train_side_by_side() -> None:
    rates = [make_trial(architecture="mlp_2", learning_rate=rate) for rate in (0.1, 0.01)]
    sizes = [make_trial(architecture="cnn_3", batch_size=size) for size in (10, 20)]
    assert find_single_architectures([*rates, *sizes, make_trial()]) == {"cnn_3", "mlp_1"}

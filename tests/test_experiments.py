"""The trials of every sweep, as data; the end-to-end tests train them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sweeps.experiment import StagesEndedEarly, SweepOptions
from sweeps.grid import Grid
from sweeps.mnist import Mnist
from sweeps.part3 import Part3
from sweeps.part4 import Part4
from sweeps.part5 import LEARNING_RATES, Part5, find_plateau
from sweeps.pooling import Pooling
from sweeps.xor import Xor
from trainables.errors import BadInputError
from trainables.result import Result
from trainables.trial import Trial


@pytest.mark.parametrize(
    ("options", "trials"),
    [
        (Part3(), 5 * 10),
        (Part4(), 5 * 2),
        (Part5(), 3),
        (Xor(), 4 * 21),
        (Mnist(), 5),
        (Pooling(), 9),
        (Grid(), 5 * 3),
    ],
)
def test_each_sweep_has_its_number_of_trials_with_distinct_labels(options: SweepOptions, trials: int) -> None:
    assert len(options.sweep().trials()) == trials
    assert len(set(options.sweep().labels().values())) == trials


@pytest.mark.parametrize("options", [Part3, Part4, Part5, Xor, Mnist, Pooling, Grid])
def test_quick_versions_use_bundled_data(options: type[SweepOptions]) -> None:
    trials = options(**options.quick_defaults, quick=True).sweep().trials()
    assert {trial.dataset for trial in trials} <= {"digits", "xor"}


def test_a_grid_trains_a_network_without_pooling_once() -> None:
    grid = Grid(
        dataset="digits",
        architectures=("cnn_3", "mlp_2"),
        activations=("relu", "sigmoid"),
        learning_rates=(0.1, 0.01),
        batch_sizes=(10, 50),
        poolings=("max", "avg"),
        seeds=2,
        epochs=1,
    )
    trials = grid.sweep().trials()
    assert sum(trial.architecture == "cnn_3" for trial in trials) == 2 * 2 * 2 * 2 * 2
    assert sum(trial.architecture == "mlp_2" for trial in trials) == 2 * 2 * 2 * 2


def test_part_3_and_a_grid_share_their_trials() -> None:
    part3 = set(Part3(dataset="digits", seeds=2, epochs=5).sweep().trials())
    grid = set(Grid(dataset="digits", seeds=2, epochs=5, learning_rates=(0.01, 0.1)).sweep().trials())
    assert part3 < grid


# The plateau rule


def test_a_rising_curve_has_no_plateau() -> None:
    assert find_plateau(np.arange(100.0), window=3, patience=10, tolerance=0.5) is None


def test_a_flat_curve_is_a_plateau_from_the_start() -> None:
    assert find_plateau(np.full(100, 80.0), window=3, patience=10, tolerance=0.5) == 3


def test_the_plateau_begins_where_a_rising_curve_levels_off() -> None:
    curve = np.concatenate([np.arange(0, 50.0), np.full(50, 50.0)])
    assert find_plateau(curve, window=1, patience=10, tolerance=0.5) == 51


def test_a_slow_start_is_no_plateau() -> None:
    curve = np.concatenate([np.full(100, 10.0), np.arange(10.0, 60.0), np.full(50, 60.0)])
    assert find_plateau(curve, window=1, patience=20, tolerance=0.5) == 151


@pytest.mark.parametrize("seed", range(5))
def test_noise_moves_the_plateau_little(seed: int) -> None:
    rising = 90 * (1 - np.exp(-np.arange(600) / 60))  # from about record 310 on within half a point of its end
    noisy = rising + np.random.default_rng(seed).normal(0, 0.5, 600)
    found = find_plateau(noisy, window=20, patience=80, tolerance=0.5)
    assert found is not None
    assert 300 - 80 < found < 330 + 80


def test_a_plateau_must_last_for_the_patience() -> None:
    curve = np.concatenate([np.arange(0, 50.0), np.full(5, 49.0)])
    assert find_plateau(curve, window=1, patience=10, tolerance=0.5) is None
    assert find_plateau(curve[:3], window=5, patience=10, tolerance=0.5) is None


# The stages of part 5


def make_reader(curve: Callable[[np.ndarray], np.ndarray]) -> Callable[[Trial], Result]:
    """Return a reader that gives every trial the same validation curve, with 100 steps and 10 records an epoch."""

    def read(trial: Trial) -> Result:
        steps = np.arange(10, 100 * trial.epochs + 1, 10)
        values = curve(steps).astype(np.float32)
        return Result(steps, {"train_loss": values, "val_accuracy": values}, 50.0, np.zeros((1, 1), np.float32))

    return read


def list_milestones(options: Part5, read: Callable[[Trial], Result | None]) -> list[tuple[tuple[int, float], ...]]:
    return [sweep.trials()[0].milestones for sweep in options.stages(read)]


def test_plateaus_become_milestones() -> None:
    def curve(steps: np.ndarray) -> np.ndarray:
        return np.minimum(steps, 500)

    first, second, third = list_milestones(Part5(seeds=2), make_reader(curve))
    assert first == ()
    assert second == ((540, 0.01),)  # the trailing mean of 5 records is flat once all of them are
    # The second search begins after the first switch, and its trailing mean needs 5 records as well.
    assert third == ((540, 0.01), (590, 0.001))


def test_given_milestones_need_no_plateau() -> None:
    options = Part5(milestones=(9900, 15300))
    assert list_milestones(options, make_reader(lambda steps: steps)) == [
        (),
        ((9900, 0.01),),
        ((9900, 0.01), (15300, 0.001)),
    ]
    assert [sweep.trials()[0].epochs for sweep in options.stages(lambda trial: None)] == [20, 30, 30]
    assert {trial.learning_rate for trial in options.sweep().trials()} == set(LEARNING_RATES)


def test_without_a_plateau_the_stages_end_with_advice() -> None:
    stages = Part5().stages(make_reader(lambda steps: steps))
    next(stages)
    with pytest.raises(StagesEndedEarly, match="give steps with --milestones"):
        next(stages)


def make_diverging_reader(rate: float, switches: int) -> Callable[[Trial], Result]:
    """Return a reader of curves with plateaus, in which seed 1 diverges at one rate after a number of switches."""

    def read(trial: Trial) -> Result:
        result = make_reader(lambda steps: np.minimum(steps, 500))(trial)
        if (trial.seed, trial.learning_rate, len(trial.milestones)) != (1, rate, switches):
            return result
        curves = {name: curve[:7] for name, curve in result.curves.items()}
        return Result(result.steps[:7], curves, float("nan"), result.first_layer)

    return read


@pytest.mark.parametrize(("switches", "name"), [(0, "rate 0.1 · seed 1"), (1, "0.1 → 0.01 after step 540 · seed 1")])
def test_no_switch_is_chosen_where_a_seed_diverged(switches: int, name: str) -> None:
    stages = Part5(seeds=3).stages(make_diverging_reader(0.1, switches))
    for _ in range(switches + 1):
        next(stages)
    with pytest.raises(StagesEndedEarly) as end:
        next(stages)
    rate = LEARNING_RATES[switches + 1]
    assert str(end.value) == f"No switch to rate {rate}: {name} diverged before it; give steps with --milestones."


def test_a_diverged_seed_does_not_matter_where_milestones_are_given() -> None:
    read = make_diverging_reader(0.1, 0)
    assert len(list_milestones(Part5(seeds=3, milestones=(540, 590)), read)) == 3
    assert len(list_milestones(Part5(seeds=3, milestones=(540,)), read)) == 3  # only the second switch is looked for


def test_divergence_at_another_rate_changes_no_switch() -> None:
    assert list_milestones(Part5(seeds=3), make_diverging_reader(0.01, 0)) == list_milestones(
        Part5(seeds=3), make_diverging_reader(0.5, 0)
    )


def test_the_stages_end_before_one_that_depends_on_unfinished_trials() -> None:
    stages = Part5().stages(lambda trial: None)
    assert next(stages).trials()[0].milestones == ()
    with pytest.raises(StagesEndedEarly, match="the trials before it are not finished"):
        next(stages)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (Part5(architecture="mlp_1"), "choose from mlp_2, cnn_3, cnn_4, cnn_5"),
        (Part5(milestones=(1, 2, 3)), "give one or two"),
        (Part5(milestones=(20, 10)), "must be positive and increasing"),
        (Part5(milestones=(0,)), "must be positive and increasing"),
        (Part5(schedule_epochs=0), "--schedule-epochs is 0"),
    ],
)
def test_bad_options_of_part_5_are_refused(options: Part5, sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence):
        next(options.stages(lambda trial: None))

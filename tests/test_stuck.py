"""The rule by which a trial is stuck, its constants, and what a sweep prints and loads of stuck trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from conftest import make_trial
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.results import list_stuck_seeds, load_results, select_completed, select_finished, select_learnt
from sweeps.driver.plan import Plan
from sweeps.driver.summary import Setting, describe_stuck, group_by_setting, make_result_table, print_results
from sweeps.experiment import SweepOptions
from sweeps.grid import Grid
from sweeps.mnist import Mnist
from sweeps.part3 import Part3
from sweeps.part4 import Part4
from sweeps.part5 import Part5
from sweeps.pooling import Pooling
from sweeps.stuck import BATCHES, LEVEL, TEST, choose_source, count_part, find_most_by_chance, is_stuck, is_stuck_result
from sweeps.sweep import Sweep
from sweeps.xor import Xor
from trainables.class_counts import CLASS_COUNTS, count_images
from trainables.datasets import load_dataset, split_stratified
from trainables.idx_files import read_idx
from trainables.persistence.store import Store
from trainables.persistence.trial_run import RESULT_ARTIFACT
from trainables.result import Result
from trainables.sources import DEBIAN_FASHION_MNIST
from trainables.training import list_record_steps
from trainables.trial import IMAGE_DATASETS, Trial

# How a trial is judged → settings of a trial that is judged so
CASES: dict[str, dict[str, Any]] = {
    "val_accuracy": {"quantities": ("train_accuracy", "val_accuracy")},
    "train_set_accuracy": {"pipeline": "unit", "quantities": ("train_set_accuracy", "test_set_accuracy")},
    BATCHES: {"quantities": ("train_loss", BATCHES)},
    TEST: {"quantities": ("train_loss", "gradient_norm")},
}


# The numbers of images


@pytest.mark.parametrize("pipeline", [None, "unit"])
@pytest.mark.parametrize("task", [None, "even_odd"])
def test_counts_are_those_of_digits(pipeline: str | None, task: str | None, tmp_path: Path) -> None:
    data = load_dataset("digits", tmp_path, pipeline)
    for part, labels in (("train", data.train_labels), ("val", data.val_labels), ("test", data.test_labels)):
        classes = 2 if task else 10
        found = np.bincount(labels % 2 if task else labels, minlength=classes).tolist()
        assert count_images("digits", pipeline, task, part) == found


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_counts_are_those_of_fashion_mnist() -> None:
    train, test = (
        read_idx("fashion_mnist", f"{part}-labels-idx1-ubyte", DEBIAN_FASHION_MNIST) for part in ("train", "t10k")
    )
    kept, held_out = split_stratified(train.astype(np.int64))
    for part, labels in (("train", train[kept]), ("val", train[held_out]), ("test", test)):
        assert count_images("fashion_mnist", None, None, part) == np.bincount(labels).tolist()
    assert count_images("fashion_mnist", "unit", None, "train") == np.bincount(train).tolist()


def test_counts_are_those_that_are_documented() -> None:
    """MNIST has 60,000 and 10,000 images, of which ones are the most; CIFAR-10 has as many of every class."""
    train, test = (count_images("mnist", "unit", None, part) for part in ("train", "test"))
    assert (sum(train), max(train), train.index(max(train))) == (60_000, 6742, 1)
    assert (sum(test), max(test), test.index(max(test))) == (10_000, 1135, 1)
    assert count_images("mnist", "unit", "even_odd", "train") == [29_492, 30_508]
    assert count_images("mnist", "unit", "even_odd", "test") == [4926, 5074]
    assert count_images("cifar10", None, None, "train") == [4500] * 10
    assert count_images("cifar10", None, None, "val") == [500] * 10
    assert count_images("cifar10", "colour", None, "train") == [5000] * 10
    assert count_images("cifar10", "colour", None, "test") == [1000] * 10


def test_every_data_set_has_its_counts() -> None:
    assert set(CLASS_COUNTS) == set(IMAGE_DATASETS)


# The rule


@pytest.mark.parametrize(("source", "settings"), CASES.items())
def test_a_trial_is_judged_by_the_first_accuracy_that_it_records(source: str, settings: dict[str, Any]) -> None:
    trial = make_trial(**settings)
    assert choose_source(trial) == source
    images = {"val_accuracy": 140, "train_set_accuracy": 1437, BATCHES: 1297, TEST: 360}  # of digits
    assert sum(count_part(trial, source)) == images[source]


@pytest.mark.parametrize(
    "options", [Part3(), Part4(), Part5(), Mnist(), Pooling(), Grid()], ids=lambda options: options.experiment
)
def test_no_trial_of_an_experiment_is_judged_by_batches(options: SweepOptions) -> None:
    """Then its run's latest metrics are enough, and no curve is read."""
    expected = {"part4": TEST, "mnist": "train_set_accuracy", "pooling": "train_set_accuracy"}
    sources = {choose_source(trial) for trial in options.sweep().trials()}
    assert sources == {expected.get(options.experiment, "val_accuracy")}


@given(
    images=st.integers(1, 60_000),
    share=st.floats(0.05, 0.6),
    correct=st.floats(0, 1),
)
def test_the_rule_is_a_one_sided_binomial_test(images: int, share: float, correct: float) -> None:
    most = find_most_by_chance(images, share)
    for k in {round(correct * images), most, min(most + 1, images)}:
        p_value = stats.binomtest(k, images, share, alternative="greater").pvalue
        assert (k <= most) == (p_value > LEVEL)


@given(
    dataset=st.sampled_from(IMAGE_DATASETS),
    settings=st.sampled_from([CASES[name] for name in CASES if name != BATCHES]),
    accuracies=st.tuples(st.floats(0, 100), st.floats(0, 100)),
)
def test_a_higher_accuracy_never_makes_a_trial_stuck(
    dataset: str, settings: dict[str, Any], accuracies: tuple[float, float]
) -> None:
    trial = make_trial(dataset=dataset, **settings)
    low, high = (is_stuck(trial, {str(choose_source(trial)): accuracy}) for accuracy in sorted(accuracies))
    assert low or not high


@pytest.mark.parametrize("dataset", IMAGE_DATASETS)
@pytest.mark.parametrize("task", [None, "even_odd"])
@pytest.mark.parametrize("source", [name for name in CASES if name != BATCHES])
def test_a_network_that_always_names_one_class_is_stuck(dataset: str, task: str | None, source: str) -> None:
    trial = make_trial(dataset=dataset, task=task, **CASES[source])
    counts = count_part(trial, source)
    for count in counts:
        assert is_stuck(trial, {source: float(np.float32(100 * count / sum(counts)))})


def make_result(trial: Trial, accuracy: float, last: float | None = None) -> Result:
    """Make a result whose accuracies are 90 % before the last epoch, and a given value in it and on the test images.

    Args:
        trial: The trial.
        accuracy: Value in %.
        last: Value of the last record, if it is another.
    """
    images = sum(count_images(trial.dataset, trial.pipeline, trial.task, "train"))
    steps = list_record_steps(trial, images)
    last_epoch = steps > (trial.epochs - 1) * trial.steps_per_epoch(images)
    curves = {name: np.where(last_epoch, accuracy, 90).astype(np.float32) for name in trial.quantities}
    if last is not None:
        for curve in curves.values():
            curve[-1] = last
    return Result(steps, curves, accuracy, np.zeros((32, 1024), np.float32))


@pytest.mark.parametrize(("source", "settings"), [(name, CASES[name]) for name in CASES if name != BATCHES])
def test_one_image_more_than_by_chance_is_learnt(source: str, settings: dict[str, Any]) -> None:
    trial = make_trial(**settings)
    counts = count_part(trial, source)
    most = find_most_by_chance(sum(counts), max(counts) / sum(counts))
    for correct, stuck in ((most, True), (most + 1, False)):
        accuracy = 100 * correct / sum(counts)
        result = make_result(trial, accuracy) if source == TEST else make_result(trial, 50, last=accuracy)
        assert is_stuck_result(trial, result) is stuck


def test_batches_are_judged_over_the_last_epoch() -> None:
    """130 batches of 10 images, the last of 7, make an epoch; every 10th is recorded, so 127 images are judged."""
    trial = make_trial(**CASES[BATCHES])
    most = find_most_by_chance(127, 132 / 1297)
    result = make_result(trial, 0)
    assert result.steps.tolist() == [*range(10, 261, 10)]
    assert is_stuck_result(trial, result)  # although the records of the epoch before are at 90 %
    for correct, stuck in ((most, True), (most + 1, False)):
        right = np.full(13, correct // 13)
        right[: correct % 13] += 1  # images of each batch
        result.curves[BATCHES][-13:] = 100 * right / np.array([10] * 12 + [7])
        assert is_stuck_result(trial, result) is stuck


def test_a_record_interval_longer_than_an_epoch_leaves_the_last_record() -> None:
    trial = make_trial(**CASES[BATCHES], batch_size=200, epochs=20, record_every_steps=30)  # 7 steps an epoch
    assert is_stuck_result(trial, make_result(trial, 50, last=10))
    assert not is_stuck_result(trial, make_result(trial, 50, last=30))


def test_xor_is_never_stuck() -> None:
    [trial] = Sweep(
        name="xor",
        axes={"seed": (0,)},
        fixed={
            "dataset": "xor",
            "architecture": "xor",
            "noise_sigma": 0,
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "epochs": 3,
            "quantities": ("train_loss",),
        },
    ).trials()
    assert choose_source(trial) is None
    assert not is_stuck(trial, {TEST: 0.0})
    assert {choose_source(trial) for trial in Xor().sweep().trials()} == {None}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_a_trial_that_diverged_is_not_stuck(settings: dict[str, Any]) -> None:
    trial = make_trial(**settings)
    result = make_result(trial, 5)
    assert is_stuck_result(trial, result)
    assert not is_stuck_result(trial, Result(result.steps, result.curves, float("nan"), result.first_layer))


# Stored trials


def make_sweep(**settings: object) -> Sweep:
    """Make a sweep over four seeds with a trial's settings."""
    trial = make_trial(**settings)
    fixed = {name: getattr(trial, name) for name in ("dataset", "learning_rate", "epochs", "batch_size", "quantities")}
    axes = {"seed": range(4), "architecture": ("mlp_1",)}
    return Sweep(name="part3", axes=axes, fixed={**fixed, "pipeline": trial.pipeline})


def record(store: Store, sweep: Sweep, accuracies: Mapping[int, float]) -> None:
    """Write trials into the store, by seed with the accuracy of their last epoch; the trial diverged if it is NaN."""
    parent = store.ensure_parent(sweep.name, "digits")
    for trial in sweep.trials():
        if trial.seed in accuracies:
            result = make_result(trial, accuracies[trial.seed])
            with TemporaryDirectory() as folder:
                result.save(Path(folder) / RESULT_ARTIFACT)
                run = store.open_run(trial, f"seed {trial.seed}", *parent, {}, run_id=None)
                run.finish(result, int(result.steps[-1]), {}, Path(folder))


def read_nothing(trial: Trial) -> Result | None:
    raise AssertionError("no curve is to be read")


@pytest.mark.parametrize(("source", "settings"), CASES.items())
def test_driver_and_analysis_find_the_same_trials(store: Store, source: str, settings: dict[str, Any]) -> None:
    """The runs are as earlier versions stored them, without the test images that are named right."""
    sweep = make_sweep(**settings)
    record(store, sweep, {0: 10, 1: 80, 2: float("nan")})  # seed 3 is missing
    ids = {trial.seed: trial.id for trial in sweep.trials()}
    plan = Plan(sweep, sweep.trials(), store.find_runs())
    assert plan.find_stuck(store.read_trial if source == BATCHES else read_nothing) == {ids[0]}
    results = load_results(sweep, store, fill="", allow_missing=True)
    assert results.data.stuck.values[:, 0].tolist() == [True, False, False, False]
    assert results.data.stuck.dtype == bool
    assert results.stuck == ["mlp_1 · seed 0"]
    runs = select_finished(results.data, architecture="mlp_1")
    assert list_stuck_seeds(runs) == [0]
    assert select_completed(runs).seed.values.tolist() == [0, 1]
    assert select_learnt(runs).seed.values.tolist() == [1]


def test_a_run_without_its_metric_is_not_judged(store: Store) -> None:
    sweep = make_sweep(**CASES["val_accuracy"])
    trial, *_ = sweep.trials()
    run = store.open_run(trial, "x", *store.ensure_parent("part3", "digits"), {}, run_id=None)
    store.end_run(run.run_id, "FINISHED")
    assert Plan(sweep, (trial,), store.find_runs()).find_stuck(read_nothing) == set()


# What a sweep prints


@pytest.fixture
def plan_of(store: Store) -> Callable[[Mapping[int, float]], Plan]:
    """Return a function that stores trials, by seed with their accuracy, and returns the sweep's plan."""

    def make(accuracies: Mapping[int, float]) -> Plan:
        sweep = make_sweep(**CASES["val_accuracy"])
        record(store, sweep, accuracies)
        return Plan(sweep, sweep.trials(), store.find_runs())

    return make


def list_columns(plan: Plan) -> dict[str, str]:
    """Return the cells of the only row of a plan's table by heading."""
    table = make_result_table(group_by_setting(plan, plan.find_stuck(read_nothing)))
    return {str(column.header): str(next(iter(column.cells))) for column in table.columns}


def test_the_table_counts_stuck_trials_and_has_no_impossible_number(
    plan_of: Callable[[Mapping[int, float]], Plan],
) -> None:
    assert list_columns(plan_of({0: 10, 1: 94, 2: 96, 3: float("nan")})) == {
        "trials": "3",
        "diverged": "1",
        "stuck": "1",
        "mean": "66.67",
        "95 % CI": "0.00 – 100.00",
        "learnt": "50 %",
        "mean of\nlearnt": "95.00",
        "best\nrun": "96.00",
    }


def test_the_table_is_short_where_all_have_learnt(plan_of: Callable[[Mapping[int, float]], Plan]) -> None:
    half = float(stats.t.ppf(0.975, 1))  # of the interval: the standard error of 93 and 95 is 1
    columns = {"trials": "2", "mean": "94.00", "95 % CI": f"{94 - half:.2f} – 100.00", "best\nrun": "95.00"}
    assert list_columns(plan_of({0: 93, 1: 95})) == columns


def test_one_trial_has_no_interval(plan_of: Callable[[Mapping[int, float]], Plan]) -> None:
    assert list_columns(plan_of({0: 93})) == {"trials": "1", "mean": "93.00", "95 % CI": "–", "best\nrun": "93.00"}


@pytest.mark.parametrize(
    ("accuracies", "sentence"),
    [
        (
            {0: 10, 1: 94, 2: 95.8},
            "1 of 3 seeds never left chance (10.0 %); the other two: 94.9; share that learnt: 67 % (95 % CI 21 – 94)\n",
        ),
        ({0: 10, 1: 94}, "1 of 2 seeds never left chance (10.0 %); the other: 94.0; share that learnt: 50 % (95 % CI "),
        ({0: 10, 1: 9}, "none of 2 seeds left chance (9.5 %); share that learnt: 0 % (95 % CI 0 – 66)\n"),
        ({0: 10}, "1 of 1 seed never left chance (10.0 %)\n"),
        (
            {0: 10, 1: 94, 2: float("nan")},
            "1 of 3 seeds never left chance (10.0 %), 1 diverged; the other: 94.0; share that learnt: 33 % (95 % CI ",
        ),
        ({0: 60, 1: 94}, ""),
    ],
)
def test_the_summary_says_in_words_who_is_stuck(
    accuracies: Mapping[int, float],
    sentence: str,
    plan_of: Callable[[Mapping[int, float]], Plan],
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = plan_of(accuracies)
    print_results(plan, plan.find_stuck(read_nothing))
    output = capsys.readouterr().out
    assert sentence in output
    assert ("chance" in output) == bool(sentence)


def test_a_sentence_names_the_setting(plan_of: Callable[[Mapping[int, float]], Plan]) -> None:
    [setting] = group_by_setting(plan := plan_of({0: 10, 1: 94}), plan.find_stuck(read_nothing))
    named = Setting({"architecture": "cnn_3", "learning_rate": "0.01"}, setting.runs, setting.stuck)
    assert describe_stuck(named).startswith("cnn_3 · rate 0.01: 1 of 2 seeds never left chance (10.0 %); the other: ")

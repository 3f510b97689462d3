"""Answers to the questions of every experiment, from results made by hand and from simulated sweeps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from scipy import stats

import analysis.grid
import analysis.mnist
import analysis.part3
import analysis.part4
import analysis.part5
import analysis.pooling
from analysis.answers import Answer, Claims, Draft, Estimate, answers_to_json, describe_smallest, write_answers
from analysis.noise import answer_noise
from analysis.output import Output
from analysis.results import SweepResults, arrange_on_axes, select_finished
from analysis.wording import choose_digits, format_digits, format_estimate, format_number, join_words
from sweeps.experiment import SweepOptions
from sweeps.grid import Grid
from sweeps.intervals import compute_mean_interval
from sweeps.mnist import Mnist
from sweeps.part3 import Part3
from sweeps.part4 import Part4
from sweeps.part5 import Part5
from sweeps.pooling import Pooling
from trainables.persistence.store import Store
from trainables.result import Result
from trainables.trial import Trial

STUCK = 10.0  # accuracy of naming one class of ten for every image, in %
TEST_IMAGES = 1000
NOISE = (0.1, -0.2, 0.3, 0.0, -0.1, 0.2, -0.3, 0.1, -0.2, 0.1)  # of the seeds, in percentage points
BY_ARCHITECTURE = {"mlp_1": 90.0, "mlp_2": 92.0, "cnn_3": 95.9, "cnn_4": 96.0, "cnn_5": 95.95}

Accuracy = Callable[[Trial], float | None]
"""The accuracy of a trial in %: NaN if it diverged, None if it is missing."""


def make_result(trial: Trial, accuracy: float, curves: Mapping[str, float], images: int | None) -> Result:
    """Make a result whose curves are constant: accuracies are the given one unless `curves` has another."""
    names_right = None
    if images is not None and not math.isnan(accuracy):
        names_right = np.random.default_rng(trial.seed).permutation(np.arange(images) < round(accuracy / 100 * images))
        accuracy = 100 * float(names_right.mean())
    filled = {name: np.full(trial.epochs, curves.get(name, accuracy), np.float32) for name in trial.quantities}
    return Result(np.arange(1, trial.epochs + 1), filled, accuracy, np.zeros((1, 1), np.float32), names_right)


def make_results(
    options: SweepOptions,
    accuracy: Accuracy,
    curves: Callable[[Trial], Mapping[str, float]] = lambda trial: {},
    images: int | None = TEST_IMAGES,
) -> SweepResults:
    """Make the results of a sweep's trials without a store."""
    sweep = options.sweep()
    found = {trial: value for trial in sweep.trials() if (value := accuracy(trial)) is not None}
    by_trial = {trial.id: make_result(trial, value, curves(trial), images) for trial, value in found.items()}
    missing = [trial.id for trial in sweep.trials() if trial not in found]
    return SweepResults(arrange_on_axes(sweep, by_trial), by_trial, missing, sweep, cast("Store", None), {})


def get_noise(trial: Trial) -> float:
    """Return the noise of a seed, another one for each architecture."""
    shift = sorted(BY_ARCHITECTURE).index(trial.architecture) if trial.architecture in BY_ARCHITECTURE else 0
    return NOISE[(trial.seed + 3 * shift) % len(NOISE)]


def answer_part3(seeds: int, accuracy: Accuracy | None = None, images: int | None = TEST_IMAGES) -> list[Answer]:
    options = Part3(dataset="digits", seeds=seeds, epochs=1)
    usual: Accuracy = lambda trial: BY_ARCHITECTURE[trial.architecture] + get_noise(trial)  # noqa: E731
    return analysis.part3.answer(options, make_results(options, accuracy or usual, images=images))


def find_estimate(answer: Answer, name: str) -> Estimate:
    [found] = [estimate for estimate in answer.estimates if estimate.name == name]
    return found


# Which setting leads


def test_a_clear_leader() -> None:
    best, by_parameters, by_layers, seeds, images = answer_part3(10)
    assert best.question == "Which architecture generalises best?"
    assert best.finding == "cnn_4 leads; cnn_5 and cnn_3 not distinguishable, n = 10"
    mean, low, high, _ = map(float, compute_mean_interval(96 + np.array(NOISE)))
    expected = (
        f"cnn_4 leads with a test accuracy of {mean:.2f} % ({low:.2f} – {high:.2f}, n = 10); it is ahead of mlp_2 by "
    )
    assert best.sentence.startswith(expected)
    assert "cnn_5 and cnn_3, below it by 0.05" in best.sentence
    assert "are not distinguishable from it" in best.sentence
    estimate = find_estimate(best, "test accuracy of cnn_4")
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((mean, low, high))
    difference = find_estimate(best, "mlp_1 minus cnn_4")
    test = stats.ttest_ind(90 + np.array(NOISE), 96 + np.array(NOISE), equal_var=False)
    assert (difference.low, difference.high) == pytest.approx(tuple(test.confidence_interval()))
    assert difference.unit == "percentage points"
    assert best.smallest_difference is not None
    assert 0.2 < best.smallest_difference < 1
    shown = f"could have shown is {best.smallest_difference:.3g} percentage points."
    assert describe_smallest(best) == f"The smallest difference that this number of seeds {shown}"
    assert "More layers go with a higher test accuracy wherever a difference was shown" in by_layers.sentence
    assert "of 10 pairs, the one with more layers is ahead in 7 and behind in 0, and 3 are not" in by_layers.sentence
    assert "in some cases and down in others" in by_parameters.sentence
    assert find_estimate(seeds, "best seed minus mean of cnn_4").value == pytest.approx(0.3)
    assert "over other seeds" in images.sentence


def test_no_leader() -> None:
    best, by_parameters, *_ = answer_part3(10, lambda trial: 90 + get_noise(trial))
    assert best.finding == "no difference shown, n = 10"
    assert best.sentence.startswith("No setting is shown to lead: ")
    assert "is ahead" not in best.sentence
    assert "goes with the number of parameters was not shown" in by_parameters.sentence
    assert by_parameters.sentence.endswith("none of 10 pairs is distinguishable.")


def test_a_setting_with_the_highest_mean_and_a_wide_spread_does_not_lead() -> None:
    """The others are told apart from each other, and only this is said."""

    def accuracy(trial: Trial) -> float:
        wide = trial.architecture == "cnn_4"
        return 85 + 50 * get_noise(trial) if wide else BY_ARCHITECTURE[trial.architecture] - 20 + get_noise(trial)

    best, *_ = answer_part3(5, accuracy)
    assert best.finding == "cnn_4 is highest; cnn_3, cnn_5, mlp_2 and mlp_1 not distinguishable, n = 5"
    assert best.sentence.startswith("No setting is shown to lead: cnn_4 has the highest test accuracy, ")
    assert "of the others, mlp_2 is ahead of mlp_1, cnn_3 is ahead of mlp_1" in best.sentence


def test_one_seed_says_that_it_cannot_say() -> None:
    answers = answer_part3(1)
    for answer in answers[:4]:
        assert answer.sentence.startswith("It cannot be said ")
        assert describe_smallest(answer) == ""
        assert all(math.isnan(estimate.low) for estimate in answer.estimates)
    assert answers[0].finding == "too few seeds to compare"
    assert "one seed does not show how much seeds vary" in answers[4].sentence


def test_a_single_architecture_is_not_compared() -> None:
    options = Part3(dataset="digits", seeds=3, epochs=1, architectures=("cnn_3",))
    answers = analysis.part3.answer(options, make_results(options, lambda trial: 90 + NOISE[trial.seed]))
    assert [answer.question.split()[0:2] for answer in answers] == [["How", "far"], ["How", "sure"]]


# Seeds that are stuck, diverged or missing


def test_stuck_seeds_are_told_in_both_ways() -> None:
    """With one of three seeds stuck, no difference of cnn_3 over all seeds is shown, and its share is said."""

    def accuracy(trial: Trial) -> float:
        stuck = trial.architecture == "cnn_3" and trial.seed == 1
        return STUCK if stuck else BY_ARCHITECTURE[trial.architecture] + get_noise(trial)

    over_all, over_learnt, *_ = answer_part3(3, accuracy)
    assert over_all.question == "Which architecture generalises best over all seeds?"
    assert over_learnt.question == "Which architecture generalises best over the seeds that learnt alone?"
    assert "cnn_3" in over_all.finding.partition(";")[2]  # not distinguishable
    assert "1 of 3 seeds of cnn_3 never left chance, so that a share of 67 % (21 – 94) learnt" in over_learnt.sentence
    assert find_estimate(over_learnt, "share of seeds of cnn_3 that learnt").value == pytest.approx(200 / 3)
    assert find_estimate(over_all, "test accuracy of cnn_3").n == 3
    assert find_estimate(over_all, "test accuracy of cnn_3").high == 100
    assert find_estimate(over_learnt, "test accuracy of cnn_3").n == 2
    assert find_estimate(over_learnt, "test accuracy of cnn_3").low > 90


@pytest.mark.parametrize("wide", [0, 1])
@pytest.mark.parametrize(("seeds", "shown"), [(3, False), (10, True)])
def test_all_seeds_of_one_setting_stuck_may_be_an_accident_of_few_seeds(seeds: int, shown: bool, wide: int) -> None:
    """It does not matter whether the stuck networks name one class, or different ones."""

    def accuracy(trial: Trial) -> float:
        return STUCK + wide * get_noise(trial) if trial.architecture == "cnn_3" else 90 + get_noise(trial)

    over_all, over_learnt, *_ = answer_part3(seeds, accuracy)
    assert ("ahead of cnn_3" in over_all.sentence) == shown
    assert "cnn_3 has fewer than two seeds that learnt" in over_learnt.sentence
    assert f"{seeds} of {seeds} seeds of cnn_3 never left chance" in over_learnt.sentence


def test_diverged_and_missing_seeds_are_not_counted() -> None:
    def accuracy(trial: Trial) -> float | None:
        if (trial.architecture, trial.seed) in (("cnn_4", 0), ("cnn_4", 1), ("cnn_5", 2), ("cnn_5", 3), ("cnn_5", 1)):
            return math.nan if trial.architecture == "cnn_4" else None
        return BY_ARCHITECTURE[trial.architecture] + get_noise(trial)

    best, *_ = answer_part3(4, accuracy)
    assert find_estimate(best, "test accuracy of cnn_4").n == 2
    assert find_estimate(best, "test accuracy of cnn_5").n == 1
    assert "2 seeds of cnn_4 diverged, not in the means" in best.sentence
    assert "cnn_5 has fewer than two seeds that trained to the end, too few to compare" in best.sentence
    assert best.finding.endswith("n = 2 – 4")


def test_nothing_is_said_where_all_trials_diverged() -> None:
    best, *_, seeds = answer_part3(3, lambda trial: math.nan)
    assert best.sentence.startswith("It cannot be said which architecture generalises best, as no seed trained to its")
    assert seeds.sentence.startswith("It cannot be said")


def test_seeds_that_all_agree_have_no_interval_and_show_nothing() -> None:
    best, *_ = answer_part3(3, lambda trial: BY_ARCHITECTURE[trial.architecture])
    assert best.finding == "no difference shown, n = 3"
    assert best.sentence.startswith(
        "No setting is shown to lead: cnn_4 has the highest test accuracy, 96.00 % (n = 3);"
    )
    assert "all seeds of mlp_1, mlp_2, cnn_3, cnn_4 and cnn_5 agree" in best.sentence
    assert best.smallest_difference is None


# Test images


def test_older_results_say_nothing_of_other_test_images() -> None:
    *_, images = answer_part3(3, images=None)
    assert "over other test images it cannot be said" in images.sentence
    assert [estimate.name for estimate in images.estimates] == ["test accuracy of cnn_4"]


def test_uncertainty_over_seeds_and_over_test_images() -> None:
    """Over images alone, the mean of ten networks is about as sure as one share of 1,000 at most."""
    *_, images = answer_part3(10)
    over_seeds, over_images, over_both = images.estimates
    assert over_seeds.value == pytest.approx(96, abs=0.1)
    assert over_both.high - over_both.low > max(over_seeds.high - over_seeds.low, over_images.high - over_images.low)
    assert over_images.high - over_images.low < 2 * 1.96 * 100 * (0.96 * 0.04 / TEST_IMAGES) ** 0.5


# The other experiments


def answer_part4(seeds: int, accuracy: Accuracy, architectures: tuple[str, ...] = ("mlp_1", "cnn_3")) -> list[Answer]:
    """Answer part 4: ReLU has half the loss, and 10 to the power of the number of layers times the gradient."""
    options = Part4(dataset="digits", seeds=seeds, epochs=2, architectures=architectures)
    layers = {"mlp_1": 2, "cnn_3": 4}

    def curves(trial: Trial) -> Mapping[str, float]:
        relu, wobble = trial.activation == "relu", 1 + get_noise(trial) / 10
        gradient = 10.0 ** layers[trial.architecture] if relu else 1.0
        return {"train_loss": wobble * (0.2 if relu else 0.4), "gradient_norm": gradient * (wobble if relu else 1)}

    return analysis.part4.answer(options, make_results(options, accuracy, curves))


def test_part4_compares_the_activations_in_each_network() -> None:
    gain = {"mlp_1": 0.0, "cnn_3": 5.0}

    def accuracy(trial: Trial) -> float:
        wobble = get_noise(trial) * (1 if trial.activation == "relu" else -1)
        return 90 + wobble + (gain[trial.architecture] if trial.activation == "relu" else 0)

    in_test, in_loss, gradients = answer_part4(5, accuracy)
    expected = "The test accuracy with relu, compared with sigmoid, is higher by 5.0"
    assert in_test.sentence.startswith(expected)
    assert " in cnn_3; in the others no difference was shown: " in in_test.sentence
    assert find_estimate(in_test, "relu in cnn_3 minus sigmoid in cnn_3").n == 5
    assert "is lower by 0.2" in in_loss.sentence
    assert find_estimate(gradients, "ReLU over sigmoid in mlp_1").value == pytest.approx(100, rel=0.05)
    assert find_estimate(gradients, "growth of that ratio from mlp_1 to cnn_3").value == pytest.approx(100, rel=0.05)
    assert "this grows with depth: from mlp_1 to cnn_3 by a factor of " in gradients.sentence
    assert "mlp_1 (2 layers)" in gradients.sentence


def test_part4_with_stuck_sigmoids() -> None:
    def accuracy(trial: Trial) -> float:
        stuck = trial.activation == "sigmoid" and trial.architecture == "cnn_3" and trial.seed > 0
        return STUCK if stuck else 90 + get_noise(trial)

    over_all, over_learnt, loss, loss_learnt, _ = answer_part4(3, accuracy)
    assert "No difference in test accuracy between relu and sigmoid was shown over all seeds" in over_all.sentence
    assert over_learnt.sentence.startswith("It cannot be said which activation gives the higher test accuracy")
    assert "2 of 3 seeds of sigmoid in cnn_3 never left chance" in over_learnt.sentence
    assert "mlp_1" not in over_learnt.sentence
    assert loss.question.endswith("over all seeds?")
    assert loss_learnt.question.endswith("over the seeds that learnt alone?")


def test_settings_that_are_stuck_alike_share_a_clause() -> None:
    """As deep networks with a sigmoid are, which name one class from every seed."""
    over_all, over_learnt, *_ = answer_part4(3, lambda t: STUCK if t.activation == "sigmoid" else 90 + get_noise(t))
    both = "sigmoid in mlp_1 and sigmoid in cnn_3"
    assert f"3 of 3 seeds of each of {both} never left chance, so that a share of 0 % (0 – 56)" in over_learnt.sentence
    assert over_learnt.sentence.count("never left chance") == 1
    assert f"all seeds of {both} agree, which does not show how much others would vary" in over_all.sentence


def test_part4_with_one_seed() -> None:
    for answer in answer_part4(1, lambda trial: 90.0):
        assert answer.sentence.startswith("It cannot be said ")
        assert answer.sentence.endswith("train more with --seeds.")


def test_part5_compares_the_rates_and_the_optimisers() -> None:
    options = Part5(dataset="digits", seeds=4, epochs=4)
    by_rate = {0.1: 90.0, 0.01: 95.0, 0.001: 80.0}
    results = make_results(
        options, lambda trial: by_rate[trial.learning_rate] + get_noise(trial) * (1 + 10 * trial.learning_rate)
    )
    scheduled = select_finished(results.data, learning_rate=0.01)
    adam = select_finished(results.data, learning_rate=0.1).isel(seed=slice(3))
    compared = {"SGD 0.1 → 0.01": (scheduled, 30), "Adam 0.01": (adam, 15)}
    rates, optimisers = analysis.part5.answer(options, results, compared)
    assert rates.question == "Which constant learning rate ends with the highest validation accuracy?"
    assert "rate 0.1" in rates.sentence
    difference = find_estimate(optimisers, "SGD 0.1 → 0.01 (30 epochs) minus Adam 0.01 (15 epochs)")
    assert difference.n == 3
    assert difference.value == pytest.approx(5, abs=0.2)
    assert optimisers.sentence.startswith("SGD 0.1 → 0.01 (30 epochs) leads with a test accuracy of 95.0 %")


def test_part5_without_trials_of_part_3_compares_no_optimisers() -> None:
    options = Part5(dataset="digits", seeds=2, epochs=4)
    results = make_results(options, lambda trial: 90 + get_noise(trial))
    assert len(analysis.part5.answer(options, results, {})) == 1
    one = {"SGD 0.1 → 0.01": (select_finished(results.data, learning_rate=0.1), 30)}
    assert len(analysis.part5.answer(options, results, one)) == 1


def test_mnist_compares_the_rates_and_says_how_even_and_odd_digits_are_told_apart() -> None:
    options = Mnist(dataset="digits", seeds=3, epochs=1, learning_rates=(0.001, 0.1))
    results = make_results(
        options,
        lambda trial: (
            {0.001: 80.0, 0.1: 91.0, 0.01: 88.0}[trial.learning_rate]
            + NOISE[trial.seed] * (1 + (trial.learning_rate == 0.1))
        ),
    )
    rates, even_odd = analysis.mnist.answer(options, results)
    assert rates.sentence.startswith("Rate 0.1 leads with a test accuracy of 91.1 %")
    assert "it is ahead of rate 0.001 by 11." in rates.sentence
    assert even_odd.sentence.startswith("Even digits are told from odd ones with a test accuracy of 88.1 % (")
    assert even_odd.sentence.endswith("n = 3) at rate 0.01.")
    clothes = analysis.mnist.answer(replace(options, dataset="fashion_mnist"), results)[1]
    assert clothes.question == "How well does logistic regression tell even classes from odd ones?"
    assert clothes.sentence.startswith("Even classes are told from odd ones with")


def test_pooling_averages_over_the_other_axis_seed_by_seed() -> None:
    options = Pooling(dataset="digits", seeds=4, epochs=1, batch_sizes=(10, 50))

    def accuracy(trial: Trial) -> float:
        wobble = NOISE[trial.seed] * (1 + (trial.pooling == "avg") + (trial.batch_size == 10))
        return 90 + wobble - 5 * (trial.pooling == "avg") - 2 * (trial.batch_size == 50)

    pooling, padding, batch = analysis.pooling.answer(options, make_results(options, accuracy))
    assert pooling.question == "Which pooling generalises better, averaged over batch sizes 10 and 50?"
    found = find_estimate(pooling, "max pooling minus average pooling")
    assert (found.value, found.n) == (pytest.approx(5 - np.mean(NOISE[:4]), abs=0.06), 4)
    assert pooling.sentence.startswith("Max pooling leads with a test accuracy of 89.")
    assert padding.sentence.startswith("No setting is shown to lead: ")
    assert "ahead of batch size 50 by" in batch.sentence


def test_the_grid_uses_the_seeds_that_have_all_trials_and_the_networks_that_have_the_layer() -> None:
    options = Grid(dataset="digits", seeds=4, epochs=1, architectures=("mlp_1", "cnn_3"), poolings=("max", "avg"))

    def accuracy(trial: Trial) -> float | None:
        if trial.architecture == "cnn_3" and trial.pooling == "avg" and trial.seed == 2:
            return None
        return {"max": 90, "avg": 80, None: 50}[trial.pooling] + NOISE[trial.seed] * (1 + (trial.pooling == "avg"))

    architecture, pooling = analysis.grid.answer(make_results(options, accuracy).data)
    assert architecture.question == "Which architecture generalises best, averaged over each pooling?"
    assert find_estimate(architecture, "test accuracy of cnn_3").n == 3  # its seed 2 lacks a trial
    assert find_estimate(architecture, "test accuracy of mlp_1").n == 4
    found = find_estimate(pooling, "max pooling minus avg pooling")
    assert (found.value, found.n) == (pytest.approx(10 - np.mean([NOISE[s] for s in (0, 1, 3)]), abs=0.1), 3)


@pytest.mark.parametrize(
    "options", [Mnist(dataset="digits"), Pooling(dataset="digits"), Grid(dataset="digits", seeds=1)]
)
def test_one_seed_claims_nothing_anywhere(options: SweepOptions) -> None:
    results = make_results(options, lambda trial: 50 + 1000 * trial.learning_rate % 7)
    module: Any = {"mnist": analysis.mnist, "pooling": analysis.pooling, "grid": analysis.grid}[options.experiment]
    answers = module.answer(results.data) if options.experiment == "grid" else module.answer(options, results)
    assert answers
    for answer in answers:
        assert "one seed" in answer.sentence
        assert "leads" not in answer.sentence


ANY: dict[str, Callable[[int], tuple[SweepOptions, Callable[[Any, SweepResults], list[Answer]]]]] = {
    "part3": lambda seeds: (Part3(dataset="digits", seeds=seeds, epochs=1), analysis.part3.answer),
    "part4": lambda seeds: (Part4(dataset="digits", seeds=seeds, epochs=1), analysis.part4.answer),
    "mnist": lambda seeds: (Mnist(dataset="digits", seeds=seeds, epochs=1), analysis.mnist.answer),
    "pooling": lambda seeds: (Pooling(dataset="digits", seeds=seeds, epochs=1), analysis.pooling.answer),
    "grid": lambda seeds: (
        Grid(dataset="digits", seeds=seeds, epochs=1, learning_rates=(0.1, 0.01)),
        lambda options, results: analysis.grid.answer(results.data),
    ),
}


@pytest.mark.parametrize("name", ANY)
@pytest.mark.parametrize("example", range(8))
def test_whatever_is_missing_stuck_or_diverged_gives_whole_sentences(name: str, example: int) -> None:
    random = np.random.default_rng(example)
    options, answer = ANY[name](1 + example % 4)
    kinds = random.choice(["learnt", "equal", "stuck", "diverged", "missing"], 3).tolist()

    def accuracy(trial: Trial) -> float | None:
        values = {"learnt": random.normal(90, 1), "equal": 90.0, "stuck": STUCK, "diverged": math.nan, "missing": None}
        return values[random.choice(kinds)]

    def curves(trial: Trial) -> Mapping[str, float]:
        return {"train_loss": random.random(), "gradient_norm": random.choice([0, 1e-9, 0.5, 1])}

    one = iter([50.0])  # a sweep without any result has no analysis
    results = make_results(options, lambda trial: next(one, None) or accuracy(trial), curves)
    for found in answer(options, results):
        assert found.question.endswith("?")
        assert found.sentence.endswith(".")
        assert ". " not in found.sentence
        assert "nan" not in found.sentence
        assert "inf" not in found.sentence
        assert found.smallest_difference is None or found.smallest_difference > 0
        for estimate in found.estimates:
            ends = [end for end in (estimate.low, estimate.high) if not math.isnan(end)]
            assert sorted([*ends[:1], estimate.value, *ends[1:]]) == [*ends[:1], estimate.value, *ends[1:]]


# XOR


def make_rows(seeds: int, losses: Callable[[int, float], float]) -> list[dict[str, Any]]:
    return [
        {"seed": seed, "sigma": sigma, "clean_loss": losses(seed, sigma), "noisy_loss": 1.0 + seed}
        for seed in (46, *range(seeds))
        for sigma in (0.0, 1.0, 2.0)
    ]


def test_noise_is_compared_seed_by_seed() -> None:
    """At σ = 1 seven of twelve seeds go up, and at σ = 2 all."""
    answers = answer_noise(
        make_rows(12, lambda seed, sigma: {0.0: 5.0, 1.0: 4.5 + (seed < 7), 2.0: 9_999.0}[sigma] + seed / 100), 46
    )
    clean, noisy, report = answers
    assert "it is above that at σ = 0 in 12 of 12 seeds at σ = 2" in clean.sentence
    assert "no difference was shown by being above it in 7 of 12 seeds at σ = 1" in clean.sentence
    median = find_estimate(clean, "median loss, clean points, σ = 0")
    assert (median.value, median.low, median.high, median.n) == pytest.approx((5.055, 5.02, 5.09, 12))
    assert "no difference" not in noisy.sentence  # all seeds tie, so that there is nothing to compare
    assert "above 12 of 12 seeds" in report.sentence
    assert find_estimate(report, "seeds with a lower loss on the clean points than seed 46, σ = 2").value == 100


def test_a_sigma_that_only_the_reports_seed_has_is_left_out() -> None:
    rows = [row for row in make_rows(6, lambda seed, sigma: sigma) if row["sigma"] < 2 or row["seed"] == 46]
    clean, *_ = answer_noise(rows, 46)
    assert "σ = 2" not in clean.sentence
    assert "nan" not in clean.sentence


def test_few_seeds_of_xor_show_nothing() -> None:
    clean, *_ = answer_noise(make_rows(5, lambda seed, sigma: sigma + seed / 100), 46)
    assert "5 seeds cannot show a difference even if all agree" in clean.sentence
    assert all(math.isnan(estimate.low) for estimate in clean.estimates if estimate.name.startswith("median"))


def test_xor_with_the_reports_seed_alone_has_no_answers() -> None:
    assert answer_noise(make_rows(0, lambda seed, sigma: sigma), 46) == []


# Claims of a whole report


def test_claims_are_selected_over_all_drafts_together() -> None:
    """By Holm, 0.02 is claimed alone, and not beside two others of which none is at most 0.05 / 3."""

    def draft(*p_values: float) -> Draft:
        def write(claims: Claims) -> list[Answer]:
            sentence = f"{list(claims.held)} at {claims.level:.4f}"
            return [Answer(question="?", sentence=sentence, estimates=())]

        return Draft(p_values, write)

    assert [answer.sentence for answer in write_answers([draft(0.02), draft(), draft(math.nan)])] == [
        "[True] at 0.0500",
        "[] at 0.0500",
        "[False] at 0.0500",
    ]
    together = write_answers([draft(0.02), draft(0.3, 0.04)])
    assert [answer.sentence for answer in together] == ["[False] at 0.0167", "[False, False] at 0.0167"]


SIMULATED = 100


def simulate_part3(seeds: int, effect: float, stuck: float = 0.0, reports: int = SIMULATED) -> int:
    """Count how many reports of simulated sweeps claim that one architecture is ahead of another.

    Args:
        seeds: Number of seeds.
        effect: How far the last architecture is ahead of the others, in standard deviations.
        stuck: Probability that a seed of any architecture is stuck.
        reports: Number of simulated sweeps.
    """
    generator = np.random.default_rng(seeds)
    options = Part3(dataset="digits", seeds=seeds, epochs=1)
    template = make_results(options, lambda trial: 90.0, images=None)
    claims = 0
    for _ in range(reports):
        shape = template.data.test_accuracy.shape
        is_stuck = generator.random(shape) < stuck
        learnt = generator.normal(90 + 0.5 * effect * (np.arange(shape[1]) == shape[1] - 1), 0.5, shape)
        accuracy = np.where(is_stuck, generator.normal(STUCK, 0.1, shape), learnt)
        dims = template.data.test_accuracy.dims
        data = template.data.assign(test_accuracy=(dims, accuracy), stuck=(dims, is_stuck))
        results = SweepResults(data, template.by_trial, [], template.sweep, template.store, {})
        claims += any("is ahead of" in answer.sentence for answer in analysis.part3.answer(options, results))
    return claims


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "stuck"), [(3, 0.0), (10, 0.0), (3, 0.4)])
def test_reports_of_sweeps_without_an_effect_rarely_claim_one(seeds: int, stuck: float) -> None:
    """At most 5 % may; if it were exactly 5 %, this many would be exceeded in one of a thousand simulations."""
    most = int(stats.binom.isf(0.001, SIMULATED, 0.05))
    assert simulate_part3(seeds, 0.0, stuck) <= most


@pytest.mark.slow
def test_reports_of_sweeps_with_a_large_effect_claim_it() -> None:
    assert simulate_part3(10, 5.0, reports=20) == 20


# Words and files


def test_numbers_in_words() -> None:
    estimate = Estimate(name="", value=-0.04, low=-1.0, high=0.94, n=3, unit="%")
    assert format_estimate(estimate, 1) == "0.0 % (−1.0 – 0.9, n = 3)"
    assert format_number(-1234.56, 1) == "−1,234.6"
    assert [choose_digits(values) for values in ([2.5, 9.0], [0.4, 9.0], [0.0], [0.001], [])] == [1, 2, 1, 2, 1]
    assert choose_digits([0.001], most=4) == 4
    assert [format_digits(value) for value in (0.00123456, 12345.6, 0, 9999)] == ["0.00123", "12,300", "0", "10,000"]
    assert [join_words(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_answers_as_json(tmp_path: Path) -> None:
    output = Output(tmp_path)
    output.save_json(answers_to_json(answer_part3(1)), "answers")
    [best, *_] = json.loads((tmp_path / "answers.json").read_text())
    assert set(best) == {"question", "sentence", "estimates", "smallest_difference", "finding"}
    assert best["estimates"][0] == {
        "name": "test accuracy of mlp_1",
        "value": pytest.approx(90.1),
        "low": None,
        "high": None,
        "n": 1,
        "unit": "%",
    }

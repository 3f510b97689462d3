"""Answers on architectures that rest on no further comparison: sizes, best seeds, and the choice of test images."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from analysis.answers import Answer, Estimate
from analysis.differences import Comparison, Quantity, Settings
from analysis.ranking import Shown
from analysis.results import SweepResults
from analysis.wording import (
    choose_digits,
    format_estimate,
    format_number,
    format_range,
    join_words,
)
from sweeps.bootstrap import compute_accuracy_intervals
from sweeps.intervals import compute_expected_best_of_noise
from sweeps.sweep import format_count


def write_order(noun: str, sizes: Mapping[str, int], comparison: Comparison, shown: Shown) -> Answer:
    """Write whether the larger of two settings was shown to be ahead or behind, over all pairs that differ in size.

    Args:
        noun: Name of the size, such as "parameters".
        sizes: Size of each setting by name.
        comparison: Comparison of the settings.
        shown: Pairs whose difference was shown, the higher one first.
    """
    name = comparison.settings.quantity.name
    pairs = {pair: difference for pair, difference in comparison.pairs.items() if sizes[pair[0]] != sizes[pair[1]]}
    compared = sum(difference.n > 1 for difference in pairs.values())
    ahead = sum(sizes[first] > sizes[second] for first, second in shown)
    behind = sum(sizes[first] < sizes[second] for first, second in shown)
    if not compared:
        result = f"It cannot be said whether more {noun} go with a higher {name}, as one seed does not show it"
    elif not (ahead or behind):
        result = f"That the {name} goes with the number of {noun} was not shown"
    elif ahead and behind:
        result = f"The {name} goes up with the number of {noun} in some cases and down in others"
    else:
        result = f"More {noun} go with a {'higher' if ahead else 'lower'} {name} wherever a difference was shown"
    listed = join_words([f"{size:,} in {each}" for each, size in sorted(sizes.items(), key=lambda item: item[1])])
    counts = (
        f"of {compared} pairs, the one with more {noun} is ahead in {ahead} and behind in {behind}, "
        f"and {compared - ahead - behind} are not distinguishable"
    )
    caution = f"as architectures differ in more than their {noun}, this shows no cause"
    clauses = [result, f"there are {listed}"]
    if ahead or behind:
        clauses += [counts, caution]
    elif compared:
        clauses.append(f"none of {compared} pairs is distinguishable")
    question = f"How does the {name} go with the number of {noun}?"
    return Answer(question=question, sentence="; ".join(clauses) + ".", estimates=tuple(pairs.values()))


def write_best_seeds(settings: Settings) -> Answer:
    """Write how far each setting's best seed lies above the mean, and what as many seeds of pure noise would give.

    Stuck seeds are left out, as no normal noise puts seeds at chance.
    """
    quantity, values = settings.quantity, settings.keep_learnt().values
    samples = {name: row[~np.isnan(row)] for name, row in zip(settings.names, values, strict=True)}
    samples = {name: row for name, row in samples.items() if len(row) > 1}
    question = f"How far does the best seed mislead about the {quantity.name}?"
    if not samples:
        sentence = "It cannot be said how far it misleads, as one seed is its own mean; train more with --seeds."
        return Answer(question=question, sentence=sentence, estimates=())
    gaps: dict[str, Estimate] = {}
    noises: dict[str, Estimate] = {}
    for name, row in samples.items():
        gap, noise = row.max() - row.mean(), compute_expected_best_of_noise(row, len(row)) - row.mean()
        gaps[name] = estimate_gap(f"best seed minus mean of {name}", gap, len(row), quantity)
        noises[name] = estimate_gap(f"the same for normal noise as wide as {name}", noise, len(row), quantity)
    digits = choose_digits((gap.value for gap in gaps.values()), quantity.most_digits)

    def list_gaps(estimates: Mapping[str, Estimate]) -> str:
        texts = [f"{format_number(gap.value, digits)} for {name}" for name, gap in estimates.items()]
        return f"{join_words(texts)} {quantity.difference_unit}".rstrip()

    counts = sorted({len(row) for row in samples.values()})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    learnt = " that learnt" if settings.stuck.any() else ""
    clauses = [
        f"The best of {n} seeds{learnt} is above their mean by {list_gaps(gaps)}",
        f"as many seeds of nothing but normal noise as wide would give {list_gaps(noises)} on average",
    ]
    best = max(samples, key=lambda name: float(samples[name].max()))
    leader = max(samples, key=lambda name: float(samples[name].mean()))
    if best != leader:
        clauses.append(f"the best seed of all is one of {best}, while {leader} has the highest mean")
    return Answer(question=question, sentence="; ".join(clauses) + ".", estimates=(*gaps.values(), *noises.values()))


def estimate_gap(name: str, value: float, n: int, quantity: Quantity) -> Estimate:
    """Return an estimate of a difference that has no interval."""
    unit = quantity.difference_unit
    return Estimate(name=name, value=float(value), low=math.nan, high=math.nan, n=n, unit=unit)


def write_images(comparison: Comparison, results: SweepResults, axis: str) -> list[Answer]:
    """Write how sure the highest mean is, over other seeds and over other test images; nothing without any mean.

    Args:
        comparison: Comparison of the test accuracies of settings.
        results: Results that it is of.
        axis: Axis whose values are the settings.
    """
    ranked = [name for name, mean in comparison.means.items() if mean.n]
    if not ranked:
        return []
    leader = max(ranked, key=lambda name: comparison.means[name].value)
    mean = comparison.means[leader]
    ids = results.data.trial_id.sel({axis: leader}).values.tolist()
    ended = [results.by_trial[trial_id] for trial_id in ids if trial_id and not results.by_trial[trial_id].diverged]
    correct = [result.test_correct for result in ended if result.test_correct is not None]
    question = f"How sure is the test accuracy of {leader}, over other seeds and over other test images?"
    if len(correct) < len(ended):
        text = format_estimate(mean, 2)
        sentence = (
            f"The test accuracy of {leader} is {text} over other seeds; over other test images it cannot be said, as "
            "trials of an earlier version did not store which images they named right."
        )
        return [Answer(question=question, sentence=sentence, estimates=(mean,))]
    found = compute_accuracy_intervals(np.stack(correct))
    estimates, clauses = [], []
    for name, bounds in (("seeds", found.seeds), ("test images", found.images), ("both", found.both)):
        over = f"other {name}" if name != "both" else "both"
        estimates.append(
            Estimate(
                name=f"test accuracy of {leader}, over {over}",
                value=found.accuracy,
                low=bounds.low,
                high=bounds.high,
                n=mean.n,
                unit="%",
            )
        )
        if not math.isnan(bounds.low):
            clauses.append(f"{format_range(bounds.low, bounds.high, 2)} over {over}")
    images = f"{len(correct[0]):,} test images and {format_count(mean.n, 'seed')}"
    measured = f"The test accuracy of {leader} is {format_number(found.accuracy, 2)} % on {images}"
    sentence = f"{measured}: {join_words(clauses)} (bootstrap intervals of nominally 95 %)"
    lack = "" if mean.n > 1 else "; one seed does not show how much seeds vary"
    return [Answer(question=question, sentence=f"{sentence}{lack}.", estimates=tuple(estimates))]

"""Answers on architectures that rest on no further comparison: sizes, best seeds, and the choice of test images."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from analysis.answers import Answer, Estimate
from analysis.differences import Comparison
from analysis.ranking import Shown
from analysis.results import SweepResults
from analysis.wording import (
    choose_digits,
    count_seeds,
    format_estimate,
    format_number,
    format_range,
    join_words,
    make_question,
)
from sweeps.bootstrap import compute_accuracy_intervals
from sweeps.intervals import compute_expected_best_of_noise


def write_order(noun: str, sizes: Mapping[str, int], comparison: Comparison, shown: Shown) -> Answer:
    """Write whether the larger of two settings was shown to be ahead or behind, over all pairs that differ in size.

    Args:
        noun: Name of the size, such as "parameters".
        sizes: Size of each setting by name.
        comparison: Comparison of the settings.
        shown: Pairs whose difference was shown, the higher one first.
    """
    topic = f"how does the {comparison.settings.quantity.name} go with the number of {noun}"
    pairs = {pair: difference for pair, difference in comparison.pairs.items() if sizes[pair[0]] != sizes[pair[1]]}
    tested = sum(not math.isnan(difference.low) for difference in pairs.values())
    ahead = sum(sizes[first] > sizes[second] for first, second in shown)
    behind = sum(sizes[first] < sizes[second] for first, second in shown)
    listed = join_words([f"{name} {size:,}" for name, size in sorted(sizes.items(), key=lambda item: item[1])])
    if not tested:
        result = (
            f"With one seed it cannot be said whether more {noun} go with a higher {comparison.settings.quantity.name}"
        )
    elif ahead and not behind:
        result = f"More {noun} go with a higher {comparison.settings.quantity.name} wherever a difference was shown"
    elif behind and not ahead:
        result = f"More {noun} go with a lower {comparison.settings.quantity.name} wherever a difference was shown"
    elif ahead:
        result = f"The {comparison.settings.quantity.name} does not simply go with the number of {noun}"
    else:
        result = f"That the {comparison.settings.quantity.name} goes with the number of {noun} was not shown"
    counts = (
        f"of {tested} pairs that differ in it, the one with more {noun} is ahead in {ahead} and behind in {behind}, "
        f"and {tested - ahead - behind} are not distinguishable"
    )
    caution = f"architectures differ in more than their {noun}, so this alone explains nothing"
    clauses = [f"{result} ({listed})", *([counts, caution] if tested else [])]
    return Answer(question=make_question(topic), sentence="; ".join(clauses) + ".", estimates=tuple(pairs.values()))


def write_best_seeds(comparison: Comparison) -> Answer:
    """Write how far each setting's best seed lies above the mean, and what as many seeds of pure noise would give."""
    settings = comparison.settings
    samples = {name: row[~np.isnan(row)] for name, row in zip(settings.names, settings.values, strict=True)}
    samples = {name: values for name, values in samples.items() if len(values) > 1}
    topic = f"how far does the best seed mislead about the {settings.quantity.name}"
    if not samples:
        sentence = "One seed has no best, so nothing can be said of how far it misleads; train more with --seeds."
        return Answer(question=make_question(topic), sentence=sentence, estimates=())
    unit = settings.quantity.difference_unit
    gaps: dict[str, Estimate] = {}
    noises: dict[str, Estimate] = {}
    for name, values in samples.items():
        gap, noise = values.max() - values.mean(), compute_expected_best_of_noise(values, len(values)) - values.mean()
        gaps[name] = estimate_number(f"best seed minus mean of {name}", gap, len(values), unit)
        noises[name] = estimate_number(f"the same of pure noise as wide as {name}", noise, len(values), unit)
    digits = choose_digits((gap.value for gap in gaps.values()), settings.quantity.most_digits)
    listed = [
        f"{format_estimate(gap, digits)} for {name} (noise: {format_number(noises[name].value, digits)})"
        for name, gap in gaps.items()
    ]
    best = max(samples, key=lambda name: float(samples[name].max()))
    leader = max(samples, key=lambda name: float(samples[name].mean()))
    order = f"by its best seed {best} would come first, by the mean {leader} does" if best != leader else ""
    first = (
        "The best seed lies above the mean of all, and seeds that differ by nothing but normal noise as wide would put "
        f"theirs above it as well: {join_words(listed)}"
    )
    sentence = "; ".join([first, *([order] if order else [])]) + "."
    return Answer(question=make_question(topic), sentence=sentence, estimates=(*gaps.values(), *noises.values()))


def estimate_number(name: str, value: float, n: int, unit: str) -> Estimate:
    """Return an estimate that has no interval."""
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
            f"Over other seeds alone it is {text}; over other test images it cannot be said, as trials of an earlier "
            "version did not store which images they named right."
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
    images = f"{len(correct[0]):,} test images and {count_seeds(mean.n)}"
    sentence = (
        f"It is {format_number(found.accuracy, 2)} % on {images}: {join_words(clauses)} (95 % bootstrap intervals)"
    )
    lack = "" if mean.n > 1 else "; one seed does not show how much seeds vary"
    return [Answer(question=question, sentence=f"{sentence}{lack}.", estimates=tuple(estimates))]

"""Words for numbers: estimates with their intervals, lists, and clauses on seeds that are stuck or left out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from analysis.answers import Estimate
from analysis.differences import Settings
from sweeps.intervals import compute_share_interval
from sweeps.sweep import format_count

# Seeds that an answer is about, named where some are stuck.
ALL_SEEDS, LEARNT_SEEDS = " over all seeds", " over the seeds that learnt alone"


def choose_digits(values: Iterable[float], most: int = 2) -> int:
    """Return the number of decimals, from 1 to `most`, that shows two digits of the smallest value that is not zero.

    So accuracies have one decimal, and two where they differ by less than one percentage point.
    """
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    return min(max(1, 1 - math.floor(math.log10(min(sizes)))), most) if sizes else 1


def format_number(value: float, digits: int) -> str:
    """Return a number with a fixed number of decimals, and a true minus sign unless it is zero when rounded."""
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text.replace("-", "−")


def format_range(low: float, high: float, digits: int) -> str:
    """Return the ends of an interval as "98.9 – 99.3"."""
    return f"{format_number(low, digits)} – {format_number(high, digits)}"


def format_estimate(estimate: Estimate, digits: int, *, with_unit: bool = True, with_n: bool = True) -> str:
    """Return an estimate as "99.1 % (98.9 – 99.3, n = 10)"; an interval or unit that it does not have is left out.

    Args:
        estimate: Estimate to write.
        digits: Number of decimals.
        with_unit: Whether its unit follows the number.
        with_n: Whether the number of seeds stands in the brackets.
    """
    value = format_number(estimate.value, digits)
    value += f" {estimate.unit}" if with_unit and estimate.unit else ""
    inside = [] if math.isnan(estimate.low) else [format_range(estimate.low, estimate.high, digits)]
    inside += [f"n = {estimate.n}"] if with_n else []
    return f"{value} ({', '.join(inside)})" if inside else value


def format_digits(value: float) -> str:
    """Return a number with three significant digits."""
    return f"{float(f'{value:.3g}'):,g}"


def format_factor(factor: Estimate) -> str:
    """Return a factor as "3.1 (2.5 – 3.9, n = 5)", with three significant digits."""
    ends = [] if math.isnan(factor.low) else [f"{format_digits(factor.low)} – {format_digits(factor.high)}"]
    return f"{format_digits(factor.value)} ({', '.join([*ends, f'n = {factor.n}'])})"


def join_words(words: Sequence[str]) -> str:
    """Return a list as it stands in a sentence: "a", "a and b", or "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def make_question(topic: str) -> str:
    """Return a question from a clause such as "which network is best"."""
    return f"{topic[0].upper()}{topic[1:]}?"


def estimate_share(name: str, successes: int, n: int) -> Estimate:
    """Return a share of n seeds in %, with its Wilson interval."""
    share = compute_share_interval(successes, n)
    return Estimate(name=name, value=100 * share.share, low=100 * share.low, high=100 * share.high, n=n, unit="%")


def estimate_shares(settings: Settings) -> list[Estimate]:
    """Return the share of each setting's seeds that learnt, in %, with its Wilson interval."""
    return [
        estimate_share(f"share of seeds of {name} that learnt", ended - stuck, ended)
        for name, stuck, ended in zip(settings.names, *settings.count_stuck(), strict=True)
    ]


def describe_stuck(compared: Iterable[Settings]) -> list[str]:
    """Return clauses on the settings with stuck seeds, one for all with the same number: how many, and what learnt."""
    clauses: dict[tuple[str, str], list[str]] = {}
    for settings in compared:
        counts = zip(settings.names, *settings.count_stuck(), estimate_shares(settings), strict=True)
        for name, stuck, ended, share in counts:
            if stuck:
                key = f"{stuck} of {format_count(ended, 'seed')} of", format_estimate(share, 0, with_n=False)
                clauses.setdefault(key, []).append(name)
    return [
        f"{count} {'each of ' if len(names) > 1 else ''}{join_words(names)} never left chance, so that a share of "
        f"{learnt} learnt"
        for (count, learnt), names in clauses.items()
    ]


def describe_alone(names: Sequence[str], *, learnt: bool) -> str:
    """Return a clause on settings, or pairs of them, that have too few seeds to be compared."""
    have = "has" if len(names) == 1 else "have"
    ended = "learnt" if learnt else "trained to the end"
    return f"{join_words(names)} {have} fewer than two seeds that {ended}, too few to compare"


def describe_agreement(means: Mapping[str, Estimate]) -> list[str]:
    """Return a clause on the settings whose seeds all agree, so that they have no interval and no difference.

    Args:
        means: Means by setting.
    """
    names = [name for name, mean in means.items() if mean.n > 1 and math.isnan(mean.low)]
    return [f"all seeds of {join_words(names)} agree, which does not show how much others would vary"] if names else []


def describe_diverged(settings: Settings) -> list[str]:
    """Return a clause for each setting with diverged seeds, which are left out."""
    counts = zip(settings.names, settings.diverged.sum(axis=1).tolist(), strict=True)
    return [f"{format_count(n, 'seed')} of {name} diverged, not in the means" for name, n in counts if n]


def describe_unclaimed(differences: Iterable[Estimate]) -> list[str]:
    """Return a clause if an interval of differences that were not shown does not hold 0."""
    if any(difference.low > 0 or difference.high < 0 for difference in differences):
        return ["where comparisons are many or seeds are stuck, an interval without 0 shows nothing by itself"]
    return []

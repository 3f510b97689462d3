"""Notes on the trials that a figure leaves out or that did not learn: missing, diverged and stuck ones."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.results import SweepResults
from sweeps.sweep import format_count

MAX_TRIALS_NAMED = 3  # diverged or stuck trials that a note names; an ellipsis stands for the others


def list_omissions(stages: Sequence[SweepResults]) -> list[str]:
    """Return one note on the missing and one on the diverged trials of some stages, each only if there are any."""
    missing = sum(len(stage.missing) for stage in stages)
    return [*([f"incomplete: {format_count(missing, 'trial')} missing"] if missing else []), *list_diverged(stages)]


def list_diverged(stages: Sequence[SweepResults]) -> list[str]:
    """Return a note on the diverged trials of some stages, if there are any."""
    diverged = [name for stage in stages for name in stage.diverged]
    return [describe_diverged(diverged)] if diverged else []


def list_notes(stages: Sequence[SweepResults]) -> list[str]:
    """Return notes on the trials of all stages that diverged or are stuck; the rounds of a search have no means."""
    rounds = [stage for stage in stages if not stage.sweep.shows_test]
    others = [stage for stage in stages if stage.sweep.shows_test]
    failed = [name for stage in rounds for name in (*stage.diverged, *stage.stuck)]
    count, verb = format_count(len(failed), "trial"), "is" if len(failed) == 1 else "are"
    return [
        *(
            [f"{count} of the search diverged or {verb} stuck at chance, scored 0 %: {format_names(failed)}"]
            if failed
            else []
        ),
        *list_diverged(others),
        *list_stuck(others),
    ]


def list_stuck(stages: Sequence[SweepResults]) -> list[str]:
    """Return a note on the stuck trials of some stages, if there are any."""
    stuck = [name for stage in stages for name in stage.stuck]
    return [describe_stuck(stuck)] if stuck else []


def describe_diverged(names: Sequence[str]) -> str:
    """Return a note that counts the trials that diverged, given by their names, and names the first of them."""
    return f"{format_count(len(names), 'trial')} diverged, not in the means: {format_names(names)}"


def describe_stuck(names: Sequence[str]) -> str:
    """Return a note that counts the trials that are stuck, given by their names, and names the first of them."""
    verb = "is" if len(names) == 1 else "are"
    return f"{format_count(len(names), 'trial')} {verb} stuck at chance and {verb} in the means: {format_names(names)}"


def format_names(names: Sequence[str]) -> str:
    """Return the names of the first trials, with an ellipsis for the others."""
    return "; ".join([*names[:MAX_TRIALS_NAMED], *(["…"] if len(names) > MAX_TRIALS_NAMED else [])])

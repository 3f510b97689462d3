"""Faults for searches: each kills a search, and runs the same command again.

The laboratory compares trials, journal and page with those of an undisturbed search.
"""

from __future__ import annotations

from chaos.faults import Fault, fault
from chaos.lab import TIME_LIMIT_SECONDS, Command, Lab, check

# Three rounds of three suggestions, of which one trains on from each rung, and a confirmation on two seeds.
SEARCH = Command(
    "search",
    "--dataset digits --architectures mlp_1 cnn_3 --learning-rates 0.001:0.01 --batch-sizes 20 --epochs 3 --budget 15 "
    "--round-size 3 --halving 3 --confirm-best 1 --confirm-seeds 2 --checkpoint-seconds 0.5",
)


def search_killed_after(place: str) -> Fault:
    """Return the fault that a search's driver dies right after a place of `inject/sitecustomize.py`."""

    @fault(f"Search SIGKILLed right after: {place}")
    def killed(lab: Lab) -> None:
        lab.start(DIE=place).wait_for_status(-9)
        lab.injected = not lab.token.exists()
        lab.rerun()

    return killed


def search_killed_during(stage: str, words: str) -> Fault:
    """Return the fault that a search's driver is killed while trials of a stage train.

    Args:
        stage: Name of the stage for the table of results.
        words: Words of the line that announces the stage.
    """

    @fault(f"Search SIGKILLed {stage}")
    def killed(lab: Lab) -> None:
        sweep = lab.start()
        seconds = TIME_LIMIT_SECONDS  # as other stages come before
        lab.wait_until(lambda: words in sweep.read_output(), "lines of the stage", sweep, seconds)
        done = {path.parent for path in lab.list_checkpoints()}
        lab.wait_until(lambda: {path.parent for path in lab.list_checkpoints()} - done, "checkpoints", sweep)
        sweep.kill()
        lab.injected = True
        output = lab.rerun()
        check("Confirmation" in output, f"the search says nothing of its confirmation: {output}")

    return killed


SEARCH_FAULTS: tuple[Fault, ...] = (
    search_killed_after("round asked for"),
    search_killed_after("round finished"),
    search_killed_during("in a round", "round 2, to epoch 1"),
    search_killed_during("in a rung", "round 2, to epoch 3"),
    search_killed_during("in its confirmation", "confirmation on fresh seeds: 4 trials"),
)

from __future__ import annotations

import pytest

from sweeps.options import Running
from sweeps.resources import Node, share
from trainables.trial import BadInputError


@pytest.mark.parametrize(
    ("running", "nodes", "at_once"),
    [
        (Running(), [Node(2, 0)], 2),
        (Running(cpus_per_trial=2), [Node(3, 0), Node(4, 0)], 3),
        (Running(max_concurrent=1), [Node(8, 0)], 1),
        (Running(max_concurrent=99), [Node(8, 0)], 8),
        (Running(gpus_per_trial=0.25), [Node(16, 1), Node(2, 1)], 6),
        (Running(gpus_per_trial=0.1), [Node(64, 1)], 10),
        (Running(gpus_per_trial=0.4), [Node(64, 2)], 4),  # two on each: a fraction is not split over two GPUs
        (Running(gpus_per_trial=2), [Node(64, 5)], 2),
        (Running(), [Node(16, 2)], 8),  # a quarter each where there are GPUs
        (Running(gpus_per_trial=0), [Node(16, 2)], 16),
    ],
)
def test_how_many_at_once(running: Running, nodes: list[Node], at_once: int) -> None:
    assert share(running, nodes).at_once == at_once


@pytest.mark.parametrize(
    ("running", "nodes", "sentence"),
    [
        (Running(gpus_per_trial=0.5), [Node(2, 0)], "--gpus-per-trial is 0.5 GPUs, but no node has one"),
        (Running(gpus_per_trial=2), [Node(2, 1)], "no node has more than 1 of them; ask for at most 1"),
        (Running(cpus_per_trial=4), [Node(2, 0), Node(3, 0)], "no node has more than 3 CPUs"),
        (
            Running(cpus_per_trial=8, gpus_per_trial=1),
            [Node(8, 0), Node(4, 1)],
            "no node has 8 CPUs and 1 GPUs together",
        ),
    ],
)
def test_more_than_there_is_is_refused(running: Running, nodes: list[Node], sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence):
        share(running, nodes)

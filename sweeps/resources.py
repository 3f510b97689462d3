"""What a machine or a cluster has, and how many trials fit on it at once. Pure, and free of Ray."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeps.options import Running
from trainables.trial import BadInputError

# Four small models on a GPU: a guess that leaves each a quarter of the memory, not a measurement.
SHARED_GPU = 0.25


@dataclass(frozen=True)
class Node:
    """What one node has."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Share:
    """What one trial gets, and how many of them run at once."""

    cpus: int
    gpus: float
    at_once: int


def this_machine() -> Node:
    """The CPUs this process may use and the NVIDIA devices of this machine."""
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = min(gpus, sum(1 for device in visible.split(",") if device.strip() not in ("", "-1")))
    return Node(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, gpus)


def share(running: Running, nodes: Sequence[Node]) -> Share:
    """What each trial gets of the nodes.

    Raises:
        BadInputError: A trial asks for more than any node has.
    """
    most_cpus = max(node.cpus for node in nodes)
    most_gpus = max(node.gpus for node in nodes)
    cpus = running.cpus_per_trial
    gpus = running.gpus_per_trial
    if gpus is None:
        gpus = SHARED_GPU if most_gpus > 0 else 0.0
    if cpus > most_cpus:
        raise BadInputError(f"--cpus-per-trial is {cpus}, but no node has more than {most_cpus:g} CPUs; ask for fewer")
    if gpus > most_gpus:
        have = f"more than {most_gpus:g} of them" if most_gpus else "one"
        raise BadInputError(f"--gpus-per-trial is {gpus:g} GPUs, but no node has {have}; ask for at most {most_gpus:g}")
    at_once = sum(fitting(node, cpus, gpus) for node in nodes)
    if at_once == 0:
        raise BadInputError(f"no node has {cpus} CPUs and {gpus:g} GPUs together; ask for fewer of one")
    return Share(cpus, gpus, min(at_once, running.max_concurrent or at_once))


def fitting(node: Node, cpus: int, gpus: float) -> int:
    """How many trials fit on a node. A fraction of a GPU is never split over two."""
    by_cpu = int(node.cpus // cpus)
    if gpus == 0:
        return by_cpu
    by_gpu = int(node.gpus // gpus) if gpus >= 1 else int(node.gpus) * int(1 / gpus + 1e-9)
    return min(by_cpu, by_gpu)

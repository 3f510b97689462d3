"""Resources: what the nodes have, what a trial gets of them, and how many trials fit at once.

Pure except for what looks at this machine, and free of Ray.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainables.architectures import ARCHITECTURES
from trainables.errors import BadInputError, check_choice, quote
from trainables.trial import XOR

# Four small models on a GPU: a guess, not a measurement, that leaves each a quarter of the memory.
DEFAULT_GPU_SHARE = 0.25
MIN_GPU_SHARE = 0.01  # a hundred trials on one GPU
MEMORY_MARGIN = 1.2  # the memory that a process is given, divided by what the probe used


@dataclass(frozen=True)
class Node:
    """The CPUs and GPUs of a node."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Allocation:
    """The CPUs and GPUs of each process, and the number of processes that train at once.

    Attributes:
        cpus: The CPUs of a process.
        gpus: The GPUs of a process, by the architecture of its trials.
        at_once: The most processes at once, if all are of the architecture that needs the least.
    """

    cpus: int
    gpus: Mapping[str, float]
    at_once: int


def detect_machine() -> Node:
    """Return this machine as a node: the CPUs that this process may use, at least one, and the NVIDIA devices."""
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = min(gpus, sum(1 for device in visible.split(",") if device.strip() not in ("", "-1")))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Node(max(1, math.floor(min(cpus, read_cpu_quota()))), gpus)


def read_cpu_quota(root: Path = Path("/")) -> float:
    """Return the number of CPUs that the cgroups of this process allow, or infinity if they set no limit.

    A quota of a cgroup holds for all cgroups below it. In a container only the lowest ones may be visible.

    Args:
        root: The root of the file system, for tests.

    Source: the kernel's documents on cgroup v1 (CFS bandwidth control) and v2 (`cpu.max`).
    """
    quotas = [math.inf]
    with suppress(OSError):  # not Linux
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
            below = mount / path.strip("/")
            quotas += [read_group_quota(group) for group in (below, *below.parents) if group.is_relative_to(mount)]
    return min(quotas)


def read_group_quota(group: Path) -> float:
    """Return the CPUs that one cgroup (a folder, of v1 or v2) allows, or infinity."""
    for files in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        with suppress(OSError, ValueError):
            quota, period = " ".join((group / name).read_text(encoding="utf-8") for name in files).split()
            return float(quota) / float(period) if quota.isdecimal() else math.inf  # "max", or -1 in v1
    return math.inf


def read_memory_use() -> float:
    """Return the fraction of this machine's memory that is in use; 0 if it is not known."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        sizes = {name: int(size.split()[0]) for name, _, size in (line.partition(":") for line in lines)}
        return 1 - sizes["MemAvailable"] / sizes["MemTotal"]
    except (OSError, ValueError, KeyError, IndexError):  # not Linux
        return 0.0


def add_planned_nodes(living: Sequence[Node], launcher_config: Mapping[str, object]) -> list[Node]:
    """Return the living nodes, and those that the cluster launcher would start if trials waited for them.

    Args:
        living: The living nodes.
        launcher_config: The configuration that the launcher leaves on the head; empty where no launcher started the
            cluster. Node types without stated resources, such as machines on premises, are not counted: each of them
            is alive or broken.
    """
    planned: Counter[Node] = Counter()
    types = launcher_config.get("available_node_types")
    for name, node_type in types.items() if isinstance(types, Mapping) else ():
        resources = node_type.get("resources") or {}
        if name != launcher_config.get("head_node_type") and "CPU" in resources:
            node = Node(float(resources["CPU"]), float(resources.get("GPU", 0)))
            planned[node] += int(node_type.get("max_workers", 0))
    return list((Counter(living) | planned).elements())


def parse_gpu_requests(words: Iterable[str]) -> dict[str, float | None]:
    """Return the GPUs that `--gpus-per-trial` asks for, by architecture, with "" for all others.

    None stands for `auto`: the share is to follow from the memory that training takes.

    Raises:
        BadInputError: A word is neither a share nor "auto", with or without an architecture before it.
    """
    requests: dict[str, float | None] = {}
    for word in words:
        architecture, _, value = word.rpartition("=")
        if "=" in word:
            check_choice("architecture of --gpus-per-trial", architecture, tuple(ARCHITECTURES))
        if architecture in requests:
            raise BadInputError(f"--gpus-per-trial says twice what {architecture or 'a trial'} gets; say it once")
        requests[architecture] = None if value == "auto" else parse_gpu_share(value)
    return requests


def parse_gpu_share(text: str) -> float:
    """Return a share of a GPU, or a number of GPUs.

    Raises:
        BadInputError: The text is neither.
    """
    try:
        share = float(text)
    except ValueError:
        share = float("nan")
    if not (share == 0 or MIN_GPU_SHARE <= share <= 1 or (1 < share < float("inf") and share == int(share))):
        raise BadInputError(
            f"--gpus-per-trial is {quote(text)}; it must be 0, a fraction from {MIN_GPU_SHARE} to 1, a whole number "
            "of GPUs, or auto; for one architecture: mlp_1=0.1"
        )
    return share


def request_gpus(
    requests: Mapping[str, float | None], architectures: Iterable[str], cpus: int, nodes: Sequence[Node]
) -> dict[str, float]:
    """Return the GPUs that a process asks for, by architecture; for `auto`, the default share until it is measured.

    Raises:
        BadInputError: A trial asks for more than any node has.
    """
    gpus = choose_gpu_shares(requests, architectures, nodes)
    most_cpus = max(node.cpus for node in nodes)
    most_gpus = max(node.gpus for node in nodes)
    if cpus > most_cpus:
        raise BadInputError(f"--cpus-per-trial is {cpus}, but no node has more than {most_cpus:g} CPUs; ask for fewer")
    for each in gpus.values():
        if each > most_gpus:
            have = f"more than {most_gpus:g} of them" if most_gpus else "one"
            raise BadInputError(
                f"--gpus-per-trial is {each:g} GPUs, but no node has {have}; ask for at most {most_gpus:g}"
            )
        if not any(count_fitting(node, cpus, each) for node in nodes):
            raise BadInputError(f"no node has {cpus} CPUs and {each:g} GPUs together; ask for fewer of one")
    return gpus


def choose_gpu_shares(
    requests: Mapping[str, float | None],
    architectures: Iterable[str],
    nodes: Sequence[Node],
    measured: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Return the GPUs of a process by architecture: as requested, else as measured, else `DEFAULT_GPU_SHARE`.

    The network of XOR trains in NumPy and gets none.

    Args:
        requests: The result of `parse_gpu_requests`.
        architectures: The architectures of all trials.
        nodes: The nodes; where none has a GPU, the default is 0.
        measured: Architecture → the share that its memory needs, where that is known.
    """
    default = DEFAULT_GPU_SHARE if any(node.gpus > 0 for node in nodes) else 0.0
    shares: dict[str, float] = {}
    for architecture in architectures:
        share = 0.0 if architecture == XOR else requests.get(architecture, requests.get("", default))
        shares[architecture] = (measured or {}).get(architecture, default) if share is None else share
    return shares


def size_gpu_share(memory_fraction: float) -> float:
    """Return the largest share of a GPU with which as many processes fit as its memory allows, with a margin."""
    at_once = max(1, int(1 / max(MIN_GPU_SHARE, memory_fraction * MEMORY_MARGIN)))
    return math.floor(10_000 / at_once) / 10_000  # Ray counts in ten-thousandths: 1/7 must not become 0.1429


def allocate(cpus: int, gpus: Mapping[str, float], nodes: Sequence[Node], max_concurrent: int | None) -> Allocation:
    """Return what each process gets of the nodes, and how many train at once.

    Args:
        cpus: CPUs of a process.
        gpus: GPUs of a process, by architecture; each fits on a node, as `request_gpus` has checked.
        nodes: All nodes.
        max_concurrent: The most processes at once; None: as many as fit.
    """
    at_once = max(sum(count_fitting(node, cpus, each) for node in nodes) for each in gpus.values())
    return Allocation(cpus, gpus, min(at_once, max_concurrent or at_once))


def count_fitting(node: Node, cpus: int, gpus: float) -> int:
    """Return how many processes fit on a node. A fraction of a GPU is never split over two."""
    by_cpu = int(node.cpus // cpus)
    if gpus == 0:
        return by_cpu
    by_gpu = int(node.gpus // gpus) if gpus >= 1 else int(node.gpus) * int(1 / gpus + 1e-9)
    return min(by_cpu, by_gpu)

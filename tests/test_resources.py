from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.driver import resources
from sweeps.driver.resources import (
    DEFAULT_GPU_SHARE,
    MEMORY_MARGIN,
    MIN_GPU_SHARE,
    Node,
    add_planned_nodes,
    allocate,
    choose_gpu_shares,
    count_fitting,
    detect_machine,
    parse_gpu_requests,
    read_cpu_quota,
    request_gpus,
    size_gpu_share,
)
from trainables.errors import BadInputError

GPU_WORKERS = {
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "worker": {"resources": {"CPU": 8, "GPU": 1}, "min_workers": 0, "max_workers": 3},
    },
}
MACHINES = {"head_node_type": "a", "available_node_types": {"a": {"resources": {}, "max_workers": 2}}}


@pytest.mark.parametrize(
    ("cpus", "gpus", "max_concurrent", "nodes", "at_once"),
    [
        (1, 0, None, [Node(2, 0)], 2),
        (2, 0, None, [Node(3, 0), Node(4, 0)], 3),
        (1, 0, 1, [Node(8, 0)], 1),
        (1, 0, 99, [Node(8, 0)], 8),
        (1, 0.25, None, [Node(16, 1), Node(2, 1)], 6),
        (1, 0.1, None, [Node(64, 1)], 10),
        (1, 0.4, None, [Node(64, 2)], 4),  # two on each GPU: a fraction is not split over two
        (1, 2, None, [Node(64, 5)], 2),
        (1, 0, None, [Node(16, 2)], 16),
    ],
)
def test_number_of_processes_at_once(
    cpus: int, gpus: float, max_concurrent: int | None, nodes: list[Node], at_once: int
) -> None:
    assert allocate(cpus, {"mlp_1": gpus}, nodes, max_concurrent).at_once == at_once


def test_the_architecture_that_needs_least_decides_the_number_of_processes() -> None:
    found = allocate(1, {"mlp_1": 0.1, "cnn_4": 0.5}, [Node(64, 1)], None)
    assert (found.at_once, found.gpus) == (10, {"mlp_1": 0.1, "cnn_4": 0.5})


@pytest.mark.parametrize(
    ("cpus", "gpus", "nodes", "sentence"),
    [
        (1, 0.5, [Node(2, 0)], "--gpus-per-trial is 0.5 GPUs, but no node has one"),
        (1, 2, [Node(2, 1)], "no node has more than 1 of them; ask for at most 1"),
        (4, 0, [Node(2, 0), Node(3, 0)], "no node has more than 3 CPUs"),
        (8, 1, [Node(8, 0), Node(4, 1)], "no node has 8 CPUs and 1 GPUs together"),
    ],
)
def test_requests_that_no_node_can_meet_are_refused(cpus: int, gpus: float, nodes: list[Node], sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence):
        request_gpus({"mlp_1": 0.0, "cnn_4": gpus}, ["mlp_1", "cnn_4"], cpus, nodes)


@pytest.mark.parametrize(
    ("words", "nodes", "shares"),
    [
        ((), [Node(2, 0)], {"mlp_1": 0, "cnn_4": 0}),
        ((), [Node(2, 0), Node(2, 1)], {"mlp_1": DEFAULT_GPU_SHARE, "cnn_4": DEFAULT_GPU_SHARE}),
        (("0.5",), [Node(2, 1)], {"mlp_1": 0.5, "cnn_4": 0.5}),
        (("mlp_1=0.1", "cnn_4=1"), [Node(2, 1)], {"mlp_1": 0.1, "cnn_4": 1}),
        (("mlp_1=0.1",), [Node(2, 1)], {"mlp_1": 0.1, "cnn_4": DEFAULT_GPU_SHARE}),
        (("0.5", "mlp_1=auto"), [Node(2, 1)], {"mlp_1": 0.05, "cnn_4": 0.5}),
        (("auto",), [Node(2, 1)], {"mlp_1": 0.05, "cnn_4": DEFAULT_GPU_SHARE}),  # only one of them could be measured
        (("auto",), [Node(2, 0)], {"mlp_1": 0.05, "cnn_4": 0}),
    ],
)
def test_gpu_share_of_each_architecture(words: tuple[str, ...], nodes: list[Node], shares: Mapping[str, float]) -> None:
    assert choose_gpu_shares(parse_gpu_requests(words), ["mlp_1", "cnn_4"], nodes, {"mlp_1": 0.05}) == shares


def test_the_network_of_xor_gets_no_gpu() -> None:
    assert choose_gpu_shares(parse_gpu_requests(["0.5"]), ["xor"], [Node(2, 1)]) == {"xor": 0}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["half"],
            "--gpus-per-trial is 'half'; it must be 0, a fraction from 0.01 to 1, a whole number of GPUs, or auto",
        ),
        (["mlp_1="], "--gpus-per-trial is ''; it must be 0"),
        (["mlp_9=0.1"], "unknown architecture of --gpus-per-trial 'mlp_9'; choose from"),
        (["mlp_1=0.1", "mlp_1=0.2"], "--gpus-per-trial says twice what mlp_1 gets; say it once"),
        (["0.1", "0.2"], "--gpus-per-trial says twice what a trial gets; say it once"),
        (["nan"], "--gpus-per-trial is 'nan'; it must be 0"),
        (["1.5"], "--gpus-per-trial is '1.5'; it must be 0"),
    ],
)
def test_malformed_gpu_requests_are_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence):
        parse_gpu_requests(words)


@given(st.floats(0, 1))
def test_a_measured_share_covers_the_memory_that_was_used(used: float) -> None:
    found = size_gpu_share(used)
    assert MIN_GPU_SHARE <= found <= 1
    at_once = count_fitting(Node(1000, 1), 1, found)
    assert at_once * round(found, 4) <= 1
    assert found > min(1, used * MEMORY_MARGIN) - 0.0001  # the precision of Ray


def test_nodes_that_the_launcher_would_start_are_counted() -> None:
    head, worker = Node(0, 0), Node(8, 1)
    assert add_planned_nodes([head], GPU_WORKERS) == [head, worker, worker, worker]
    assert add_planned_nodes([head, worker], GPU_WORKERS) == [head, worker, worker, worker]
    assert add_planned_nodes([head, *[worker] * 5], GPU_WORKERS) == [head, *[worker] * 5]
    assert add_planned_nodes([head, Node(4, 1)], MACHINES) == [head, Node(4, 1)]
    assert add_planned_nodes([head], {}) == [head]


@pytest.mark.parametrize(
    ("groups", "files", "cpus"),
    [
        ("0::/a/b", {"a/b/cpu.max": "50000 100000", "a/cpu.max": "max 100000"}, 0.5),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),  # a quota from above
        ("0::/", {"cpu.max": "400000 100000"}, 4),
        ("0::/docker/x", {"cpu.max": "200000 100000"}, 2),  # the path of the host, not visible in the container
        ("4:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "100000"}, 0.5),
        ("4:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, float("inf")),
        ("3:cpuset:/a", {"cpuset/a/cpu.cfs_quota_us": "1", "cpuset/a/cpu.cfs_period_us": "2"}, float("inf")),
        ("0::/", {"cpu.max": "nonsense"}, float("inf")),
        ("", {}, float("inf")),
    ],
)
def test_cpu_quotas_of_cgroups_count(tmp_path: Path, groups: str, files: Mapping[str, str], cpus: float) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, content in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert read_cpu_quota(tmp_path) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [(0.5, 1), (1.9, 1), (2.0, 2), (float("inf"), 3)])
def test_a_fraction_of_a_cpu_counts_as_one(monkeypatch: pytest.MonkeyPatch, quota: float, cpus: int) -> None:
    monkeypatch.setattr(resources.os, "sched_getaffinity", lambda process: {0, 1, 2})
    monkeypatch.setattr(resources, "read_cpu_quota", lambda: quota)
    assert detect_machine().cpus == cpus

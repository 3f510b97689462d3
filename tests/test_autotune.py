from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_dataset, make_trial, needs_compiler

from sweeps.driver import autotune
from sweeps.driver.autotune import CACHE_FILE, Tuning, get_processor_name
from trainables.accelerated import probe
from trainables.accelerated.backends import NATIVE, ONEDNN_VARIABLE, PYTORCH
from trainables.accelerated.probe import ProbeResult, find_fastest_backend, probe_stack
from trainables.trial import Trial

TRIALS = [make_trial(architecture=name, batch_size=size) for name in ("mlp_1", "cnn_3") for size in (10, 20)]


@pytest.fixture(autouse=True)
def nobody_has_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ONEDNN_VARIABLE, raising=False)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Ray is asked to try; stacks pay for MLPs, and a GPU is there where a share of one is given."""
    found: list[Any] = []

    def probed(
        packs: Mapping[str, Sequence[Trial]], data: object, cpus: int, gpus: Mapping[str, float], way: str | None
    ) -> Any:
        assert not packs or way == (None if any(gpus.values()) else NATIVE)
        found.extend((name, len(pack), pack[0].batch_size, gpus[name]) for name, pack in packs.items())
        return {name: ProbeResult(3.0 if name == "mlp_1" else 0.8, 0.1 if gpus[name] else None) for name in packs}

    monkeypatch.setattr(autotune, "probe_architectures", probed)
    monkeypatch.setattr(autotune, "find_fastest_backend_of_worker", lambda cpus: found.append("convolutions") or NATIVE)
    return found


def measured(tmp_path: Path, **changes: Any) -> Tuning:
    settings = {"trials": TRIALS, "gpus": {"mlp_1": 0.0, "cnn_3": 0.0}, "unknown": (), "most": 16, "cpus": 1}
    return autotune.autotune(**{**settings, "data": make_dataset(), "storage": tmp_path, **changes})


def test_each_architecture_is_tried_once_with_its_largest_batches(tmp_path: Path, asked: list[Any]) -> None:
    expected = Tuning(stacked=["mlp_1"], memory={}, backend=NATIVE)
    assert measured(tmp_path) == expected
    assert asked == ["convolutions", ("mlp_1", 16, 20, 0.0), ("cnn_3", 16, 20, 0.0)]  # alone, the fastest way
    assert measured(tmp_path) == expected
    assert len(asked) == 3  # it is known
    [(machine, known)] = json.loads((tmp_path / CACHE_FILE).read_text()).items()
    assert get_processor_name() in machine
    assert any("speedup side by side: mlp_1 on digits in batches of 20" in key for key in known)


def test_more_threads_are_another_machine(tmp_path: Path, asked: list[Any]) -> None:
    measured(tmp_path)
    measured(tmp_path, cpus=2)
    assert len(asked) == 6


def test_memory_is_measured_anew_on_a_whole_gpu(tmp_path: Path, asked: list[Any]) -> None:
    gpus = {"mlp_1": 0.25, "cnn_3": 0.5}
    for _ in range(2):
        assert measured(tmp_path, gpus=gpus, unknown=["mlp_1"]).memory["mlp_1"] == 0.1
    assert asked == [("mlp_1", 16, 20, 1.0), ("cnn_3", 16, 20, 0.5), ("mlp_1", 16, 20, 1.0)]


def test_without_packs_only_convolutions_are_tried(tmp_path: Path, asked: list[Any]) -> None:
    assert measured(tmp_path, most=1) == Tuning(stacked=[], memory={}, backend=NATIVE)
    assert asked == ["convolutions"]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": 1}', "null"])
def test_a_damaged_file_is_measured_again(tmp_path: Path, asked: list[Any], content: str) -> None:
    (tmp_path / CACHE_FILE).write_text(content)
    assert measured(tmp_path).stacked == ["mlp_1"]
    assert measured(tmp_path).stacked == ["mlp_1"]
    assert len(asked) == 3


def test_a_probe_trains_side_by_side_and_alone() -> None:
    trials = [make_trial(seed=seed, learning_rate=1e6, optimizer="sgd", milestones=((1, 0.1),)) for seed in range(3)]
    seen = probe_stack(trials, make_dataset(), 1, None)
    assert 0.1 < seen.speedup < 10
    assert (seen.memory is None) == (not torch.cuda.is_available())


def test_convolutions_are_computed_as_is_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    took = {PYTORCH: 1.0, "AVX2": 0.5, NATIVE: 0.4}
    monkeypatch.setenv(ONEDNN_VARIABLE, "SSE41")  # as a probe may have left it; each way has its own

    def run(command: Sequence[str], *, env: Mapping[str, str], **_: Any) -> Any:
        assert env.get(ONEDNN_VARIABLE) == ("AVX2" if command[-1] == "AVX2" else None)
        return type("Answer", (), {"stdout": str(took[command[-1]])})

    monkeypatch.setattr(probe.subprocess, "run", run)
    monkeypatch.setattr(probe.Path, "read_text", lambda self: "flags : avx2 avx512f")
    assert find_fastest_backend(1) == NATIVE
    took[NATIVE] = math.inf  # no compiler
    assert find_fastest_backend(1) == "AVX2"
    took["AVX2"] = 0.99
    assert find_fastest_backend(1) == PYTORCH
    monkeypatch.setattr(probe.Path, "read_text", lambda self: "flags : avx2")
    took["AVX2"] = 0.5
    assert find_fastest_backend(1) == PYTORCH


@pytest.mark.slow
def test_all_ways_are_really_timed() -> None:
    assert find_fastest_backend(1) in (PYTORCH, "AVX2", NATIVE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compiler", "way", "finite"),
    [
        pytest.param("c++", NATIVE, True, marks=needs_compiler),
        ("false", NATIVE, False),
        ("false", PYTORCH, True),
    ],
)
def test_what_cannot_be_compiled_takes_for_ever(compiler: str, way: str, finite: bool) -> None:
    command = [sys.executable, "-m", "trainables.accelerated.probe", "1", way]
    environment = {**os.environ, "CXX": compiler, "PYTHONPATH": str(Path(probe.__file__).parents[2])}
    seconds = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert math.isfinite(float(seconds)) == finite


def test_what_somebody_has_chosen_is_taken_and_not_kept(
    tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ONEDNN_VARIABLE, "ALL")
    assert measured(tmp_path, most=1).backend == "ALL"
    assert asked == []
    assert not (tmp_path / CACHE_FILE).exists()
    monkeypatch.delenv(ONEDNN_VARIABLE)
    assert measured(tmp_path, most=1).backend == NATIVE
    monkeypatch.setenv(ONEDNN_VARIABLE, "ALL")
    assert measured(tmp_path, most=1).backend == "ALL"
    assert asked == ["convolutions"]


def test_what_could_not_be_tried_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []
    monkeypatch.setattr(autotune, "probe_architectures", lambda *_: tries.append("stacks") or {})
    monkeypatch.setattr(autotune, "find_fastest_backend_of_worker", lambda cpus: tries.append("convolutions"))
    for _ in range(2):
        assert measured(tmp_path) == Tuning(stacked=[], backend=None)
    assert tries == ["convolutions", "stacks"] * 2
    assert not (tmp_path / CACHE_FILE).exists()

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
from sweeps.driver.autotune import CACHE_FILE, Tuning
from sweeps.driver.packing import MAX_STACKED_ON_GPU
from trainables.accelerated import probe
from trainables.accelerated.backends import NATIVE, ONEDNN_VARIABLE, PYTORCH, get_processor_name
from trainables.accelerated.probe import ProbeResult, find_fastest_backend, probe_stack
from trainables.trial import Trial

TRIALS = [make_trial(architecture=name, batch_size=size) for name in ("mlp_1", "cnn_3") for size in (10, 20)]


@pytest.fixture(autouse=True)
def no_backend_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ONEDNN_VARIABLE, raising=False)


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replace the probes, and return a list to which each call of one is added.

    Stacks turn out faster for MLPs only. A probe that gets a share of a GPU finds one.
    """
    found: list[Any] = []

    def probe_architectures(
        packs: Mapping[str, Sequence[Trial]], data: object, cpus: int, gpus: Mapping[str, float], backend: str | None
    ) -> Any:
        assert not packs or backend == (None if any(gpus.values()) else NATIVE)
        found.extend((name, len(pack), pack[0].batch_size, gpus[name]) for name, pack in packs.items())
        return {
            name: ProbeResult(3.0 if name == "mlp_1" else 0.8, *((0.1, 64) if gpus[name] else (None, 4)))
            for name in packs
        }

    monkeypatch.setattr(autotune, "probe_architectures", probe_architectures)
    monkeypatch.setattr(autotune, "find_fastest_backend_of_worker", lambda cpus: found.append("convolutions") or NATIVE)
    return found


def run_autotune(tmp_path: Path, **changes: Any) -> Tuning:
    settings: dict[str, Any] = {
        "trials": TRIALS,
        "gpus": {"mlp_1": 0.0, "cnn_3": 0.0},
        "unknown": (),
        "alone": (),
        "most": 16,
    }
    settings["cpus"] = 1
    return autotune.autotune(**{**settings, "data": make_dataset(), "storage": tmp_path, **changes})


def test_each_architecture_is_probed_once_with_its_largest_batches(tmp_path: Path, probes: list[Any]) -> None:
    expected = Tuning(stacked={"mlp_1": 16}, memory={}, backend=NATIVE)
    assert run_autotune(tmp_path) == expected
    # Backends come first, as the trial that a probe trains alone uses the fastest one.
    assert probes == ["convolutions", ("mlp_1", 16, 20, 0.0), ("cnn_3", 16, 20, 0.0)]
    assert run_autotune(tmp_path) == expected
    assert len(probes) == 3  # nothing is probed twice
    [(machine, known)] = json.loads((tmp_path / CACHE_FILE).read_text()).items()
    assert get_processor_name() in machine
    assert any("speedup side by side: mlp_1 on digits in batches of 20" in key for key in known)


def test_findings_with_other_thread_counts_are_kept_apart(tmp_path: Path, probes: list[Any]) -> None:
    run_autotune(tmp_path)
    run_autotune(tmp_path, cpus=2)
    assert len(probes) == 6


def test_memory_is_measured_on_a_whole_gpu_in_every_sweep(tmp_path: Path, probes: list[Any]) -> None:
    gpus = {"mlp_1": 0.25, "cnn_3": 0.5}
    for _ in range(2):
        assert run_autotune(tmp_path, gpus=gpus, unknown=["mlp_1"]).memory["mlp_1"] == 0.1
    assert probes == [("mlp_1", 16, 20, 1.0), ("cnn_3", 16, 20, 0.5), ("mlp_1", 16, 20, 1.0)]


def test_on_a_gpu_the_size_of_a_stack_is_measured_unless_the_user_sets_it(tmp_path: Path, probes: list[Any]) -> None:
    gpus = {"mlp_1": 0.25}
    for _ in range(2):
        assert run_autotune(tmp_path, gpus=gpus, most=None).stacked == {"mlp_1": 64}
    assert probes == [("mlp_1", MAX_STACKED_ON_GPU, 20, 0.25)]
    assert run_autotune(tmp_path, gpus=gpus, most=8).stacked == {"mlp_1": 8}
    assert run_autotune(tmp_path, gpus={"mlp_1": 0.0, "cnn_3": 0.0}, most=None).stacked == {"mlp_1": 16}


def test_without_packs_only_convolution_backends_are_probed(tmp_path: Path, probes: list[Any]) -> None:
    assert run_autotune(tmp_path, most=1) == Tuning(stacked={}, memory={}, backend=NATIVE)
    assert probes == ["convolutions"]


def test_stacks_are_not_probed_of_architectures_whose_trials_train_alone(tmp_path: Path, probes: list[Any]) -> None:
    assert run_autotune(tmp_path, alone={"mlp_1"}).stacked == {}
    assert probes == ["convolutions", ("cnn_3", 16, 20, 0.0)]
    assert run_autotune(tmp_path).stacked == {"mlp_1": 16}
    assert run_autotune(tmp_path, alone={"mlp_1"}).stacked == {}  # even where it is known that stacks are faster


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": 1}', "null"])
def test_a_damaged_cache_is_replaced_by_new_findings(tmp_path: Path, probes: list[Any], content: str) -> None:
    (tmp_path / CACHE_FILE).write_text(content)
    assert run_autotune(tmp_path).stacked == {"mlp_1": 16}
    assert run_autotune(tmp_path).stacked == {"mlp_1": 16}
    assert len(probes) == 3


def test_a_probe_trains_a_stack_and_a_trial_alone() -> None:
    trials = [make_trial(seed=seed, learning_rate=1e6, optimizer="sgd", milestones=((1, 0.1),)) for seed in range(3)]
    seen = probe_stack(trials, make_dataset(), 1, None, 1.0)
    assert 0.1 < seen.speedup < 10
    assert (seen.memory is None) == (not torch.cuda.is_available())


def test_the_fastest_convolution_backend_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {PYTORCH: 1.0, "AVX2": 0.5, NATIVE: 0.4}
    monkeypatch.setenv(ONEDNN_VARIABLE, "SSE41")  # must not reach the processes that time the backends

    def run(command: Sequence[str], *, env: Mapping[str, str], **_: Any) -> Any:
        assert env.get(ONEDNN_VARIABLE) == ("AVX2" if command[-1] == "AVX2" else None)
        return type("Answer", (), {"stdout": str(seconds[command[-1]])})

    monkeypatch.setattr(probe.subprocess, "run", run)
    monkeypatch.setattr(probe.Path, "read_text", lambda self, **_: "flags : avx2 avx512f")
    assert find_fastest_backend(1) == NATIVE
    seconds[NATIVE] = math.inf  # no compiler
    assert find_fastest_backend(1) == "AVX2"
    seconds["AVX2"] = 0.99
    assert find_fastest_backend(1) == PYTORCH
    monkeypatch.setattr(probe.Path, "read_text", lambda self, **_: "flags : avx2")
    seconds["AVX2"] = 0.5
    assert find_fastest_backend(1) == PYTORCH


@pytest.mark.slow
def test_real_timings_choose_a_known_backend() -> None:
    assert find_fastest_backend(1) in (PYTORCH, "AVX2", NATIVE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compiler", "backend", "finite"),
    [
        pytest.param("c++", NATIVE, True, marks=needs_compiler),
        ("false", NATIVE, False),
        ("false", PYTORCH, True),
    ],
)
def test_a_backend_that_cannot_be_compiled_takes_infinite_seconds(compiler: str, backend: str, finite: bool) -> None:
    command = [sys.executable, "-m", "trainables.accelerated.probe", "1", backend]
    environment = {**os.environ, "CXX": compiler, "PYTHONPATH": str(Path(probe.__file__).parents[2])}
    seconds = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert math.isfinite(float(seconds)) == finite


def test_a_backend_chosen_in_the_environment_is_used_and_not_cached(
    tmp_path: Path, probes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ONEDNN_VARIABLE, "ALL")
    assert run_autotune(tmp_path, most=1).backend == "ALL"
    assert probes == []
    assert not (tmp_path / CACHE_FILE).exists()
    monkeypatch.delenv(ONEDNN_VARIABLE)
    assert run_autotune(tmp_path, most=1).backend == NATIVE
    monkeypatch.setenv(ONEDNN_VARIABLE, "ALL")
    assert run_autotune(tmp_path, most=1).backend == "ALL"
    assert probes == ["convolutions"]


def test_a_failed_probe_is_repeated_by_the_next_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probes: list[str] = []
    monkeypatch.setattr(autotune, "probe_architectures", lambda *_: probes.append("stacks") or {})
    monkeypatch.setattr(autotune, "find_fastest_backend_of_worker", lambda cpus: probes.append("convolutions"))
    for _ in range(2):
        assert run_autotune(tmp_path) == Tuning(stacked={}, backend=None)
    assert probes == ["convolutions", "stacks"] * 2
    assert not (tmp_path / CACHE_FILE).exists()

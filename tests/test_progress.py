from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import make_trial
from rich.console import Console
from rich.progress import Progress

from sweeps.driver import cluster, progress
from trainables.worker.pack import REPORT_KEY, Pack, PackReport


def test_a_log_gets_a_line_of_progress_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    trials = [make_trial(seed=seed, epochs=4) for seed in range(2)]
    packs = [Pack((trial,), ("a trial",), 0) for trial in trials]
    bar = progress.ProgressBar(Progress(console=Console(file=out), disable=True), packs)
    reported = SimpleNamespace(config={"pack": packs[0].to_json()})
    bar.on_trial_start(0, [], reported)
    assert out.getvalue() == ""
    monkeypatch.setattr(progress, "LOG_INTERVAL_SECONDS", 0)
    bar.on_trial_result(0, [], reported, {REPORT_KEY: PackReport(epochs=2, running=1)})
    assert "trials: 0 done, 1 running, 1 waiting, 0 failed: 25 %" in out.getvalue()


def test_a_terminal_gets_no_lines_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(progress, "LOG_INTERVAL_SECONDS", 0)
    bar = progress.ProgressBar(
        Progress(console=Console(file=out, force_terminal=True)), [Pack((make_trial(),), ("a trial",), 0)]
    )
    bar.draw()
    assert out.getvalue() == ""


def test_the_launchers_file_on_the_head_is_read_if_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "LAUNCHER_CONFIG", tmp_path / "ray_bootstrap_config.yaml")
    assert cluster.read_launcher_config() == {}
    (tmp_path / "ray_bootstrap_config.yaml").write_text(json.dumps({"head_node_type": "head"}))
    assert cluster.read_launcher_config() == {"head_node_type": "head"}

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import make_trial
from rich.console import Console
from rich.progress import Progress

from sweeps.driver import cluster, launch, progress
from trainables.worker.pack import REPORT_KEY, Outcome, Pack, PackReport


def test_a_log_gets_a_line_of_progress_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    trials = [make_trial(seed=seed, epochs=4) for seed in range(2)]
    packs = [Pack((trial,), ("a trial",), 0) for trial in trials]
    bar = progress.ProgressBar(Progress(console=Console(file=out), disable=True), packs, lambda *_: None)
    bar.update(packs[0].name, PackReport(running=1))
    assert out.getvalue() == ""
    monkeypatch.setattr(progress, "LOG_INTERVAL_SECONDS", 0)
    bar.update(packs[0].name, PackReport(epochs=2, running=1))
    assert "trials: 0 done, 1 running, 1 waiting, 0 failed: 25 %" in out.getvalue()


def test_tunes_events_become_reports_of_packs() -> None:
    """A pack counts as running when its process starts, and as failed when that dies for good."""
    trials = [make_trial(seed=seed, epochs=4) for seed in range(2)]
    pack = Pack(tuple(trials), ("a", "b"), 0)
    tunes = SimpleNamespace(config={"pack": pack.to_json()})
    reports: list[PackReport] = []
    callback = launch.ForwardReports(lambda pack, report: reports.append(report))
    callback.on_trial_start(0, [], tunes)
    callback.on_trial_result(0, [], tunes, {REPORT_KEY: PackReport(3, 2, {trials[0].id: Outcome()})})
    callback.on_trial_recover(0, [], tunes)
    callback.on_trial_error(0, [], tunes)
    assert [(report.epochs, report.running, len(report.outcomes)) for report in reports] == [
        (0, 1, 0),
        (3, 2, 1),
        (3, 0, 1),
        (8, 0, 2),
    ]
    assert reports[-1].outcomes == {trials[0].id: Outcome(), trials[1].id: Outcome("its process died")}


def test_a_terminal_gets_no_lines_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(progress, "LOG_INTERVAL_SECONDS", 0)
    bar = progress.ProgressBar(
        Progress(console=Console(file=out, force_terminal=True)),
        [Pack((make_trial(),), ("a trial",), 0)],
        lambda *_: None,
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

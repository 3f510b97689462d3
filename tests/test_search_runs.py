"""Searches as a user runs them: the script, its store, and the processes that train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_end_to_end import check_store, run_cluster_with_gpu, start_script, wait_for

from sweeps.rounds import count_epochs, make_rungs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
FEW = (
    *("--dataset", "digits", "--architectures", "mlp_1", "cnn_3", "--learning-rates", "0.0005:0.05"),
    *("--confirm-best", "1", "--confirm-seeds", "2"),
)


def read_journal(folder: Path) -> dict[str, str]:
    """Return the suggestions of every round: file's name → text."""
    files = folder.glob("mlartifacts/search/*/artifacts/search/*/round-*.json")
    return {path.name: path.read_text() for path in files if "seconds" not in path.name}


def search(folder: Path, *words: str, **variables: str) -> str:
    """Run a search to its end, and return its output."""
    status, out = wait_for(start_script(folder, "sweeps", *FEW, *words, experiment="search", **variables))
    assert status == 0, out
    return out


def test_the_same_search_suggests_the_same_with_any_number_of_processes(tmp_path: Path) -> None:
    words = ("--epochs", "1", "--batch-sizes", "40", "--budget", "16", "--gpus-per-trial", "0")
    journals = {}
    with run_cluster_with_gpu() as address:
        for processes in (1, 2, 4):
            folder = tmp_path / str(processes)
            folder.mkdir()
            at_once = ("--max-concurrent", str(processes))
            out = search(folder, *words, *at_once, RAY_ADDRESS=address, RAY_AUTH_MODE="token")
            assert f"{processes} {'process' if processes == 1 else 'processes'} at once" in out
            journals[processes] = read_journal(folder)
    assert journals[1] == journals[2] == journals[4]
    assert len(journals[1]) == 4
    last = json.loads(journals[1]["round-0003.json"])["suggestions"]
    assert [suggestion["number"] for suggestion in last] == [12, 13, 14, 15]  # of which Optuna has learnt before


def test_a_halved_search_trains_what_arithmetic_says_and_goes_on_with_more_budget(tmp_path: Path) -> None:
    words = ("--epochs", "3", "--batch-sizes", "20:40", "--round-size", "3", "--halving", "3")
    first = search(tmp_path, *words, "--budget", "5")
    assert "Budget: 5 epochs, 1 round of 5 epochs (3 to epoch 1 → 1 to epoch 3)" in first
    rungs = make_rungs(3, 3, 3)
    store = check_store(tmp_path, 4 + 2 * 2)  # those of the two rungs, and two settings on two seeds
    runs = {run.trial_id: run for found in store.find_runs().values() for run in found}
    tags = {run.trial_id: store.read_tags(run.run_id) for run in runs.values()}
    lengths = {trial_id: run.end.epochs for trial_id, run in runs.items() if run.end}
    of_search = [trial_id for trial_id in runs if "· seed" not in runs[trial_id].name]
    started = {trial_id: tags[trial_id].get("continued_from", "") for trial_id in of_search}
    trained = sum(lengths[trial_id] - lengths.get(start, 0) for trial_id, start in started.items())
    assert trained == count_epochs(rungs) == 5 < 3 * 3
    again = search(tmp_path, *words, "--budget", "5")
    assert "Trained" not in again
    more = search(tmp_path, *words, "--budget", "10")
    assert "search, round 1, to epoch 1" in more
    assert "search, round 2, to epoch 3" in more
    assert set(read_journal(tmp_path)) == {"round-0000.json", "round-0001.json"}

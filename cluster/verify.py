"""Checks that the tracking store has every point of every finished trial exactly once; prints a line of JSON.

The store is the one that MLFLOW_TRACKING_URI names.
"""

from __future__ import annotations

import json
import sys
from collections import Counter

from sweeps.experiment import get_default_tracking_uri
from trainables.persistence.store import Store
from trainables.persistence.stored_run import StoredRun
from trainables.result import Result


def count_lost_and_doubled(store: Store, run: StoredRun, result: Result) -> tuple[int, int]:
    """Count the points of a result that the run lacks, and those that it has twice or with another value."""
    lost = doubled = 0
    for name, curve in result.curves.items():
        found = Counter((m.step, m.value) for m in store.client.get_metric_history(run.run_id, name))
        due = set(zip(result.steps.tolist(), curve.tolist(), strict=True))
        lost += len(due - set(found))
        doubled += found.total() - len(due & set(found))
    return lost, doubled


def main() -> int:
    """Compare the points of each finished run with its result.

    Returns:
        0 if all is well; 1 if points are lost or doubled, or a run has the status RUNNING.
    """
    store = Store(get_default_tracking_uri())
    runs = [run for found in store.find_runs().values() for run in found]
    points = lost = doubled = 0
    for run in (run for run in runs if run.finished):
        result = store.read_result(run)
        points += len(result.steps) * len(result.curves)
        run_lost, run_doubled = count_lost_and_doubled(store, run, result)
        lost += run_lost
        doubled += run_doubled
    running = len(store.client.search_runs(list(store.experiments), "attributes.status = 'RUNNING'"))
    trials = len({run.trial_id for run in runs if run.finished})
    print(json.dumps({"trials": trials, "points": points, "lost": lost, "doubled": doubled, "running": running}))
    return 1 if lost or doubled or running else 0


if __name__ == "__main__":
    sys.exit(main())

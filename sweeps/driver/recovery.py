"""TODO."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from trainables.persistence.store import Store
from trainables.persistence.trial_folder import TrialFolder

if TYPE_CHECKING:
    from trainables.persistence.delivery import SweepContext
    from trainables.worker.pack import Outcome
from sweeps.driver.plan import Plan
from sweeps.driver.report import say

# How long a store that went away while trials trained is waited for at the end. What it does not take by then stays
# in the storage folder until the next command.
STORE_PATIENCE_SECONDS = 120.0


def deliver_result(folder: TrialFolder, name: str, target: SweepContext, deadline: float) -> str | None:
    """Bring one kept result into the store, trying until `deadline` (`time.monotonic`); why it does not take it."""
    from trainables.persistence.delivery import Delivery

    with folder.lock():
        if folder.read_result() is None:  # damaged, and set aside: the trial goes on from its last checkpoint
            return None
        delivery = Delivery(folder, name, target)
        delivery.deliver_result()
        if delivery.failure and time.monotonic() < deadline:
            say(f"{delivery.failure}: waiting for up to {deadline - time.monotonic():.0f} seconds")
        while delivery.failure and time.monotonic() < deadline:
            time.sleep(2)
            delivery.deliver_result()
        return delivery.failure


def close_own_runs(plan: Plan, store: Store, endings: Mapping[str, Outcome], driver: str) -> Plan:
    """Leave none of this driver's runs standing as RUNNING once nothing trains, nor beside a finished one; the plan."""
    for trial in plan.trials:
        for recorded in plan.runs.get(trial.id, []):
            if recorded.finished or recorded.driver != driver:
                continue
            if plan.finished(trial):  # an answer of the store was lost when the run was made, so another one was
                store.delete_run(recorded.run_id)
            elif recorded.status == "RUNNING":
                ending = endings.get(trial.id)
                store.end_run(recorded.run_id, "FAILED" if ending is not None and ending.error else "KILLED")
    return plan

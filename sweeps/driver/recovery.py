"""Recovery of what earlier drivers have left: runs still marked RUNNING, results that wait, and folders."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from sweeps.driver.lease import is_alive
from sweeps.driver.plan import Plan
from sweeps.driver.ray_process import LOG_NAME
from sweeps.driver.report import say
from trainables.errors import BadInputError, UserError
from trainables.persistence.connection import RETRY_SECONDS, SweepContext
from trainables.persistence.delivery import Delivery, OtherDataError
from trainables.persistence.store import Store
from trainables.persistence.trial_folder import TrialFolder
from trainables.worker.pack import Outcome

# How long a sweep waits, at its end, for an unreachable store. Results that are not delivered by then stay in the
# storage folder until the next command.
STORE_PATIENCE_SECONDS = 120.0
STORAGE_LOCK = "sweep.lock"  # a file in the storage folder, locked by the driver that trains with it


def remove_leftovers(plan: Plan, storage: Path, ray_folder: Path | None) -> None:
    """Remove what a driver left because it or Ray died: the folders of finished trials, Ray's files, and Ray's log.

    Nothing is removed while another driver trains with this storage.

    Args:
        plan: The sweep's trials.
        storage: The storage folder.
        ray_folder: The folder of Ray's files; None if this driver uses it.
    """
    finished = [TrialFolder(storage, trial) for trial in plan.trials if plan.find_finished(trial)]
    folders = [folder for folder in finished if folder.path.exists()]
    left_by_ray = ray_folder if ray_folder and ray_folder.exists() and storage.exists() else None
    log = storage / LOG_NAME
    if folders or left_by_ray or log.exists():
        with suppress(Timeout), FileLock(storage / STORAGE_LOCK, blocking=False):
            log.unlink(missing_ok=True)
            for folder in folders:
                folder.remove()
            if left_by_ray:
                shutil.rmtree(left_by_ray, ignore_errors=True)


def close_dead_runs(plan: Plan, store: Store, storage_name: str) -> None:
    """Close the runs that dead drivers left as RUNNING: all of this storage, and in others those of missing trials.

    Args:
        plan: The sweep's trials, and all runs of the store.
        store: The store.
        storage_name: Host and path of the storage folder, whose lock this process holds: its drivers are dead.

    Raises:
        BadInputError: A missing trial trains in a living sweep with another storage.
    """
    missing = {trial.id for trial in plan.missing}
    dead: set[str] = set()
    for run in (run for runs in plan.runs.values() for run in runs if run.status == "RUNNING"):
        here = run.storage == storage_name
        if not here and run.trial_id not in missing:
            continue
        if not here and run.driver not in dead:
            say(f"'{run.name}' is running with --storage {run.storage}: watching for a sign of life")
            if is_alive(store, run.driver):
                raise BadInputError(
                    f"'{run.name}' trains in {run.experiment} with --storage {run.storage}; wait "
                    "for that sweep to end, or stop it"
                )
            dead.add(run.driver)
        store.end_run(run.run_id, "KILLED")


def deliver_waiting_results(plan: Plan, context: SweepContext, patience_seconds: float) -> dict[str, str]:
    """Send the results in the storage folder to the store.

    Once the store has failed for `patience_seconds`, it is not tried again for further results.

    Returns:
        Trial id → the reason why the result was not delivered.
    """
    refused: dict[str, str] = {}
    labels = plan.sweep.labels()
    deadline = time.monotonic() + patience_seconds
    store_failure: str | None = None
    for trial in plan.missing:
        folder = TrialFolder(context.storage, trial)
        if not folder.has_result:
            continue
        try:
            store_failure = store_failure or deliver_result(folder, labels[trial.id], context, deadline)
            if store_failure:
                refused[trial.id] = store_failure
        except UserError as error:  # concerns this trial alone
            refused[trial.id] = str(error)
    return refused


def deliver_result(folder: TrialFolder, name: str, context: SweepContext, deadline: float) -> str | None:
    """Send one result to the store, trying until `deadline` (`time.monotonic`); return why it is not taken, or None."""
    with folder.lock():
        if folder.read_result() is None:  # it was damaged and renamed: the trial continues from its last checkpoint
            return None
        delivery = Delivery(folder, name, context)
        try:
            delivery.deliver_result()
        except OtherDataError:  # it was renamed as well
            return None
        if delivery.failure and time.monotonic() < deadline:
            say(f"{delivery.failure}: waiting for up to {deadline - time.monotonic():.0f} seconds")
        while delivery.failure and time.monotonic() < deadline:
            time.sleep(RETRY_SECONDS)
            delivery.deliver_result()
        return delivery.failure


def close_own_runs(plan: Plan, store: Store, outcomes: Mapping[str, Outcome], driver: str) -> None:
    """Close all of this driver's runs that are still marked RUNNING, once nothing trains any more.

    A run beside a finished one is deleted: the answer to its creation was lost, so a second one was created.
    """
    for trial in plan.trials:
        for run in plan.runs.get(trial.id, []):
            if run.finished or run.driver != driver:
                continue
            if plan.find_finished(trial):
                store.delete_run(run.run_id)
            elif run.status == "RUNNING":
                outcome = outcomes.get(trial.id)
                store.end_run(run.run_id, "FAILED" if outcome is not None and outcome.error else "KILLED")

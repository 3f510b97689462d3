"""A session: trains what is missing under a lease, and delivers it; Ray stays from one stage to the next."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

from filelock import FileLock, Timeout

from sweeps.driver.lease import hold_lease
from sweeps.driver.options import RunOptions
from sweeps.driver.plan import Plan
from sweeps.driver.provenance import collect_provenance, describe_source
from sweeps.driver.recovery import (
    STORAGE_LOCK,
    STORE_PATIENCE_SECONDS,
    close_dead_runs,
    close_own_runs,
    deliver_waiting_results,
)
from sweeps.driver.report import print_outcomes, say
from sweeps.driver.sweep_page import SweepPage
from sweeps.driver.trainer import Trainer
from sweeps.sweep import Sweep
from trainables.errors import BadInputError, TrackingError
from trainables.files import convert_write_errors
from trainables.persistence.connection import SweepContext, retry_for
from trainables.persistence.store import Store
from trainables.worker.pack import Outcome


class Session:
    """The state that a driver keeps between stages; Ray stays until `stack` closes.

    Attributes:
        page: The sweep's page in MLflow's UI.
        storage: The storage folder, absolute.
        storage_name: Host and path of the storage folder.
        trainer: What trains trials, once there are some to train.
    """

    def __init__(
        self, store: Store, options: RunOptions, address: str | None, stack: ExitStack, page: SweepPage
    ) -> None:
        self.store = store
        self.page = page
        self.options = options
        self.address = address
        self.stack = stack
        self.storage = options.storage.absolute()
        self.storage_name = f"{socket.gethostname()}:{self.storage}"
        self.trainer: Trainer | None = None

    @property
    def ray_failed(self) -> bool:
        """True if Ray has failed, so that trials are missing which nobody has stopped."""
        return self.trainer is not None and self.trainer.failure is not None

    def train(self, plan: Plan, parent_tags: Mapping[str, str]) -> tuple[Plan, Mapping[str, Outcome]]:
        """Train the plan's missing trials, and deliver their results.

        Args:
            plan: The plan.
            parent_tags: Tags for the sweep's parent run.

        Returns:
            The plan with what the store has afterwards, and the outcome of each trial that was tried, by id.

        Raises:
            BadInputError: Another sweep trains these trials, or trains with this storage.
        """
        experiment_id, parent_run_id = self.store.ensure_parent(plan.sweep.name, plan.missing[0].dataset)
        self.page.place(experiment_id, parent_run_id)
        lease = hold_lease(self.store, plan.sweep.name, parent_run_id, self.storage_name, say)
        with self.lock_storage():
            # Its process imports Ray while the lease is taken.
            self.trainer = self.trainer or Trainer(self.options, self.address, self.stack, self.page.note)
            with lease as driver:
                self.store.set_tags(parent_run_id, parent_tags)
                return self.train_with_lease(
                    plan, self.trainer, self.make_context(plan.sweep, experiment_id, parent_run_id, driver)
                )

    def train_with_lease(
        self, plan: Plan, trainer: Trainer, context: SweepContext
    ) -> tuple[Plan, Mapping[str, Outcome]]:
        """Do the work of `train`, while this driver is the only one."""
        started = time.monotonic()
        outcomes: Mapping[str, Outcome] = {}
        close_dead_runs(self.refresh(plan), self.store, self.storage_name)
        refused = deliver_waiting_results(plan, context, patience_seconds=0)
        plan = self.refresh(plan)  # another sweep may just have trained some of them

        def settle() -> Plan:
            latest = self.refresh(plan)
            close_own_runs(latest, self.store, outcomes, context.driver)
            return latest

        try:
            trials = [trial for trial in plan.missing if trial.id not in refused]
            with self.page.follow(plan):
                starts = {} if self.options.no_continue else plan.find_starts()
                outcomes = trainer.train(
                    trials,
                    plan.sweep.labels(),
                    context,
                    starts,
                    stacks_convolutions=plan.sweep.stacks_convolutions,
                )
            refused |= deliver_waiting_results(plan, context, STORE_PATIENCE_SECONDS)
        except BaseException:
            with suppress(TrackingError):
                settle()
            raise
        try:
            after = retry_for(settle, 0 if refused else STORE_PATIENCE_SECONDS)
        except TrackingError as error:
            say(str(error), style="red")
            after = plan  # the last known state of the store
        print_outcomes(plan, after, outcomes, refused, time.monotonic() - started)
        return after, outcomes

    @contextmanager
    def lock_storage(self) -> Iterator[None]:
        """Hold the lock of the storage folder.

        Raises:
            BadInputError: Another sweep trains with this storage.
        """
        with convert_write_errors(self.storage):
            self.storage.mkdir(parents=True, exist_ok=True)
            try:
                lock = FileLock(self.storage / STORAGE_LOCK, blocking=False).acquire()
            except Timeout:
                raise BadInputError(
                    f"another sweep trains with --storage {self.options.storage}; wait for it, or name another folder"
                ) from None
        with lock:
            yield

    def make_context(self, sweep: Sweep, experiment_id: str, parent_run_id: str, driver: str) -> SweepContext:
        """Return the places where the sweep's trials keep their state."""
        return SweepContext(
            tracking_uri=self.store.uri,
            experiment_id=experiment_id,
            parent_run_id=parent_run_id,
            storage=self.storage,
            storage_name=self.storage_name,
            driver=driver,
            tags={**collect_provenance(), **describe_source(sweep.name)},
            parameters=sweep.parameters(),
        )

    def refresh(self, plan: Plan) -> Plan:
        """Return the plan with what the store has now."""
        return Plan(plan.sweep, plan.trials, self.store.find_runs())

"""Running a sweep: what is missing → train it → what came of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.cli import next_stage
from sweeps.driver.options import RunOptions
from sweeps.driver.resources import (
    detect_machine,
    parse_gpu_requests,
)
from sweeps.experiment import SweepOptions
from trainables.persistence.connection import get_missing_file
from trainables.persistence.store import Store
from trainables.trial import Trial

if TYPE_CHECKING:
    from trainables.worker.pack import Outcome
from sweeps.driver.plan import Plan
from sweeps.driver.report import console, make_result_table, print_allocation, print_missing, print_plan, say
from sweeps.driver.session import Session, allocate_for, connect


def run(selection: SweepOptions, running: RunOptions) -> int:
    """Run the trials of the selected sweep that are not finished, stage by stage.

    Returns:
        0 if all trials are finished, 1 if some failed, 130 if stopped before the end.

    Raises:
        BadInputError: Before anything trains.
    """
    first = next(selection.stages(lambda trial: None))
    trials = first.trials()  # checks the options before the store is opened
    running.check()
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        allocate_for(trials, running, [detect_machine()])
    if running.dry_run and get_missing_file(selection.tracking_uri):  # a dry run makes no store
        print_plan(Plan(first, trials, {}))
        print_dry_run(trials, running, address, selection.tracking_uri)
        return 0
    store = Store(selection.tracking_uri)
    with ExitStack() as stack:
        trainer = Session(store, running, address, stack)
        stages = selection.stages(store.make_reader())
        while True:
            sweep, early = next_stage(stages)
            if sweep is None:
                break
            plan = Plan(sweep, sweep.trials(), store.find_runs())
            print_plan(plan)
            if running.dry_run:
                if plan.missing:
                    break  # what comes next, if anything, depends on these
                continue
            trainer.clear(plan)
            endings: Mapping[str, Outcome] = {}
            if plan.missing:
                plan, endings = trainer.train(plan)
            console.print(make_result_table(plan))
            if plan.missing:
                return print_missing(plan, selection, running, endings)
    if early:
        say(early)
    if running.dry_run:
        print_dry_run(trials, running, address, store.uri)
    else:
        say(f"All trials are done. Next: {selection.command('analysis')}")
    return 0


def print_dry_run(trials: Sequence[Trial], running: RunOptions, address: str | None, tracking_uri: str) -> None:
    """Print what a trial would get, of the cluster if there is one."""
    with ExitStack() as stack:
        # Not the sweep's own folder: another driver may be training, with its files there.
        private = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="neural-sweeps-", ignore_cleanup_errors=True))
        )
        nodes = connect(address, tracking_uri, private, stack) if address else [detect_machine()]
        print_allocation(allocate_for(trials, running, nodes))
    if None in parse_gpu_requests(running.gpus_per_trial).values() and any(node.gpus > 0 for node in nodes):
        say("Shares of a GPU that are to be measured may come out smaller or larger.")

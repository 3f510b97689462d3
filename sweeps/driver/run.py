"""Running an experiment, stage by stage: find what is missing, train it, report what came of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from sweeps.driver.options import RunOptions
from sweeps.driver.plan import Plan
from sweeps.driver.provenance import describe_source
from sweeps.driver.ray_process import start_ray_process
from sweeps.driver.recovery import STORE_PATIENCE_SECONDS, remove_leftovers
from sweeps.driver.report import print_allocation, print_missing, print_plan, say
from sweeps.driver.resources import Allocation, Node, allocate, detect_machine, parse_gpu_requests, request_gpus
from sweeps.driver.session import Session
from sweeps.driver.stages import Stage
from sweeps.driver.summary import print_results
from sweeps.driver.sweep_page import SweepPage
from sweeps.experiment import StagesEndedEarly, SweepOptions
from sweeps.kept_options import format_kept_options
from trainables.errors import BadInputError, UserError
from trainables.persistence.connection import LAST_RUN_TAG, OPTIONS_TAG, get_missing_file, retry_for
from trainables.persistence.store import Store
from trainables.persistence.stored_journal import StoredJournal
from trainables.persistence.stored_run import StoredRun
from trainables.result import Result
from trainables.trial import Trial
from trainables.worker.pack import Outcome


def run(options: SweepOptions, run_options: RunOptions) -> int:
    """Run the trials of an experiment that are not finished, stage by stage.

    Returns:
        The exit status: 0 if all trials are finished, 1 if some failed or wait for the store, 130 if the sweep was
        stopped.

    Raises:
        UserError: The input is bad, or the store or the storage folder cannot be used.
    """
    first = options.first_stage()
    trials = first.trials()  # checks the options before the store is opened
    run_options.check()
    address = get_ray_address()
    if not address:  # what this machine does not have is refused at once
        allocate_as_requested(trials, run_options, [detect_machine()])
    for line in options.describe_plan():
        say(line)
    if run_options.dry_run and get_missing_file(options.tracking_uri):  # a dry run makes no store
        print_plan(Plan(first, trials, {}))
        print_dry_run(trials, run_options, address, options.tracking_uri)
        return 0
    store = Store(options.tracking_uri)
    page = SweepPage(store, options)
    with ExitStack() as stack:
        session = Session(store, run_options, address, stack, page)
        if status := run_stages(options, run_options, session, trials[0].dataset):
            return status
    if run_options.dry_run:
        print_dry_run(trials, run_options, address, store.uri)
        return 0
    if session.trainer is None:  # nothing was missing, so that `Session.train` has not set them
        tag_parent(store, first.name, trials[0].dataset, make_parent_tags(options), page)
    page.end()
    say(f"All trials are done. Next: {options.format_command('analysis')}")
    say(f"Browse every curve: {options.describe_browsing(page.link)}")
    return 0


def run_stages(options: SweepOptions, run_options: RunOptions, session: Session, dataset: str) -> int:
    """Plan, train and report stage by stage, until one is not finished; return the exit status.

    A dry run ends at the first stage with missing trials, as later ones depend on their results.
    """
    store, page = session.store, session.page
    runs: Mapping[str, list[StoredRun]] = store.find_runs()
    journal = StoredJournal(store, options.experiment, dataset, writing=not run_options.dry_run)

    def read(trial: Trial) -> Result | None:
        found = (run for run in runs.get(trial.id, []) if run.finished)
        return next((retry_for(partial(store.read_result, run), journal.patience_seconds) for run in found), None)

    try:
        for sweep in options.stages(read, journal):
            plan = Plan(sweep, sweep.trials(), runs)
            starts = {} if run_options.no_continue else plan.find_starts()
            print_plan(plan, store.ignored.values(), starts.values())
            if run_options.dry_run:
                if plan.missing:
                    break
                continue
            ray_folder = None if session.trainer else run_options.private_folder
            remove_leftovers(plan, run_options.storage.absolute(), ray_folder)
            outcomes: Mapping[str, Outcome] = {}
            if plan.missing:
                plan, outcomes = session.train(plan, make_parent_tags(options))
                runs, journal.patience_seconds = plan.runs, STORE_PATIENCE_SECONDS
            stage = Stage(plan, plan.find_stuck(read))
            page.add(stage)
            if sweep.shows_test:
                print_results(plan, stage.stuck)
            if plan.missing:
                page.end()
                say(f"Browse what there is: {options.describe_browsing(page.link)}")
                return print_missing(plan, options, run_options, outcomes, ray_failed=session.ray_failed)
            if sweep.conclude is not None:
                page.conclusion = sweep.conclude(read)
                for sentence in page.conclusion:
                    say(sentence)
    except StagesEndedEarly as end:
        say(str(end))
    return 0


def make_parent_tags(options: SweepOptions) -> dict[str, str]:
    """Return the tags by which a sweep's parent run keeps the options of the command that was last run, and when."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {OPTIONS_TAG: format_kept_options(options), LAST_RUN_TAG: now, **describe_source(options.experiment)}


def tag_parent(store: Store, sweep: str, dataset: str, tags: Mapping[str, str], page: SweepPage) -> None:
    """Tag the parent run of a sweep that had nothing to train; where that fails, say so and go on."""
    try:
        page.place(*store.tag_parent(sweep, dataset, tags))
    except UserError as error:
        say(f"note: reports will not know of this command: {error}", style="yellow")


def get_ray_address() -> str | None:
    """Return the address of the cluster that `RAY_ADDRESS` names, or None.

    Raises:
        BadInputError: It is the address of a dashboard, to which a driver cannot connect.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address == "local":  # Ray's word for a cluster of this machine alone
        return None
    if address and address.startswith(("http://", "https://")):
        raise BadInputError(
            f"RAY_ADDRESS is {address}, the address of a dashboard; unset it and give --address {address} to run the "
            "sweep as a job, or set it to the cluster's HOST:6379"
        )
    return address or None


def allocate_as_requested(trials: Sequence[Trial], run_options: RunOptions, nodes: Sequence[Node]) -> Allocation:
    """Return what each process gets of the nodes, before anything is measured.

    Raises:
        BadInputError: A process asks for more than any node has.
    """
    cpus, requests = run_options.cpus_per_trial, parse_gpu_requests(run_options.gpus_per_trial)
    gpus = request_gpus(requests, dict.fromkeys(trial.architecture for trial in trials), cpus, nodes)
    return allocate(cpus, gpus, nodes, run_options.max_concurrent)


def print_dry_run(trials: Sequence[Trial], run_options: RunOptions, address: str | None, tracking_uri: str) -> None:
    """Print what each trial would get of this machine, or of the cluster at `address`."""
    with ExitStack() as stack:
        nodes = [detect_machine()]
        if address:
            # Another driver with the same storage may have its files in the usual folder.
            temporary = tempfile.TemporaryDirectory(prefix="neural-sweeps-", ignore_cleanup_errors=True)
            folder = Path(stack.enter_context(temporary)) / "ray"
            ray = start_ray_process(address, folder, folder, say, stack)
            nodes = ray.ask("the cluster is joined", "start", address, tracking_uri, nodes[0], folder)
        print_allocation(allocate_as_requested(trials, run_options, nodes))
    if None in parse_gpu_requests(run_options.gpus_per_trial).values() and any(node.gpus > 0 for node in nodes):
        say("Shares of a GPU that are to be measured may come out smaller or larger.")

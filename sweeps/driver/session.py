"""TODO."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from sweeps.driver.autotune import Tuning, autotune
from sweeps.driver.lease import hold_lease, is_alive
from sweeps.driver.options import RunOptions
from sweeps.driver.packing import MAX_STACKED_TRIALS, ImageCounts, make_packs, parse_pack_size
from sweeps.driver.resources import (
    DEFAULT_GPU_SHARE,
    Allocation,
    Node,
    allocate,
    choose_gpu_shares,
    detect_machine,
    parse_gpu_requests,
    size_gpu_share,
)
from trainables.errors import BadInputError, TrackingError
from trainables.files import report_write_errors
from trainables.persistence.connection import get_sqlite_file, retry_for
from trainables.persistence.store import Store
from trainables.persistence.trial_folder import TrialFolder
from trainables.trial import XOR, Trial

if TYPE_CHECKING:
    from trainables.datasets import Dataset
    from trainables.persistence.delivery import SweepContext
    from trainables.worker.pack import Outcome
from sweeps.driver.cluster import get_private_folder
from sweeps.driver.plan import Plan, check_records
from sweeps.driver.provenance import collect_provenance
from sweeps.driver.recovery import STORE_PATIENCE_SECONDS, close_own_runs, deliver_result
from sweeps.driver.report import console, print_allocation, print_backend, print_outcomes, print_packs, say


def connect(address: str | None, tracking_uri: str, private: Path, stack: ExitStack) -> list[Node]:
    """Start Ray here, or join the cluster at `address`, until `stack` closes; the nodes there are.

    Raises:
        BadInputError: It cannot be, or not all nodes could reach the tracking store.
    """
    from sweeps.driver import cluster  # Ray and torch take seconds to import: only where they are needed

    stack.callback(cluster.disconnect, private)
    nodes = cluster.start_or_join(address, detect_machine(), private)
    if len(nodes) > 1 and get_sqlite_file(tracking_uri):
        raise BadInputError(
            f"the tracking store {tracking_uri} is a file of one machine, but the cluster has {len(nodes)}; "
            "name a server or a database that all of them reach with --tracking-uri"
        )
    return nodes


def allocate_for(
    trials: Sequence[Trial], running: RunOptions, nodes: Sequence[Node], measured: Mapping[str, float] | None = None
) -> Allocation:
    """What the trials get of the nodes, given what was measured of some architectures.

    Raises:
        BadInputError: A trial asks for more than any node has.
    """
    architectures = dict.fromkeys(trial.architecture for trial in trials)
    gpus = choose_gpu_shares(parse_gpu_requests(running.gpus_per_trial), architectures, nodes, measured)
    return allocate(running.cpus_per_trial, gpus, nodes, running.max_concurrent)


class Session:
    """Trains what is missing. Data and Ray are there from the first trial that needs them until `stack` closes."""

    def __init__(self, store: Store, running: RunOptions, address: str | None, stack: ExitStack) -> None:
        self.store = store
        self.running = running
        self.address = address
        self.stack = stack
        self.storage = running.storage.absolute()
        self.private = get_private_folder(self.storage)
        self.storage_name = f"{socket.gethostname()}:{self.storage}"
        self.nodes: list[Node] | None = None
        self.share: Allocation | None = None
        self.data: Dataset | None = None
        self.measured = Tuning()

    def start(self, trial: Trial) -> list[Node]:
        """Load the data that all trials of an experiment share, and start Ray meanwhile, which mostly waits."""
        from sweeps.driver import cluster
        from trainables import datasets

        with ThreadPoolExecutor(1) as beside:
            images = trial.dataset != XOR
            data = (
                beside.submit(datasets.load_dataset, trial.dataset, self.running.data_root, trial.pipeline)
                if images
                else None
            )
            nodes = connect(self.address, self.store.uri, self.private, self.stack)
        if data is not None:
            self.data = data.result()
            parts = (self.data.train_labels, self.data.val_labels, self.data.test_labels)
            counts = " + ".join(f"{len(part):,}" for part in parts)
            say(f"{trial.dataset}: {counts} images (training, validation, test)")
        if self.address is not None:
            cluster.check_storage_is_shared(self.storage)
        return nodes

    def share_of(self, trials: Sequence[Trial]) -> Allocation:
        """What the trials get of the nodes; measured, where that is asked for."""
        from sweeps.driver import cluster

        self.nodes = self.nodes or self.start(trials[0])
        self.measure(trials, self.nodes)
        measured = {name: size_gpu_share(part) for name, part in self.measured.memory.items()}
        found = allocate_for(trials, self.running, self.nodes, measured)
        if any(found.gpus.values()) and self.address is None:
            cluster.check_gpu()
        return found

    def measure(self, trials: Sequence[Trial], nodes: Sequence[Node]) -> None:
        """Try what the sweep is to plan with."""
        if self.data is None:
            return
        asked = parse_gpu_requests(self.running.gpus_per_trial)
        gpus = allocate_for(trials, self.running, nodes).gpus
        unknown = [name for name, share in gpus.items() if share and asked.get(name, asked.get("", 0.0)) is None]
        most = parse_pack_size(self.running.pack) or MAX_STACKED_TRIALS
        if unknown:
            say("Measuring how much GPU memory training takes, once there is a GPU for it")
        self.measured = autotune(trials, gpus, unknown, most, self.data, self.running.cpus_per_trial, self.storage)
        if unknown and not self.measured.memory:
            say(f"PyTorch finds no usable GPU to measure on: {DEFAULT_GPU_SHARE} of a GPU a trial")

    def train(self, plan: Plan) -> tuple[Plan, Mapping[str, Outcome]]:
        """Train the plan's missing trials; the plan as it is then, and what came of those that were tried, by id.

        Raises:
            BadInputError: Another sweep trains these trials, or with this storage.
        """
        started = time.monotonic()
        experiment_id, parent_run_id = self.store.ensure_parent(plan.sweep.name, plan.missing[0].dataset)
        lock = FileLock(self.storage / "sweep.lock", blocking=False)
        with report_write_errors(self.storage):
            self.storage.mkdir(parents=True, exist_ok=True)
            try:
                held = lock.acquire()
            except Timeout:
                raise BadInputError(
                    f"another sweep trains with --storage {self.running.storage}; wait for it, or name another folder"
                ) from None
        with held, hold_lease(self.store, plan.sweep.name, parent_run_id, self.storage_name, say) as driver:
            context = self.make_context(experiment_id, parent_run_id, driver)
            self.take_over(self.renewed(plan))
            refused = self.deliver(plan, context, patience_seconds=0)
            plan = self.renewed(plan)  # another sweep may just have trained them
            endings: Mapping[str, Outcome] = {}
            try:
                endings = self.submit(plan, context, [trial for trial in plan.missing if trial.id not in refused])
                refused |= self.deliver(plan, context, STORE_PATIENCE_SECONDS)
            except BaseException:
                with suppress(TrackingError):
                    close_own_runs(self.renewed(plan), self.store, endings, driver)
                raise
            patience_seconds = 0 if refused else STORE_PATIENCE_SECONDS
            try:
                after = retry_for(
                    lambda: close_own_runs(self.renewed(plan), self.store, endings, driver), patience_seconds
                )
            except TrackingError as error:
                say(str(error), style="red")
                after = plan  # the last that was seen of the store
        print_outcomes(plan, after, endings, refused, time.monotonic() - started)
        return after, endings

    def make_context(self, experiment_id: str, parent_run_id: str, driver: str) -> SweepContext:
        """Where the trials keep what they have."""
        from trainables.persistence.delivery import SweepContext

        return SweepContext(
            tracking_uri=self.store.uri,
            experiment_id=experiment_id,
            parent_run_id=parent_run_id,
            storage=self.storage,
            storage_name=self.storage_name,
            driver=driver,
            tags=collect_provenance(),
        )

    def renewed(self, plan: Plan) -> Plan:
        """The plan with what the store has now."""
        return Plan(plan.sweep, plan.trials, self.store.find_runs())

    def take_over(self, plan: Plan) -> None:
        """Close the runs that dead drivers left as RUNNING: all of this storage, and those of the missing trials.

        Raises:
            BadInputError: A missing trial trains in a living sweep with another storage.
        """
        missing = {trial.id for trial in plan.missing}
        dead: set[str] = set()
        for recorded in (run for runs in plan.runs.values() for run in runs if run.status == "RUNNING"):
            here = recorded.storage == self.storage_name  # whose lock this process holds
            if not here and recorded.trial_id not in missing:
                continue
            if not here and recorded.driver not in dead:
                say(f"'{recorded.name}' is claimed with --storage {recorded.storage}: watching for a sign of life")
                if is_alive(self.store, recorded.driver):
                    raise BadInputError(
                        f"'{recorded.name}' trains in {recorded.experiment} with --storage {recorded.storage}; wait "
                        "for that sweep to end, or stop it"
                    )
                dead.add(recorded.driver)
            self.store.end_run(recorded.run_id, "KILLED")

    def clear(self, plan: Plan) -> None:
        """Remove what finished trials, and Ray, have kept here: who should have removed it died before."""
        finished = [TrialFolder(self.storage, trial) for trial in plan.trials if plan.finished(trial)]
        kept = [folder for folder in finished if folder.path.exists()]
        private = self.private if self.nodes is None and self.private.exists() else None
        if kept or (private and self.storage.exists()):
            with suppress(Timeout), FileLock(self.storage / "sweep.lock", blocking=False):
                for folder in kept:
                    folder.remove()
                if private:
                    shutil.rmtree(private, ignore_errors=True)

    def deliver(self, plan: Plan, context: SweepContext, patience_seconds: float) -> dict[str, str]:
        """Bring results that trained trials kept into the store; why it does not take them, by trial id.

        Once the store has failed for `patience_seconds`, it is not tried again for the others.
        """
        refused: dict[str, str] = {}
        labels = plan.sweep.labels()
        deadline = time.monotonic() + patience_seconds
        store_failure: str | None = None
        for trial in plan.missing:
            folder = TrialFolder(self.storage, trial)
            if not folder.has_result:
                continue
            try:
                store_failure = store_failure or deliver_result(folder, labels[trial.id], context, deadline)
                if store_failure:
                    refused[trial.id] = store_failure
            except BadInputError as error:  # of this trial alone
                refused[trial.id] = str(error)
        return refused

    def submit(self, plan: Plan, context: SweepContext, trials: Sequence[Trial]) -> Mapping[str, Outcome]:
        """Hand trials of the plan to Ray; what came of them, by id."""
        if not trials:
            return {}
        from sweeps.driver import launch
        from trainables.worker.pack import WorkerSettings

        trial_share = self.share_of(trials)
        if trial_share != self.share:
            print_allocation(trial_share)
        self.share = trial_share
        if self.data is not None:
            check_records(trials, len(self.data.train_labels))
            context = replace(context, tags={**context.tags, "data_checksum": self.data.checksum})
        most = parse_pack_size(self.running.pack)
        settings = WorkerSettings(
            context=context,
            threads=trial_share.cpus,
            checkpoint_seconds=self.running.checkpoint_seconds,
            stacked=self.measured.stacked,
            convolutions=self.measured.convolutions,
            compiled=self.running.compile_steps,
        )
        images = None if self.data is None else ImageCounts.of(self.data)
        names, at_once = plan.sweep.labels(), trial_share.at_once

        def train(trials: Sequence[Trial], gpus: Mapping[str, float]) -> dict[str, Outcome]:
            packed = make_packs(trials, names, gpus, images, settings.stacked, at_once, most)
            print_packs(packed, settings.stacked)
            print_backend(packed, settings.stacked, settings.convolutions)
            return launch.train_packs(packed, self.data, settings, at_once, self.private, console)

        return train_with_enough_memory(
            trials, {trial.id: trial_share.gpus[trial.architecture] for trial in trials}, train
        )


def train_with_enough_memory(
    trials: Sequence[Trial],
    gpus: Mapping[str, float],
    train: Callable[[Sequence[Trial], Mapping[str, float]], Mapping[str, Outcome]],
) -> Mapping[str, Outcome]:
    """Train with these shares of a GPU, and what ran out of memory again, with twice its share; all endings.

    Args:
        gpus: By trial id. A share grows up to a whole GPU.
    """
    before = gpus
    endings = train(trials, gpus)
    while True:
        short = [t for t in trials if t.id in endings and endings[t.id].out_of_memory and gpus[t.id] < 1]
        if not short or len(endings) < len(trials):  # stopped
            return endings
        say(f"Out of GPU memory: {len(short)} of {len(trials)} trials; they train again with twice the share")
        more = {trial.id: min(1.0, 2 * gpus[trial.id]) for trial in short}
        gpus = {**gpus, **more}
        again = train(short, gpus)
        noted = {
            trial_id: replace(
                ending,
                notes=(
                    *ending.notes,
                    f"{before[trial_id]:g} of a GPU had too little memory; it had {more[trial_id]:g} in the end",
                ),
            )
            for trial_id, ending in again.items()
        }
        endings = {trial_id: ending for trial_id, ending in endings.items() if trial_id not in more} | noted

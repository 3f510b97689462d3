"""A session: trains what is missing, with Ray and the data set kept from one stage of the experiment to the next."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

from filelock import FileLock, Timeout

from sweeps.driver import autotune, cluster, launch
from sweeps.driver.lease import hold_lease
from sweeps.driver.options import RunOptions
from sweeps.driver.packing import MAX_STACKED_TRIALS, ImageCounts, make_packs, parse_pack_size
from sweeps.driver.plan import Plan, check_records
from sweeps.driver.provenance import collect_provenance
from sweeps.driver.recovery import (
    STORAGE_LOCK,
    STORE_PATIENCE_SECONDS,
    close_dead_runs,
    close_own_runs,
    deliver_waiting_results,
)
from sweeps.driver.report import console, print_allocation, print_backend, print_outcomes, print_packs, say
from sweeps.driver.resources import (
    DEFAULT_GPU_SHARE,
    Allocation,
    Node,
    allocate,
    choose_gpu_shares,
    detect_machine,
    parse_gpu_requests,
    request_gpus,
    size_gpu_share,
)
from trainables import datasets
from trainables.errors import BadInputError, TrackingError
from trainables.files import convert_write_errors
from trainables.persistence.connection import CHECKSUM_TAG, retry_for
from trainables.persistence.delivery import SweepContext
from trainables.persistence.store import Store
from trainables.trial import XOR, Trial
from trainables.worker.pack import Outcome, WorkerSettings


class Session:
    """The state that a driver keeps between stages; Ray and the data set stay until `stack` closes.

    Attributes:
        storage: The storage folder, absolute.
        storage_name: Host and path of the storage folder.
        nodes: The nodes, once Ray has been started or joined.
        data: The data set, which all trials of an experiment share; None for XOR, or before it is loaded.
        allocation: The allocation of the packs submitted last.
    """

    def __init__(self, store: Store, options: RunOptions, address: str | None, stack: ExitStack) -> None:
        self.store = store
        self.options = options
        self.address = address
        self.stack = stack
        self.storage = options.storage.absolute()
        self.storage_name = f"{socket.gethostname()}:{self.storage}"
        self.nodes: list[Node] | None = None
        self.data: datasets.Dataset | None = None
        self.allocation: Allocation | None = None

    def train(self, plan: Plan) -> tuple[Plan, Mapping[str, Outcome]]:
        """Train the plan's missing trials, and deliver their results.

        Returns:
            The plan with what the store has afterwards, and the outcome of each trial that was tried, by id.

        Raises:
            BadInputError: Another sweep trains these trials, or trains with this storage.
        """
        started = time.monotonic()
        experiment_id, parent_run_id = self.store.ensure_parent(plan.sweep.name, plan.missing[0].dataset)
        lease = hold_lease(self.store, plan.sweep.name, parent_run_id, self.storage_name, say)
        outcomes: Mapping[str, Outcome] = {}
        with self.lock_storage(), lease as driver:
            context = self.make_context(experiment_id, parent_run_id, driver)
            close_dead_runs(self.refresh(plan), self.store, self.storage_name)
            refused = deliver_waiting_results(plan, context, patience_seconds=0)
            plan = self.refresh(plan)  # another sweep may just have trained some of them

            def settle() -> Plan:
                latest = self.refresh(plan)
                close_own_runs(latest, self.store, outcomes, driver)
                return latest

            try:
                outcomes = self.train_with_ray(
                    plan, context, [trial for trial in plan.missing if trial.id not in refused]
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

    def make_context(self, experiment_id: str, parent_run_id: str, driver: str) -> SweepContext:
        """Return the places where the trials keep their state."""
        return SweepContext(
            tracking_uri=self.store.uri,
            experiment_id=experiment_id,
            parent_run_id=parent_run_id,
            storage=self.storage,
            storage_name=self.storage_name,
            driver=driver,
            tags=collect_provenance(),
        )

    def refresh(self, plan: Plan) -> Plan:
        """Return the plan with what the store has now."""
        return Plan(plan.sweep, plan.trials, self.store.find_runs())

    def train_with_ray(self, plan: Plan, context: SweepContext, trials: Sequence[Trial]) -> Mapping[str, Outcome]:
        """Train trials of the plan with Ray, and return their outcomes by id."""
        if not trials:
            return {}
        self.nodes = self.nodes or self.start(trials[0])
        if self.data is not None:
            check_records(trials, len(self.data.train_labels))
            context = replace(context, tags={**context.tags, CHECKSUM_TAG: self.data.checksum})
        tuning, allocation = self.tune_and_allocate(trials, self.nodes)
        settings = WorkerSettings(
            context=context,
            threads=allocation.cpus,
            checkpoint_seconds=self.options.checkpoint_seconds,
            stacked_architectures=tuning.stacked,
            backend=tuning.backend,
            compile_steps=self.options.compile_steps,
        )
        images = None if self.data is None else ImageCounts.from_dataset(self.data)
        names, most = plan.sweep.labels(), parse_pack_size(self.options.pack)

        def train(trials: Sequence[Trial], gpus: Mapping[str, float]) -> dict[str, Outcome]:
            packs = make_packs(trials, names, gpus, images, tuning.stacked, allocation.at_once, most)
            print_packs(packs, tuning.stacked)
            print_backend(packs, tuning.stacked, tuning.backend)
            folder = self.options.private_folder
            return launch.train_packs(packs, self.data, settings, allocation.at_once, folder, console)

        return train_with_enough_memory(trials, {t.id: allocation.gpus[t.architecture] for t in trials}, train)

    def start(self, trial: Trial) -> list[Node]:
        """Load the trial's data set and, meanwhile, start or join Ray; return the nodes."""
        with ThreadPoolExecutor(1) as thread:
            data = None
            if trial.dataset != XOR:
                root = self.options.data_root
                data = thread.submit(datasets.load_dataset, trial.dataset, root, trial.pipeline)
            self.stack.callback(cluster.disconnect, self.options.private_folder)
            nodes = cluster.start_or_join(self.address, self.store.uri, detect_machine(), self.options.private_folder)
        if data is not None:
            self.data = data.result()
            parts = (self.data.train_labels, self.data.val_labels, self.data.test_labels)
            counts = " + ".join(f"{len(part):,}" for part in parts)
            say(f"{trial.dataset}: {counts} images (training, validation, test)")
        if self.address is not None:
            cluster.check_storage_is_shared(self.storage)
        return nodes

    def tune_and_allocate(self, trials: Sequence[Trial], nodes: Sequence[Node]) -> tuple[autotune.Tuning, Allocation]:
        """Autotune the trials, and return what was found and what each trial gets of the nodes.

        Raises:
            BadInputError: A trial asks for more than any node has, or for a GPU that torch cannot use.
        """
        cpus, requests = self.options.cpus_per_trial, parse_gpu_requests(self.options.gpus_per_trial)
        architectures = list(dict.fromkeys(trial.architecture for trial in trials))
        requested = request_gpus(requests, architectures, cpus, nodes)
        tuning = self.tune(trials, requested, requests)
        measured = {name: size_gpu_share(memory) for name, memory in tuning.memory.items()}
        gpus = choose_gpu_shares(requests, architectures, nodes, measured)
        allocation = allocate(cpus, gpus, nodes, self.options.max_concurrent)
        if any(gpus.values()) and self.address is None:
            cluster.check_gpu()
        if allocation != self.allocation:
            print_allocation(allocation)
        self.allocation = allocation
        return tuning, allocation

    def tune(
        self, trials: Sequence[Trial], gpus: Mapping[str, float], requests: Mapping[str, float | None]
    ) -> autotune.Tuning:
        """Autotune the trials; return an empty `Tuning` for XOR."""
        if self.data is None:
            return autotune.Tuning()
        unknown = [name for name, share in gpus.items() if share and requests.get(name, requests.get("", 0.0)) is None]
        if unknown:
            say("Measuring how much GPU memory training takes, as soon as a GPU is free")
        most = parse_pack_size(self.options.pack) or MAX_STACKED_TRIALS
        tuning = autotune.autotune(trials, gpus, unknown, most, self.data, self.options.cpus_per_trial, self.storage)
        if unknown and not tuning.memory:
            say(f"PyTorch finds no usable GPU to measure on: each process gets {DEFAULT_GPU_SHARE} of a GPU")
        return tuning


def train_with_enough_memory(
    trials: Sequence[Trial],
    gpus: Mapping[str, float],
    train: Callable[[Sequence[Trial], Mapping[str, float]], Mapping[str, Outcome]],
) -> Mapping[str, Outcome]:
    """Train trials, and those that run out of GPU memory again with twice the share, up to a whole GPU.

    Args:
        trials: The trials.
        gpus: Trial id → GPUs at first.
        train: Trains trials with the given GPUs by trial id, and returns their outcomes.

    Returns:
        Trial id → outcome.
    """
    before = gpus
    outcomes = train(trials, gpus)
    while True:
        short = [t for t in trials if t.id in outcomes and outcomes[t.id].out_of_memory and gpus[t.id] < 1]
        if not short or len(outcomes) < len(trials):  # the user has stopped some
            return outcomes
        say(f"Out of GPU memory: {len(short)} of {len(trials)} trials; they train again with twice the share")
        more = {trial.id: min(1.0, 2 * gpus[trial.id]) for trial in short}
        gpus = {**gpus, **more}
        again = {
            trial_id: replace(
                outcome,
                notes=(
                    *outcome.notes,
                    f"{before[trial_id]:g} of a GPU had too little memory; it had {more[trial_id]:g} in the end",
                ),
            )
            for trial_id, outcome in train(short, gpus).items()
        }
        outcomes = {trial_id: outcome for trial_id, outcome in outcomes.items() if trial_id not in more} | again

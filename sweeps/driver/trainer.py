"""Training trials with Ray: start it, measure, allocate, make packs, train."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from sweeps.driver.autotune import Tuning
from sweeps.driver.options import RunOptions
from sweeps.driver.packing import ImageCounts, find_single_architectures, make_packs, parse_pack_size
from sweeps.driver.plan import check_records
from sweeps.driver.progress import show_progress
from sweeps.driver.ray_process import start_ray_process
from sweeps.driver.report import console, print_allocation, print_backend, print_packs, say
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
from sweeps.driver.watch import RayFailedError, RayKilledError
from sweeps.sweep import format_count
from trainables.architectures import has_convolution
from trainables.persistence.connection import CHECKSUM_TAG, SweepContext
from trainables.persistence.end_state import Start
from trainables.trial import Trial
from trainables.worker.pack import Outcome, Pack, WorkerSettings


class Trainer:
    """Trains trials with Ray, which it keeps from one call to the next, until `stack` closes.

    Attributes:
        note: Called with the number of trials that a call has trained so far, and the seconds left or NaN.
        ray: The process that holds Ray and the data set.
        failure: The reason why Ray failed, if it did.
        nodes: The nodes, once Ray has been started or joined.
        images: The counts of the data set that all trials of an experiment share; None for XOR.
        allocation: The allocation of the packs submitted last.

    Raises:
        BadInputError: Nothing listens at the address of the cluster.
    """

    def __init__(
        self, options: RunOptions, address: str | None, stack: ExitStack, note: Callable[[int, float], None]
    ) -> None:
        self.options = options
        self.note = note
        self.address = address
        self.storage = options.storage.absolute()
        self.failure: str | None = None
        self.nodes: list[Node] = []
        self.images: ImageCounts | None = None
        self.allocation: Allocation | None = None
        self.stack = stack
        self.ray = start_ray_process(address, options.private_folder, self.storage, say, stack)

    def train(
        self,
        trials: Sequence[Trial],
        names: Mapping[str, str],
        context: SweepContext,
        starts: Mapping[str, Start] | None = None,
        *,
        stacks_convolutions: bool = True,
    ) -> Mapping[str, Outcome]:
        """Train trials, and return their outcomes by id; fewer if the user stops them, or if Ray fails.

        Args:
            trials: The trials.
            names: Trial id → readable name.
            context: The places where the trials keep their state.
            starts: Trial id → the run of a shorter trial from whose end it goes on.
            stacks_convolutions: Whether networks with convolutions may train side by side on a CPU.
        """
        if not trials:
            return {}
        try:
            if not self.nodes:
                self.start_patiently(trials[0], context.tracking_uri)
            return self.tune_and_train(trials, names, context, starts or {}, stacks_convolutions)
        except RayFailedError as error:
            self.note_failure(error)
            return {}

    def note_failure(self, error: RayFailedError) -> None:
        """Tell the user that Ray has failed, at once; the summary comes when results are delivered."""
        self.failure = str(error)
        say(self.failure, style="red")

    def start_patiently(self, trial: Trial, tracking_uri: str) -> None:
        """Do what `start` does, and once more where a signal ends Ray's process: nothing has been trained yet."""
        try:
            self.start(trial, tracking_uri)
        except RayKilledError as error:
            say(f"{error}; starting it once more")
            self.ray.close()
            self.ray = start_ray_process(self.address, self.options.private_folder, self.storage, say, self.stack)
            self.start(trial, tracking_uri)

    def start(self, trial: Trial, tracking_uri: str) -> None:
        """Start or join Ray and, meanwhile, load the trial's data set."""
        self.nodes, loaded = self.ray.ask(
            f"Ray starts, and {trial.dataset} is loaded",
            "start_and_load",
            self.address,
            tracking_uri,
            detect_machine(),
            self.options.private_folder,
            trial,
            self.options.data_root.absolute(),
        )
        if loaded:
            self.images, self.checksum = loaded
            counts = " + ".join(f"{count:,}" for count in (self.images.train, self.images.val, self.images.test))
            say(f"{trial.dataset}: {counts} images (training, validation, test)")
        if self.address is not None:
            self.ray.ask("the nodes look for the storage folder", "check_storage_is_shared", self.storage)

    def tune_and_train(
        self,
        trials: Sequence[Trial],
        names: Mapping[str, str],
        context: SweepContext,
        starts: Mapping[str, Start],
        stacks_convolutions: bool,
    ) -> Mapping[str, Outcome]:
        """Autotune and train trials, and return their outcomes by id."""
        if self.images is not None:
            check_records(trials, self.images.train)
            context = replace(context, tags={**context.tags, CHECKSUM_TAG: self.checksum})
        tuning, allocation = self.tune_and_allocate(trials, stacks_convolutions)
        settings = WorkerSettings(
            context=context,
            threads=allocation.cpus,
            checkpoint_seconds=self.options.checkpoint_seconds,
            stacked_architectures=tuple(tuning.stacked),
            backend=tuning.backend,
            compile_steps=self.options.compile_steps,
            starts=starts,
        )
        most = parse_pack_size(self.options.pack)
        gpu_count = sum(int(node.gpus) for node in self.nodes)

        def train(trials: Sequence[Trial], gpus: Mapping[str, float]) -> Mapping[str, Outcome]:
            packs = make_packs(trials, names, gpus, self.images, tuning.stacked, allocation.at_once, most, gpu_count)
            print_packs(packs, tuning.stacked)
            print_backend(packs, tuning.stacked, tuning.backend)
            return self.train_packs(packs, settings, allocation.at_once)

        return train_with_enough_memory(trials, {t.id: allocation.gpus[t.architecture] for t in trials}, train)

    def train_packs(self, packs: Sequence[Pack], settings: WorkerSettings, at_once: int) -> Mapping[str, Outcome]:
        """Train packs, and return their outcomes; fewer if the user stops them, or if Ray fails."""
        with show_progress(packs, console, self.note) as progress:
            try:
                outcomes: Mapping[str, Outcome] = self.ray.ask(
                    "trials train",
                    "train",
                    packs,
                    settings,
                    at_once,
                    self.options.private_folder,
                    on_report=progress.update,
                )
                return outcomes
            except RayFailedError as error:
                self.note_failure(error)
            except KeyboardInterrupt:
                say("Stopping the trials; Ctrl-C again ends them at once")
                if (ended := self.ray.stop_training()) is not None:
                    return ended
            return progress.ended

    def tune_and_allocate(self, trials: Sequence[Trial], stacks_convolutions: bool) -> tuple[Tuning, Allocation]:
        """Autotune the trials, and return what was found and what each trial gets of the nodes.

        Raises:
            BadInputError: A trial asks for more than any node has, or for a GPU that torch cannot use.
        """
        cpus, requests = self.options.cpus_per_trial, parse_gpu_requests(self.options.gpus_per_trial)
        architectures = list(dict.fromkeys(trial.architecture for trial in trials))
        requested = request_gpus(requests, architectures, cpus, self.nodes)
        alone = find_single_architectures(trials)
        if not stacks_convolutions:
            alone |= {name for name in architectures if has_convolution(name) and not requested[name]}
        tuning = self.tune(trials, requested, requests, alone)
        measured = {name: size_gpu_share(memory) for name, memory in tuning.memory.items()}
        gpus = choose_gpu_shares(requests, architectures, self.nodes, measured)
        allocation = allocate(cpus, gpus, self.nodes, self.options.max_concurrent)
        if any(gpus.values()) and self.address is None:
            self.ray.ask("PyTorch looks for a GPU", "check_gpu")
        if allocation != self.allocation:
            print_allocation(allocation)
        self.allocation = allocation
        return tuning, allocation

    def tune(
        self,
        trials: Sequence[Trial],
        gpus: Mapping[str, float],
        requests: Mapping[str, float | None],
        alone: Collection[str],
    ) -> Tuning:
        """Autotune the trials; return an empty `Tuning` for XOR."""
        if self.images is None:
            return Tuning()
        unknown = [name for name, share in gpus.items() if share and requests.get(name, requests.get("", 0.0)) is None]
        if unknown:
            say("Measuring how much GPU memory training takes, as soon as a GPU is free")
        most = parse_pack_size(self.options.pack)
        cpus = self.options.cpus_per_trial
        tuning: Tuning = self.ray.ask(
            "a few steps of training are measured", "autotune", trials, gpus, unknown, alone, most, cpus, self.storage
        )
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
        count = f"{len(short)} of {format_count(len(trials), 'trial')}"
        say(f"Out of GPU memory: {count}; they train again with twice the share")
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

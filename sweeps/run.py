"""Running a sweep: what is missing → train it → what came of it."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table

from sweeps.claim import alive, claimed
from sweeps.intervals import mean_text
from sweeps.measure import FILE, Measured, measure
from sweeps.options import Running, Selection, next_stage
from sweeps.packs import MOST_TRIALS, Images, packs, parse_pack
from sweeps.resources import SHARED_GPU, Node, Share, gpu_shares, parse_gpus, share, share_for, this_machine
from sweeps.sweep import Sweep
from trainables.architectures import convolves
from trainables.checkpoints import TrialFolder, writing
from trainables.probe import OWN, limit
from trainables.tracking import Recorded, Store, TrackingError, missing_file, patiently, sqlite_file
from trainables.trial import XOR, BadInputError, Trial

if TYPE_CHECKING:
    from sweeps.launch import Ending
    from trainables.datasets import Dataset
    from trainables.delivery import Target
    from trainables.trainable import Pack

# How long a store that went away while trials trained is waited for at the end. What it does not take by then stays
# in the storage folder until the next command.
PATIENCE_SECONDS = 120.0
MOST_RECORDS = 10_000_000  # a curve; more would fill the memory before training starts
console = Console()


@dataclass(frozen=True)
class Plan:
    """A sweep's trials and what the tracking store has of them."""

    sweep: Sweep
    trials: tuple[Trial, ...]
    runs: Mapping[str, list[Recorded]]

    def finished(self, trial: Trial) -> Recorded | None:
        """The finished run of a trial."""
        return next((run for run in self.runs.get(trial.id, []) if run.finished), None)

    @property
    def missing(self) -> list[Trial]:
        """The trials that no run has finished, in the sweep's order."""
        return [trial for trial in self.trials if self.finished(trial) is None]


def run(selection: Selection, running: Running) -> int:
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
        share_of(trials, running, [this_machine()])
    if running.dry_run and missing_file(selection.tracking_uri):  # a dry run makes no store
        report_plan(Plan(first, trials, {}))
        report_dry_run(trials, running, address, selection.tracking_uri)
        return 0
    store = Store(selection.tracking_uri)
    with ExitStack() as stack:
        trainer = Trainer(store, running, address, stack)
        stages = selection.stages(store.reader())
        while True:
            sweep, early = next_stage(stages)
            if sweep is None:
                break
            plan = Plan(sweep, sweep.trials(), store.recorded())
            report_plan(plan)
            if running.dry_run:
                if plan.missing:
                    break  # what comes next, if anything, depends on these
                continue
            trainer.clear(plan)
            endings: Mapping[str, Ending] = {}
            if plan.missing:
                plan, endings = trainer.train(plan)
            console.print(result_table(plan))
            if plan.missing:
                return report_missing(plan, selection, running, endings)
    if early:
        say(early)
    if running.dry_run:
        report_dry_run(trials, running, address, store.uri)
    else:
        say(f"All trials are done. Next: {selection.command('analysis')}")
    return 0


def connect(address: str | None, tracking_uri: str, private: Path, stack: ExitStack) -> list[Node]:
    """Start Ray here, or join the cluster at `address`, until `stack` closes; the nodes there are.

    Raises:
        BadInputError: It cannot be, or not all nodes could reach the tracking store.
    """
    from sweeps import launch  # Ray and torch take seconds to import: only where they are needed

    stack.callback(launch.disconnect, private)
    nodes = launch.connect(address, this_machine(), private)
    if len(nodes) > 1 and sqlite_file(tracking_uri):
        raise BadInputError(
            f"the tracking store {tracking_uri} is a file of one machine, but the cluster has {len(nodes)}; "
            "name a server or a database that all of them reach with --tracking-uri"
        )
    return nodes


def share_of(
    trials: Sequence[Trial], running: Running, nodes: Sequence[Node], measured: Mapping[str, float] | None = None
) -> Share:
    """What the trials get of the nodes, given what was measured of some architectures.

    Raises:
        BadInputError: A trial asks for more than any node has.
    """
    architectures = dict.fromkeys(trial.architecture for trial in trials)
    gpus = gpu_shares(parse_gpus(running.gpus_per_trial), architectures, nodes, measured)
    return share(running.cpus_per_trial, gpus, nodes, running.max_concurrent)


def private_folder(storage: Path) -> Path:
    """Where Ray keeps sockets and logs for sweeps with this storage: short, as socket paths must be.

    The same for every driver of the storage, so that the next one clears away what a killed one has left.
    """
    name = hashlib.sha256(str(storage).encode()).hexdigest()[:8]
    return Path(os.environ.get("RAY_TMPDIR") or "/tmp") / f"neural-sweeps-{os.getuid()}-{name}"


class Trainer:
    """Trains what is missing. Data and Ray are there from the first trial that needs them until `stack` closes."""

    def __init__(self, store: Store, running: Running, address: str | None, stack: ExitStack) -> None:
        self.store = store
        self.running = running
        self.address = address
        self.stack = stack
        self.storage = running.storage.absolute()
        self.private = private_folder(self.storage)
        self.storage_name = f"{socket.gethostname()}:{self.storage}"
        self.nodes: list[Node] | None = None
        self.share: Share | None = None
        self.data: Dataset | None = None
        self.measured = Measured()

    def start(self, trial: Trial) -> list[Node]:
        """Load the data that all trials of an experiment share, and start Ray meanwhile, which mostly waits."""
        from sweeps import launch
        from trainables import datasets

        with ThreadPoolExecutor(1) as beside:
            images = trial.dataset != XOR
            data = (
                beside.submit(datasets.load, trial.dataset, self.running.data_root, trial.pipeline) if images else None
            )
            nodes = connect(self.address, self.store.uri, self.private, self.stack)
        if data is not None:
            self.data = data.result()
            parts = (self.data.train_labels, self.data.val_labels, self.data.test_labels)
            counts = " + ".join(f"{len(part):,}" for part in parts)
            say(f"{trial.dataset}: {counts} images (training, validation, test)")
        if self.address is not None:
            launch.check_shared(self.storage)
        return nodes

    def share_of(self, trials: Sequence[Trial]) -> Share:
        """What the trials get of the nodes; measured, where that is asked for."""
        from sweeps import launch

        self.nodes = self.nodes or self.start(trials[0])
        self.measure(trials, self.nodes)
        measured = {name: share_for(part) for name, part in self.measured.memory.items()}
        found = share_of(trials, self.running, self.nodes, measured)
        if any(found.gpus.values()) and self.address is None:
            launch.check_gpu()
        return found

    def measure(self, trials: Sequence[Trial], nodes: Sequence[Node]) -> None:
        """Try what the sweep is to plan with."""
        if self.data is None:
            return
        asked = parse_gpus(self.running.gpus_per_trial)
        gpus = share_of(trials, self.running, nodes).gpus
        unknown = [name for name, share in gpus.items() if share and asked.get(name, asked.get("", 0.0)) is None]
        most = parse_pack(self.running.pack) or MOST_TRIALS
        if unknown:
            say("Measuring how much GPU memory training takes, once there is a GPU for it")
        self.measured = measure(trials, gpus, unknown, most, self.data, self.running.cpus_per_trial, self.storage)
        if unknown and not self.measured.memory:
            say(f"PyTorch finds no usable GPU to measure on: {SHARED_GPU} of a GPU a trial")

    def train(self, plan: Plan) -> tuple[Plan, Mapping[str, Ending]]:
        """Train the plan's missing trials; the plan as it is then, and what came of those that were tried, by id.

        Raises:
            BadInputError: Another sweep trains these trials, or with this storage.
        """
        started = time.monotonic()
        experiment_id, parent_run_id = self.store.parent(plan.sweep.name, plan.missing[0].dataset)
        lock = FileLock(self.storage / "sweep.lock", blocking=False)
        with writing(self.storage):
            self.storage.mkdir(parents=True, exist_ok=True)
            try:
                held = lock.acquire()
            except Timeout:
                raise BadInputError(
                    f"another sweep trains with --storage {self.running.storage}; wait for it, or name another folder"
                ) from None
        with held, claimed(self.store, plan.sweep.name, parent_run_id, self.storage_name, say) as driver:
            target = self.target(experiment_id, parent_run_id, driver)
            self.take_over(self.renewed(plan))
            refused = self.deliver(plan, target, patience_seconds=0)
            plan = self.renewed(plan)  # another sweep may just have trained them
            endings: Mapping[str, Ending] = {}
            try:
                endings = self.submit(plan, target, [trial for trial in plan.missing if trial.id not in refused])
                refused |= self.deliver(plan, target, PATIENCE_SECONDS)
            except BaseException:
                with suppress(TrackingError):
                    settle(self.renewed(plan), self.store, endings, driver)
                raise
            patience_seconds = 0 if refused else PATIENCE_SECONDS
            try:
                after = patiently(lambda: settle(self.renewed(plan), self.store, endings, driver), patience_seconds)
            except TrackingError as error:
                say(str(error), style="red")
                after = plan  # the last that was seen of the store
        report_endings(plan, after, endings, refused, time.monotonic() - started)
        return after, endings

    def target(self, experiment_id: str, parent_run_id: str, driver: str) -> Target:
        """Where the trials keep what they have."""
        from trainables.delivery import Target

        return Target(
            tracking_uri=self.store.uri,
            experiment_id=experiment_id,
            parent_run_id=parent_run_id,
            storage=self.storage,
            storage_name=self.storage_name,
            driver=driver,
            tags=provenance(),
        )

    def renewed(self, plan: Plan) -> Plan:
        """The plan with what the store has now."""
        return Plan(plan.sweep, plan.trials, self.store.recorded())

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
                if alive(self.store, recorded.driver):
                    raise BadInputError(
                        f"'{recorded.name}' trains in {recorded.experiment} with --storage {recorded.storage}; wait "
                        "for that sweep to end, or stop it"
                    )
                dead.add(recorded.driver)
            self.store.close(recorded.run_id, "KILLED")

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

    def deliver(self, plan: Plan, target: Target, patience_seconds: float) -> dict[str, str]:
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
                store_failure = store_failure or deliver_one(folder, labels[trial.id], target, deadline)
                if store_failure:
                    refused[trial.id] = store_failure
            except BadInputError as error:  # of this trial alone
                refused[trial.id] = str(error)
        return refused

    def submit(self, plan: Plan, target: Target, trials: Sequence[Trial]) -> Mapping[str, Ending]:
        """Hand trials of the plan to Ray; what came of them, by id."""
        if not trials:
            return {}
        from sweeps import launch
        from trainables.trainable import Settings

        trial_share = self.share_of(trials)
        if trial_share != self.share:
            report_share(trial_share)
        self.share = trial_share
        if self.data is not None:
            check_records(trials, len(self.data.train_labels))
            target = replace(target, tags={**target.tags, "data_checksum": self.data.checksum})
        most = parse_pack(self.running.pack)
        settings = Settings(
            target=target,
            threads=trial_share.cpus,
            checkpoint_seconds=self.running.checkpoint_seconds,
            stacked=self.measured.stacked,
            convolutions=self.measured.convolutions,
            compiled=self.running.compile_steps,
        )
        images = None if self.data is None else Images.of(self.data)
        names, at_once = plan.sweep.labels(), trial_share.at_once

        def train(trials: Sequence[Trial], gpus: Mapping[str, float]) -> dict[str, Ending]:
            packed = packs(trials, names, gpus, images, settings.stacked, at_once, most)
            report_packs(packed, settings.stacked)
            report_convolutions(packed, settings.stacked, settings.convolutions)
            return launch.train(packed, self.data, settings, at_once, self.private, console)

        return retried(trials, {trial.id: trial_share.gpus[trial.architecture] for trial in trials}, train)


def retried(
    trials: Sequence[Trial],
    gpus: Mapping[str, float],
    train: Callable[[Sequence[Trial], Mapping[str, float]], Mapping[str, Ending]],
) -> Mapping[str, Ending]:
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


def deliver_one(folder: TrialFolder, name: str, target: Target, deadline: float) -> str | None:
    """Bring one kept result into the store, trying until `deadline` (`time.monotonic`); why it does not take it."""
    from trainables.delivery import Delivery

    with folder.claimed():
        if folder.result() is None:  # damaged, and set aside: the trial goes on from its last checkpoint
            return None
        delivery = Delivery(folder, name, target)
        delivery.result()
        if delivery.failure and time.monotonic() < deadline:
            say(f"{delivery.failure}: waiting for up to {deadline - time.monotonic():.0f} seconds")
        while delivery.failure and time.monotonic() < deadline:
            time.sleep(2)
            delivery.result()
        return delivery.failure


def check_records(trials: Sequence[Trial], train_images: int) -> None:
    """Raise `BadInputError` for a trial that ends before its first record, or before its schedule does."""
    for trial in trials:
        steps = trial.epochs * trial.steps_per_epoch(train_images)
        if trial.milestones and trial.milestones[-1][0] >= steps:
            raise BadInputError(
                f"the learning rate is to change after step {trial.milestones[-1][0]}, but {trial.epochs} epochs end "
                "before; raise --schedule-epochs, or give earlier --milestones"
            )
        records = steps // trial.record_interval(train_images)
        if records > MOST_RECORDS:
            raise BadInputError(
                f"{trial.epochs} epochs in batches of {trial.batch_size} make {records:,} records a curve; at most "
                f"{MOST_RECORDS:,} are kept: lower --epochs or raise the batch size"
            )
        if records == 0:
            raise BadInputError(
                f"{trial.epochs} epochs in batches of {trial.batch_size} make {steps} steps, but the first record is "
                f"at step {trial.record_every_steps}; raise --epochs or lower the batch size"
            )


def provenance() -> dict[str, str]:
    """Which code and which libraries train: tags of every run."""
    commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    here = (commit or "unknown") + (" with changes" if changed else "")
    libraries = ("neural-sweeps", "torch", "torchvision", "numpy", "ray", "mlflow")
    return {
        "git_commit": os.environ.get("SWEEPS_COMMIT") or here,  # of the checkout that a job's code came from
        "python_version": sys.version.split()[0],
        **{f"{library}_version": installed(library) for library in libraries},
    }


def installed(library: str) -> str:
    """The version of a library; this project itself lies on a cluster's nodes without being installed."""
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


def git(*words: str) -> str:
    """What git says of this checkout; nothing without git or outside a checkout."""
    try:
        folder = str(Path(__file__).parent)
        return subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def settle(plan: Plan, store: Store, endings: Mapping[str, Ending], driver: str) -> Plan:
    """Leave none of this driver's runs standing as RUNNING once nothing trains, nor beside a finished one; the plan."""
    for trial in plan.trials:
        for recorded in plan.runs.get(trial.id, []):
            if recorded.finished or recorded.driver != driver:
                continue
            if plan.finished(trial):  # an answer of the store was lost when the run was made, so another one was
                store.delete(recorded.run_id)
            elif recorded.status == "RUNNING":
                ending = endings.get(trial.id)
                store.close(recorded.run_id, "FAILED" if ending is not None and ending.error else "KILLED")
    return plan


def say(text: str, style: str | None = None) -> None:
    """Print a line as it is, without markup or wrapping, so that commands can be copied."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def report_plan(plan: Plan) -> None:
    """Print how many trials are done and missing, and which sweeps' experiments hold those that are done."""
    done = [recorded for trial in plan.trials if (recorded := plan.finished(trial))]
    elsewhere = Counter(recorded.experiment for recorded in done if recorded.experiment != plan.sweep.name)
    reused = "".join(f", {count} of them from {experiment}" for experiment, count in elsewhere.items())
    say(f"{plan.sweep.name}: {len(plan.trials)} trials, {len(done)} done{reused}, {len(plan.missing)} missing")


def report_share(trial_share: Share) -> None:
    """Print what a trial gets."""
    shares = {f"{gpus:g}" for gpus in trial_share.gpus.values()}
    each = ", ".join(shares if len(shares) == 1 else (f"{gpus:g} ({name})" for name, gpus in trial_share.gpus.items()))
    at_most = "" if len(shares) == 1 else "up to "
    say(
        f"Resources: {trial_share.cpus} CPU and {each} GPU a process, {at_most}{trial_share.at_once} "
        f"{'processes' if trial_share.at_once > 1 else 'process'} at once"
    )


def report_packs(packed: Sequence[Pack], stacked: Collection[str]) -> None:
    """Print which trials share a process, if any do."""
    trials = sum(len(pack.trials) for pack in packed)
    if trials > len(packed):
        side_by_side = dict.fromkeys(t.architecture for p in packed for t in p.trials if t.architecture in stacked)
        how = f"; side by side: {', '.join(side_by_side)}" if side_by_side else ""
        say(f"Packs: {trials} trials in {len(packed)}{how}")


def report_convolutions(packed: Sequence[Pack], stacked: Collection[str], way: str | None) -> None:
    """Print how convolutions on the CPU are computed, if there are any but in stacks."""
    alone = {trial.architecture for pack in packed if not pack.gpus for trial in pack.trials} - {*stacked}
    if not any(convolves(architecture) for architecture in alone):
        return
    if way == OWN:
        say("Convolutions: by code compiled where they are computed")
    else:
        how = f", limited to {way}" if limit(way) else ""
        hint = (
            "" if shutil.which("c++") else f"; a C++ compiler (g++), and no {FILE} in the storage, may make them faster"
        )
        say(f"Convolutions: by PyTorch{how}{hint}")


def report_dry_run(trials: Sequence[Trial], running: Running, address: str | None, tracking_uri: str) -> None:
    """Print what a trial would get, of the cluster if there is one."""
    with ExitStack() as stack:
        # Not the sweep's own folder: another driver may be training, with its files there.
        private = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="neural-sweeps-", ignore_cleanup_errors=True))
        )
        nodes = connect(address, tracking_uri, private, stack) if address else [this_machine()]
        report_share(share_of(trials, running, nodes))
    if None in parse_gpus(running.gpus_per_trial).values() and any(node.gpus > 0 for node in nodes):
        say("Shares of a GPU that are to be measured may come out smaller or larger.")


def report_endings(
    before: Plan, after: Plan, endings: Mapping[str, Ending], refused: Mapping[str, str], seconds: float
) -> None:
    """Print how many trials were trained, and what a person should know of single ones."""
    labels = before.sweep.labels()
    well = {trial_id for trial_id, ending in endings.items() if not ending.error}
    trained = sum(after.finished(trial) is not None or trial.id in well for trial in before.missing)
    say(f"Trained {trained} of {len(before.missing)} trials in {seconds:.0f} seconds.")
    for trial_id, ending in endings.items():
        for note in ending.notes:
            say(f"note: {labels[trial_id]}: {note}", style="yellow")
    if refused:
        reason = next(iter(refused.values()))
        say(f"The results of {len(refused)} trained trials wait in the storage folder: {reason}", style="red")


def report_missing(plan: Plan, selection: Selection, running: Running, endings: Mapping[str, Ending]) -> int:
    """Print what failed and how to go on; the exit status."""
    labels = plan.sweep.labels()
    tried = {trial.id: endings.get(trial.id) for trial in plan.missing}
    failed = {trial_id: ending.error for trial_id, ending in tried.items() if ending is not None and ending.error}
    for trial_id, error in failed.items():
        say(f"failed: {labels[trial_id]}: {error}", style="red")
    others = [trial for trial in plan.missing if trial.id not in failed]
    trained = sum(trial.id in endings or TrialFolder(running.storage, trial).has_result for trial in others)
    stopped = len(others) - trained
    say(
        f"{len(plan.missing)} trials are missing ({len(failed)} failed, {stopped} stopped, {trained} trained but not "
        f"seen in the store). To go on: {selection.command('sweeps', running)}"
    )
    return 130 if stopped else 1


def result_table(plan: Plan) -> Table:
    """Test accuracy by those of the axes, other than the seed, that have several values or names."""
    axes = [
        axis
        for axis, values in plan.sweep.axes.items()
        if axis != "seed" and (len(values) > 1 or isinstance(values, Mapping))
    ]
    groups: dict[tuple[str, ...], dict[str, Recorded]] = {}
    for values, trial in plan.sweep.cells():
        group = tuple(str(value) for axis, value in zip(plan.sweep.axes, values, strict=True) if axis in axes)
        runs = groups.setdefault(group, {})
        if (recorded := plan.finished(trial)) is not None:
            runs[trial.id] = recorded
    any_diverged = any(run.diverged for runs in groups.values() for run in runs.values())
    table = Table(title="Test accuracy (%)")
    for axis in axes:
        table.add_column(axis.replace("_", " "))
    for heading in ("trials", *(["diverged"] if any_diverged else []), "mean ± 95 % CI over seeds", "best run"):
        table.add_column(heading, justify="right")
    for group, runs in groups.items():
        found = [run.test_accuracy for run in runs.values() if run.test_accuracy is not None]
        diverged = [str(sum(run.diverged for run in runs.values()))] if any_diverged else []
        summary = (mean_text(found), f"{max(found):.2f}") if found else ("–", "–")
        table.add_row(*group, str(len(found)), *diverged, *summary)
    return table

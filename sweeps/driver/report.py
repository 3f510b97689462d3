"""The lines that a sweep prints: its plan, its allocation, its outcomes, and what is missing."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from rich.console import Console

from sweeps.driver.autotune import CACHE_FILE
from sweeps.driver.options import DEFAULT_STORAGE, RunOptions
from sweeps.driver.plan import Plan
from sweeps.driver.resources import Allocation
from sweeps.driver.streams import is_coloured, is_terminal
from sweeps.experiment import DEFAULT_DATA_ROOT, JOB_ADDRESS_VARIABLE, SweepOptions, format_options
from sweeps.sweep import format_count
from trainables.accelerated.backends import NATIVE, get_environment
from trainables.architectures import has_convolution
from trainables.persistence.end_state import Start
from trainables.persistence.stored_run import StoredRun, describe_ignored
from trainables.persistence.trial_folder import TrialFolder
from trainables.worker.pack import Outcome, Pack


def make_console() -> Console:
    """Return a console for standard output; its `is_terminal` says whether a progress bar can be drawn there."""
    live, coloured = is_terminal(sys.stdout), is_coloured(sys.stdout)
    return Console(
        force_terminal=live,
        force_interactive=live,
        color_system=("auto" if live else "standard") if coloured else None,
        no_color=not coloured,
    )


console = make_console()


def say(text: str, style: str | None = None) -> None:
    """Print a line as it is, without markup or wrapping, so that a command in it can be copied."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def print_plan(plan: Plan, ignored: Collection[StoredRun] = (), starts: Collection[Start] = ()) -> None:
    """Print how many trials are done and missing, which other experiments hold those that are done, and ignored runs.

    Args:
        plan: The plan.
        ignored: Runs that the store has ignored, those of other sweeps among them.
        starts: The runs of shorter trials from which missing ones go on.
    """
    done = [run for trial in plan.trials if (run := plan.find_finished(trial))]
    elsewhere = Counter(run.experiment for run in done if run.experiment != plan.sweep.name)
    reused = "".join(f", {count} of them from {experiment}" for experiment, count in elsewhere.items())
    trials = format_count(len(plan.trials), "trial")
    name = ", ".join(filter(None, (plan.sweep.name, plan.sweep.heading)))
    say(f"{name}: {trials}, {len(done)} done{reused}, {len(plan.missing)} missing")
    if starts:
        lengths = Counter(start.epochs for start in starts)
        after = " and ".join(f"{count} after {format_count(n, 'epoch')}" for n, count in sorted(lengths.items()))
        go_on = "goes on from a shorter one" if len(starts) == 1 else "go on from shorter ones"
        say(f"{len(starts)} of the missing trials {go_on}: {after}")
    if line := describe_ignored(ignored, plan.sweep.labels()):
        say(line, style="yellow")


def print_allocation(allocation: Allocation) -> None:
    """Print what a process gets of the nodes."""
    shares = {f"{gpus:g}" for gpus in allocation.gpus.values()}
    each = ", ".join(shares if len(shares) == 1 else (f"{gpus:g} ({name})" for name, gpus in allocation.gpus.items()))
    at_most = "" if len(shares) == 1 else "up to "
    say(
        f"Resources: {allocation.cpus} CPU and {each} GPUs per process, {at_most}{allocation.at_once} "
        f"{'processes' if allocation.at_once > 1 else 'process'} at once"
    )


def print_packs(packs: Sequence[Pack], stacked: Collection[str]) -> None:
    """Print the number of packs and the architectures in stacks, if any trials share a process."""
    trials = sum(len(pack.trials) for pack in packs)
    if trials > len(packs):
        in_stacks = dict.fromkeys(t.architecture for pack in packs for t in pack.trials if t.architecture in stacked)
        which = f"; trained side by side: {', '.join(in_stacks)}" if in_stacks else ""
        say(f"Packs: {trials} trials in {len(packs)} {'packs' if len(packs) > 1 else 'pack'}{which}")


def print_backend(packs: Sequence[Pack], stacked: Collection[str], backend: str | None) -> None:
    """Print the backend of convolutions on the CPU, if there are any outside of stacks."""
    alone = {trial.architecture for pack in packs if not pack.gpus for trial in pack.trials} - {*stacked}
    if not any(has_convolution(architecture) for architecture in alone):
        return
    if backend == NATIVE:
        say("Convolutions: the native backend, compiled on the machine that trains")
        return
    how = f", limited to {backend}" if get_environment(backend) else ""
    hint = f"; the native backend may be faster: install g++, and delete {CACHE_FILE} in the storage folder"
    say(f"Convolutions: PyTorch{how}{'' if shutil.which('c++') else hint}")


def print_outcomes(
    before: Plan, after: Plan, outcomes: Mapping[str, Outcome], refused: Mapping[str, str], seconds: float
) -> None:
    """Print how many trials were trained, and the notes on single ones.

    Args:
        before: The plan before training.
        after: The plan after training.
        outcomes: Trial id → outcome of the trials that were tried.
        refused: Trial id → the reason why the result was not delivered.
        seconds: The time that all this took.
    """
    labels = before.sweep.labels()
    well = {trial_id for trial_id, outcome in outcomes.items() if not outcome.error}
    trained = sum(after.find_finished(trial) is not None or trial.id in well for trial in before.missing)
    say(f"Trained {trained} of {format_count(len(before.missing), 'trial')} in {seconds:.0f} seconds.")
    for trial_id, outcome in outcomes.items():
        for note in outcome.notes:
            say(f"note: {labels[trial_id]}: {note}", style="yellow")
    if refused:
        reason = next(iter(refused.values()))
        count = format_count(len(refused), "trained trial")
        say(f"The results of {count} wait in the storage folder: {reason}", style="red")


def print_missing(
    plan: Plan,
    options: SweepOptions,
    run_options: RunOptions,
    outcomes: Mapping[str, Outcome],
    *,
    ray_failed: bool,
) -> int:
    """Print what failed and how to continue, and return the exit status."""
    labels = plan.sweep.labels()
    tried = {trial.id: outcomes.get(trial.id) for trial in plan.missing}
    failed = {trial_id: outcome.error for trial_id, outcome in tried.items() if outcome is not None and outcome.error}
    for trial_id, error in failed.items():
        say(f"failed: {labels[trial_id]}: {error}", style="red")
    others = [trial for trial in plan.missing if trial.id not in failed]
    trained = sum(trial.id in outcomes or TrialFolder(run_options.storage, trial).has_result for trial in others)
    stopped = len(others) - trained
    ended = "not trained because Ray failed" if ray_failed else "stopped"
    command = options.format_command("sweeps", list_run_options(run_options))
    missing = f"{format_count(len(plan.missing), 'trial')} {'is' if len(plan.missing) == 1 else 'are'} missing"
    say(
        f"{missing} ({len(failed)} failed, {stopped} {ended}, {trained} trained but not seen in the store). "
        f"To go on: {command}"
    )
    return 130 if stopped and not ray_failed else 1


def list_run_options(run_options: RunOptions) -> list[str]:
    """Return the words of a command line that repeat the options, and the folders that variables have named."""
    in_job = JOB_ADDRESS_VARIABLE in os.environ  # the cluster's variables are there for the next job, too
    usual = RunOptions() if in_job else RunOptions(data_root=DEFAULT_DATA_ROOT, storage=DEFAULT_STORAGE)
    return format_options(run_options, usual)

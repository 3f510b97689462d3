"""The faults: each function runs a sweep in a laboratory, does harm, and runs the same command again.

A docstring is the fault's name in the table. Whoever returns has survived so far; the laboratory then
holds all that was recorded against an undisturbed sweep.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from chaos.lab import Lab, Run, check, remount

SOAK_KILLS = 30
SOAK_SEED = 20261122
OUTAGE_SECONDS = 60
Fault = Callable[[Lab], None]


def name(fault: Fault) -> str:
    """What the table calls a fault."""
    return (fault.__doc__ or "").rstrip(".")


def worker_killed(lab: Lab) -> None:
    """Worker SIGKILLed in mid-epoch."""
    run = lab.start()
    lab.in_the_middle(run)
    run.workers()[0].kill()
    lab.injected = True
    run.ends_with(0)
    lab.same_command_again()


def in_a_stack(fault: Fault) -> Fault:
    """The same fault, where three trials train side by side in a process."""

    def stacked(lab: Lab) -> None:
        fault(lab)
        check("Packs: 3 trials in 1; side by side: mlp_1" in lab.runs[0].output(), "the trials were not stacked")

    stacked.__doc__ = f"{name(fault)}, three trials in a stack"
    return stacked


def dies_at(place: str) -> Fault:
    """A fault: the worker dies at a place of `inject/sitecustomize.py`, once."""

    def fault(lab: Lab) -> None:
        lab.start(DIE=place).ends_with(0)
        lab.injected = not lab.token.exists()
        lab.same_command_again()

    fault.__doc__ = f"Worker SIGKILLed right after: {place}"
    return fault


def answer_lost(lab: Lab) -> None:
    """The store makes a run, but its answer is lost."""
    lab.start(DIE="run made").ends_with(0)
    lab.injected = not lab.token.exists()
    lab.same_command_again()


def driver_killed(lab: Lab) -> None:
    """Driver SIGKILLed."""
    run = lab.start()
    lab.in_the_middle(run)
    run.kill()
    lab.injected = True
    lab.same_command_again()


def driver_stopped(kind: signal.Signals, *, group: bool = False) -> Fault:
    """A fault: a signal asks the driver, or its whole process group, to stop."""

    def fault(lab: Lab) -> None:
        run = lab.start()
        lab.in_the_middle(run)
        (os.killpg if group else os.kill)(run.process.pid, kind)
        lab.injected = True
        output = run.ends_with(130)
        check("To go on: python sweeps/part3.py" in output, f"no summary: {output}")
        lab.same_command_again()

    fault.__doc__ = f"{'Process group' if group else 'Driver'} {kind.name}ed"
    return fault


def driver_killed_while_it_starts(lab: Lab) -> None:
    """Driver SIGKILLed while it starts trials."""
    run = lab.start()
    trials = lab.storage / "trials"
    lab.wait_until(lambda: trials.exists() and any(trials.iterdir()), "trials", run)
    run.kill()
    lab.injected = True
    lab.same_command_again()


def driver_dead_elsewhere(lab: Lab) -> None:
    """Driver SIGKILLed, then the same sweep with another storage."""
    run = lab.start(lab.folder / "elsewhere")
    trials = lab.folder / "elsewhere" / "trials"
    lab.wait_until(lambda: len(list(trials.glob("*/[0-9]*.checkpoint"))) >= 4, "checkpoints", run)
    run.kill()
    lab.injected = True
    output = lab.same_command_again()
    check("watching for a sign of life" in output, f"the dead driver's claim was not noticed: {output}")
    lab.start(lab.folder / "elsewhere").ends_with(0)  # clears away what it had kept there
    check(not any(trials.iterdir()), "checkpoints of finished trials are left elsewhere")


def node_removed(lab: Lab) -> None:
    """Node removed."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "1000",
        "RAY_health_check_failure_threshold": "3",
        "RAY_TMPDIR": tempfile.mkdtemp(prefix="chaos-"),
        "PYTHONPATH": lab.environment()["PYTHONPATH"],
        "CHAOS_STEP_SECONDS": "0.02",
    }
    lab.server()
    with (lab.folder / "cluster.log").open("wb") as log:
        cluster = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "ray_nodes.py")],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert cluster.stdin is not None
        assert cluster.stdout is not None
        try:
            address = cluster.stdout.readline().strip()
            names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_TMPDIR")
            lab.variables = {"RAY_ADDRESS": address, **{name: environment[name] for name in names}}
            run = lab.start()
            lab.in_the_middle(run)
            cluster.stdin.write("remove\n")
            cluster.stdin.flush()
            lab.injected = cluster.stdout.readline().strip() == "removed"
            run.ends_with(0)
            lab.same_command_again()
        finally:
            cluster.stdin.close()
            cluster.wait(60)


def server_killed(when_back: str, outage_seconds: float = 0) -> Fault:
    """A fault: the tracking server dies in the middle, and is started again after an outage."""

    def fault(lab: Lab) -> None:
        tracking = lab.server()
        run = lab.start()
        lab.in_the_middle(run)
        tracking.kill()
        lab.injected = True
        if outage_seconds:
            time.sleep(outage_seconds)
            check(len(lab.results()) == 2, "training stopped while the server was away")
        tracking.start()
        run.ends_with(0)
        lab.same_command_again()

    fault.__doc__ = f"Tracking server SIGKILLed{when_back}"
    return fault


def store_full(lab: Lab) -> None:
    """Tracking store's disk full: results are kept, and sent by the next command."""
    disk = lab.folder / "disk"
    lab.small_disk(disk, 40)
    lab.uri = f"sqlite:///{disk}/mlflow.db"
    run = lab.start(PATIENCE="5")
    lab.in_the_middle(run)
    fill(disk)
    lab.injected = True
    output = run.ends_with(1)
    check("2 trained but not seen in the store" in output, f"the results were not kept: {output}")
    (disk / "filler").unlink()
    lab.same_command_again(NO_TRAINING="1")


def storage_full(lab: Lab) -> None:
    """Storage full."""
    lab.small_disk(lab.storage, 8)
    run = lab.start()
    lab.in_the_middle(run)
    fill(lab.storage)
    lab.injected = True
    output = run.ends_with(1)
    check("No space left on device" in output, f"the reason is not given: {output}")
    (lab.storage / "filler").unlink()
    lab.same_command_again()


def storage_read_only(lab: Lab) -> None:
    """Driver SIGKILLed, then the storage read-only for a while."""
    lab.small_disk(lab.storage, 8)
    run = lab.start()
    lab.in_the_middle(run)
    run.kill()
    lab.injected = True
    time.sleep(3)  # for the workers to die: a file system with open files cannot be made read-only
    remount(lab.storage, "ro")
    output = lab.start().ends_with(2)
    check("Read-only file system" in output, f"the reason is not given: {output}")
    remount(lab.storage, "rw")
    lab.same_command_again()


def checkpoint_damaged(how: str) -> Fault:
    """A fault: the newest checkpoint of each trial is damaged while nothing runs."""

    def fault(lab: Lab) -> None:
        run = lab.start()
        lab.in_the_middle(run)
        run.kill()
        lab.injected = True
        time.sleep(3)  # for the workers to die
        newest = {path.parent: path for path in reversed(lab.checkpoints())}
        for path in newest.values():
            content = path.read_bytes()
            middle = len(content) // 2
            if how == "truncated":
                path.write_bytes(content[:middle])
            else:
                path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        output = lab.same_command_again()
        check(output.count("could not be used") == len(newest), f"the damage was not said: {output}")

    fault.__doc__ = f"Newest checkpoint {how}"
    return fault


def two_drivers(lab: Lab) -> None:
    """Two drivers at once, on one storage."""
    run = lab.start()
    lab.in_the_middle(run)
    output = lab.start().ends_with(2)
    check("another sweep trains with --storage" in output, f"the second does not say so: {output}")
    lab.injected = run.process.poll() is None
    run.ends_with(0)
    lab.same_command_again()


def two_drivers_on_one_store(lab: Lab) -> None:
    """Two drivers at once, on one store with two storages."""
    lab.words = (*lab.words, "--max-concurrent", "1")  # the first is to outlast the second's look at it
    run = lab.start(STEP_SECONDS="0.06")
    lab.wait_until(lambda: len(lab.checkpoints()) >= 2, "checkpoints", run)
    output = lab.start(lab.folder / "elsewhere").ends_with(2)
    check("trains already, with --storage" in output, f"the second does not say so: {output}")
    lab.injected = run.process.poll() is None
    run.ends_with(0)
    lab.same_command_again()


def clock_stepped(seconds: int) -> Fault:
    """A fault: the clock jumps in every Python process."""

    def fault(lab: Lab) -> None:
        lab.start(CLOCK_SECONDS=str(seconds)).ends_with(0)
        lab.injected = not lab.token.exists()
        lab.same_command_again()

    fault.__doc__ = f"Clock stepped {'back' if seconds < 0 else 'forward'} an hour"
    return fault


def soak(lab: Lab) -> None:
    """Soak: 30 random kills of workers and drivers."""
    generator = random.Random(SOAK_SEED)
    run = lab.start(STEP_SECONDS="0.2")
    kills = 0
    while kills < SOAK_KILLS:
        time.sleep(generator.uniform(1, 8))
        if run.process.poll() is not None:  # chance may have killed a trial's workers three times at the same point
            output = run.ends_with(1)
            check("ended 3 times at the same point: its process was killed" in output, output)
            run = lab.start(STEP_SECONDS="0.2")
        elif generator.random() < 0.75:
            kills += kill_a_worker(run, generator)
        else:
            run.kill()
            kills += 1
            run = lab.start(STEP_SECONDS="0.2")
    lab.injected = True
    run.kill()
    lab.same_command_again(STEP_SECONDS="0")


def kill_a_worker(run: Run, generator: random.Random) -> bool:
    """Kill a worker, if there is one; whether there was."""
    workers = run.workers()
    try:
        if workers:
            generator.choice(workers).kill()
    except psutil.NoSuchProcess:
        return False
    return bool(workers)


def fill(disk: Path) -> None:
    """Leave no room on a file system."""
    with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


# Those in CI first: a minute or two.
QUICK: tuple[Fault, ...] = (
    server_killed(" and restarted"),
    dies_at("points sent"),
)
STACKS_QUICK: tuple[Fault, ...] = (in_a_stack(driver_killed),)
STACKS: tuple[Fault, ...] = (
    *STACKS_QUICK,
    in_a_stack(worker_killed),
    *(in_a_stack(dies_at(place)) for place in ("checkpoint written", "points sent", "result written", "run finished")),
    in_a_stack(server_killed(" and restarted")),
    in_a_stack(checkpoint_damaged("with one bit flipped")),
)
ALL: tuple[Fault, ...] = (
    server_killed(", back after a minute", OUTAGE_SECONDS),  # the longest first
    node_removed,
    *QUICK,
    driver_killed,
    driver_stopped(signal.SIGTERM, group=True),
    checkpoint_damaged("truncated"),
    two_drivers,
    worker_killed,
    dies_at("run finished"),
    dies_at("checkpoint written"),
    dies_at("result written"),
    dies_at("artifacts sent"),
    answer_lost,
    driver_stopped(signal.SIGTERM),
    driver_stopped(signal.SIGINT),
    driver_stopped(signal.SIGHUP),
    driver_killed_while_it_starts,
    driver_dead_elsewhere,
    two_drivers_on_one_store,
    store_full,
    storage_full,
    storage_read_only,
    checkpoint_damaged("with one bit flipped"),
    clock_stepped(-3600),
    clock_stepped(3600),
)

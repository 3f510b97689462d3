"""Faults: each starts a sweep in a laboratory, does harm to it, and runs the same command again.

A fault raises `NotSurvivedError` as soon as it sees that it was not survived. If it returns, the laboratory compares
everything in the store with an undisturbed sweep.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from chaos.lab import Lab, SweepProcess, check, remount

SOAK_KILLS = 30
SOAK_SEED = 20261122
OUTAGE_SECONDS = 60


@dataclass(frozen=True)
class Fault:
    """A fault that can be injected.

    Attributes:
        name: The fault's name in the table of results.
        inject: Function that runs the sweeps and does the harm.
    """

    name: str
    inject: Callable[[Lab], None]


def fault(name: str) -> Callable[[Callable[[Lab], None]], Fault]:
    """Make a decorator that turns a function into the fault of this name."""
    return lambda inject: Fault(name, inject)


@fault("Worker SIGKILLed in mid-epoch")
def worker_killed(lab: Lab) -> None:
    """Kill one worker."""
    sweep = lab.start()
    lab.wait_for_mid_training(sweep)
    sweep.find_workers()[0].kill()
    lab.injected = True
    sweep.wait_for_status(0)
    lab.rerun()


def in_stack(original: Fault) -> Fault:
    """Return the same fault for three trials that train side by side in one process."""

    @fault(f"{original.name}, three trials in a stack")
    def stacked(lab: Lab) -> None:
        original.inject(lab)
        check(
            "Packs: 3 trials in 1 pack; trained side by side: mlp_1" in lab.sweeps[0].read_output(),
            "the trials were not stacked",
        )

    return stacked


def worker_killed_after(place: str) -> Fault:
    """Return the fault that one worker dies right after a place of `inject/sitecustomize.py`."""

    @fault(f"Worker SIGKILLed right after: {place}")
    def killed(lab: Lab) -> None:
        lab.start(DIE=place).wait_for_status(0)
        lab.injected = not lab.token.exists()
        lab.rerun()

    return killed


@fault("The store makes a run, but its answer is lost")
def answer_lost(lab: Lab) -> None:
    """Let one process lose the store's answer after it has made a trial's run."""
    lab.start(DIE="run made").wait_for_status(0)
    lab.injected = not lab.token.exists()
    lab.rerun()


@fault("Driver SIGKILLed")
def driver_killed(lab: Lab) -> None:
    """Kill the driver."""
    sweep = lab.start()
    lab.wait_for_mid_training(sweep)
    sweep.kill()
    lab.injected = True
    lab.rerun()


def check_summary(output: str) -> None:
    """Check that a sweep's output ends with the command that goes on."""
    check(re.search(r"To go on: \S+ \S*sweeps/part3\.py ", output), f"no summary: {output}")


def driver_stopped(kind: signal.Signals, *, group: bool = False) -> Fault:
    """Return the fault that a signal asks the driver, or its whole process group, to stop."""

    @fault(f"{'Process group' if group else 'Driver'} {kind.name}ed")
    def stopped(lab: Lab) -> None:
        sweep = lab.start()
        lab.wait_for_mid_training(sweep)
        (os.killpg if group else os.kill)(sweep.process.pid, kind)
        lab.injected = True
        output = sweep.wait_for_status(130)
        check_summary(output)
        lab.rerun()

    return stopped


@fault("Driver SIGKILLed while it starts trials")
def driver_killed_at_start(lab: Lab) -> None:
    """Kill the driver as soon as the first trial has a folder."""
    sweep = lab.start()
    trials = lab.storage / "trials"
    lab.wait_until(lambda: trials.exists() and any(trials.iterdir()), "trials", sweep)
    sweep.kill()
    lab.injected = True
    lab.rerun()


@fault("Driver SIGKILLed, then the same sweep with another storage")
def driver_killed_elsewhere(lab: Lab) -> None:
    """Kill a driver that uses another storage, whose trials the next driver then takes over."""
    sweep = lab.start(lab.folder / "elsewhere")
    trials = lab.folder / "elsewhere" / "trials"
    lab.wait_until(lambda: len(list(trials.glob("*/[0-9]*.checkpoint"))) >= 4, "checkpoints", sweep)
    sweep.kill()
    lab.injected = True
    output = lab.rerun()
    check("watching for a sign of life" in output, f"the dead driver's lease was not noticed: {output}")
    lab.start(lab.folder / "elsewhere").wait_for_status(0)  # removes the checkpoints that the dead driver left there
    check(not any(trials.iterdir()), "checkpoints of finished trials are left elsewhere")


@contextmanager
def ray_cluster(lab: Lab, *, step_seconds: float = 0.02) -> Iterator[Callable[[str], str]]:
    """Give the laboratory's sweeps a Ray cluster of three logical nodes; yield a function that sends it a command.

    Args:
        lab: The laboratory.
        step_seconds: Seconds to sleep after every optimiser step.
    """
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "1000",
        "RAY_health_check_failure_threshold": "3",
        "RAY_TMPDIR": tempfile.mkdtemp(prefix="chaos-"),
        "PYTHONPATH": lab.make_environment()["PYTHONPATH"],
        "CHAOS_STEP_SECONDS": f"{step_seconds}",
    }
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
    commands, answers = cluster.stdin, cluster.stdout

    def send(command: str) -> str:
        commands.write(f"{command}\n")
        commands.flush()
        return answers.readline().strip()

    try:
        address = answers.readline().strip()
        names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_TMPDIR")
        lab.variables = {"RAY_ADDRESS": address, **{name: environment[name] for name in names}}
        yield send
    finally:
        commands.close()
        cluster.wait(60)


@fault("Node removed")
def node_removed(lab: Lab) -> None:
    """Remove a node from a Ray cluster of three logical nodes."""
    lab.start_server()
    with ray_cluster(lab) as send:
        sweep = lab.start()
        lab.wait_for_mid_training(sweep)
        lab.injected = send("remove") == "removed"
        sweep.wait_for_status(0)
        lab.rerun()


@fault("Head of the cluster SIGKILLed")
def head_killed(lab: Lab) -> None:
    """Kill the head (GCS) of a Ray cluster; the next command runs on this machine alone."""
    lab.start_server()
    with ray_cluster(lab, step_seconds=0.2) as send:  # the sweep must not end before the death is noticed
        sweep = lab.start()
        lab.wait_for_mid_training(sweep)
        lab.injected = send("kill head") == "killed"
        expect_ray_failure(sweep, "the head of its cluster (GCS) has ended")
    del (
        lab.variables["RAY_ADDRESS"],
        lab.variables["RAY_TMPDIR"],
    )  # the cluster's folder is too long for a sweep's below it
    lab.rerun()


def ray_killed(name: str, reason: str) -> Fault:
    """Return the fault that a process of Ray's on this machine dies.

    Args:
        name: A part of the process's command line.
        reason: The reason that the sweep must give.
    """

    @fault(f"Ray's process SIGKILLed: {name}")
    def killed(lab: Lab) -> None:
        sweep = lab.start(STEP_SECONDS="0.2")  # workers train on for a while: they must not end before this is noticed
        lab.wait_for_mid_training(sweep)
        sweep.find_processes(name)[0].kill()
        lab.injected = True
        expect_ray_failure(sweep, reason)
        lab.rerun()

    return killed


def expect_ray_failure(sweep: SweepProcess, reason: str) -> None:
    """Check that a sweep says within half a minute why Ray failed, and ends with its summary."""
    killed = time.monotonic()
    while f"Ray has failed: {reason}" not in sweep.read_output():
        check(time.monotonic() < killed + 30, f"nothing was said in 30 seconds: {sweep.read_output()}")
        time.sleep(0.1)
    output = sweep.wait_for_status(1)
    check_summary(output)


@fault("Ray's head hangs, then the driver is SIGTERMed")
def head_hangs(lab: Lab) -> None:
    """Stop the head (GCS) of Ray on this machine, and then the sweep."""
    sweep = lab.start(STEP_SECONDS="0.2")  # it must not end before its silence is noticed
    lab.wait_for_mid_training(sweep)
    sweep.find_processes("gcs_server")[0].suspend()
    lab.injected = True
    lab.wait_until(lambda: "Ray has not answered for" in sweep.read_output(), "words", sweep)
    sweep.process.terminate()
    output = sweep.wait_for_status(130)
    check_summary(output)
    lab.rerun()


@fault("The machine loses its network address")
def address_lost(lab: Lab) -> None:
    """Remove the address of the only network of the sweep's network namespace, as a VPN does that ends."""
    setup = "ip link set lo up; ip link add net0 type veth peer name net1; ip link set net1 up"
    route = "ip address add 10.9.9.2/24 dev net0; ip link set net0 up; ip route add default via 10.9.9.1"
    lab.prefix = ("unshare", "--net", "sh", "-c", f'{setup}; {route}; exec "$@"', "sh")
    sweep = lab.start()
    lab.wait_for_mid_training(sweep)
    enter = ["nsenter", "--target", str(sweep.process.pid), "--net"]
    subprocess.run([*enter, "ip", "address", "flush", "dev", "net0"], check=True)
    lab.injected = True
    sweep.wait_for_status(0)
    lab.rerun()


@fault("Ctrl-C four times while Ray starts")
def stopped_at_start(lab: Lab) -> None:
    """Send signals while Ray starts, and while the sweep cleans up; nothing may be left behind."""
    for seconds in (0.0, 1.0, 2.0, 4.0):
        sweep = lab.start()
        [folder] = lab.list_private_folders()[:1]
        lab.wait_until(folder.exists, "files of Ray", sweep)
        time.sleep(seconds)
        for _ in range(4):
            if sweep.process.poll() is None:
                os.killpg(sweep.process.pid, signal.SIGINT)
            time.sleep(0.2)
        sweep.wait_for_status(130)
        check(not folder.exists(), f"{folder} was left behind, after {seconds} s")
    lab.injected = True
    lab.rerun()


def server_killed(return_text: str, outage_seconds: float = 0) -> Fault:
    """Return the fault that the tracking server dies in mid-training, and is started again after an outage.

    Args:
        return_text: End of the fault's name, which says when the server is back.
        outage_seconds: Time until the server is started again.
    """

    @fault(f"Tracking server SIGKILLed{return_text}")
    def killed(lab: Lab) -> None:
        server = lab.start_server()
        sweep = lab.start()
        lab.wait_for_mid_training(sweep)
        server.kill()
        lab.injected = True
        if outage_seconds:
            time.sleep(outage_seconds)
            check(len(lab.list_kept_results()) == 2, "training stopped while the server was away")
        server.start()
        sweep.wait_for_status(0)
        lab.rerun()

    return killed


@fault("Tracking store's disk full: results are kept, and sent by the next command")
def store_full(lab: Lab) -> None:
    """Fill up the disk of the tracking store."""
    disk = lab.folder / "disk"
    lab.mount_small_disk(disk, 40)
    lab.uri = f"sqlite:///{disk}/mlflow.db"
    sweep = lab.start(PATIENCE="5")
    lab.wait_for_mid_training(sweep)
    fill_up(disk)
    lab.injected = True
    output = sweep.wait_for_status(1)
    check("2 trained but not seen in the store" in output, f"the results were not kept: {output}")
    (disk / "filler").unlink()
    lab.rerun(NO_TRAINING="1")


@fault("Storage full")
def storage_full(lab: Lab) -> None:
    """Fill up the disk of the storage folder."""
    lab.mount_small_disk(lab.storage, 8)
    sweep = lab.start()
    lab.wait_for_mid_training(sweep)
    fill_up(lab.storage)
    lab.injected = True
    output = sweep.wait_for_status(1)
    check("No space left on device" in output, f"the reason is not given: {output}")
    (lab.storage / "filler").unlink()
    lab.rerun()


@fault("Driver SIGKILLed, then the storage read-only for a while")
def storage_read_only(lab: Lab) -> None:
    """Kill the driver, and make the storage read-only for one rerun."""
    lab.mount_small_disk(lab.storage, 8)
    sweep = lab.start()
    lab.wait_for_mid_training(sweep)
    sweep.kill()
    lab.injected = True
    time.sleep(3)  # The workers must have died: a file system with open files cannot be made read-only.
    remount(lab.storage, "ro")
    output = lab.start().wait_for_status(2)
    check("Read-only file system" in output, f"the reason is not given: {output}")
    remount(lab.storage, "rw")
    lab.rerun()


def checkpoint_damaged(damage: str) -> Fault:
    """Return the fault that the newest checkpoint of each trial is damaged while nothing runs.

    Args:
        damage: "truncated" or "with one bit flipped"; it ends the fault's name.
    """

    @fault(f"Newest checkpoint {damage}")
    def damaged(lab: Lab) -> None:
        sweep = lab.start()
        lab.wait_for_mid_training(sweep)
        sweep.kill()
        lab.injected = True
        time.sleep(3)  # The workers must have died, or they would write another checkpoint.
        newest = {path.parent: path for path in reversed(lab.list_checkpoints())}
        for path in newest.values():
            content = path.read_bytes()
            middle = len(content) // 2
            if damage == "truncated":
                path.write_bytes(content[:middle])
            else:
                path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        output = lab.rerun()
        check(output.count("could not be used") == len(newest), f"the damage was not reported: {output}")

    return damaged


@fault("Two drivers at once, on one storage")
def two_drivers_on_one_storage(lab: Lab) -> None:
    """Start the same command a second time while the first still runs."""
    sweep = lab.start()
    lab.wait_for_mid_training(sweep)
    output = lab.start().wait_for_status(2)
    check("another sweep trains with --storage" in output, f"the second does not say so: {output}")
    lab.injected = sweep.process.poll() is None
    sweep.wait_for_status(0)
    lab.rerun()


@fault("Two drivers at once, on one store with two storages")
def two_drivers_on_one_store(lab: Lab) -> None:
    """Start the same sweep with another storage while the first still runs."""
    # One trial at a time and slow steps: the first driver must still run when the second has looked at its heartbeat.
    lab.command = lab.command._replace(options=f"{lab.command.options} --max-concurrent 1")
    sweep = lab.start(STEP_SECONDS="0.06")
    lab.wait_until(lambda: len(lab.list_checkpoints()) >= 2, "checkpoints", sweep)
    output = lab.start(lab.folder / "elsewhere").wait_for_status(2)
    check("trains already, with --storage" in output, f"the second does not say so: {output}")
    lab.injected = sweep.process.poll() is None
    sweep.wait_for_status(0)
    lab.rerun()


def clock_stepped(seconds: int) -> Fault:
    """Return the fault that the clock jumps in every Python process of the sweep."""

    @fault(f"Clock stepped {'back' if seconds < 0 else 'forward'} an hour")
    def stepped(lab: Lab) -> None:
        lab.start(CLOCK_SECONDS=str(seconds)).wait_for_status(0)
        lab.injected = not lab.token.exists()
        lab.rerun()

    return stepped


@fault("Soak: 30 random kills of workers and drivers")
def soak(lab: Lab) -> None:
    """Kill workers, and now and then the driver, at random times."""
    generator = random.Random(SOAK_SEED)
    sweep = lab.start(STEP_SECONDS="0.2")
    kills = 0
    while kills < SOAK_KILLS:
        time.sleep(generator.uniform(1, 8))
        if sweep.process.poll() is not None:  # By chance, a trial's workers were killed three times at the same point.
            output = sweep.wait_for_status(1)
            check("ended 3 times at the same point: its process was killed" in output, output)
            sweep = lab.start(STEP_SECONDS="0.2")
        elif generator.random() < 0.75:
            kills += kill_random_worker(sweep, generator)
        else:
            sweep.kill()
            kills += 1
            sweep = lab.start(STEP_SECONDS="0.2")
    lab.injected = True
    sweep.kill()
    lab.rerun(STEP_SECONDS="0")


def kill_random_worker(sweep: SweepProcess, generator: random.Random) -> bool:
    """Kill one of the sweep's workers; return whether there was one to kill."""
    workers = sweep.find_workers()
    try:
        if workers:
            generator.choice(workers).kill()
    except psutil.NoSuchProcess:
        return False
    return bool(workers)


def fill_up(disk: Path) -> None:
    """Write a file that takes all the free space of a file system."""
    with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


# CI injects the quick faults: they take a minute or two.
QUICK_FAULTS: tuple[Fault, ...] = (
    server_killed(" and restarted"),
    worker_killed_after("points sent"),
)
QUICK_STACK_FAULTS: tuple[Fault, ...] = (in_stack(driver_killed),)
STACK_FAULTS: tuple[Fault, ...] = (
    *QUICK_STACK_FAULTS,
    in_stack(worker_killed),
    *(
        in_stack(worker_killed_after(place))
        for place in ("checkpoint written", "points sent", "result written", "run finished")
    ),
    in_stack(server_killed(" and restarted")),
    in_stack(checkpoint_damaged("with one bit flipped")),
)
ALL_FAULTS: tuple[Fault, ...] = (
    server_killed(", back after a minute", OUTAGE_SECONDS),  # It takes longest, so it starts first.
    node_removed,
    head_killed,
    ray_killed("raylet", "its process on this machine (raylet) has ended"),
    ray_killed("gcs_server", "the head of its cluster (GCS) has ended"),
    ray_killed("ray_main", "its process was ended by SIGKILL"),
    head_hangs,
    address_lost,
    stopped_at_start,
    *QUICK_FAULTS,
    driver_killed,
    driver_stopped(signal.SIGTERM, group=True),
    checkpoint_damaged("truncated"),
    two_drivers_on_one_storage,
    worker_killed,
    worker_killed_after("run finished"),
    worker_killed_after("checkpoint written"),
    worker_killed_after("result written"),
    worker_killed_after("artifacts sent"),
    answer_lost,
    driver_stopped(signal.SIGTERM),
    driver_stopped(signal.SIGINT),
    driver_stopped(signal.SIGHUP),
    driver_killed_at_start,
    driver_killed_elsewhere,
    two_drivers_on_one_store,
    store_full,
    storage_full,
    storage_read_only,
    checkpoint_damaged("with one bit flipped"),
    clock_stepped(-3600),
    clock_stepped(3600),
)

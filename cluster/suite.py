"""Starts the on-premises cluster on three simulated hosts, runs sweeps on it, and switches one of the hosts off.

A fourth host, the laptop, runs `ray up cluster.onprem.yaml`. It reaches the head's SSH server at an address outside
the cluster's private network. All commands are those that a person would type.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from cluster.hosts import Host, Laboratory, run_in_laboratory, wait_until
from sweeps.driver.ray_process import LOG_NAME

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "cluster.onprem.yaml"
HEAD_ADDRESS, OUTSIDE_ADDRESS = "10.78.0.10", "10.79.0.10"  # of the head: in the private network, and from outside
WORKER_ADDRESSES = {"worker-1": "10.78.0.11", "worker-2": "10.78.0.12"}
TRIALS_PER_GPU = 4
SWEEP = f"python sweeps/part3.py --dataset digits --gpus-per-trial {1 / TRIALS_PER_GPU}"
SHORT_SWEEP = f"{SWEEP} --seeds 1 --epochs 2"
SHORT_SWEEP_TRIALS = 5
# Every trial trains for many seconds, so that all of them run side by side however long a process takes to start.
LONG_SWEEP = f"{SWEEP} --seeds 4 --epochs 30 --architectures cnn_3 cnn_4 --checkpoint-seconds 1"
LONG_SWEEP_TRIALS = 8
DASHBOARD = "http://127.0.0.1:8265"  # the laptop's end of the tunnel to Ray's dashboard
MAX_NOTICE_SECONDS = 10.0  # time in which the head must notice that a node is gone

# Program that runs on the head, and prints a line of JSON whenever the set of living nodes changes.
WATCH_PROGRAM = """
import json, ray, time
ray.init(log_to_driver=False)
seen = None
while True:
    nodes = sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])
    if nodes != seen:
        print(json.dumps({"at": time.time(), "nodes": nodes}), flush=True)
    seen = nodes
    time.sleep(0.1)
"""


@contextmanager
def step(text: str) -> Iterator[list[str]]:
    """Print a step of the test and its duration once it has passed, with the remarks appended to the list."""
    started = time.monotonic()
    remarks: list[str] = []
    yield remarks
    print(f"passed: {text} ({time.monotonic() - started:.1f} s)" + "".join(f"; {word}" for word in remarks), flush=True)


def check(condition: object, text: str) -> None:
    """Raise `RuntimeError` unless `condition` holds."""
    if not condition:
        raise RuntimeError(text)


def make_config() -> dict[str, Any]:
    """Return the content of the repository's `cluster.onprem.yaml`, with its placeholders replaced."""
    found: dict[str, Any] = yaml.safe_load((ROOT / CONFIG).read_text())
    found["provider"] |= {
        "head_ip": HEAD_ADDRESS,
        "worker_ips": list(WORKER_ADDRESSES.values()),
        "external_head_ip": OUTSIDE_ADDRESS,
    }
    found["auth"]["ssh_user"] = "root"
    # More CPUs than trials that share a GPU, whatever this machine has: the GPU must be what limits the trials.
    found["worker_start_ray_commands"][-1] += f" --num-cpus={2 * TRIALS_PER_GPU}"
    return found


def start_hosts(laboratory: Laboratory) -> None:
    """Start the cluster's three hosts, and a laptop with a checkout of the repository.

    The hosts already have the Python environment, so that the set-up scripts need not download anything.
    """
    laboratory.make_network("private")
    laboratory.make_network("outside")
    for name in ("head", *WORKER_ADDRESSES):
        start_host(laboratory, name)
    laptop = laboratory.power_on("laptop", [("outside", "10.79.0.2/24")])
    checkout = laptop.home / "neural-sweeps"
    for name in ("analysis", "cluster", "sweeps", "trainables"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", checkout)
    own = Path(sys.prefix, "constraints.txt")  # an environment of `make test-oldest` or `make test-newest` has it
    shutil.copy(own if own.exists() else ROOT / "constraints.txt", checkout)
    (checkout / CONFIG).write_text(yaml.safe_dump(make_config()))
    key = laptop.home / ".ssh" / "id_ed25519"
    shutil.copyfile(laboratory.key, key)
    key.chmod(0o600)
    profile = f"export PATH={sys.prefix}/bin:$PATH PYTHONPATH=$HOME/neural-sweeps"
    profile += " RAY_AUTH_MODE=token RAY_UP_enable_autoscaler_v2=0"
    laptop.run(f"echo '{profile}' > /etc/profile.d/laptop.sh")


def start_host(laboratory: Laboratory, name: str) -> Host:
    """Start one of the cluster's hosts, for the first time or after it was switched off."""
    address = HEAD_ADDRESS if name == "head" else WORKER_ADDRESSES[name]
    cables = [("private", f"{address}/24")] + ([("outside", f"{OUTSIDE_ADDRESS}/24")] if name == "head" else [])
    host = laboratory.power_on(name, cables, gateway="10.78.0.1")
    venv = host.home / "neural-sweeps" / ".venv"
    if not venv.is_symlink():
        venv.parent.mkdir()
        venv.symlink_to(sys.prefix)
    return host


class NodeWatch:
    """Log of the nodes that Ray's head knows to be alive."""

    def __init__(self, laboratory: Laboratory) -> None:
        self.log = laboratory.folder / "nodes"
        with self.log.open("wb") as log:
            head = laboratory.hosts["head"]
            self.process = subprocess.Popen(head.make_command(f"python -c '{WATCH_PROGRAM}'"), stdout=log, stderr=log)

    def read_changes(self) -> list[dict[str, Any]]:
        """Return all changes so far: `at`, the time, and `nodes`, the addresses of the living nodes from then on."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def list_nodes(self) -> list[str]:
        """Return the addresses of the nodes that are alive now."""
        changes = self.read_changes()
        return list(changes[-1]["nodes"]) if changes else []

    def get_notice_seconds(self, address: str, since: float) -> float | None:
        """Return the seconds from `since` until the head noticed that a node is gone; None if it has not noticed."""
        return next(
            (
                change["at"] - since
                for change in self.read_changes()
                if change["at"] > since and address not in change["nodes"]
            ),
            None,
        )


def count_trials(laboratory: Laboratory) -> Counter[str]:
    """Count the trials that train on each host now.

    Processes are listed twice, which takes a moment on a busy machine: those that train in both lists train at the
    same time.
    """
    first, second = find_training_processes(laboratory), find_training_processes(laboratory)
    return Counter(host for process, host in first.items() if process in second)


def find_training_processes(laboratory: Laboratory) -> dict[Path, str]:
    """Return the host of each process that trains a trial.

    They are the processes that Ray names after the method that Tune's actor runs; a process's namespace tells its host.
    An actor that is ending has returned its share of the GPU, and its process is named after the actor alone, however
    long a busy machine takes to end it.
    """
    names = {Path(f"/proc/{host.init_pid}/ns/pid").readlink(): name for name, host in laboratory.hosts.items()}
    found: dict[Path, str] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"ImplicitFunc.train" in (process / "cmdline").read_bytes():
                found[process] = names[(process / "ns" / "pid").readlink()]
        except (OSError, KeyError):  # The process has just ended, or its host has been switched off.
            pass
    return found


def run_sweep(
    laboratory: Laboratory, command: str, seconds: float = 360.0, host: str = "head"
) -> Iterator[Counter[str]]:
    """Run a sweep's command on a host, and yield the number of trials on each host while it runs.

    Raises:
        RuntimeError: The exit status is not 0, or the command takes longer than `seconds`.
    """
    log = laboratory.folder / "sweep"
    line = f"cd neural-sweeps && {command}"
    with log.open("wb") as output:
        process = subprocess.Popen(laboratory.hosts[host].make_command(line), stdout=output, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + seconds
    try:
        while process.poll() is None:
            check(time.monotonic() < deadline, f"not finished in {seconds:.0f} s: {log.read_text()}")
            yield count_trials(laboratory)
            time.sleep(0.2)
    finally:
        process.kill()
    check(process.returncode == 0, f"exit status {process.returncode}: {log.read_text()}")


def check_job(laboratory: Laboratory) -> str:
    """Run a sweep as a job from the laptop, kill the client in mid-sweep, and follow the job to its end.

    The job must use neither the laptop's settings nor the cluster's own copy of the code.

    Returns:
        A remark on the largest number of trials on each worker at the same time.
    """
    hosts, log = laboratory.hosts, laboratory.folder / "client"
    command = f"MLFLOW_TRACKING_URI=http://127.0.0.1:5000 env -u RAY_AUTH_MODE {SHORT_SWEEP} --address {DASHBOARD}"
    copies = "neural-sweeps/sweeps/__init__.py neural-sweeps/trainables/__init__.py"
    for name in ("head", *WORKER_ADDRESSES):
        hosts[name].run(f"""sed -i '$a raise ImportError("not the code of the laptop")' {copies}""")
    with log.open("wb") as file:
        client = subprocess.Popen(
            hosts["laptop"].make_command(f"cd neural-sweeps && {command}"), stdout=file, stderr=subprocess.STDOUT
        )
    wait_until(lambda: count_trials(laboratory) or client.poll() is not None, "the job's first trial", 90)
    check(client.poll() is None, f"the client has ended: {log.read_text()}")
    hosts["laptop"].run("pkill -KILL -f '[s]weeps/part3.py'")
    client.wait()
    most: Counter[str] = Counter()
    for now in run_sweep(laboratory, command, host="laptop"):
        most |= now
    output = (laboratory.folder / "sweep").read_text()
    check("-1 runs already: following it" in output and "All trials are done." in output, f"another job: {output}")
    for name in ("head", *WORKER_ADDRESSES):
        hosts[name].run(f"sed -i '$d' {copies}")
    check(set(most) == set(WORKER_ADDRESSES), f"trials ran on {sorted(most)}")
    check(max(most.values()) <= TRIALS_PER_GPU, f"too many trials on one GPU: {dict(most)}")
    return "trials at once: " + ", ".join(f"{name} {count}" for name, count in sorted(most.items()))


def check_power_failure(laboratory: Laboratory, watch: NodeWatch) -> str:
    """Run a sweep with `ray submit`, and switch a worker off in the middle of it.

    Returns:
        A remark on when the head noticed, and on the number of trials on a GPU.
    """
    off = None
    most: Counter[str] = Counter()
    command = LONG_SWEEP.replace("python", f"ray submit {CONFIG}", 1).replace("part3.py", "part3.py --", 1)
    storage = laboratory.shared / "storage" / "trials"
    for now in run_sweep(laboratory, command, host="laptop"):
        most |= now
        if off is None and now["worker-2"] and len(list(storage.glob("*/[0-9]*.checkpoint"))) >= 2 * TRIALS_PER_GPU:
            laboratory.power_off("worker-2")
            off = time.time()
    check(off, "the sweep was over before there were checkpoints")
    assert off is not None
    noticed = watch.get_notice_seconds(WORKER_ADDRESSES["worker-2"], off)
    check(noticed is not None, "the head has not noticed that the node is gone")
    assert noticed is not None
    check(noticed < MAX_NOTICE_SECONDS, f"the head noticed only after {noticed:.1f} s that the node is gone")
    # Each GPU must have been full: there are twice as many trials as share one, and in the end only one GPU is left.
    check(max(most.values()) == TRIALS_PER_GPU, f"at most {most} trials on a GPU, not {TRIALS_PER_GPU}")
    return f"noticed after {noticed:.1f} s, never more than {TRIALS_PER_GPU} trials on a GPU"


def open_tunnel(laboratory: Laboratory) -> None:
    """Connect the laptop's ports 5000 and 8265 with the tracking server and the dashboard, until it is switched off."""
    options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    ports = f"-L 5000:{HEAD_ADDRESS}:5000 -L 8265:127.0.0.1:8265"
    laptop = laboratory.hosts["laptop"]
    subprocess.Popen(laptop.make_command(f"exec ssh {options} -N {ports} root@{OUTSIDE_ADDRESS}"))
    wait_until(lambda: "refused" not in try_to_connect(laptop, "127.0.0.1", 8265), "the tunnel", 20)


def try_to_connect(host: Host, address: str, port: int) -> str:
    """Return the error message of a TCP connection from a host; empty if it can connect."""
    return host.run(f"(: < /dev/tcp/{address}/{port}) 2>&1 || true")


def check_store(laboratory: Laboratory, trials: int) -> str:
    """Check on the laptop, through the tunnel, that the store has every point of the trials exactly once.

    Returns:
        A remark on the number of trials and points.
    """
    read = "cd neural-sweeps && MLFLOW_TRACKING_URI=http://127.0.0.1:5000 python cluster/verify.py"
    found = json.loads(laboratory.hosts["laptop"].run(read, seconds=90))
    expected = {"trials": trials, "lost": 0, "doubled": 0, "running": 0}
    check(found | expected == found, f"the store has {found}")
    return f"{found['trials']} trials with {found['points']} points"


def check_figures(laboratory: Laboratory) -> str:
    """Run the analysis on the laptop, through the tunnel; return a remark on the number of files."""
    laptop = laboratory.hosts["laptop"]
    command = SHORT_SWEEP.replace("sweeps/", "analysis/", 1).replace(f" --gpus-per-trial {1 / TRIALS_PER_GPU}", "")
    laptop.run(f"cd neural-sweeps && MLFLOW_TRACKING_URI=http://127.0.0.1:5000 {command}", seconds=120)
    drawn = [path.name for path in (laptop.home / "neural-sweeps" / "figures" / "part3").iterdir()]
    check({"part3_mlp_1.json", "weights_cnn_3.png", "table.csv"} <= set(drawn), f"drawn: {drawn}")
    return f"{len(drawn)} files"


def check_access(laboratory: Laboratory) -> None:
    """Check that Ray refuses clients without the token, and that tracking server and database are closed to outside."""
    status = f"ray status --address={HEAD_ADDRESS}:6379"
    for variable in ("RAY_AUTH_MODE=disabled", "RAY_AUTH_TOKEN=0123"):
        found = laboratory.hosts["worker-1"].run(f"{variable} {status} 2>&1 || echo refused")
        check("InvalidAuthToken" in found and found.endswith("refused\n"), f"not refused: {found}")
    laptop = laboratory.hosts["laptop"]
    found = laptop.run(
        f"cd neural-sweeps && RAY_AUTH_TOKEN=0123 {SHORT_SWEEP} --address {DASHBOARD} 2>&1 || echo status $?"
    )
    check("wants another token" in found and found.endswith("status 2\n"), f"not refused: {found}")
    for port in (5000, 5432, 8265):
        found = try_to_connect(laptop, OUTSIDE_ADDRESS, port)
        check("Connection refused" in found, f"port {port} is open to the outside: {found}")
    listening = laboratory.hosts["head"].run("ss -Htln").splitlines()
    ports = " ".join({line.split()[3].rpartition(":")[2] for line in listening})
    request = "printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3 && timeout 2 head -c 8 <&3"
    get = f"exec 3<>/dev/tcp/{OUTSIDE_ADDRESS}/$port && {request}"
    found = laptop.run(f"for port in {ports}; do ({get}) 2>&1 | grep -aq HTTP && echo $port; done; true")
    check(not found, f"port {found} answers the outside without a token")


def check_unshared_storage(laboratory: Laboratory) -> None:
    """Check that a sweep refuses a storage folder that only the head sees."""
    found = laboratory.hosts["head"].run(f"cd neural-sweeps && {SHORT_SWEEP} --storage mine 2>&1 || echo status $?")
    reason = "/neural-sweeps/mine is not shared: worker-1, worker-2 do not see"
    check(reason in found and found.endswith("status 2\n"), f"not refused: {found}")


def check_rerun(laboratory: Laboratory) -> None:
    """Check that the same command again trains nothing."""
    for now in run_sweep(laboratory, LONG_SWEEP):
        check(not now, f"trials ran again: {dict(now)}")


def print_logs(laboratory: Laboratory) -> None:
    """Print the last lines of the logs that may tell why something failed."""
    for name, host in laboratory.hosts.items():
        root = Path(f"/proc/{host.init_pid}/root")
        logs = [host.disk / "console", host.home / ".neural-sweeps" / "mlflow.log"]
        logs += root.glob("tmp/ray/session_*/logs/monitor.*")
        for log in (log for log in logs if log.exists() and log.stat().st_size):
            print(f"---- {name}: {log.name}", *log.read_text(errors="replace").splitlines()[-25:], sep="\n")
    if (log := laboratory.shared / "storage" / LOG_NAME).exists():
        print("---- the process that held Ray", *log.read_text(errors="replace").splitlines()[-100:], sep="\n")


def main(laboratory: Laboratory) -> int:
    """Run all steps until one fails; return the exit status."""
    started = time.monotonic()
    try:
        run_steps(laboratory)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        print_logs(laboratory)
        print(f"FAILED: {error}", flush=True)
        return 1
    print(f"passed: everything, in {time.monotonic() - started:.0f} s")
    return 0


def run_steps(laboratory: Laboratory) -> None:
    """Do what a person would do with a cluster, one step after the other."""
    with step("three hosts and a laptop"):
        start_hosts(laboratory)
    laptop = laboratory.hosts["laptop"]
    with step("ray up"):
        laptop.run("ray get-auth-token --generate")
        laptop.run(f"cd neural-sweeps && ray up -y {CONFIG}", seconds=240)
    with step("all nodes are there"):
        watch = NodeWatch(laboratory)
        wait_until(lambda: len(watch.list_nodes()) == 1 + len(WORKER_ADDRESSES), "all nodes", 120)
    with step("clients without the token, and connections from outside, are refused"):
        open_tunnel(laboratory)
        check_access(laboratory)
    with step("a storage that is not shared is refused"):
        check_unshared_storage(laboratory)
    with step("a job from the laptop, which disconnects and comes back, trains on both workers") as remarks:
        remarks.append(check_job(laboratory))
    with step("PostgreSQL has every point once, read from outside") as remarks:
        remarks.append(check_store(laboratory, SHORT_SWEEP_TRIALS))
    with step("figures, drawn outside the cluster") as remarks:
        remarks.append(check_figures(laboratory))
    with step("ray submit survives that a worker is switched off in mid-sweep") as remarks:
        remarks.append(check_power_failure(laboratory, watch))
    with step("the same command again trains nothing"):
        check_rerun(laboratory)
    with step("PostgreSQL still has every point once") as remarks:
        remarks.append(check_store(laboratory, SHORT_SWEEP_TRIALS + LONG_SWEEP_TRIALS))
    with step("the worker, switched on again, is back in the cluster"):
        start_host(laboratory, "worker-2")
        wait_until(lambda: WORKER_ADDRESSES["worker-2"] in watch.list_nodes(), "the worker", 150)
    with step("ray down"):
        laptop.run(f"cd neural-sweeps && ray down -y {CONFIG}", seconds=60)


if __name__ == "__main__":
    sys.exit(run_in_laboratory(main))

"""Brings the on-premises cluster up on three hosts of this machine, sweeps on it, and switches one of them off.

`ray up` of `cluster.onprem.yaml` runs on a fourth host, the laptop, which reaches the head's SSH by an address that is
not of the cluster's private network. All commands are those that a person would type.
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

from cluster.hosts import Host, Laboratory, in_laboratory, wait_until

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "cluster.onprem.yaml"
HEAD, WORKERS, OUTSIDE = "10.78.0.10", {"worker-1": "10.78.0.11", "worker-2": "10.78.0.12"}, "10.79.0.10"
TRIALS_PER_GPU = 4
SWEEP = f"python sweeps/part3.py --dataset digits --gpus-per-trial {1 / TRIALS_PER_GPU}"
SHORT = f"{SWEEP} --seeds 1 --epochs 2"
DASHBOARD = "http://127.0.0.1:8265"  # as the laptop reaches it
LONG = f"{SWEEP} --seeds 4 --epochs 5 --architectures mlp_2 cnn_3 --checkpoint-seconds 1"
NOTICED_SECONDS = 10.0

# On the head: a line whenever the number of living nodes changes.
WATCH = """
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
    """Report what was done and how long it took; what is appended to the list is said as well."""
    started = time.monotonic()
    said: list[str] = []
    yield said
    print(f"passed: {text} ({time.monotonic() - started:.1f} s)" + "".join(f"; {word}" for word in said), flush=True)


def check(condition: object, text: str) -> None:
    """Raise `RuntimeError` unless `condition` holds."""
    if not condition:
        raise RuntimeError(text)


def config() -> dict[str, Any]:
    """The repository's file, with what a person has to set."""
    found: dict[str, Any] = yaml.safe_load((ROOT / CONFIG).read_text())
    found["provider"] |= {"head_ip": HEAD, "worker_ips": list(WORKERS.values()), "external_head_ip": OUTSIDE}
    found["auth"]["ssh_user"] = "root"
    # As if a host had more CPUs than trials share its GPU, whatever this machine has: the GPU is what is scarce.
    found["worker_start_ray_commands"][-1] += f" --num-cpus={2 * TRIALS_PER_GPU}"
    return found


def start_hosts(laboratory: Laboratory) -> None:
    """Three hosts with an environment that has what the set-up scripts would install, and a laptop with a checkout."""
    laboratory.network("private")
    laboratory.network("outside")
    private = {"head": HEAD, **WORKERS}
    for name in private:
        start_host(laboratory, name)
    laptop = laboratory.power_on("laptop", [("outside", "10.79.0.2/24")])
    checkout = laptop.home / "neural-sweeps"
    for name in ("analysis", "cluster", "sweeps", "trainables"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout)
    (checkout / CONFIG).write_text(yaml.safe_dump(config()))
    key = laptop.home / ".ssh" / "id_ed25519"
    shutil.copyfile(laboratory.key, key)
    key.chmod(0o600)
    profile = f"export PATH={sys.prefix}/bin:$PATH PYTHONPATH=$HOME/neural-sweeps"
    profile += " RAY_AUTH_MODE=token RAY_UP_enable_autoscaler_v2=0"
    laptop.run(f"echo '{profile}' > /etc/profile.d/laptop.sh")


def start_host(laboratory: Laboratory, name: str) -> Host:
    """Start one of the cluster's hosts, or start it again."""
    address = HEAD if name == "head" else WORKERS[name]
    cables = [("private", f"{address}/24")] + ([("outside", f"{OUTSIDE}/24")] if name == "head" else [])
    host = laboratory.power_on(name, cables, gateway="10.78.0.1")
    venv = host.home / "neural-sweeps" / ".venv"
    if not venv.is_symlink():
        venv.parent.mkdir()
        venv.symlink_to(sys.prefix)
    return host


class Watch:
    """What the head knows of the nodes."""

    def __init__(self, laboratory: Laboratory) -> None:
        self.log = laboratory.folder / "nodes"
        with self.log.open("wb") as log:
            head = laboratory.hosts["head"]
            self.process = subprocess.Popen(head.command(f"python -c '{WATCH}'"), stdout=log, stderr=log)

    def lines(self) -> list[dict[str, Any]]:
        """All changes so far: `at`, the time, and `nodes`, the addresses of those that live."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def nodes(self) -> list[str]:
        """The addresses of the nodes that live."""
        lines = self.lines()
        return list(lines[-1]["nodes"]) if lines else []

    def lost(self, address: str, after: float) -> float | None:
        """When the head noticed that a node is gone, in seconds after `after`."""
        return next(
            (line["at"] - after for line in self.lines() if line["at"] > after and address not in line["nodes"]), None
        )


def trials_now(laboratory: Laboratory) -> Counter[str]:
    """How many trials train on each host: processes that Ray names after what Tune's actor does, by their namespace.

    An actor that ends has given its share of the GPU back and is named after the actor alone, however long a busy
    machine takes to end it.
    """
    names = {Path(f"/proc/{host.init}/ns/pid").readlink(): name for name, host in laboratory.hosts.items()}
    found: Counter[str] = Counter()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"ImplicitFunc.train" in (process / "cmdline").read_bytes():
                found[names[(process / "ns" / "pid").readlink()]] += 1
        except (OSError, KeyError):  # ended just now, or on a host that is off
            pass
    return found


def sweep(laboratory: Laboratory, command: str, seconds: float = 240.0, host: str = "head") -> Iterator[Counter[str]]:
    """Run a sweep from a host; yields the trials by host while it runs. Checks that it ends well."""
    log = laboratory.folder / "sweep"
    line = f"cd neural-sweeps && {command}"
    with log.open("wb") as output:
        process = subprocess.Popen(laboratory.hosts[host].command(line), stdout=output, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + seconds
    try:
        while process.poll() is None:
            check(time.monotonic() < deadline, f"not done in {seconds:.0f} s: {log.read_text()}")
            yield trials_now(laboratory)
            time.sleep(0.2)
    finally:
        process.kill()
    check(process.returncode == 0, f"exit status {process.returncode}: {log.read_text()}")


def short_sweep(laboratory: Laboratory) -> str:
    """A job from the laptop, whose client is killed in mid-sweep, to its end; the most trials of each worker at once.

    The laptop's own settings do not reach the job, and the cluster's own copy of the code is not imported.
    """
    hosts, log = laboratory.hosts, laboratory.folder / "client"
    command = f"MLFLOW_TRACKING_URI=http://127.0.0.1:5000 env -u RAY_AUTH_MODE {SHORT} --address {DASHBOARD}"
    copies = "neural-sweeps/sweeps/__init__.py neural-sweeps/trainables/__init__.py"
    for name in ("head", *WORKERS):
        hosts[name].run(f"""sed -i '$a raise ImportError("not the code of the laptop")' {copies}""")
    with log.open("wb") as output:
        client = subprocess.Popen(
            hosts["laptop"].command(f"cd neural-sweeps && {command}"), stdout=output, stderr=subprocess.STDOUT
        )
    wait_until(lambda: trials_now(laboratory) or client.poll() is not None, "the job's first trial", 90)
    check(client.poll() is None, f"the client has ended: {log.read_text()}")
    hosts["laptop"].run("pkill -KILL -f '[s]weeps/part3.py'")
    client.wait()
    most: Counter[str] = Counter()
    for now in sweep(laboratory, command, host="laptop"):
        most |= now
    said = (laboratory.folder / "sweep").read_text()
    check("-1 runs already: following it" in said and "All trials are done." in said, f"not the same job: {said}")
    for name in ("head", *WORKERS):
        hosts[name].run(f"sed -i '$d' {copies}")
    check(set(most) == set(WORKERS), f"trials ran on {sorted(most)}")
    check(max(most.values()) <= TRIALS_PER_GPU, f"too many trials on one GPU: {dict(most)}")
    return "trials at once: " + ", ".join(f"{name} {count}" for name, count in sorted(most.items()))


def power_failure(laboratory: Laboratory, watch: Watch) -> str:
    """A sweep by `ray submit`, in the middle of which a worker is switched off; when the head noticed."""
    off = None
    most: Counter[str] = Counter()
    command = LONG.replace("python", f"ray submit {CONFIG}", 1).replace("part3.py", "part3.py --", 1)
    storage = laboratory.shared / "storage" / "trials"
    for now in sweep(laboratory, command, host="laptop"):
        most |= now
        if off is None and now["worker-2"] and len(list(storage.glob("*/[0-9]*.checkpoint"))) >= 2 * TRIALS_PER_GPU:
            laboratory.power_off("worker-2")
            off = time.time()
    check(off, "the sweep was over before there were checkpoints")
    assert off is not None
    noticed = watch.lost(WORKERS["worker-2"], off)
    check(noticed is not None, "nobody noticed")
    assert noticed is not None
    check(noticed < NOTICED_SECONDS, f"the dead node was noticed after {noticed:.1f} s only")
    # Twice as many trials as share a GPU, and in the end one GPU for all of them.
    check(
        max(most.values()) == TRIALS_PER_GPU, f"not {TRIALS_PER_GPU} trials at most on a GPU, or never so many: {most}"
    )
    return f"noticed after {noticed:.1f} s, never more than {TRIALS_PER_GPU} trials on a GPU"


def open_tunnel(laboratory: Laboratory) -> None:
    """Let the laptop reach tracking server and dashboard at its own ports 5000 and 8265, until it is switched off."""
    options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    ports = f"-L 5000:{HEAD}:5000 -L 8265:127.0.0.1:8265"
    laptop = laboratory.hosts["laptop"]
    subprocess.Popen(laptop.command(f"exec ssh {options} -N {ports} root@{OUTSIDE}"))
    wait_until(lambda: "refused" not in tried(laptop, "127.0.0.1", 8265), "the tunnel", 20)


def tried(host: Host, address: str, port: int) -> str:
    """What is said on a host where it cannot connect."""
    return host.run(f"(: < /dev/tcp/{address}/{port}) 2>&1 || true")


def verify(laboratory: Laboratory, trials: int) -> str:
    """Read everything from the laptop, through the tunnel."""
    read = "cd neural-sweeps && MLFLOW_TRACKING_URI=http://127.0.0.1:5000 python cluster/verify.py"
    found = json.loads(laboratory.hosts["laptop"].run(read, seconds=90))
    expected = {"trials": trials, "lost": 0, "doubled": 0, "running": 0}
    check(found | expected == found, f"in the store: {found}")
    return f"{found['trials']} trials with {found['points']} points"


def figures(laboratory: Laboratory) -> str:
    """The analysis on the laptop, through the tunnel; how many files it drew."""
    laptop = laboratory.hosts["laptop"]
    command = SHORT.replace("sweeps/", "analysis/", 1).replace(f" --gpus-per-trial {1 / TRIALS_PER_GPU}", "")
    laptop.run(f"cd neural-sweeps && MLFLOW_TRACKING_URI=http://127.0.0.1:5000 {command}", seconds=120)
    drawn = [path.name for path in (laptop.home / "neural-sweeps" / "figures" / "part3").iterdir()]
    check({"part3_mlp_1.json", "weights_cnn_3.png", "table.csv"} <= set(drawn), f"drawn: {drawn}")
    return f"{len(drawn)} files"


def refused(laboratory: Laboratory) -> None:
    """Nobody gets into Ray without the token, nor from outside to the tracking server or its database."""
    status = f"ray status --address={HEAD}:6379"
    for variable in ("RAY_AUTH_MODE=disabled", "RAY_AUTH_TOKEN=0123"):
        found = laboratory.hosts["worker-1"].run(f"{variable} {status} 2>&1 || echo refused")
        check("InvalidAuthToken" in found and found.endswith("refused\n"), f"not refused: {found}")
    laptop = laboratory.hosts["laptop"]
    found = laptop.run(f"cd neural-sweeps && RAY_AUTH_TOKEN=0123 {SHORT} --address {DASHBOARD} 2>&1 || echo status $?")
    check("wants another token" in found and found.endswith("status 2\n"), f"not refused: {found}")
    for port in (5000, 5432, 8265):
        found = tried(laptop, OUTSIDE, port)
        check("Connection refused" in found, f"port {port} is open to the outside: {found}")
    listening = laboratory.hosts["head"].run("ss -Htln").splitlines()
    ports = " ".join({line.split()[3].rpartition(":")[2] for line in listening})
    get = (
        f"exec 3<>/dev/tcp/{OUTSIDE}/$port && printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3 && timeout 2 head -c 8 <&3"
    )
    found = laptop.run(f"for port in {ports}; do ({get}) 2>&1 | grep -aq HTTP && echo $port; done; true")
    check(not found, f"without a token the outside is answered at port {found}")


def unshared_storage_refused(laboratory: Laboratory) -> None:
    """A storage folder of the head alone is refused, and nothing trains."""
    found = laboratory.hosts["head"].run(f"cd neural-sweeps && {SHORT} --storage mine 2>&1 || echo status $?")
    words = ("/neural-sweeps/mine is not shared: worker-1, worker-2 do not see", "status 2\n")
    check(words[0] in found and found.endswith(words[1]), f"not refused: {found}")


def nothing_to_do(laboratory: Laboratory) -> None:
    """The same command again finds that all is done."""
    for now in sweep(laboratory, LONG):
        check(not now, f"trials ran again: {dict(now)}")


def report(laboratory: Laboratory) -> None:
    """Print the ends of the logs that say why something failed."""
    for name, host in laboratory.hosts.items():
        root = Path(f"/proc/{host.init}/root")
        logs = [host.disk / "console", host.home / ".neural-sweeps" / "mlflow.log"]
        logs += root.glob("tmp/ray/session_*/logs/monitor.*")
        for log in (log for log in logs if log.exists() and log.stat().st_size):
            print(f"---- {name}: {log.name}", *log.read_text(errors="replace").splitlines()[-25:], sep="\n")


def main(laboratory: Laboratory) -> int:
    """All steps; 1 at the first that fails."""
    started = time.monotonic()
    try:
        steps(laboratory)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        report(laboratory)
        print(f"FAILED: {error}", flush=True)
        return 1
    print(f"passed: everything, in {time.monotonic() - started:.0f} s")
    return 0


def steps(laboratory: Laboratory) -> None:
    """What a person would do, one after the other."""
    with step("three hosts and a laptop"):
        start_hosts(laboratory)
    laptop = laboratory.hosts["laptop"]
    with step("ray up"):
        laptop.run("ray get-auth-token --generate")
        laptop.run(f"cd neural-sweeps && ray up -y {CONFIG}", seconds=240)
    with step("all nodes are there"):
        watch = Watch(laboratory)
        wait_until(lambda: len(watch.nodes()) == 1 + len(WORKERS), "all nodes", 120)
    with step("refused: clients without the token, and the outside"):
        open_tunnel(laboratory)
        refused(laboratory)
    with step("refused: a storage that is not shared"):
        unshared_storage_refused(laboratory)
    with step("a job from the laptop, which leaves and comes back, on both workers") as said:
        said.append(short_sweep(laboratory))
    with step("every step once in PostgreSQL, seen from outside") as said:
        said.append(verify(laboratory, trials=5))
    with step("figures, drawn outside") as said:
        said.append(figures(laboratory))
    with step("ray submit, and a worker switched off in mid-sweep") as said:
        said.append(power_failure(laboratory, watch))
    with step("the same command again trains nothing"):
        nothing_to_do(laboratory)
    with step("every step once, seen from outside") as said:
        said.append(verify(laboratory, trials=5 + 8))
    with step("the worker, switched on again, is back in the cluster"):
        start_host(laboratory, "worker-2")
        wait_until(lambda: WORKERS["worker-2"] in watch.nodes(), "the worker", 150)
    with step("ray down"):
        laptop.run(f"cd neural-sweeps && ray down -y {CONFIG}", seconds=60)


if __name__ == "__main__":
    sys.exit(in_laboratory(main))

"""Hosts on this machine for tests: Linux namespaces on a bridge, each with its own disk, processes and sshd.

A host sees a copy-on-write image of this machine's root file system, an empty home folder and an empty `/tmp`, and no
process but its own. So "install", "start" and "kill everything" of a cluster launcher mean what they mean on a machine.

All of them live in namespaces of one laboratory process, whose end, even by SIGKILL, ends the processes in them; with
the last process the kernel removes bridge, addresses, mounts and disks (a tmpfs). Nothing is left to clear away but an
empty folder, and nothing outside the laboratory is touched.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SKIPPED = 77  # exit status of a test that could not run here, as automake has it
SHARED = Path("/srv/neural-sweeps")  # where each host sees the folder that stands for NFS
NAMESPACES = ("--mount", "--net", "--pid", "--uts", "--ipc")
NEEDED = (
    "bash",
    "ip",
    "mount",
    "nsenter",
    "pivot_root",
    "rsync",
    "ssh",
    "ssh-keygen",
    "/usr/sbin/sshd",
    "setpriv",
    "unshare",
)
FOLDER = "CLUSTER_LAB"  # environment variable: the laboratory's folder, set in the process that lives inside
START_SECONDS = 30.0

# The first process of a host. Its arguments: name, folder of its disk, folder of what is shared, addresses (of eth0,
# eth1, …), gateway, and the folders that its own /tmp and home must not hide.
INIT = r"""
set -euo pipefail
name=$1 disk=$2 shared=$3 addresses=$4 gateway=$5; shift 5
root=$disk/root
hostname "$name"
mount -t overlay overlay -o "lowerdir=/,upperdir=$disk/upper,workdir=$disk/work" "$root"
mount --rbind /dev "$root/dev"
for fresh in tmp run dev/shm; do mount -t tmpfs -o mode=1777 tmpfs "$root/$fresh"; done
mkdir -p "$root$HOME" "$root@SHARED@" "$root/run/sshd" "$root/run/lock" "$root/run/postgresql"
chmod 755 "$root/run" "$root/run/sshd"
chmod 1777 "$root/run/lock"
chown --reference=/var/lib/postgresql "$root/run/postgresql" 2>/dev/null || true
mount --bind "$disk/home" "$root$HOME"
mount --bind "$shared" "$root@SHARED@"
for kept in "$@"; do
    mkdir -p "$root$kept"
    mount --bind "$kept" "$root$kept"
    mount -o remount,bind,ro "$root$kept"
done
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
printf '127.0.0.1 localhost\n%s %s\n' "${addresses%%[/ ]*}" "$name" > "$root/etc/hosts"
echo "$name" > "$root/etc/hostname"
pivot_root "$root" "$root/mnt"
cd /
umount --lazy /mnt
echo ready
read -r _  # until the network's cables are plugged in
ip link set lo up
number=0
for address in $addresses; do
    ip address add "$address" dev "eth$number"
    ip link set "eth$number" up
    number=$((number + 1))
done
[ -z "$gateway" ] || ip route add default via "$gateway"  # nobody answers there, but Ray looks for the route
/usr/sbin/sshd -D -e -h /run/host_key -o PidFile=none -o UsePAM=no -o PasswordAuthentication=no \
    -o PermitRootLogin=prohibit-password -o StrictModes=no -o MaxStartups=50 &
cd "$HOME"
echo up
wait  # and reap orphans
""".replace("@SHARED@", str(SHARED))


class MissingRightsError(Exception):
    """This machine lets us make no hosts."""


def check_rights() -> None:
    """Raise `MissingRightsError` where namespaces, or the programs that a host needs, are missing."""
    if missing := [program for program in NEEDED if shutil.which(program) is None]:
        raise MissingRightsError(f"{', '.join(missing)} not found")
    tried = [
        "unshare",
        *NAMESPACES,
        "--fork",
        "sh",
        "-c",
        "mount -t tmpfs tmpfs /mnt && ip link add name bridge0 type bridge",
    ]
    done = subprocess.run(tried, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingRightsError((done.stderr.strip() or "unshare failed").splitlines()[-1])


def in_laboratory(main: Callable[[Laboratory], int]) -> int:
    """Run `main` in a laboratory: start this script again in namespaces of its own, wait, return its exit status.

    `SKIPPED` without the rights. SIGTERM and Ctrl-C end the laboratory and all of its hosts.
    """
    if folder := os.environ.get(FOLDER):
        with Laboratory(Path(folder)) as laboratory:
            return main(laboratory)
    try:
        check_rights()
    except MissingRightsError as error:
        print(f"SKIPPED: no hosts can be made on this machine: {error}", flush=True)
        return SKIPPED
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # The kernel kills `unshare` with this process, and the laboratory with `unshare`.
    words = ["setpriv", "--pdeathsig", "KILL", "unshare", "--fork", "--kill-child", "--mount-proc", *NAMESPACES]
    with tempfile.TemporaryDirectory(prefix="cluster-") as name:
        inside = subprocess.Popen(
            [*words, sys.executable, *sys.argv],
            env={**os.environ, FOLDER: name},
            start_new_session=True,  # a Ctrl-C is for this process, which ends the other
        )
        try:
            return inside.wait()
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        finally:
            inside.kill()
            inside.wait()


@dataclass
class Host:
    """A host that runs, or is switched off.

    Attributes:
        addresses: One a network card, with the network's length: "10.78.0.2/24".
        disk: The folder of what it has written, and of its home; lasts when it is switched off.
    """

    name: str
    addresses: Sequence[str]
    disk: Path
    process: subprocess.Popen[str]

    @property
    def address(self) -> str:
        """Of its first network card."""
        return self.addresses[0].partition("/")[0]

    @property
    def home(self) -> Path:
        """Its home folder, as the laboratory sees it."""
        return self.disk / "home"

    @property
    def init(self) -> int:
        """The laboratory's number of the host's first process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def command(self, line: str) -> list[str]:
        """The words that run a line of bash in a login shell on the host, as somebody at its console."""
        clean = ["env", "-i", f"HOME={Path.home()}", "TERM=dumb", "LANG=C.UTF-8"]
        inside = ["nsenter", f"--target={self.init}", *NAMESPACES, "--root", "--wd"]
        return [*inside, *clean, "bash", "--login", "-c", f'cd "$HOME" && {line}']

    def run(self, line: str, seconds: float = 60.0) -> str:
        """Run a line of bash, at most `seconds` long; what it printed to standard output.

        Raises:
            RuntimeError: Another exit status than 0, or too long.
        """
        try:
            done = subprocess.run(self.command(line), capture_output=True, text=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"on {self.name}: {line}: not done in {seconds:.0f} s: {error.output!r}") from None
        if done.returncode:
            raise RuntimeError(f"on {self.name}: {line}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout


@dataclass
class Laboratory:
    """The networks and hosts of a test, to be used inside `in_laboratory`.

    Attributes:
        folder: Holds disks, and the folder that all hosts share.
        hosts: Those that were started, by name.
    """

    folder: Path
    hosts: dict[str, Host] = field(default_factory=dict)

    def __enter__(self) -> Laboratory:
        execute("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(self.folder))
        execute("ip", "link", "set", "lo", "up")
        self.shared.mkdir(mode=0o777)
        execute("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.hosts):
            self.power_off(name)

    @property
    def shared(self) -> Path:
        """The folder that stands for NFS: `SHARED` on every host."""
        return self.folder / "shared"

    @property
    def key(self) -> Path:
        """A throwaway key: every host lets its owner in, and it is every host's own key as well."""
        return self.folder / "key"

    def network(self, name: str) -> None:
        """Make a network: a switch to which no address of the laboratory belongs."""
        execute("ip", "link", "add", "name", name, "type", "bridge", "stp_state", "0")
        execute("ip", "link", "set", name, "up")

    def power_on(self, name: str, cables: Sequence[tuple[str, str]], gateway: str = "") -> Host:
        """Start a host, or start it again with the disk it had.

        Args:
            name: Of the host.
            cables: network → its address there, in the order of the network cards.
            gateway: Of its default route.
        """
        disk = self.folder / name
        for part in ("upper", "work", "root", "home"):
            (disk / part).mkdir(parents=True, exist_ok=True)
        self.admit(disk / "home")
        addresses = [address for _, address in cables]
        words = [name, str(disk), str(self.shared), " ".join(addresses), gateway, *self.kept()]
        with (disk / "console").open("ab") as console:
            process = subprocess.Popen(
                ["unshare", *NAMESPACES, "--fork", "--kill-child", "bash", "-c", INIT, "bash", *words],
                env={"HOME": str(Path.home()), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=console,
                text=True,
            )
        host = self.hosts[name] = Host(name, addresses, disk, process)
        self.expect(host, "ready")
        for number, (network, _) in enumerate(cables):
            cable = f"{name}-{number}"
            far = ["name", f"eth{number}", "netns", str(host.init)]
            execute("ip", "link", "add", "name", cable, "type", "veth", "peer", *far)
            execute("ip", "link", "set", cable, "master", network, "up")
        host_key = Path(f"/proc/{host.init}/root/run/host_key")
        shutil.copyfile(self.key, host_key)
        host_key.chmod(0o600)
        assert process.stdin is not None
        process.stdin.write("cables are in\n")
        process.stdin.flush()
        self.expect(host, "up")
        return host

    def power_off(self, name: str) -> None:
        """Switch a host off at once: first its cables, so that nobody hears a last word, then its first process."""
        host = self.hosts.pop(name)
        for number in range(len(host.addresses)):
            subprocess.run(["ip", "link", "delete", f"{name}-{number}"], capture_output=True, check=False)
        host.process.kill()  # `unshare --kill-child`: the kernel then kills the first process, and with it all others
        host.process.wait()

    def admit(self, home: Path) -> None:
        """Give a home the usual files of a new user, and let the owner of the key in."""
        shutil.copytree("/etc/skel", home, dirs_exist_ok=True)
        (home / ".ssh").mkdir(mode=0o700, exist_ok=True)
        shutil.copyfile(self.key.with_suffix(".pub"), home / ".ssh" / "authorized_keys")

    def kept(self) -> list[str]:
        """The folders of this Python, which may lie where a host has an empty folder of its own."""
        return sorted({sys.prefix, sys.base_prefix})

    def expect(self, host: Host, word: str) -> None:
        """Wait for a word of a host's first process."""
        assert host.process.stdout is not None
        if host.process.stdout.readline().strip() != word:
            raise RuntimeError(f"host {host.name} did not start: {(host.disk / 'console').read_text()}")


def execute(*words: str) -> None:
    """Run a program.

    Raises:
        RuntimeError: Another exit status than 0.
    """
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(words)}: {done.stderr.strip()}")


def wait_until(condition: Callable[[], object], what: str, seconds: float) -> float:
    """Wait until a condition holds; the seconds it took.

    Raises:
        RuntimeError: It does not, after `seconds`.
    """
    started = time.monotonic()
    while not condition():
        if time.monotonic() > started + seconds:
            raise RuntimeError(f"{what}: not after {seconds:.0f} s")
        time.sleep(0.2)
    return time.monotonic() - started

"""Simulated hosts for tests: Linux namespaces on a network bridge, each with its own disk, processes and SSH server.

A host sees a copy-on-write image of this machine's root file system, an empty home folder, an empty `/tmp`, and no
processes but its own. A cluster launcher can therefore install, start and kill processes as on a real machine.

All hosts live in the namespaces of one laboratory process. When it ends, even by SIGKILL, the kernel ends all processes
of the hosts, and removes bridge, addresses, mounts and disks (a tmpfs). Only an empty folder has to be removed
afterwards, and nothing outside the laboratory is touched.
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

EXIT_SKIPPED = 77  # automake's exit status for a test that cannot run here
SHARED_FOLDER = Path("/srv/neural-sweeps")  # place on every host of the folder that stands for NFS
NAMESPACES = ("--mount", "--net", "--pid", "--uts", "--ipc")
REQUIRED_PROGRAMS = (
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
FOLDER_VARIABLE = "CLUSTER_LAB"  # environment variable that names the laboratory's folder to the process inside it

# Script of a host's first process. Its arguments: the host's name, the folder of its disk, the shared folder, the
# addresses of its network cards (eth0, eth1, …), the gateway, and the folders that the host's own /tmp and home folder
# must not hide.
HOST_INIT_SCRIPT = r"""
set -euo pipefail
name=$1 disk=$2 shared=$3 addresses=$4 gateway=$5; shift 5
root=$disk/root
hostname "$name"
mount -t overlay overlay -o "lowerdir=/,upperdir=$disk/upper,workdir=$disk/work" "$root"
mount --rbind /dev "$root/dev"
for fresh in tmp run dev/shm; do mount -t tmpfs -o mode=1777 tmpfs "$root/$fresh"; done
mkdir -p "$root$HOME" "$root@SHARED_FOLDER@" "$root/run/sshd" "$root/run/lock" "$root/run/postgresql"
chmod 755 "$root/run" "$root/run/sshd"
chmod 1777 "$root/run/lock"
chown --reference=/var/lib/postgresql "$root/run/postgresql" 2>/dev/null || true
mount --bind "$disk/home" "$root$HOME"
mount --bind "$shared" "$root@SHARED_FOLDER@"
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
read -r _  # wait until the network cables are plugged in
ip link set lo up
number=0
for address in $addresses; do
    ip address add "$address" dev "eth$number"
    ip link set "eth$number" up
    number=$((number + 1))
done
[ -z "$gateway" ] || ip route add default via "$gateway"  # no machine answers there, but Ray looks for the route
/usr/sbin/sshd -D -e -h /run/host_key -o PidFile=none -o UsePAM=no -o PasswordAuthentication=no \
    -o PermitRootLogin=prohibit-password -o StrictModes=no -o MaxStartups=50 &
cd "$HOME"
echo up
wait  # and reap orphans
""".replace("@SHARED_FOLDER@", str(SHARED_FOLDER))


class MissingRightsError(Exception):
    """Reason why no hosts can be made on this machine."""


def check_rights() -> None:
    """Check that namespaces can be made, and that the programs that a host needs are installed.

    Raises:
        MissingRightsError: They cannot, or a program is missing.
    """
    if missing := [program for program in REQUIRED_PROGRAMS if shutil.which(program) is None]:
        raise MissingRightsError(f"{', '.join(missing)} not found")
    command = [
        "unshare",
        *NAMESPACES,
        "--fork",
        "sh",
        "-c",
        "mount -t tmpfs tmpfs /mnt && ip link add name bridge0 type bridge",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingRightsError((done.stderr.strip() or "unshare failed").splitlines()[-1])


def run_in_laboratory(main: Callable[[Laboratory], int]) -> int:
    """Run `main` in a laboratory: start this script again, in new namespaces, and wait for it.

    SIGTERM and Ctrl-C end the laboratory and all of its hosts.

    Returns:
        What `main` returns; `EXIT_SKIPPED` if this process lacks the rights.
    """
    if folder := os.environ.get(FOLDER_VARIABLE):
        with Laboratory(Path(folder)) as laboratory:
            return main(laboratory)
    try:
        check_rights()
    except MissingRightsError as error:
        print(f"SKIPPED: no hosts can be made on this machine: {error}", flush=True)
        return EXIT_SKIPPED
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # The kernel kills `unshare` when this process ends, and the laboratory when `unshare` ends.
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--fork", "--kill-child", "--mount-proc", *NAMESPACES]
    with tempfile.TemporaryDirectory(prefix="cluster-") as name:
        inside = subprocess.Popen(
            [*command, sys.executable, *sys.argv],
            env={**os.environ, FOLDER_VARIABLE: name},
            start_new_session=True,  # Ctrl-C reaches only this process, which then ends the other
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
    """Simulated host that is switched on.

    Attributes:
        name: The host's name.
        addresses: The address of each network card with the length of the network's prefix, such as "10.78.0.2/24".
        disk: Folder with everything that the host has written, and with its home; kept when it is switched off.
        process: The `unshare` that started the host's first process.
    """

    name: str
    addresses: Sequence[str]
    disk: Path
    process: subprocess.Popen[str]

    @property
    def address(self) -> str:
        """Address of the first network card."""
        return self.addresses[0].partition("/")[0]

    @property
    def home(self) -> Path:
        """Home folder of the host's user, as a path in the laboratory."""
        return self.disk / "home"

    @property
    def init_pid(self) -> int:
        """Process id of the host's first process, in the laboratory."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def make_command(self, line: str) -> list[str]:
        """Return the command that runs a line of bash in a login shell on the host, as if typed at its console."""
        clean = ["env", "-i", f"HOME={Path.home()}", "TERM=dumb", "LANG=C.UTF-8"]
        inside = ["nsenter", f"--target={self.init_pid}", *NAMESPACES, "--root", "--wd"]
        return [*inside, *clean, "bash", "--login", "-c", f'cd "$HOME" && {line}']

    def run(self, line: str, seconds: float = 60.0) -> str:
        """Run a line of bash on the host; return what it printed to standard output.

        Raises:
            RuntimeError: The exit status is not 0, or the line takes longer than `seconds`.
        """
        try:
            done = subprocess.run(self.make_command(line), capture_output=True, text=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"on {self.name}: {line}: not finished in {seconds:.0f} s: {error.output!r}") from None
        if done.returncode:
            raise RuntimeError(f"on {self.name}: {line}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout


@dataclass
class Laboratory:
    """Networks and hosts of a test; only code that `run_in_laboratory` runs may use it.

    Attributes:
        folder: Holds the disks, and the folder that all hosts share.
        hosts: The hosts that are switched on, by name.
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
        """Folder that stands for NFS: every host sees it as `SHARED_FOLDER`."""
        return self.folder / "shared"

    @property
    def key(self) -> Path:
        """SSH key for this test only: every host accepts its owner, and also uses it as its host key."""
        return self.folder / "key"

    def make_network(self, name: str) -> None:
        """Make a network: a bridge on which the laboratory itself has no address."""
        execute("ip", "link", "add", "name", name, "type", "bridge", "stp_state", "0")
        execute("ip", "link", "set", name, "up")

    def power_on(self, name: str, cables: Sequence[tuple[str, str]], gateway: str = "") -> Host:
        """Start a host. If it was switched off before, it has the same disk.

        Args:
            name: The host's name.
            cables: Pairs of a network's name and the host's address in it, one for each network card.
            gateway: Address of the host's default route; "" for none.
        """
        disk = self.folder / name
        for part in ("upper", "work", "root", "home"):
            (disk / part).mkdir(parents=True, exist_ok=True)
        self.set_up_home(disk / "home")
        addresses = [address for _, address in cables]
        arguments = [name, str(disk), str(self.shared), " ".join(addresses), gateway, *list_python_folders()]
        with (disk / "console").open("ab") as console:
            process = subprocess.Popen(
                ["unshare", *NAMESPACES, "--fork", "--kill-child", "bash", "-c", HOST_INIT_SCRIPT, "bash", *arguments],
                env={"HOME": str(Path.home()), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=console,
                text=True,
            )
        host = self.hosts[name] = Host(name, addresses, disk, process)
        wait_for_word(host, "ready")
        for number, (network, _) in enumerate(cables):
            cable = f"{name}-{number}"
            far = ["name", f"eth{number}", "netns", str(host.init_pid)]
            execute("ip", "link", "add", "name", cable, "type", "veth", "peer", *far)
            execute("ip", "link", "set", cable, "master", network, "up")
        host_key = Path(f"/proc/{host.init_pid}/root/run/host_key")
        shutil.copyfile(self.key, host_key)
        host_key.chmod(0o600)
        assert process.stdin is not None
        process.stdin.write("cables are plugged in\n")
        process.stdin.flush()
        wait_for_word(host, "up")
        return host

    def power_off(self, name: str) -> None:
        """Switch a host off at once, as a power failure would.

        Its cables go first, so that its dying processes cannot send a last message.
        """
        host = self.hosts.pop(name)
        for number in range(len(host.addresses)):
            subprocess.run(["ip", "link", "delete", f"{name}-{number}"], capture_output=True, check=False)
        # The kernel then kills the host's first process (`unshare --kill-child`), and with it all others.
        host.process.kill()
        host.process.wait()

    def set_up_home(self, home: Path) -> None:
        """Give a home folder the usual files of a new user, and let the owner of the key log in."""
        shutil.copytree("/etc/skel", home, dirs_exist_ok=True)
        (home / ".ssh").mkdir(mode=0o700, exist_ok=True)
        shutil.copyfile(self.key.with_suffix(".pub"), home / ".ssh" / "authorized_keys")


def list_python_folders() -> list[str]:
    """Return the folders of this Python, which may lie in a folder that is empty on a host (its home or `/tmp`)."""
    return sorted({sys.prefix, sys.base_prefix})


def wait_for_word(host: Host, word: str) -> None:
    """Wait until a host's first process prints a word.

    Raises:
        RuntimeError: It prints something else, or ends.
    """
    assert host.process.stdout is not None
    if host.process.stdout.readline().strip() != word:
        raise RuntimeError(f"host {host.name} did not start: {(host.disk / 'console').read_text()}")


def execute(*words: str) -> None:
    """Run a program.

    Raises:
        RuntimeError: The exit status is not 0.
    """
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(words)}: {done.stderr.strip()}")


def wait_until(condition: Callable[[], object], subject: str, seconds: float) -> float:
    """Wait until a condition holds; return the seconds that it took.

    Args:
        condition: Function that is asked every 0.2 seconds.
        subject: What the condition waits for, for the message if it does not come.
        seconds: Time limit.

    Raises:
        RuntimeError: The condition does not hold within the time limit.
    """
    started = time.monotonic()
    while not condition():
        if time.monotonic() > started + seconds:
            raise RuntimeError(f"{subject}: not there after {seconds:.0f} s")
        time.sleep(0.2)
    return time.monotonic() - started

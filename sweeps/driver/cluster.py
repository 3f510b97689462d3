"""Ray's cluster: start it on this machine or join it, look at its nodes, and leave it."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import ray
from ray._private import services
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps.driver.resources import Node, add_planned_nodes
from sweeps.driver.signals import stop_on_signals
from trainables.errors import BadInputError
from trainables.files import convert_write_errors, wait_for_file
from trainables.persistence.connection import get_sqlite_file

T = TypeVar("T")
U = TypeVar("U")
EXIT_WAIT_SECONDS = 10  # how long the processes of a killed driver may take to end
LAUNCHER_CONFIG = Path("~/ray_bootstrap_config.yaml").expanduser()  # JSON, in spite of its name
TRAINABLES_PACKAGE = Path(__file__).resolve().parents[2] / "trainables"  # the only package that workers import


@contextmanager
def start_processes_in_own_group() -> Iterator[None]:
    """Start Ray's processes outside this process's group, so that signals to the group do not reach them.

    A signal to the group (`timeout python sweeps/…`, a closed terminal) is meant for the driver, which then stops Ray's
    processes in order. It could not if the same signal had ended them. Ray has no public setting for this, so the class
    that starts its processes is replaced temporarily: `ray._private.services.ConsolePopen`, seen in Ray 2.60.0.
    """
    popen = partial(services.ConsolePopen, process_group=0)
    with mock.patch.object(services, "ConsolePopen", popen):
        yield


def start_or_join(address: str | None, tracking_uri: str, machine: Node, folder: Path) -> list[Node]:
    """Start Ray on this machine with its files in `folder`, or join the cluster at `address`; return the nodes.

    The nodes include those that a cluster launcher would start if trials waited for them.

    Raises:
        BadInputError: Ray cannot start, there is no cluster at `address`, or its nodes cannot all use the store.
    """
    for name in ("ray", "ray.tune", "ray.air"):  # failures are reported in the sweep's own summary
        logging.getLogger(name).setLevel(logging.CRITICAL)
    make_private_folder(folder)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is None:
        # A token of this sweep's own, in the environment that Ray's processes inherit. Ray would otherwise write one
        # into the home folder, which containers and batch systems may lack.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        # Ray opens its folder to all users, so it lies in one that only this user enters.
        ray_folder = str(folder / "ray")
        cpus, gpus = int(machine.cpus), int(machine.gpus)
        try:
            with start_processes_in_own_group():
                ray.init("local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, _temp_dir=ray_folder, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BadInputError(f"Ray cannot start on this machine, with its files in {folder} ({reason})") from None
    else:
        try:
            ray.init(address, runtime_env={"py_modules": [str(TRAINABLES_PACKAGE)]}, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BadInputError(
                f"no Ray cluster answers at RAY_ADDRESS={address} ({reason}); start it, or unset RAY_ADDRESS"
            ) from None
    stop_on_signals()  # Ray has replaced the handlers
    resources = [node["Resources"] for node in list_living_nodes()]
    nodes = [Node(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in resources]
    if address is not None:
        nodes = add_planned_nodes(nodes, read_launcher_config())
    if len(nodes) > 1 and get_sqlite_file(tracking_uri):
        raise BadInputError(
            f"the tracking store {tracking_uri} is a file of one machine, but the cluster has {len(nodes)}; "
            "name a server or a database that all of them reach with --tracking-uri"
        )
    return nodes


def list_living_nodes() -> list[dict[str, Any]]:
    """Return Ray's descriptions of the living nodes."""
    return [node for node in ray.nodes() if node["Alive"]]


def read_launcher_config() -> dict[str, Any]:
    """Return the configuration that the cluster launcher leaves on the head, where drivers run; empty without one."""
    try:
        return dict(json.loads(LAUNCHER_CONFIG.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}


def check_storage_is_shared(storage: Path) -> None:
    """Raise `BadInputError` where a living node does not see what this machine writes into `storage`."""
    others = [node for node in list_living_nodes() if node["NodeID"] != ray.get_runtime_context().get_node_id()]
    with convert_write_errors(storage), tempfile.NamedTemporaryFile(dir=storage, prefix=".seen-by-all-nodes-") as file:
        answers = [
            ray.remote(wait_for_file)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            .remote(file.name)
            for node in others
        ]
        names = (node["NodeManagerHostname"] for node in others)
        # A node that has vanished meanwhile trains nothing, so its answer does not matter.
        blind = sorted({name for name, answer in zip(names, answers, strict=True) if not get_or_default(answer, True)})
    if blind:
        raise BadInputError(
            f"--storage {storage} is not shared: {', '.join(blind)} "
            f"{'do' if len(blind) > 1 else 'does'} not see what this machine writes there; name a folder on a file "
            "system that all nodes mount"
        )


def get_or_default(answer: ray.ObjectRef[T], otherwise: U) -> T | U:
    """Return the answer of a remote task, or `otherwise` if it failed: if trials fail as well, they will say why."""
    try:
        return ray.get(answer)
    except ray.exceptions.RayError:
        return otherwise


def make_private_folder(folder: Path) -> None:
    """Recreate the folder for Ray's files, retrying while processes of a killed driver still write into the old one.

    Raises:
        BadInputError: The folder cannot be made.
    """
    for _ in range(EXIT_WAIT_SECONDS):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(mode=0o700, parents=True)
        except OSError as error:
            reason = error.strerror
            time.sleep(1)
        else:
            return
    raise BadInputError(f"cannot make the folder {folder} for Ray's files ({reason}); remove it, or set RAY_TMPDIR")


def check_gpu() -> None:
    """Raise `BadInputError` where torch cannot use the GPU that trials on this machine were promised."""
    import torch  # takes seconds, and only trials on GPUs need it

    if not torch.cuda.is_available():
        raise BadInputError("torch finds no usable GPU on this machine; train on the CPU with --gpus-per-trial 0")


def disconnect(folder: Path) -> None:
    """Stop Ray on this machine, or leave the cluster, and remove the folder with its files."""
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)

"""Ray's cluster: start it on this machine or join it, and look at its nodes."""

from __future__ import annotations

import json
import logging
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps.driver.resources import Node, add_planned_nodes
from sweeps.driver.watch import HEAD, RAYLET, Beat
from trainables.errors import BadInputError
from trainables.files import convert_write_errors, wait_for_file
from trainables.persistence.connection import get_sqlite_file

T = TypeVar("T")
U = TypeVar("U")
LAUNCHER_CONFIG = Path("~/ray_bootstrap_config.yaml").expanduser()  # JSON, in spite of its name
TRAINABLES_PACKAGE = Path(__file__).resolve().parents[2] / "trainables"  # the only package that workers import


def start_or_join(address: str | None, tracking_uri: str, machine: Node, folder: Path) -> list[Node]:
    """Start Ray on this machine with its files in `folder`, or join the cluster at `address`; return the nodes.

    The nodes include those that a cluster launcher would start if trials waited for them.

    Raises:
        BadInputError: Ray cannot start, there is no cluster at `address`, or its nodes cannot all use the store.
    """
    for name in ("ray", "ray.tune", "ray.air"):  # failures are reported in the sweep's own summary
        logging.getLogger(name).setLevel(logging.CRITICAL)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is None:
        # A token of this sweep's own, in the environment that Ray's processes inherit. Ray would otherwise write one
        # into the home folder, which containers and batch systems may lack.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        # Ray opens its folder to all users, so it lies in one that only this user enters.
        ray_folder = str(folder / "ray")
        cpus, gpus = int(machine.cpus), int(machine.gpus)
        try:
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


def list_services() -> dict[str, tuple[str, int]]:
    """Return host and port of the processes of Ray that must live for as long as the sweep: name → address."""
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    services = {HEAD: (host.strip("[]"), int(port))}
    for node in ray.nodes():
        if node["NodeID"] == context.get_node_id():
            services[RAYLET] = (node["NodeManagerAddress"], node["NodeManagerPort"])
    return services


def look_at_cluster() -> Beat:
    """Return what the cluster's head knows of the cluster now."""
    here = ray.get_runtime_context().get_node_id()
    total, free = ray.cluster_resources(), ray.available_resources()
    return Beat(
        alive=any(node["NodeID"] == here for node in list_living_nodes()),
        total=Node(total.get("CPU", 0), total.get("GPU", 0)),
        free=Node(free.get("CPU", 0), free.get("GPU", 0)),
    )


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


def check_gpu() -> None:
    """Raise `BadInputError` where torch cannot use the GPU that trials on this machine were promised."""
    import torch  # takes seconds, and only trials on GPUs need it

    if not torch.cuda.is_available():
        raise BadInputError("torch finds no usable GPU on this machine; train on the CPU with --gpus-per-trial 0")

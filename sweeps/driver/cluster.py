"""TODO."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import ray
from ray._private import services
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps.driver.launch import T, U
from sweeps.driver.resources import (
    Node,
    add_planned_nodes,
)
from sweeps.driver.signals import stop_on_signals
from trainables.errors import BadInputError
from trainables.files import report_write_errors, wait_for_file

DYING_SECONDS = 10


LAUNCHER_CONFIG = Path("~/ray_bootstrap_config.yaml").expanduser()  # JSON, as the launcher writes it


TRAINABLES_PACKAGE = Path(__file__).resolve().parent.parent / "trainables"  # all that workers import


def start_or_join(address: str | None, machine: Node, folder: Path) -> list[Node]:
    """Start Ray on this machine with its files in `folder`, or join the cluster at `address`; its living nodes.

    Raises:
        BadInputError: There is no cluster at `address`.
    """
    for name in ("ray", "ray.tune", "ray.air"):  # what fails is reported in our own summary
        logging.getLogger(name).setLevel(logging.CRITICAL)
    make_private_folder(folder)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is None:
        cpus, gpus = int(machine.cpus), int(machine.gpus)
        # Outside this process group: a signal to the group (`timeout python sweeps/…`, a closed terminal) is meant for
        # the driver, which stops the others in order. It could not if the same signal had ended Ray's processes.
        popen = partial(services.ConsolePopen, process_group=0)
        try:
            with mock.patch.object(services, "ConsolePopen", popen):
                ray.init("local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, _temp_dir=str(folder), **quiet)
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
    stop_on_signals()  # Ray has put its own handler in the place of ours
    living = [
        Node(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)) for node in list_living_nodes()
    ]
    return living if address is None else add_planned_nodes(living, read_launcher_config())


def list_living_nodes() -> list[dict[str, Any]]:
    """What Ray knows of the nodes that live."""
    return [node for node in ray.nodes() if node["Alive"]]


def read_launcher_config() -> dict[str, Any]:
    """What the cluster launcher leaves on the head, where drivers and jobs run; empty if no launcher started it."""
    try:
        return dict(json.loads(LAUNCHER_CONFIG.read_text()))
    except FileNotFoundError:
        return {}


def check_storage_is_shared(storage: Path) -> None:
    """Raise `BadInputError` where a living node does not see what this machine writes into `storage`."""
    others = [node for node in list_living_nodes() if node["NodeID"] != ray.get_runtime_context().get_node_id()]
    with report_write_errors(storage), tempfile.NamedTemporaryFile(dir=storage, prefix=".seen-by-all-nodes-") as file:
        answers = [
            ray.remote(wait_for_file)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            .remote(file.name)
            for node in others
        ]
        names = (node["NodeManagerHostname"] for node in others)
        # A node that has vanished meanwhile trains nothing.
        blind = sorted({name for name, answer in zip(names, answers, strict=True) if not get_or_default(answer, True)})
    if blind:
        raise BadInputError(
            f"--storage {storage} is not shared: {', '.join(blind)} "
            f"{'do' if len(blind) > 1 else 'does'} not see what this machine writes there; name a folder on a file "
            "system that all nodes mount"
        )


def get_or_default(answer: ray.ObjectRef[T], otherwise: U) -> T | U:
    """What was found by trying; `otherwise` where that failed: trials will say why, if they fail as well."""
    try:
        return ray.get(answer)
    except ray.exceptions.RayError:
        return otherwise


def make_private_folder(folder: Path) -> None:
    """Make the private folder anew. A killed driver's processes may write into the old one while they die.

    Raises:
        BadInputError: It cannot be made.
    """
    for _ in range(DYING_SECONDS):
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
    import torch  # takes seconds, and only trials on GPUs need to know

    if not torch.cuda.is_available():
        raise BadInputError("torch finds no usable GPU on this machine; train on the CPU with --gpus-per-trial 0")


def disconnect(folder: Path) -> None:
    """Stop Ray on this machine, or leave the cluster, and clear away what it kept in `folder`."""
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def get_private_folder(storage: Path) -> Path:
    """Where Ray keeps sockets and logs for sweeps with this storage: short, as socket paths must be.

    The same for every driver of the storage, so that the next one clears away what a killed one has left.
    """
    name = hashlib.sha256(str(storage).encode()).hexdigest()[:8]
    return Path(os.environ.get("RAY_TMPDIR") or "/tmp") / f"neural-sweeps-{os.getuid()}-{name}"

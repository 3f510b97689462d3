from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def onprem() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "cluster.onprem.yaml").read_text())
    return found


def test_the_launcher_takes_the_file(onprem: dict[str, Any]) -> None:
    validate_config(prepare_config(onprem))


def test_what_is_copied_to_the_nodes_exists(onprem: dict[str, Any]) -> None:
    local = [path for path in onprem["file_mounts"].values() if not path.startswith("~")]
    assert local
    assert all((ROOT / path).exists() for path in local)


def test_the_code_that_experiments_import_is_copied(onprem: dict[str, Any]) -> None:
    assert {"analysis", "sweeps", "trainables", "cluster"} <= set(onprem["file_mounts"].values())


def test_every_node_asks_for_the_token(onprem: dict[str, Any]) -> None:
    assert "~/.ray/auth_token" in onprem["file_mounts"]
    assert "export RAY_AUTH_MODE=token" in (ROOT / "cluster" / "setup-node.sh").read_text()


def test_gpus_of_a_worker_are_stated(onprem: dict[str, Any]) -> None:
    [start] = [command for command in onprem["worker_start_ray_commands"] if "ray start" in command]
    assert "--num-gpus=" in start

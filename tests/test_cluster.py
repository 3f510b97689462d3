import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.check import find_problems

ROOT = Path(__file__).resolve().parent.parent
AWS, ONPREM = "cluster.yaml", "cluster.onprem.yaml"
PLACEHOLDER_VALUES = {
    "<region>": "eu-central-1",
    "<bucket>": "some-bucket",
    "<image>": "ami-0123456789abcdef0",
    "<head>": "192.168.1.10",
    "<worker 1>": "192.168.1.11",
    "<worker 2>": "192.168.1.12",
    "<user>": "ubuntu",
}
Config = dict[str, Any]


def fill_placeholders(name: str) -> str:
    """Return the content of one of the repository's files, with its placeholders replaced."""
    found = (ROOT / name).read_text()
    for placeholder, value in PLACEHOLDER_VALUES.items():
        found = found.replace(placeholder, value)
    return found


@pytest.fixture(params=[AWS, ONPREM])
def config(request: pytest.FixtureRequest) -> Config:
    found: Config = yaml.safe_load(fill_placeholders(request.param))
    return found


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with all that the launcher's files name; it is also the home folder with key and token."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for secret in (".ssh/id_ed25519", ".ray/auth_token"):
        (tmp_path / secret).parent.mkdir()
        (tmp_path / secret).touch()
    for name in ("analysis", "cluster", "sweeps", "trainables"):
        (tmp_path / name).mkdir()
    for name in ("constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.fixture
def aws_problems(checkout: Path) -> Callable[[Callable[[Config], object]], list[str]]:
    """Return a function that changes the AWS file and returns the problems that the check then finds."""

    def find_problems_after(change: Callable[[Config], object]) -> list[str]:
        config = yaml.safe_load(fill_placeholders(AWS))
        change(config)
        path = checkout / AWS
        path.write_text(yaml.safe_dump(config))
        return find_problems(path)

    return find_problems_after


def test_the_launcher_accepts_the_file(config: Config) -> None:
    validate_config(prepare_config(config))


def test_all_files_copied_to_the_nodes_exist(config: Config) -> None:
    local = [path for path in config["file_mounts"].values() if not path.startswith("~")]
    assert local
    assert all((ROOT / path).exists() for path in local)


def test_the_code_that_experiments_import_is_copied(config: Config) -> None:
    assert {"analysis", "sweeps", "trainables", "cluster"} <= set(config["file_mounts"].values())


def test_every_node_requires_the_token(config: Config) -> None:
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert "export RAY_AUTH_MODE=token" in (ROOT / "cluster" / "setup-node.sh").read_text()


def test_the_head_trains_nothing_and_shows_its_dashboard_to_itself_only(config: Config) -> None:
    [start] = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    assert {"--num-cpus=0", "--num-gpus=0", "--dashboard-host=127.0.0.1", "--disable-usage-stats"} <= set(start.split())


def test_both_files_start_the_head_alike() -> None:
    aws, onprem = (yaml.safe_load(fill_placeholders(name)) for name in (AWS, ONPREM))
    assert aws["head_start_ray_commands"] == onprem["head_start_ray_commands"]
    assert aws["file_mounts"] == onprem["file_mounts"]


def test_gpus_of_a_worker_are_stated() -> None:
    onprem = yaml.safe_load(fill_placeholders(ONPREM))
    [start] = [command for command in onprem["worker_start_ray_commands"] if "ray start" in command]
    assert "--num-gpus=" in start
    gpu = yaml.safe_load(fill_placeholders(AWS))["available_node_types"]["gpu"]
    assert gpu["resources"]["GPU"] == 1


@pytest.mark.parametrize("name", [AWS, ONPREM])
def test_a_file_whose_placeholders_are_replaced_is_ready(name: str, checkout: Path) -> None:
    (checkout / name).write_text(fill_placeholders(name))
    assert find_problems(checkout / name) == []


@pytest.mark.parametrize("name", [AWS, ONPREM])
def test_each_remaining_placeholder_is_named(name: str) -> None:
    found = find_problems(ROOT / name)
    left = set(re.findall(r"<[\w ]+>", yaml.safe_dump(yaml.safe_load((ROOT / name).read_text()))))
    assert left
    assert left <= set(PLACEHOLDER_VALUES)
    assert {line.partition(" is still to be set")[0] for line in found} == left


def test_the_script_names_what_is_missing_and_fails() -> None:
    command = [sys.executable, "cluster/check.py", AWS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: cluster.yaml: <region> is still to be set, in provider.region" in done.stderr.splitlines()
    assert "Traceback" not in done.stderr


def test_missing_keys_tokens_and_code_are_named(checkout: Path) -> None:
    (checkout / ONPREM).write_text(fill_placeholders(ONPREM))
    (checkout / ".ssh/id_ed25519").unlink()
    (checkout / ".ray/auth_token").unlink()
    (checkout / "sweeps").rmdir()
    key, code, token = find_problems(checkout / ONPREM)
    assert "~/.ssh/id_ed25519" in key
    assert "sweeps" in code
    assert "ray get-auth-token --generate" in token


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "no section provider"),
        ("provider: {type: aws", "not YAML"),
        ("provider: {type: gcp}", "must be aws or local"),
        ("{cluster_name: c, provider: {type: local, head_ip: 10.0.0.1}}", "head_ip and worker_ips"),
    ],
)
def test_a_file_that_describes_no_cluster_is_refused(content: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text(content)
    [problem] = find_problems(tmp_path / "file.yaml")
    assert expected in problem


def get_head_settings(config: Config) -> Config:
    """Return the settings of the head's machine."""
    found: Config = config["available_node_types"]["head"]["node_config"]
    return found


def get_worker_settings(config: Config) -> Config:
    """Return the settings of a worker's machine."""
    found: Config = config["available_node_types"]["gpu"]["node_config"]
    return found


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda config: config["provider"].pop("region"), "provider.region"),
        (lambda config: config["provider"].update(region="eu-centrall-1"), "eu-centrall-1"),
        (lambda config: config["provider"].update(avalability_zone="eu-central-1a"), "provider.avalability_zone"),
        (lambda config: config["auth"].pop("ssh_user"), "auth.ssh_user"),
        (lambda config: config.update(setup_commands=["bash setup-node.sh nfs:/srv/s"]), "S3 bucket"),
        (lambda config: config.update(setup_commands=["bash setup-node.sh nfs:/srv/s s3://Bucket_1"]), "s3://Bucket_1"),
        (lambda config: config.update(setup_commands=["bash setup-node.sh /srv/s s3://bucket"]), "nfs:/FOLDER"),
        (lambda config: config.update(setup_commands=[]), "setup-node.sh"),
        (lambda config: config.update(max_worker=3), "max_worker"),
        (lambda config: config["available_node_types"]["gpu"].update(max_worker=3), "max_worker"),
        (lambda config: config["available_node_types"]["gpu"].pop("resources"), "resources"),
        (lambda config: config["available_node_types"]["gpu"].update(resources={"CPU": 4}), "must say GPU"),
        (lambda config: config["available_node_types"]["gpu"].update(resources={"CPU": 4, "GPU": 0}), "g4dn.xlarge"),
        (lambda config: config["available_node_types"]["head"].update(resources={"CPU": 0, "GPU": 1}), "m6i.xlarge"),
        (lambda config: get_head_settings(config).pop("InstanceType"), "InstanceType"),
        (lambda config: get_head_settings(config).pop("ImageId"), "ImageId"),
        (lambda config: get_head_settings(config).update(ImageID="ami-1"), "ImageID"),
        (lambda config: get_worker_settings(config).update(InstanceType="g4dn.xlrge"), "g4dn.xlrge"),
        (lambda config: get_worker_settings(config).update(InstanceMarketOptions={"MarketType": "spt"}), "spt"),
        (lambda config: get_worker_settings(config).update(InstanceMarketOptions={"SpotOption": {}}), "SpotOption"),
        (
            lambda config: get_worker_settings(config)["BlockDeviceMappings"][0]["Ebs"].update(VolumeSize="100"),
            "VolumeSize",
        ),
    ],
)
def test_mistakes_that_the_schema_lets_pass_are_found(
    change: Callable[[Config], object], expected: str, aws_problems: Callable[[Callable[[Config], object]], list[str]]
) -> None:
    [problem] = aws_problems(change)
    assert expected in problem
    assert "\n" not in problem


def test_a_given_ssh_key_needs_its_name_on_every_machine(
    aws_problems: Callable[[Callable[[Config], object]], list[str]],
) -> None:
    found = aws_problems(lambda config: config["auth"].update(ssh_private_key="~/.ssh/id_ed25519"))
    assert len(found) == 2
    assert all("KeyName" in problem for problem in found)

"""`ray up cluster.yaml` on a simulated AWS, without what happens on the machines."""

import gc
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from moto import mock_aws
from ray.autoscaler._private import commands
from ray.autoscaler._private.aws import config as aws_config
from ray.autoscaler._private.providers import _get_node_provider

ROOT = Path(__file__).resolve().parent.parent
REGION = "eu-central-1"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:unclosed file .*(cluster.yaml|ray-bootstrap-):ResourceWarning"
    ),  # left open by Ray
]


class FakeUpdater:
    """Replacement for the thread that sets up a node through SSH."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.exitcode = 0
        updaters.append(self)

    def start(self) -> None: ...

    def join(self) -> None: ...


updaters: list[FakeUpdater] = []


@dataclass(frozen=True)
class Cluster:
    """The file that `ray up` was given, the configuration that it made of it, and the AWS that it called."""

    path: Path
    config: dict[str, Any]
    image: str
    ec2: Any

    def list_machines(self) -> list[dict[str, Any]]:
        return [i for part in self.ec2.describe_instances()["Reservations"] for i in part["Instances"]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("0" * 64)
    with pytest.MonkeyPatch.context() as patch, mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        patch.setenv("HOME", str(home))
        patch.chdir(ROOT)
        patch.setattr(tempfile, "tempdir", str(home))  # Ray caches there what it has asked AWS
        patch.setattr(commands, "NodeUpdaterThread", FakeUpdater)
        patch.setattr(commands, "exec_cluster", lambda *_, **__: "")  # `ray down` would run `ray stop` on the head
        patch.setattr(commands, "POLL_INTERVAL", 0.1)
        patch.setattr(aws_config, "time", SimpleNamespace(sleep=lambda seconds: None))
        ec2 = boto3.client("ec2", region_name=REGION)
        image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
        path = home / "cluster.yaml"
        text = (ROOT / "cluster.yaml").read_text().replace("<region>", REGION).replace("<bucket>", "some-bucket")
        path.write_text(text.replace("<image>", image))
        config = commands.create_or_update_cluster(
            str(path), None, None, no_restart=False, restart_only=False, yes=True, no_config_cache=True
        )
        gc.collect()  # while the filter for files that Ray leaves open applies
        yield Cluster(path, config, image, ec2)


def test_one_head_without_a_gpu_starts(cluster: Cluster) -> None:
    [head] = cluster.list_machines()
    assert head["State"]["Name"] == "running"
    assert (head["InstanceType"], head["ImageId"]) == ("m6i.xlarge", cluster.image)
    assert head["MetadataOptions"]["HttpTokens"] == "required"
    tags = {tag["Key"]: tag["Value"] for tag in head["Tags"]}
    assert (tags["ray-cluster-name"], tags["ray-node-type"]) == ("neural-sweeps", "head")
    [disk] = cluster.ec2.describe_volumes()["Volumes"]
    assert disk["Size"] == 150
    assert [part["Ebs"]["DeleteOnTermination"] for part in head["BlockDeviceMappings"]] == [True]


def test_only_ssh_is_open_to_the_outside(cluster: Cluster) -> None:
    [head] = cluster.list_machines()
    [group] = head["SecurityGroups"]
    [found] = cluster.ec2.describe_security_groups(GroupIds=[group["GroupId"]])["SecurityGroups"]
    outside = [rule for rule in found["IpPermissions"] if rule["IpRanges"] or rule["Ipv6Ranges"]]
    inside = [rule for rule in found["IpPermissions"] if rule not in outside]
    assert [(rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) for rule in outside] == [("tcp", 22, 22)]
    assert [pair["GroupId"] for rule in inside for pair in rule["UserIdGroupPairs"]] == [group["GroupId"]]


def test_the_head_may_start_machines_and_write_to_s3(cluster: Cluster) -> None:
    [head] = cluster.list_machines()
    assert head["IamInstanceProfile"]["Arn"].endswith(":instance-profile/ray-autoscaler-v1")
    policies = boto3.client("iam").list_attached_role_policies(RoleName="ray-autoscaler-v1")["AttachedPolicies"]
    assert {policy["PolicyName"] for policy in policies} == {"AmazonEC2FullAccess", "AmazonS3FullAccess"}


def test_an_ssh_key_is_made_that_only_its_owner_can_read(cluster: Cluster) -> None:
    [head] = cluster.list_machines()
    assert head["KeyName"] == "neural-sweeps"
    key = cluster.path.parent / ".ssh" / "neural-sweeps.pem"
    assert "PRIVATE KEY" in key.read_text()
    assert key.stat().st_mode & 0o777 == 0o600


def test_the_head_gets_the_token_and_the_scripts_and_runs_the_setup(cluster: Cluster) -> None:
    arguments = updaters[-1].arguments
    assert {"~/.ray/auth_token", "~/neural-sweeps/cluster", "~/ray_bootstrap_config.yaml"} <= set(
        arguments["file_mounts"]
    )
    assert arguments["auth_config"]["ssh_user"] == "ubuntu"
    [setup] = arguments["setup_commands"]
    assert setup.endswith("cluster/setup-node.sh nfs:/srv/neural-sweeps s3://some-bucket/neural-sweeps")
    assert arguments["node_resources"] == {"CPU": 0, "GPU": 0}


def test_workers_are_spot_machines_with_no_rights_and_ray_down_keeps_the_head(cluster: Cluster) -> None:
    kind = cluster.config["available_node_types"]["gpu"]
    assert (kind["min_workers"], kind["max_workers"]) == (0, 4)
    assert {"CPU": 4, "GPU": 1}.items() <= kind["resources"].items()
    provider = _get_node_provider(cluster.config["provider"], cluster.config["cluster_name"])
    tags = {"ray-node-type": "worker", "ray-launch-config": "", "ray-user-node-type": "gpu"}
    assert len(provider.create_node(kind["node_config"], tags, count=1)) == 1
    [worker] = [machine for machine in cluster.list_machines() if machine["InstanceType"] == "g4dn.xlarge"]
    [head] = [machine for machine in cluster.list_machines() if machine["InstanceType"] == "m6i.xlarge"]
    assert worker["InstanceLifecycle"] == "spot"
    assert worker["ImageId"] == cluster.image
    assert "IamInstanceProfile" not in worker
    assert worker["SecurityGroups"] == head["SecurityGroups"]
    commands.teardown_cluster(str(cluster.path), True, False, None, False)
    states = {machine["InstanceId"]: machine["State"]["Name"] for machine in cluster.list_machines()}
    assert states[head["InstanceId"]] == "stopped"
    assert states[worker["InstanceId"]] != "running"

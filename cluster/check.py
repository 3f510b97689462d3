"""Is a file of the cluster launcher ready for `ray up`? Says in a sentence each what is not; exit status 2 then.

Finds what Ray's own schema lets pass, and what would otherwise show only when a machine starts, or never: what a person
still has to set, misspelt settings, and files that are not there.
"""

from __future__ import annotations

import io
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config

PROVIDER = {  # the settings of a provider that a person may write; Ray's schema takes any
    "aws": {
        "type",
        "region",
        "availability_zone",
        "key_pair",
        "security_group",
        "cache_stopped_nodes",
        "use_internal_ips",
    },
    "local": {"type", "head_ip", "worker_ips", "external_head_ip"},
}
GPU_FAMILIES = re.compile(r"(g|gr|p)\d")  # of AWS's instance types
BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/|$)")


def problems(path: Path) -> list[str]:
    """What is wrong with a file, in a sentence each; nothing, if it is ready."""
    try:
        config = yaml.safe_load(path.read_text())
    except OSError as error:
        return [f"it cannot be read ({error.strerror})"]
    except yaml.YAMLError as error:
        return ["it is not YAML: " + " ".join(str(error).split())]
    if not isinstance(config, dict) or not isinstance(config.get("provider"), dict):
        return ["it has no section provider"]
    kind = config["provider"].get("type")
    if kind not in PROVIDER:
        return [f"provider.type is {kind}; it must be aws or local"]
    unset: dict[str, str] = {}
    for where, value in strings(config):
        for name in re.findall(r"<\w[\w ]*>", value):
            unset.setdefault(name, where)
    if unset:
        return [f"{name} is still to be set, in {where}" for name, where in unset.items()]
    found = list(schema(config)) or [*everywhere(config, path.parent), *(on_aws(config) if kind == "aws" else ())]
    return list(dict.fromkeys(found))


def strings(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """All texts in a value, and where they are."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from strings(part, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from strings(part, f"{where}[{number}]")


def schema(config: dict[str, Any]) -> Iterator[str]:
    """What the launcher itself refuses."""
    provider = config["provider"]
    if provider["type"] == "local" and not {"head_ip", "worker_ips"} <= set(provider):
        yield "provider must name head_ip and worker_ips"
        return
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # Ray's own remarks
            validate_config(prepare_config(config))
    except Exception as error:  # of many kinds: whatever it is, `ray up` would end with it
        where = ".".join(str(part) for part in getattr(error, "absolute_path", ()))
        yield f"Ray refuses {where or 'the file'}: {getattr(error, 'message', error)}"


def everywhere(config: dict[str, Any], folder: Path) -> Iterator[str]:
    """What any cluster needs."""
    provider = config["provider"]
    for name in sorted(set(provider) - PROVIDER[provider["type"]]):
        yield f"provider.{name} is no setting; those are {', '.join(sorted(PROVIDER[provider['type']]))}"
    auth = config.get("auth", {})
    if not auth.get("ssh_user"):
        yield "auth.ssh_user is missing: the user who logs in to the machines"
    if (key := auth.get("ssh_private_key")) and not Path(key).expanduser().exists():
        yield f"auth.ssh_private_key names {key}, which is not there"
    for source in config.get("file_mounts", {}).values():
        if not (folder / Path(source).expanduser()).exists():
            hint = "; make it with `ray get-auth-token --generate`" if "auth_token" in source else ""
            yield f"file_mounts names {source}, which is not there{hint}"
    if not setup_words(config):
        yield "setup_commands must run cluster/setup-node.sh"


def setup_words(config: dict[str, Any]) -> list[str]:
    """The arguments that setup-node.sh is called with."""
    for command in config.get("setup_commands", []):
        before, _, after = command.partition("setup-node.sh")
        if before != command:
            return shlex.split(after)
    return []


@cache
def ec2() -> tuple[list[str], Any]:
    """AWS's regions, and what a request to start machines may say."""
    session = botocore.session.get_session()
    partitions = session.get_available_partitions()
    regions = sorted(name for partition in partitions for name in session.get_available_regions("ec2", partition))
    return regions, session.get_service_model("ec2").operation_model("RunInstances").input_shape


def on_aws(config: dict[str, Any]) -> Iterator[str]:
    """What a cluster on AWS needs."""
    regions, run_instances = ec2()
    region = config["provider"].get("region")
    if region not in regions:
        yield f"provider.region is {region}, which AWS has not; it has {', '.join(regions)}"
    if words := setup_words(config):
        if not words[0].startswith("nfs:/"):
            yield f"setup-node.sh is called with {words[0]}; machines of AWS share no folder unless it is nfs:/FOLDER"
        if not BUCKET.match(words[-1]):
            yield f"setup-node.sh must be told the S3 bucket last, as in s3://BUCKET/PREFIX, not {words[-1]}"
    for name, kind in config["available_node_types"].items():
        where = f"available_node_types.{name}"
        settings = kind["node_config"]
        if "ssh_private_key" in config["auth"] and "KeyName" not in settings:
            yield f"{where}.node_config needs KeyName, as auth.ssh_private_key is set"
        for setting in ("InstanceType", "ImageId"):
            if setting not in settings:
                yield f"{where}.node_config needs {setting}"
        # Ray adds how many, and takes several subnets where AWS takes one.
        asked = {key: value for key, value in settings.items() if key != "SubnetIds"} | {"MinCount": 1, "MaxCount": 1}
        for line in ParamValidator().validate(asked, run_instances).generate_report().splitlines():
            yield f"{where}.node_config: {line.partition(', must be one of')[0]}"
        for place, value in unknown_values(settings, run_instances, f"{where}.node_config"):
            yield f"{place} is {value}, which AWS does not know"
        yield from on_resources(where, kind["resources"], settings.get("InstanceType", ""))


def on_resources(where: str, resources: dict[str, int], instance_type: str) -> Iterator[str]:
    """What is wrong with the resources of a node type."""
    for name in ("CPU", "GPU"):
        if name not in resources:
            yield f"{where}.resources must say {name}"
    if bool(GPU_FAMILIES.match(instance_type)) != bool(resources.get("GPU")) and "GPU" in resources:
        yield f"{where}.resources says GPU: {resources['GPU']}, which {instance_type} has not"


def unknown_values(value: Any, shape: Any, where: str) -> Iterator[tuple[str, str]]:
    """Texts in a request where AWS takes one of a list, and they are not in it."""
    if shape.type_name == "structure" and isinstance(value, dict):
        for key, part in value.items():
            if key in shape.members:
                yield from unknown_values(part, shape.members[key], f"{where}.{key}")
    elif shape.type_name == "list" and isinstance(value, list):
        for number, part in enumerate(value):
            yield from unknown_values(part, shape.member, f"{where}[{number}]")
    elif shape.type_name == "string" and shape.enum and value not in shape.enum:
        yield where, str(value)


def main() -> int:
    """Check the file that the command line names."""
    if len(sys.argv) != 2:
        print("usage: python cluster/check.py FILE", file=sys.stderr)
        return 2
    found = problems(Path(sys.argv[1]))
    for problem in found:
        print(f"error: {sys.argv[1]}: {problem}", file=sys.stderr)
    if not found:
        print(f"{sys.argv[1]} can be used")
    return 2 if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""Checks that a file for Ray's cluster launcher is ready for `ray up`.

It prints a sentence about each problem, and ends with exit status 2 if there is one. It finds problems that Ray's own
schema misses, and that would otherwise show only when a machine starts, or never: placeholders that still have to be
replaced, misspelt settings, and files that do not exist.
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

PROVIDER_SETTINGS = {  # settings of a provider that a person may write; Ray's schema accepts any name
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
GPU_INSTANCE_TYPE = re.compile(r"(g|gr|p)\d")  # start of the names of AWS's instance types that have a GPU
BUCKET_URI = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/|$)")


def find_problems(path: Path) -> list[str]:
    """Return a sentence about each problem of a file; an empty list if it is ready."""
    try:
        config = yaml.safe_load(path.read_text())
    except OSError as error:
        return [f"it cannot be read ({error.strerror})"]
    except yaml.YAMLError as error:
        return ["it is not YAML: " + " ".join(str(error).split())]
    if not isinstance(config, dict) or not isinstance(config.get("provider"), dict):
        return ["it has no section provider"]
    kind = config["provider"].get("type")
    if kind not in PROVIDER_SETTINGS:
        return [f"provider.type is {kind}; it must be aws or local"]
    unset: dict[str, str] = {}
    for where, value in walk_strings(config):
        for name in re.findall(r"<\w[\w ]*>", value):
            unset.setdefault(name, where)
    if unset:
        return [f"{name} is still to be set, in {where}" for name, where in unset.items()]
    found = list(check_schema(config))
    if not found:
        found = [*check_any_cluster(config, path.parent), *(check_aws(config) if kind == "aws" else ())]
    return list(dict.fromkeys(found))


def walk_strings(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string in a value of YAML, each after its place, such as `auth.ssh_user`."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from walk_strings(part, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from walk_strings(part, f"{where}[{number}]")


def check_schema(config: dict[str, Any]) -> Iterator[str]:
    """Yield the problems for which the launcher itself refuses the file."""
    provider = config["provider"]
    if provider["type"] == "local" and not {"head_ip", "worker_ips"} <= set(provider):
        yield "provider must name head_ip and worker_ips"
        return
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # Ray prints remarks
            validate_config(prepare_config(config))
    except Exception as error:  # Ray raises errors of many types; each would end `ray up`.
        where = ".".join(str(part) for part in getattr(error, "absolute_path", ()))
        yield f"Ray refuses {where or 'the file'}: {getattr(error, 'message', error)}"


def check_any_cluster(config: dict[str, Any], folder: Path) -> Iterator[str]:
    """Yield the problems with settings that every cluster needs, with any provider.

    Args:
        config: The file's content.
        folder: The file's folder, to which its paths are relative.
    """
    provider = config["provider"]
    known = PROVIDER_SETTINGS[provider["type"]]
    for name in sorted(set(provider) - known):
        yield f"provider.{name} is not a known setting; the known ones are {', '.join(sorted(known))}"
    auth = config.get("auth", {})
    if not auth.get("ssh_user"):
        yield "auth.ssh_user is missing: the name of the user who logs in to the machines"
    if (key := auth.get("ssh_private_key")) and not Path(key).expanduser().exists():
        yield f"auth.ssh_private_key names {key}, which does not exist"
    for source in config.get("file_mounts", {}).values():
        if not (folder / Path(source).expanduser()).exists():
            hint = "; make it with `ray get-auth-token --generate`" if "auth_token" in source else ""
            yield f"file_mounts names {source}, which does not exist{hint}"
    if not get_setup_arguments(config):
        yield "setup_commands must run cluster/setup-node.sh"


def get_setup_arguments(config: dict[str, Any]) -> list[str]:
    """Return the arguments with which the file calls setup-node.sh; an empty list if it does not call it."""
    for command in config.get("setup_commands", []):
        before, _, after = command.partition("setup-node.sh")
        if before != command:
            return shlex.split(after)
    return []


@cache
def load_ec2_model() -> tuple[list[str], Any]:
    """Return the names of AWS's regions, and the shape of a request to start machines (botocore's `RunInstances`)."""
    session = botocore.session.get_session()
    partitions = session.get_available_partitions()
    regions = sorted(name for partition in partitions for name in session.get_available_regions("ec2", partition))
    return regions, session.get_service_model("ec2").operation_model("RunInstances").input_shape


def check_aws(config: dict[str, Any]) -> Iterator[str]:
    """Yield the problems with settings that only a cluster on AWS has."""
    regions, run_instances = load_ec2_model()
    region = config["provider"].get("region")
    if region not in regions:
        yield f"provider.region is {region}, which is not a region of AWS; the regions are {', '.join(regions)}"
    if arguments := get_setup_arguments(config):
        shared, artifacts = arguments[0], arguments[-1]
        if not shared.startswith("nfs:/"):
            yield f"setup-node.sh is called with {shared}; machines of AWS share no folder unless it is nfs:/FOLDER"
        if not BUCKET_URI.match(artifacts):
            yield f"the last argument of setup-node.sh must name the S3 bucket, as s3://BUCKET/PREFIX, not {artifacts}"
    for name, kind in config["available_node_types"].items():
        where = f"available_node_types.{name}"
        settings = kind["node_config"]
        if "ssh_private_key" in config["auth"] and "KeyName" not in settings:
            yield f"{where}.node_config needs KeyName, as auth.ssh_private_key is set"
        for setting in ("InstanceType", "ImageId"):
            if setting not in settings:
                yield f"{where}.node_config needs {setting}"
        # Ray adds the number of machines, and chooses one of several subnets, as AWS accepts only one.
        request = {key: value for key, value in settings.items() if key != "SubnetIds"} | {"MinCount": 1, "MaxCount": 1}
        for line in ParamValidator().validate(request, run_instances).generate_report().splitlines():
            yield f"{where}.node_config: {line.partition(', must be one of')[0]}"
        for place, value in find_unknown_values(settings, run_instances, f"{where}.node_config"):
            yield f"{place} is {value}, which is not a value that AWS knows"
        yield from check_resources(where, kind["resources"], settings.get("InstanceType", ""))


def check_resources(where: str, resources: dict[str, int], instance_type: str) -> Iterator[str]:
    """Yield the problems with the resources of a node type."""
    for name in ("CPU", "GPU"):
        if name not in resources:
            yield f"{where}.resources must say {name}"
    has_gpu = bool(GPU_INSTANCE_TYPE.match(instance_type))
    if "GPU" in resources and bool(resources["GPU"]) != has_gpu:
        yield f"{where}.resources says GPU: {resources['GPU']}, but {instance_type} has {'a' if has_gpu else 'no'} GPU"


def find_unknown_values(value: Any, shape: Any, where: str) -> Iterator[tuple[str, str]]:
    """Yield the strings of a request that are not among the values that AWS lists for their place, after that place."""
    if shape.type_name == "structure" and isinstance(value, dict):
        for key, part in value.items():
            if key in shape.members:
                yield from find_unknown_values(part, shape.members[key], f"{where}.{key}")
    elif shape.type_name == "list" and isinstance(value, list):
        for number, part in enumerate(value):
            yield from find_unknown_values(part, shape.member, f"{where}[{number}]")
    elif shape.type_name == "string" and shape.enum and value not in shape.enum:
        yield where, str(value)


def main() -> int:
    """Check the file that the command line names; return the exit status."""
    if len(sys.argv) != 2:
        print("usage: python cluster/check.py FILE", file=sys.stderr)
        return 2
    found = find_problems(Path(sys.argv[1]))
    for problem in found:
        print(f"error: {sys.argv[1]}: {problem}", file=sys.stderr)
    if not found:
        print(f"{sys.argv[1]} is ready for `ray up`")
    return 2 if found else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env bash
# Prepares a node, head or worker: Python environment, and what every login shell finds in its environment.
# The cluster launcher runs it on each node; running it again changes nothing that is as it should be.
# usage: setup-node.sh SHARED     SHARED: a folder that all nodes see (NFS), or s3://BUCKET/PREFIX
set -euo pipefail
shared=${1:?usage: setup-node.sh SHARED}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

if [[ $shared != s3://* ]] && ! { mkdir -p "$shared" && [ -w "$shared" ]; }; then
    echo "the shared folder $shared cannot be written on $(hostname); mount it there, or name another" >&2
    exit 1
fi

if [ ! -x "$venv/bin/python" ]; then
    if ! python3 -c 'import ensurepip' 2> /dev/null; then
        as_root apt-get update -qq
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv
    fi
    python3 -m venv "$venv"
fi
requirements=$("$venv/bin/python" - "$root/pyproject.toml" << 'EOP'
import sys, tomllib
from pathlib import Path
project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
print(*project["dependencies"], *project["optional-dependencies"]["cluster"], sep="\n")
EOP
)
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$root/constraints.txt" --requirement /dev/stdin <<< "$requirements"

# Login shells reset PATH, so the environment has to come from here. Authentication must be asked for by every process.
environment="export PATH=$venv/bin:\$PATH
export PYTHONPATH=$root
export SWEEPS_SHARED=$shared
export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0"
if [ -z "${RAY_HEAD_IP:-}" ]; then # which the launcher sets on workers only
    # The launcher's file names the head's private address where a person had to; in a cloud the default route does.
    address=$("$venv/bin/python" - << 'EOP'
import json
from pathlib import Path
print(json.loads(Path("~/ray_bootstrap_config.yaml").expanduser().read_text())["provider"].get("head_ip", ""))
EOP
    )
    [ -n "$address" ] || address=$(ip -4 route get 192.0.2.1 | sed -n 's/.* src \([^ ]*\).*/\1/p')
    # A node that does not answer three checks is dead: at most 1 s between two, 1.5 s for an answer (Ray: 60 s in all).
    environment="$environment
export SWEEPS_ADDRESS=$address
export RAY_ADDRESS=$address:6379
export MLFLOW_TRACKING_URI=http://$address:5000
export RAY_health_check_initial_delay_ms=1000
export RAY_health_check_period_ms=1000
export RAY_health_check_timeout_ms=1500
export RAY_health_check_failure_threshold=3"
fi
as_root tee /etc/profile.d/neural-sweeps.sh > /dev/null <<< "$environment"

if [ -f ~/.ray/auth_token ]; then chmod 600 ~/.ray/auth_token; fi

#!/usr/bin/env bash
# Prepares a node, head or worker: packages, the shared folder, Python, and what every login shell finds in its
# environment. The cluster launcher runs it on each node; running it again changes nothing that is as it should be.
# usage: setup-node.sh SHARED [ARTIFACTS]
#   SHARED     a folder that all machines share already; or nfs:FOLDER, which the head shares and the others mount
#   ARTIFACTS  where the tracking server keeps files: a folder that the head sees, or s3://BUCKET/PREFIX, which only
#              the head need reach. Default: SHARED/mlartifacts
set -euo pipefail
usage="usage: setup-node.sh SHARED|nfs:FOLDER [ARTIFACTS]"
shared=${1:?$usage}
folder=${shared#nfs:}
folder=${folder%/}
artifacts=${2:-$folder/mlartifacts}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

install_package() { # unless it is there; a fresh machine may be busy updating itself, which is waited for
    if ! dpkg -l "$1" 2> /dev/null | grep -q '^.i'; then
        for _ in $(seq 30); do if as_root apt-get update -qq; then break; fi; sleep 4; done
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq "$1"
    fi
}

changed=false
write_as_root() { # FILE < TEXT
    local text
    text=$(cat)
    if [ "$(cat "$1" 2> /dev/null)" != "$text" ]; then
        changed=true
        as_root mkdir -p "$(dirname "$1")"
        as_root tee "$1" > /dev/null <<< "$text"
    fi
}

# NFS 4 alone, on the private address, for private addresses; the network's firewall decides which of them get here.
# Whatever a node's user is called, the files belong to the head's.
share_folder() {
    local options
    options="rw,sync,no_subtree_check,all_squash,anonuid=$(id -u),anongid=$(id -g)"
    as_root install -d -o "$(id -u)" -g "$(id -g)" "$folder.export"
    write_as_root /etc/nfs.conf.d/neural-sweeps.conf <<< "[nfsd]
host=$address
vers3=n"
    write_as_root /etc/exports.d/neural-sweeps.exports <<< \
        "$folder.export 10.0.0.0/8($options) 172.16.0.0/12($options) 192.168.0.0/16($options)"
    as_root systemctl mask --quiet rpcbind.socket rpcbind.service # which only older versions of NFS need
    as_root systemctl stop rpcbind.socket rpcbind.service 2> /dev/null || true
    install_package nfs-kernel-server
    # A restart lets nobody lock a file for 90 seconds.
    if $changed; then as_root systemctl restart nfs-server; fi
}

# The head mounts its own folder as well: a lock taken beside NFS is not seen through it. In fstab for when the machine
# starts again. What lies below the mount is root's, so that nothing is written there by mistake when it is not mounted.
mount_folder() {
    local line="$address:$folder.export $folder nfs4 _netdev,nofail 0 0"
    install_package nfs-common
    as_root mkdir -p "$folder"
    if ! grep -qxF "$line" /etc/fstab; then
        as_root sed -i "\\# $folder nfs4 #d" /etc/fstab
        as_root tee -a /etc/fstab > /dev/null <<< "$line"
    fi
    if ! mountpoint -q "$folder"; then as_root mount "$folder"; fi
}

head=false
address=${RAY_HEAD_IP:-} # which the launcher sets on workers only
if [ -z "$address" ]; then
    head=true
    # The launcher's file names the head's private address where a person had to; in a cloud the default route does.
    address=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["provider"].get("head_ip", ""))' \
        < ~/ray_bootstrap_config.yaml)
    [ -n "$address" ] || address=$(ip -4 route get 192.0.2.1 | sed -n 's/.* src \([^ ]*\).*/\1/p')
fi

if $head; then install_package postgresql; fi
if ! command -v c++ > /dev/null; then # which makes convolutions faster, no more
    install_package g++ || echo "no C++ compiler on $(hostname): convolutions are PyTorch's" >&2
fi
if [[ $shared == nfs:* ]]; then
    if $head; then share_folder; fi
    mount_folder
fi
if [[ $folder != /* ]] || ! { mkdir -p "$folder" && [ -w "$folder" ]; }; then
    echo "the shared folder $folder cannot be written on $(hostname); mount it there, or name another" >&2
    exit 1
fi

if [ ! -x "$venv/bin/python" ]; then
    if ! python3 -c 'import ensurepip' 2> /dev/null; then install_package python3-venv; fi
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
# No metrics: Ray would serve them on every address, to anybody. For the head's own two it has no switch but a port that
# cannot be.
environment="export PATH=$venv/bin:\$PATH
export PYTHONPATH=$root
export SWEEPS_STORAGE=$folder/storage
export SWEEPS_DATA_ROOT=$folder/data
export MLFLOW_TRACKING_URI=http://$address:5000
export RAY_AUTH_MODE=token
export RAY_enable_metrics_collection=0
export RAY_USAGE_STATS_ENABLED=0"
if $head; then
    # A node that does not answer three checks is dead: at most 1 s between two, 1.5 s for an answer (Ray: 60 s in all).
    environment="$environment
export SWEEPS_ADDRESS=$address
export SWEEPS_ARTIFACTS=$artifacts
export RAY_ADDRESS=$address:6379
export AUTOSCALER_METRIC_PORT=65536
export DASHBOARD_METRIC_PORT=65536
export RAY_health_check_initial_delay_ms=1000
export RAY_health_check_period_ms=1000
export RAY_health_check_timeout_ms=1500
export RAY_health_check_failure_threshold=3"
fi
write_as_root /etc/profile.d/neural-sweeps.sh <<< "$environment"

if [ -f ~/.ray/auth_token ]; then chmod 600 ~/.ray/auth_token; fi

#!/usr/bin/env bash
# Prepares a node, head or worker: installs packages and Python, mounts the shared folder, and sets the environment
# variables of every login shell. The cluster launcher runs it on each node. It may run again: it changes only what
# differs from what it would set up.
# usage: setup-node.sh SHARED [ARTIFACTS]
#   SHARED     a folder that all machines share already; or nfs:FOLDER, which the head exports and all nodes mount
#   ARTIFACTS  where the tracking server keeps files: a folder that the head sees, or s3://BUCKET/PREFIX, which only
#              the head must reach. Default: SHARED/mlartifacts
set -euo pipefail
usage="usage: setup-node.sh SHARED|nfs:FOLDER [ARTIFACTS]"
shared=${1:?$usage}
folder=${shared#nfs:}
folder=${folder%/}
artifacts=${2:-$folder/mlartifacts}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# Installs a package that is missing. A fresh machine may be busy updating itself, so this waits for a while.
install_package() {
    if ! dpkg -l "$1" 2> /dev/null | grep -q '^.i'; then
        for _ in $(seq 30); do if as_root apt-get update -qq; then break; fi; sleep 4; done
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq "$1"
    fi
}

# Writes standard input to a file, if the file has another content: write_as_root FILE < TEXT
changed=false
write_as_root() {
    local text
    text=$(cat)
    if [ "$(cat "$1" 2> /dev/null)" != "$text" ]; then
        changed=true
        as_root mkdir -p "$(dirname "$1")"
        as_root tee "$1" > /dev/null <<< "$text"
    fi
}

# Exports the folder by NFS 4 only, on the head's private address, to all private addresses; the network's firewall
# decides which of them can connect. All files belong to the head's user, whatever the users of other nodes are called.
share_folder() {
    local options
    options="rw,sync,no_subtree_check,all_squash,anonuid=$(id -u),anongid=$(id -g)"
    as_root install -d -o "$(id -u)" -g "$(id -g)" "$folder.export"
    write_as_root /etc/nfs.conf.d/neural-sweeps.conf <<< "[nfsd]
host=$address
vers3=n"
    write_as_root /etc/exports.d/neural-sweeps.exports <<< \
        "$folder.export 10.0.0.0/8($options) 172.16.0.0/12($options) 192.168.0.0/16($options)"
    as_root systemctl mask --quiet rpcbind.socket rpcbind.service # only older versions of NFS need it
    as_root systemctl stop rpcbind.socket rpcbind.service 2> /dev/null || true
    install_package nfs-kernel-server
    # Only if needed: for 90 seconds after a restart no file can be locked.
    if $changed; then as_root systemctl restart nfs-server; fi
}

# Mounts the folder, and adds it to fstab for when the machine starts again. The head mounts its own folder as well: a
# lock that is taken without NFS is not seen through NFS. The folder below the mount belongs to root, so that nothing is
# written there by mistake while the shared folder is not mounted.
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
address=${RAY_HEAD_IP:-} # the launcher sets this variable on workers only
if [ -z "$address" ]; then
    head=true
    # The head's private address: on machines of one's own the launcher's file names it, in a cloud the default route.
    address=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["provider"].get("head_ip", ""))' \
        < ~/ray_bootstrap_config.yaml)
    [ -n "$address" ] || address=$(ip -4 route get 192.0.2.1 | sed -n 's/.* src \([^ ]*\).*/\1/p')
fi

if $head; then install_package postgresql; fi
if ! command -v c++ > /dev/null; then # optional: a compiler makes convolutions faster
    install_package g++ || echo "no C++ compiler on $(hostname): trials use PyTorch's slower convolutions" >&2
fi
if [[ $shared == nfs:* ]]; then
    if $head; then share_folder; fi
    mount_folder
fi
if [[ $folder != /* ]] || ! { mkdir -p "$folder" && [ -w "$folder" ]; }; then
    echo "$(hostname) cannot write to the shared folder $folder; mount it there, or name another folder" >&2
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

# The variables must be set in /etc/profile.d, as login shells reset PATH. Every process must ask for authentication.
# Metrics are switched off, as Ray would serve them on every address, to anybody. For two services of the head there is
# no switch but a port number that does not exist.
environment="export PATH=$venv/bin:\$PATH
export PYTHONPATH=$root
export SWEEPS_STORAGE=$folder/storage
export SWEEPS_DATA_ROOT=$folder/data
export MLFLOW_TRACKING_URI=http://$address:5000
export RAY_AUTH_MODE=token
export RAY_enable_metrics_collection=0
export RAY_USAGE_STATS_ENABLED=0"
if $head; then
    # Ray checks every node each second and waits 1.5 s for its answer; after three failed checks the node is dead. With
    # Ray's own settings that would take 60 s.
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

#!/usr/bin/env bash
# Starts the PostgreSQL database and the MLflow server that uses it, on the head. This may run again at any time: it
# leaves services that run alone, and restarts only a server that was started with other settings.
#
# Both need the environment variables that setup-node.sh sets. The database listens on this machine only, the server on
# the head's private address; an SSH tunnel reaches it from outside.
set -euo pipefail
: "${SWEEPS_ADDRESS:?run this in a login shell of the head}" "${SWEEPS_ARTIFACTS:?}"
port=5000
name=neural_sweeps # name of the database and of its user
state=~/.neural-sweeps
export PGPASSFILE=$state/pgpass
mkdir -p "$state"
chmod 700 "$state"

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
as_postgres() { (cd / && as_root runuser -u postgres -- "$@"); }

answers() {
    python -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)' \
        "http://$SWEEPS_ADDRESS:$port/health" 2> /dev/null
}

start_database() {
    local version cluster database_port status password
    read -r version cluster database_port status _ < <(pg_lsclusters --no-header)
    if [[ $status != online* ]]; then
        as_root pg_ctlcluster "$version" "$cluster" start
    fi
    if [ ! -f "$PGPASSFILE" ]; then
        password=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
        (umask 077 && echo "localhost:$database_port:$name:$name:$password" > "$PGPASSFILE.new")
        mv "$PGPASSFILE.new" "$PGPASSFILE"
    fi
    password=$(cut -d: -f5 "$PGPASSFILE")
    as_postgres psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --port "$database_port" << SQL
SELECT 'CREATE ROLE $name LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '$name') \gexec
ALTER ROLE $name PASSWORD '$password';
SELECT 'CREATE DATABASE $name OWNER $name' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '$name') \gexec
SQL
    # The server reads the password from the file PGPASSFILE, so that neither its environment nor its command line shows
    # it. The URI names the driver, as the meaning of postgresql:// without one changed with SQLAlchemy 2.1.
    export MLFLOW_BACKEND_STORE_URI=postgresql+psycopg2://$name@localhost:$database_port/$name
}

start_server() {
    export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
    # A request that writes holds two connections at once. With MLflow's default of 15 connections per worker, many
    # writers waited for each other until a timeout. Two workers with 40 each stay below the 100 that PostgreSQL allows.
    export MLFLOW_SQLALCHEMYSTORE_POOL_SIZE=20 MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW=20
    local command=(
        mlflow server --host "$SWEEPS_ADDRESS" --port "$port" --workers 2
        --artifacts-destination "$SWEEPS_ARTIFACTS"
        --allowed-hosts "$SWEEPS_ADDRESS:$port,localhost:*,127.0.0.1:*"
    )
    local settings="${command[*]} on $MLFLOW_BACKEND_STORE_URI"
    local lock=$state/mlflow.lock running=$state/mlflow.running
    # The process that runs the server holds the lock. While it is held, the process group named in the file is
    # therefore the server's, and not another one that was given the same number.
    if ! flock --nonblock "$lock" true; then
        if [ "$(sed 1d "$running")" = "$settings" ]; then
            return
        fi
        kill -- "-$(sed -n 1p "$running")"
        flock --timeout 30 "$lock" true
    fi
    # shellcheck disable=SC2016  # the inner shell expands the variables
    setsid --fork flock --nonblock "$lock" bash -c '
        settings=$1 running=$2; shift 2
        printf "%s\n%s\n" "$(ps -o pgid= -p $$ | tr -d " ")" "$settings" > "$running"
        while true; do "$@"; sleep 1; done' bash "$settings" "$running" "${command[@]}" \
        < /dev/null >> "$state/mlflow.log" 2>&1
}

start_database
start_server
for _ in $(seq 60); do
    if answers; then
        echo "MLflow: http://$SWEEPS_ADDRESS:$port"
        exit 0
    fi
    sleep 1
done
echo "the MLflow server does not answer at http://$SWEEPS_ADDRESS:$port; the end of its log:" >&2
tail -n 20 "$state/mlflow.log" >&2
exit 1

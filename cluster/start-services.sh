#!/usr/bin/env bash
# Starts PostgreSQL and the MLflow server on it, on the head. What runs as it should is left alone, so this may run
# again at any time; a server that was started with other settings is restarted.
#
# Both need what setup-node.sh has put into the environment. The database listens on this machine only, the server on
# the head's private address; it is reached from outside through an SSH tunnel.
set -euo pipefail
: "${SWEEPS_ADDRESS:?run this in a login shell of the head}" "${SWEEPS_ARTIFACTS:?}"
port=5000
name=neural_sweeps # of the database, and of its user
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
    # The server reads the password from PGPASSFILE: neither its environment nor its command line shows it. The driver is
    # named, as what a bare postgresql:// means changed with SQLAlchemy 2.1.
    export MLFLOW_BACKEND_STORE_URI=postgresql+psycopg2://$name@localhost:$database_port/$name
}

start_server() {
    export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
    # A request that writes holds two connections at once: with 15 a worker, MLflow's default, many writers waited for
    # each other until a timeout. Two workers with 40 stay below the 100 that PostgreSQL allows.
    export MLFLOW_SQLALCHEMYSTORE_POOL_SIZE=20 MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW=20
    local command=(
        mlflow server --host "$SWEEPS_ADDRESS" --port "$port" --workers 2
        --artifacts-destination "$SWEEPS_ARTIFACTS"
        --allowed-hosts "$SWEEPS_ADDRESS:$port,localhost:*,127.0.0.1:*"
    )
    local settings="${command[*]} on $MLFLOW_BACKEND_STORE_URI"
    local lock=$state/mlflow.lock running=$state/mlflow.running
    # Whoever runs the server holds the lock, so the process that the file names is the server's, and no other.
    if ! flock --nonblock "$lock" true; then
        if [ "$(sed 1d "$running")" = "$settings" ]; then
            return
        fi
        kill -- "-$(sed -n 1p "$running")"
        flock --timeout 30 "$lock" true
    fi
    # shellcheck disable=SC2016  # the inner shell expands it
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
echo "the MLflow server does not answer at http://$SWEEPS_ADDRESS:$port; it said:" >&2
tail -n 20 "$state/mlflow.log" >&2
exit 1

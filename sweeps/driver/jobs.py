"""A sweep as a job of a Ray cluster that is reached from outside; the job continues when this computer disconnects.

The job runs this checkout's code with the options of this command line. The cluster's environment gives the defaults of
all other options, such as the store and the folders.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Ray reads this when it is imported. Without it, Ray does not send the token of ~/.ray/auth_token.
os.environ.setdefault("RAY_AUTH_MODE", "token")

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from sweeps.driver.provenance import collect_provenance
from sweeps.experiment import JOB_ADDRESS_VARIABLE, SweepOptions
from trainables.commands import join_command, name_program
from trainables.errors import BadInputError, UserError

CODE_FOLDER = Path(__file__).resolve().parents[2]
PACKAGES = ("sweeps", "trainables")  # all that a job needs
POLL_SECONDS = 2.0
REQUEST_TIMEOUT_SECONDS = 30.0  # a tunnel may hang
RECONNECT_SECONDS = 60.0  # the time for a broken tunnel to come back
STOP_TIMEOUT_SECONDS = 180  # the time for a stopped sweep to save and to wait for its store; Ray's default is 3
SWEEP_STATUSES = (0, 1, 2, 130)  # the exit statuses of a sweep
# Errors of Ray's client. Those of the library `requests` are OSErrors; a server that is not Ray's may answer anything.
CLIENT_ERRORS = (AuthenticationError, OSError, RuntimeError, ValueError, KeyError, TypeError)


class Client(JobSubmissionClient):
    """Ray's client, which waits for an answer no longer than `REQUEST_TIMEOUT_SECONDS`.

    Ray has no public setting for this, so a private method is overridden: `_do_request`, seen in Ray 2.60.0.
    """

    def _do_request(self, *words: Any, **settings: Any) -> requests.Response:
        return super()._do_request(*words, timeout=REQUEST_TIMEOUT_SECONDS, **settings)


def run_as_job(options: SweepOptions, address: str, command: Sequence[str]) -> int:
    """Run a command line as a job of a cluster, or find it running there, and print its log until its end.

    Args:
        options: The options of the command line that select trials.
        address: The address of the cluster's dashboard.
        command: The script and its words.

    Returns:
        The sweep's exit status; 130 if the job or this command was stopped; 1 if the job's end is not known.

    Raises:
        BadInputError: The options are wrong, or the job could not be submitted.
    """
    options.first_stage().trials()  # checks the options before anything is sent
    again = join_command(name_program("python"), command)
    job = None
    try:
        with convert_submission_errors(address):
            client = connect(address)
            job = find_or_submit(client, options.experiment, select_forwarded_options(command[1:]), address)
        return follow(client, job)
    except KeyboardInterrupt:
        print(f"no longer following; {f'job {job}' if job else 'the job, if it started,'} continues", file=sys.stderr)
        print(f"to find it again:  {again}", file=sys.stderr)
        if job:
            stop = f"{name_program('ray')} job stop {job} --address {shlex.quote(address)}"
            print(f"to stop it:        RAY_AUTH_MODE=token {stop}", file=sys.stderr)
        return 130


def select_forwarded_options(words: Sequence[str]) -> list[str]:
    """Return the words of a command line without `--address`, sorted by option, so that equal ones compare equal."""
    options: list[list[str]] = []
    for word in words:
        if word.startswith("--"):
            options.append([word])
        else:
            options[-1].append(word)
    named = [(option[0].partition("=")[0], option) for option in options]
    named.sort(key=lambda pair: pair[0])
    return [word for name, option in named if name != "--address" for word in option]


def make_job_name(experiment: str, words: Sequence[str]) -> str:
    """Return the prefix of the ids of a command's jobs."""
    return f"{experiment}-{hashlib.sha256(shlex.join(words).encode()).hexdigest()[:8]}"


def connect(address: str) -> Client:
    """Return a client of the cluster whose dashboard is at `address`.

    Raises:
        BadInputError: The address is not a URL.
    """
    if not is_url(address):
        raise BadInputError(
            f"--address {address} is not that of a dashboard; give http://HOST:PORT, as in http://127.0.0.1:8265"
        )
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # Ray's client would prefer these to its argument
        os.environ.pop(name, None)
    logging.disable(logging.WARNING)  # Ray's client prints errors, which are reported in one sentence instead
    return Client(address)


def is_url(address: str) -> bool:
    """Return whether the address is `http://HOST` or `https://HOST`, with a port or without."""
    try:
        parts = urlsplit(address)
        return (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and parts.path in ("", "/")
        )
    except ValueError:
        return False


@contextmanager
def convert_submission_errors(address: str) -> Iterator[None]:
    """Raise `BadInputError`, with a sentence on what to do, in place of the errors of Ray's client."""
    try:
        yield
    except UserError:
        raise
    except AuthenticationError:
        raise BadInputError(
            f"the cluster at {address} wants another token than this computer has; copy ~/.ray/auth_token of the "
            "computer that started the cluster, and leave RAY_AUTH_MODE and RAY_AUTH_TOKEN unset"
        ) from None
    except CLIENT_ERRORS as error:
        raise BadInputError(
            f"no Ray cluster takes jobs at --address {address} ({get_last_line(error)}); is the tunnel open? "
            "docs/cluster.md has the command"
        ) from None


def get_last_line(error: Exception) -> str:
    """Return the last line of an error: the cluster may send a traceback, after which Ray's client puts a dot."""
    lines = [line for line in str(error).splitlines() if line.strip(" .")]
    return lines[-1].strip() if lines else type(error).__name__


def find_or_submit(client: Client, experiment: str, words: Sequence[str], address: str) -> str:
    """Return the id of the job that runs this command: one that has not ended, or else a new one."""
    name, commit = make_job_name(experiment, words), collect_provenance()["git_commit"]
    jobs = {number: job for job in client.list_jobs() if (number := parse_job_number(job.submission_id, name))}
    last = max(jobs, default=0)
    if last and not jobs[last].status.is_terminal():
        job = f"{name}-{last}"
        print(f"job {job} runs already: following it, from its start", flush=True)
        if (other := (jobs[last].metadata or {}).get("git_commit")) != commit:
            print(f"note: it runs the code of commit {other}; here is {commit}", flush=True)
    else:
        job = f"{name}-{last + 1}"
        submit(client, job, f"sweeps/{experiment}.py", words, address, commit)
        print(f"job {job} runs on the cluster, and continues without this computer", flush=True)
    return job


def parse_job_number(job: str | None, name: str) -> int:
    """Return the number at the end of a job's id, or 0 if the job has another name."""
    found = re.fullmatch(rf"{re.escape(name)}-([1-9]\d*)", job or "")
    return int(found[1]) if found else 0


def submit(client: Client, job: str, script: str, words: Sequence[str], address: str, commit: str) -> None:
    """Submit a job with this checkout's code, unless another computer has just done so: ids of jobs are unique."""
    variables = {
        "SWEEPS_COMMIT": commit,
        JOB_ADDRESS_VARIABLE: address,
        "RAY_JOB_STOP_SIGNAL": "SIGINT",  # with any other signal, Ray blocks SIGINT in the job
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_TIMEOUT_SECONDS),
    }
    with tempfile.TemporaryDirectory(prefix="neural-sweeps-") as folder:
        for package in PACKAGES:
            shutil.copytree(CODE_FOLDER / package, Path(folder) / package, ignore=shutil.ignore_patterns("__pycache__"))
        try:
            client.submit_job(
                # Ray removes its copy of the code, and with it all files that a job leaves there: so run elsewhere.
                entrypoint=f'cd && exec python "$OLDPWD/{script}" {shlex.join(words)}',
                submission_id=job,
                metadata={"git_commit": commit},
                runtime_env={"working_dir": folder, "env_vars": variables},
            )
        except RuntimeError as error:
            if "already exists" not in str(error):
                raise


def follow(client: Client, job: str) -> int:
    """Print a job's log until the job ends or the cluster stops answering, and return the exit status."""
    printed = 0
    answered = time.monotonic()
    while True:
        try:
            details = client.get_job_info(job)
            log = client.get_job_logs(job)
        except CLIENT_ERRORS as error:
            if time.monotonic() > answered + RECONNECT_SECONDS:
                print(f"the cluster says no more of job {job} ({get_last_line(error)})", file=sys.stderr)
                print("the job may still be running; the same command finds it again", file=sys.stderr)
                return 1
        else:
            answered = time.monotonic()
            print(log[printed:], end="", flush=True)
            printed = len(log)
            if details.status.is_terminal():
                return get_exit_status(details)
        time.sleep(POLL_SECONDS)


def get_exit_status(details: JobDetails) -> int:
    """Return the exit status of a job that has ended."""
    if details.status == JobStatus.STOPPED:
        print("the job was stopped", file=sys.stderr)
        return 130
    if details.driver_exit_code in SWEEP_STATUSES:
        return int(details.driver_exit_code)
    print(f"the job failed: {details.message}", file=sys.stderr)
    return 1

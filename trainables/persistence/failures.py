"""Failures of the tracking store: the reason on one line, and what to do about it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from trainables.commands import PASSWORD, explain_uri, hide_password, name_program, name_uri
from trainables.errors import TrackingError, UserError
from trainables.persistence.connection import get_mlflow_uri

MAX_REASON_CHARACTERS = 1000  # of a page that a server sends; whole sentences are much shorter
SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
PACKAGES = {  # of modules that have another name
    "psycopg2": "psycopg2-binary",
    "psycopg": "'psycopg[binary]'",
    "MySQLdb": "mysqlclient",
    "google": "google-cloud-storage",
    "google.cloud": "google-cloud-storage",
    "azure": "azure-storage-blob",
    "azure.storage": "azure-storage-blob",
}
NEWER = "it was made by a newer MLflow: install that version here"
HALF_MADE = (
    "a process that was killed has left its tables half made: put back a copy of the database, or move it to another "
    "folder if it is new"
)
# Patterns of an error's text, and what to do. The first that is found counts.
ADVICE: tuple[tuple[str, str], ...] = (
    ("Invalid Host header", "start the server with --allowed-hosts {host}, or use a name of it that it allows"),
    ("CERTIFICATE_VERIFY_FAILED", "name the server's certificate with MLFLOW_TRACKING_SERVER_CERT_PATH"),
    ("WRONG_VERSION_NUMBER", "use http:// in the place of https://"),
    (
        "UNAUTHENTICATED|error code 40[137]|PERMISSION_DENIED",
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to what it accepts",
    ),
    (
        "password authentication failed|no password supplied|Access denied for user|Login failed for user|"
        'role ".*" does not exist|no pg_hba.conf entry',
        "correct the user and the password in the tracking URI",
    ),
    ('database ".*" does not exist|Unknown database', "make that database, or correct its name in the tracking URI"),
    ("locate revision|No such revision", NEWER),
    (r"(table|index) \S+ already exists|duplicate column|found version None", HALF_MADE),
    ("database is locked", "wait for the program that holds it, or end that"),
    (
        "readonly database|Permission denied|Read-only file system",
        "give this user the right to read and write the file and its folder",
    ),
    ("unable to open database", "name a file in a folder, and give this user the right to read and write both"),
    ("File exists|Not a directory|Is a directory|File name too long", "name a file in a folder"),
    ("disk is full|No space left|Disk quota", "make room on its disk"),
    (
        "not a database|malformed|disk I/O error|no such (table|column)",
        "it is no database of MLflow, or damaged: put back a copy of it",
    ),
    ("Can't load plugin", "use a driver that SQLAlchemy has in the tracking URI"),
    (
        "Failed to resolve|Name or service not known|translate host name|nodename nor servname",
        "correct the host in the tracking URI",
    ),
    (
        "ENDPOINT_NOT_FOUND|error code 404|valid JSON|redirects",
        "what answers there is no MLflow server: correct host, port and path in the tracking URI",
    ),
    ("[Ii]nvalid url|invalid literal for int|Failed to parse|parse SQLAlchemy URL", "correct the tracking URI"),
    ("error responses|error code 5|INTERNAL_ERROR: ", "look into the server's log for the cause"),
    ("credentials", "set those that this place needs"),
    (
        "refused|timed out|timeout expired|reset by peer|unreachable|No route|Connection aborted|closed the connection|"
        "without response",
        "start it, or wait until it answers",
    ),
)


@contextmanager
def convert_store_errors(uri: str) -> Iterator[None]:
    """Raise `TrackingError` in place of whatever SQLAlchemy, requests and MLflow raise in the block."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise TrackingError(
            f"the tracking store {hide_password(uri)} cannot be used ({give_reason(error, uri)}); "
            f"{give_advice(error, uri)}, or name another with --tracking-uri"
        ) from None


class StoreClient(Protocol):
    """An object whose methods talk to the store at `uri`."""

    uri: str


C = TypeVar("C", bound=StoreClient)
P = ParamSpec("P")
R = TypeVar("R")


def raises_tracking_errors(method: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], R]:
    """Decorate a method to raise `TrackingError` for whatever goes wrong between here and the store."""

    @wraps(method)
    def call(client: C, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with convert_store_errors(client.uri):
            return method(client, *args, **kwargs)

    return call


def list_secrets(uri: str) -> Iterator[str]:
    """Yield what must not be shown: the passwords in a URI and in the environment, as they stand and decoded."""
    for secret in [match[2] for match in PASSWORD.finditer(uri)] + [os.environ.get(n, "") for n in SECRET_VARIABLES]:
        yield from sorted({secret, unquote(secret)} - {""}, key=len, reverse=True)


def give_reason(error: BaseException, uri: str) -> str:
    """Return the whole reason that an error gives, on one line, without the store's password and SQL statements."""
    text = re.split(r"\[SQL: |\(Background on this error| Take a backup of your database", str(error))[0]
    text = " ".join(re.sub(r"\(raised as a result of Query-invoked autoflush.*?\)", "", text, flags=re.S).split())
    if nested := re.search(r"\(Caused by (.*)\)$", text):  # by `requests`, after much that says nothing
        text = nested[1]
    for secret in list_secrets(uri):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "…", text)
    text = re.sub(r"(?<=://)([^/?#:@\s]*):[^/@\s]*@", r"\1:…@", text)
    cut = len(text) > MAX_REASON_CHARACTERS
    return (text[:MAX_REASON_CHARACTERS].rpartition(" ")[0] + " …") if cut else (text or type(error).__name__)


def give_advice(error: BaseException, uri: str) -> str:
    """Return what to do about an error of the store at `uri`."""
    code = getattr(error, "error_code", "")  # MLflow's, which its text may lack
    text = f"{code if code != 'INTERNAL_ERROR' else ''} {error}"
    if isinstance(error, ImportError):  # also of a namespace such as google.cloud, which other packages share
        package = PACKAGES.get(error.name or "", error.name)
        return f"install the package that it needs with: {name_program('python')} -m pip install {package}"
    found = re.search(r"out-of-date database schema \(found version (\w+)", text)
    if found and found[1] != "None":
        return advise_on_schema(found[1], uri)
    advice = next((advice for pattern, advice in ADVICE if re.search(pattern, text)), "see to that")
    server = urlsplit(uri)
    if variable := find_proxy_variable(uri):
        advice = (
            f"the request went through the proxy that {variable} names: add {server.hostname} to NO_PROXY if it should "
            f"not, or {advice}"
        )
    return advice.format(host=server.netloc.rpartition("@")[2])


def advise_on_schema(revision: str, uri: str) -> str:
    """Return what to do about a database whose schema is another than that of the MLflow here."""
    package = find_spec("mlflow")
    folders = package.submodule_search_locations if package else None
    known = Path(folders[0], "store", "db_migrations", "versions").glob(f"{revision}_*.py") if folders else iter(())
    if not any(known):
        return NEWER
    command = f"{name_program('mlflow')} db upgrade {name_uri(get_mlflow_uri(uri))}"
    return f"it was made by an older MLflow: make a copy of it, then run: {command}{explain_uri(uri)}"


def find_proxy_variable(uri: str) -> str | None:
    """Return the environment variable that sends requests for a server through a proxy, if there is one."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname or proxy_bypass(parts.hostname):
        return None
    names = [name for kind in (parts.scheme, "all") for name in (f"{kind}_proxy", f"{kind}_proxy".upper())]
    return next((name for name in names if os.environ.get(name) and getproxies()), None)

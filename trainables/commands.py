"""Commands as messages show them: they work when they are pasted in the folder where the message appeared.

The URI of a store may hold a password, which no message shows.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

URI_VARIABLE = "MLFLOW_TRACKING_URI"
PASSWORD = re.compile(r"(?s)(?<=://)([^/?#:@]*):(.*)@")
SECRET_OPTIONS = re.compile(r"(?i)(?<=[?&])(password|passwd|pwd|sslpassword|token|secret|odbc_connect)=[^&\s]*")


def name_program(name: str) -> str:
    """Return the word that calls a program of the running Python environment, `python` or one installed with it.

    It is the program's name if the shell finds this one under it, and its path otherwise.
    """
    beside = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if found and beside.exists() and Path(found).parent.samefile(beside.parent):
        return name
    if name == "python":
        return shlex.quote(sys.executable or name)
    return shlex.quote(str(beside)) if beside.exists() else name


def name_script(path: Path) -> str:
    """Return the word that names a script: relative to the current folder if the script is below it."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def hide_password(uri: str) -> str:
    """Return the URI of a store without its password."""
    return SECRET_OPTIONS.sub(r"\1=…", PASSWORD.sub(r"\1:…@", uri))


def name_uri(uri: str) -> str:
    """Return the word that names a store: its URI, or the variable that is to hold it if it has a password."""
    return shlex.quote(uri) if hide_password(uri) == uri else f'"${URI_VARIABLE}"'


def explain_uri(uri: str) -> str:
    """Return what to add after a command with `name_uri`: nothing, unless the variable must be set first."""
    if hide_password(uri) == uri or os.environ.get(URI_VARIABLE) == uri:
        return ""
    return f" (set {URI_VARIABLE} to the store's URI first; it has a password, so it is not printed here)"


def name_mlflow(uri: str) -> str:
    """Return the words that call MLflow's command with a store, whose URI is as MLflow takes it."""
    return f"{URI_VARIABLE}={name_uri(uri)} {name_program('mlflow')}"

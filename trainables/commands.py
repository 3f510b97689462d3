"""Commands as messages show them: they work when they are pasted in the folder where the message appeared.

The URI of a store may hold a password, which no message shows.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Sequence
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
    """Return how to name a script: relative to the current folder if the script is below it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def hide_password(uri: str) -> str:
    """Return the URI of a store without its password."""
    return SECRET_OPTIONS.sub(r"\1=…", PASSWORD.sub(r"\1:…@", uri))


def name_uri(uri: str) -> str:
    """Return the word that names a store: its URI, or the variable that is to hold it if it has a password."""
    return shlex.quote(uri) if hide_password(uri) == uri else f'"${URI_VARIABLE}"'


def explain_uri(uri: str) -> str:
    """Return what to add after a command with `name_uri`: the condition under which it works, if there is one."""
    if hide_password(uri) == uri:
        return ""
    return f" (with {URI_VARIABLE} set to the store's URI, whose password is not printed)"


def name_mlflow(uri: str) -> str:
    """Return the words that call MLflow's command with a store, whose URI is as MLflow takes it."""
    return f"{URI_VARIABLE}={name_uri(uri)} {name_program('mlflow')}"


def join_command(program: str, words: Sequence[str]) -> str:
    """Return a command line of a program, as `name_program` names it, and words; a URI with a password is not shown."""
    shown = []
    for word in words:
        option, equals, uri = word.partition("=") if word.startswith("--") else ("", "", word)
        shown.append(shlex.quote(word) if hide_password(uri) == uri else f"{option}{equals}{name_uri(uri)}")
    explained = next((note for word in words if (note := explain_uri(word))), "")
    return " ".join([program, *shown]) + explained

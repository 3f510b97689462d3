"""The artifacts of runs: the folders where they lie, and reading and writing them.

MLflow stores an absolute path with every run. With a sqlite database that path only says where the files were at first,
as they lie beside the database and go wherever it goes:

    <folder of the database>/mlartifacts/<experiment>/<run id>/artifacts/

So files of this layout are written and looked for beside the database, and a copied project never touches the original.
MLflow's path is used for experiments that were made in another way, for servers and other databases, and for a run that
has no folder beside the database.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from mlflow.entities import Run
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from trainables.errors import BadInputError, TrackingError
from trainables.persistence.connection import get_mlflow_uri, get_sqlite_file
from trainables.persistence.failures import give_advice, give_reason

FOLDER = "mlartifacts"
PROBE = "sweep.txt"  # the file that `check_writing` writes


def choose_location(uri: str, experiment: str) -> str | None:
    """Return the artifact location of a new experiment as a URI, and None where a server chooses it.

    It is a `file:` URI, as MLflow takes percent signs in a plain path for encoded characters of another path.
    """
    if uri.startswith("http"):
        return None
    database = get_sqlite_file(uri)
    folder = Path.cwd() if database is None else database.resolve().parent
    return (folder / FOLDER / experiment).as_uri()


def copy_atomically(source: str, target: str) -> str:
    """Copy a file so that a process which ends halfway leaves no part of it under its name, and return the name."""
    partial = f"{target}.partial"
    shutil.copyfile(source, partial)
    os.replace(partial, target)  # noqa: PTH105 (both are strings, as `copytree` gives them)
    return target


@dataclass(frozen=True)
class RunArtifacts:
    """The artifacts of one run.

    Attributes:
        uri: The URI of the store.
        run_id: The run's id.
        stored_uri: The place of its artifacts that MLflow stores.
    """

    uri: str
    run_id: str
    stored_uri: str

    @classmethod
    def of(cls, uri: str, run: Run) -> RunArtifacts:
        """Return the artifacts of a run of the store at `uri`."""
        return cls(uri, run.info.run_id, run.info.artifact_uri)

    @property
    def own_folders(self) -> list[Path]:
        """The folders beside a sqlite database that may hold the artifacts, the one to write to first.

        There are two for a database that is reached through a symbolic link, and none where MLflow's path decides.
        """
        database = get_sqlite_file(self.uri)
        path = urlsplit(self.stored_uri).path if self.stored_uri.startswith("file:") else self.stored_uri
        layout = PurePosixPath(path).parts[-4:]
        if database is None or layout[0::2] != (FOLDER, self.run_id) or layout[3:] != ("artifacts",):
            return []
        if layout[1] == ".." or layout[1].isdigit():  # a server's own layout has the experiment's number there
            return []
        return [folder.joinpath(*layout) for folder in dict.fromkeys((database.resolve().parent, database.parent))]

    def write(self, source: Path) -> None:
        """Write the files of the folder `source`."""
        if folders := self.own_folders:
            shutil.copytree(source, folders[0], copy_function=copy_atomically, dirs_exist_ok=True)
        else:
            self._repository().log_artifacts(str(source))

    def list_files(self, folder: str) -> set[str]:
        """Return the names of the files in one of the run's folders, each with the folder's name before it."""
        if own := next((path for path in self.own_folders if path.is_dir()), None):
            return {str(path.relative_to(own)) for path in (own / folder).glob("*")}
        return {file.path for file in self._repository().list_artifacts(folder)}

    def read_file(self, name: str) -> str:
        """Return the text of a file that `list_files` has named."""
        if own := next((path for path in self.own_folders if path.is_dir()), None):
            return (own / name).read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as temporary:
            return Path(self._repository().download_artifacts(name, temporary)).read_text(encoding="utf-8")

    def check_writing(self, sweep: str) -> None:
        """Write a small file, so that a place that cannot be written shows before anything trains.

        Raises:
            BadInputError: The place cannot be written from here, or the server does not find the file there.
        """
        place = next(iter(self.own_folders), self.stored_uri)
        with tempfile.TemporaryDirectory() as folder:
            text = f"The trials of {sweep} are the runs below this one.\n"
            (Path(folder) / PROBE).write_text(text, encoding="utf-8")
            try:
                self.write(Path(folder))
                seen = PROBE in self._list_on_server() if self._is_path_of_server() else True
            except Exception as error:
                raise BadInputError(
                    f"the artifacts of {sweep} cannot be written to {place} from here {self._explain(error)}, or use "
                    "another store"
                ) from None
        if not seen:
            raise BadInputError(
                f"the artifacts of {sweep} would go to {place} on this machine, where the server does not find them; "
                "mount that folder of the server's here, or use another store"
            )

    def _is_path_of_server(self) -> bool:
        """Return whether a server tells its clients to write to a folder of their own machine."""
        return self.uri.startswith("http") and urlsplit(self.stored_uri).scheme in ("", "file")

    def _list_on_server(self) -> list[str]:
        """Return the names of the run's files as the server sees them; MLflow's client would look for them here."""
        credentials = get_default_host_creds(self.uri)  # type: ignore[no-untyped-call]
        answer = http_request(  # type: ignore[no-untyped-call]
            credentials, "/api/2.0/mlflow/artifacts/list", "GET", params={"run_id": self.run_id}
        )
        return [file["path"] for file in answer.json().get("files", [])]

    @contextmanager
    def open(self, name: str, label: str) -> Iterator[Path]:
        """Find or download a file, and keep it for as long as the context lasts.

        Args:
            name: The file's name.
            label: The readable name of the run.

        Raises:
            BadInputError: The file is missing, cannot be read or is damaged. Any error of the block is taken to mean
                the last, unless it is the operating system's.
            TrackingError: It could not be downloaded.
        """
        what = f"the artifact {name} of '{label}' (run {self.run_id})"
        with ExitStack() as stack:
            path = self._find(name, what, stack)
            try:
                yield path
            except MemoryError:
                raise
            except Exception as error:  # NumPy, zlib and torch each raise exceptions of their own
                if isinstance(error, OSError) and error.errno and not path.is_dir():
                    raise BadInputError(
                        f"{what} cannot be read ({os.strerror(error.errno)}: {path}); restore access to it"
                    ) from None
                raise BadInputError(
                    f"{what} is damaged ({error}); put back a good copy of it, or delete that run in the MLflow UI and "
                    "run the sweep again"
                ) from None

    def _find(self, name: str, what: str, stack: ExitStack) -> Path:
        """Return the path of a file, which is downloaded, until the stack ends, if it is not beside the database."""
        folders = self.own_folders
        if folder := next((folder for folder in folders if folder.is_dir()), None):
            if not (folder / name).exists():
                raise BadInputError(f"{what} is missing: it is not in {folder}; put it back there")
            return folder / name
        try:
            repository = self._repository()
            temporary = stack.enter_context(tempfile.TemporaryDirectory())
            try:
                return Path(repository.download_artifacts(name, temporary))
            except Exception:  # MLflow does not say whether the file is missing or its place cannot be reached
                if name in (file.path for file in repository.list_artifacts()):
                    raise
        except Exception as error:
            raise TrackingError(f"{what} cannot be fetched from {self.stored_uri} {self._explain(error)}") from None
        places = " or ".join(str(place) for place in dict.fromkeys([*folders, self.stored_uri]))
        beside = f"; put the folder {FOLDER} of its project back beside the database" if folders else ""
        raise BadInputError(f"{what} is missing: it is not in {places}{beside}")

    def _explain(self, error: Exception) -> str:
        """Return the reason of an error of the place that MLflow stores, and what to do about it."""
        if self.stored_uri.startswith("mlflow-artifacts:") and not self.uri.startswith("http"):
            return "(only an MLflow server has access to it); name that server with --tracking-uri http://HOST:PORT"
        return f"({give_reason(error, self.uri)}); {give_advice(error, self.uri)}"

    def _repository(self) -> Any:  # MLflow's classes for this are not typed
        """Return MLflow's access to the place that it stores."""
        return get_artifact_repository(self.stored_uri, tracking_uri=get_mlflow_uri(self.uri))

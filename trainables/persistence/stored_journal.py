"""The journal of a search as the tracking store keeps it: artifacts of its parent run, each written once."""

from __future__ import annotations

import tempfile
from pathlib import Path, PurePosixPath

from trainables.persistence.artifacts import RunArtifacts
from trainables.persistence.connection import retry_for
from trainables.persistence.failures import raises_tracking_errors
from trainables.persistence.parent_run import find_parent_run, make_label
from trainables.persistence.store import Store


class StoredJournal:
    """Text files below the parent run of a sweep on a data set.

    Its methods raise `TrackingError` where the store cannot be used, even after waiting.

    Attributes:
        patience_seconds: The time to wait for a store that is away.
    """

    def __init__(self, store: Store, sweep: str, dataset: str, *, writing: bool) -> None:
        """Prepare a journal.

        Args:
            store: The store.
            sweep: Name of the sweep.
            dataset: Name of the data set.
            writing: False to keep no new files, as for a command that only looks.
        """
        self.store = store
        self.uri = store.uri
        self.sweep = sweep
        self.dataset = dataset
        self.writing = writing
        self.patience_seconds = 0.0
        self.artifacts: RunArtifacts | None = None
        self.files: set[str] = set()  # those that are known to be there

    def read(self, name: str) -> str | None:
        """Return a file's text, or None if there is no such file."""
        return retry_for(lambda: self._read(name), self.patience_seconds)

    def add(self, name: str, text: str) -> None:
        """Keep a new file."""
        if self.writing:
            retry_for(lambda: self._add(name, text), self.patience_seconds)

    @raises_tracking_errors
    def _read(self, name: str) -> str | None:
        """Do the work of `read`, once."""
        self.artifacts = self.artifacts or self._find_artifacts()
        if self.artifacts is None:
            return None
        if name not in self.files:
            self.files = self.artifacts.list_files(str(PurePosixPath(name).parent))
        return self.artifacts.read_file(name) if name in self.files else None

    def _find_artifacts(self) -> RunArtifacts | None:
        """Return the artifacts of the parent run, or None if there is no such run yet."""
        experiment = self.store.client.get_experiment_by_name(self.sweep)
        if experiment is None:
            return None
        label = make_label(self.sweep, self.dataset)
        run = find_parent_run(self.store.client, experiment.experiment_id, label)
        return None if run is None else RunArtifacts.of(self.uri, run)

    def _add(self, name: str, text: str) -> None:
        """Do the work of `add`, once."""
        self.store.ensure_parent(self.sweep, self.dataset)
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / name
            path.parent.mkdir(parents=True)
            path.write_text(text, encoding="utf-8")
            self.store.add_to_parent(self.sweep, self.dataset, Path(temporary))

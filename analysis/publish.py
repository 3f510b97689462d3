"""Putting figures and reports on the parent run of their sweep in MLflow, and finding its page there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sweeps.mlflow_ui import LINK_TAG, make_runs_path
from trainables.errors import UserError
from trainables.persistence.store import Store

FOLDER = "report"  # in the artifacts of the parent run


def add_to_parent_run(store: Store, sweep: str, dataset: str, files: Sequence[Path]) -> str:
    """Put copies of files into the folder `report` of the sweep's parent run.

    Args:
        store: Store of the sweep.
        sweep: Name of the sweep.
        dataset: Name of its data set.
        files: Files with different names.

    Returns:
        A sentence that says why it could not be done, or "".
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / FOLDER
        folder.mkdir()
        for file in files:
            shutil.copyfile(file, folder / file.name)
        try:
            store.add_to_parent(sweep, dataset, Path(temporary))
        except UserError as error:
            return f"The files are not in MLflow, where they would be on the parent run of {sweep}: {error}"
    return ""


def find_page(store: Store, sweep: str, dataset: str) -> str:
    """Return the part of an address, after the server's, that shows a sweep in MLflow's UI."""
    parents = [parent for parent in store.find_parents() if (parent.sweep, parent.dataset) == (sweep, dataset)]
    return next((parent.tags.get(LINK_TAG) or make_runs_path(parent.experiment_id) for parent in parents), "")

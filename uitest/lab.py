"""The tools of the test of the UI: a browser that shows pages, and a store with sweeps and its server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.suite import check
from reporttest.suite import TOOLS, find_browser
from sweeps import mlflow_ui
from trainables.persistence.parent_run import ParentRun
from trainables.persistence.store import Store

ROOT = Path(__file__).resolve().parent.parent
PAGE_SECONDS = 60.0  # in which a page must show what it should, on a busy machine
SCRIPT_SECONDS = 300.0
STOP_SECONDS = 60.0  # in which a script must end after SIGTERM
Seen = dict[str, Any]
"""The content of a page, as `look` in check.mjs returns it."""


class Browser:
    """A browser that shows one page after the other, and keeps a picture of each in the folder `out`."""

    def __init__(self, out: Path) -> None:
        self.out = out
        shutil.copyfile(ROOT / "uitest" / "check.mjs", TOOLS / "show.mjs")  # beside the packages that it imports
        words = ["node", str(TOOLS / "show.mjs"), find_browser() or ""]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **request: Any) -> Seen:
        """Do what a request asks for, and return what the page shows then."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the browser has no pipes")
        print(json.dumps(request), file=self.process.stdin, flush=True)
        seen: Seen = json.loads(self.process.stdout.readline() or '{"error": "the browser has ended"}')
        check("error" not in seen, f"the browser failed: {seen.get('error')}")
        check(not seen["errors"], f"MLflow's UI raised {seen['errors']}")
        return seen

    def open(self, name: str, address: str, ready: Callable[[Seen], bool], *, unfold: bool = False) -> Seen:
        """Open an address, wait until the page shows what it should, take a picture, and return what it shows.

        Args:
            name: The picture's name.
            address: The address.
            ready: Returns whether the page shows what it should.
            unfold: Whether to unfold the description then.
        """
        picture = str(self.out / f"{name}.png")
        seen = self.ask(open=address)
        deadline = time.monotonic() + PAGE_SECONDS
        while not ready(seen):
            if time.monotonic() > deadline:
                self.ask(picture=picture)
                raise RuntimeError(f"{address} does not show what it should, see {picture}: {describe(seen)}")
            time.sleep(0.5)
            seen = self.ask()
        return self.ask(unfold=unfold, picture=picture)

    def close(self) -> None:
        """End the browser."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait(30)


def describe(seen: Seen) -> str:
    """Return what a page shows in a few lines, for messages."""
    charts = "; ".join(f"{c['title']}: {len(c['lines'])} lines, {c['bars']} bars" for c in seen["charts"])
    return f"charts: {charts or 'none'}; text: {' | '.join(seen['text'].split(chr(10)))[:1500]}"


def make_environment(folder: Path, uri: str) -> dict[str, str]:
    """Return the environment of scripts: no settings of Ray and MLflow but the store, all files in `folder`."""
    unwanted = ("RAY_", "MLFLOW_", "SWEEPS_", "CHAOS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return kept | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": uri, "SWEEPS_STORAGE": str(folder / "storage")}


@dataclass(frozen=True)
class Lab:
    """A store with sweeps, and its UI.

    Attributes:
        folder: Folder of all files.
        uri: The store.
    """

    folder: Path
    uri: str

    @contextmanager
    def start(self, command: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
        """Start a script of the repository, and end it with the context if it has not ended then."""
        name, *words = command.split()
        process = subprocess.Popen(
            [sys.executable, str(ROOT / name), *words],
            cwd=self.folder,
            env=make_environment(self.folder, self.uri) | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.communicate(timeout=STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()

    def run(self, command: str) -> str:
        """Run a script of the repository, and return what it prints."""
        with self.start(command) as process:
            return finish(process, command)

    def find_parent(self, sweep: str, dataset: str) -> ParentRun:
        """Return the parent run of a sweep on a data set."""
        parents = [p for p in Store(self.uri).find_parents() if (p.sweep, p.dataset) == (sweep, dataset)]
        check(len(parents) == 1, f"there are {len(parents)} parent runs of {sweep} on {dataset}")
        check(mlflow_ui.LINK_TAG in parents[0].tags, f"the parent run of {sweep} on {dataset} has no link")
        return parents[0]

    @contextmanager
    def show(self) -> Iterator[str]:
        """Run `analysis/ui.py`, yield the first address that it prints, and end it with SIGTERM."""
        with self.start("analysis/ui.py --no-browser") as process:
            shown: list[str] = []
            while not shown or (shown[-1] and not shown[-1].startswith("Ctrl-C")):
                shown.append(process.stdout.readline() if process.stdout else "")
            check(shown[-1], f"analysis/ui.py has ended: {shown}")
            yield shown[2].strip()  # after a line on the server's start, and one on the sweep
            process.terminate()
            finish(process, "analysis/ui.py")


def finish(process: subprocess.Popen[str], command: str) -> str:
    """Wait until a script ends, check its exit status, and return what it printed."""
    try:
        output, _ = process.communicate(timeout=SCRIPT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    check(process.returncode == 0, f"{command} has exit status {process.returncode}: {output[-2000:]}")
    return output

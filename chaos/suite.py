"""Injects one fault each into real sweeps on small data, and runs the same command again: is a point lost or doubled?

Every fault has a laboratory with its own store, storage and Ray. The results must equal those of an undisturbed sweep
bit for bit.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from chaos import faults
from chaos.lab import SWEEP, Command, Lab, NotSurvivedError, Reference, run_undisturbed
from chaos.search_faults import SEARCH, SEARCH_FAULTS

SOAK = SWEEP._replace(options=f"{SWEEP.options} --seeds 3")
STACK = SWEEP._replace(options=f"{SWEEP.options} --seeds 3 --architectures mlp_1 --max-concurrent 1")
console = Console(width=150)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Faults to inject."""

    quick: bool = False
    """Inject only the faults that CI injects."""
    only: str = ""
    """Inject only the faults whose names contain this text."""
    at_once: int = 3
    """Number of laboratories that run at the same time."""


@dataclass(frozen=True)
class Verdict:
    """Outcome of a fault.

    Attributes:
        name: The fault's name.
        seconds: Duration, without that of the undisturbed sweep.
        injected: Whether the fault has happened.
        failure: Reason why the fault was not survived; None if it was.
        lost: Number of points that the undisturbed sweep has and this one does not; None if they were not compared.
        doubled: Number of points that are in the store twice or with another value; None if they were not compared.
    """

    name: str
    seconds: float
    injected: bool
    failure: str | None
    lost: int | None
    doubled: int | None

    @property
    def passed(self) -> bool:
        """Success: the fault was injected and survived, and no point was lost or doubled."""
        return self.injected and self.failure is None and self.lost == 0 and self.doubled == 0


def inject(fault: faults.Fault, reference: Reference, folder: Path, command: Command) -> Verdict:
    """Inject one fault in a laboratory of its own."""
    started = time.monotonic()
    lab = Lab(folder, reference, command)
    failure, lost, doubled = None, None, None
    try:
        fault.inject(lab)
        lost, doubled = lab.compare_with_reference()
    except NotSurvivedError as error:
        failure = str(error)
    except Exception:  # An error of the suite itself counts as a failure too.
        failure = traceback.format_exc()
    finally:
        lab.close()
    verdict = Verdict(fault.name, time.monotonic() - started, lab.injected, failure, lost, doubled)
    word = "survived" if verdict.passed else "FAILED"
    reason = f": {verdict.failure}" if verdict.failure else ""
    console.print(f"{word}: {verdict.name} ({verdict.seconds:.0f} s){reason}", markup=False, highlight=False)
    return verdict


def make_table(verdicts: Sequence[Verdict]) -> Table:
    """Return the table of results, with one row for each fault."""
    table = Table()
    for heading in ("fault", "injected", "survived", "points lost", "points doubled"):
        table.add_column(heading, no_wrap=True)
    for verdict in verdicts:
        counts = ("–" if count is None else str(count) for count in (verdict.lost, verdict.doubled))
        answers = ("yes" if answer else "NO" for answer in (verdict.injected, verdict.failure is None))
        table.add_row(verdict.name, *answers, *counts)
    return table


def main(options: Options) -> int:
    """Inject the chosen faults and print the table; return 0 if all were survived, otherwise 1."""
    os.environ.pop("RAY_TMPDIR", None)  # Sweeps keep Ray's files at the default place, where leftovers are looked for.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # Started by nohup, the sweeps would inherit that SIGHUP is ignored.
    started = time.monotonic()
    chosen: list[tuple[faults.Fault, Command]] = [
        *((fault, SWEEP) for fault in (faults.QUICK_FAULTS if options.quick else faults.ALL_FAULTS)),
        *((fault, STACK) for fault in (faults.QUICK_STACK_FAULTS if options.quick else faults.STACK_FAULTS)),
        *((fault, SEARCH) for fault in (() if options.quick else SEARCH_FAULTS)),
        *(() if options.quick else ((faults.soak, SOAK),)),
    ]
    chosen = [(fault, command) for fault, command in chosen if options.only in fault.name]
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        commands = dict.fromkeys(command for _, command in chosen)
        references = {command: run_undisturbed(folder / f"calm_{i}", command) for i, command in enumerate(commands)}
        with ThreadPoolExecutor(options.at_once) as pool:
            jobs = [
                pool.submit(inject, fault, references[command], folder / f"lab_{number}", command)
                for number, (fault, command) in enumerate(sorted(chosen, key=lambda c: c[0] is not faults.soak))
            ]
            verdicts = [job.result() for job in jobs]
    console.print(make_table(verdicts))
    passed = sum(verdict.passed for verdict in verdicts)
    console.print(f"{passed} of {len(verdicts)} faults survived in {(time.monotonic() - started) / 60:.1f} minutes.")
    return 0 if passed == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))

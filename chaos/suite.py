"""Real sweeps on small data, one fault each, then the same command again; was anything lost or doubled?

Every laboratory has its own store, storage and Ray. The results must equal those of an undisturbed sweep bit for bit.
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
from chaos.lab import Failure, Lab, Reference, undisturbed

SOAK_WORDS = ("--seeds", "3")
STACK_WORDS = ("--seeds", "3", "--architectures", "mlp_1", "--max-concurrent", "1")
console = Console(width=150)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to inject."""

    quick: bool = False
    """The subset that runs in CI."""
    only: str = ""
    """The faults whose names contain this."""
    at_once: int = 3
    """Laboratories side by side."""


@dataclass(frozen=True)
class Verdict:
    """What came of a fault.

    Attributes:
        failure: Why it was not survived.
        lost: Points that the undisturbed sweep has, and this one has not.
        doubled: Points that are there more often than once, or with another value.
    """

    name: str
    seconds: float
    injected: bool
    failure: str | None
    lost: int | None
    doubled: int | None

    @property
    def passed(self) -> bool:
        """Whether nothing was lost, doubled or otherwise amiss."""
        return self.injected and self.failure is None and self.lost == 0 and self.doubled == 0


def inject(fault: faults.Fault, reference: Reference, folder: Path, words: Sequence[str]) -> Verdict:
    """Run one fault in a laboratory of its own."""
    name = faults.name(fault)
    started = time.monotonic()
    lab = Lab(folder, reference, words)
    failure, lost, doubled = None, None, None
    try:
        fault(lab)
        lost, doubled = lab.verdict()
    except Failure as error:
        failure = str(error)
    except Exception:  # a fault of the suite itself fails as well
        failure = traceback.format_exc()
    finally:
        lab.close()
    verdict = Verdict(name, time.monotonic() - started, lab.injected, failure, lost, doubled)
    console.print(f"{'survived' if verdict.passed else 'FAILED'}: {name} ({verdict.seconds:.0f} s)", highlight=False)
    return verdict


def table(verdicts: Sequence[Verdict]) -> Table:
    """One line a fault."""
    found = Table()
    for heading in ("fault", "injected", "survived", "points lost", "points doubled"):
        found.add_column(heading, no_wrap=True)
    for verdict in verdicts:
        counts = ("–" if count is None else str(count) for count in (verdict.lost, verdict.doubled))
        answers = ("yes" if answer else "NO" for answer in (verdict.injected, verdict.failure is None))
        found.add_row(verdict.name, *answers, *counts)
    return found


def main(options: Options) -> int:
    """Inject, print the table; 1 if any cell is not as it should be."""
    os.environ.pop("RAY_TMPDIR", None)  # the sweeps do without, so that it is known where they keep what
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the sweeps would inherit that it is ignored
    started = time.monotonic()
    chosen: list[tuple[faults.Fault, tuple[str, ...]]] = [
        *((fault, ()) for fault in (faults.QUICK if options.quick else faults.ALL)),
        *((fault, STACK_WORDS) for fault in (faults.STACKS_QUICK if options.quick else faults.STACKS)),
        *(() if options.quick else ((faults.soak, SOAK_WORDS),)),
    ]
    chosen = [(fault, words) for fault, words in chosen if options.only in faults.name(fault)]
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        references = {words: undisturbed(folder / f"calm_{len(words)}", words) for words in {w for _, w in chosen}}
        with ThreadPoolExecutor(options.at_once) as pool:
            jobs = [
                pool.submit(inject, fault, references[words], folder / f"lab_{number}", words)
                for number, (fault, words) in enumerate(sorted(chosen, key=lambda c: c[0] is not faults.soak))
            ]
            verdicts = [job.result() for job in jobs]
    console.print(table(verdicts))
    for verdict in verdicts:
        if not verdict.passed:
            console.print(f"FAILED: {verdict.name}: {verdict.failure or 'points'}", markup=False, highlight=False)
    passed = sum(verdict.passed for verdict in verdicts)
    console.print(f"{passed} of {len(verdicts)} faults survived in {(time.monotonic() - started) / 60:.1f} minutes.")
    return 0 if passed == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))

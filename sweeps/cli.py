"""TODO."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import make_dataclass
from typing import TypeVar

import tyro

from sweeps.driver.options import RunOptions
from sweeps.driver.signals import stop_on_signals
from sweeps.experiment import Stages, SweepOptions
from sweeps.sweep import Sweep
from trainables.errors import BadInputError

S = TypeVar("S", bound=SweepOptions)


T = TypeVar("T")


def parse(selection: type[S], other: type[T], description: str | None) -> tuple[S, T]:
    """Parse the command line into options that select trials and other options, `--quick` moving the defaults."""
    group = other.__name__.lower()  # the heading of its options in --help
    command = make_dataclass("command", [("selection", selection), (group, other)])
    start = selection(**selection.quick_defaults) if "--quick" in sys.argv[1:] else selection()
    parsed = tyro.cli(
        command,
        default=command(**{"selection": start, group: other()}),
        description=description,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    return parsed.selection, getattr(parsed, group)


def main(selection: type[SweepOptions], description: str | None) -> None:
    """A sweep script: parse the command line, run what is missing, exit."""

    def script() -> int:
        options, running = parse(selection, RunOptions, description)
        # MLflow, Ray and SciPy take seconds to import, which --help need not wait for.
        if running.address is not None:
            from sweeps.driver.jobs import run_as_job

            return run_as_job(options, running.address, sys.argv)
        from sweeps.driver.run import run

        return run(options, running)

    sys.exit(run_to_exit_status(script))


def next_stage(stages: Stages) -> tuple[Sweep | None, str | None]:
    """The next sweep; or None, and why the stages end early if they do."""
    try:
        return next(stages), None
    except StopIteration as end:
        return None, end.value


def run_to_exit_status(main: Callable[[], int]) -> int:
    """Run a script's main function: bad input becomes one sentence and status 2, Ctrl-C and SIGTERM status 130."""
    stop_on_signals()
    try:
        return main()
    except BadInputError as error:
        print("error:", *str(error).splitlines(), file=sys.stderr)  # a path or a library's reason may have several
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130

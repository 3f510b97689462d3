"""The command line of all scripts: parse it, run it, exit; the scripts' only way to the driver."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import make_dataclass
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

import tyro

from sweeps.driver.options import RunOptions
from sweeps.driver.signals import exit_on_signals, stop_on_signals
from sweeps.driver.streams import protect_streams
from sweeps.experiment import SweepOptions
from trainables.errors import BadInputError, UserError


class Selection(Protocol):
    """A class of options that select trials, as a dataclass; `quick_defaults` are those under `--quick`."""

    quick_defaults: ClassVar[Mapping[str, Any]]


S = TypeVar("S", bound=Selection)
T = TypeVar("T")


def parse(options: type[S], others: type[T], description: str | None, verb: str) -> tuple[S, T]:
    """Parse the command line into two groups of options; `--quick` changes the defaults of the first.

    Args:
        options: The options that select trials.
        others: The options that say what to do with them.
        description: The first paragraph of `--help`.
        verb: The word for what is done with the trials, `run` or `draw`, as the headings of `--help` use it.
    """
    trials = Annotated[options, tyro.conf.arg(name="sweep", help=f"Trials to {verb}.")]  # type: ignore[valid-type]
    command = make_dataclass("command", [("sweep", trials), (verb, others)])
    usual = options(**options.quick_defaults) if "--quick" in sys.argv[1:] else options()
    parsed = tyro.cli(
        command,
        default=command(**{"sweep": usual, verb: others()}),
        description=description,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    return parsed.sweep, getattr(parsed, verb)


def main(options: type[SweepOptions], description: str | None) -> None:
    """Run a sweep script: parse the command line, train what is missing, exit."""

    def script() -> int:
        chosen, run_options = parse(options, RunOptions, description, "run")
        # MLflow, Ray and SciPy take seconds to import, which --help need not wait for.
        if run_options.address is not None:
            from sweeps.driver.jobs import run_as_job

            return run_as_job(chosen, run_options.address, sys.argv)
        from sweeps.driver.run import run

        return run(chosen, run_options)

    sys.exit(run_to_exit_status(script))


def run_to_exit_status(script: Callable[[], int]) -> int:
    """Run a script's main function and return the exit status.

    A `UserError` becomes one sentence and status 2; Ctrl-C and SIGTERM become status 130.
    """
    stop_on_signals()
    protect_streams()
    try:
        if sys.flags.optimize > 1:
            raise BadInputError(
                "python -OO and PYTHONOPTIMIZE=2 remove the docstrings that Ray reads when it starts; use -O at most"
            )
        status = script()
    except UserError as error:
        status = 2
        print("error:", *str(error).splitlines(), file=sys.stderr)  # a path or a reason may have several lines
    except KeyboardInterrupt:
        exit_on_signals(status := 130)
        print("stopped; the same command continues from here", file=sys.stderr)
    exit_on_signals(status)
    return status

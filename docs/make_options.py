"""Write docs/options.md, the reference of all options, from the classes that define them: python docs/make_options.py.

tests/test_options_page.py holds the page against the code.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tyro.conf import Positional, Suppress

from analysis.experiments import EXPERIMENTS
from analysis.output import DrawOptions
from analysis.part1 import Part1
from analysis.part2 import Part2
from analysis.report import ReportOptions, StoredSweeps
from analysis.ui import UiOptions
from sweeps.driver.options import DEFAULT_STORAGE, RunOptions, get_default_storage
from sweeps.experiment import (
    DEFAULT_DATA_ROOT,
    DEFAULT_TRACKING_URI,
    ImageSweepOptions,
    MainSweepOptions,
    SweepOptions,
    get_default_data_root,
    get_default_tracking_uri,
)

PAGE = Path(__file__).with_name("options.md")
# function that gives a default → the environment variable that it reads, and its value without the variable
FROM_ENVIRONMENT: Mapping[Callable[[], Any], tuple[str, Any]] = {
    get_default_tracking_uri: ("MLFLOW_TRACKING_URI", DEFAULT_TRACKING_URI),
    get_default_data_root: ("SWEEPS_DATA_ROOT", DEFAULT_DATA_ROOT),
    get_default_storage: ("SWEEPS_STORAGE", DEFAULT_STORAGE),
}
VALUE_WORDS = {int: "whole number", float: "number", str: "word", Path: "path"}
NOT_HERE = "Not an option of this experiment."
SHARED = (SweepOptions, ImageSweepOptions, MainSweepOptions)

# The tables of environment variables. Each variable that the three packages read or change stands in exactly one.
READ_VARIABLES = {
    "MLFLOW_TRACKING_URI": "Default of `--tracking-uri`: the tracking store.",
    "SWEEPS_STORAGE": "Default of `--storage`.",
    "SWEEPS_DATA_ROOT": "Default of `--data-root`.",
    "RAY_ADDRESS": "Ray cluster that trains, as `HOST:PORT`. Without it, or with `local`, this machine trains.",
    "RAY_TMPDIR": "Folder for Ray's sockets and logs while a sweep runs on this machine. Default: `/tmp`.",
    "CUDA_VISIBLE_DEVICES": "GPUs of this machine that a sweep may use.",
    "ONEDNN_MAX_CPU_ISA": "Instruction set of PyTorch's convolutions on the CPU, such as `ALL`. They are then used "
    "without measuring which backend is fastest.",
    "CXX": "Compiler of the native backend, with its options if it needs some. Default: `c++`.",
    "XDG_CACHE_HOME": "Folder that gets the folder `neural-sweeps` with the compiled native backend. "
    "Default: `~/.cache`.",
    "NO_COLOR": "With any value, nothing is printed in colour.",
    "FORCE_COLOR": "With any value, colours are printed where the output is no terminal as well.",
    "TERM": "Kind of terminal. With `dumb` or `unknown` there is no progress bar, as in a log.",
    "PYTHONWARNINGS": "Python's own filter of warnings. Its `error` is ignored, as libraries warn of each other.",
    "DISPLAY": "Screen of this machine, on which `analysis/ui.py` opens a browser.",
    "WAYLAND_DISPLAY": "The same for Wayland.",
    "SSH_CONNECTION": "With any value, `analysis/ui.py` opens no browser, and shows a command for an SSH tunnel.",
    "SWEEPS_COMMIT": "Commit that runs are tagged with, for code that lies in no git repository. `--address` sets it.",
    "SWEEPS_JOB_ADDRESS": "Address that a job came from, for the commands that the job prints. `--address` sets it.",
    "MLFLOW_TRACKING_PASSWORD": "MLflow's password for a server; messages never show it.",
    "MLFLOW_TRACKING_TOKEN": "MLflow's token for a server; messages never show it.",
    "http_proxy, https_proxy, all_proxy": "Proxies, in small or capital letters. If a server cannot be reached through "
    "one, the message names the variable.",
}
DEFAULT_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": ("0", "Ray sends no usage reports."),
    "RAY_AIR_NEW_OUTPUT": ("0", "Ray Tune prints no tables of its own."),
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": ("0", "Workers start with Python, not with `uv run`."),
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": ("0", "Ray Train gives no hints on its next version."),
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": ("1", "Ray Tune writes no logs of its own."),
    "TUNE_GLOBAL_CHECKPOINT_S": ("86400", "Ray Tune does not save its state, which is never used."),
    "RAY_ENABLE_AUTO_CONNECT": ("0", "Ray starts no cluster unasked."),
    "RAY_AUTH_MODE": ("token", "Ray answers only to who has its token."),
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": ("0", "Ray listens on the loopback address, if this machine trains."),
    "KMP_DUPLICATE_LIB_OK": ("True", "scikit-learn, which would set it, does not do so while Ray reads the variables."),
    "KMP_INIT_AT_FORK": ("FALSE", "The same holds for this variable."),
    "MLFLOW_DISABLE_TELEMETRY": ("true", "MLflow sends no usage reports."),
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": ("false", "MLflow draws no progress bars."),
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": ("true", "MLflow prints no addresses of runs."),
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": ("1", "A trial does not wait for a server: it trains on, and sends later."),
    "MLFLOW_HTTP_REQUEST_TIMEOUT": ("30", "Seconds after which a request to a server has failed."),
}
OVERRIDDEN_VARIABLES = {
    "MPLBACKEND": "Figures are saved, and never shown.",
    "RAY_AUTH_TOKEN": "A sweep on this machine has a token of its own.",
    "RAY_RUNTIME_ENV_HOOK": "A sweep on this machine sends its workers no files.",
    "RAY_JOB_CONFIG_JSON_ENV_VAR": "A sweep on this machine sends its workers no files.",
    "RAY_API_SERVER_ADDRESS": "`--address` comes first.",
}

INTRODUCTION = """\
# Options and environment variables

*This page is made from the code by `python docs/make_options.py`; a test compares the two.*

Every script takes options, and prints those that it has with `--help`. An option is followed by its value (`--seeds 5`
or `--seeds=5`), by several values with spaces between them (`--architectures mlp_1 cnn_3`), or by nothing if it is a
switch (`--quick`). Where the default is a dash, nothing is set, and the text says what happens then.
"""
TRIALS = """
## Options that select trials

A sweep trains the trials that these options select, and its analysis draws them. So both take the same ones: to draw
what a command has trained, give its options again. `analysis/report.py` takes them after a single name.

An option that is not given has its default, and `--quick` changes some of the defaults: `--quick --epochs 2` trains for
two epochs, and otherwise what `--quick` stands for. The options that several experiments share come first. The table of
an experiment has those of its own, and the shared ones that have another default there.
"""
RUN = """
## Options that say how a sweep runs

All scripts in `sweeps/` take these options. None of them changes a result, except for rounding.
"""
DRAW = """
## Options for drawing

The scripts in `analysis/` take these options beside those that select trials. `part1`, `part2`, the report and the UI
have their own.
"""
REPORT = """
## Options of the report

`analysis/report.py` takes the names of sweeps first. Without names, it reports all sweeps of the store, and with names
those, each with the options of the command that was last run. After a single name, the options that select its trials
may follow instead.
"""
UI = """
## Options of the UI

`analysis/ui.py` takes the names of sweeps as well. `make ui` runs it without any option.
"""
VARIABLES = """
## Environment variables

An option that is given on the command line comes before the variable that sets its default.
"""
DEFAULTS = """
### Settings of Ray and MLflow

The project changes these settings of the libraries. A value that you have set stays.
"""
OVERRIDDEN = """
### Variables without effect

The project sets or removes these variables for its own processes, whatever their value is.
"""


def read_help(options: type) -> dict[str, str]:
    """Return the help text of every option of a dataclass, by the name of its field: the docstring below the field."""
    texts: dict[str, str] = {}
    for base in filter(is_dataclass, reversed(options.__mro__)):
        for definition in ast.parse(textwrap.dedent(inspect.getsource(base))).body:
            for statement, following in pairwise(getattr(definition, "body", [])):
                match statement, following:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        texts[name] = " ".join(text.split())
    return texts


def describe_type(hint: Any) -> str:
    """Return words for the values that an option of this type takes."""
    if hint is bool:
        return "nothing"
    if get_origin(hint) in (Union, UnionType):  # such as `int | None`
        [hint] = (kind for kind in get_args(hint) if kind is not type(None))
    if get_origin(hint) is Literal:
        *first, last = get_args(hint)
        return f"{', '.join(first)} or {last}"
    if get_origin(hint) is tuple:
        first, *others = get_args(hint)
        count = "" if others == [...] else f"{1 + len(others)} "
        return f"{count}{VALUE_WORDS[first]}s"
    return VALUE_WORDS[hint]


def format_default(option: Field[Any], value: Any) -> str:
    """Return the cell of an option's default: a value, or what the option takes from the environment."""
    if option.default_factory is not MISSING:
        variable, value = FROM_ENVIRONMENT[option.default_factory]
        return f"`${variable}`, or `{value}`"
    if value is None or value == ():
        return "–"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def make_rows(options: type) -> dict[str, list[str]]:
    """Return a row for every option of a dataclass, by the name of its field.

    The cells are: the option, the values that it takes, the default, the default with `--quick`, what it does.
    """
    [positional], [hidden] = (mark[str].__metadata__ for mark in (Positional, Suppress))
    hints, plain_hints = get_type_hints(options, include_extras=True), get_type_hints(options)
    texts, quick_defaults = read_help(options), getattr(options, "quick_defaults", {})
    rows: dict[str, list[str]] = {}
    for option in fields(options):
        notes = getattr(hints[option.name], "__metadata__", ())
        if hidden in notes:
            rows[option.name] = [f"`--{option.name.replace('_', '-')}`", *["–"] * 3, NOT_HERE]
            continue
        metavars = [note.metavar for note in notes if positional in notes and hasattr(note, "metavar")]
        shown = metavars[0] if metavars else f"--{option.name.replace('_', '-')}"
        quick = quick_defaults.get(option.name, option.default)
        usual = format_default(option, option.default)
        with_quick = "same" if quick == option.default else format_default(option, quick)
        rows[option.name] = [
            f"`{shown}`",
            describe_type(plain_hints[option.name]),
            usual,
            with_quick,
            texts[option.name],
        ]
    return rows


def format_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, after an empty line."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def format_options(options: type, parent: type | None = None) -> str:
    """Return the table of a dataclass's options: those that are new, or have other cells than in `parent`."""
    known = make_rows(parent) if parent else {}
    rows = [row for name, row in make_rows(options).items() if row != known.get(name)]
    if not hasattr(options, "experiment"):  # `--quick` changes nothing
        return format_table(["Option", "Takes", "Default", "What it does"], [[*row[:3], row[4]] for row in rows])
    return format_table(["Option", "Takes", "Default", "With `--quick`", "What it does"], rows)


def get_first_sentence(package: str, name: str) -> str:
    """Return the first sentence of a script's docstring."""
    text = import_module(f"{package}.{name}").__doc__ or ""
    return text.partition("\n\n")[0].replace("\n", " ")


def list_names(kind: type) -> str:
    """Return the names of the experiments whose options derive from a class, for a heading."""
    return ", ".join(name for name, experiment in EXPERIMENTS.items() if issubclass(experiment.options_type, kind))


def list_scripts() -> list[list[str]]:
    """Return the rows of the table of scripts."""
    further = {"sweeps": "[running](#options-that-say-how-a-sweep-runs)", "analysis": "[drawing](#options-for-drawing)"}
    scripts = [
        (package, name, f"[{name}](#{name}), {link}") for name in EXPERIMENTS for package, link in further.items()
    ]
    scripts += [("analysis", "report", "[the report](#options-of-the-report)")]
    scripts += [("analysis", "ui", "[the UI](#options-of-the-ui)")]
    scripts += [("analysis", name, f"[{name}](#{name})") for name in ("part1", "part2")]
    return [[f"`{package}/{name}.py`", get_first_sentence(package, name), links] for package, name, links in scripts]


def write_trials() -> str:
    """Return the section on the options that select trials."""
    parts = [TRIALS, "\n### Of every experiment\n", format_options(SweepOptions)]
    for parent, kind in pairwise(SHARED):
        parts += [f"\n### Of {list_names(kind)}\n", format_options(kind, parent)]
    for name, experiment in EXPERIMENTS.items():
        shared = next(kind for kind in experiment.options_type.__mro__ if kind in SHARED)
        parts += [f"\n### {name}\n\n{experiment.question}\n", format_options(experiment.options_type, shared)]
    return "".join(parts)


def write_drawing() -> str:
    """Return the section on the options for drawing."""
    parts = [DRAW, format_options(DrawOptions)]
    kinds: dict[type, list[str]] = {}
    for name, experiment in EXPERIMENTS.items():
        kinds.setdefault(type(experiment.make_draw_options(DEFAULT_DATA_ROOT)), []).append(name)
    for kind, names in kinds.items():
        if kind is not DrawOptions:
            parts += [f"\n### Drawing {' and '.join(names)}\n", format_options(kind, DrawOptions)]
    return "".join(parts)


def write_variables() -> str:
    """Return the section on environment variables."""
    quoted = [[f"`{name.replace(', ', '`, `')}`", text] for name, text in READ_VARIABLES.items()]
    defaults = [[f"`{name}`", f"`{value}`", text] for name, (value, text) in DEFAULT_VARIABLES.items()]
    parts = [VARIABLES, format_table(["Variable", "What it does"], quoted)]
    parts += [DEFAULTS, format_table(["Variable", "Value", "So that"], defaults)]
    overridden = [[f"`{name}`", text] for name, text in OVERRIDDEN_VARIABLES.items()]
    return "".join([*parts, OVERRIDDEN, format_table(["Variable", "Why"], overridden)])


def make_page() -> str:
    """Return the text of docs/options.md."""
    parts = [INTRODUCTION, format_table(["Script", "What it is for", "Options"], list_scripts()), write_trials()]
    parts += [RUN, format_options(RunOptions), write_drawing()]
    parts += [REPORT, format_options(ReportOptions), "\nWithout names, or after several:\n"]
    parts += [format_options(StoredSweeps), UI, format_options(UiOptions)]
    for kind in (Part1, Part2):
        name = kind.__name__.lower()
        parts += [f"\n## {name}\n\n{get_first_sentence('analysis', name)}\n", format_options(kind)]
    return "".join([*parts, write_variables()])


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")

"""The sections of a report: which sweeps it holds, with which options, and what their analyses draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from analysis.experiments import EXPERIMENTS, Experiment
from analysis.output import Output, load_stages
from analysis.results import SweepResults
from analysis.snapshot import open_journal
from sweeps.experiment import SweepOptions
from sweeps.kept_options import parse_kept_options
from sweeps.sweep import Sweep
from trainables.errors import BadInputError, UserError
from trainables.persistence.parent_run import ParentRun
from trainables.persistence.store import Store
from trainables.persistence.stored_run import StoredRun, describe_ignored


@dataclass(frozen=True)
class Section:
    """A sweep in a report.

    Attributes:
        experiment: The experiment.
        options: Options that select its trials.
        output: Folder with its figures and tables, and its answers.
        sweeps: Sweeps of its stages, that of a stage without any finished trial included.
        stages: Results of the stages; empty if they could not be read.
        ended_early: Sentence that gives the reason why the stages ended early; empty if they did not.
        problem: Sentence that says why not everything could be read or drawn; empty if it could. It may name files of
            this machine.
        ignored: Lines on runs that were ignored.
    """

    experiment: Experiment
    options: SweepOptions
    output: Output
    sweeps: Sequence[Sweep]
    stages: Sequence[SweepResults]
    ended_early: str = ""
    problem: str = ""
    ignored: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.options.experiment

    @property
    def dataset(self) -> str:
        """The name of the data set."""
        return self.options.first_stage().trials()[0].dataset


def choose_options(names: Sequence[str], store: Store, *, quick: bool) -> list[SweepOptions]:
    """Return the options of the sweeps that a report holds.

    Args:
        names: Names of the experiments; all that the store has if there are none.
        store: The tracking store.
        quick: True for the defaults of `--quick`, False for what was run last (see `find_last_options`).

    Raises:
        BadInputError: The store has no finished trial of one of the names, or of any experiment; or the options that
            it keeps cannot be read.
    """
    parents = store.find_parents()
    found: list[SweepOptions] = []
    for name in names or EXPERIMENTS:
        kind = EXPERIMENTS[name].options_type
        usual = make_quick_options(kind, store.uri)
        options = usual if quick else find_last_options(kind, parents, store)
        if options is not None and count_finished(options, store):
            found.append(options)
        elif names:
            what = "with the defaults of --quick" if quick else "that was run"
            raise BadInputError(
                f"the tracking store has no finished trial of a {name} sweep {what}; train some with: "
                f"python sweeps/{name}.py{' --quick' if quick else ''}, or give the sweep's options after its name"
            )
    if not found:
        raise BadInputError(
            "the tracking store has no finished trial of any sweep; train some with: python sweeps/part3.py --quick, "
            "or say with --tracking-uri where they are"
        )
    return found


def find_last_options(kind: type[SweepOptions], parents: Sequence[ParentRun], store: Store) -> SweepOptions | None:
    """Return the options with which a sweep was run last, or None if the store has no finished trial of it.

    A parent run keeps the options of its last command. Options without any finished trial are passed over. Parent runs
    of earlier versions keep no options: of the defaults with the data set of each, and the defaults of `--quick`, those
    with the fewest missing trials are taken then, and of several those with the most trials.

    Raises:
        BadInputError: The options that the store keeps cannot be read.
    """
    own = sorted((p for p in parents if p.sweep == kind.experiment), key=lambda p: p.last_run, reverse=True)
    for parent in own:
        if parent.options is not None:
            kept = parse_kept_options(kind, parent.options, store.uri)
            if count_finished(kept, store):
                return kept
    older = [parent.dataset for parent in own if parent.options is None]
    has_dataset = "dataset" in {option.name for option in fields(kind)}
    usual: list[SweepOptions] = [make_quick_options(kind, store.uri)] if older else []
    for dataset in older:
        settings: dict[str, Any] = {"dataset": dataset} if has_dataset else {}
        usual.append(kind(**settings, tracking_uri=store.uri))
    return min(
        (options for options in usual if count_finished(options, store)),
        key=lambda options: (count_trials(options) - count_finished(options, store), -count_trials(options)),
        default=None,
    )


def count_trials(options: SweepOptions) -> int:
    """Return the number of trials of the first stage."""
    return len(options.first_stage().trials())


def count_finished(options: SweepOptions, store: Store) -> int:
    """Return the number of trials of the first stage that are finished."""
    runs, first = store.find_runs(), options.first_stage(open_journal(options, store))
    return sum(any(run.finished for run in runs.get(trial.id, [])) for trial in first.trials())


def make_quick_options(kind: type[SweepOptions], tracking_uri: str) -> SweepOptions:
    """Return the options of `--quick` alone."""
    return kind(**kind.quick_defaults, quick=True, tracking_uri=tracking_uri)


def make_section(options: SweepOptions, store: Store, folder: Path, data_root: Path) -> Section:
    """Load the finished trials of a sweep, and draw what its analysis draws into a folder of its own.

    Args:
        options: Options that select the trials.
        store: Store to load them from.
        folder: Folder of the report.
        data_root: Folder of the data sets.

    Raises:
        BadInputError: The report's folder cannot be written.
    """
    experiment = EXPERIMENTS[options.experiment]
    output = Output(folder / options.experiment, formats=("png",))
    fill = options.format_command("sweeps")
    try:
        sweeps, stages, ended_early = load_stages(options, store, fill, allow_missing=True)
    except UserError as error:
        return Section(experiment, options, output, [], [], problem=str(error))
    ignored = [line for sweep in sweeps if (line := describe_ignored(store.ignored.values(), sweep.labels()))]
    section = Section(experiment, options, output, sweeps, stages, ended_early, "", ignored)
    with output.convert_write_errors():
        try:
            experiment.load_draw()(options, stages, output, experiment.make_draw_options(data_root))
        except UserError as error:  # such as a data set that is not here, whose images a gallery would show
            return replace(section, problem=str(error))
    return section


def collect_provenance(section: Section) -> dict[str, dict[str, int]]:
    """Return how many finished trials have each value of each provenance tag: tag → value → number of trials."""
    found: dict[str, dict[str, int]] = {}
    for run in list_runs(section):
        for tag, value in {**run.provenance, "data": describe_data(run)}.items():
            values = found.setdefault(tag, {})
            values[value] = values.get(value, 0) + 1
    return found


def describe_data(run: StoredRun) -> str:
    """Return the name of a run's data set, with its checksum if the run has it."""
    return f"{run.dataset} (checksum {run.checksum})" if run.checksum else run.dataset


def list_runs(section: Section) -> list[StoredRun]:
    """Return the runs of a section's finished trials, each once."""
    by_trial: dict[str, StoredRun] = {}
    for stage in section.stages:
        by_trial |= stage.runs
    return list(by_trial.values())

"""A sweep's page in MLflow's UI: the driver writes its description, views and results, and how far it is.

The page is made anew from what the store has, so losing a write loses nothing, and a store that is away delays nothing.
Each selection of trials has a section, kept in a tag of the parent run, whose lease makes this driver its only writer.
The experiment's description is composed of the sections of all its parent runs.
"""

from __future__ import annotations

import math
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from sweeps import mlflow_ui
from sweeps.driver.description import (
    NUMBERS,
    describe_choice,
    find_constants,
    find_groups,
    format_csv,
    list_rows,
    make_key,
    make_title,
    write_section,
    write_table,
)
from sweeps.driver.plan import Plan
from sweeps.driver.report import say
from sweeps.driver.sections import compose, format_section, is_same_view, parse_section
from sweeps.driver.stages import Stage, merge_rounds
from sweeps.experiment import SweepOptions
from sweeps.sweep import format_count
from trainables.errors import UserError
from trainables.persistence.connection import OUTCOME_TAG
from trainables.persistence.presentation import Presentation
from trainables.persistence.store import Store

PROGRESS_SECONDS = 10.0  # between two words on how far a sweep is
REFRESH_SECONDS = 60.0  # between two looks at the results of a sweep that trains
REFRESH_SHARE = 0.01  # of the time, at most, for these looks
WAIT_SECONDS = 5.0  # for a write of the thread that has not ended


class SweepPage:
    """The page of the selection of trials that a command is about.

    Attributes:
        key: The selection's key.
        stages: Its stages so far, the last one being that which trains; the rounds of a search are one.
        conclusion: Sentences on what all stages together have shown, once they are there.
    """

    def __init__(self, store: Store, options: SweepOptions) -> None:
        self.store = store
        self.options = options
        self.key = make_key(options)
        self.stages: list[Stage] = []
        self.conclusion: Sequence[str] = ()
        self.dataset = ""
        self.presentation: Presentation | None = None
        self.parent_run_id = ""
        self.link = ""
        self.progress = (0, 0.0)  # trials finished in this stage since it began, and the seconds left or NaN
        self.lock = threading.Lock()

    def place(self, experiment_id: str, parent_run_id: str) -> None:
        """Note where the page is."""
        self.presentation = Presentation(self.store, experiment_id)
        self.parent_run_id = parent_run_id

    def note(self, finished: int, seconds_left: float) -> None:
        """Note how many trials this stage has finished since it began to train, and the seconds left or NaN."""
        self.progress = (finished, seconds_left)

    @contextmanager
    def follow(self, plan: Plan) -> Iterator[None]:
        """Write how far the stage is from time to time, in a thread, for as long as the context lasts."""
        before = self.stages
        self.stages = merge_rounds([*before, Stage(plan)])
        self.progress = (0, math.nan)
        ended = threading.Event()
        thread = threading.Thread(target=self._write_progress, args=(plan, before, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(WAIT_SECONDS)
            self.stages = before

    def _write_progress(self, plan: Plan, before: Sequence[Stage], ended: threading.Event) -> None:
        """Write the page whenever there is news, until `ended` is set."""
        done = len(plan.trials) - len(plan.missing)
        store: Store | None = None
        looked, pause, said = time.monotonic(), REFRESH_SECONDS, ""
        while True:
            finished, left = self.progress
            if (status := describe_progress(done + finished, len(plan.trials), left)) != said:
                self._try_writing(status, ended)
                said = status
            if ended.wait(PROGRESS_SECONDS):
                return
            if time.monotonic() - looked > pause and finished:
                started = time.monotonic()
                try:
                    store = store or Store(self.store.uri)  # the driver's own is not made for two threads
                    now = Plan(plan.sweep, plan.trials, store.find_runs())
                    self.stages = merge_rounds([*before, Stage(now, now.find_stuck(lambda trial: None))])
                except UserError:
                    pass
                looked = time.monotonic()
                pause = max(REFRESH_SECONDS, (looked - started) / REFRESH_SHARE)

    def _try_writing(self, status: str, ended: threading.Event) -> None:
        """Write the page unless the context has ended; a store that is away is no reason to stop."""
        with self.lock:
            try:
                if not ended.is_set():
                    self._write(status, training=True)
            except UserError:
                pass

    def add(self, stage: Stage) -> None:
        """Add a stage that has ended, and tag the runs of its stuck trials, so that the UI's search finds them.

        Runs of earlier versions, which have no such tag, stay as they are.
        """
        self.stages = merge_rounds([*self.stages, stage])
        runs = (stage.plan.find_finished(trial) for trial in stage.plan.trials if trial.id in stage.stuck)
        with suppress(UserError):  # the next command tags it
            for run in runs:
                if run is not None and run.outcome == "trained":
                    self.store.set_tags(run.run_id, {OUTCOME_TAG: "stuck"})

    def end(self) -> None:
        """Write the last word on this command, with the tables and metrics of its stages."""
        missing = sum(len(stage.plan.missing) for stage in self.stages)
        trials = sum(len(stage.plan.trials) for stage in self.stages)
        count = format_count(trials, "trial")
        status = f"Stopped with {trials - missing} of {count} finished" if missing else f"Finished: {count}"
        if self.presentation is None or not self.lock.acquire(timeout=WAIT_SECONDS):
            return
        try:
            if self._write(status, training=False):
                self._write_results()
        except UserError as error:
            say(f"note: MLflow's page of this sweep is not up to date: {error}", style="yellow")
        finally:
            self.lock.release()

    def _write(self, status: str, *, training: bool) -> bool:
        """Write section, views and descriptions; return whether the section says something else than before."""
        if self.presentation is None or not self.stages:
            return False
        self.dataset = self.stages[0].plan.trials[0].dataset
        links, views = self._make_views(self.presentation.experiment_id)
        section = write_section(self.options, self.stages, links, self._find_elsewhere(), self.conclusion)
        parents = {parent.run_id: parent for parent in self.presentation.find_parents()}
        tags = dict(parents[self.parent_run_id].tags) if self.parent_run_id in parents else {}
        old = parse_section(tags.get(mlflow_ui.SECTION_PREFIX + self.key, ""))
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        new = {**asdict(section), "status": status, "training": training, "at": now}
        own = {mlflow_ui.SECTION_PREFIX + self.key: format_section(new), mlflow_ui.LINK_TAG: self.link}
        tags |= own
        own[mlflow_ui.NOTE_TAG] = compose(tags.get(mlflow_ui.NOTE_TAG, ""), [tags], mlflow_ui.MAX_RUN_TAG)
        self.presentation.write_parent(self.parent_run_id, own, {})
        experiment = self.presentation.read_experiment()
        others = [dict(parent.tags) for run_id, parent in parents.items() if run_id != self.parent_run_id]
        note = compose(experiment.get(mlflow_ui.NOTE_TAG, ""), [tags, *others], mlflow_ui.MAX_NOTE)
        wanted = {**mlflow_ui.KIND, **views, mlflow_ui.NOTE_TAG: note}
        changed = {tag: text for tag, text in wanted.items() if not is_same_view(experiment.get(tag, ""), text)}
        self.presentation.write_experiment(changed)
        return {**old, "at": ""} != {**new, "at": ""}

    def _make_views(self, experiment_id: str) -> tuple[list[str], dict[str, str]]:
        """Return links in Markdown to what shows the stages' runs, and the tags of views; set `link` to the first."""
        links: list[str] = []
        views: dict[str, str] = {}
        is_search = not self.stages[0].plan.sweep.shows_test
        for number, stage in enumerate(self.stages):
            trials, groups, sweep = stage.plan.trials, find_groups(stage.plan.sweep), stage.plan.sweep
            # The trials of a search and those of its confirmation share most settings.
            having = [*sweep.parameters().get(trials[0].id, ())] if is_search else []
            condition = mlflow_ui.make_condition(find_constants(trials), having)
            homes = {run.experiment for trial in trials if (run := stage.plan.find_finished(trial))}
            if homes <= {sweep.name}:
                key = f"{self.key}-{number}" if number else self.key
                views[mlflow_ui.VIEW_PREFIX + key] = mlflow_ui.make_view(
                    name=make_title(trials),
                    condition=condition,
                    groups=groups,
                    quantities=trials[0].quantities,
                    parent_run_id=self.parent_run_id,
                    shows_test=sweep.shows_test,
                    milliseconds=int(time.time() * 1000),
                )
                path = mlflow_ui.make_view_path(experiment_id, key)
                text = f"Curves by {' and '.join(axis.replace('_', ' ') for axis in groups or ['suggestion'])}"
            else:  # a view shows one experiment alone
                ids = [known for known, name in sorted(self.store.experiments.items()) if name in {*homes, sweep.name}]
                path, text = mlflow_ui.make_list_path(ids, condition), "All trials"
            links.append(f"[{text}]({path})")
            if number == 0 or not self.stages[number - 1].plan.sweep.shows_test:  # a search's is its confirmation
                self.link = path
        files = mlflow_ui.make_run_path(experiment_id, self.parent_run_id, "artifacts")
        return [*links, f"[Tables, figures and report]({files})"], views

    def _find_elsewhere(self) -> dict[str, str]:
        """Return trial id → a link to the experiment of another sweep that holds its finished run."""
        ids = {name: known for known, name in self.store.experiments.items()}
        found: dict[str, str] = {}
        for stage in self.stages:
            for trial in stage.plan.trials:
                run = stage.plan.find_finished(trial)
                if run is not None and run.experiment != stage.plan.sweep.name and run.experiment in ids:
                    path = mlflow_ui.make_runs_path(ids[run.experiment])
                    found[trial.id] = f"[{run.experiment}]({path})"
        return found

    def _write_results(self) -> None:
        """Put the stages' tables among the parent run's artifacts, and their numbers among its metrics."""
        if self.presentation is None:
            return
        shown = [stage for stage in self.stages if stage.plan.sweep.shows_test]
        rows = [row for stage in shown for row in list_rows(stage)]
        choice = describe_choice(self.options)
        metrics = {
            mlflow_ui.make_metric_name(": ".join(filter(None, (row["setting"], name, choice)))): float(row[name])
            for row in rows
            for name in NUMBERS
            if not math.isnan(row[name])
        }
        runs = [run for s in self.stages for trial in s.plan.trials if (run := s.plan.find_finished(trial))]
        spent = sum(seconds for run in runs if not math.isnan(seconds := run.training_seconds))
        hours = ": ".join(filter(None, ("all trials", "hours of training", choice)))
        metrics[mlflow_ui.make_metric_name(hours)] = round(spent / 3600, 4)
        self.presentation.write_parent(self.parent_run_id, {}, metrics)
        if not rows:
            return
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "tables"
            folder.mkdir()
            parts = [part for stage in shown for part in write_table(stage, whole=True)]
            (folder / f"{self.key}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
            (folder / f"{self.key}.csv").write_text(format_csv(rows), encoding="utf-8")
            self.store.add_to_parent(self.options.experiment, self.dataset, Path(temporary))


def describe_progress(finished: int, trials: int, seconds_left: float) -> str:
    """Return how far a stage that trains is: "Training: 32 of 50 trials finished, about 12 min left"."""
    left = "" if math.isnan(seconds_left) else f", about {format_seconds(seconds_left)} left"
    return f"Training: {finished} of {format_count(trials, 'trial')} finished{left}"


def format_seconds(seconds: float) -> str:
    """Return a time in the unit that suits it: "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{round(seconds, -1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

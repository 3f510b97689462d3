"""Compares searches with a grid, plain Optuna, and Ray Tune's `OptunaSearch` with ASHA, at equal budgets in epochs.

Every search is a real command in a process of its own (`search_rivals.py` has the rivals), in a small space of digits
unless said otherwise. Its parts:

epochs: regret by epochs (`search_curves.py` says what regret is) and the accuracy of what each method ends with, on
fresh seeds. Our searches run in step, which changes no result. All that is confirmed trains with one routine.

wall: regret by wall time, of searches that run alone and in turns. Seconds count from the start of the command to the
end of the search's last trial, with the start of Python and of Ray. Those of the whole command are listed as well; ours
also confirms the best settings and the usual ones with one seed. Our searches keep their folder from turn to turn, so
that the first makes the database and measures what is faster.

long: the same with a budget that takes long to train, where every setting costs about the same: one architecture and
one batch size. Nothing is confirmed; the curves are those of the best score so far, which is optimistic for all alike.

replay: regret by epochs of samplers on a table of trained trials (`search_replay.py`), which is trained first if its
file does not exist.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import tyro

from benchmarks.bench import ROOT, console, describe_machine, query_store, run_script, say, temporary_folder
from benchmarks.search_confirm import confirm
from benchmarks.search_curves import Evaluation, SearchRun, list_incumbents
from benchmarks.search_replay import (
    Table,
    list_evaluations,
    make_grids,
    make_table,
    make_table_search,
    replay_grid,
    replay_optuna,
    replay_search,
)
from benchmarks.search_report import REGRET, PartReport, save_figure
from sweeps.cli import run_to_exit_status
from sweeps.experiment import DEFAULT_TRACKING_URI, SweepOptions
from sweeps.search import Search, format_domain
from trainables import datasets
from trainables.errors import BadInputError, check_choice, check_positive
from trainables.persistence.store import Store
from trainables.persistence.stored_journal import StoredJournal
from trainables.result import Result
from trainables.trial import Trial

TPE, GP, HALVING, RANDOM = "ours, TPE", "ours, GP", "ours, TPE with halving", "ours, random"
GRID, OPTUNA, PAIR, ASHA = "grid", "Optuna, one process", "Optuna, two processes", "OptunaSearch with ASHA"
OURS: Mapping[str, Mapping[str, Any]] = {
    TPE: {"sampler": "tpe"},
    GP: {"sampler": "gp"},
    HALVING: {"sampler": "tpe", "halving": 3},
    RANDOM: {"sampler": "random"},
}
RIVALS = {GRID: "grid", OPTUNA: "optuna", PAIR: "optuna_pair", ASHA: "ray"}
METHODS = {  # of each part
    "epochs": (*OURS, GRID, OPTUNA, ASHA),
    "wall": (TPE, HALVING, OPTUNA, PAIR, ASHA),
    "long": (TPE, PAIR, ASHA),
}
TIME_LIMIT_SECONDS = 6 * 3600.0  # limit for one command
Part = Literal["epochs", "wall", "long", "replay"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    parts: tuple[Part, ...] = get_args(Part)
    """Parts to measure; the text above describes them."""
    methods: tuple[str, ...] = (*OURS, *RIVALS)
    """Methods of the parts that train, as far as a part has them."""
    repeats: int = 10
    """Searches of each method in the parts epochs and replay, with the seeds from 0 on."""
    turns: int = 3
    """Searches of each method in the part wall."""
    budget: int = 60
    """Budget of a search in epochs."""
    epochs: int = 3
    """Epochs of a trial."""
    confirm_seeds: int = 10
    """Fresh seeds with which settings are confirmed."""
    long_dataset: str = "fashion_mnist"
    """Data set of the part long."""
    long_budget: int = 96
    """Budget in epochs of a search of the part long."""
    long_turns: int = 1
    """Searches of each method in the part long."""
    table: Path = Path("benchmarks/search-table.json")
    """Table of the part replay."""
    table_folder: Path | None = None
    """Folder in which the table's trials are trained, and which may have some of them. Default: a temporary one."""
    table_dataset: str = "fashion_mnist"
    """Data set of a table that is trained."""
    table_rates: tuple[float, ...] = (0.0001, 0.0005, 0.002, 0.01, 0.05)
    """Learning rates of a table that is trained."""
    table_batch_sizes: tuple[int, ...] = (20, 50, 200)
    """Batch sizes of a table that is trained."""
    data_root: Path = Path("data")
    """Folder of the data sets."""
    small: bool = False
    """Run with one search of four methods, tiny budgets and digits alone, to see that it works."""
    out: Path = Path("benchmarks/search.json")
    """File for the results; the figure is beside it."""

    def shrink(self) -> Options:
        """Return the options of a small run."""
        digits = {"long_dataset": "digits", "table_dataset": "digits"}
        table = {"table_rates": (0.002, 0.01), "table_batch_sizes": (20, 50)}
        tiny = {"repeats": 1, "turns": 1, "budget": 8, "epochs": 2, "confirm_seeds": 2, "long_budget": 8}
        return replace(self, methods=(TPE, GRID, PAIR, ASHA), **digits, **table, **tiny)  # type: ignore[arg-type]

    def make_search(self, part: Part) -> Search:
        """Return our search of a part, whose space all methods have."""
        shared: dict[str, Any] = {"epochs": self.epochs, "confirm_best": 1, "confirm_seeds": 1}
        if part == "long":
            long = {"dataset": self.long_dataset, "architectures": ("cnn_3",), "batch_sizes": ("50",)}
            return Search(**shared, **long, learning_rates=("0.0001:0.1",), budget=str(self.long_budget))  # type: ignore[arg-type]
        short = {"architectures": ("mlp_2", "cnn_3"), "learning_rates": ("0.0005:0.05",), "batch_sizes": ("20:80",)}
        return Search(**shared, **short, dataset="digits", budget=str(self.budget))  # type: ignore[arg-type]


def run_ours(search: Search, method: str, seeds: Sequence[int], home: Path, data_root: Path) -> list[SearchRun]:
    """Run our search with some seeds, in step if there are several, and return the runs."""
    folder = home / str([*OURS].index(method))
    folder.mkdir(exist_ok=True)
    uri = f"sqlite:///{folder}/mlflow.db"
    ours = replace(search, **OURS[method], seed=seeds[0], searches=len(seeds), tracking_uri=uri)
    started = time.time()
    seconds = run_our_script("search", ours, folder, data_root)
    say(f"{method}, seeds {seeds[0]} to {seeds[-1]}: {seconds:.0f} s")
    store = Store(uri)
    found, journal = store.find_runs(), StoredJournal(store, ours.experiment, ours.dataset, writing=False)

    @cache
    def read(trial: Trial) -> Result | None:
        return next((store.read_result(run) for run in found.get(trial.id, []) if run.finished), None)

    histories = ours.make_histories()
    for _ in ours.run_searches(histories, read, journal):  # goes through the journal without training anything
        pass
    ends = None
    if len(seeds) == 1:
        query = "SELECT value, end_time FROM runs JOIN tags USING (run_uuid) WHERE key = 'trial_id' AND end_time > 0"
        ends = {str(name): float(end) / 1000 - started for name, end in query_store(folder, query)}
    command = seconds if len(seeds) == 1 else None
    return [SearchRun(method, history.seed, list_evaluations(history, ends), command) for history in histories]


def run_our_script(name: str, options: SweepOptions, folder: Path, data_root: Path) -> float:
    """Run a script of `sweeps/` with its storage in `folder`, and return its seconds."""
    words = options.list_words(DEFAULT_TRACKING_URI)
    places = ("--storage", folder / "storage", "--data-root", data_root.absolute())
    script = ROOT / "sweeps" / f"{name}.py"
    return run_script([script, *words, *places], folder, limit_seconds=TIME_LIMIT_SECONDS).seconds


def run_rival(search: Search, method: str, seed: int, data: Path) -> SearchRun:
    """Run a rival in the space of our search, and return the run."""
    space = {name: format_domain(domain) for name, domain in search.make_space().items()}
    for name, domain in space.items():
        if isinstance(domain, dict):
            domain["whole"] = name == "batch_size"
    with temporary_folder() as folder:
        setup = folder / "setup.json"
        setup.write_text(json.dumps({"space": space, "epochs": search.epochs, "budget": int(search.budget)}))
        words = ("--kind", RIVALS[method], "--setup", setup, "--data", data, "--folder", folder, "--seed", seed)
        started = time.time()
        script = ROOT / "benchmarks" / "search_rivals.py"
        result = run_script([script, *words], folder, limit_seconds=TIME_LIMIT_SECONDS)
    say(f"{method}, seed {seed}: {result.seconds:.0f} s")
    trials = json.loads(result.output.splitlines()[-1])
    found = [Evaluation(row["epochs"], row["ended"] - started, row["score"], row["settings"]) for row in trials]
    return SearchRun(method, seed, found, result.seconds)


def run_searches(options: Options, part: Part, search: Search) -> list[SearchRun]:
    """Run all searches of a part, in turns where wall time counts."""
    repeats = {"epochs": options.repeats, "wall": options.turns}.get(part, options.long_turns)
    methods = [method for method in METHODS[part] if method in options.methods]
    runs: list[SearchRun] = []
    with temporary_folder() as home:
        loaded = datasets.load_dataset(search.dataset, options.data_root)
        names = ("train_images", "train_labels", "val_images", "val_labels")
        np.savez(home / "data.npz", **{name: getattr(loaded, name) for name in names})
        for method in [name for name in methods if name in OURS and part == "epochs"]:
            runs += run_ours(search, method, range(repeats), home, options.data_root)
        for seed in range(repeats):
            for method in methods:
                if method in RIVALS:
                    runs.append(run_rival(search, method, seed, home / "data.npz"))
                elif part != "epochs":
                    runs += run_ours(search, method, [seed], home, options.data_root)
    return runs


def measure(options: Options, part: Part) -> PartReport:
    """Measure a part that trains."""
    search = options.make_search(part)
    runs = run_searches(options, part, search)
    budget, timed = int(search.budget), "" if part == "epochs" else TPE
    title = f"{part}: {search.dataset}, {budget} epochs a search, {search.epochs} a trial"
    if part == "long":
        return PartReport(title, runs, budget, lambda e: e.score, "best score", ("seconds",), {}, {}, timed)
    scores, tests = confirm(search, list_incumbents(runs), options.confirm_seeds, options.data_root)
    best = max(scores.values())
    axis: Literal["epochs", "seconds"] = "epochs" if part == "epochs" else "seconds"
    return PartReport(title, runs, budget, lambda e: best - scores[e.key], REGRET, (axis,), tests, scores, timed)


def get_table(options: Options) -> Table:
    """Return the table of the part replay; it is trained if its file does not exist."""
    if options.table.exists():
        return Table.load(options.table)
    with temporary_folder() as temporary:
        folder = (options.table_folder or temporary).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        uri = f"sqlite:///{folder}/mlflow.db"
        grids = make_grids(options.table_dataset, options.epochs, options.table_rates, options.table_batch_sizes)
        for grid in grids:
            seconds = run_our_script("grid", replace(grid, tracking_uri=uri), folder, options.data_root)
            say(f"the table's trials with {grid.optimizer}: {seconds:.0f} s")
        table = make_table(grids, Store(uri).read_trial)
    table.save(options.table)
    return table


def replay(options: Options) -> PartReport:
    """Measure the part replay."""
    table = get_table(options)
    runs: list[SearchRun] = []
    for seed in range(options.repeats):
        search = replace(make_table_search(table, options.budget), seed=seed)
        runs += [replay_search(table, replace(search, **words), method) for method, words in OURS.items()]
        runs += [replay_grid(table, options.budget, seed, GRID), replay_optuna(table, search, OPTUNA)]
    title = f"replay: {table.dataset}, a table of {len(table.scores)} trials, {options.budget} epochs a search"
    best = table.best
    return PartReport(title, runs, options.budget, lambda e: best - e.score, REGRET, ("epochs",), {}, {})


def check(options: Options) -> None:
    """Raise `BadInputError` where an option has a value that the benchmark cannot use."""
    for name in ("repeats", "turns", "budget", "epochs", "confirm_seeds", "long_budget", "long_turns"):
        check_positive(f"--{name.replace('_', '-')}", getattr(options, name), whole=True)
    for method in options.methods:
        check_choice("method", method, (*OURS, *RIVALS))
    for path in (options.out, options.table):
        if not path.parent.is_dir():
            raise BadInputError(f"{path} cannot be written; name a file in a folder that exists")
    for part in ("epochs", "long"):
        options.make_search(part).make_histories()  # checks the budgets


def main(options: Options) -> int:
    """Measure the chosen parts, print the results and save them."""
    options = options.shrink() if options.small else options
    check(options)
    content: dict[str, Any] = {"machine": describe_machine(), "results": {}, "runs": {}}
    reports: list[PartReport] = []
    figure = options.out.with_suffix(".png")
    for part in get_args(Part):
        if part not in options.parts:
            continue
        say(f"{part} …")
        reports.append(replay(options) if part == "replay" else measure(options, part))
        content["results"][part] = reports[-1].to_json()
        content["runs"][part] = [asdict(run) for run in reports[-1].runs]
        options.out.write_text(json.dumps(content, indent=1) + "\n")
        console.print(reports[-1].make_table())
        save_figure(reports, figure)
    console.print(f"Saved to {options.out} and {figure}")
    return 0


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    sys.exit(run_to_exit_status(lambda: main(options)))

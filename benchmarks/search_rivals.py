"""Rivals that `search.py` compares searches with: a grid, plain Optuna, and Ray Tune's `OptunaSearch` with ASHA.

They build the same networks from the project's tables, train them with the loop of the lean script in `rivals.py`, and
use none of the project's other code. As in a search, the score of a trial is the mean validation accuracy in % over the
records of its last epoch, one after every tenth step. The last line of the output is a list of the trials in JSON, in
the order of their ends: settings, score, when they ended, and the epochs that all trials had trained by then.

grid: the settings of `make_grid`, one after the other, in an order that the seed decides.

optuna: `study.optimize` with the TPE sampler and its defaults, in one process with PyTorch's default number of threads.

optuna_pair: the same study in two processes with a thread each, which share it through a journal file, as in Optuna's
tutorial on parallelisation.

ray: `OptunaSearch`, at most four suggestions at once, with ASHA's defaults, as in the example of Ray's documentation
("Running Tune experiments with Optuna"). A trial has one CPU and reports after every epoch. As ASHA stops trials, the
whole search is stopped when the budget in epochs is spent. A trial counts with its last report, as for
`get_best_result()`.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from benchmarks.rivals import STEPS_PER_RECORD, VALIDATION_BATCH_SIZE, evaluate, load, take_step
from trainables.architectures import build

if TYPE_CHECKING:
    import optuna

Kind = Literal["grid", "optuna", "optuna_pair", "ray"]
Space = Mapping[str, Any]  # parameter → its choices, or the ends of its range and whether it is of whole numbers
OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
VARIED_BY_A_GRID = ("architecture", "optimizer")  # beside the learning rate
JOURNAL = "optuna.log"


def train_epochs(settings: Mapping[str, Any], data: dict[str, Tensor], epochs: int, seed: int) -> Iterator[float]:
    """Train a network, and yield the score in % of every epoch."""
    torch.manual_seed(seed)
    channels, height, width = data["train_images"].shape[1:]
    kinds = {name: settings[name] for name in ("activation", "pooling")}
    model = build(settings["architecture"], (channels, height, width), **kinds)
    optimizer = OPTIMIZERS[settings["optimizer"]](model.parameters(), lr=settings["learning_rate"])
    parts = ("val_images", "val_labels")
    validation = list(zip(*(data[part].split(VALIDATION_BATCH_SIZE) for part in parts), strict=True))
    losses, accuracies, step = [], [], 0
    for _ in range(epochs):
        scores = []
        for indices in torch.randperm(len(data["train_images"])).split(settings["batch_size"]):
            labels = data["train_labels"][indices]
            loss, logits = take_step(model, optimizer, data["train_images"][indices], labels)
            step += 1
            if step % STEPS_PER_RECORD == 0:
                losses.append(loss.item())
                accuracies.append((logits.argmax(1) == labels).float().mean().item())
                scores.append(evaluate(model, validation))
        yield 100 * float(np.mean(scores or [evaluate(model, validation)]))


def train_trial(settings: Mapping[str, Any], data: dict[str, Tensor], epochs: int, seed: int) -> float:
    """Train a network to its end and return its score in %."""
    return list(train_epochs(settings, data, epochs, seed))[-1]


def make_grid(space: Space, count: int) -> list[dict[str, Any]]:
    """Return the settings of a grid of `count` trials at most.

    It has every architecture with every optimizer, and as many learning rates as fit, at equal ratios. Of the other
    choices it has the first, and of other ranges the geometric middle.
    """
    usual = {name: get_middle(domain) if isinstance(domain, Mapping) else domain[0] for name, domain in space.items()}
    pairs = list(product(*(space[name] for name in VARIED_BY_A_GRID)))
    rates, number = space["learning_rate"], max(count // len(pairs), 1)
    if isinstance(rates, Mapping):
        rates = np.geomspace(rates["low"], rates["high"], number) if number > 1 else [get_middle(rates)]
    points = [
        {**usual, **dict(zip(VARIED_BY_A_GRID, pair, strict=True)), "learning_rate": float(rate)}
        for pair in pairs
        for rate in rates[:number]
    ]
    return points[:count]


def get_middle(domain: Mapping[str, Any]) -> float:
    """Return the number of a range from which both ends are equally many times away."""
    middle = math.sqrt(domain["low"] * domain["high"])
    return round(middle) if domain["whole"] else middle


def search_grid(setup: Mapping[str, Any], data: dict[str, Tensor], seed: int) -> list[dict[str, Any]]:
    """Train a grid's trials, and return them."""
    points = make_grid(setup["space"], setup["budget"] // setup["epochs"])
    order = np.random.default_rng(seed).permutation(len(points))
    trials = []
    for number, settings in enumerate((points[index] for index in order), start=1):
        row = {"settings": settings, "score": train_trial(settings, data, setup["epochs"], seed)}
        trials.append({**row, "ended": time.time(), "epochs": number * setup["epochs"]})
    return trials


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """Ask Optuna for the settings of a trial."""

    def choose(name: str, domain: Any) -> Any:
        if not isinstance(domain, Mapping):
            return trial.suggest_categorical(name, domain)
        method = trial.suggest_int if domain["whole"] else trial.suggest_float
        return method(name, domain["low"], domain["high"], log=True)

    return {name: choose(name, domain) for name, domain in space.items()}


def open_study(folder: Path, sampler_seed: int) -> optuna.Study:
    """Return a new study, or that of the folder's journal if there is one."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = folder / JOURNAL
    return optuna.create_study(
        study_name="search",
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=sampler_seed),
        storage=JournalStorage(JournalFileBackend(str(path))) if path.exists() else None,
        load_if_exists=True,
    )


def optimize(
    setup: Mapping[str, Any], data: dict[str, Tensor], seed: int, sampler_seed: int, folder: Path
) -> optuna.Study:
    """Take part in Optuna's study until it has spent the budget, and return the study."""
    import optuna
    from optuna.trial import TrialState

    study = open_study(folder, sampler_seed)
    count = setup["budget"] // setup["epochs"]
    # Trials that the other process trains count, so that the study trains no more than its budget.
    enough = optuna.study.MaxTrialsCallback(count, states=(TrialState.COMPLETE, TrialState.RUNNING))

    def objective(trial: optuna.Trial) -> float:
        return train_trial(suggest(trial, setup["space"]), data, setup["epochs"], seed)

    study.optimize(objective, callbacks=[enough])
    return study


def optimize_in_a_process(setup: Mapping[str, Any], path: Path, seed: int, folder: Path, sampler_seed: int) -> None:
    """Take part in Optuna's study with one thread."""
    torch.set_num_threads(1)
    optimize(setup, load(path), seed, sampler_seed, folder)


def search_with_optuna(
    setup: Mapping[str, Any], path: Path, seed: int, folder: Path, *, processes: int
) -> list[dict[str, Any]]:
    """Run Optuna's study in one process or in several, and return its trials."""
    if processes == 1:
        study = optimize(setup, load(path), seed, seed, folder)
    else:
        (folder / JOURNAL).touch()
        work = partial(optimize_in_a_process, setup, path, seed, folder)
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            list(pool.map(work, range(processes * seed, processes * (seed + 1))))
        study = open_study(folder, seed)
    found = [(t.datetime_complete.timestamp(), t.value, t.params) for t in study.trials if t.datetime_complete]
    return [
        {"ended": ended, "epochs": number * setup["epochs"], "score": score, "settings": settings}
        for number, (ended, score, settings) in enumerate(sorted(found, key=lambda row: row[0]), start=1)
    ]


def search_with_ray(setup: Mapping[str, Any], data: dict[str, Tensor], seed: int, folder: Path) -> list[dict[str, Any]]:
    """Run Ray Tune with `OptunaSearch` and ASHA, and return its trials."""
    for name in [name for name in os.environ if name.startswith(("TUNE_", "RAY_"))]:
        del os.environ[name]  # `search.py` has imported our driver, which sets Ray Tune up for itself
    # Ray reads these variables when it is imported. They keep it on this machine, and change nothing about Ray Tune.
    usual = {"USAGE_STATS_ENABLED": "0", "TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0", "AUTH_MODE": "token"}
    usual |= {
        "AUTH_TOKEN": secrets.token_hex(32),
        "ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    os.environ.update({f"RAY_{name}": value for name, value in usual.items()})
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    class Budget(tune.Stopper):
        """Stopper of the whole search when its trials have trained as many epochs as the budget has."""

        def __init__(self) -> None:
            self.epochs: set[tuple[str, int]] = set()  # each once, though Ray Tune repeats a trial's last report

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            self.epochs.add((trial_id, result["training_iteration"]))
            return False

        def stop_all(self) -> bool:
            return len(self.epochs) >= int(setup["budget"])

    def train(config: dict[str, Any], data: dict[str, Tensor]) -> None:
        for score in train_epochs(config, data, setup["epochs"], seed):
            tune.report({"val_accuracy": score, "at": time.time()})

    place = str(folder / "ray")
    ray.init("local", num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False, _temp_dir=place)
    try:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(train, data=data), {"cpu": 1}),
            param_space={name: make_ray_domain(domain) for name, domain in setup["space"].items()},
            tune_config=tune.TuneConfig(
                metric="val_accuracy",
                mode="max",
                search_alg=ConcurrencyLimiter(OptunaSearch(seed=seed), max_concurrent=4),
                scheduler=ASHAScheduler(),
                num_samples=setup["budget"],  # more than the budget allows
            ),
            run_config=tune.RunConfig(storage_path=str(folder / "results"), stop=Budget(), verbose=0),
        )
        results = tuner.fit()
        found = [
            (result.config or {}, result.metrics_dataframe) for result in map(results.__getitem__, range(len(results)))
        ]
    finally:
        ray.shutdown()
    reported = [(settings, frame) for settings, frame in found if frame is not None and "at" in frame]
    return gather_reports([(settings, frame[["at", "val_accuracy"]].to_numpy()) for settings, frame in reported])


def make_ray_domain(domain: Any) -> Any:
    """Return what a parameter may be as Ray Tune has it."""
    from ray import tune

    if not isinstance(domain, Mapping):
        return tune.choice(list(domain))
    if domain["whole"]:
        return tune.lograndint(domain["low"], domain["high"] + 1)  # the upper end does not belong to it
    return tune.loguniform(domain["low"], domain["high"])


def gather_reports(reports: Sequence[tuple[Mapping[str, Any], Any]]) -> list[dict[str, Any]]:
    """Return the trials in the order of their ends, from settings and reports `(epochs, 2)` with times and scores."""
    times = np.sort(np.concatenate([rows[:, 0] for _, rows in reports]))
    trials = [
        {
            "ended": at,
            "epochs": int(np.searchsorted(times, at, side="right")),
            "score": score,
            "settings": dict(settings),
        }
        for settings, rows in reports
        for at, score in rows[-1:].tolist()
    ]
    return sorted(trials, key=lambda trial: float(trial["ended"]))


def main(kind: Kind, setup: Path, data: Path, folder: Path, seed: int) -> None:
    """Run a search, and print its trials.

    Args:
        kind: The rival.
        setup: File of `search.py` with the space, the epochs of a trial, and the budget in epochs.
        data: File with images and labels.
        folder: Folder for the files of the rival, which is its own.
        seed: Seed of the search and of its networks.
    """
    content = json.loads(setup.read_text())
    match kind:
        case "grid":
            trials = search_grid(content, load(data), seed)
        case "ray":
            trials = search_with_ray(content, load(data), seed, folder.absolute())
        case _:
            trials = search_with_optuna(content, data, seed, folder, processes=2 if kind == "optuna_pair" else 1)
    print(json.dumps(trials))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)

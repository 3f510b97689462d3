"""Every analysis on results made by hand: known means in its exports, missing and diverged trials."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import analysis.grid
import analysis.mnist
import analysis.part3
import analysis.part4
import analysis.part5
import analysis.pooling
import analysis.xor
from analysis.grid import GridDrawOptions
from analysis.output import DrawOptions, GalleryDrawOptions, Output
from analysis.part5 import Part5DrawOptions
from analysis.results import SweepResults, load_results
from sweeps.experiment import StagesEndedEarly, SweepOptions
from sweeps.grid import Grid
from sweeps.mnist import Mnist
from sweeps.part3 import Part3
from sweeps.part4 import Part4
from sweeps.part5 import Part5
from sweeps.pooling import Pooling
from sweeps.sweep import ReadResult, Sweep
from sweeps.xor import Xor
from trainables.architectures import build
from trainables.persistence.store import Store
from trainables.persistence.trial_run import MODEL_ARTIFACT, RESULT_ARTIFACT
from trainables.result import Result
from trainables.training import list_record_steps
from trainables.trial import Trial
from trainables.xor import draw_initial_weights

ACCURACY = 60.0  # of seed 0 in its curves, %
TRAINING_IMAGES = 1297  # training images of digits, after the validation images are held out


def make_result(trial: Trial) -> Result:
    """Make a result with known means over seeds 0 … S−1: for seed s, curves of accuracies are 60 + s, others s."""
    steps = list_record_steps(
        trial, 4 if trial.dataset == "xor" else TRAINING_IMAGES if trial.pipeline is None else 1437
    )
    curves: dict[str, Any] = {
        name: np.full(len(steps), trial.seed + (ACCURACY if name.endswith("accuracy") else 0), np.float32)
        for name in trial.quantities
    }
    weights = (
        draw_initial_weights(trial.seed) if trial.dataset == "xor" else np.full((16, 1, 3, 3), trial.seed, np.float32)
    )
    return Result(steps, curves, 50.0 + trial.seed, weights)


def cut_short(result: Result) -> Result:
    """Return the result of a trial that diverged at the middle record: losses and gradients grow, and end in NaN."""
    records = max(1, len(result.steps) // 2)
    curves = {name: curve[:records].copy() for name, curve in result.curves.items()}
    for name in {"train_loss", "gradient_norm"} & set(curves):
        curves[name] = 10.0 ** np.arange(10, 10 + records, dtype=np.float32)
        curves[name][-1] = np.nan
    return Result(result.steps[:records], curves, float("nan"), result.first_layer)


def leave_at_chance(result: Result) -> Result:
    """Return the result of a trial that is stuck: each of its accuracies is 10 %."""
    curves = {name: np.full_like(curve, 10) if "accuracy" in name else curve for name, curve in result.curves.items()}
    return Result(result.steps, curves, 10.0, result.first_layer)


def match_none(trial: Trial) -> bool:
    return False


def save_model(trial: Trial, path: Path) -> None:
    """Write an untrained network in place of a trained one."""
    channels = 3 if trial.pipeline == "colour" else 1
    model = build(
        trial.architecture,
        (channels, 32, 32),
        classes=2 if trial.task else 10,
        activation=trial.activation,
        pooling=trial.pooling,
    )
    torch.save(model.state_dict(), path)


def list_stages(options: SweepOptions, read: ReadResult) -> Iterator[Sweep]:
    """Yield the stages, up to where they end early."""
    with suppress(StagesEndedEarly):
        yield from options.stages(read)


def record(
    store: Store,
    options: SweepOptions,
    leave_out: Callable[[Trial], bool] = match_none,
    diverged: Callable[[Trial], bool] = match_none,
    stuck: Callable[[Trial], bool] = match_none,
) -> None:
    """Write the trials of all stages into the store, except those to leave out; some diverged, and some are stuck."""
    experiment_id, parent = store.ensure_parent(options.experiment, "digits")
    for sweep in list_stages(options, lambda trial: None):
        for trial in sweep.trials():
            if not leave_out(trial):
                run = store.open_run(trial, sweep.labels()[trial.id], experiment_id, parent, {}, run_id=None)
                result = make_result(trial)
                result = cut_short(result) if diverged(trial) else leave_at_chance(result) if stuck(trial) else result
                with TemporaryDirectory() as folder:
                    result.save(Path(folder) / RESULT_ARTIFACT)
                    if options.experiment in ("mnist", "pooling"):
                        save_model(trial, Path(folder) / MODEL_ARTIFACT)
                    run.finish(result, int(result.steps[-1]), {}, Path(folder))


class OutputWithNotes(Output):
    """An output that keeps the text of the red note on each figure, by the figure's name."""

    def save_figure(self, figure: Figure, name: str, description: str, *stages: SweepResults) -> None:
        super().save_figure(figure, name, description, *stages)
        self.notes = {
            **getattr(self, "notes", {}),
            name: " ".join(text.get_text() for text in figure.texts if text.get_color() == "red"),
        }


def draw(
    store: Store, options: Any, folder: Path, module: Any, draw_options: DrawOptions
) -> tuple[list[SweepResults], dict[str, str]]:
    """Draw everything, and return the results of the stages and the notes on the figures."""
    stages = [load_results(s, store, fill="", allow_missing=True) for s in list_stages(options, store.read_trial)]
    output = OutputWithNotes(folder)
    module.draw(options, stages, output, draw_options)
    return stages, output.notes


SMALL: dict[str, Any] = {"dataset": "digits", "seeds": 3, "epochs": 2}
CASES: list[tuple[SweepOptions, Any, DrawOptions]] = [
    (Part3(**SMALL, architectures=("mlp_1", "cnn_3")), analysis.part3, DrawOptions()),
    (Part4(**SMALL, architectures=("mlp_1", "cnn_3")), analysis.part4, DrawOptions()),
    (Part5(**SMALL, schedule_epochs=3, milestones=(20, 40)), analysis.part5, Part5DrawOptions()),
    (Xor(seeds=3, epochs=3), analysis.xor, DrawOptions()),
    (Mnist(**SMALL), analysis.mnist, GalleryDrawOptions()),
    (Pooling(**SMALL, batch_sizes=(25, 50)), analysis.pooling, GalleryDrawOptions()),
    (
        Grid(**SMALL, architectures=("mlp_1", "cnn_3"), batch_sizes=(10, 50)),
        analysis.grid,
        GridDrawOptions(),
    ),
]
# Experiment → a function that selects the trials with one value of an axis; some tests leave out exactly these.
HAS_ONE_VALUE: dict[str, Callable[[Trial], bool]] = {
    "part3": lambda trial: trial.architecture == "cnn_3",
    "part4": lambda trial: trial.activation == "sigmoid" and trial.architecture == "cnn_3",
    "part5": lambda trial: trial.learning_rate == 0.001,
    "xor": lambda trial: trial.noise_sigma == 2,
    "mnist": lambda trial: trial.task == "even_odd",
    "pooling": lambda trial: trial.batch_size == 50,
    "grid": lambda trial: trial.batch_size == 50,
}


@pytest.mark.parametrize(("options", "module", "draw_options"), CASES, ids=[case[0].experiment for case in CASES])
@pytest.mark.slow
@pytest.mark.parametrize("gap", ["a seed", "a value"])
def test_an_analysis_draws_the_trials_that_are_not_missing(
    options: SweepOptions, module: Any, draw_options: DrawOptions, gap: str, store: Store, tmp_path: Path
) -> None:
    name = options.experiment
    leave_out = {"a seed": lambda trial: trial.seed == 1, "a value": HAS_ONE_VALUE[name]}[gap]
    record(store, options, leave_out)
    draw(store, options, tmp_path / "out", module, draw_options)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files >= {"curves.png" if name == "grid" else f"{name}.png", "table.md"}
    seeds = [0, 2] if gap == "a seed" else [0, 1, 2]
    check = EXPORTS.get(name)
    if check is not None:
        check(tmp_path / "out", seeds)


def read_export(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


def check_part4(folder: Path, seeds: list[int]) -> None:
    export = read_export(folder, "part4_mlp_1")
    assert export["sigmoid_grad_curve"] == [np.mean(seeds)] * 5
    assert export["relu_loss_curve"] == [np.mean(seeds)] * 5


def check_part5(folder: Path, seeds: list[int]) -> None:
    assert read_export(folder, "part5_cnn_3")["val_acc_curve_01"] == [ACCURACY + np.mean(seeds)] * 5
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["seeds"] for row in rows] == [str(len(seeds))] * 2
    assert rows[0]["epochs_to_60"] != "never"
    assert rows[0]["epochs_to_70"] == "never"


def check_xor(folder: Path, seeds: list[int]) -> None:
    assert {row["seed"] for row in read_export(folder, "xor")["seeds"]} == {46, *seeds}


def check_mnist(folder: Path, seeds: list[int]) -> None:
    trials = read_export(folder, "mnist")["trials"]
    assert {trial["seed"] for trial in trials} == set(seeds)
    assert all(trial["test_accuracy"] == [ACCURACY + trial["seed"]] * 2 for trial in trials)


def check_pooling(folder: Path, seeds: list[int]) -> None:
    export = read_export(folder, "pooling")
    assert export["parameters"] == {"a": 34538, "b": 34538, "c": 22058}
    assert {trial["seed"] for trial in export["trials"]} == set(seeds)


def check_grid(folder: Path, seeds: list[int]) -> None:
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["seeds"], float(row["test_mean"])) for row in rows} == {(str(len(seeds)), 50 + np.mean(seeds))}


EXPORTS: dict[str, Callable[[Path, list[int]], None]] = {
    "part4": check_part4,
    "part5": check_part5,
    "xor": check_xor,
    "mnist": check_mnist,
    "pooling": check_pooling,
    "grid": check_grid,
}


# Trials that diverged


DIVERGED: dict[str, Callable[[str], Callable[[Trial], bool]]] = {
    "a seed": lambda name: lambda trial: trial.seed == 1,
    "a value": lambda name: HAS_ONE_VALUE[name],
    "all": lambda name: lambda trial: True,
}


@pytest.mark.parametrize(
    ("options", "module", "draw_options"),
    [case for case in CASES if case[0].experiment != "xor"],
    ids=[case[0].experiment for case in CASES if case[0].experiment != "xor"],
)
@pytest.mark.slow
@pytest.mark.parametrize("which", DIVERGED)
def test_trials_that_diverged_are_shown_and_not_averaged(
    options: SweepOptions, module: Any, draw_options: DrawOptions, which: str, store: Store, tmp_path: Path
) -> None:
    name = options.experiment
    record(store, options, diverged=DIVERGED[which](name))
    stages, notes = draw(store, options, tmp_path, module, draw_options)
    left_out = {"schedule": sum(len(stage.diverged) for stage in stages[1:])}
    for figure, note in notes.items():
        n = left_out.get(figure, len(stages[0].diverged))
        assert f"{n} trial{'s' if n > 1 else ''} diverged, not in the means: " in note if n else note == ""
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    in_table = stages[1:] if name == "part5" else stages
    assert sum(int(row["diverged"]) for row in rows) == sum(len(stage.diverged) for stage in in_table)
    if which == "a seed" and name in ("part4", "part5", "grid"):
        EXPORTS[name](tmp_path, [0, 2])
    if which == "all":
        assert not {path.name for path in tmp_path.iterdir() if path.name.startswith(("misclassified", "weights"))}
        assert all(row.get("seeds", "0") == "0" for row in rows)
        assert "nan" not in (tmp_path / "table.md").read_text()


def test_part4_names_the_seeds_that_diverged(store: Store, tmp_path: Path) -> None:
    options = Part4(**SMALL, architectures=("mlp_1", "cnn_3"))
    bad = {("mlp_1", "relu", 0), ("mlp_1", "relu", 1), ("mlp_1", "sigmoid", 2)}
    record(store, options, diverged=lambda trial: (trial.architecture, trial.activation, trial.seed) in bad)
    draw(store, options, tmp_path, analysis.part4, DrawOptions())
    export = read_export(tmp_path, "part4_mlp_1")
    assert export["diverged_seeds"] == {"relu": [0, 1], "sigmoid": [2]}
    assert export["relu_loss_curve"] == [2] * 5
    assert export["sigmoid_grad_curve"] == [0.5] * 5
    assert "diverged_seeds" not in read_export(tmp_path, "part4_cnn_3")


def test_part5_names_the_seeds_that_diverged(store: Store, tmp_path: Path) -> None:
    options = Part5(**SMALL, schedule_epochs=3, milestones=(20, 40))
    record(store, options, diverged=lambda trial: trial.learning_rate == 0.1 and trial.milestones == ())
    draw(store, options, tmp_path, analysis.part5, Part5DrawOptions())
    export = read_export(tmp_path, "part5_cnn_3")
    assert export["diverged_seeds"] == {"1": [0, 1, 2]}
    assert export["loss_curve_1"] == export["val_acc_curve_1"] == []
    assert export["loss_curve_01"] == [1] * 5


def test_part5_names_the_trials_of_part_3_that_diverged(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Part5(**SMALL, schedule_epochs=3, milestones=(20,), tracking_uri=store.uri)
    record(store, options)
    draw_options = Part5DrawOptions(adam_epochs=2)
    adam = analysis.part5.make_part3_options(options, draw_options)
    record(store, adam, diverged=lambda trial: trial.seed == 2)
    draw(store, options, tmp_path, analysis.part5, draw_options)
    assert "Of part 3, 1 trial diverged, not in the means: cnn_3 · seed 2" in capsys.readouterr().out
    with (tmp_path / "table.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    assert (row["seeds"], row["diverged"], row["test_accuracy"][:5]) == ("2", "1", "50.50")


def test_a_diverging_loss_does_not_decide_the_range_of_the_grids_panels(store: Store) -> None:
    options = Grid(**SMALL, architectures=("mlp_1",), learning_rates=(0.1, 0.01))
    record(store, options, diverged=lambda trial: trial.learning_rate == 0.01)
    data = load_results(options.sweep(), store, fill="").data
    figure, _ = analysis.grid.draw_curves(data, GridDrawOptions(quantity="train_loss"), "digits")
    assert all(axes.get_ylim()[1] < 10 for axes in figure.axes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [case for case in CASES if case[0].experiment in ("mnist", "pooling")], ids=["mnist", "pooling"]
)
def test_a_diverged_trial_is_exported_up_to_its_last_record(
    case: tuple[SweepOptions, Any, DrawOptions], store: Store, tmp_path: Path
) -> None:
    options, module, draw_options = case
    record(store, options, diverged=lambda trial: trial.seed == 2)  # it would be the best one
    draw(store, options, tmp_path, module, draw_options)
    trials = read_export(tmp_path, options.experiment)["trials"]
    assert len(trials) == len(options.sweep().trials())
    for trial in trials:
        assert trial["test_accuracy"] == [ACCURACY + trial["seed"]] * (1 if trial["seed"] == 2 else 2)
        assert ("diverged" in trial) == (trial["seed"] == 2)
    assert (tmp_path / "table.md").read_text().count("50.50 (") == len(trials) / 3


# Trials that are stuck at chance


@pytest.mark.parametrize(
    ("options", "module", "draw_options"),
    [case for case in CASES if case[0].experiment != "xor"],
    ids=[case[0].experiment for case in CASES if case[0].experiment != "xor"],
)
@pytest.mark.slow
def test_trials_that_are_stuck_are_counted_and_averaged(
    options: SweepOptions, module: Any, draw_options: DrawOptions, store: Store, tmp_path: Path
) -> None:
    name = options.experiment
    record(store, options, stuck=lambda trial: trial.seed == 1)
    stages, notes = draw(store, options, tmp_path, module, draw_options)
    for figure, note in notes.items():
        n = sum(len(stage.stuck) for stage in stages[1:]) if figure == "schedule" else len(stages[0].stuck)
        noun, verb = ("trial", "is") if n == 1 else ("trials", "are")
        assert f"{n} {noun} {verb} stuck at chance and {verb} in the means: " in note.replace("\n", " ")
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    in_table = stages[1:] if name == "part5" else stages
    assert sum(int(row["stuck"]) for row in rows) == sum(len(stage.stuck) for stage in in_table)
    for row in rows:
        shares = {heading: float(value) for heading, value in row.items() if heading.endswith("learnt_share")}
        means = {heading: float(value) for heading, value in row.items() if heading.endswith("learnt_mean")}
        assert len(shares) == {"part4": 2, "pooling": 2}.get(name, 1)  # for both activations, for both batch sizes
        assert list(shares.values()) == pytest.approx([2 / 3] * len(shares))
        assert set(means.values()) == {51}  # the mean of seeds 0 and 2
        overall = [value for heading, value in row.items() if heading in ("test_mean", "test_accuracy", "test")]
        assert all(value.startswith(str(np.mean([50, 10, 52]))[:5]) for value in overall)  # the mean of all seeds


@pytest.mark.parametrize(
    ("options", "module"),
    [
        (Part3(**SMALL, architectures=("mlp_1", "cnn_3")), analysis.part3),
        (Part4(**SMALL, architectures=("mlp_1", "cnn_3")), analysis.part4),
    ],
)
def test_an_export_names_stuck_seeds_only_where_there_are_any(
    options: SweepOptions, module: Any, store: Store, tmp_path: Path
) -> None:
    def stick(trial: Trial) -> bool:
        return trial.architecture == "cnn_3" and trial.activation == "relu" and trial.seed == 1

    record(store, options, stuck=stick)
    draw(store, options, tmp_path, module, DrawOptions())
    name = options.experiment
    stuck, learnt = (read_export(tmp_path, f"{name}_{architecture}") for architecture in ("cnn_3", "mlp_1"))
    assert stuck["stuck_seeds"] == {"part3": [1], "part4": {"relu": [1]}}[name]
    assert [*stuck] == [*learnt, "stuck_seeds"]


def test_part5_names_stuck_seeds_and_those_of_part_3(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Part5(**SMALL, schedule_epochs=3, milestones=(20,), tracking_uri=store.uri)
    draw_options = Part5DrawOptions(adam_epochs=2)
    record(store, options, stuck=lambda trial: trial.learning_rate == 0.01 and trial.seed == 0)
    record(store, analysis.part5.make_part3_options(options, draw_options), stuck=lambda trial: trial.seed == 2)
    draw(store, options, tmp_path, analysis.part5, draw_options)
    assert "Of part 3, 1 trial is stuck at chance and is in the means: cnn_3 · seed 2\n" in capsys.readouterr().out
    assert read_export(tmp_path, "part5_cnn_3")["stuck_seeds"] == {"01": [0]}
    with (tmp_path / "table.csv").open() as file:
        scheduled, adam = csv.DictReader(file)
    assert (scheduled["stuck"], adam["stuck"]) == ("0", "1")
    assert (float(scheduled["learnt_share"]), float(adam["learnt_mean"])) == (1, 50.5)


def test_accuracies_by_epoch_say_which_trial_is_stuck(store: Store, tmp_path: Path) -> None:
    options = Mnist(**SMALL, learning_rates=(0.1,))
    record(store, options, stuck=lambda trial: trial.task is None and trial.seed == 0)
    draw(store, options, tmp_path, analysis.mnist, GalleryDrawOptions())
    trials = read_export(tmp_path, "mnist")["trials"]
    assert [(trial["task"], trial["seed"]) for trial in trials if "stuck" in trial] == [("digits", 0)]
    assert all(trial.get("stuck", True) is True for trial in trials)

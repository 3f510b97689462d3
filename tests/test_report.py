"""The report: which sweeps it holds, what its page is like, and what is kept on the parent runs of sweeps."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from conftest import FakeRayProcess
from hypothesis import given
from hypothesis import strategies as st
from test_analyses import record

import analysis.part3
import analysis.report
from analysis import style
from analysis.answers import Answer, Estimate
from analysis.experiments import EXPERIMENTS
from analysis.output import DrawOptions, Output
from analysis.output import main as analysis_main
from analysis.page import list_answers, render_pages
from analysis.report import StoredSweeps, parse_command
from analysis.sections import Section, choose_options, make_section
from analysis.snapshot import Snapshot
from sweeps.cli import run_to_exit_status
from sweeps.driver.options import RunOptions
from sweeps.driver.run import make_parent_tags, run
from sweeps.experiment import MAIN_ARCHITECTURES, SweepOptions
from sweeps.kept_options import format_kept_options, parse_kept_options
from sweeps.part3 import Part3
from sweeps.xor import Xor
from trainables.errors import BadInputError
from trainables.persistence.connection import LAST_RUN_TAG, OPTIONS_TAG
from trainables.persistence.parent_run import find_parent_run
from trainables.persistence.store import Store

ROOT = Path(__file__).resolve().parent.parent
SMALL = Part3(dataset="digits", seeds=2, epochs=2, architectures=("mlp_1", "cnn_3"))


# The options that a parent run keeps


def tuples(values: st.SearchStrategy[Any], least: int = 1) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, min_size=least, max_size=3, unique=True).map(tuple)


SETTINGS: Mapping[str, st.SearchStrategy[Any]] = {
    "seeds": st.integers(1, 30),
    "quick": st.booleans(),
    "dataset": st.sampled_from(("cifar10", "fashion_mnist", "mnist", "digits")),
    "epochs": st.integers(1, 1000),
    "schedule_epochs": st.integers(1, 1000),
    "batch_size": st.integers(1, 1000),
    "batch_sizes": tuples(st.integers(1, 1000)),
    "learning_rate": st.floats(1e-9, 10),
    "learning_rates": tuples(st.floats(1e-9, 10)),
    "even_odd_rate": st.floats(1e-9, 10),
    "sigmas": tuples(st.floats(0, 10)),
    "architecture": st.sampled_from(MAIN_ARCHITECTURES[1:]),
    "architectures": tuples(st.sampled_from(MAIN_ARCHITECTURES)),
    "activations": tuples(st.sampled_from(("relu", "sigmoid", "leaky_relu", "tanh"))),
    "poolings": tuples(st.sampled_from(("max", "avg"))),
    "optimizer": st.sampled_from(("adam", "sgd")),
    "milestones": st.lists(st.integers(1, 9999), max_size=2, unique=True).map(lambda steps: tuple(sorted(steps))),
}

OF_SEARCH: Mapping[str, st.SearchStrategy[Any]] = {
    **SETTINGS,
    "epochs": st.integers(3, 1000),
    "learning_rates": st.sampled_from((("0.0001:0.1",), ("0.01",), ("0.003", "0.1"))),
    "batch_sizes": st.sampled_from((("20:200",), ("50",), ("16", "64"))),
    "optimizers": tuples(st.sampled_from(("adam", "sgd"))),
    "sampler": st.sampled_from(("tpe", "random")),
    "budget": st.sampled_from(("9999", "30min", "2h")),
    "round_size": st.integers(3, 5),
    "halving": st.none() | st.just(3),
    "seed": st.integers(0, 99),
    "searches": st.integers(1, 3),
    "confirm_best": st.integers(1, 9),
    "confirm_seeds": st.integers(1, 99),
}


@given(data=st.data(), name=st.sampled_from(list(EXPERIMENTS)))
def test_the_options_of_every_experiment_are_kept(data: st.DataObject, name: str) -> None:
    kind = EXPERIMENTS[name].options_type
    settings = OF_SEARCH if name == "search" else SETTINGS
    options = kind(
        **{f.name: data.draw(settings[f.name]) for f in fields(kind) if f.name != "tracking_uri"},
        tracking_uri="postgresql://me:secret@host/db",
    )
    text = format_kept_options(options)
    assert "secret" not in text
    assert {*json.loads(text)} == {f.name for f in fields(kind)} - {"tracking_uri"}  # whatever the defaults become
    assert parse_kept_options(kind, text, "http://other") == replace(options, tracking_uri="http://other")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "[]",
        '{"seeds": 3',
        '{"seed": 3}',
        '{"seeds": "3"}',
        '{"seeds": true}',
        '{"seeds": 0}',
        '{"architectures": "cnn_3"}',
        '{"architectures": ["cnn_9"]}',
        '{"architectures": [["cnn_3"]]}',
        '{"tracking_uri": "http://elsewhere"}',
    ],
)
def test_options_that_cannot_be_used_end_with_a_sentence(text: str) -> None:
    with pytest.raises(BadInputError, match=r"of the last part3 sweep cannot be used .*; run the sweep again, or give"):
        parse_kept_options(Part3, text, "")


def get_parent_tags(store: Store, sweep: str) -> dict[str, str]:
    [parent] = store.client.search_runs(list(store.experiments), f"tags.sweep = '{sweep} · digits'")
    return dict(parent.data.tags)


@pytest.mark.usefixtures("train_nothing")
def test_a_sweep_keeps_its_options_also_where_nothing_is_missing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(FakeRayProcess, "folders", started := [])
    options = replace(SMALL, tracking_uri=store.uri)
    record(store, options)
    assert run(options, RunOptions(storage=tmp_path, dry_run=True)) == 0
    assert OPTIONS_TAG not in get_parent_tags(store, "part3")
    assert run(options, RunOptions(storage=tmp_path)) == 0
    assert started == []  # no Ray
    tags = get_parent_tags(store, "part3")
    assert parse_kept_options(Part3, tags[OPTIONS_TAG], store.uri) == options
    assert tags[LAST_RUN_TAG].endswith("+00:00")
    more = replace(options, seeds=3)
    assert run(more, RunOptions(storage=tmp_path)) == 130  # `train_nothing` leaves the third seed missing
    assert parse_kept_options(Part3, get_parent_tags(store, "part3")[OPTIONS_TAG], store.uri) == more

    def refuse(*_: Any) -> None:
        raise BadInputError("the store can only be read")

    monkeypatch.setattr(Store, "tag_parent", refuse)
    assert run(options, RunOptions(storage=tmp_path)) == 0
    assert "note: reports will not know of this command: the store can only be read" in capsys.readouterr().out


# Which sweeps a report holds


def keep(store: Store, options: SweepOptions, dataset: str, last_run: str) -> None:
    store.tag_parent(options.experiment, dataset, {**make_parent_tags(options), LAST_RUN_TAG: last_run})


def choose(store: Store, *names: str, quick: bool = False) -> list[SweepOptions]:
    return choose_options(names, Snapshot(store.uri), quick=quick)


def test_the_options_that_were_run_last_are_taken(store: Store) -> None:
    digits, fashion = (replace(SMALL, dataset=name, tracking_uri=store.uri) for name in ("digits", "fashion_mnist"))
    record(store, digits)
    record(store, fashion)
    keep(store, digits, "digits", "2026-01-02T00:00:00+00:00")
    keep(store, fashion, "fashion_mnist", "2026-01-01T00:00:00+00:00")
    assert choose(store) == choose(store, "part3") == [digits]
    keep(store, fashion, "fashion_mnist", "2026-01-03T00:00:00+00:00")
    assert choose(store) == [fashion]
    untrained = replace(fashion, learning_rate=0.5)
    keep(store, untrained, "fashion_mnist", "2026-01-04T00:00:00+00:00")
    assert choose(store) == [digits]


def test_stores_of_earlier_versions_give_the_defaults_that_fit_best(store: Store) -> None:
    quick = Xor(**Xor.quick_defaults, quick=True, tracking_uri=store.uri, epochs=2000)
    short = [trial for trial in quick.sweep().trials() if trial.seed in (46, 0)]
    experiment_id, parent = store.ensure_parent("xor", "xor")
    for trial in short:  # two of the 6 seeds of --quick, and of the 21 of the defaults
        store.open_run(trial, "x", experiment_id, parent, {}, run_id=None)
    with pytest.raises(BadInputError, match="has no finished trial of any sweep; train some with"):
        choose(store)
    for runs in store.find_runs().values():
        store.end_run(runs[0].run_id, "FINISHED")
    assert choose(store) == [quick]
    assert choose(store, "xor", quick=True) == [quick]
    with pytest.raises(BadInputError, match="no finished trial of a part4 sweep with the defaults of --quick; train"):
        choose(store, "xor", "part4", quick=True)
    with pytest.raises(BadInputError, match="no finished trial of a part4 sweep that was run; train"):
        choose(store, "part4")


def test_options_that_cannot_be_read_are_named(store: Store) -> None:
    record(store, SMALL)
    store.tag_parent("part3", "digits", {OPTIONS_TAG: '{"seeds": ', LAST_RUN_TAG: "2026-01-01T00:00:00+00:00"})
    with pytest.raises(BadInputError, match="options that the tracking store keeps of the last part3 sweep"):
        choose(store)


def test_every_experiment_can_be_reported(tmp_path: Path) -> None:
    sweeps, analyses = ({path.stem for path in (ROOT / folder).glob("*.py")} for folder in ("sweeps", "analysis"))
    assert set(EXPERIMENTS) == sweeps & analyses - {"__init__"}
    for experiment in EXPERIMENTS.values():
        kinds = get_type_hints(experiment.load_draw())
        assert kinds["options"] is experiment.options_type
        draw_options = experiment.make_draw_options(tmp_path)
        assert kinds["draw_options"] is type(draw_options)
        assert draw_options.allow_missing
        assert getattr(draw_options, "data_root", tmp_path) == tmp_path


# The command line


@pytest.mark.parametrize(
    ("words", "kind", "names"),
    [
        ([], StoredSweeps, ()),
        (["part3"], StoredSweeps, ("part3",)),
        (["part3", "mnist", "--quick"], StoredSweeps, ("part3", "mnist")),
        (["--quick", "xor"], StoredSweeps, ("xor",)),
        (["part3", "--out", "x", "--quick"], StoredSweeps, ("part3",)),
        (["part3", "--seeds", "4"], Part3, ("part3",)),
        (["part3", "--learning_rate=0.5", "--quick"], Part3, ("part3",)),
    ],
)
def test_a_single_name_takes_the_options_of_its_sweep(
    words: list[str], kind: type, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["report.py", *words])
    chosen, options = parse_command(words)
    assert type(chosen) is kind
    assert options.names == names
    assert chosen.quick == ("--quick" in words)


def run_report(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["report.py", *words])
    return run_to_exit_status(analysis.report.main)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["part9"], "unknown sweep 'part9'; choose from part3, part4"),
        (["part1", "part3"], "unknown sweep 'part1'; choose from part3, part4"),
        (["part3", "part3"], "a sweep is named twice in part3 part3; name each once"),
        ([], "there are no trials yet in"),
        (["--tracking-uri", "mlruns"], "use sqlite:///FILE or http://HOST:PORT"),
        (["part3", "--seeds", "0"], "there are no trials yet in"),
    ],
)
def test_bad_input_ends_with_one_sentence(
    words: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert run_report(monkeypatch, *words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert sentence in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_options_without_a_finished_trial_end_with_one_sentence(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    assert run_report(monkeypatch, "part3", "--seeds", "0") == 2
    assert "--seeds is 0" in capsys.readouterr().err
    assert run_report(monkeypatch, "part3", "--seeds", "1", "--dataset", "digits") == 2
    assert "5 of 5 trials are not finished" in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--help",), ("part3", "--help")])
def test_help_imports_nothing_slow(words: tuple[str, ...]) -> None:
    code = f"""
import runpy, sys
sys.argv = ["report.py", *{words!r}]
try:
    runpy.run_path({str(ROOT / "analysis" / "report.py")!r}, run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print([name for name in ("mlflow", "torch", "ray", "scipy", "xarray") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--tracking-uri" in done.stdout
    assert ("--learning-rate" in done.stdout) == ("part3" in words)


# The page


class Page(HTMLParser):
    """The elements of a page, and the order of its headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def find(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.fixture
def section(store: Store, tmp_path: Path, draw_little: None) -> Section:
    """Return a section of small sweeps, one trial of which is missing and one has diverged."""
    options = replace(SMALL, tracking_uri=store.uri)
    record(
        store,
        options,
        leave_out=lambda trial: (trial.architecture, trial.seed) == ("cnn_3", 1),
        diverged=lambda trial: (trial.architecture, trial.seed) == ("mlp_1", 1),
    )
    return make_section(options, Snapshot(store.uri), tmp_path / "out", tmp_path)


@pytest.fixture
def draw_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let part 3 draw two small figures, with what a page could get wrong: equal ids, signs, images."""

    def draw(options: Part3, stages: Any, output: Output, draw_options: DrawOptions) -> None:
        assert draw_options.allow_missing
        for name in ("one", "two"):
            figure = style.make_figure(3, 4)
            axes, image = figure.subplots(1, 2)
            axes.plot([0, 1], [0, 1], marker="o")
            axes.set_title("a < b & σ")
            image.imshow([[0, 1], [1, 0]])
            output.save_figure(figure, name, f'A figure of "{name}", where a < b.', *stages)
        output.save_table([{"architecture": "<b>mlp_1</b>", "test_mean": 50.5, "seeds": 2}], "table", "A & B.")
        estimates = (
            Estimate(name="cnn_3 minus mlp_1", value=1.25, low=-0.5, high=3.0, n=2, unit="percentage points"),
            Estimate(name="mlp_1", value=50.0, low=float("nan"), high=float("nan"), n=1, unit="%"),
        )
        output.answers.append(
            Answer(question="Which is <best>?", sentence="cnn_3 & mlp_1 cannot be told apart.", estimates=estimates)
        )
        output.answers.append(
            Answer(question="How large?", sentence="Unknown.", estimates=estimates[:1], smallest_difference=2.0)
        )

    monkeypatch.setattr("analysis.part3.draw", draw)


def render(section: Section) -> dict[str, str]:
    return render_pages([section], "python analysis/report.py part3", datetime(2026, 11, 26, tzinfo=UTC))


def test_the_page_is_self_contained_and_small(section: Section) -> None:
    html = render(section)["report.html"]
    page = Page(html)
    assert page.find("script", "link", "iframe", "object", "embed", "base") == []
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    links = [value for _, a in page.elements for name in ("src", "href", "xlink:href") if (value := a.get(name))]
    assert len(links) > 10
    assert [link for link in links if not link.startswith(("#", "data:image/png;base64,"))] == []
    assert re.findall(r"@import|url\((?!#)", html) == []
    assert len(html) < 100_000


def test_the_page_can_be_read_by_everybody(section: Section) -> None:
    page = Page(render(section)["report.html"])
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert [name for name, times in Counter(ids).items() if times > 1] == []
    referred = [str(a[name]) for _, a in page.elements for name in ("aria-labelledby", "aria-describedby") if name in a]
    assert {name for names in referred for name in names.split()} <= set(ids)
    assert {str(a["href"])[1:] for a in page.find("a")} <= set(ids)
    assert page.find("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert {attributes.get("scope") for attributes in page.find("th")} == {"col", "row"}
    pictures = page.find("svg")
    assert len(pictures) == 2
    assert all(picture["role"] == "img" and picture["aria-labelledby"] for picture in pictures)
    assert len([tag for tag, _ in page.elements if tag == "desc"]) == 2


def test_the_report_tells_what_it_rests_on(section: Section, tmp_path: Path) -> None:
    html, markdown = render(section)["report.html"], render(section)["report.md"]
    for text in (html, markdown):
        assert "3 of 4 trials are finished." in text
        assert "Missing: 1 (cnn_3 · seed 1)." in text
        assert "number: 1 (mlp_1 · seed 1)." in text
        assert "python sweeps/part3.py --seeds 2 --dataset digits --epochs 2 --architectures mlp_1 cnn_3" in text
        assert "python analysis/part3.py --seeds 2" in text
        assert "--allow-missing" in text
        assert "digits (checksum " in text
        assert "−0.50 – 3.00" in text
        assert "this number of seeds could have shown is 2 percentage points." in text
        assert str(tmp_path) not in text
        assert "sqlite" not in text
    assert "Which is &lt;best&gt;?" in html
    assert "cnn_3 &amp; mlp_1 cannot be told apart." in html
    assert "cnn_3 & mlp_1 cannot be told apart." in markdown
    for path in re.findall(r"!\[.*\]\((.*)\)", markdown):
        assert (tmp_path / "out" / path).stat().st_size > 1000
    assert "| <b>mlp_1</b> | 50.50 | 2 |" in markdown


def test_a_problem_is_told_without_naming_files(section: Section, tmp_path: Path) -> None:
    problem = f"{tmp_path}/data cannot be read"
    text = render(replace(section, problem=problem, ended_early="No switch."))["report.html"]
    assert "No switch." in text
    assert "Not everything could be read and drawn" in text
    assert str(tmp_path) not in text


def test_answers_are_written_with_their_estimates(section: Section) -> None:
    first, second = list_answers([section])
    assert first["experiment"] == "part3"
    assert list(first["estimates"][0]) == ["name", "value", "low", "high", "n", "unit"]
    assert first["smallest_difference"] is None
    assert second["smallest_difference"] == 2.0


@pytest.mark.usefixtures("draw_little")
def test_a_report_is_written_and_put_on_the_parent_run(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    record(store, SMALL)
    keep(store, SMALL, "digits", "2026-01-01T00:00:00+00:00")
    before = find_parent_run(store.client, store.ensure_parent("part3", "digits")[0], "part3 · digits")
    assert run_report(monkeypatch) == 0
    folder = tmp_path / "figures" / "report"
    assert {path.name for path in folder.iterdir()} == {"report.html", "report.md", "answers.json", "part3"}
    [first, _] = json.loads((folder / "answers.json").read_text())["answers"]
    assert first["question"] == "Which is <best>?"
    assert first["estimates"][1]["low"] is None
    after = find_parent_run(store.client, before.info.experiment_id, "part3 · digits")
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")
    kept = tmp_path / "mlartifacts" / "part3" / after.info.run_id / "artifacts" / "report"
    assert (kept / "report.html").read_text() == (folder / "report.html").read_text()
    assert (kept / "one.png").exists()
    assert store.find_runs().keys() == {trial.id for trial in SMALL.sweep().trials()}
    (kept / "report.html").unlink()
    (kept / "report.html").mkdir()  # a place that cannot be written, even for root
    capsys.readouterr()
    assert run_report(monkeypatch, "part3") == 0
    assert "The files are not in MLflow" in capsys.readouterr().out


@pytest.mark.usefixtures("draw_little")
def test_an_analysis_puts_its_figures_on_the_parent_run(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record(store, SMALL)
    words = ["--seeds", "2", "--dataset", "digits", "--epochs", "2", "--architectures", "mlp_1", "cnn_3"]
    monkeypatch.setattr(sys, "argv", ["part3.py", *words, "--allow-missing", "--tracking-uri", store.uri])
    with pytest.raises(SystemExit, match="0"):
        analysis_main(Part3, analysis.part3.draw, "Part 3.")
    _, run_id = store.ensure_parent("part3", "digits")
    kept = tmp_path / "mlartifacts" / "part3" / run_id / "artifacts" / "report"
    assert {path.name for path in kept.iterdir()} >= {"one.png", "one.pdf", "table.csv"}


def test_what_cannot_be_drawn_holds_the_rest_not_back(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    record(store, SMALL)
    keep(store, SMALL, "digits", "2026-01-01T00:00:00+00:00")

    def draw(*_: Any) -> None:
        raise BadInputError("the data set is not here")

    monkeypatch.setattr("analysis.part3.draw", draw)
    assert run_report(monkeypatch) == 1
    assert "part3: the data set is not here" in capsys.readouterr().out
    text = (tmp_path / "figures" / "report" / "report.html").read_text()
    assert "this command says why: python analysis/part3.py --seeds 2" in text

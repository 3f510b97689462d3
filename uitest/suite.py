"""Checks in headless Chromium what real sweeps show in MLflow's UI: links, groups, charts, descriptions, reports.

It runs quick sweeps with Ray into a sqlite store, serves it with `analysis/ui.py`, and opens the pages that a person
would open. It does the same with a server on PostgreSQL, as on a cluster, where PostgreSQL is there. Its pictures are
there to be looked at.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import tyro

from analysis.ui import make_link
from cluster.suite import check, step
from reporttest.suite import EXIT_SKIPPED, find_missing_tool, install_tools
from sweeps import mlflow_ui
from sweeps.cli import run_to_exit_status
from sweeps.experiment import MAIN_ARCHITECTURES
from trainables.errors import UserError
from trainables.persistence.store import Store
from trainables.sources import DEBIAN_FASHION_MNIST
from uitest.lab import ROOT, Browser, Lab, Seen, finish

QUICK = "sweeps/part3.py --quick --seeds 2"
POOLING = "sweeps/pooling.py --quick --batch-sizes 25 50"
POSTGRES_FOLDER = Path("/usr/lib/postgresql")  # Debian's folder, with a subfolder for each version
SLOW_STEP_SECONDS = 0.04  # of a sweep that lasts long enough to be watched, however fast the machine is


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the test."""

    out: Path = ROOT / "build" / "uitest"
    """Folder for the pictures."""


def shows_curves(groups: Collection[str], runs: int, first: str) -> Callable[[Seen], bool]:
    """Return a function that says whether a page shows one line for each group in every chart, and all runs below.

    Args:
        groups: The groups' names.
        runs: The number of runs.
        first: The metric of the first chart.
    """

    def ready(seen: Seen) -> bool:
        *curves, bars = seen["charts"] or [None]
        return (
            bool(curves)
            and curves[0]["title"] == first
            and all(len(chart["lines"]) == len(groups) <= chart["drawn"] for chart in curves)
            and bars["bars"] == len(groups)
            and all(f"Group: {group}\n" in seen["text"] for group in groups)
            and f"{runs} matching runs" in seen["text"]
            and "Unassigned" not in seen["text"]  # what belongs to no group, such as a parent run
        )

    return ready


def has_table(seen: Seen, axis: str, rows: Collection[str]) -> bool:
    """Return whether a description has the table of results of a sweep."""
    return any(table[0][0] == axis and {row[0] for row in table[1:]} == {*rows} for table in seen["tables"])


def watch_progress(lab: Lab, browser: Browser, address: str) -> str:
    """Run the slow sweep, and return what its description says of its progress, which must move, until it has ended."""
    said: list[str] = []
    command = f"{QUICK} --learning-rate 0.001 --pack 2 --max-concurrent 2"
    slowly = {"PYTHONPATH": f"{ROOT / 'chaos' / 'inject'}:{ROOT}", "CHAOS_STEP_SECONDS": str(SLOW_STEP_SECONDS)}
    with lab.start(command, **slowly) as process:
        while process.poll() is None and len(said) < 2:
            seen = browser.open("progress", address, lambda seen: "Finished: 10 trials" in seen["text"], unfold=True)
            found = re.search(r"Training: (\d+) of 10 trials finished", seen["text"])
            if found and found[0] not in said:
                said.append(found[0])
            time.sleep(1)
        finish(process, command)
    counts = [int(text.split()[1]) for text in said]
    check(len(counts) > 1 and counts == sorted(counts), f"the progress did not move: {said}")
    seen = browser.open("two-rates", address, lambda seen: seen["text"].count("Finished: 10 trials") == 2, unfold=True)
    check("Training: " not in seen["text"], "the description says that an ended sweep trains")
    return "; ".join(said)


def check_description(browser: Browser, address: str) -> None:
    """Check the description of part 3 with two learning rates, and open the links in it."""
    seen = browser.open("description", address, lambda seen: has_table(seen, "architecture", MAIN_ARCHITECTURES))
    check(len(seen["tables"]) == 2, f"the description has {len(seen['tables'])} tables, not one for each rate")
    check("generalises best" in seen["text"], "the description lacks the question")
    server = address.partition("#")[0]
    paths = [path for text, path in seen["links"] if text == "Curves by architecture"]
    check(len(paths) == 2, f"the description links to {paths}, not to the curves of each rate")
    for rate, path in zip(("0.001", "0.01"), paths, strict=True):
        found = browser.open(f"rate-{rate}", server + path, shows_curves(MAIN_ARCHITECTURES, 10, "val_accuracy"))
        check(f"learning_rate+%3D+%27{rate}%27" in found["url"], f"the view of rate {rate} is of {found['url']}")
    [*_, files] = [path for text, path in seen["links"] if text.startswith("Tables")]
    browser.open("tables", server + files, lambda seen: "tables" in seen["text"].splitlines())


def check_run(lab: Lab, browser: Browser, server: str) -> None:
    """Check the page of a trial's run."""
    experiment, _ = find_ids(lab)
    [run, *_] = Store(lab.uri).client.search_runs([experiment], "params.architecture = 'cnn_3'")
    path = mlflow_ui.make_run_path(experiment, run.info.run_id, "model-metrics")

    def ready(seen: Seen) -> bool:
        lines = {chart["title"]: len(chart["lines"]) for chart in seen["charts"]}
        return all(lines.get(name) == 1 for name in ("val_accuracy", "train_loss", "train_accuracy"))

    browser.open("run", f"{server}/{path}", ready)


def find_ids(lab: Lab) -> tuple[str, str]:
    """Return the ids of the experiment and of the parent run of part 3 on the digits."""
    parent = lab.find_parent("part3", "digits")
    return parent.experiment_id, parent.run_id


def check_report(lab: Lab, browser: Browser, server: str) -> None:
    """Check that a report of part 3 is shown on the parent run of its sweep."""
    lab.run("analysis/report.py part3 --quick --seeds 2")
    folder, page = (
        f"{server}/{mlflow_ui.make_run_path(*find_ids(lab), f'artifacts/{place}')}"
        for place in ("report", "report/report.html")
    )
    browser.open("files", folder, lambda seen: "report.html" in seen["text"] and "Evaluation runs" not in seen["text"])
    heading = "Which architecture generalises best"
    browser.open("report", page, lambda seen: any(heading in text for text in seen["frames"]))


def run_more_sweeps(lab: Lab) -> None:
    """Run two further sweeps at the same time, one of them on another data set where there is one."""
    second = "part3.py --dataset fashion_mnist --architectures mlp_1 mlp_2 --seeds 1 --epochs 1"
    commands = [POOLING, f"sweeps/{second}" if DEBIAN_FASHION_MNIST.is_dir() else "sweeps/xor.py --quick --seeds 1"]
    with ExitStack() as stack:
        for number, command in enumerate(commands):
            process = stack.enter_context(lab.start(command, SWEEPS_STORAGE=str(lab.folder / f"storage-{number}")))
            stack.callback(finish, process, command)


def check_other_axes(lab: Lab, browser: Browser, server: str) -> None:
    """Check the link of a sweep that varies other settings than the architecture."""
    groups = [f"model: {model}, batch_size: {size}" for model in "abc" for size in (25, 50)]
    link = make_link(lab.find_parent("pooling", "digits"), server)
    browser.open("pooling", link, shows_curves(groups, 6, "test_set_accuracy"))


def check_second_dataset(lab: Lab, browser: Browser, server: str) -> str:
    """Check the links of two data sets of one sweep, or of another sweep where there is no second data set."""
    if not DEBIAN_FASHION_MNIST.is_dir():
        link = make_link(lab.find_parent("xor", "xor"), server)
        browser.open("xor", link, shows_curves(("0.0", "0.5", "1.0", "2.0"), 8, "train_loss"))
        return "XOR, as the package dataset-fashion-mnist is not here"
    link = make_link(lab.find_parent("part3", "fashion_mnist"), server)
    seen = browser.open("fashion", link, shows_curves(("mlp_1", "mlp_2"), 2, "val_accuracy"), unfold=True)
    check(len(seen["tables"]) == 3, f"the description has {len(seen['tables'])} tables, not one for each selection")
    link = make_link(lab.find_parent("part3", "digits"), server)
    browser.open("digits", link, shows_curves(MAIN_ARCHITECTURES, 10, "val_accuracy"))
    return "Fashion-MNIST"


def check_server(folder: Path, browser: Browser) -> str:
    """Check a sweep that is recorded through a server on PostgreSQL, or return why this cannot be."""
    if not [*POSTGRES_FOLDER.glob("*/bin")]:
        return "skipped, as PostgreSQL is not here: on Debian, it is the package postgresql"
    if find_spec("psycopg2") is None:
        return "skipped, as the Python package psycopg2-binary is not here: make install-cluster"
    from benchmarks.load import SERVER_VARIABLES, Database
    from chaos.lab import Server

    folder.chmod(0o711)  # the database may belong to another user
    home = folder / "server"
    home.mkdir()
    database = Database(folder / "database")
    try:
        server = Server(home, database.create("sweeps"), 1, **SERVER_VARIABLES)
        try:
            server.start()
            lab = Lab(folder, server.uri)
            lab.run(f"{QUICK} --architectures mlp_1 cnn_3 --epochs 2")
            link = lab.run("analysis/ui.py part3").split("\n")[1].strip()
            seen = browser.open("server", link, shows_curves(("mlp_1", "cnn_3"), 4, "val_accuracy"), unfold=True)
            check(has_table(seen, "architecture", ("mlp_1", "cnn_3")), "the description has no table of results")
            files = mlflow_ui.make_run_path(*find_ids(lab), "artifacts/tables")
            browser.open("server-files", f"{server.uri}/{files}", lambda seen: ".csv" in seen["text"])
        finally:
            server.kill()
    finally:
        database.stop()
    return ""


def answers(address: str) -> bool:
    """Return whether a server answers."""
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except OSError:
        return False
    return True


def run_steps(folder: Path, browser: Browser) -> None:
    """Do what a person would do with sweeps and their UI, one step after the other."""
    lab = Lab(folder, f"sqlite:///{folder}/mlflow.db")
    with step("a sweep of part 3 records into sqlite"):
        lab.run(QUICK)
    with ExitStack() as stack:
        link = stack.enter_context(lab.show())
        server = link.partition("/#")[0]
        with step("the link that analysis/ui.py prints opens groups, and charts with one line an architecture"):
            check(link == make_link(lab.find_parent("part3", "digits"), server), f"another link: {link}")
            browser.open("link", link, shows_curves(MAIN_ARCHITECTURES, 10, "val_accuracy"))
        with step("the description of a sweep that trains says how far it is") as remarks:
            remarks.append(watch_progress(lab, browser, link))
        with step("the description has our tables, and links to the curves of each learning rate"):
            check_description(browser, link)
        with step("a run's page draws its curves"):
            check_run(lab, browser, server)
        with step("a report is shown on the parent run of its sweep"):
            check_report(lab, browser, server)
        with step("two further sweeps record at the same time"):
            run_more_sweeps(lab)
        with step("a sweep over two other settings has a line for each pair of values"):
            check_other_axes(lab, browser, server)
        with step("another data set, or another sweep, has curves of its own") as remarks:
            remarks.append(check_second_dataset(lab, browser, server))
        with step("analysis/ui.py ends with SIGTERM, and its server with it"):
            stack.close()
            check(not answers(server), f"the server at {server} answers after its end")
    with step("the same through a server on PostgreSQL, as on a cluster") as remarks:
        remarks.extend(filter(None, [check_server(folder, browser)]))


def main(options: Options) -> int:
    """Run all steps until one fails; return the exit status: 77 if there is no browser or no Node."""
    if sentence := find_missing_tool():
        print(f"skipped: {sentence}")
        return EXIT_SKIPPED
    started = time.monotonic()
    install_tools()
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    browser = Browser(out)
    try:
        with tempfile.TemporaryDirectory(prefix="ui-test-") as folder:
            run_steps(Path(folder), browser)
    except (RuntimeError, OSError, UserError, subprocess.SubprocessError) as error:
        print(f"FAILED: {error}", flush=True)
        return 1
    finally:
        browser.close()
    print(f"passed: everything, in {time.monotonic() - started:.0f} s")
    print(f"Look at the pictures in {out}")
    return 0


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    sys.exit(run_to_exit_status(lambda: main(options)))

"""The import rule, the map in docs/architecture.md, and the form of docstrings, held against the tree."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from ray import cloudpickle

from sweeps.driver import launch
from trainables.worker.pack import WorkerSettings

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("trainables", "sweeps", "analysis")
FOLDERS = (*PACKAGES, "benchmarks", "chaos", "cluster", "docs", "gpucheck", "reporttest", "uitest")
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 50
SCRIPTS = {f"sweeps.{name}" for name in ("part3", "part4", "part5", "xor", "mnist", "pooling", "grid", "search")}
PURE = {
    *("sweeps.sweep", "sweeps.experiment", "sweeps.kept_options", "sweeps.mlflow_ui", "sweeps.stuck"),
    *("sweeps.space", "sweeps.sampling", "sweeps.rounds", "sweeps.journal", "sweeps.confirmation"),
    *("sweeps.intervals", "sweeps.bootstrap", "sweeps.comparisons", "sweeps.signs", "sweeps.power"),
}
# room → the rooms that its files may import
MAY_IMPORT = {
    "trainables": {"trainables"},
    "trainables.accelerated": {"trainables", "trainables.accelerated"},
    "trainables.persistence": {"trainables", "trainables.persistence"},
    "trainables.worker": {"trainables", "trainables.accelerated", "trainables.persistence", "trainables.worker"},
    "pure": {"pure", "trainables"},
    "scripts": {"pure", "cli", "trainables"},
    "cli": {"pure", "driver", "trainables"},
    "driver": {
        *("pure", "driver"),
        *("trainables", "trainables.accelerated", "trainables.persistence", "trainables.worker"),
    },
    "analysis": {"analysis", "pure", "scripts", "cli", "trainables", "trainables.persistence"},
}
# Such a docstring is a clause that does not stand alone.
CLAUSE = re.compile(r"(Of|What|How|Which|Where|Why|Whether|That|Those)\b")


def python_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in python_files(*PACKAGES)}


def imported_modules(path: Path) -> set[str]:
    """Return the modules of this project that a file imports anywhere, in functions and for types as well."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return {name for name in found if name.partition(".")[0] in PACKAGES}


def room(module: str) -> str:
    if module in SCRIPTS:
        return "scripts"
    if module in PURE:
        return "pure"
    package, _, rest = module.partition(".")
    if package == "sweeps":
        return {"driver": "driver", "cli": "cli"}[rest.partition(".")[0]]
    folder = f"{package}.{rest.partition('.')[0]}"
    return folder if (ROOT / folder.replace(".", "/")).is_dir() else package


def test_a_file_imports_what_its_room_may() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        for name in imported_modules(path)
        if module not in PACKAGES and room(name) not in MAY_IMPORT[room(module)]
    ]
    assert wrong == []


def test_no_file_imports_itself_through_others() -> None:
    graph = {module: imported_modules(path) for module, path in MODULES.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' → '.join(error.args[1])}")


def documented_nodes(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and text of every docstring, those of fields and constants included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for statement in node.body:
                match statement:
                    case ast.Expr(value=ast.Constant(value=str(text)), lineno=line):
                        yield line, text


def test_a_docstring_stands_alone() -> None:
    clauses = [
        f"{path}:{line}: {text}"
        for path in python_files(*FOLDERS)
        for line, text in documented_nodes(ast.parse(path.read_text()))
        if CLAUSE.match(text)
    ]
    assert clauses == []


def test_files_and_functions_are_short() -> None:
    long: list[str] = []
    for path in python_files(*PACKAGES):
        text = path.read_text()
        if len(text.splitlines()) > MAX_FILE_LINES:
            long.append(str(path))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                long += [f"{path}: {node.name}"] if lines > MAX_FUNCTION_LINES else []
    assert long == []


def test_text_files_have_an_encoding() -> None:
    """Without one, Python takes that of the user's locale."""
    wrong: list[str] = []
    for path in python_files(*PACKAGES):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                modes = [str(argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant)]
                text = node.func.attr in ("read_text", "write_text") or (
                    node.func.attr == "open" and not any("b" in mode for mode in modes) and modes != []
                )
                if text and "encoding" not in {keyword.arg for keyword in node.keywords}:
                    wrong.append(f"{path}:{node.lineno}")
    assert wrong == []


def test_matplotlib_is_imported_through_its_settings() -> None:
    """Scripts import these modules first, so that `analysis/__init__.py` sets matplotlib up before it is imported."""
    importing: set[str] = set()
    for path in python_files("analysis"):
        for node in ast.parse(path.read_text()).body:  # not those under TYPE_CHECKING
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            importing |= {path.name for name in names if name.partition(".")[0] == "matplotlib"}
    assert importing == {"__init__.py", "figures.py", "pictures.py", "style.py"}


def mapped_files() -> list[str]:
    """Return the files that the map in docs/architecture.md lists."""
    block = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]
    folders: list[str] = []
    found: list[str] = []
    for line in filter(str.strip, block.splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.split(r" {2,}", line.strip())[0].split(" ")
        folders = folders[:depth]
        if names[0].endswith("/"):
            folders.append(names[0])
        else:
            found += [f"{''.join(folders)}{name}" for name in names]
    return found


def test_the_map_lists_every_file_once() -> None:
    paths = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.*"))
    files = {str(path.relative_to(ROOT)) for path in paths if path.suffix in (".py", ".cpp", ".sh")}
    listed = mapped_files()
    assert len(listed) == len(set(listed))
    assert set(listed) == {name for name in files if not name.endswith("__init__.py")}


@pytest.mark.parametrize(
    ("module", "library", "variable", "value"),
    [
        ("sweeps.driver.jobs", "ray", "RAY_AUTH_MODE", "token"),
        ("sweeps.driver.launch", "ray", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1"),
        ("trainables.persistence.store", "mlflow", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
    ],
)
def test_settings_are_made_before_the_library_that_reads_them(
    module: str, library: str, variable: str, value: str
) -> None:
    code = f"""
import os, sys

class Watch:
    def find_spec(self, name, path, target=None):
        if name == {library!r}:
            print(os.environ.get({variable!r}), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Watch())
import {module}
"""
    environment = {name: text for name, text in os.environ.items() if name != variable}
    environment |= {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == value


def test_workers_need_no_other_package_than_trainables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray ships this package alone, so what Ray Tune pickles for a worker must not refer to another."""
    pickled: list[bytes] = []
    monkeypatch.setattr(launch.tune, "with_parameters", lambda trainable, **_: trainable)
    monkeypatch.setattr(launch.tune, "with_resources", lambda *words: pickled.append(cloudpickle.dumps(words)))
    monkeypatch.setattr(launch.tune, "Tuner", lambda *_, **__: None)
    settings = WorkerSettings(context=None, threads=1, checkpoint_seconds=60)  # type: ignore[arg-type]
    launch.make_tuner([], None, settings, 1, None)  # type: ignore[arg-type]
    (tmp_path / "trainables").symlink_to(ROOT / "trainables")
    code = """
import pickle, sys

from trainables.trial import Trial
from trainables.worker.pack import Pack

trainable, resources = pickle.loads(sys.stdin.buffer.read())
trial = Trial(dataset="digits", architecture="mlp_1", learning_rate=0.1, epochs=1, seed=0)
resources({"pack": Pack((trial,), ("x",), 0).to_json()})
print(sorted(name for name in sys.modules if name.partition(".")[0] in ("sweeps", "analysis")))
"""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, input=pickled[0], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.stdout.decode() == "[]\n", done.stderr.decode()

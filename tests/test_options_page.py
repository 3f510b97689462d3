"""The reference of options and environment variables, docs/options.md, held against the code."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tyro

from analysis.experiments import EXPERIMENTS
from analysis.part1 import Part1
from analysis.part2 import Part2
from analysis.report import parse_command
from analysis.ui import parse as parse_ui
from sweeps.cli import parse
from sweeps.driver.options import RunOptions

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "options.md").read_text()
RENEW = "docs/options.md is not what the code says; renew it with: python docs/make_options.py"
CheckHelp = Callable[[Callable[[], Any], Mapping[str, str]], None]


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_options", ROOT / "docs" / "make_options.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generator = load_generator()


def test_the_page_is_what_the_code_says_in_any_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "SWEEPS_STORAGE", "SWEEPS_DATA_ROOT", "HOME"):
        monkeypatch.setenv(name, "/of/this/machine")
    assert generator.make_page() == PAGE, RENEW


def test_defaults_come_from_the_variables_that_the_page_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for get_default, (variable, otherwise) in generator.FROM_ENVIRONMENT.items():
        monkeypatch.delenv(variable, raising=False)
        assert get_default() == otherwise
        monkeypatch.setenv(variable, "/elsewhere")
        assert str(get_default()) == "/elsewhere"


def test_every_script_is_on_the_page() -> None:
    paths = [path for folder in ("sweeps", "analysis") for path in (ROOT / folder).glob("*.py")]
    scripts = {f"{path.parent.name}/{path.name}" for path in paths if '__name__ == "__main__"' in path.read_text()}
    assert scripts == set(re.findall(r"^\| `(\w+/\w+\.py)`", PAGE, flags=re.MULTILINE))


def list_sections() -> dict[str, dict[str, str]]:
    """Return the page's heading → option → help text."""
    sections: dict[str, dict[str, str]] = {}
    for part in re.split(r"^##+ ", PAGE, flags=re.MULTILINE)[1:]:
        rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| `--")]
        sections[part.splitlines()[0]] = {row[0].strip("`"): row[-1] for row in rows}
    return sections


SECTIONS = list_sections()


def list_options_on_the_page(name: str, *headings: str) -> dict[str, str]:
    """Return option → help text: the options that select an experiment's trials, and those of further sections."""
    shared = [heading for heading in SECTIONS if heading.startswith("Of ") and name in re.findall(r"\w+", heading)]
    chosen = ["Of every experiment", *shared, name, *headings]
    found = {option: text for heading in chosen for option, text in SECTIONS[heading].items()}
    return {option: text for option, text in found.items() if text != generator.NOT_HERE}


@pytest.fixture
def check_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CheckHelp:
    """Return a function that checks that a script's `--help` has the options and the texts of the page, and no others.

    Its arguments are a function that parses the command line, and option → help text.
    """

    def check(parse_words: Callable[[], Any], on_the_page: Mapping[str, str]) -> None:
        monkeypatch.setattr(sys, "argv", ["script", "--help"])
        with pytest.raises(SystemExit):
            parse_words()
        lines = capsys.readouterr().out.splitlines()
        listed = [found[1] for line in lines if (found := re.match(r"\W{1,2}(--[a-z][a-z-]*)", line))]
        assert sorted(listed) == sorted(on_the_page)
        letters = re.sub(r"\W", "", "".join(lines))  # without the lines' ends and boxes
        for text in on_the_page.values():
            assert re.sub(r"\W", "", text) in letters

    return check


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_help_of_a_sweep_is_that_of_the_page(name: str, check_help: CheckHelp) -> None:
    kind = EXPERIMENTS[name].options_type
    on_the_page = list_options_on_the_page(name, "Options that say how a sweep runs")
    check_help(lambda: parse(kind, RunOptions, None, "run"), on_the_page)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_help_of_an_analysis_is_that_of_the_page(name: str, check_help: CheckHelp) -> None:
    kind, draw_kind = EXPERIMENTS[name].options_type, type(EXPERIMENTS[name].make_draw_options(Path("data")))
    own = [heading for heading in SECTIONS if heading.startswith("Drawing ") and name in heading.split()]
    on_the_page = list_options_on_the_page(name, "Options for drawing", *own)
    check_help(lambda: parse(kind, draw_kind, None, "draw"), on_the_page)


def test_help_of_the_report_is_that_of_the_page(check_help: CheckHelp) -> None:
    check_help(lambda: parse_command(sys.argv[1:]), SECTIONS["Options of the report"])


def test_help_of_the_ui_is_that_of_the_page(check_help: CheckHelp) -> None:
    check_help(parse_ui, SECTIONS["Options of the UI"])


@pytest.mark.parametrize("kind", [Part1, Part2])
def test_help_of_a_part_without_training_is_that_of_the_page(kind: type, check_help: CheckHelp) -> None:
    check_help(lambda: tyro.cli(kind), SECTIONS[kind.__name__.lower()])


def list_strings(tree: ast.Module) -> dict[str, set[str]]:
    """Return, for each name that is assigned or loops over something in a module, the strings that it may stand for."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.For(target=ast.Name(id=name), iter=value)
                | ast.comprehension(target=ast.Name(id=name), iter=value)
            ):
                texts = {part.value for part in ast.walk(value) if isinstance(part, ast.Constant)}
                others = found.get(value.id, set()) if isinstance(value, ast.Name) else set()
                found.setdefault(name, set()).update(others, (text for text in texts if isinstance(text, str)))
    return found


def find_uses(tree: ast.Module) -> Iterator[tuple[str, ast.expr, str]]:
    """Yield the uses of single variables of `os.environ`: the method, the expression for the name, and a value."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Attribute(attr="environ"), attr=method), args=[key, *values]):
                yield method, key, ast.unparse(values[0]).strip("'") if values else ""
            case ast.Subscript(value=ast.Attribute(attr="environ"), slice=key, ctx=context):
                yield "get" if isinstance(context, ast.Load) else "set", key, ""
            case ast.Compare(left=key, comparators=[ast.Attribute(attr="environ")]):
                yield "get", key, ""


def list_uses() -> Iterator[tuple[str, str, str]]:
    """Yield the uses of environment variables in the three packages: the method, the variable, and a value."""
    paths = [path for package in ("trainables", "sweeps", "analysis") for path in (ROOT / package).rglob("*.py")]
    trees = {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in paths}
    assert not any("getenv" in ast.unparse(tree) for tree in trees.values())  # it would not be found below
    strings = {name: list_strings(tree) for name, tree in trees.items()}
    constants = {name: texts for found in strings.values() for name, texts in found.items() if name.isupper()}
    for file, tree in trees.items():
        for method, key, value in find_uses(tree):
            match key:
                case ast.Constant(value=str(variable)):
                    yield method, variable, value
                case ast.Name(id=name) if (file, name) == ("trainables/persistence/failures.py", "name"):
                    yield method, "http_proxy, https_proxy, all_proxy", value  # it is put together there
                case ast.Name(id=name):
                    variables = strings[file].get(name) or constants[name]
                    yield from ((method, variable, value) for variable in variables if variable.isupper())
                case _:
                    assert method == "update", f"{file}: {ast.unparse(key)}"


def test_the_page_has_every_variable_that_the_packages_read_or_change() -> None:
    uses = list(list_uses())
    read = {variable for method, variable, _ in uses if method == "get"}
    defaults = {variable: value for method, variable, value in uses if method == "setdefault"}
    changed = {variable for method, variable, _ in uses if method in ("set", "pop")}
    assert {method for method, *_ in uses} <= {"get", "setdefault", "set", "pop"}
    assert read == set(generator.READ_VARIABLES)
    assert defaults == {name: value for name, (value, _) in generator.DEFAULT_VARIABLES.items()}
    assert changed - read - {*defaults} == set(generator.OVERRIDDEN_VARIABLES)

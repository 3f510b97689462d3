"""The fault injector patches only what exists, and refuses everything else."""

import importlib
import importlib.util
import operator
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

INJECT = Path(__file__).resolve().parent.parent / "chaos" / "inject"
VALUES = {
    "CHAOS_STEP_SECONDS": "0.1",
    "CHAOS_NO_TRAINING": "1",
    "CHAOS_GPU_MEMORY": "0.5",
    "CHAOS_PATIENCE": "5",
    "CHAOS_CLOCK_SECONDS": "3600",
}


def load_injector() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chaos_injector", INJECT / "sitecustomize.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


injector = load_injector()
ENVIRONMENTS = [{name: value} for name, value in VALUES.items()] + [{"CHAOS_DIE": place} for place in injector.PLACES]


def test_importing_the_injector_without_its_variables_has_no_effect() -> None:
    before = list(sys.meta_path)
    load_injector()
    assert sys.meta_path == before


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=str)
def test_all_that_is_patched_exists(environment: dict[str, str]) -> None:
    patches = injector.list_patches(environment)
    assert patches
    for patch in patches:
        patch.check_module()
        operator.attrgetter(patch.attribute)(importlib.import_module(patch.module))


def test_every_variable_is_tested() -> None:
    assert set(injector.VARIABLES) == {*VALUES, "CHAOS_DIE", "CHAOS_TOKEN"}
    assert set(re.findall(r"CHAOS_\w+", (INJECT / "sitecustomize.py").read_text())) - {"CHAOS_"} == set(
        injector.VARIABLES
    )


def test_an_unknown_module_is_refused() -> None:
    patch = injector.Patch("trainables.nowhere", "take_step", lambda old: old)
    with pytest.raises(injector.InjectionError, match=r"trainables\.nowhere\.take_step cannot be patched"):
        patch.check_module()


@pytest.mark.parametrize("attribute", ["nothing", "Trial.nothing", "Nothing.id"])
def test_an_unknown_attribute_is_refused(attribute: str) -> None:
    patch = injector.Patch("trainables.trial", attribute, lambda old: old)
    patch.check_module()
    with pytest.raises(injector.InjectionError, match=rf"trainables\.trial\.{attribute} cannot be patched"):
        patch.apply(importlib.import_module("trainables.trial"))


def test_a_patch_takes_effect_when_its_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "patched_by_chaos.py").write_text("LIMIT = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    patches = [injector.Patch("patched_by_chaos", "LIMIT", lambda old: old + 1)]
    monkeypatch.setattr(sys, "meta_path", [injector.PatchingFinder(patches), *sys.meta_path])
    assert importlib.import_module("patched_by_chaos").LIMIT == 2


@pytest.mark.parametrize("environment", [{"CHAOS_DIE": "nowhere"}, {"CHAOS_UNKNOWN": "1"}], ids=str)
def test_a_process_with_a_fault_that_does_not_exist_ends_at_once(environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", "print('it runs')"]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(INJECT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "chaos: " in done.stderr

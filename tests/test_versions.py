"""The bounds of pyproject.toml are those that `make test-oldest` and `make test-newest` have tested."""

from __future__ import annotations

from pathlib import Path

import pytest
import versions
from versions import find_differences, read_bounds, read_record


def test_the_bounds_are_those_that_were_tested() -> None:
    """`make test-oldest` and `make test-newest` record what passed; the record is never edited by hand."""
    record = read_record()
    assert "oldest" in record
    assert [difference for which in record for difference in find_differences(which, record[which])] == []


def test_constraints_are_inside_the_bounds() -> None:
    lines = (versions.ROOT / "constraints.txt").read_text().replace("_", "-").splitlines()
    pinned = dict(line.split("==") for line in lines)
    bounds = read_bounds()
    pinned["python"] = bounds["python"][0]
    assert find_differences("newest", {name: pinned[name] for name in bounds}) == []


@pytest.mark.parametrize(
    ("which", "name", "version", "fits"),
    [
        ("oldest", "a", "3.16.0", True),
        ("oldest", "a", "3.16", True),
        ("oldest", "a", "3.16.0+cpu", True),
        ("oldest", "a", "3.16.1", False),
        ("oldest", "a", "3.15", False),
        ("oldest", "python", "3.12", False),
        ("newest", "a", "3.16", True),
        ("newest", "a", "3.99.1", True),
        ("newest", "a", "3.15.9", False),
        ("newest", "a", "4.0.0", False),
        ("newest", "a", "4.0.0.post1", False),
        ("newest", "python", "3.10", False),
        ("newest", "python", "3.13", True),
        ("newest", "b", "1.0", False),
        ("oldest", "b", "1.0", False),
    ],
)
def test_a_version_that_was_not_tested_is_found(
    which: str, name: str, version: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "read_bounds", lambda: {"python": ("3.11", "4"), "a": ("3.16", "4")})
    assert (find_differences(which, {"python": "3.11", "a": "3.16", name: version}) == []) == fits
    assert find_differences(which, {"python": "3.11"}) == ["a was not tested"]


@pytest.mark.parametrize("requirement", ["a", "a>=1", "a<2", "a==1", "a>=1,<2,!=1.5", "a>=1,<2; os_name == 'nt'"])
def test_a_requirement_needs_both_bounds(requirement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "ROOT", tmp_path)

    def read(*requirements: str) -> dict[str, tuple[str, str]]:
        lines = f"dependencies = {[*requirements]}", '[project.optional-dependencies]\ntest = ["b[x]>=7.0,<8"]'
        (tmp_path / "pyproject.toml").write_text("\n".join(['[project]\nrequires-python = ">=3.11"', *lines]))
        return read_bounds()

    assert read("a>=1.5,<2") == {"python": ("3.11", "4"), "a": ("1.5", "2"), "b": ("7.0", "8")}
    with pytest.raises(ValueError, match="has no bounds of the form"):
        read(requirement)
    with pytest.raises(ValueError, match="b has different bounds in two places"):
        read("b>=6,<8")

"""Links between the pages: each names a file of this checkout, and a heading that the file has."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def read_page(path: Path) -> str:
    """Return the text of a page without its fenced blocks, in which # and brackets mean something else."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def list_anchors(path: Path) -> set[str]:
    """Return the names by which GitHub links to the headings of a page: `## A trial's id` is `a-trials-id`."""
    headings = re.findall(r"^#+ (.*)$", read_page(path), flags=re.MULTILINE)
    before: Counter[str] = Counter()
    anchors: set[str] = set()
    for heading in headings:
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        anchors.add(f"{name}-{before[name]}" if before[name] else name)
        before[name] += 1
    return anchors


def list_targets(path: Path) -> list[str]:
    """Return where the links and pictures of a page point to."""
    without_code = re.sub(r"`[^`]*`", "", read_page(path))
    return re.findall(r"\]\(([^)\s]+)\)", without_code)


def find_fault(page: Path, target: str) -> str | None:
    """Return what is wrong with a link of a page, or None; links to other sites are not looked at."""
    if re.match(r"[a-z]+:", target):
        return None
    name, _, anchor = target.partition("#")
    file = (page.parent / name).resolve() if name else page
    if not file.exists():
        return f"{page.name}: there is no {target}"
    if anchor and anchor not in list_anchors(file):
        return f"{page.name}: {file.name} has no heading #{anchor}"
    return None


def test_links_point_to_files_and_headings_that_exist() -> None:
    targets = [(page, target) for page in PAGES for target in list_targets(page)]
    assert len(targets) > 20
    assert [fault for page, target in targets if (fault := find_fault(page, target))] == []


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("b.md", None),
        ("b.md#a-trials-id-2", None),
        ("#part3", None),
        ("#part3-1", None),
        ("https://example.org/none.md#none", None),
        ("c.md", "a.md: there is no c.md"),
        ("b.md#part3", "a.md: b.md has no heading #part3"),
        ("#part3-2", "a.md: a.md has no heading #part3-2"),
    ],
)
def test_wrong_links_are_found(target: str, fault: str | None, tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text(f"# part3\n\n## part3\n\n`[code](none.md)` and [text]({target})\n")
    (tmp_path / "b.md").write_text("# A trial's id, 2\n")
    assert list_targets(page) == [target]
    assert find_fault(page, target) == fault

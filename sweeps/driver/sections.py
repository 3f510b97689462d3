"""Sections of a sweep's description in MLflow: their tags, and the description that is composed of them. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sweeps import mlflow_ui
from sweeps.driver.description import Section, cut
from sweeps.sweep import format_count


def format_section(section: Mapping[str, Any]) -> str:
    """Return the text of a section's tag. MLflow would cut a long one, so it is made to fit."""
    while len(text := json.dumps(section, ensure_ascii=False)) > mlflow_ui.MAX_RUN_TAG:
        section = {**section, "body": cut(section["body"], len(section["body"]) - 500)}
    return text


def parse_section(text: str) -> dict[str, Any]:
    """Return the section that a tag holds; empty where it holds none."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    names = {*Section.__dataclass_fields__, "status", "training", "at"}
    return found if isinstance(found, dict) and names <= found.keys() else {}


def compose(note: str, parents: Sequence[Mapping[str, str]], limit: int) -> str:
    """Return a description with the sections of parent runs in its own part, the one that was run last first.

    What does not fit into `limit` characters is left out, the oldest section first; it stays on its parent run.
    """
    sections = [
        section
        for tags in parents
        for name, text in tags.items()
        if name.startswith(mlflow_ui.SECTION_PREFIX) and (section := parse_section(text))
    ]
    sections.sort(key=lambda section: section["at"], reverse=True)
    words = len(mlflow_ui.replace_own_part(note, ""))
    parts: list[str] = []
    for number, section in enumerate(sections):
        at = section["at"][:16].replace("T", " ")
        status, answer = f"{section['status']} ({at} UTC).", section["answer"]
        first = [status, answer] if section["training"] else [answer, status]  # the UI shows only one line at first
        dataset = section["title"].partition(",")[0]
        part = f"**{dataset}: {' '.join(filter(None, first))}**\n\n### {section['title']}\n\n{section['body']}"
        if words + sum(map(len, parts)) + len(part) > limit - 200:
            parts.append(f"*{format_count(len(sections) - number, 'older selection')} on the parent runs.*")
            break
        parts.append(part)
    return mlflow_ui.replace_own_part(note, "\n\n---\n\n".join(parts))


def is_same_view(old: str, new: str) -> bool:
    """Return whether two values of a tag are the same, or the same view but for the time when it was made."""
    if old == new:
        return True
    try:
        first, second = json.loads(old), json.loads(new)
        return bool(first["state"] == second["state"] and first["name"] == second["name"])
    except (ValueError, KeyError, TypeError):
        return False

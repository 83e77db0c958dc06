"""The README says what is true: its options table is the one of template/cookiecutter.json, its commands exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

from conftest import ROOT

from generator.__main__ import options_table

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_options_table_is_generated() -> None:
    questions = json.loads((ROOT / "template/cookiecutter.json").read_text(encoding="utf-8"))
    marked = re.search(r"<!-- options: python -m generator options -->\n(.*?)<!-- /options -->", README, re.DOTALL)
    assert marked
    assert marked[1].strip() == options_table(questions).strip()


def targets(makefile: Path) -> set[str]:
    """What can be made by `makefile`."""
    return set(re.findall(r"^([a-z0-9-]+):", makefile.read_text(encoding="utf-8"), re.MULTILINE))


def test_every_make_target_it_names_exists() -> None:
    """Here, or where the README says so (`in a project: ...`) in a generated project."""
    [projects] = re.findall(r"in a project: (`make [^;]*);", README)
    of_projects = set(re.findall(r"\bmake ([a-z0-9-]+)", projects))
    assert of_projects
    assert of_projects <= targets(ROOT / "template/{{cookiecutter.project_slug}}/Makefile")
    named = set(re.findall(r"\bmake ([a-z0-9-]+)", README.replace(projects, "")))
    assert {"demo", "test", "e2e"} <= named <= targets(ROOT / "Makefile")


def test_every_folder_it_names_exists() -> None:
    places = re.findall(r"`([a-z/]+)/`", README.split("## Where things are")[1])
    assert len(places) >= 6
    assert all((ROOT / place).is_dir() or (ROOT / "generator" / place).is_dir() for place in places)

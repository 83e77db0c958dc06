"""Refuse answers that cannot work: every problem at once, each with what mends it, and nothing left behind."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from generator import answers as rules

CATALOGUE = Path(__file__).resolve().parents[1] / "generator" / "catalog.json"


def python_bounds() -> dict[str, list[str]]:
    """For each torch release of the catalogue the Pythons it has wheels for on x86-64."""
    releases = json.loads(CATALOGUE.read_text(encoding="utf-8"))["releases"]
    return {release["torch"]: release["python"]["x86_64"] for release in releases}


def main(answers: Mapping[str, Any]) -> None:
    """Exit 1, after one line a problem, when `answers` cannot make a project; cookiecutter then removes its folder."""
    problems = rules.check(answers, python_bounds())
    if problems:
        sys.exit("\n".join(["", "No project was made:", *(f"  - {problem}" for problem in problems), ""]))

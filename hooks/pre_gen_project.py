"""Refuse answers that cannot work: every problem at once, each with what mends it, and nothing left behind."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from generator import answers as rules
from generator.hostkit.terminal import tolerate
from hooks.host_check import look

PATIENCE = 5.0  # seconds for the host's own programs, as the doctor gives them
CATALOGUE = Path(__file__).resolve().parents[1] / "generator" / "catalog.json"


def python_bounds() -> dict[str, list[str]]:
    """For each torch release of the catalogue the Pythons it has wheels for on x86-64."""
    releases = json.loads(CATALOGUE.read_text(encoding="utf-8"))["releases"]
    return {release["torch"]: release["python"]["x86_64"] for release in releases}


def main(answers: Mapping[str, Any]) -> None:
    """Exit 1, after one line a problem, when `answers` cannot make a project; cookiecutter then removes its folder."""
    tolerate(sys.stderr)
    problems = rules.check(answers, python_bounds())
    if problems:
        sys.exit("\n".join(["", "No project was made:", *(f"  - {problem}" for problem in problems), ""]))
    # cruft sets `_commit`: it renders a project again for an update, which may happen on any machine.
    if answers.get("host_check") == "strict" and "_commit" not in answers:
        require_fit_host(answers)


def require_fit_host(answers: Mapping[str, Any]) -> None:
    """Exit 1 when a check of this host fails. Before anything is written: a folder that is there stays as it is."""
    host = look(answers, patience=PATIENCE, engine=True)
    if host.failed:
        because = "because host_check is strict and this host cannot run it; host_check=advise makes it anyway"
        sys.exit("\n".join(["", f"No project was made, {because}:", *(f"  {line}" for line in host.words), ""]))

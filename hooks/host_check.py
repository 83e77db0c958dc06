"""This host, for both hooks: what it would run, in short, and whether anything keeps it from running the project."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from generator.hostkit.terminal import printable

CATALOGUE = Path(__file__).resolve().parents[1] / "generator" / "catalog.json"


class Host(NamedTuple):
    """Lines for a person, and whether a check failed."""

    words: list[str]
    failed: bool


def look(answers: Mapping[str, Any], patience: float, engine: bool) -> Host:
    """Look at this host for at most about `patience` seconds; with `engine` ask the container engine too.

    The engine takes longer than everything else here and decides nothing about the build: without a reason to ask, it
    is looked at when the container opens. A fault of ours in here must not cost the user the project.
    """
    try:
        # Inside the guard, with everything that they import.
        from generator.hostkit import decision, doctor, probe, report  # noqa: PLC0415
        from generator.hostkit.catalogue import Catalogue  # noqa: PLC0415
        from generator.hostkit.project import Project  # noqa: PLC0415
        from generator.hostkit.wishes import Wishes  # noqa: PLC0415

        catalogue = Catalogue.read(CATALOGUE)
        facts = probe.probe(limit=patience, docker=engine)
        torch, python = str(answers["torch_version"]), str(answers["python_version"])
        answer = doctor.resolution(facts, catalogue, torch, python)
        findings = doctor.examine(facts, answer, catalogue, torch, python)
        words = report.summary(facts, answer, findings)
        if not facts.gpus:
            decided = decision.decide(facts, Project(torch=torch, python=python), Wishes(), catalogue)
            words.append(printable(decided.summary.replace("torch ", "torch   ", 1)))
        return Host(words, doctor.exit_status(findings) != 0)
    except Exception as error:
        words = [
            f"This host could not be checked ({type(error).__name__}: {error}).",
            "It is looked at again when the container opens.",
        ]
        return Host(words, failed=False)

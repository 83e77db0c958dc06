"""`lab doctor`: facts about this container -> findings: what was checked, why it fails, what that costs, the command.

The words, the levels and the exit status are those of the doctor on the host (`.devcontainer/hostkit/doctor.py`), which
need not be here. Every check is a function from the facts to one finding; `GROUPS` is their order. Nothing here looks.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TextIO

from lab import doctor_container, doctor_gpu, doctor_torch
from lab.doctor_facts import Facts, gather
from lab.doctor_finding import Finding
from lab.errors import LabError
from lab.project import Project


def main(project: Project, as_json: bool) -> int:
    """Examine this container and print what was found; returns the exit status."""
    terminal = sys.stderr.isatty()

    def progress(what: str) -> None:
        if terminal:
            print(f"\r\033[Kdoctor: {what} …", end="", file=sys.stderr, flush=True)

    try:
        facts = gather(project, progress)
    except OSError as error:
        raise LabError(f"nothing could be checked: {error}") from error
    finally:
        if terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    findings = examine(facts)
    print(json_text(findings) if as_json else as_text(findings, colour_wanted(sys.stdout)), flush=True)
    return exit_status(findings)


def examine(facts: Facts) -> list[Finding]:
    """Every check, in the order in which they are told."""
    return [check(facts) for _, checks in GROUPS for check in checks]


def exit_status(findings: list[Finding]) -> int:
    """0 nothing failed, 1 a check failed."""
    return 1 if any(finding.level == "fail" for finding in findings) else 0


GROUPS: tuple[tuple[str, tuple[Callable[[Facts], Finding], ...]], ...] = (
    ("GPU and driver", doctor_gpu.CHECKS),
    ("torch", doctor_torch.CHECKS),
    ("Container", doctor_container.CHECKS),
    ("Files", doctor_container.FILES),
)


# Words


def colour_wanted(stream: TextIO) -> bool:
    """Colour only on a terminal, and not where NO_COLOR is set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    """`text` as one line, control characters (of a GPU's name, of an error) written out."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def json_text(findings: list[Finding]) -> str:
    """The findings as a JSON list of objects."""
    return json.dumps([finding._asdict() for finding in findings], indent=1)


_COLOURS = {"ok": "32", "warn": "33", "fail": "31", "skip": "2"}


def as_text(findings: list[Finding], colour: bool = False) -> str:
    """One line a check, grouped; below a check that is not fine what it costs, the command, and where to read on."""
    lines: list[str] = []
    rest = iter(findings)
    for group, checks in GROUPS:
        lines.append(("\n" if lines else "") + group)
        for _ in checks:
            lines += _told(Finding(*map(printable, next(rest))), colour)
    failed = sum(finding.level == "fail" for finding in findings)
    warned = sum(finding.level == "warn" for finding in findings)
    lines.append(
        f"\n{failed} failed, {warned} warning{'s' * (warned != 1)}" if failed or warned else "\nnothing to mend"
    )
    return "\n".join(lines)


def _told(finding: Finding, colour: bool) -> list[str]:
    level = f"{finding.level:4}"
    if colour:
        level = f"\033[{_COLOURS[finding.level]}m{level}\033[0m"
    text = f"because {finding.cause}" if finding.level == "skip" else finding.cause
    lines = [f"  {level}  {finding.id:19} {text}"]
    if finding.level in {"warn", "fail"}:
        lines += [f"        {finding.consequence}"] if finding.consequence else []
        lines += [f"        $ {finding.command}"] if finding.command else []
        lines += [f"        {finding.link}"] if finding.link else []
    return lines

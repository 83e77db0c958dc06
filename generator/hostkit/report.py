"""Findings in words: for a terminal, as JSON, and in short for the end of a generation."""

from __future__ import annotations

import json
import os
import re
from typing import TextIO

from .finding import Finding, counted
from .probe import Facts
from .resolve import Resolution
from .terminal import printable


def colour_wanted(stream: TextIO) -> bool:
    """Colour only on a terminal, and not where NO_COLOR is set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def as_json(findings: list[Finding]) -> str:
    """The findings as a JSON list of objects."""
    return json.dumps([finding._asdict() for finding in findings], indent=1)


_COLOURS = {"ok": "32", "warn": "33", "fail": "31", "skip": "2"}


def as_text(groups: list[tuple[str, list[Finding]]], colour: bool = False) -> str:
    """One line a check, grouped; below a check that is not fine what it costs, the command, and where to read on.

    What was skipped comes last in its group, by its reason.
    """
    lines: list[str] = []
    for group, members in groups:
        lines.append(("" if not lines else "\n") + group)
        skipped: dict[str, list[str]] = {}
        for finding in members:
            if finding.level == "skip":
                skipped.setdefault(finding.cause, []).append(finding.id)
            else:
                lines += _told(Finding(*map(printable, finding)), colour)
        for because, ids in skipped.items():
            lines += _folded_skip(printable(because), ids, colour)
    findings = [finding for _, members in groups for finding in members]
    failed = sum(finding.level == "fail" for finding in findings)
    warned = sum(finding.level == "warn" for finding in findings)
    lines.append(
        f"\n{failed} failed, {warned} warning{'s' * (warned != 1)}" if failed or warned else "\nnothing to mend"
    )
    return "\n".join(lines)


def _told(finding: Finding, colour: bool) -> list[str]:
    lines = [f"  {_level(finding.level, colour)}  {finding.id:19} {finding.cause}"]
    if finding.level in {"warn", "fail"}:
        lines += [f"        {finding.consequence}"] if finding.consequence else []
        lines += [f"        $ {finding.command}"] if finding.command else []
        lines += [f"        {finding.link}"] if finding.link else []
    return lines


def _folded_skip(because: str, ids: list[str], colour: bool) -> list[str]:
    """The checks skipped for one reason, on as many lines as their names need."""
    lines = [f"  {_level('skip', colour)}  because {because}:"]
    for number, name in enumerate(ids):
        word = f" {name}{',' if number < len(ids) - 1 else ''}"
        if len(lines[-1]) + len(word) > WIDTH + 2:
            lines.append(" " * 7)
        lines[-1] += word
    return lines


def _level(level: str, colour: bool) -> str:
    return f"\033[{_COLOURS[level]}m{level:4}\033[0m" if colour else f"{level:4}"


WIDTH, LINES = 108, 18  # of a summary; who prints it may set it in by two


def summary(facts: Facts, answer: Resolution | None, findings: list[Finding]) -> list[str]:
    """At most 18 lines for the end of a generation: GPUs, driver, torch build and why, what fails and its command.

    No line is longer than `WIDTH`. No command is cut: it goes on below, after a backslash, or is left to the doctor.
    """
    told: list[list[str]] = []
    if facts.gpus:
        names = ", ".join(counted([gpu.name for gpu in facts.gpus]))
        told.append(_folded("GPU", f"{names}, driver {facts.driver or 'unknown'}")[:4])
    if answer and answer.build:
        where = "default package index" if answer.index_url is None else answer.index_url
        only = f" on GPU {', '.join(map(str, answer.devices))}" if answer.status == "partial" else ""
        told.append(_folded("torch", f"{answer.torch}+{answer.build}{only} ({where})"))
        told += [_folded("", text) for text in (*answer.reasons[1:2], *answer.warnings[:2], *answer.advice[:2])]
    elif answer:
        told.append(_folded("torch", f"on the CPU: {answer.reasons[0]}"))
        told += [_folded("", text) for text in answer.advice[:2]]
    elif not any(finding.level == "fail" and finding.id.startswith(("driver", "nvml", "gpu")) for finding in findings):
        told.append(_folded("GPU", "none found: training runs on the CPU"))
    known = {"driver.too-old", "driver.too-new", "gpu.arch"} if answer else set()
    for finding in findings:
        if finding.level != "fail":
            continue
        words = [] if finding.id in known else _folded("fails", f"{finding.cause}: {finding.consequence}")
        if finding.command:
            words += _folded_command(finding.command)
        elif words:
            words += _folded("", finding.link)
        told.append(words)
    lines: list[str] = []
    for number, words in enumerate(told):
        last = number == len(told) - 1
        if len(lines) + len(words) > LINES - (not last):
            return [*lines, "more    python -m generator doctor"]
        lines += words
    return lines


def _folded(label: str, text: str) -> list[str]:
    """`text` behind a label, folded at blanks; only a word that is longer than a line is cut."""
    room = WIDTH - 8
    lines: list[str] = []
    line = ""
    for word in printable(text).split():
        while len(word) > room:
            lines += [line, word[:room]] if line else [word[:room]]
            line, word = "", word[room:]  # noqa: PLW2901
        if line and len(line) + 1 + len(word) > room:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    lines.append(line)
    return [f"{label if number == 0 else '':8}{line}" for number, line in enumerate(lines)]


def _folded_command(command: str) -> list[str]:
    """A command for a POSIX shell, going on after a backslash: never within quotation marks, where it would count.

    It is broken before `&&`, `||` and `|`, and elsewhere only where one part is longer than a line.
    """
    lines = ["        $"]

    def fits(words: list[str]) -> bool:
        return len(" ".join([lines[-1], *words])) + 2 <= WIDTH

    for part in _parts(re.findall(r"""(?:[^\s'"]|'[^']*'|"[^"]*")+""", printable(command))):
        whole = len(" ".join(["         ", *part])) + 2 <= WIDTH
        for place, word in enumerate(part):
            if not fits(part if whole and place == 0 else [word]):
                lines[-1] += " \\"
                lines.append("         ")
            lines[-1] += f" {word}"
    return lines


def _parts(words: list[str]) -> list[list[str]]:
    """The words of a command in runs that begin with its operators."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word in {"&&", "||", "|"} and parts[-1]:
            parts.append([])
        parts[-1].append(word)
    return parts

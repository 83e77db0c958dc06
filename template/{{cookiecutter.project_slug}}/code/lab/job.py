"""One command under way, and how it speaks to the person who gave it."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import muster, record
from lab.credentials import hidden
from lab.dataset import Dataset
from lab.engines import Engine, Prepared
from lab.errors import LabError
from lab.options import OURS, SPEED, Request, command_line, parse
from lab.project import Project


def say(sentence: str) -> None:
    """A remark on stderr, whole: other machines of a job may write into the same log."""
    sys.stderr.write(f"lab: {sentence}\n")
    sys.stderr.flush()


@dataclass(frozen=True)
class Job:
    """Where, by which engine, with which options."""

    project: Project
    engine: Engine
    request: Request
    line: muster.Line | None = None  # to the other machines that do it too


def kept(
    job: Job, prepared: Prepared, dataset: Dataset | None = None, resumed: str | None = None
) -> AbstractContextManager[record.Record]:
    """The record of a run, kept in its directory while the block runs it; `resumed` is what it went on from."""
    request = job.request
    given = request.given if resumed is None else _repeating(prepared.run, request)
    words = command_line(request.task, given, OURS - SPEED)
    command = ["lab", request.task, "--engine", job.engine.name, *map(hidden, words)]  # a camera has a password
    seed = int(prepared.options.get("seed", 0))
    return record.kept(prepared.run, job.project, command, request.task, job.engine.name, dataset, seed, resumed)


def _repeating(directory: Path | None, request: Request) -> dict[str, Any]:
    """The options that would have made the whole run at once: those of its record, and what --resume changed."""
    words = record.read(directory).get("command") if directory is not None else None
    if not isinstance(words, list):
        return request.given  # no record tells how it began
    try:
        before = parse(request.task, [str(word) for word in words[2:]]).given
    except LabError:  # of another version, with other options
        return request.given
    return {**before, **{key: value for key, value in request.given.items() if key not in ("resume", "engine")}}

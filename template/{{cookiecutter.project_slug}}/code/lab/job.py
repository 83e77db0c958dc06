"""One command under way, and how it speaks to the person who gave it."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass

from lab import record
from lab.dataset import Dataset
from lab.engines import Engine, Prepared
from lab.options import Request, command_line
from lab.project import Project


def say(sentence: str) -> None:
    """A remark on stderr."""
    print(f"lab: {sentence}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Job:
    """Where, by which engine, with which options."""

    project: Project
    engine: Engine
    request: Request


def kept(
    job: Job, prepared: Prepared, dataset: Dataset | None = None, resumed: str | None = None
) -> AbstractContextManager[record.Record]:
    """The record of a run, kept in its directory while the block runs it; `resumed` is what it went on from."""
    request = job.request
    command = ["lab", request.task, "--engine", job.engine.name, *command_line(request.task, request.given)]
    seed = int(prepared.options.get("seed", 0))
    return record.kept(prepared.run, job.project, command, request.task, job.engine.name, dataset, seed, resumed)

"""One command under way, and how it speaks to the person who gave it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from lab.engines import Engine
from lab.options import Request
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

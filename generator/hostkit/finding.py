"""What a check looks at, and what it says."""

from __future__ import annotations

from typing import NamedTuple

from .catalogue import Catalogue
from .probe import Facts
from .resolve import Obstacle, Resolution
from .terminal import printable
from .wishes import Wishes


class Finding(NamedTuple):
    """One check. `level` is ok, warn, fail or skip; `cause` says what was found, for skip it is the "because"."""

    id: str
    level: str
    cause: str
    consequence: str = ""
    command: str = ""
    link: str = ""


class Met(NamedTuple):
    """What keeps one GPU from the torch that is asked for, and the nearest change that lets it run."""

    obstacle: Obstacle
    change: str = ""
    legacy: bool = False  # the 580 branch of the driver is the last for this GPU


class Case(NamedTuple):
    """What the checks look at."""

    facts: Facts
    resolution: Resolution | None
    obstacles: tuple[Met, ...]
    catalogue: Catalogue | None
    fault: str = ""  # why the resolver could not be asked about this host's GPUs
    wishes: Wishes | None = None  # of the project that is looked at
    wish_fault: str = ""  # why they cannot be followed

    @property
    def has_gpu(self) -> bool:
        """An NVIDIA GPU is there, whether or not its driver works."""
        facts = self.facts
        return bool(facts.smi.gpus or facts.cards or facts.module or facts.wsl_driver or facts.smi.state in _BROKEN)


_BROKEN = {"hangs", "mismatch", "lost", "blocked", "permission", "failed", "unreadable"}


def counted(names: list[str]) -> list[str]:
    """["A", "A", "B"] -> ["2x A", "B"]."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return [name if count == 1 else f"{count}x {name}" for name, count in counts.items()]


def excerpt(text: str) -> str:
    """The beginning of what a program said, for a sentence."""
    return printable(" ".join(text[:160].split()))[:160]

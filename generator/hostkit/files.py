"""Reading files of the host, below $HOST_ROOT (default /): that is how a test describes a host."""

from __future__ import annotations

import os
from pathlib import Path


def host_path(path: str) -> Path:
    """`path` below $HOST_ROOT."""
    return Path(os.environ.get("HOST_ROOT") or "/") / path.lstrip("/")


def read(path: str, limit: int = 1 << 20) -> str:
    """The beginning of a file, "" when it cannot be read."""
    try:
        with host_path(path).open("rb") as file:
            return file.read(limit).decode("utf-8", "replace")
    except (OSError, ValueError):  # ValueError: no file can have such a name
        return ""


def names(path: str) -> list[str]:
    """What a directory holds, sorted; nothing when it cannot be read."""
    try:
        return sorted(entry.name for entry in host_path(path).iterdir())
    except (OSError, ValueError):  # ValueError: no file can have such a name
        return []

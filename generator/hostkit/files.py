"""Reading files of the host, below $HOST_ROOT (default /): that is how a test describes a host."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def host_path(path: str) -> Path:
    """`path` below $HOST_ROOT."""
    return Path(os.environ.get("HOST_ROOT") or "/") / path.lstrip("/")


def read(path: str, limit: int = 1 << 20) -> str:
    """The beginning of a file, "" when it cannot be read."""
    try:
        # without waiting: a pipe that nobody writes to would hold us for ever
        handle = os.open(host_path(path), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return ""
            return file.read(limit).decode("utf-8", "replace")
    except (OSError, ValueError):  # ValueError: no file can have such a name
        return ""


def names(path: str) -> list[str]:
    """What a directory holds, sorted; nothing when it cannot be read."""
    try:
        return sorted(entry.name for entry in host_path(path).iterdir())
    except (OSError, ValueError):  # ValueError: no file can have such a name
        return []

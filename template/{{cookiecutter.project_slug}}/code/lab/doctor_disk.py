"""How fast the files below a directory can be read: the ceiling of every loader. Reads for about a second."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".dng", ".mpo", ".heic")
LARGE = 16 << 20  # bytes from which a file shows the sequential speed
CHUNK = 4 << 20
READERS = 8  # loader workers of a usual training
SEARCH, READ = 1.0, 1.0  # seconds
FEWEST = 16  # files; fewer say nothing
MOST = 20_000


def read_speed(directory: Path) -> dict[str, Any]:
    """Measure. {"files": how many were found, and when there are enough of them "read", "seconds", "bytes",
    "from_disk": the share that did not come out of the page cache, None where the kernel does not tell; "sequential":
    bytes a second, None without a large file}.

    What the page cache holds of a file is given up before it is read. Some file systems (network, those of Docker
    Desktop) keep a copy elsewhere, which nobody here can empty.
    """
    images, others, large = _find(directory)
    files = images if len(images) >= FEWEST else images + others
    found: dict[str, Any] = {"files": len(files), "images": len(images), "sequential": _sequential(large)}
    if len(files) < FEWEST:
        return found
    random.Random(0).shuffle(files)  # as a loader does; in order, the disk would read ahead
    until = time.monotonic() + READ

    def read(file: Path) -> int:
        return _read(file) if time.monotonic() < until else -1

    fetched, begun = _fetched(), time.monotonic()
    with ThreadPoolExecutor(READERS) as readers:
        sizes = [size for size in readers.map(read, files) if size >= 0]
    seconds = time.monotonic() - begun
    total = sum(sizes)
    from_disk = None if fetched is None or not total else min(1.0, ((_fetched() or 0) - fetched) / total)
    return {**found, "read": len(sizes), "seconds": seconds, "bytes": total, "from_disk": from_disk}


def _find(directory: Path) -> tuple[list[Path], list[Path], Path | None]:
    """(pictures, other files, the largest file that is large enough) among the first files found within a second."""
    images: list[Path] = []
    others: list[Path] = []
    largest: tuple[int, Path] | None = None
    until = time.monotonic() + SEARCH
    for entry in _walk(directory):
        if time.monotonic() > until or len(images) >= MOST:
            break
        try:
            size = entry.stat().st_size
            regular = entry.is_file()
        except OSError:
            continue
        if not regular or size == 0:
            continue
        path = Path(entry.path)
        if size >= LARGE:
            largest = max(largest or (0, path), (size, path))
        elif path.suffix.lower() in IMAGES:
            images.append(path)
        elif len(others) < MOST:
            others.append(path)
    return images, others, largest[1] if largest else None


def _walk(directory: Path) -> Iterator[os.DirEntry[str]]:
    """Everything below `directory`, breadth first; hidden directories and links to directories are left out."""
    waiting = [str(directory)]
    while waiting:
        try:
            with os.scandir(waiting.pop(0)) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        if not entry.name.startswith("."):
                            waiting.append(entry.path)
                    elif not entry.name.startswith("."):
                        yield entry
        except OSError:
            continue


def _forget(handle: int) -> None:
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    except (AttributeError, OSError):
        return  # not on this system or file system


def _read(file: Path) -> int:
    """Bytes of `file`, -1 when it cannot be read."""
    try:
        handle = os.open(file, os.O_RDONLY)
        try:
            _forget(handle)
            total = 0
            while got := len(os.read(handle, CHUNK)):
                total += got
            return total
        finally:
            os.close(handle)
    except OSError:
        return -1


def _sequential(file: Path | None) -> float | None:
    """Bytes a second of one reader in one large file, for half a second."""
    if file is None:
        return None
    try:
        handle = os.open(file, os.O_RDONLY)
    except OSError:
        return None
    try:
        _forget(handle)
        begun, total = time.monotonic(), 0
        while time.monotonic() - begun < READ / 2:
            got = len(os.read(handle, CHUNK))
            if not got:
                break
            total += got
        return total / max(time.monotonic() - begun, 1e-6)
    except OSError:
        return None
    finally:
        os.close(handle)


def _fetched() -> int | None:
    """Bytes that this process had the kernel fetch from storage so far (proc(5), io: read_bytes)."""
    try:
        match = re.search(r"^read_bytes: (\d+)$", Path("/proc/self/io").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) if match else None

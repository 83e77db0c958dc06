"""The worker processes that fill a store: read, decode, resize, append."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lab.check_facts import ABSENT, AGAIN, PR_SET_PDEATHSIG, stamp_of
from lab.fast.store_decode import Recipe, decode
from lab.fast.store_files import BROKEN, RECORD, STORED, checksum
from lab.limits import MEBIBYTE

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
KEPT = 64 * MEBIBYTE  # of freed memory that a worker keeps: an image of 20 million pixels is not mapped anew
SAME = 3  # a record's state on its way to the parent: these bytes are stored already, the parent knows where


@dataclass
class Work:
    """What a worker process needs, inherited at its fork."""

    pixels: Path
    recipe: Recipe
    known: set[bytes]  # digests of what is stored already
    descriptor: int = -1


_WORK: list[Work] = []


def digest_of(content: bytes) -> bytes:
    """16 bytes that stand for a file's content."""
    return hashlib.sha1(content, usedforsecurity=False).digest()[:16]


def start(work: Work) -> None:
    """Prepare a worker process: one thread, no complaints of decoders on the terminal, an end with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    keep_memory()
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 2)
    cv2.setNumThreads(0)
    _WORK[:] = [work]


def keep_memory() -> None:
    """Have freed memory kept for the next image; what the kernel takes back it must clear again, page by page.

    glibc goes by what was freed before, so it is chance whether its limits suffice: where not, a 720p JPEG costs 1,300
    page faults, which take as long as its decoding.
    """
    with contextlib.suppress(OSError, AttributeError):  # another libc
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, KEPT)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)


def fill(task: list[tuple[int, str]]) -> Any:
    """Store some images, given as (row, path): one RECORD each. Raises OSError when the disk is full."""
    work = _WORK[0]
    if work.descriptor < 0:  # not in `start`, where an error would look like a dead worker
        # the kernel appends each write in one piece wherever the end is then: no worker waits for another
        work.descriptor = os.open(work.pixels, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    records = np.zeros(len(task), RECORD)
    mine: set[bytes] = set()
    for record, (row, path) in zip(records, task, strict=True):
        record["row"] = row
        image = _read(work, path, mine, record["entry"])
        if image is not None:  # at once, from the processor's cache: a whole task in one call took three times as long
            record["entry"]["offset"] = append(work.descriptor, image)
    return records


def _read(work: Work, path: str, mine: set[bytes], entry: Any) -> Any | None:
    """Fill in `entry` for the file at `path`; returns its pixels when they are new."""
    entry["state"] = BROKEN
    entry["size"], entry["mtime"] = stamp_of(path)
    if entry["size"] == ABSENT:
        return None
    try:
        with open(path, "rb") as file:  # noqa: PTH123  a Path for each of many files costs
            content = file.read()
    except OSError:
        entry["mtime"] = AGAIN
        return None
    digest = digest_of(content)
    entry["digest"] = np.frombuffer(digest, "<u8")
    if stamp_of(path) != (int(entry["size"]), int(entry["mtime"])):
        entry["mtime"] = AGAIN  # it is being written: what is stored now is looked at again the next time
    if digest in work.known or digest in mine:
        entry["state"] = SAME
        return None
    try:
        found = decode(content, path, work.recipe)
    except MemoryError:
        entry["mtime"] = AGAIN
        return None
    if found is None:
        return None
    image, full = found
    entry["height"], entry["width"] = image.shape[:2]
    entry["full_height"], entry["full_width"] = full
    entry["sum"] = checksum(image)
    entry["state"] = STORED
    mine.add(digest)
    return image


def append(descriptor: int, image: Any) -> int:
    """Write `image` at the end of the file in one call; returns where it begins. Raises OSError when cut short."""
    if os.writev(descriptor, [image]) != image.nbytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return os.lseek(descriptor, 0, os.SEEK_CUR) - int(image.nbytes)

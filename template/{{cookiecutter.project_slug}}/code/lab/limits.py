"""What this container may use: processors, shared memory, disk. Read from the kernel, without torch."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from lab.errors import LabError

CGROUP = Path("/sys/fs/cgroup")
SHM = Path("/dev/shm")
MEMINFO = Path("/proc/meminfo")
MEBIBYTE = 1 << 20
# files of a control group's memory, version 2 and 1: limit, use, what it is used for, and how lines begin there
GROUP_MEMORY = (
    ("memory.max", "memory.current", "memory.stat", ""),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_"),
)
PINNED_SHARE = 1 / 4  # of the free main memory, for uploads
PINNED_WSL = 384 * MEBIBYTE  # 500 were refused in Docker under WSL2 (microsoft/WSL issue 14078)
# parameters in millions, from the table of models in YOLOv5's README
PARAMETERS = {"n": 1.9, "s": 7.2, "m": 21.2, "l": 46.5, "x": 86.7}
P6 = 1.8  # a model with a P6 head has so many times the parameters


def processors() -> int:
    """Processors this container may really use: the affinity mask, cut by the control group's quota.

    `os.cpu_count()` sees the host's processors, so `docker run --cpus 2` on a big server would start too many workers.
    """
    visible = len(os.sched_getaffinity(0))
    quota = _quota()
    return max(1, min(visible, round(quota))) if quota else visible


def _quota() -> float | None:
    """Processors granted by the control group (version 2, then 1), or None for no limit."""
    try:
        limit, period = (CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (CGROUP / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (CGROUP / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if limit == "max" or int(limit) <= 0:
        return None
    return int(limit) / int(period)


def workers_that_fit(wanted: int, batch: int, image_size: int) -> int:
    """Loader workers whose batches fit into the free part of /dev/shm.

    A worker hands over batches of `batch` x 3 x `image_size`^2 bytes through shared memory and keeps two ahead; the
    validation loader does so with doubled batches beside it. A full /dev/shm kills a worker with a bus error
    (YOLOv5's issue 3589). Docker's default is 64 MB.
    """
    try:
        free = shutil.disk_usage(SHM).free
    except OSError:
        return wanted
    per_worker = 2 * 3 * batch * 3 * image_size**2
    return min(wanted, free // per_worker)


def parameters_of(model: str) -> int:
    """Parameters of yolov5s, yolov5x6u or yolov5x-p6, by name; a strange name counts as the smallest."""
    known = re.fullmatch(r"yolov5([nsmlx])(6|-p6)?u?", model)
    return round(1e6 * (PARAMETERS[known[1]] * (P6 if known[2] else 1) if known else PARAMETERS["n"]))


def room_needed(parameters: int) -> int:
    """Bytes for the checkpoints of a model with so many parameters, and 64 MiB for curves and pictures.

    Four checkpoints of about 12 bytes a parameter (weights and their average in half precision, two moments of the
    optimiser in full): last.pt, the one before it, best.pt, and the one that is being written.
    """
    return 64 * MEBIBYTE + 48 * parameters


def require_stride(sides: Sequence[int], stride: int) -> None:
    """Raises LabError for a side of `--img` that is no multiple of the model's largest stride."""
    for side in sides:
        if side < stride or side % stride:
            near = max(stride, side - side % stride)
            raise LabError(
                f"--img {side} is not a multiple of {stride}, the model's stride: use {near} or {near + stride}"
            )


def require_room(directory: Path, parameters: int) -> None:
    """Raises LabError when the disk under `directory` has too little room for a run of a model of that size."""
    need = room_needed(parameters)
    free = shutil.disk_usage(directory).free
    if free < need:
        raise LabError(
            f"{directory} has {free // MEBIBYTE} MiB free and this run needs about {need // MEBIBYTE} MiB for its "
            "checkpoints: delete old runs, or point RUNS_DIR in .env at a larger disk"
        )


def memory_free() -> int | None:
    """Bytes of main memory that are free, within the control group's limit; None where the kernel does not tell."""
    try:
        fields = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="ascii").splitlines() if ":" in line)
        free = int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return None
    groups = (_group_memory_free(*files) for files in GROUP_MEMORY)
    return max(0, min([free, *(left for left in groups if left is not None)]))


def _group_memory_free(limit: str, used: str, stat: str, prefix: str) -> int | None:
    """Bytes that a control group leaves; None without a limit. What it holds of files counts as free: it can go."""
    try:
        left = int((CGROUP / limit).read_text()) - int((CGROUP / used).read_text())
    except (OSError, ValueError):  # "max", or another version
        return None
    try:
        fields = dict(line.split() for line in (CGROUP / stat).read_text().splitlines())
    except (OSError, ValueError):
        return left
    return left + sum(int(fields.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))


def pinnable() -> int | None:
    """Bytes of main memory that a rank may have locked for uploads to its GPU; None where the kernel does not tell.

    A share of what is free, among the ranks here: locked memory is gone for everybody else. `ulimit -l` is no limit,
    since NVIDIA's driver locks pages by itself; under WSL2 it refuses beyond some hundred MB.
    """
    free = memory_free()
    if free is None:
        return None
    most = free * PINNED_SHARE
    if "microsoft" in platform.release().lower():
        most = min(most, PINNED_WSL)
    return int(most) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def is_full(directory: Path) -> bool:
    """Whether the disk under `directory` is full, or so nearly that a checkpoint could not be written."""
    return shutil.disk_usage(directory).free < 2 * MEBIBYTE


def require_writable(directory: Path) -> None:
    """Make `directory` and prove by a file that it takes files. Raises LabError."""
    probe = directory / f".write-test-{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise LabError(
            f"{directory} cannot be written ({error.strerror}): give it to uid {os.getuid()}, or name another place "
            "with --project"
        ) from error

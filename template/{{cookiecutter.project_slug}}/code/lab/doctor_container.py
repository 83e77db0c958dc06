"""Checks of `lab doctor`: what this container may use, its packages, and the folders it is given."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from lab.doctor_facts import Facts, Folder, reached
from lab.doctor_finding import (
    CLOSE,
    LINKS,
    MORE_SHM,
    REBUILD,
    RECREATE,
    RESTART,
    Finding,
    excerpt,
    fault_of,
    used,
)
from lab.limits import parameters_of, room_needed

MIB, GIB = 1 << 20, 1 << 30
SHM = GIB  # bytes; below, only a few loader workers fit
BATCH = 2 * 3 * 16 * 3 * 640**2  # bytes a loader worker keeps in shared memory, see limits.workers_that_fit
RUNS_ROOM = (5 * GIB, GIB // 2)  # (warn, fail) below; a run of yolov5s keeps about 240 MiB, one of yolov5x 2 GiB
MEMORY = 4 * GIB  # bytes; torch, its CUDA libraries and some loader workers take about that
IMAGES = {"gpu": 200, "cpu": 20}  # images/s; one V100 trains yolov5s at 640 with 205, a processor with a few


def _shm(facts: Facts) -> Finding:
    if facts.shm is None:
        return Finding("shm", "warn", "there is no /dev/shm", "give --workers 0", RECREATE, LINKS["workers"])
    total, free = facts.shm
    if total >= SHM:
        if free < SHM // 2:
            return Finding(
                "shm", "warn", f"{free / GIB:.1f} of {total / GIB:.1f} GiB of shared memory are free",
                "loader workers may die of a bus error; something here holds the rest", "ls -lS /dev/shm | head",
                LINKS["workers"],
            )  # fmt: skip
        return Finding("shm", "ok", f"{total / GIB:.1f} GiB of shared memory")
    workers = total // BATCH
    fit = (
        "no loader worker fits"
        if not workers
        else f"{workers} loader worker{'s' * (workers > 1)} fit{'s' * (workers == 1)}"
    )
    return Finding(
        "shm", "warn" if workers else "fail", f"{total // MIB} MiB of shared memory",
        f"at --img 640 --batch 16 {fit}, so the GPU waits; more workers die of a bus error",
        MORE_SHM, LINKS["workers"],
    )  # fmt: skip


def _cpu(facts: Facts) -> Finding:
    if facts.granted < 4 and facts.granted * 2 < facts.processors:
        return Finding(
            "cpu", "warn", f"this container may use {facts.granted} of {facts.processors} processors",
            f"`lab train` starts at most {facts.granted} loader workers, and the GPU may wait for them",
            "cat /sys/fs/cgroup/cpu.max  # the limit; Docker Desktop: Settings, Resources", LINKS["limits"],
        )  # fmt: skip
    of = f" of {facts.processors}" if facts.granted < facts.processors else ""
    return Finding("cpu", "ok", f"{facts.granted}{of} processor{'s' * (facts.granted != 1 or bool(of))}")


def _memory(facts: Facts) -> Finding:
    if facts.memory is None:
        return Finding("memory", "skip", "the kernel does not tell")
    free = facts.memory_free if facts.memory_free is not None else facts.memory
    words = f"{free / GIB:.1f} of {facts.memory / GIB:.1f} GiB are free"
    if facts.memory < MEMORY or free < MEMORY // 2:
        return Finding(
            "memory", "warn", words, "a training may be killed: fewer --workers, no --cache ram",
            "docker stats --no-stream  # on the host; Docker Desktop: Settings, Resources", LINKS["limits"],
        )  # fmt: skip
    return Finding("memory", "ok", words)


def _write_runs(facts: Facts) -> Finding:
    return _write("runs", facts.runs, facts.uid, "fail", "no training can save anything")


def _write_data(facts: Facts) -> Finding:
    cost = "no data can be made or cached there; training itself only reads"
    return _write("data", facts.data, facts.uid, "warn", cost)


def _write(name: str, folder: Folder, uid: int, level: str, cost: str) -> Finding:
    check, place = f"write.{name}", shlex.quote(folder.place or name)
    if not folder.exists:
        return Finding(check, level, f"there is no {name}/", cost, f"mkdir -p {place} && {RECREATE}", LINKS["mounts"])
    if folder.error == "EROFS":
        return Finding(check, level, f"{name}/ is mounted read-only", cost, f"findmnt -T {name}", LINKS["mounts"])
    if folder.error in {"ENOSPC", "EDQUOT"}:
        return Finding(check, level, f"the disk under {name}/ is full", cost, f"df -h {name}", LINKS["mounts"])
    if folder.error:
        return Finding(check, level, _whose(name, folder, uid), cost, _give(place), LINKS["mounts"])
    if uid == 0 != folder.owner:
        return Finding(
            check, "warn", f"this container runs as root, and {name}/ belongs to uid {folder.owner}",
            "what is written here cannot be changed by its owner", RESTART, LINKS["mounts"],
        )  # fmt: skip
    return Finding(check, "ok", f"{name}/ takes files of uid {uid}")


def _whose(name: str, folder: Folder, uid: int) -> str:
    if folder.error in {"EACCES", "EPERM"}:
        return f"{name}/ belongs to uid {folder.owner}, and uid {uid} may not write there"
    return f"{name}/ takes no files ({folder.error})"


def _give(place: str) -> str:
    return f'sudo chown -R "$(id -u):$(id -g)" {place}  # on the host'


def _disk_space(facts: Facts) -> Finding:
    free = facts.runs.free
    if free is None:
        return Finding("disk.space", "skip", "the free space could not be read")
    enough, least = RUNS_ROOM
    if free < enough:
        return Finding(
            "disk.space", "fail" if free < least else "warn", f"{free / GIB:.1f} GiB are free where runs/ lies",
            f"a run of yolov5s keeps {_kept('s')} MiB, one of yolov5x {_kept('x')} MiB; or set RUNS_DIR in .env",
            "du -sh runs/*/* | sort -h", LINKS["mounts"],
        )  # fmt: skip
    return Finding("disk.space", "ok", f"{free / GIB:.0f} GiB free where runs/ lies")


def _kept(letter: str) -> int:
    return room_needed(parameters_of(f"yolov5{letter}")) // MIB


def _data_speed(facts: Facts) -> Finding:
    about = facts.reading.steps.get("read", {})
    if facts.reading.end == "hangs":
        return Finding(
            "data.speed", "fail", "reading data/ does not end", "a training would hang: its disk or share is stuck",
            "findmnt -T data; sudo dmesg | tail  # the latter on the host", LINKS["mounts"],
        )  # fmt: skip
    if not about.get("ok"):
        return Finding(
            "data.speed", "skip", f"it could not be measured ({excerpt(str(about.get('error', 'no answer')))})"
        )
    if not about["files"]:
        return Finding("data.speed", "skip", "data/ is empty")
    if not about.get("read"):
        return Finding("data.speed", "skip", "there are too few files in data/ to measure")
    rate, speed = about["read"] / about["seconds"], about["bytes"] / about["seconds"] / 1e6
    thing = "images" if about["images"] == about["files"] else "files"
    words = f"{_round(rate)} {thing}/s, {_round(speed)} MB/s"
    if about["sequential"]:
        words += f"; {_round(about['sequential'] / 1e6)} MB/s in one large file"
    if about["from_disk"] is not None and about["from_disk"] < 0.5:
        words += " (mostly out of the page cache: the disk itself may be slower)"
    if rate < IMAGES["gpu" if used(facts) else "cpu"]:
        return Finding(
            "data.speed", "warn", words,
            f"{_round(rate)} {thing}/s is the most a loader can get; --cache ram reads each only once, "
            "DATA_DIR in .env may lead to a faster disk",
            "lab train --cache ram", LINKS["mounts"],
        )  # fmt: skip
    return Finding("data.speed", "ok", words)


def _round(number: float) -> str:
    """Two figures: the disk's speed is not known better."""
    if number < 10:
        return f"{number:.1f}"
    size = 10 ** (len(str(int(number))) - 2)
    return f"{round(number / size) * size:.0f}"


def _packages(facts: Facts) -> Finding:
    steps = facts.torch.steps
    for name, words in (("numpy", "NumPy"), ("opencv", "OpenCV")):
        fault = fault_of(facts.torch, name, CLOSE)
        if fault:
            return Finding(
                "packages", "fail", f"{words} does not work: {fault}", "pictures cannot be read", REBUILD,
                LINKS["install"],
            )  # fmt: skip
    if not reached(facts.torch, "numpy") or not reached(facts.torch, "opencv"):
        return Finding("packages", "skip", "they were not reached, see above")
    if len(facts.opencvs) > 1:
        return Finding(
            "packages", "warn", f"two packages bring the same module cv2: {', '.join(facts.opencvs)}",
            "which of them is used is chance; the other may need libGL, which is not here",
            f"pip uninstall -y {' '.join(text.split()[0] for text in facts.opencvs if 'headless' not in text)}"
            " && pip install --force-reinstall --no-deps opencv-python-headless",
        )  # fmt: skip
    return Finding("packages", "ok", f"NumPy {steps['numpy']['version']}, OpenCV {steps['opencv']['version']}")


CHECKS: tuple[Callable[[Facts], Finding], ...] = (
    _shm,
    _cpu,
    _memory,
    _packages,
)
FILES: tuple[Callable[[Facts], Finding], ...] = (
    _write_runs,
    _write_data,
    _disk_space,
    _data_speed,
)

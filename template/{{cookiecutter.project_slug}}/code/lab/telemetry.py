"""What the machine did during a run: GPU, processors, memory and reading, sampled into `telemetry.csv`.

A thread of the parent looks, never the training itself. Processor, memory and reading come from the kernel's files;
the GPU from nvidia-smi, with a time limit, and never oftener than costs a fiftieth of one processor.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from lab.limits import MEBIBYTE, processors

NAME = "telemetry.csv"
COLUMNS = (
    "time_s", "gpu", "gpu_util_pct", "gpu_mem_mib", "gpu_power_w", "cpu_util_pct", "rss_mib", "read_mb_s",
    "host_cpu_pct",  # of the whole machine: others may work on it too
)  # fmt: skip
PERIOD = 2.0  # seconds between samples in the first hour
THINNING = 1800  # later a sample each elapsed / THINNING: a week of training stays below 12,000 samples
SMI_LIMIT = 5.0  # seconds; a stuck driver makes nvidia-smi hang
SMI_SHARE = 50  # nvidia-smi runs at most one part in so many of the time
SMI_TRIES = 3  # unanswered questions in a row, after which it is asked no more
PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
TICKS = os.sysconf("SC_CLK_TCK")  # of the kernel's clock in a second
PAGE = os.sysconf("SC_PAGE_SIZE")


# The GPU


def ask_gpus(fields: Sequence[str], limit: float = SMI_LIMIT) -> list[dict[str, str]] | None:
    """nvidia-smi's answer, a dictionary for each GPU; [] without nvidia-smi or GPU, None when it does not answer.

    A field that the driver refuses (compute_cap before R510) is asked for no more; a placeholder such as [N/A], which
    MIG gives for utilisation, becomes "".
    """
    program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path="/usr/lib/wsl/lib")
    wanted = list(fields)
    while program is not None and wanted:
        command = [program, f"--query-gpu={','.join(wanted)}", "--format=csv,noheader,nounits"]
        text = _output(command, limit)
        if text is None:
            return None
        refused = re.search(r'Field "([\w.]+)" is not a valid field', text)
        if refused is None or refused[1] not in wanted:
            return _rows(text, wanted)
        wanted.remove(refused[1])
    return []


def _output(command: list[str], limit: float) -> str | None:
    """What a program prints; None when it hangs. One that waits for hardware cannot be killed, and is left."""
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, start_new_session=True
        )
    except OSError:
        return ""
    try:
        out, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        if process.stdout:
            process.stdout.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
        return None
    return out.decode(errors="replace")


def _rows(text: str, fields: Sequence[str]) -> list[dict[str, str]]:
    """The CSV lines, one a GPU; anything else that is printed is not of their length."""
    rows = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == len(fields):
            known = ["" if cell.startswith("[") or cell in ("N/A", "ERR!") else cell for cell in cells]
            rows.append(dict(zip(fields, known, strict=True)))
    return rows


# The processes


@dataclass(frozen=True)
class Usage:
    """Of a process and all below it: processor seconds and bytes read so far, bytes of memory now."""

    processor: float = 0.0
    memory: int = 0
    read: int = 0


def family(root: int, proc: Path = PROC) -> list[int]:
    """Process `root` and its descendants, whatever session they are in."""
    children: dict[int, list[int]] = {}
    for entry in proc.iterdir():
        if entry.name.isdigit() and (stat := _stat(entry)):
            children.setdefault(int(stat[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _stat(process: Path) -> list[str]:
    """The words of /proc/PID/stat after the name, which may hold spaces: state, parent, …; [] when it has gone."""
    try:
        return (process / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def usage(root: int, proc: Path = PROC) -> Usage:
    """What `root` and its descendants use. What an ended one used stays in its parent's counters."""
    seconds, private, shared, read = 0.0, 0, 0, 0
    for pid in family(root, proc):
        place = proc / str(pid)
        stat = _stat(place)
        if len(stat) < 15:
            continue
        seconds += sum(map(int, stat[11:15])) / TICKS  # user and system, its own and of those it waited for
        with suppress(OSError, ValueError):
            _, resident, file = map(int, (place / "statm").read_text().split()[:3])
            private += (resident - file) * PAGE
            shared = max(shared, file * PAGE)
        with suppress(OSError, ValueError):
            said = dict(line.split(": ") for line in (place / "io").read_text().splitlines())
            read += int(said["read_bytes"])
    return Usage(seconds, _group_memory() or private + shared, read)


def host_ticks(proc: Path = PROC) -> tuple[int, int]:
    """Ticks that the machine's processors have been working, and all that they had, since it started."""
    try:
        words = (proc / "stat").read_text(encoding="utf-8").split("\n", 1)[0].split()
        user, nice, system, idle, waiting, *other = map(int, words[1:9])
    except (OSError, ValueError):
        return 0, 0
    busy = user + nice + system + sum(other)
    return busy, busy + idle + waiting


def _group_memory() -> int | None:
    """Bytes that the container's processes hold, pages shared by forked workers counted once; None when unknown.

    The page cache is left out: the kernel takes it back when somebody needs it.
    """
    try:
        if not (CGROUP / "memory.current").is_file():  # the root group has none: this is no container
            return None
        lines = (line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        said = {key: int(value) for key, value in lines}
        return said["anon"] + said["shmem"]
    except (OSError, ValueError, KeyError):
        return None


# The samples


@dataclass
class Sampler:
    """Writes a line a GPU, or one line without any, each period until it is told to stop."""

    file: Path
    root: int
    period: float = PERIOD
    _stop: threading.Event = field(default_factory=threading.Event)
    _asked: float = 0.0  # when nvidia-smi was asked last, and how long it took
    _took: float = 0.0
    _unanswered: int = 0
    _gpus: list[dict[str, str]] = field(default_factory=list)

    def run(self) -> None:
        """The thread. A full disk or a vanished process ends the samples, never the training."""
        with suppress(OSError, ValueError):
            begun = time.monotonic() - _last_time(self.file)
            new = not self.file.exists()
            with self.file.open("a", encoding="utf-8", newline="") as opened:
                if new:
                    opened.write(",".join(COLUMNS) + "\n")
                self._sample(begun, opened)

    def _sample(self, begun: float, out: TextIO) -> None:
        lines = csv.writer(out, lineterminator="\n")
        cores = processors()
        before, at, host = usage(self.root), time.monotonic(), host_ticks()
        while not self._stop.wait(max(self.period, (time.monotonic() - begun) / THINNING)):
            self._look_at_gpus()
            now, when, host_now = usage(self.root), time.monotonic(), host_ticks()
            passed = max(when - at, 1e-3)
            common = (
                f"{min(100.0, max(0.0, now.processor - before.processor) / passed / cores * 100):.1f}",
                f"{now.memory / MEBIBYTE:.0f}",
                f"{max(0, now.read - before.read) / passed / 1e6:.2f}",
                f"{(host_now[0] - host[0]) / max(1, host_now[1] - host[1]) * 100:.1f}",
            )
            for gpu in self._gpus or [{}]:
                own = (gpu.get(key, "") for key in ("index", "utilization.gpu", "memory.used", "power.draw"))
                lines.writerow((f"{when - begun:.1f}", *own, *common))
            out.flush()
            before, at, host = now, when, host_now

    def _look_at_gpus(self) -> None:
        now = time.monotonic()
        if self._unanswered >= SMI_TRIES or now - self._asked < SMI_SHARE * self._took:
            return
        found = ask_gpus(("index", "utilization.gpu", "memory.used", "power.draw"))
        self._asked, self._took = now, time.monotonic() - now
        if found is None:
            self._unanswered += 1
            self._gpus = [{**gpu, "utilization.gpu": "", "memory.used": "", "power.draw": ""} for gpu in self._gpus]
        else:
            self._unanswered = 0 if found else SMI_TRIES  # no GPU now: there will be none
            self._gpus = found

    def stop(self) -> None:
        """End the samples, at once."""
        self._stop.set()


@contextmanager
def sampling(directory: Path | None, root: int) -> Iterator[None]:
    """Sample process `root` into `directory` while the block runs; nothing without a directory."""
    if directory is None:
        yield
        return
    sampler = Sampler(directory / NAME, root)
    thread = threading.Thread(target=sampler.run, name="telemetry", daemon=True)
    thread.start()
    try:
        yield
    finally:
        sampler.stop()
        thread.join(SMI_LIMIT + 1)


def _last_time(file: Path) -> float:
    """Where a resumed run's samples go on, in seconds."""
    rows = read(file)
    return rows[-1].time if rows else 0.0


# Reading them again


@dataclass(frozen=True)
class Sample:
    """A line of telemetry.csv: seconds since the start, per cent, MiB, W, MB/s; None where nothing was known."""

    time: float
    gpu: int | None
    gpu_util: float | None
    gpu_memory: float | None
    gpu_power: float | None
    cpu_util: float | None
    memory: float | None
    read: float | None
    host_cpu: float | None


def read(file: Path) -> list[Sample]:
    """The samples of `file`, without lines that a crash cut short; [] when there is none."""
    try:
        with file.open(encoding="utf-8", errors="replace", newline="") as opened:
            rows = list(csv.reader(opened))
    except (OSError, csv.Error):
        return []
    if not rows or not set(COLUMNS[:8]) <= set(rows[0]):  # the ninth came later
        return []
    found = []
    for row in rows[1:]:
        said = dict(zip(rows[0], map(_number, row), strict=False))
        time_s, gpu, *values = (said.get(column) for column in COLUMNS)
        if len(row) == len(rows[0]) and time_s is not None:
            found.append(Sample(time_s, int(gpu) if gpu is not None else None, *values))
    return found


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if abs(value) < 1e12 else None  # nan and infinity are no measurement either

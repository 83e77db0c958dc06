"""What the machine did during a run: GPU, processors, memory and reading, sampled into `telemetry.csv`.

A thread of the parent looks, never the training itself; `lab watch` looks by the same `Eye`. Processor, memory and
reading come from the kernel's files, images a second from the training's pace.json, the GPU from NVML; where that gives
nothing, from nvidia-smi, with a time limit, and never oftener than costs a fiftieth of one processor.
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
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import TextIO

from lab import devices, nvml, pace
from lab.limits import MEBIBYTE, processors
from lab.nvml import Gpu
from lab.pace import Pace

NAME = "telemetry.csv"
COLUMNS = (
    "time_s", "gpu", "gpu_util_pct", "gpu_mem_mib", "gpu_power_w", "cpu_util_pct", "rss_mib", "read_mb_s",
    "host_cpu_pct",  # of the whole machine: others may work on it too
    "images_s", "data_wait_pct", "gpu_clock_mhz",
)  # fmt: skip
FIRST = 8  # columns that every file has; the others came later
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


# A look at all of it


@dataclass
class Cards:
    """The GPUs as the driver tells of them, by NVML, else by nvidia-smi.

    `why` it tells of none, in its words; `lost`: because one fell off the bus.
    """

    why: str = ""
    lost: bool = False
    _asker: nvml.Asker = field(default_factory=nvml.Asker)
    _asked: float = 0.0  # when the driver was asked last, and how long it took
    _took: float = 0.0
    _unanswered: int = 0
    _gpus: tuple[Gpu, ...] = ()

    def look(self, traffic: bool = False) -> tuple[Gpu, ...]:
        """Those of this container; as they were, with nothing known of them, where the driver does not answer."""
        now = time.monotonic()
        if self._unanswered >= SMI_TRIES or now - self._asked < SMI_SHARE * self._took:
            return self._gpus
        found, self._took = self._by_nvml(traffic) if devices.gpu_nodes() else (), 0.0
        if found == ():
            found = self._by_smi()
            self._took = time.monotonic() - now
        if found is None:
            self.why = "the driver does not answer"
        self._asked = now
        if found is None:
            self._unanswered += 1
            self._gpus = tuple(Gpu(gpu.number, gpu.name) for gpu in self._gpus)
        else:
            self._unanswered = 0 if found else SMI_TRIES  # no GPU now: there will be none
            self._gpus = found
        return self._gpus

    def _by_nvml(self, traffic: bool) -> tuple[Gpu, ...] | None:
        """None when the driver does not answer, () where NVML tells of no GPU: nvidia-smi may know better."""
        answer = self._asker.ask(traffic)
        if answer is None:
            return None
        self.why, self.lost = answer.why, answer.lost
        return answer.gpus

    def _by_smi(self) -> tuple[Gpu, ...] | None:
        rows = ask_gpus(("index", "utilization.gpu", "memory.used", "power.draw", "uuid"))
        if rows is None:
            return None
        return tuple(
            Gpu(
                int(row["index"]),
                util=_number(row.get("utilization.gpu", "")),
                memory=_number(row.get("memory.used", "")),
                power=_number(row.get("power.draw", "")),
                uuid=row.get("uuid", ""),
            )
            for row in rows
            if row["index"].isdigit()
        )

    def close(self) -> None:
        """End the process that asks."""
        self._asker.close()


@dataclass(frozen=True)
class Look:
    """The machine since the look before: per cent, MiB, MB/s; None where nothing is known."""

    gpus: tuple[Gpu, ...]
    cpu: float | None  # of the training, of all the processors that it may use
    memory: float | None
    read: float | None
    host_cpu: float | None  # of the whole machine
    pace: Pace | None  # while the training is in its steps


class Eye:
    """Looks at the GPUs, at process `root` with all below it (None: it is not to be seen from here), at its pace."""

    def __init__(self, directory: Path | None, root: int | None, traffic: bool = False) -> None:
        self.directory, self.root, self.traffic, self.cards = directory, root, traffic, Cards()
        self._cores = processors()
        self._before = self._counters()

    def follow(self, root: int | None) -> None:
        """Look at another process from now on."""
        self.root = root
        self._before = self._counters()

    def _counters(self) -> tuple[float, Usage, tuple[int, int]]:
        return time.monotonic(), Usage() if self.root is None else usage(self.root), host_ticks()

    def look(self) -> Look:
        """What is known now, and happened since the last look."""
        gpus = self.cards.look(self.traffic)
        (at, before, host), self._before = self._before, self._counters()
        now, after, host_after = self._before
        passed = max(now - at, 1e-3)
        seen = self.root is not None
        busy = (after.processor - before.processor) / passed / self._cores * 100
        told = pace.read(self.directory) if self.directory is not None else None
        return Look(
            gpus=gpus,
            cpu=min(100.0, max(0.0, busy)) if seen else None,
            memory=after.memory / MEBIBYTE if seen else None,
            read=max(0, after.read - before.read) / passed / 1e6 if seen else None,
            host_cpu=(host_after[0] - host[0]) / max(1, host_after[1] - host[1]) * 100,
            pace=told if told is not None and told.steps_now(time.time()) else None,
        )

    def close(self) -> None:
        """End what it started."""
        self.cards.close()


def samples(look: Look, at: float) -> list[Sample]:
    """`look` as lines of telemetry.csv, one a GPU, or one without any; `at` seconds of the run."""
    told = look.pace
    wait = told.wait * 100 if told is not None and told.wait is not None else None
    common = Sample(
        at, None, None, None, None, look.cpu, look.memory, look.read, look.host_cpu, told.rate if told else None, wait
    )
    return [
        replace(
            common, gpu=gpu.number, gpu_util=gpu.util, gpu_memory=held(gpu), gpu_power=gpu.power, gpu_clock=gpu.clock
        )
        for gpu in look.gpus
    ] or [common]


def held(gpu: Gpu) -> float | None:
    """MiB in use on a GPU; of one that is split, on the instances that are seen from here."""
    known = [part.memory for part in gpu.slices if part.memory is not None]
    return sum(known) if known else gpu.memory


# The samples


@dataclass
class Sampler:
    """Writes a line a GPU, or one line without any, each period until it is told to stop."""

    file: Path
    root: int
    period: float = PERIOD
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """The thread. A full disk or a vanished process ends the samples, never the training."""
        with suppress(OSError, ValueError):
            begun = time.monotonic() - _last_time(self.file)
            columns = _columns(self.file)
            with self.file.open("a", encoding="utf-8", newline="") as opened:
                if not columns:
                    columns = list(COLUMNS)
                    opened.write(",".join(columns) + "\n")
                self._sample(begun, columns, opened)

    def _sample(self, begun: float, columns: Sequence[str], out: TextIO) -> None:
        lines = csv.writer(out, lineterminator="\n")
        eye = Eye(self.file.parent, self.root)
        try:
            while not self._stop.wait(max(self.period, (time.monotonic() - begun) / THINNING)):
                look = eye.look()
                for sample in samples(look, time.monotonic() - begun):
                    said = dict(zip(COLUMNS, astuple(sample), strict=True))
                    lines.writerow(_cell(column, said.get(column)) for column in columns)
                out.flush()
        finally:
            eye.close()

    def stop(self) -> None:
        """End the samples, at once."""
        self._stop.set()


DIGITS = {"gpu": 0, "gpu_mem_mib": 0, "rss_mib": 0, "read_mb_s": 2, "gpu_clock_mhz": 0}


def _cell(column: str, value: float | None) -> str:
    return "" if value is None else f"{value:.{DIGITS.get(column, 1)}f}"


def _columns(file: Path) -> list[str]:
    """The header of a file that another version began; a resumed run goes on with its columns."""
    try:
        with file.open(encoding="utf-8", errors="replace", newline="") as opened:
            return next(csv.reader(opened), [])
    except (OSError, csv.Error):
        return []


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
        with suppress(OSError):
            (directory / pace.NAME).unlink(missing_ok=True)  # the samples have it


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
    rate: float | None = None  # images a second
    wait: float | None = None  # of the time in the steps, for images
    gpu_clock: float | None = None


def read(file: Path) -> list[Sample]:
    """The samples of `file`, without lines that a crash cut short; [] when there is none."""
    try:
        with file.open(encoding="utf-8", errors="replace", newline="") as opened:
            rows = list(csv.reader(opened))
    except (OSError, csv.Error):
        return []
    if not rows or not set(COLUMNS[:FIRST]) <= set(rows[0]):
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

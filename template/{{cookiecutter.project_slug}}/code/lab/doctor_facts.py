"""Facts about this container for `lab doctor`: looks and measures, judges nothing.

Everything that touches a GPU, torch or a disk of others runs in a child process with a time limit: what is stuck
becomes a fact, and a crash ends the child alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import IO, Any, NamedTuple

from lab import devices, limits
from lab.project import CODE, Project

SMI_LIMIT, TORCH_LIMIT, DEVICE_LIMIT, NCCL_LIMIT, READ_LIMIT = 8.0, 60.0, 40.0, 40.0, 10.0  # seconds
KILLED = 2.0  # seconds a killed child gets to be gone; one that waits for hardware cannot be killed, and is left
QUERY = ("index", "name", "driver_version", "memory.total", "memory.used", "mig.mode.current", "uuid")
OPENCVS = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
Answer = dict[str, Any]


class Slice(NamedTuple):
    """A MIG instance: its profile, such as 1g.10gb; MiB."""

    profile: str
    uuid: str = ""
    total: int | None = None


class Gpu(NamedTuple):
    """A line of nvidia-smi; memory in MiB, None where the driver does not tell."""

    number: int
    name: str
    driver: str
    total: int | None = None
    used: int | None = None
    mig: bool = False
    uuid: str = ""
    slices: tuple[Slice, ...] = ()  # those that this container may see


@dataclass(frozen=True)
class Smi:
    """What nvidia-smi says.

    `state`: ok, missing, hangs, unknown-error, mismatch, lost, blocked, permission, no-driver,
    no-library, no-devices, failed.
    """

    state: str = "missing"
    message: str = ""
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True)
class Child:
    """A child's steps by name, and how it ended: "", "hangs", or words such as "died of signal SIGSEGV".

    `at` is the step that it did not end. A step that ended has "ok", and "error" when that is false.
    """

    steps: Mapping[str, Answer] = field(default_factory=dict)
    end: str = ""
    at: str = ""
    said: str = ""  # what else it and its libraries printed, the end of it


@dataclass(frozen=True)
class Folder:
    """data/ or runs/. `error` is an errno name ("EACCES", …), "" when a file could be made there."""

    exists: bool = True
    error: str = ""
    owner: int = 0
    free: int | None = None
    place: str = ""  # DATA_DIR or RUNS_DIR in .env


@dataclass(frozen=True)
class Facts:
    """What `lab doctor` knows. Sizes in bytes, unless a name says MiB."""

    uid: int = 1000
    nodes: tuple[str, ...] = ()  # files in /dev through which a GPU is reached
    refused: Mapping[str, str] = field(default_factory=dict)  # those that cannot be opened: name -> errno name
    visible: str | None = None  # CUDA_VISIBLE_DEVICES
    accel: str = ""  # what host-setup decided last: gpu, gpu-cdi, cpu; "" where its file is not here
    wanted_torch: str = ""  # LAB_TORCH_VERSION and LAB_TORCH_BUILD of .env
    wanted_build: str = ""
    published: frozenset[int] | None = None  # codes of the installed build in the catalogue: 86 for sm_86
    no_catalogue: str = ""  # why there are none
    smi: Smi = Smi()
    torch: Child = Child()
    trials: Mapping[str, Child] = field(default_factory=dict)  # by device: "0", "1", …, or "cpu"
    nccl: tuple[Child, ...] = ()  # by rank
    nccl_without_p2p: tuple[Child, ...] = ()  # tried only when the first failed
    shm: tuple[int, int] | None = None  # total, free
    processors: int = 1  # that the affinity mask shows
    granted: int = 1  # of those, with the control group's quota
    memory: int | None = None  # the control group's limit, or the machine's memory
    memory_free: int | None = None
    data: Folder = Folder()
    runs: Folder = Folder()
    reading: Child = Child()
    opencvs: tuple[str, ...] = ()  # installed packages that bring the module cv2


def gather(project: Project, progress: Callable[[str], None]) -> Facts:
    """Look at everything, in about ten seconds where all is well; `progress` is told what comes next."""
    torch_visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    nodes = tuple(sorted(path.name for path in devices.gpu_nodes()))
    settings = read_settings(project.root / ".env")
    progress("nvidia-smi")
    smi = ask_smi()
    progress("the speed of data/")
    reading = _child(["read", str(project.root / "data")], READ_LIMIT)
    progress("torch")
    torch = _child(["torch"], TORCH_LIMIT)
    usable = [str(device["number"]) for device in torch.steps.get("devices", {}).get("devices", [])]
    trials: dict[str, Child] = {}
    if torch.steps.get("torch", {}).get("ok"):
        tried = usable or ["cpu"]
        progress("kernels on " + (f"GPU {', '.join(usable)}" if usable else "the processor"))
        children = _children([["device", name] for name in tried], DEVICE_LIMIT)
        trials = dict(zip(tried, children, strict=True))
    nccl: tuple[Child, ...] = ()
    without_p2p: tuple[Child, ...] = ()
    if len(usable) > 1 and all(reached(trial, "matmul") for trial in trials.values()):
        progress(f"NCCL on {len(usable)} GPUs")
        nccl = _nccl(len(usable), {})
        if not all(reached(rank, "reduce") for rank in nccl):
            progress("NCCL without peer-to-peer")
            without_p2p = _nccl(len(usable), {"NCCL_P2P_DISABLE": "1"})
    published, no_catalogue = read_catalogue(project.root / ".devcontainer" / "catalog.json", torch)
    memory, memory_free = _memory()
    return Facts(
        uid=os.getuid(),
        nodes=nodes,
        refused=_refused(),
        visible=torch_visible,
        accel=_accel(project.root / ".devcontainer" / "compose.local.yaml"),
        wanted_torch=settings.get("LAB_TORCH_VERSION", ""),
        wanted_build=settings.get("LAB_TORCH_BUILD", ""),
        published=published,
        no_catalogue=no_catalogue,
        smi=smi,
        torch=torch,
        trials=trials,
        nccl=nccl,
        nccl_without_p2p=without_p2p,
        shm=_shm(),
        processors=len(os.sched_getaffinity(0)),
        granted=limits.processors(),
        memory=memory,
        memory_free=memory_free,
        data=_folder(project.root / "data", settings.get("DATA_DIR", "")),
        runs=_folder(project.runs, settings.get("RUNS_DIR", "")),
        reading=reading,
        opencvs=_installed(OPENCVS),
    )


def reached(child: Child, step: str) -> bool:
    """Whether `child` did `step` without an error."""
    return bool(child.steps.get(step, {}).get("ok"))


# Children


def _child(words: Sequence[str], limit: float) -> Child:
    return _children([words], limit)[0]


def _nccl(world: int, more: dict[str, str]) -> tuple[Child, ...]:
    with tempfile.TemporaryDirectory(prefix="lab-doctor-") as scratch:
        ranks = [["nccl", str(rank), str(world), f"{scratch}/meeting"] for rank in range(world)]
        return tuple(_children(ranks, NCCL_LIMIT, more))


def _children(commands: Sequence[Sequence[str]], limit: float, more: Mapping[str, str] | None = None) -> list[Child]:
    """Run children of `lab.doctor_probe` beside each other, for `limit` seconds together."""
    paths = [str(CODE), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    environment = {**os.environ, **(more or {}), "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"}
    begin = [sys.executable, "-m", "lab.doctor_probe"]
    started: list[tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]] = []
    until = time.monotonic() + limit
    try:
        for words in commands:
            out, err = _memory_file(), _memory_file()
            process = subprocess.Popen(
                [*begin, *words],
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                env=environment,
                cwd=CODE,
                start_new_session=True,
            )
            started.append((process, out, err))
        return [_result(process, out, err, until) for process, out, err in started]
    finally:
        for process, _, _ in started:
            _kill(process)


OUTPUT = 1 << 20  # bytes that are kept of what a program prints


def _memory_file() -> IO[bytes]:
    """A file for what a child says: unlike a pipe it keeps the words of a killed one, and needs no room on a disk."""
    return os.fdopen(os.memfd_create("lab-doctor"), "w+b")


def _result(process: subprocess.Popen[bytes], out: IO[bytes], err: IO[bytes], until: float) -> Child:
    end = ""
    try:
        status = process.wait(max(0.0, until - time.monotonic()))
        if status < 0:
            end = f"died of signal {signal.Signals(-status).name}"
        elif status:
            end = f"ended with exit status {status}"
    except subprocess.TimeoutExpired:
        end = "hangs"
        _kill(process)
    with out, err:
        out.seek(0)
        err.seek(0)
        return read_steps(out.read(OUTPUT).decode(errors="replace"), err.read(OUTPUT).decode(errors="replace"), end)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # with what it started itself
    if process.poll() is None:
        try:
            process.wait(KILLED)
        except subprocess.TimeoutExpired:
            return


def read_steps(out: str, err: str, end: str) -> Child:
    """What a child printed, as `Child`. Lines that are not ours are the words of libraries, as stderr is."""
    steps: dict[str, Answer] = {}
    at = ""
    words: list[str] = []
    for line in out.splitlines():
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict) or "step" not in said:
            words.append(line)
            continue
        name = str(said["step"])
        if "ok" in said:
            steps[name] = said
            at = ""
        else:
            at = name
    return Child(steps, end, at, " ".join([*"\n".join(words)[-4000:].split(), *err[-4000:].split()]))


# The driver

_SENTENCES = (  # neither the exit status nor the stream is the same in all drivers
    ("unknown error", "unknown-error"),
    ("version mismatch", "mismatch"),
    ("insufficient permissions", "permission"),
    ("blocked by the operating system", "blocked"),
    ("is lost", "lost"),
    ("unable to determine the device handle", "lost"),
    ("couldn't communicate with the nvidia driver", "no-driver"),
    ("driver not loaded", "no-driver"),
    ("couldn't find libnvidia-ml", "no-library"),
    ("no devices were found", "no-devices"),
)


def ask_smi() -> Smi:
    """nvidia-smi's list of GPUs; a field that the driver does not know is left out and asked for no more."""
    program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path="/usr/lib/wsl/lib")
    if program is None:
        return Smi()
    fields = list(QUERY)
    while True:
        state, text = _run([program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"])
        unknown = re.search(r'Field "([\w.]+)" is not a valid field', text)
        if unknown is None or unknown[1] not in fields or len(fields) == 1:
            break
        fields.remove(unknown[1])
    if state == "hangs":
        return Smi("hangs")
    gpus = _rows(text, fields)
    lower = text.lower()
    known = next((name for sentence, name in _SENTENCES if sentence in lower), "")
    if not gpus:
        return Smi(known or ("failed" if state else "no-devices"), text)
    if any(gpu.mig for gpu in gpus):
        slices = _slices(_run([program, "-L"])[1])
        gpus = tuple(gpu._replace(slices=slices.get(gpu.number, ())) for gpu in gpus)
    return Smi("lost" if known == "lost" else "ok", "" if not state else text, gpus)


def _slices(text: str) -> dict[int, tuple[Slice, ...]]:
    """The MIG instances in `nvidia-smi -L`, by the GPU's number; a profile's name ends in its nominal GB."""
    found: dict[int, tuple[Slice, ...]] = {}
    number = 0
    for line in text.splitlines():
        if card := re.match(r"GPU (\d+):", line):
            number = int(card[1])
        elif part := re.match(r"\s+MIG (\S+)\s+Device\s+\d+:\s*\(UUID: ([^)]+)\)", line):
            size = re.search(r"(\d+)gb", part[1])
            found[number] = (*found.get(number, ()), Slice(part[1], part[2], int(size[1]) << 10 if size else None))
    return found


def ask_torch() -> tuple[Gpu, ...]:
    """The GPUs that torch sees, in its own numbers: among those that CUDA_VISIBLE_DEVICES leaves."""
    seen = _child(["torch"], TORCH_LIMIT).steps.get("devices", {}).get("devices", [])
    return tuple(Gpu(int(one["number"]), str(one["name"]), "", int(one["memory_mib"])) for one in seen)


def _run(command: list[str]) -> tuple[str, str]:
    """("", "failed" or "hangs"; both streams)."""
    with _memory_file() as out:
        try:
            process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (OUTPUT, OUTPUT))  # it may print without end
        except OSError as error:
            return "failed", str(error)
        try:
            status = process.wait(SMI_LIMIT)
        except subprocess.TimeoutExpired:
            return "hangs", ""
        finally:
            _kill(process)
        out.seek(0)
        return "failed" if status else "", out.read(OUTPUT).decode(errors="replace").strip()


def _rows(text: str, fields: Sequence[str]) -> tuple[Gpu, ...]:
    gpus = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(fields):
            continue
        row = dict(zip(fields, cells, strict=True))
        if row.get("index", "").isdigit():
            total, used = (
                int(row[key]) if row.get(key, "").isdigit() else None for key in ("memory.total", "memory.used")
            )
            mig = row.get("mig.mode.current") == "Enabled"
            name, driver, uuid = (row.get(key, "") for key in ("name", "driver_version", "uuid"))
            gpus.append(Gpu(int(row["index"]), name, driver, total, used, mig, uuid if "-" in uuid else ""))
    return tuple(gpus)


def _refused() -> dict[str, str]:
    """Device files that this user cannot open. EPERM is the control group's no, EACCES that of the file's mode."""
    refused: dict[str, str] = {}
    for node in devices.gpu_nodes():
        if not re.fullmatch(r"nvidia\d+|nvidiactl|nvidia-uvm|dxg", node.name):
            continue
        try:
            os.close(os.open(node, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            refused[node.name] = errno.errorcode.get(error.errno or 0, str(error))
    return refused


# Files of the project


def read_settings(file: Path) -> dict[str, str]:
    """`KEY=VALUE` lines of a .env; the last one of a name counts, as for compose. Empty when it cannot be read."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = re.findall(r"^\s*(?:export\s+)?([A-Za-z_]\w*)\s*=[ \t]*(.*?)\s*$", text, re.MULTILINE)
    return {name: value.strip("'\"") for name, value in pairs}


def _accel(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    driver = re.search(r"^\s*-?\s*driver: *(cdi|nvidia)\b", text, re.MULTILINE)
    return {"cdi": "gpu-cdi", "nvidia": "gpu"}[driver[1]] if driver else "cpu"


def read_catalogue(file: Path, torch: Child, machine: str = "") -> tuple[frozenset[int] | None, str]:
    """(codes that the catalogue knows of the installed build, why there are none)."""
    about = torch.steps.get("torch", {})
    if not about.get("ok") or not about.get("cuda") or not about.get("version"):
        return None, "torch has no CUDA code" if about.get("ok") else "torch cannot be asked"
    release, name = str(about["version"]).partition("+")[0], "cu" + str(about["cuda"]).replace(".", "")
    machine = machine or platform.machine()
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["releases"]
        builds: list[Any] = next((row["builds"] for row in rows if row["torch"] == release), [])
        codes = next(([*sass, *ptx] for build, on, sass, ptx in builds if (build, on) == (name, machine)), None)
    except OSError:
        return None, "there is no catalogue here"
    except (ValueError, KeyError, TypeError, RecursionError):
        return None, f"{file} cannot be read"
    if codes is not None and not all(isinstance(code, int) for code in codes):
        return None, f"{file} cannot be read"
    return (frozenset(codes), "") if codes is not None else (None, f"the catalogue has no torch {release}+{name}")


def _folder(path: Path, place: str) -> Folder:
    if not path.is_dir():
        return Folder(False, "ENOENT", place=place)
    error = ""
    try:
        with tempfile.NamedTemporaryFile(prefix=".write-test-", dir=path):
            pass
    except OSError as refusal:
        error = errno.errorcode.get(refusal.errno or 0, str(refusal))
    try:
        return Folder(True, error, path.stat().st_uid, shutil.disk_usage(path).free, place)
    except OSError:
        return Folder(True, error, place=place)


def _installed(names: Sequence[str]) -> tuple[str, ...]:
    found = []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)


# Limits of the container


def _shm() -> tuple[int, int] | None:
    try:
        usage = shutil.disk_usage(limits.SHM)
    except OSError:
        return None
    return usage.total, usage.free


def _memory(meminfo: Path = Path("/proc/meminfo")) -> tuple[int | None, int | None]:
    """(limit, free) in bytes: the machine's, or the control group's (version 2, then 1) where that is less."""
    try:
        lines = dict(re.findall(r"^(\w+): +(\d+) kB$", meminfo.read_text(encoding="ascii"), re.MULTILINE))
        total, free = int(lines["MemTotal"]) << 10, int(lines["MemAvailable"]) << 10
    except (OSError, KeyError):
        return None, None
    group = limits.CGROUP
    pairs = (
        (group / "memory.max", group / "memory.current"),
        (group / "memory/memory.limit_in_bytes", group / "memory/memory.usage_in_bytes"),
    )
    for most, current in pairs:
        try:
            limit, used = int(most.read_text()), int(current.read_text())
        except (OSError, ValueError):  # "max" is no number
            continue
        if limit < total:
            # pages of files count as used, though the kernel gives them back: only a lower bound of what is free
            return limit, max(0, min(free, limit - used + _page_cache(most.parent)))
    return total, free


def _page_cache(group: Path) -> int:
    try:
        text = (group / "memory.stat").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"^(?:total_)?inactive_file (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else 0

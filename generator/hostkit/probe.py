"""Facts about this machine: GPUs, driver, engine, disk. Looks, never decides, never writes, never waits past its limit.

Programs are found through PATH, files below $HOST_ROOT (default /): that is how a test describes a host.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any, Callable, NamedTuple

from .catalogue import MACHINES
from .resolve import Gpu, Host

LIMIT = 5.0  # seconds a program may take; a healthy nvidia-smi without persistence mode needs up to about 4
OUTPUT = 1 << 20  # bytes that are read of what a program prints
NAME = 96  # characters of a GPU's name; NVML_DEVICE_NAME_V2_BUFFER_SIZE

# R470 and older lack compute_cap, drivers before R450 mig.mode.current: a field that is refused is left out
QUERY = ("index", "name", "uuid", "driver_version", "memory.total", "compute_cap", "mig.mode.current")


class Answer(NamedTuple):
    """What a program said. `state` is ok, failed, missing, hangs or endless (it was stopped after `OUTPUT` bytes)."""

    state: str
    code: int | None = None
    out: str = ""
    err: str = ""

    @property
    def text(self) -> str:
        """Everything printed; nvidia-smi and docker are not consistent about which stream carries the reason."""
        return f"{self.out}\n{self.err}".strip()


class Slice(NamedTuple):
    """A MIG instance: the number of the GPU it is a part of, its profile ("3g.40gb") and its UUID ("MIG-...")."""

    gpu: int
    profile: str
    uuid: str


class Smi(NamedTuple):
    """What nvidia-smi says.

    `state`: ok, missing, hangs, no-driver, mismatch, no-devices, lost, blocked, permission, failed, unreadable.
    Only "no-devices" says that there is no GPU; "unreadable" is an answer that holds no row and no known sentence.
    `mig` are the numbers of the GPUs in MIG mode, of which CUDA uses only the `slices`.
    """

    state: str
    message: str = ""
    driver: str = ""
    gpus: tuple[Gpu, ...] = ()
    mig: tuple[int, ...] = ()
    slices: tuple[Slice, ...] = ()


class Docker(NamedTuple):
    """What the engine says.

    `state`: ok, missing, hangs, down, permission, failed, skipped. `kind`: docker, desktop, podman.
    """

    state: str
    message: str = ""
    kind: str = "docker"
    version: str = ""
    rootless: bool = False
    runtimes: tuple[str, ...] = ()
    cdi: bool = False
    cdi_directories: tuple[str, ...] = ()
    root: str = ""


class Distribution(NamedTuple):
    """From os-release: `id` and `like` name the family, `name` is for people."""

    id: str = ""
    like: tuple[str, ...] = ()
    version: str = ""
    name: str = ""


class Facts(NamedTuple):
    """Everything known about this machine. Sizes in bytes; None where it could not be read."""

    system: str  # linux, wsl2, macos, windows
    machine: str  # x86_64, aarch64 or what the kernel says
    distribution: Distribution
    uid: int | None
    gid: int | None
    user: str
    smi: Smi
    module: str  # driver version of the loaded kernel module
    pci: tuple[str, ...]  # NVIDIA display devices on the PCI bus
    wsl_driver: bool  # /dev/dxg and the Windows driver's libraries are there
    docker: Docker
    compose: str  # version, "" when there is none
    toolkit: str  # version of the NVIDIA Container Toolkit, "unknown" when it does not say, "" when absent
    hook: bool  # nvidia-container-runtime-hook is there
    cdi: tuple[str, ...]  # CDI specifications that name NVIDIA devices
    project_free: int | None
    docker_free: int | None
    certificates: int  # files in the places for a site's own CA certificates
    proxy: str
    seconds: float

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """The GPUs the driver lists."""
        return self.smi.gpus

    @property
    def driver(self) -> str:
        """The driver's version, "" when there is none."""
        return self.smi.driver or self.module

    def host(self, torch: str = "auto", python: str = "") -> Host:
        """The question for `resolve`. A Windows host runs its containers under WSL2, a Mac has no NVIDIA driver."""
        system = "wsl2" if self.system in {"wsl2", "windows"} else "linux"
        return Host(self.driver, self.smi.gpus, system, self.machine, torch, python)


def host_path(path: str) -> Path:
    """`path` below $HOST_ROOT."""
    return Path(os.environ.get("HOST_ROOT") or "/") / path.lstrip("/")


def ask(command: list[str], limit: float = LIMIT) -> Answer:
    """Run a program that only reads. Never raises; past `limit` seconds it "hangs" and is killed with its children."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment, start_new_session=os.name == "posix", bufsize=0,
        )  # fmt: skip
    except (FileNotFoundError, NotADirectoryError):
        return Answer("missing")
    except OSError as error:
        return Answer("failed", None, "", f"{command[0]} cannot be run: {error.strerror}")
    until = time.monotonic() + limit
    chunks: list[list[bytes]] = [[], []]
    readers = []
    for stream, into in zip((process.stdout, process.stderr), chunks):  # noqa: B905 (Python 3.8)
        # daemon: a pipe that something stuck in the driver holds open must not keep the interpreter alive
        readers.append(threading.Thread(target=_drain, args=(process, stream, into), daemon=True))
        readers[-1].start()
    for reader in readers:
        reader.join(max(0.0, until - time.monotonic()))
    try:
        if any(reader.is_alive() for reader in readers):
            raise subprocess.TimeoutExpired(command, limit)
        process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        _kill(process)
        return Answer("hangs")
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    out, err = (b"".join(one)[:OUTPUT].decode("utf-8", "replace") for one in chunks)
    if any(sum(map(len, one)) > OUTPUT for one in chunks):
        return Answer("endless", None, out, err)
    return Answer("ok" if process.returncode == 0 else "failed", process.returncode, out, err)


def _drain(process: subprocess.Popen[bytes], stream: IO[bytes], into: list[bytes]) -> None:
    """Read a stream to its end. The program is killed when it prints more than `OUTPUT`: nobody wants to keep that."""
    room = OUTPUT
    with contextlib.suppress(OSError, ValueError):
        while room >= 0:
            chunk = stream.read(1 << 16)
            if not chunk:
                return
            into.append(chunk)
            room -= len(chunk)
    _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the whole group and do not wait long: a process stuck in the driver survives even SIGKILL."""
    try:
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait(timeout=0.2)
    except (OSError, subprocess.TimeoutExpired):
        pass


def probe(project: Path | None = None, limit: float = LIMIT, docker: bool = True) -> Facts:
    """Look at everything at once. Takes about as long as the slowest program, at most a little over `limit` seconds.

    `docker=False` leaves out the engine (state "skipped"), which is what a hook does that must not wait for it.
    """
    started = time.monotonic()
    system = _system()
    found: dict[str, object] = {}

    def start(name: str, look: Callable[[], object]) -> threading.Thread:
        # daemon: a look that never comes back (a dead network disk) must not keep the interpreter alive
        thread = threading.Thread(target=lambda: found.__setitem__(name, look()), daemon=True)
        thread.start()
        return thread

    looks: dict[str, Callable[[], object]] = {
        "smi": lambda: _smi(limit),
        "project": lambda: _free(project or Path()),
        "docker": lambda: _docker(limit),
        "compose": lambda: _compose(limit),
        "toolkit": lambda: _toolkit(limit),
    }
    if not docker:
        for name in ("docker", "compose", "toolkit"):
            del looks[name]
    threads = [start(name, look) for name, look in looks.items()]
    distribution, pci, certificates = _distribution(), _pci(), len(certificate_files())
    deadline = started + limit + 0.5
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))

    smi = found.get("smi", Smi("hangs"))
    engine = found.get("docker", Docker("hangs" if docker else "skipped"))
    compose, toolkit, project_free = found.get("compose", ""), found.get("toolkit", ""), found.get("project")
    docker_free = found.get("root")
    assert isinstance(smi, Smi)
    assert isinstance(engine, Docker)
    if engine.root and engine.kind != "desktop":
        start("root", lambda: _free(host_path(engine.root))).join(1.0)
        docker_free = found.get("root")
    return Facts(
        system=system,
        machine=_machine(),
        distribution=distribution,
        uid=os.getuid() if hasattr(os, "getuid") else None,
        gid=os.getgid() if hasattr(os, "getgid") else None,
        user=_user(),
        smi=smi,
        module=_module(),
        pci=pci,
        wsl_driver=host_path("/dev/dxg").exists() and host_path("/usr/lib/wsl/lib/libcuda.so.1").exists(),
        docker=engine,
        compose=str(compose),
        toolkit=str(toolkit),
        hook=shutil.which("nvidia-container-runtime-hook") is not None,
        cdi=_cdi_specs(engine.cdi_directories),
        project_free=project_free if isinstance(project_free, int) else None,
        docker_free=docker_free if isinstance(docker_free, int) else None,
        certificates=certificates,
        proxy=next((os.environ[name] for name in ("HTTPS_PROXY", "https_proxy") if os.environ.get(name)), ""),
        seconds=round(time.monotonic() - started, 3),
    )


# The machine


def _read(path: str, limit: int = 1 << 20) -> str:
    try:
        with host_path(path).open("rb") as file:
            return file.read(limit).decode("utf-8", "replace")
    except OSError:
        return ""


def _system() -> str:
    platform = str(sys.platform)
    if platform == "darwin":
        return "macos"
    if platform in {"win32", "cygwin", "msys"}:
        return "windows"
    return "wsl2" if "microsoft" in _read("/proc/version").lower() else "linux"


def _machine() -> str:
    name = os.uname().machine if hasattr(os, "uname") else os.environ.get("PROCESSOR_ARCHITECTURE", "")
    return MACHINES.get(name.lower(), name)


def _user() -> str:
    for name in ("USER", "LOGNAME", "USERNAME"):
        if os.environ.get(name):
            return os.environ[name]
    with contextlib.suppress(ImportError, KeyError, AttributeError):  # Windows has no pwd, containers lack entries
        import pwd  # noqa: PLC0415

        return pwd.getpwuid(os.getuid()).pw_name
    return ""


def _distribution() -> Distribution:
    text = _read("/etc/os-release") or _read("/usr/lib/os-release")
    fields = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith("#"):
            fields[name] = value.strip().strip("\"'")
    return Distribution(
        fields.get("ID", "").lower(),
        tuple(fields.get("ID_LIKE", "").lower().split()),
        fields.get("VERSION_ID", ""),
        fields.get("PRETTY_NAME", ""),
    )


def _free(path: Path) -> int | None:
    """Free bytes for this user on the file system of `path`; None when that cannot be read."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


CERTIFICATE_SUFFIXES = {".crt", ".pem", ".cer", ".der"}
CERTIFICATE_PLACES = (
    ("/usr/local/share/ca-certificates", "**/*.crt"),
    ("/etc/pki/ca-trust/source/anchors", "*"),
    ("/etc/pki/trust/anchors", "*"),
    ("/usr/share/pki/trust/anchors", "*"),
    ("/etc/ca-certificates/trust-source/anchors", "*"),
)


def certificate_files() -> list[Path]:
    """Files in the places where distributions look for CA certificates that a site adds, in a stable order."""
    files = []
    for place, pattern in CERTIFICATE_PLACES:
        try:
            files += sorted(path for path in host_path(place).glob(pattern) if path.is_file())
        except OSError:
            continue
    return files


# The GPU


def _smi(limit: float) -> Smi:
    program = shutil.which("nvidia-smi")
    if program is None:  # WSL2 keeps it off the PATH of some shells
        path = host_path("/usr/lib/wsl/lib/nvidia-smi")
        program = str(path) if path.is_file() else None
    if program is None:
        return Smi("missing")
    until = time.monotonic() + limit
    fields = QUERY
    while True:
        command = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        answer = ask(command, max(0.1, until - time.monotonic()))
        refused = re.search(r'Field "([a-z_.]+)" is not a valid field', answer.text)  # the whole query fails, on stdout
        if not refused or refused[1] not in fields:
            break
        fields = tuple(field for field in fields if field != refused[1])
    found = read_smi(answer, fields)
    if found.mig:
        listed = ask([program, "-L"], max(0.1, until - time.monotonic()))
        found = found._replace(slices=read_slices(listed.out))
    return found


def read_smi(answer: Answer, fields: tuple[str, ...] = QUERY) -> Smi:
    """What an answer to `--query-gpu=FIELDS --format=csv,noheader,nounits` says. Pure; never raises.

    Rows count even when the exit status is not 0: a corrupt infoROM is one, and the GPU works.
    """
    rows, rest = _rows(answer.out, fields)
    message = " ".join(f"{rest}\n{answer.err}".split())[:4000]
    if answer.state == "endless":
        return Smi("unreadable", message)
    if not rows:
        return Smi(_smi_state(answer), message)
    gpus = tuple(
        Gpu(
            int(row["index"]),
            row["name"][:NAME],
            _capability(row.get("compute_cap", "")),
            _mib(row["memory.total"]),
            _known(row["uuid"]),
        )
        for row in rows
    )
    mig = tuple(int(row["index"]) for row in rows if row.get("mig.mode.current", "").lower() == "enabled")
    return Smi("ok", message, _driver(rows[0]["driver_version"]), gpus, mig)


def _rows(text: str, fields: tuple[str, ...]) -> tuple[list[dict[str, str]], str]:
    """The CSV rows by field, and the lines that are none."""
    rows, rest = [], []
    for line in text.split("\n"):  # and at nothing else that Python takes for the end of a line
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == len(fields) and re.fullmatch("[0-9]{1,4}", cells[0]):
            rows.append(dict(zip(fields, cells)))  # noqa: B905 (Python 3.8; of one length)
        else:
            rest.append(line)
    return rows, "\n".join(rest)


def read_slices(text: str) -> tuple[Slice, ...]:
    """The MIG instances in what `nvidia-smi -L` prints, in its order, which is CUDA's."""
    found = []
    gpu = -1
    for line in text.split("\n"):
        parent = re.match(r"GPU ([0-9]{1,4}):", line)
        part = re.match(r"\s+MIG (\S{1,40})\s+Device\s+[0-9]{1,4}: \(UUID: (MIG-[A-Za-z0-9/-]{1,100})\)", line)
        if parent:
            gpu = int(parent[1])
        elif part and gpu >= 0:
            found.append(Slice(gpu, part[1], part[2]))
    return tuple(found)


def _known(cell: str) -> str:
    """A cell, or "" for a placeholder such as [N/A], [Not Supported] or ERR!."""
    return "" if cell.startswith("[") or cell in {"N/A", "ERR!"} else cell


def _driver(cell: str) -> str:
    """The driver's version; "" when the cell holds anything else."""
    match = re.match(r"[0-9]{2,4}(\.[0-9]{1,6}){1,3}(?![0-9.])", cell)
    return match[0] if match else ""


def _capability(cell: str) -> str:
    """A compute capability; "" when the cell holds anything else, so that the name tells."""
    return cell if re.fullmatch(r"[0-9]{1,2}\.[0-9]", cell) else ""


def _mib(cell: str) -> int | None:
    match = re.match(r"[0-9]{1,9}(?![0-9])", cell)
    return int(match[0]) if match else None


_SMI_TEXTS = (
    ("version mismatch", "mismatch"),
    ("blocked by the operating system", "blocked"),
    ("couldn't communicate", "no-driver"),
    ("no devices were found", "no-devices"),
    ("gpu is lost", "lost"),
    ("fallen off the bus", "lost"),
    ("insufficient permissions", "permission"),
)
_SMI_CODES = {4: "permission", 9: "no-driver", 15: "lost", 18: "mismatch"}  # manual of nvidia-smi


def _smi_state(answer: Answer) -> str:
    if answer.state in {"missing", "hangs"}:
        return answer.state
    text = answer.text.lower()
    for part, state in _SMI_TEXTS:
        if part in text:
            return state
    if answer.code == 0:
        return "unreadable"
    return _SMI_CODES.get(answer.code or 0, "failed")


def _module() -> str:
    match = re.search(
        r"Kernel Module.*?\s([0-9]{2,4}\.[0-9]{1,6}(?:\.[0-9]{1,6})?)\s", _read("/proc/driver/nvidia/version") + " "
    )
    return match[1] if match else ""


def _pci() -> tuple[str, ...]:
    """Addresses of display controllers (class 03) made by NVIDIA, driver or not."""
    found = []
    try:
        devices = sorted(host_path("/sys/bus/pci/devices").iterdir())
    except OSError:
        return ()
    for device in devices:
        try:
            vendor = (device / "vendor").read_text().strip()
            kind = (device / "class").read_text().strip()
        except (OSError, UnicodeDecodeError):
            continue
        if vendor == "0x10de" and kind.startswith("0x03"):
            found.append(device.name)
    return tuple(found)


# The engine


def _docker(limit: float) -> Docker:
    answer = ask(["docker", "info", "--format", "{{json .}}"], limit)
    if answer.state in {"missing", "hangs"}:
        return Docker(answer.state)
    info = _json_object(answer.out)
    if "host" in info and "store" in info:
        return _podman(info)
    errors = " ".join(map(str, info.get("ServerErrors") or []))
    message = " ".join(f"{errors} {answer.err}".split())
    if not info.get("ServerVersion"):
        return Docker(_docker_state(message), message or " ".join(answer.out.split())[:300])
    security = [str(option) for option in info.get("SecurityOptions") or []]
    desktop = "docker desktop" in str(info.get("OperatingSystem", "")).lower()
    devices = [str(device.get("ID", "")) for device in info.get("DiscoveredDevices") or [] if isinstance(device, dict)]
    return Docker(
        "ok",
        message,
        "desktop" if desktop else "docker",
        str(info["ServerVersion"]),
        any("rootless" in option for option in security),
        tuple(sorted(info.get("Runtimes") or {})),
        any("nvidia.com/gpu" in device for device in devices),
        tuple(str(path) for path in info.get("CDISpecDirs") or []),
        str(info.get("DockerRootDir") or ""),
    )


def _podman(info: dict[str, Any]) -> Docker:
    """Podman behind a `docker` command: no runtimes to register, GPUs come by CDI."""
    host, store, version = (info.get(name) for name in ("host", "store", "version"))
    assert isinstance(host, dict)
    security = host.get("security")
    return Docker(
        "ok",
        kind="podman",
        version=str(version.get("Version", "")) if isinstance(version, dict) else "",
        rootless=bool(isinstance(security, dict) and security.get("rootless")),
        root=str(store.get("graphRoot", "")) if isinstance(store, dict) else "",
    )


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _docker_state(message: str) -> str:
    text = message.lower()
    if "permission denied" in text:
        return "permission"
    if any(part in text for part in ("cannot connect", "failed to connect", "daemon running", "error during connect")):
        return "down"
    return "failed"


def _compose(limit: float) -> str:
    for command in (["docker", "compose", "version", "--short"], ["docker-compose", "version", "--short"]):
        answer = ask(command, limit)
        match = (
            re.search(r"(?<![0-9.])([0-9]{1,4}\.[0-9]{1,4}(?![0-9])\S{0,40})", answer.out)
            if answer.state == "ok"
            else None
        )
        if match:
            return match[1]
    return ""


def _toolkit(limit: float) -> str:
    answer = ask(["nvidia-ctk", "--version"], limit)
    if answer.state == "missing":
        return ""
    match = re.search(r"version ([0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4})\b", answer.out)
    return match[1] if match else "unknown"


def _cdi_specs(also: tuple[str, ...]) -> tuple[str, ...]:
    """CDI specifications for NVIDIA devices, in the two places that engines read by default and those of this one."""
    found = []
    for place in dict.fromkeys(("/etc/cdi", "/var/run/cdi", *also)):
        try:
            files = sorted(host_path(place).iterdir())
        except OSError:
            continue
        for file in files:
            path = f"{place}/{file.name}"
            if file.suffix in {".yaml", ".yml", ".json"} and "nvidia.com/gpu" in _read(path):
                found.append(path)
    return tuple(found)

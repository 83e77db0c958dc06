"""Facts about this machine: GPUs, driver, engine, disk. Looks, never decides, never writes, never waits past its limit.

Programs are found through PATH, files below $HOST_ROOT (default /): that is how a test describes a host.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Callable, NamedTuple

from .catalogue import MACHINES
from .engine import (
    Docker,
    Running,
    ask_compose,
    ask_endpoint,
    ask_engine,
    ask_running,
    ask_toolkit,
    cdi_specs,
    default_shm,
    no_cgroups,
)
from .files import host_path, names, read
from .nvidia import Card, Smi, ask_smi, cards, device_files, linux_driver_in_wsl, listed, module, nouveau, secure_boot
from .program import LIMIT, stop_all
from .resolve import Gpu, Host


class Distribution(NamedTuple):
    """From os-release: `id` and `like` name the family, `name` is for people."""

    id: str = ""
    like: tuple[str, ...] = ()
    version: str = ""
    name: str = ""


# Which project has which port, for all users of the machine; /tmp and not TMPDIR, which may be each user's own
PORT_CLAIMS = "/tmp/yolov5-devcontainer-ports"


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
    cards: tuple[Card, ...]  # NVIDIA display controllers on the PCI bus
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
    listed: tuple[Gpu, ...] = ()  # what the kernel module says of its GPUs: names only
    devices: tuple[str, ...] = ()  # nvidia0, nvidiactl, nvidia-uvm in /dev
    nouveau: bool = False
    linux_driver: bool = False  # under WSL2: a Linux driver was installed beside that of Windows
    secure_boot: bool = False
    endpoint: str = ""  # where the engine listens
    running: Running = Running()
    no_cgroups: bool = False
    desktop_installed: bool = False  # under WSL2: Windows has Docker Desktop
    dockerd: bool = False  # a daemon is installed here
    podman: bool = False
    docker_repository: bool = False  # apt knows Docker's own repository
    tegra: bool = False  # a Jetson
    certificate_hint: str = ""  # a file of CA certificates that the environment names for other programs
    docker_group: tuple[str, ...] | None = None  # members of the group docker; None when there is no such group
    in_docker_group: bool = False  # this process is in it
    selinux: str = ""  # enforcing, permissive
    memory: int | None = None
    memory_free: int | None = None
    cpus: int = 0
    cpu_quota: float | None = None  # processors that the control group grants, None for no limit
    project_owner: int | None = None
    shm_default: int | None = None
    shm_wanted: int | None = None  # what this project asks for
    busy_ports: tuple[tuple[str, int], ...] = ()  # of those the project would publish
    claims: tuple[int, int] | None = None  # mode and owner of PORT_CLAIMS; None where there is none

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """The GPUs that CUDA can use; one in MIG mode only when it has instances.

        Without nvidia-smi those that the kernel module lists: containers get their own nvidia-smi from the toolkit.
        """
        if self.smi.state == "missing" and self.module:
            return self.listed
        parted = {one.gpu for one in self.smi.slices}
        return tuple(gpu for gpu in self.smi.gpus if gpu.number not in self.smi.mig or gpu.number in parted)

    @property
    def driver(self) -> str:
        """The driver's version, "" when there is none."""
        return self.smi.driver or self.module

    def host(self, torch: str = "auto", python: str = "") -> Host:
        """The question for `resolve`. A Windows host runs its containers under WSL2, a Mac has no NVIDIA driver."""
        system = "wsl2" if self.system in {"wsl2", "windows"} else "linux"
        driver = self.driver
        if self.tegra and driver.partition(".")[0].isdigit():
            driver = driver.partition(".")[0]  # JetPack numbers its drivers its own way (580.00): the branch counts
        return Host(driver, self.gpus, system, self.machine, torch, python)


class Needs(NamedTuple):
    """What a project asks of the host: its compose project, the ports it publishes by their variables, its /dev/shm."""

    project: str = ""
    ports: tuple[tuple[str, int], ...] = ()
    shm: int | None = None


NOTHING = Needs()


def probe(
    project: Path | None = None,
    limit: float = LIMIT,
    docker: bool = True,
    needs: Needs = NOTHING,
    patience: float = 0.0,
) -> Facts:
    """Look at everything at once. Takes about as long as the slowest program, at most a little over `limit` seconds.

    nvidia-smi gets `patience` seconds more: without persistence mode a server of eight GPUs starts them all first.
    `docker=False` leaves out the engine (state "skipped"), which is what a hook does that must not wait for it.
    """
    started = time.monotonic()
    found: dict[str, object] = {}

    def start(name: str, look: Callable[[], object]) -> threading.Thread:
        # daemon: a look that never comes back (a dead network disk) must not keep the interpreter alive
        thread = threading.Thread(target=lambda: found.__setitem__(name, look()), daemon=True)
        thread.start()
        return thread

    looks: dict[str, Callable[[], object]] = {
        "smi": lambda: ask_smi(limit + patience),
        "project": lambda: _free(project or Path()),
        "owner": lambda: _owner(project or Path()),
    }
    if docker:
        looks["docker"] = lambda: ask_engine(limit)
        looks["compose"] = lambda: ask_compose(limit)
        looks["toolkit"] = lambda: ask_toolkit(limit)
        looks["endpoint"] = lambda: ask_endpoint(limit)
        looks["running"] = lambda: ask_running(needs.project, limit)
    system = _system()
    if system == "wsl2":  # a Windows disk, which may be slow to answer
        looks["desktop"] = lambda: host_path("/mnt/c/Program Files/Docker/Docker/Docker Desktop.exe").exists()
    threads = [start(name, look) for name, look in looks.items()]
    distribution, pci, certificates = _distribution(), cards(), len(certificate_files())
    members, is_member = _docker_group()
    total, free = _memory()
    deadline = started + limit + patience + 0.5
    try:
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
    finally:
        stop_all()

    smi = found.get("smi", Smi("hangs"))
    engine = found.get("docker", Docker("hangs" if docker else "skipped"))
    compose, toolkit, project_free = found.get("compose", ""), found.get("toolkit", ""), found.get("project")
    running, owner = found.get("running", Running()), found.get("owner")
    docker_free = None
    assert isinstance(smi, Smi)
    assert isinstance(engine, Docker)
    assert isinstance(running, Running)
    if engine.root and engine.kind != "desktop":
        start("root", lambda: _least_free(engine.root)).join(1.0)
        docker_free = found.get("root")
    return Facts(
        system=system,
        machine=_machine(),
        distribution=distribution,
        uid=os.getuid() if hasattr(os, "getuid") else None,
        gid=os.getgid() if hasattr(os, "getgid") else None,
        user=_user(),
        smi=smi,
        module=module(),
        cards=pci,
        wsl_driver=host_path("/dev/dxg").exists() and host_path("/usr/lib/wsl/lib/libcuda.so.1").exists(),
        docker=engine,
        compose=str(compose),
        toolkit=str(toolkit),
        hook=shutil.which("nvidia-container-runtime-hook") is not None,
        cdi=cdi_specs(engine.cdi_directories),
        project_free=project_free if isinstance(project_free, int) else None,
        docker_free=docker_free if isinstance(docker_free, int) else None,
        certificates=certificates,
        proxy=next((os.environ[name] for name in PROXIES if os.environ.get(name)), ""),
        listed=listed(),
        devices=device_files(),
        nouveau=nouveau(),
        linux_driver=system == "wsl2" and linux_driver_in_wsl(),
        secure_boot=secure_boot(),
        endpoint=str(found.get("endpoint", "")),
        running=running,
        no_cgroups=no_cgroups(),
        desktop_installed=bool(found.get("desktop")),
        dockerd=shutil.which("dockerd") is not None,
        podman=shutil.which("podman") is not None,
        docker_repository=any(name.startswith("docker.") for name in names("/etc/apt/sources.list.d")),
        tegra=host_path("/etc/nv_tegra_release").exists(),
        certificate_hint=_certificate_hint(),
        docker_group=members,
        in_docker_group=is_member,
        selinux={"1": "enforcing", "0": "permissive"}.get(read("/sys/fs/selinux/enforce").strip(), ""),
        memory=total,
        memory_free=free,
        cpus=_cpus(),
        cpu_quota=_cpu_quota(),
        project_owner=owner if isinstance(owner, int) else None,
        shm_default=default_shm(),
        shm_wanted=needs.shm,
        busy_ports=busy(needs.ports, system),
        claims=_claims(),
        seconds=round(time.monotonic() - started, 3),
    )


# The machine


def _system() -> str:
    platform = str(sys.platform)
    if platform == "darwin":
        return "macos"
    if platform in {"win32", "cygwin", "msys"}:
        return "windows"
    return "wsl2" if "microsoft" in read("/proc/version").lower() else "linux"


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
    text = read("/etc/os-release") or read("/usr/lib/os-release")
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
    except (OSError, ValueError):  # ValueError: no file can have such a name
        return None


def _memory() -> tuple[int | None, int | None]:
    """(all, available) memory in bytes."""
    fields = dict(re.findall(r"^(MemTotal|MemAvailable):\s+([0-9]{1,15}) kB$", read("/proc/meminfo"), re.MULTILINE))
    total, free = (int(fields[name]) << 10 if name in fields else None for name in ("MemTotal", "MemAvailable"))
    return total, free


def _cpus() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_quota() -> float | None:
    """Processors that the control group of this process or one above it grants (version 2); None for no limit."""
    match = re.search(r"^0::(/\S*)$", read("/proc/self/cgroup"), re.MULTILINE)
    place = match[1].strip("/") if match else ""
    least = None
    while True:
        limit = re.match(r"([0-9]{1,12}) ([1-9][0-9]{0,11})\s*$", read(f"/sys/fs/cgroup/{place}/cpu.max"))
        if limit:
            granted = int(limit[1]) / int(limit[2])
            least = granted if least is None else min(least, granted)
        if not place:
            return least
        place = place.rpartition("/")[0]


def _docker_group() -> tuple[tuple[str, ...] | None, bool]:
    """(members of the group docker, whether this process is in it). Somebody added since login is not yet."""
    match = re.search(r"^docker:[^:]*:([0-9]{1,10}):(.*)$", read("/etc/group"), re.MULTILINE)
    if not match:
        return None, False
    members = tuple(name for name in match[2].split(",") if name)
    return members, hasattr(os, "getgroups") and int(match[1]) in {*os.getgroups(), os.getgid()}


def busy(ports: tuple[tuple[str, int], ...], system: str) -> tuple[tuple[str, int], ...]:
    """Those of `ports` on which something listens at 127.0.0.1 or at every address."""
    if not ports:
        return ()
    listening = _listening() if system in {"linux", "wsl2"} else {port for _, port in ports if not _can_bind(port)}
    return tuple((name, port) for name, port in ports if port in listening)


def _listening() -> set[int]:
    """Ports in state LISTEN (0A) of /proc/net/tcp and tcp6, for addresses a publication on 127.0.0.1 collides with."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in read(table).splitlines():
            match = re.match(r"\s*\d+: ([0-9A-F]{8,32}):([0-9A-F]{4}) \S+ 0A ", line)
            if match and (match[1] in {"0100007F", "0" * 8, "0" * 32} or match[1].endswith("FFFF00000100007F")):
                found.add(int(match[2], 16))
    return found


def _claims() -> tuple[int, int] | None:
    """Mode and owner of what stands in the place of PORT_CLAIMS, a link for itself."""
    try:
        found = host_path(PORT_CLAIMS).lstat()
    except OSError:
        return None
    return (found.st_mode, found.st_uid)


def _can_bind(port: int) -> bool:
    with contextlib.closing(socket.socket()) as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _least_free(root: str) -> int | None:
    """Free bytes where the engine keeps its images: its own folder, or containerd's since Docker 29."""
    free = [_free(host_path(root)), _free(host_path("/var/lib/containerd"))]
    return min((one for one in free if one is not None), default=None)


def _owner(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except OSError:
        return None


PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
# Set by companies whose proxy opens TLS, to a file that holds the proxy's certificate authority
HINTS = ("NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE", "PIP_CERT")
BUNDLES = ("/etc/ssl/", "/etc/pki/", "/usr/share/", "/usr/lib/")  # the system's own


def _certificate_hint() -> str:
    values = (os.environ.get(name, "") for name in HINTS)
    return next((value for value in values if value and not value.startswith(BUNDLES)), "")


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

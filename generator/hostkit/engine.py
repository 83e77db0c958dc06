"""What the container engine, Compose and the NVIDIA Container Toolkit say. Nothing is decided here."""

from __future__ import annotations

import json
import os
import re
import time
from typing import Any, NamedTuple

from .files import names, read
from .program import ask


class Docker(NamedTuple):
    """What the engine says. `memory` and `cpus` are what it has, which under Docker Desktop is a virtual machine's.

    `state`: ok, missing, hangs, down, permission, integration, failed, skipped. `kind`: docker, desktop, podman.
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
    context: str = ""
    userns: bool = False  # the daemon maps the ids of containers to others
    selinux: bool = False
    memory: int | None = None
    cpus: int | None = None


class Running(NamedTuple):
    """The project's own container, where there is one, running or not.

    `id` is its name, `accel` how it got its GPU (gpu, gpu-cdi, cpu). `gpu` is "" when it was not asked for one, else
    ok, lost or failed.
    """

    id: str = ""
    gpu: str = ""
    message: str = ""
    image: str = ""
    accel: str = ""


def ask_engine(limit: float) -> Docker:
    """Ask `docker info`, also where Podman poses as docker."""
    answer = ask(["docker", "info", "--format", "{{json .}}"], limit)
    if "activate the WSL integration" in answer.text:  # what Docker Desktop puts in the place of its command
        return Docker("integration", " ".join(answer.text.split())[:300])
    if answer.state in {"missing", "hangs"}:
        return Docker(answer.state)
    info = _object(answer.out)
    if "host" in info and "store" in info:
        return _podman(info)
    message = " ".join(f"{' '.join(_texts(info.get('ServerErrors')))} {answer.err}".split())
    if not info.get("ServerVersion"):
        return Docker(_docker_state(message), message or " ".join(answer.out.split())[:300])
    security = _texts(info.get("SecurityOptions"))
    devices = [str(_mapping(device).get("ID", "")) for device in _list(info.get("DiscoveredDevices"))]
    return Docker(
        "ok",
        message,
        "desktop" if "docker desktop" in str(info.get("OperatingSystem", "")).lower() else "docker",
        str(info["ServerVersion"]),
        rootless=any("rootless" in option for option in security),
        runtimes=tuple(sorted(map(str, _mapping(info.get("Runtimes"))))),
        cdi=any("nvidia.com/gpu" in device for device in devices),
        cdi_directories=tuple(_texts(info.get("CDISpecDirs"))),
        root=str(info.get("DockerRootDir") or ""),
        context=str(_mapping(info.get("ClientInfo")).get("Context") or ""),
        userns=any("name=userns" in option for option in security),
        selinux=any("name=selinux" in option for option in security),
        memory=_count(info.get("MemTotal")),
        cpus=_count(info.get("NCPU")),
    )


def _podman(info: dict[str, Any]) -> Docker:
    """Podman behind a `docker` command: no runtimes to register, GPUs come by CDI."""
    host = _mapping(info["host"])
    security = _mapping(host.get("security"))
    return Docker(
        "ok",
        kind="podman",
        version=str(_mapping(info.get("version")).get("Version", "")),
        rootless=bool(security.get("rootless")),
        root=str(_mapping(info["store"]).get("graphRoot") or ""),
        selinux=bool(security.get("selinuxEnabled")),
        memory=_count(host.get("memTotal")),
        cpus=_count(host.get("cpus")),
    )


# What programs print as JSON may be of any shape.


def _object(text: str) -> dict[str, Any]:
    try:
        return _mapping(json.loads(text))
    except (ValueError, RecursionError):
        return {}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _texts(value: Any) -> list[str]:
    return [one for one in _list(value) if isinstance(one, str)]


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _docker_state(message: str) -> str:
    text = message.lower()
    if "permission denied" in text:
        return "permission"
    if any(part in text for part in ("cannot connect", "failed to connect", "daemon running", "error during connect")):
        return "down"
    return "failed"


# a line that is a version and nothing else, as --short prints it, or that ends with "version v2.38.1"
_COMPOSE = re.compile(
    r"(?:^|\bversion )v?([0-9]{1,4}\.[0-9]{1,4}(?:[.+~-][0-9A-Za-z.+~-]{1,40})?)[ \t\r]*$", re.MULTILINE
)


def ask_compose(limit: float) -> str:
    """The version of Compose, "" when there is none."""
    until = time.monotonic() + limit
    for command in (["docker", "compose", "version", "--short"], ["docker-compose", "version", "--short"]):
        answer = ask(command, until - time.monotonic())
        match = _COMPOSE.search(answer.out) if answer.state == "ok" else None
        if match:
            return match[1]
    return ""


def ask_toolkit(limit: float) -> str:
    """The version of the NVIDIA Container Toolkit, "unknown" when it does not say, "" when it is absent."""
    answer = ask(["nvidia-ctk", "--version"], limit)
    if answer.state == "missing":
        return ""
    match = re.search(r"version ([0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4})\b", answer.out)
    return match[1] if match else "unknown"


def cdi_specs(also: tuple[str, ...]) -> tuple[str, ...]:
    """CDI specifications for NVIDIA devices, in the two places that engines read by default and those of this one."""
    found = []
    for place in dict.fromkeys(("/etc/cdi", "/var/run/cdi", *also)):
        for name in names(place):
            path = f"{place}/{name}"
            if name.endswith((".yaml", ".yml", ".json")) and "nvidia.com/gpu" in read(path):
                found.append(path)
    return tuple(found)


def ask_endpoint(limit: float) -> str:
    """Where the engine listens: DOCKER_HOST, else what the chosen context says; "" when neither tells."""
    if os.environ.get("DOCKER_HOST"):
        return os.environ["DOCKER_HOST"]
    answer = ask(["docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}"], limit)
    return answer.out.strip()[:300] if answer.state == "ok" else ""


def ask_running(project: str, limit: float) -> Running:
    """The container in which this project is open, and whether the GPU that it was started with is still there.

    systemd takes GPUs away from running containers when it reloads, unless they came by CDI; nothing says so until a
    program asks. The container is known by the name that Compose gives: `docker ps` would cost its time first.
    """
    if not project:
        return Running()
    until = time.monotonic() + limit
    for name in (f"{project}-dev-1", f"{project}_dev_1"):  # Compose 2, and Podman's
        command = ["docker", "inspect", "--type", "container", "--format", "{{json .}}", name]
        about = _object(ask(command, until - time.monotonic()).out)
        if about or time.monotonic() >= until:
            break
    if not about:
        return Running()
    requests = [_mapping(one) for one in _list(_mapping(about.get("HostConfig")).get("DeviceRequests"))]
    cdi = any(one.get("Driver") == "cdi" for one in requests)
    known = Running(
        name,
        image=str(_mapping(about.get("Config")).get("Image") or ""),
        accel="gpu-cdi" if cdi else "gpu" if requests else "cpu",
    )
    if not requests or not _mapping(about.get("State")).get("Running"):
        return known
    # `timeout` inside: killing the client alone would leave a stuck program in the container
    seconds = max(1, int(until - time.monotonic()))
    inside = ["timeout", "-s", "KILL", str(seconds), "nvidia-smi", "-L"]
    answer = ask(["docker", "exec", name, *inside], seconds + 0.5)
    if re.search(r"^GPU [0-9]", answer.out, re.MULTILINE):
        return known._replace(gpu="ok")
    message = " ".join(answer.text.split())[:300] or "it does not answer"
    lost = "Failed to initialize NVML: Unknown Error" in message
    return known._replace(gpu="lost" if lost else "failed", message=message)


def default_shm() -> int | None:
    """Bytes of /dev/shm that the daemon gives a container which asks for nothing; None when it is not configured."""
    return size(str(_object(read("/etc/docker/daemon.json")).get("default-shm-size") or ""))


def size(text: str) -> int | None:
    """Bytes of a size as Docker and Compose write it ("8gb", "64m", "1073741824"); None for anything else."""
    match = re.fullmatch(r"([0-9]{1,15})(?:\.[0-9]+)?\s*([kmgt]?)i?b?", text.strip().lower())
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[match[2]] if match else None


def no_cgroups() -> bool:
    """Whether the toolkit leaves device rules alone (no-cgroups = true), which a rootless engine needs without CDI."""
    text = read("/etc/nvidia-container-runtime/config.toml")
    return re.search(r"^\s*no-cgroups\s*=\s*true\b", text, re.MULTILINE) is not None

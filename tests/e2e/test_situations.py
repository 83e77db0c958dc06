"""Described hosts, opened by the real Dev Container CLI and the real Compose: what each gets, and what a person reads.

A host is a folder of fake programs (its PATH), a folder of files (HOST_ROOT) and `docker-stub` in the engine's place.
What Compose then asks the engine for is heard by `engine_stub.Engine`. No engine is needed, but for the last test.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from engine_stub import Engine
from hosts import CATALOGUE, DescribedHost, slice_uuid

from generator.hostkit.project import BEGIN, own_values

STUB = Path(__file__).with_name("docker-stub")

# what reaches the engine as HostConfig.DeviceRequests
RUNTIME = [{"Driver": "nvidia", "Count": -1, "Capabilities": [["gpu"]]}]
CDI = [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=all"], "Capabilities": [["gpu"]]}]
NO_GPU: list[Any] = []

SPEC = 'cdiVersion: "0.6.0"\nkind: nvidia.com/gpu\ndevices:\n  - name: all\n'
UBUNTU = 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\nPRETTY_NAME="Ubuntu 24.04.3 LTS"\n'
WSL = "Linux version 5.15.167.4-microsoft-standard-WSL2 (root@f9c826d3017f) #1 SMP\n"
MODULE = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10  Thu Jan 16 19:54:03 UTC 2025\n"
CARD = "0000:01:00.0"
WITHOUT_INTEGRATION = (
    "\nThe command 'docker' could not be found in this WSL 2 distro.\n"
    "We recommend to activate the WSL integration in Docker Desktop settings.\n"
)
CONTAINER = "c1c1c1c1c1c1"
INFORMATION = (
    "Model: \t\t NVIDIA GeForce RTX 4090\nIRQ:   \t\t 154\nBus Location: \t 0000:01:00.0\nDevice Minor: \t 0\n"
)


# --- the pieces of a host ---------------------------------------------------------------------------------------------


class Machine(DescribedHost):
    """A described host with an engine. It is a Linux workstation with Docker and without a GPU until pieces change it.

    `variables` are those of the shell from which the editor was started.
    """

    def __init__(self, folder: Path, engine: Engine, tools: Tools) -> None:
        with pytest.MonkeyPatch.context() as patch:  # this process keeps its own PATH
            super().__init__(folder, patch)
        self.tools = tools
        self.state = folder / "stub"
        self.state.mkdir()
        (folder / "home").mkdir()
        (folder / "tmp").mkdir()
        self.path = [self.bin, tools.python, tools.plain]
        self.variables = {
            "HOST_ROOT": str(self.root),
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            "USER": "ada",
            "STUB": str(self.state),
            "REAL_DOCKER": tools.docker,
        }
        if not tools.become:  # Compose may be a plugin of this user
            self.variables["DOCKER_CONFIG"] = os.environ.get("DOCKER_CONFIG") or str(Path.home() / ".docker")
        shutil.copy(STUB, self.bin / "docker")
        inside = {"Image": "x", "User": "dev", "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"], "Labels": {}}
        self.stub("engine", engine.address)
        self.stub("compose", tools.compose)
        self.stub("version", "Docker version 28.3.0, build 38b7060\n")
        self.stub("image", json.dumps([{"Id": "sha256:aa", "Architecture": "amd64", "Os": "linux", "Config": inside}]))
        began = "2026-01-01T00:00:00Z"
        running = {"Id": CONTAINER, "Created": began, "Name": "/c1", "State": {"Status": "running", "StartedAt": began}}
        running |= {"Config": inside, "Mounts": [], "NetworkSettings": {"Ports": {}}}
        self.stub("container", json.dumps([running]))
        self.file("/etc/os-release", UBUNTU)
        docker()(self)

    def stub(self, name: str, text: str) -> None:
        (self.state / name).write_text(text, encoding="utf-8")

    @property
    def shell(self) -> dict[str, str]:
        """The environment of what is started on this host."""
        return {**self.variables, "PATH": ":".join(map(str, self.path))}


Piece = Callable[[Machine], object]


def gpus(*cards: str, driver: str = "570.86.10", **more: Any) -> Piece:
    return lambda host: host.nvidia_smi(driver, *cards, **more)


def docker(*runtimes: str, **info: object) -> Piece:
    usual = {
        "ServerVersion": "28.3.0",
        "OperatingSystem": "Ubuntu 24.04.3 LTS",
        "Runtimes": {name: {"path": name} for name in ("runc", *runtimes)},
        "SecurityOptions": ["name=seccomp,profile=builtin"],
        "CDISpecDirs": ["/etc/cdi", "/var/run/cdi"],
        "DockerRootDir": "/var/lib/docker",
    }
    return lambda host: host.stub("info", json.dumps({**usual, **info}))


def podman() -> Piece:
    info = {"host": {"security": {"rootless": True}}, "store": {"graphRoot": "/x"}, "version": {"Version": "5.4.0"}}

    def piece(host: Machine) -> None:
        host.stub("info", json.dumps(info))
        host.stub("version", "podman version 5.4.0\n")

    return piece


def says(program: str, out: str = "", err: str = "", code: int = 0) -> Piece:
    return lambda host: host.says(program, out, err, code)


def hangs(program: str) -> Piece:
    return lambda host: host.hangs(program)


def file(path: str, text: str = "") -> Piece:
    return lambda host: host.file(path, text)


def without(path: str) -> Piece:
    """A program that is not on this host's PATH."""
    return lambda host: (host.bin / path).unlink()


def pci(**more: str) -> Piece:
    return lambda host: host.pci(CARD, **more)


def shell(**variables: str) -> Piece:
    return lambda host: host.variables.update(variables)


def wsl(driver: str) -> Piece:
    """WSL2 with the driver of Windows, whose nvidia-smi is off the PATH, as in a shell of VS Code."""

    def piece(host: Machine) -> None:
        host.file("/proc/version", WSL)
        host.file("/dev/dxg", "")
        host.file("/usr/lib/wsl/lib/libcuda.so.1", "")
        host.nvidia_smi(driver, "4090").rename(host.root / "usr/lib/wsl/lib/nvidia-smi")

    return piece


def no_engine() -> Piece:
    return lambda host: (host.state / "info").unlink()


def closed_engine() -> Piece:
    """An engine whose socket this user may not open."""

    def piece(host: Machine) -> None:
        no_engine()(host)
        path = host.state / "unreachable.sock"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
        path.chmod(0)

    return piece


TOOLKIT = says("nvidia-ctk", "NVIDIA Container Toolkit CLI version 1.19.1\n")
NVIDIA = docker("nvidia")


# --- the situations ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Situation:
    """A host, what its container must get, and words that must be in the log which a person sees."""

    name: str
    host: tuple[Piece, ...]
    gpu: list[dict[str, Any]]  # HostConfig.DeviceRequests
    torch: str  # release and build, with "*" when it does not come from the default package index
    words: tuple[str, ...]
    devices: str | None = None  # CUDA_VISIBLE_DEVICES inside; by default "" on the CPU and unset on the GPU
    own: str = ""  # the user's lines in .env
    pinned: str = "2.8.0"  # torch_version, as answered
    config: str = ""  # another devcontainer.json
    rootless: bool = False


# fmt: off
SITUATIONS = (
    # how the GPU reaches the container
    Situation("runtime", (gpus("4090"), NVIDIA), RUNTIME, "2.8.0+cu128",
              ("NVIDIA GeForce RTX 4090, driver 570.86.10 -> torch 2.8.0+cu128 on the GPU",)),
    Situation("runtime and CDI", (gpus("4090"), NVIDIA, file("/etc/cdi/nvidia.yaml", SPEC)), RUNTIME, "2.8.0+cu128",
              ("on the GPU",)),
    Situation("CDI only, by its file", (gpus("4090"), file("/etc/cdi/nvidia.yaml", SPEC)), CDI, "2.8.0+cu128",
              ("hands out the GPU by CDI", "on the GPU")),
    Situation("CDI only, as the engine says",
              (gpus("4090"), docker(DiscoveredDevices=[{"Source": "cdi", "ID": "nvidia.com/gpu=all"}])),
              CDI, "2.8.0+cu128", ("hands out the GPU by CDI",)),
    Situation("CDI switched off", (gpus("4090"), TOOLKIT, docker(CDISpecDirs=[]), file("/etc/cdi/nvidia.yaml", SPEC)),
              RUNTIME, "2.8.0+cu128",
              ("Docker has CDI switched off; if the container does not start", "--cdi.enabled")),
    Situation("CDI file, engine too old for CDI",
              (gpus("4090"), docker(ServerVersion="24.0.7", CDISpecDirs=[]), file("/etc/cdi/nvidia.yaml", SPEC)),
              NO_GPU, "2.8.0+cpu*", ("Container Toolkit is not installed",)),
    Situation("driver without toolkit", (gpus("4090"),), NO_GPU, "2.8.0+cpu*",
              ("the CPU, because the NVIDIA Container Toolkit is not installed",
               "apt-get install -y nvidia-container-toolkit", "nvidia-ctk runtime configure --runtime=docker")),
    Situation("toolkit not registered", (gpus("4090"), TOOLKIT), RUNTIME, "2.8.0+cu128",
              ("if the container does not start: sudo nvidia-ctk runtime configure --runtime=docker",)),
    Situation("old hook", (gpus("4090"), says("nvidia-container-runtime-hook")), RUNTIME, "2.8.0+cu128",
              ("on the GPU",)),
    Situation("rootless", (gpus("4090"), docker("nvidia", SecurityOptions=["name=rootless"])), RUNTIME, "2.8.0+cu128",
              ("the engine is rootless",), rootless=True),
    Situation("rootless without toolkit", (gpus("4090"), docker(SecurityOptions=["name=rootless"])),
              NO_GPU, "2.8.0+cpu*", ("--config=$HOME/.config/docker/daemon.json",), rootless=True),
    Situation("Podman with CDI", (gpus("4090"), podman(), file("/etc/cdi/nvidia.yaml", SPEC)), CDI, "2.8.0+cu128",
              ("hands out the GPU by CDI",), rootless=True),
    Situation("Podman without CDI", (gpus("4090"), podman(), TOOLKIT), NO_GPU, "2.8.0+cpu*",
              ("Podman needs one", "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"), rootless=True),
    Situation("WSL2 with its own Docker", (wsl("576.02"), NVIDIA), RUNTIME, "2.8.0+cu128",
              ("driver 576.02 -> torch 2.8.0+cu128 on the GPU",)),
    Situation("WSL2 with Docker Desktop", (wsl("576.02"), docker(OperatingSystem="Docker Desktop")),
              RUNTIME, "2.8.0+cu128", ("driver 576.02 -> torch 2.8.0+cu128 on the GPU",)),
    Situation("WSL2 with its own Docker, no toolkit", (wsl("576.02"),), NO_GPU, "2.8.0+cpu*",
              ("Container Toolkit is not installed", "sudo service docker restart")),
    Situation("Docker Desktop", (docker(OperatingSystem="Docker Desktop"),), NO_GPU, "2.8.0+cpu*",
              ("no NVIDIA GPU here: the CPU trains",)),

    # what the cards and the driver allow
    Situation("no GPU", (), NO_GPU, "2.8.0+cpu*", ("no NVIDIA GPU here: the CPU trains",)),
    Situation("no GPU, but the runtime", (NVIDIA, TOOLKIT), NO_GPU, "2.8.0+cpu*",
              ("no NVIDIA GPU here: the CPU trains",)),
    Situation("several alike", (gpus("H100", "H100", "H100"), NVIDIA), RUNTIME, "2.8.0+cu128",
              ("3x NVIDIA H100 80GB HBM3, driver 570.86.10",)),
    Situation("mixed, one build for all", (gpus("2080 Ti", "4090"), NVIDIA), RUNTIME, "2.8.0+cu128",
              ("NVIDIA GeForce RTX 2080 Ti, NVIDIA GeForce RTX 4090, driver",)),
    Situation("mixed, one left out", (gpus("1080 Ti", "5090", driver="580.95.05"), NVIDIA), RUNTIME, "2.8.0+cu128",
              ("has no kernels for NVIDIA GeForce GTX 1080 Ti", "CUDA_VISIBLE_DEVICES=1"), devices="1"),
    Situation("an older card", (gpus("1080 Ti", driver="535.183.01"), NVIDIA), RUNTIME, "2.8.0+cu126*",
              ("driver 535.183.01 -> torch 2.8.0+cu126 on the GPU",)),
    Situation("compute_cap unknown to the driver",
              (gpus("1080 Ti", driver="535.183.01", refuses=("compute_cap", "mig.mode.current")), NVIDIA),
              RUNTIME, "2.8.0+cu126*", ("driver 535.183.01 -> torch 2.8.0+cu126 on the GPU",)),
    Situation("architecture too old", (gpus("K80", driver="470.256.02"), NVIDIA), NO_GPU, "2.8.0+cpu*",
              ("the CPU, because torch 2.8.0 has no kernels for Tesla K80", "to use the GPU: use torch 2.7.1 (cu118)")),
    Situation("driver too old", (gpus("4090", driver="515.105.01"), NVIDIA), NO_GPU, "2.8.0+cpu*",
              ("the CPU, because driver 515.105.01 is too old for torch 2.8.0",
               "to use the GPU: install driver 525.60.13 or newer")),
    Situation("driver too new for the card", (gpus("1080", driver="610.43.02"), NVIDIA), NO_GPU, "2.8.0+cpu*",
              ("580 is the last branch for Pascal", "install a driver of the 580 branch")),
    Situation("MIG", (gpus("A100", mig={0: ("3g.40gb", "3g.40gb")}), NVIDIA), RUNTIME, "2.8.0+cu128",
              ("NVIDIA A100-SXM4-80GB",)),
    Situation("MIG without instances", (gpus("A100", mig={0: ()}), NVIDIA), NO_GPU, "2.8.0+cpu*",
              ("nvidia-smi mig",)),
    Situation("auto, newest driver", (gpus("5090", driver="580.95.05"), NVIDIA), RUNTIME, "2.15.0+cu132",
              ("torch 2.15.0+cu132 on the GPU",), pinned="auto"),
    Situation("auto, Pascal", (gpus("1080 Ti", driver="580.95.05"), NVIDIA), RUNTIME, "2.14.1+cu126*",
              ("torch 2.14.1+cu126 on the GPU",), pinned="auto"),
    Situation("auto, driver for CUDA 11", (gpus("4090", driver="515.105.01"), NVIDIA), RUNTIME, "2.7.1+cu118*",
              ("torch 2.7.1+cu118 on the GPU",), pinned="auto"),
    Situation("auto, no GPU", (), NO_GPU, "2.15.0+cpu*", ("torch 2.15.0+cpu on the CPU",), pinned="auto"),

    # a driver in trouble
    Situation("hanging nvidia-smi", (hangs("nvidia-smi"), pci(), file("/proc/driver/nvidia/version", MODULE), NVIDIA),
              NO_GPU, "2.8.0+cpu*", ("the CPU, because nvidia-smi does not answer", "sudo dmesg")),
    Situation("driver not installed", (pci(), NVIDIA), NO_GPU, "2.8.0+cpu*",
              (CARD, "its driver is not installed", "sudo ubuntu-drivers install")),
    Situation("nouveau instead of the driver",
              (pci(driver="nouveau"), NVIDIA, file("/sys/module/nouveau/refcnt", "1\n")),
              NO_GPU, "2.8.0+cpu*", ("nouveau", "sudo ubuntu-drivers install")),
    Situation("driver without nvidia-smi, GPU unknown", (pci(), file("/proc/driver/nvidia/version", MODULE), NVIDIA),
              NO_GPU, "2.8.0+cpu*", ("570.86.10", "nvidia-smi",)),
    Situation("driver without nvidia-smi",
              (pci(), file("/proc/driver/nvidia/version", MODULE),
               file(f"/proc/driver/nvidia/gpus/{CARD}/information", INFORMATION), NVIDIA),
              RUNTIME, "2.8.0+cu128", ("NVIDIA GeForce RTX 4090", "570.86.10")),
    Situation("driver not loaded",
              (pci(), NVIDIA, says("nvidia-smi", "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA"
                                   " driver. Make sure that the latest NVIDIA driver is installed.\n", code=9)),
              NO_GPU, "2.8.0+cpu*", (CARD, "its driver is installed, but not loaded", "sudo modprobe nvidia")),
    Situation("library and driver differ",
              (pci(), NVIDIA, file("/proc/driver/nvidia/version", MODULE),
               says("nvidia-smi", "Failed to initialize NVML: Driver/library version mismatch\n"
                    "NVML library version: 575.51\n", code=18)),
              NO_GPU, "2.8.0+cpu*", ("the old kernel module 570.86.10 is still loaded: sudo reboot",)),
    Situation("a GPU fell off the bus",
              (pci(), NVIDIA, says("nvidia-smi", "Unable to determine the device handle for GPU0000:01:00.0: GPU is "
                                   "lost.  Reboot the system to recover this GPU\n", code=15)),
              NO_GPU, "2.8.0+cpu*", ("fell off the bus", "sudo dmesg")),

    # what the user asks for
    Situation("CPU, from the shell", (gpus("4090"), NVIDIA, shell(YOLO_ACCEL="cpu")), NO_GPU, "2.8.0+cpu*",
              ("accelerator cpu, as asked for",)),
    Situation("CPU, from .env", (gpus("4090"), NVIDIA), NO_GPU, "2.8.0+cpu*",
              ("accelerator cpu, as asked for",), own="YOLO_ACCEL=cpu\n"),
    Situation("CPU, by the other configuration", (gpus("4090"), NVIDIA), NO_GPU, "2.8.0+cpu*",
              ("accelerator cpu, as asked for",), config="cpu/devcontainer.json"),
    Situation("CPU, by the build", (gpus("4090"), NVIDIA), NO_GPU, "2.8.0+cpu*",
              ("TORCH_BUILD=cpu was asked for",), own="TORCH_BUILD=cpu\n"),
    Situation("CPU, by hiding every GPU", (gpus("4090"), NVIDIA), NO_GPU, "2.8.0+cpu*",
              ("CUDA_VISIBLE_DEVICES=-1 hides every GPU",), own="CUDA_VISIBLE_DEVICES=-1\n"),
    Situation("CDI, as asked", (gpus("4090"), NVIDIA), CDI, "2.8.0+cu128",
              ("accelerator gpu-cdi, as asked for",), own="YOLO_ACCEL=gpu-cdi\n"),
    Situation("GPU, as asked, where none is found", (NVIDIA,), RUNTIME, "2.8.0+cu128",
              ("accelerator gpu, as asked for", "nothing vouches for torch 2.8.0+cu128"), own="YOLO_ACCEL=gpu\n"),
    Situation("another release", (gpus("4090"), NVIDIA), RUNTIME, "2.7.1+cu126",
              ("torch 2.7.1+cu126 on the GPU",), own="TORCH_VERSION=2.7.1\n"),
    Situation("another release, from the shell before .env", (gpus("4090"), NVIDIA, shell(TORCH_VERSION="2.9.1")),
              RUNTIME, "2.9.1+cu128", ("torch 2.9.1+cu128 on the GPU",), own="TORCH_VERSION=2.7.1\n"),
    Situation("another build", (gpus("4090"), NVIDIA), RUNTIME, "2.8.0+cu126*",
              ("torch 2.8.0+cu126 on the GPU",), own="TORCH_BUILD=cu126\n"),
    Situation("a build that does not run here", (gpus("1080 Ti", driver="580.95.05"), NVIDIA), RUNTIME, "2.8.0+cu128",
              ("TORCH_BUILD=cu128 was asked for, but 2.8.0+cu128 does not run here",), own="TORCH_BUILD=cu128\n"),
    Situation("one of the cards", (gpus("1080 Ti", "5090", driver="580.95.05"), NVIDIA), RUNTIME, "2.8.0+cu126*",
              ("NVIDIA GeForce GTX 1080 Ti, driver", "CUDA_VISIBLE_DEVICES=0"), devices="0",
              own="CUDA_VISIBLE_DEVICES=0\n"),
    Situation("a MIG instance", (gpus("A100", mig={0: ("3g.40gb", "3g.40gb")}), NVIDIA), RUNTIME, "2.8.0+cu128",
              ("on the GPU",), devices=slice_uuid(0, 1), own=f"CUDA_VISIBLE_DEVICES={slice_uuid(0, 1)}\n"),
)
# fmt: on


# --- opening ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tools:
    """What every described host has, and the real programs behind the stub. Absolute paths."""

    node: str
    devcontainer: str
    docker: str
    compose: str  # its version
    python: Path  # a folder with python3 and nothing else
    plain: Path  # a folder with the few programs that a shell script takes for granted
    become: tuple[str, ...]  # begins a command that must not run as root
    uid: int
    gid: int


def _programs(folder: Path, **programs: str) -> Path:
    folder.mkdir()
    for name, path in programs.items():
        (folder / name).write_text(f'#!/bin/sh\nexec "{path}" "$@"\n')
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A short path (a socket's has to be) that any user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="hosts-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def tools(place: Path) -> Tools:
    for name in ("devcontainer", "node", "docker"):
        if shutil.which(name) is None:
            pytest.skip(f"there is no `{name}` here")
    version = ("docker", "compose", "version", "--short")
    compose = subprocess.run(version, capture_output=True, text=True, check=False).stdout
    if not compose:
        pytest.skip("`docker compose` does not work here")
    found = {name: os.path.realpath(str(shutil.which(name))) for name in ("devcontainer", "node", "docker")}
    become: tuple[str, ...] = ()
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:  # whom no read-only folder stops
        uid = gid = 65534
        become = (str(shutil.which("setpriv")), f"--reuid={uid}", f"--regid={gid}", "--clear-groups")
    pythons = (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3")
    python = next((path for path in pythons if _runs(become, path, "-c", "import json")), None)
    if python is None or not _runs(become, found["node"], found["devcontainer"], "--version"):
        pytest.skip("an ordinary user can run neither the Dev Container CLI nor a Python here")
    plain = ("sh", "env", "dirname", "cat", "sleep", "tr", "rm", "mkdir", "ls", "uname", "id")
    paths = {name: str(shutil.which(name)) for name in plain}
    return Tools(
        **found,
        compose=compose,
        python=_programs(place / "python", python3=python),
        plain=_programs(place / "plain", **paths),
        become=become,
        uid=uid,
        gid=gid,
    )


def _runs(become: tuple[str, ...], *command: str) -> bool:
    # by a shell: setpriv itself still finds what only root may see
    shell = [*become, "/bin/sh", "-c", 'exec "$@"', "sh", *command]
    return subprocess.run(shell, cwd="/", capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def engine(place: Path) -> Iterator[Engine]:
    with Engine(place / "engine.sock") as stub:
        yield stub


@pytest.fixture(scope="module")
def projects(place: Path) -> Callable[[str], Path]:
    """A project for each answer to `torch_version`, made once."""
    made: dict[str, Path] = {}

    def project(torch: str) -> Path:
        if torch not in made:
            folder = place / f"generated-{torch}"
            command = [sys.executable, "-m", "generator", "new", "--output", str(folder), f"torch_version={torch}"]
            own_home = {**os.environ, "HOME": str(place), "XDG_CONFIG_HOME": str(place)}
            done = subprocess.run(command, cwd=ROOT, env=own_home, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            made[torch] = folder / "my-detector"
        return made[torch]

    return project


@dataclass(frozen=True)
class Opened:
    """What came of opening a project: the CLI's outcome, its log, and what the engine was asked for, by service."""

    outcome: str
    log: str
    requests: dict[str, dict[str, Any]] = field(repr=False)

    @property
    def said(self) -> list[str]:
        """The sentences of host-setup."""
        return re.findall(r"^(?:\[[^]]*\] )?host-setup: (.*)$", self.log, re.MULTILINE)

    @property
    def after(self) -> list[str]:
        """The lines that the CLI adds to the last sentence of host-setup, without its JavaScript traceback."""
        _, _, rest = self.log.rpartition("host-setup: ")
        return [line for line in rest.splitlines()[1:] if line.strip() and not re.match(r" +at \S", line)]


@dataclass(frozen=True)
class Desk:
    """A project on a described host."""

    host: Machine
    folder: Path
    engine: Engine

    def run(self, *command: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the project as the host's user."""
        tools = self.host.tools
        return subprocess.run(
            [*tools.become, *map(str, command)],
            cwd=self.folder,
            env={**self.host.shell, **more},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )

    def up(self, config: str = "") -> Opened:
        """Open the project as "Reopen in Container" does."""
        self.engine.asked_for()
        tools = self.host.tools
        chosen = ("--config", self.folder / ".devcontainer" / config) if config else ()
        began = time.monotonic()
        done = self.run(tools.node, tools.devcontainer, "up", "--workspace-folder", self.folder, *chosen)
        last = done.stdout.strip().rpartition("\n")[2]
        print(f"[{time.monotonic() - began:.1f} s, exit {done.returncode}] {last}\n{done.stderr}")
        return Opened(json.loads(last)["outcome"], done.stderr, self.engine.asked_for())

    def compose(self, *services: str) -> dict[str, dict[str, Any]]:
        """What `docker compose` asks for in this folder without further options, as from a person's terminal."""
        self.engine.asked_for()
        command = ("compose", "create", "--no-build", "--pull", "never", *services)
        done = self.run(self.host.tools.docker, *command, DOCKER_HOST=self.engine.address)
        assert done.returncode == 0, done.stderr
        return self.engine.asked_for()

    def leave(self) -> None:
        """Remove the container: the next time a new one is made."""
        (self.host.state / "running").unlink()

    def files(self) -> dict[str, tuple[int, bytes]]:
        """The files of the project, those that were made anew apart from those that hold the same."""
        paths = [path for path in self.folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.folder)): (path.stat().st_ino, path.read_bytes()) for path in paths}

    @property
    def env(self) -> dict[str, str]:
        return own_values((self.folder / ".env").read_text(encoding="utf-8"))


def as_made(project: Path) -> None:
    """Nothing is changed in a project."""


@pytest.fixture
def desk(place: Path, tools: Tools, engine: Engine, projects: Callable[[str], Path]) -> Iterator[Callable[..., Desk]]:
    """A project on a host made of pieces. Its folder's name may be chosen."""
    made: list[Path] = []

    def make(
        *pieces: Piece,
        own: str = "",
        pinned: str = "2.8.0",
        name: str = "my-detector",
        spoilt: Callable[[Path], object] = as_made,
    ) -> Desk:
        folder = Path(tempfile.mkdtemp(prefix="", dir=place))
        made.append(folder)
        host = Machine(folder, engine, tools)
        for piece in pieces:
            piece(host)
        project = folder / name
        shutil.copytree(projects(pinned), project, ignore=shutil.ignore_patterns(".git"))
        if own:
            (project / ".env").write_bytes(own.encode())
        spoilt(project)
        for path in (folder, *folder.rglob("*")) if tools.become else ():
            os.chown(path, tools.uid, tools.gid, follow_symlinks=False)
        return Desk(host, project, engine)

    yield make
    for folder in made:
        subprocess.run(["chmod", "--recursive", "u+w", str(folder)], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def device_requests(body: dict[str, Any]) -> list[dict[str, Any]]:
    """HostConfig.DeviceRequests of a create request, without what was left empty."""
    return [
        {name: value for name, value in request.items() if value}
        for request in body["HostConfig"]["DeviceRequests"] or []
    ]


def environment_of(env: list[str]) -> dict[str, str]:
    return dict(entry.split("=", 1) for entry in env if "=" in entry)


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)
def test_a_host_gets_its_container(situation: Situation, desk: Callable[..., Desk]) -> None:
    here = desk(*situation.host, own=situation.own, pinned=situation.pinned)
    opened = here.up(situation.config)
    assert opened.outcome == "success"
    said = "\n".join(opened.said)
    for words in situation.words:
        assert words in said

    asked = {**opened.requests, **here.compose("train", "tensorboard")}
    dev = asked["dev"]
    release, build = situation.torch.rstrip("*").split("+")
    index = f"{CATALOGUE.index_base}/{build}" if situation.torch.endswith("*") else ""
    assert {name: here.env[f"LAB_TORCH_{name}"] for name in ("VERSION", "BUILD", "INDEX")} == {
        "VERSION": release,
        "BUILD": build,
        "INDEX": index,
    }
    assert f"torch {release}+{build} on the {'GPU' if situation.gpu else 'CPU'}" in opened.said[-1]
    assert device_requests(dev) == device_requests(asked["train"]) == situation.gpu
    assert device_requests(asked["tensorboard"]) == []
    default = None if situation.gpu else ""
    devices = default if situation.devices is None else situation.devices
    for service in ("dev", "train"):
        inside = environment_of(asked[service]["Env"])
        assert inside.get("CUDA_VISIBLE_DEVICES") == devices, service
        assert inside.get("CUDA_DEVICE_ORDER") == ("PCI_BUS_ID" if devices else None), service
        health = (asked[service].get("Healthcheck") or {}).get("Test")
        assert health == ["CMD", "healthy"], service  # asks for the GPU wherever the engine brings nvidia-smi

    tools = here.host.tools
    ids = (0, 0) if situation.rootless else (tools.uid, tools.gid)
    assert (here.env["DEV_UID"], here.env["DEV_GID"]) == tuple(map(str, ids))
    for service, body in asked.items():
        assert body["Image"] == f"{here.env['COMPOSE_PROJECT_NAME']}:torch{release}-{build}", service
        assert body["HostConfig"]["ShmSize"] == 8 << 30, service
        assert body["User"] == "", service  # the image's own, which is made for DEV_UID
        assert body["HostConfig"]["Privileged"] is False, service
        for published in body["HostConfig"]["PortBindings"].values():
            assert [port["HostIp"] for port in published] == ["127.0.0.1"], service
    assert asked["tensorboard"]["HostConfig"]["PortBindings"]


@dataclass(frozen=True)
class Unasked:
    """A host whose engine does not answer: the CLI stops before it asks the project, so host-setup is run by hand."""

    name: str
    host: tuple[Piece, ...]
    words: tuple[str, ...]  # of host-setup
    build: str


# fmt: off
UNASKED = (
    Unasked("daemon down", (gpus("4090"), no_engine()),
            ("the CPU, because the Docker daemon is not running", "sudo systemctl restart docker"), "cpu"),
    Unasked("daemon down, with toolkit", (gpus("4090"), TOOLKIT, no_engine()),
            ("the Docker daemon is not running; if the container does not start: sudo systemctl restart docker",),
            "cu128"),
    Unasked("daemon closed to this user", (gpus("4090"), TOOLKIT, closed_engine()),
            ("this user may not talk to the Docker daemon", "sudo usermod -aG docker $USER"), "cu128"),
    Unasked("no docker", (gpus("4090"), without("docker")),
            ("the CPU, because there is no docker command", "apt-get install -y docker.io"), "cpu"),
    Unasked("WSL2 without Docker Desktop's integration",
            (wsl("576.02"), says("docker", WITHOUT_INTEGRATION, code=1)),
            ("the CPU, because ", "integration"), "cpu"),
)
# fmt: on


@pytest.mark.parametrize("host", UNASKED, ids=lambda host: host.name)
def test_where_the_engine_does_not_answer_host_setup_says_why(host: Unasked, desk: Callable[..., Desk]) -> None:
    here = desk(*host.host)
    opened = here.up()
    assert opened.outcome == "error"
    assert opened.said == []  # `docker ps` is what the CLI begins with
    assert opened.requests == {}
    done = here.run(here.folder / ".devcontainer/host-setup")
    assert done.returncode == 0, done.stderr
    for words in host.words:
        assert words in done.stdout
    assert here.env["LAB_TORCH_BUILD"] == host.build


@dataclass(frozen=True)
class Refusal:
    """A project that cannot be opened as it is, and words of the one sentence that says so."""

    name: str
    words: tuple[str, ...]
    host: tuple[Piece, ...] = (gpus("4090"), NVIDIA)
    own: str = ""
    spoilt: Callable[[Path], object] = as_made


def read_only(project: Path) -> None:
    for path in (project, *project.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)


# fmt: off
REFUSALS = (
    Refusal("read-only project", ("cannot be written (Permission denied): make the project writable for you.",),
            spoilt=read_only),
    Refusal("damaged project.json", ("project.json is damaged: restore it, e.g. with git checkout -- .devcontainer/",),
            spoilt=lambda project: (project / ".devcontainer/project.json").write_text("{")),
    Refusal("an overlay is gone", ("compose.gpu.yaml is missing", "git checkout -- compose.gpu.yaml."),
            spoilt=lambda project: (project / "compose.gpu.yaml").unlink()),
    Refusal(".env is a folder", (".env is not a regular file: move it away.",),
            spoilt=lambda project: (project / ".env").mkdir()),
    Refusal("no such accelerator", ("YOLO_ACCEL=cuda is not one of auto, gpu, gpu-cdi, cpu",), own="YOLO_ACCEL=cuda\n"),
    Refusal("no such form of a build", ("TORCH_BUILD=12.8 is not of the form cu126 or cpu",), own="TORCH_BUILD=12.8\n"),
    Refusal("a build the release lacks", ("TORCH_BUILD=cu118 is not published for torch 2.8.0",),
            own="TORCH_BUILD=cu118\n"),
    Refusal("no such release", ("TORCH_VERSION: torch '2.8.7' is not in the catalogue", "did you mean"),
            own="TORCH_VERSION=2.8.7\n"),
    Refusal("a release from before NumPy 2", ("TORCH_VERSION: torch 2.1.2 needs NumPy 1", "use 2.3.0 or newer"),
            own="TORCH_VERSION=2.1.2\n"),
    Refusal("no such GPU", ("CUDA_VISIBLE_DEVICES=3 names a GPU that is not here (there is 0)",),
            (gpus("4090"), NVIDIA, shell(CUDA_VISIBLE_DEVICES="3"))),
    Refusal("certificates that are not there", ("EXTRA_CA_CERTS=/nowhere/ca.pem cannot be read",),
            (gpus("4090"), NVIDIA, shell(EXTRA_CA_CERTS="/nowhere/ca.pem"))),
    Refusal("no Python", ("no Python 3.8 or newer is on this host's PATH. Install one",),
            (gpus("4090"), NVIDIA, lambda host: host.path.remove(host.tools.python))),
    Refusal("only an old Python", ("no Python 3.8 or newer is on this host's PATH. Install one",),
            (gpus("4090"), NVIDIA, says("python3", code=1), says("python", code=1))),
)
# fmt: on


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
def test_a_project_that_cannot_be_opened_says_why_last(refusal: Refusal, desk: Callable[..., Desk]) -> None:
    here = desk(*refusal.host, own=refusal.own, spoilt=refusal.spoilt)
    before = here.files()
    opened = here.up()
    assert opened.outcome == "error"
    assert len(opened.said) == 1
    for words in refusal.words:
        assert words in opened.said[0]
    # the CLI's own line; in VS Code's log and on a terminal ours stands right above it
    assert opened.after == ["Error: Command failed: .devcontainer/host-setup "]
    assert opened.requests == {}
    assert here.files() == before


def test_a_read_only_project_that_was_prepared_for_this_host_opens(desk: Callable[..., Desk]) -> None:
    here = desk(gpus("4090"), NVIDIA)
    here.up()
    read_only(here.folder)
    here.leave()
    opened = here.up()
    assert opened.outcome == "success"
    assert device_requests(opened.requests["dev"]) == RUNTIME


OWN = "# mine\nDATA_DIR=/big/data\r\n\nexport WANDB_API_KEY='a b'  # secret\nSHM_SIZE=16gb"


def test_opening_it_again_changes_no_byte_and_keeps_the_users_lines(desk: Callable[..., Desk]) -> None:
    here = desk(gpus("1080 Ti", "5090", driver="580.95.05"), NVIDIA, own=OWN)
    first = here.up()
    once = here.files()
    assert (here.folder / ".env").read_bytes().startswith(f"{OWN}\n{BEGIN}\n".encode())
    here.leave()
    second = here.up()
    assert here.files() == once
    assert second.said == first.said
    before, dev = first.requests["dev"], second.requests["dev"]
    for body in (before, dev):  # their order is Compose's
        body["Env"].sort()
        body["HostConfig"]["Binds"].sort()
    assert (dev["HostConfig"], dev["Env"]) == (before["HostConfig"], before["Env"])
    assert dev["HostConfig"]["ShmSize"] == 16 << 30
    assert "/big/data:/workspace/data:rw" in dev["HostConfig"]["Binds"]


DIFFERS = "this differs from the last time"


def test_a_host_that_changed_is_told_to_rebuild(desk: Callable[..., Desk]) -> None:
    here = desk(gpus("4090"))
    assert DIFFERS not in "\n".join(here.up().said)
    NVIDIA(here.host)  # somebody has installed the toolkit
    again = here.up()
    assert again.outcome == "success"
    assert again.requests == {}  # the container runs, so it is opened as it was made
    assert "choose 'Rebuild Container'" in next(words for words in again.said if DIFFERS in words)
    here.leave()
    assert device_requests(here.up().requests["dev"]) == RUNTIME


def test_people_and_folders_do_not_meet(desk: Callable[..., Desk]) -> None:
    ada, bob, other = desk(NVIDIA), desk(NVIDIA, shell(USER="bob")), desk(NVIDIA)
    asked = [here.up().requests["dev"] for here in (ada, bob, other)]
    names = [body["Labels"]["com.docker.compose.project"] for body in asked]
    assert [re.sub("[0-9a-f]{6}$", "", name) for name in names] == [
        "my-detector-ada-", "my-detector-bob-", "my-detector-ada-"
    ]  # fmt: skip
    assert len(set(names)) == len({body["Image"] for body in asked}) == 3
    assert names == [here.env["COMPOSE_PROJECT_NAME"] for here in (ada, bob, other)]
    ada.host.variables["USER"] = "grace"  # a folder that several people share
    ada.leave()
    assert ada.up().requests["dev"]["Labels"]["com.docker.compose.project"].startswith("my-detector-grace-")


def test_a_name_of_ones_own_is_kept(desk: Callable[..., Desk]) -> None:
    here = desk(NVIDIA, own="COMPOSE_PROJECT_NAME=mine\n")
    assert here.up().requests["dev"]["Labels"]["com.docker.compose.project"] == "mine"


@pytest.mark.parametrize("name", ['my dog\'s "best" detector', "détecteur à 50% #1", "& `more` ()"])
def test_a_path_with_anything_in_it(name: str, desk: Callable[..., Desk]) -> None:
    here = desk(gpus("4090"), NVIDIA, name=name)
    opened = here.up()
    assert opened.outcome == "success"
    asked = {**opened.requests, **here.compose("train")}
    for body in asked.values():
        assert device_requests(body) == RUNTIME
        assert sorted(body["HostConfig"]["Binds"]) == [
            f"{here.folder}/data:/workspace/data:rw",
            f"{here.folder}/runs:/workspace/runs:rw",
            f"{here.folder}:/workspace:rw",
        ]


# --- the real engine --------------------------------------------------------------------------------------------------

IMAGE = "python:3.11-slim-bookworm"


@pytest.fixture
def real_engine(tools: Tools) -> dict[str, Any]:
    """What the engine of this machine says of itself, if containers that ask for a GPU can start on it."""
    done = subprocess.run(["docker", "info", "--format", "{{json .}}"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("no engine answers here: no container can be started")
    info: dict[str, Any] = json.loads(done.stdout)
    if "nvidia" not in info["Runtimes"] and shutil.which("nvidia-container-runtime-hook") is None:
        pytest.skip("this engine has neither the nvidia runtime nor its hook: a container with a GPU cannot start")
    if subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"the image {IMAGE} is not here, and no test downloads one")
    return info


def test_the_real_engine_starts_a_container_with_the_gpu(
    real_engine: dict[str, Any], desk: Callable[..., Desk], tools: Tools
) -> None:
    name = f"situations-{secrets.token_hex(4)}"
    here = desk(
        *(gpus("4090"), says("nvidia-container-runtime-hook"), without("docker")),
        own=f"COMPOSE_PROJECT_NAME={name}\n",
    )
    # The chosen image would take minutes to build: the files are as chosen, only the image and its user are others.
    overlay = f"services:\n  dev:\n    image: {IMAGE}\n    build: !reset null\n"
    (here.folder / ".devcontainer/tiny.yaml").write_text(overlay)
    path = here.folder / ".devcontainer/devcontainer.json"
    settings = json.loads(path.read_text())
    settings["dockerComposeFile"].append("tiny.yaml")
    path.write_text(json.dumps({**settings, "remoteUser": "root"}))
    environment = {**here.host.shell, "PATH": f"{here.host.bin}:{os.environ['PATH']}"}

    def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(map(str, command)), cwd=here.folder, env=environment, capture_output=True, text=True, check=False
        )

    done = run("devcontainer", "up", "--workspace-folder", here.folder)
    print(done.stdout, done.stderr)
    try:
        outcome = json.loads(done.stdout.strip().rpartition("\n")[2])
        assert outcome["outcome"] == "success"
        (made,) = json.loads(run("docker", "inspect", outcome["containerId"]).stdout)
    finally:
        run("docker", "compose", "--project-name", name, "down", "--timeout", "1", "--volumes")
    assert made["State"]["Running"] is True
    assert device_requests(made) == RUNTIME
    assert made["HostConfig"]["ShmSize"] == 8 << 30
    assert "CUDA_VISIBLE_DEVICES" not in environment_of(made["Config"]["Env"])

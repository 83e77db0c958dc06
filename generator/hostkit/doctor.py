"""Facts and a resolution -> findings: what was checked, why it fails, what that costs, and the command for this host.

Every check is a function from the case at hand to one finding; `CHECKS` is their order. Nothing here looks or writes.
"""

from __future__ import annotations

import json
import os
import re
from typing import Callable, NamedTuple, TextIO

from .catalogue import BadRequest, Catalogue, version
from .probe import Facts
from .resolve import Obstacle, Resolution, check_python, check_release, obstacles, resolve
from .terminal import printable

GIB = 1 << 30
# (warn, fail) below. A CUDA image is about 10 GiB (torch and its CUDA libraries about 7), and building it needs room
# beside it; with the CPU's build of torch it is about 3 GiB
DOCKER_ROOM, DOCKER_ROOM_CPU, PROJECT_ROOM = (25 * GIB, 10 * GIB), (8 * GIB, 4 * GIB), 2 * GIB
COMPOSE_MINIMUM = "2.17"  # below: no `additional_contexts`; the dev container tools ask for it

GUIDE = "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/"
LINKS = {
    "driver": "https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/",
    "windows": "https://www.nvidia.com/en-us/drivers/",
    "wsl": "https://docs.nvidia.com/cuda/wsl-user-guide/",
    "branch": "https://www.nvidia.com/en-us/drivers/unix/",
    "xid": "https://docs.nvidia.com/deploy/xid-errors/",
    "capability": "https://developer.nvidia.com/cuda-gpus",
    "compatibility": "https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html",
    "toolkit": GUIDE + "install-guide.html",
    "cdi": GUIDE + "cdi-support.html",
    "docker": "https://docs.docker.com/engine/install/",
    "desktop": "https://docs.docker.com/desktop/",
    "docker-group": "https://docs.docker.com/engine/install/linux-postinstall/",
    "daemon": "https://docs.docker.com/engine/daemon/troubleshoot/",
    "compose": "https://docs.docker.com/compose/install/linux/",
    "prune": "https://docs.docker.com/engine/manage-resources/pruning/",
    "ca": "https://docs.docker.com/build/building/secrets/",
}


class Finding(NamedTuple):
    """One check. `level` is ok, warn, fail or skip; `cause` says what was found, for skip it is the "because"."""

    id: str
    level: str
    cause: str
    consequence: str = ""
    command: str = ""
    link: str = ""


class Case(NamedTuple):
    """What the checks look at."""

    facts: Facts
    resolution: Resolution | None
    obstacles: tuple[Obstacle, ...]
    catalogue: Catalogue | None
    fault: str = ""  # why the resolver could not be asked about this host's GPUs

    @property
    def family(self) -> str:
        """How software is installed here."""
        return family(self.facts)

    @property
    def has_gpu(self) -> bool:
        """An NVIDIA GPU is there, whether or not its driver works."""
        facts = self.facts
        return bool(facts.gpus or facts.pci or facts.module or facts.wsl_driver or facts.smi.state in _BROKEN)


_BROKEN = {"hangs", "mismatch", "lost", "blocked", "permission", "failed", "unreadable"}


def resolution(facts: Facts, catalogue: Catalogue, torch: str = "auto", python: str = "") -> Resolution | None:
    """The torch build for this host; None when there is no GPU to ask about, or nothing that can be asked of it.

    Raises BadRequest for `torch` and `python`, which are somebody's words; what the host says becomes a finding.
    """
    check_release(torch, catalogue)
    check_python(python)
    try:
        return resolve(facts.host(torch, python), catalogue) if facts.gpus else None
    except BadRequest:
        return None


def examine(
    facts: Facts, answer: Resolution | None, catalogue: Catalogue, torch: str = "auto", python: str = ""
) -> list[Finding]:
    """Every check, in the order in which they are told."""
    found: tuple[Obstacle, ...] = ()
    fault = ""
    try:
        found = tuple(obstacles(facts.host(torch, python), catalogue)) if facts.gpus else ()
    except BadRequest as error:
        fault = str(error)
    case = Case(facts, answer, found, catalogue, fault)
    return [check(case) for _, checks in CHECKS for check in checks]


def exit_status(findings: list[Finding]) -> int:
    """0 nothing failed, 1 a check failed."""
    return 1 if any(finding.level == "fail" for finding in findings) else 0


def driver_findings(facts: Facts) -> list[Finding]:
    """What keeps the driver from listing a GPU, without asking the catalogue; empty when there is simply none."""
    case = Case(facts, None, (), None)
    checks = (_driver_hangs, _driver_unreadable, _nvml_mismatch, _gpu_lost, _driver_missing, _wsl)
    return [finding for finding in (check(case) for check in checks) if finding.level == "fail"]


def engine_finding(facts: Facts) -> Finding:
    """What keeps containers from the GPU of a host whose driver works."""
    case = Case(facts, None, (), None)
    checks = (_docker_missing, _docker_down, _docker_permission, _toolkit_missing, _toolkit_runtime)
    for finding in (check(case) for check in checks):
        if finding.level == "fail":
            return finding
    return _toolkit_runtime(case)


# Commands


def family(facts: Facts) -> str:
    """How software is installed here: ubuntu, debian, fedora, rhel, suse, arch, wsl2, macos, windows or unknown."""
    if facts.system != "linux":
        return facts.system
    return linux_family(facts)


def linux_family(facts: Facts) -> str:
    """The family of the Linux distribution, under WSL2 too, by ID and then ID_LIKE of os-release."""
    for name in (facts.distribution.id, *facts.distribution.like):
        if name in _FAMILIES:
            return _FAMILIES[name]
    return "unknown"


_FAMILIES = {
    "ubuntu": "ubuntu", "pop": "ubuntu", "linuxmint": "ubuntu", "debian": "debian",
    "fedora": "fedora",
    "rhel": "rhel", "centos": "rhel", "rocky": "rhel", "almalinux": "rhel", "ol": "rhel", "amzn": "rhel",
    "opensuse": "suse", "opensuse-leap": "suse", "opensuse-tumbleweed": "suse", "sles": "suse", "suse": "suse",
    "arch": "arch", "manjaro": "arch",
}  # fmt: skip

_DRIVER = {
    "ubuntu": "sudo ubuntu-drivers install && sudo reboot",
    "debian": "sudo apt-get update && sudo apt-get install -y nvidia-driver && sudo reboot",
    "fedora": "sudo dnf install -y akmod-nvidia xorg-x11-drv-nvidia-cuda && sudo reboot",
    "rhel": "sudo dnf install -y nvidia-open && sudo reboot",
    "suse": "sudo zypper install -y nvidia-open-driver-G06-signed-kmp-meta nvidia-compute-utils-G06 && sudo reboot",
    "arch": "sudo pacman -Syu --needed nvidia-open nvidia-utils && sudo reboot",
}
_DRIVER_580 = {  # the last branch for Maxwell, Pascal and Volta
    "ubuntu": "sudo apt-get update && sudo apt-get install -y nvidia-driver-580 && sudo reboot",
    "rhel": "sudo dnf module install -y nvidia-driver:580-dkms && sudo reboot",
    "fedora": "sudo dnf install -y akmod-nvidia-580xx xorg-x11-drv-nvidia-580xx-cuda && sudo reboot",
    "suse": "sudo zypper install -y nvidia-driver-G06-kmp-meta nvidia-compute-utils-G06 && sudo reboot",
    "arch": "yay -S nvidia-580xx-dkms nvidia-580xx-utils && sudo reboot",
}

_REPOSITORY = "https://nvidia.github.io/libnvidia-container/"
_KEYRING = "/usr/share/keyrings/nvidia-container-toolkit-keyring.gpg"
_APT_TOOLKIT = (
    f"curl -fsSL {_REPOSITORY}gpgkey | sudo gpg --dearmor --yes -o {_KEYRING}"
    f" && curl -fsSL {_REPOSITORY}stable/deb/nvidia-container-toolkit.list"
    f" | sed 's#deb #deb [signed-by={_KEYRING}] #'"
    " | sudo tee /etc/apt/sources.list.d/nvidia-container-toolkit.list"
    " && sudo apt-get update && sudo apt-get install -y nvidia-container-toolkit"
)
_RPM_TOOLKIT = f"curl -fsSL {_REPOSITORY}stable/rpm/nvidia-container-toolkit.repo"
_DNF_TOOLKIT = (
    f"{_RPM_TOOLKIT} | sudo tee /etc/yum.repos.d/nvidia-container-toolkit.repo"
    " && sudo dnf install -y nvidia-container-toolkit"
)
_TOOLKIT = {
    "ubuntu": _APT_TOOLKIT,
    "debian": _APT_TOOLKIT,
    "fedora": _DNF_TOOLKIT,
    "rhel": _DNF_TOOLKIT,
    "suse": f"sudo zypper ar {_REPOSITORY}stable/rpm/nvidia-container-toolkit.repo"
    " && sudo zypper --gpg-auto-import-keys install -y nvidia-container-toolkit",
    "arch": "sudo pacman -S --needed nvidia-container-toolkit",
}
_APT_UPGRADE = (
    "sudo apt-get update && sudo apt-get install -y --only-upgrade 'nvidia-container-toolkit*' 'libnvidia-container*'"
)
_UPGRADE_TOOLKIT = {
    "ubuntu": _APT_UPGRADE,
    "debian": _APT_UPGRADE,
    "fedora": "sudo dnf upgrade -y 'nvidia-container-toolkit*' 'libnvidia-container*'",
    "rhel": "sudo dnf upgrade -y 'nvidia-container-toolkit*' 'libnvidia-container*'",
    "suse": "sudo zypper update -y nvidia-container-toolkit",
    "arch": "sudo pacman -Syu nvidia-container-toolkit",
}
_DOCKER = {
    "ubuntu": "sudo apt-get update && sudo apt-get install -y docker.io docker-compose-v2 docker-buildx",
    "debian": "curl -fsSL https://get.docker.com | sudo sh",
    "fedora": "sudo dnf install -y moby-engine docker-compose docker-buildx && sudo systemctl enable --now docker",
    "rhel": "sudo dnf config-manager --add-repo https://download.docker.com/linux/rhel/docker-ce.repo"
    " && sudo dnf install -y docker-ce docker-compose-plugin docker-buildx-plugin"
    " && sudo systemctl enable --now docker",
    "suse": "sudo zypper install -y docker docker-compose docker-buildx && sudo systemctl enable --now docker",
    "arch": "sudo pacman -S --needed docker docker-compose docker-buildx && sudo systemctl enable --now docker",
    "macos": "brew install --cask docker",
    "windows": "winget install Docker.DockerDesktop",
}
_COMPOSE = {
    "ubuntu": "sudo apt-get update && sudo apt-get install -y docker-compose-v2",
    "debian": "sudo apt-get update && sudo apt-get install -y docker-compose-plugin",
    "fedora": "sudo dnf install -y docker-compose",
    "rhel": "sudo dnf install -y docker-compose-plugin",
    "suse": "sudo zypper install -y docker-compose",
    "arch": "sudo pacman -S --needed docker-compose",
}


def _driver_command(case: Case, legacy: bool) -> tuple[str, str]:
    """(command, link) that installs a driver; under WSL2 and Windows it is Windows' driver, installed there."""
    if case.facts.system in {"wsl2", "windows"}:
        return ("wsl --shutdown" if case.facts.system == "wsl2" else ""), LINKS["windows"]
    return (_DRIVER_580 if legacy else _DRIVER).get(case.family, ""), LINKS["branch" if legacy else "driver"]


def _toolkit_setup(case: Case) -> str:
    """Commands that make the engine know the toolkit."""
    docker = case.facts.docker
    if docker.kind == "podman":
        return "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
    if docker.rootless:
        return (
            "nvidia-ctk runtime configure --runtime=docker --config=$HOME/.config/docker/daemon.json"
            " && systemctl --user restart docker"
            " && sudo nvidia-ctk config --set nvidia-container-cli.no-cgroups --in-place"
        )
    return "sudo nvidia-ctk runtime configure --runtime=docker && " + _restart_docker(case)


def _restart_docker(case: Case) -> str:
    # under WSL2 without systemd only `service` works, and where both work it does the same
    return "sudo service docker restart" if case.facts.system == "wsl2" else "sudo systemctl restart docker"


# Checks of the GPU and its driver


def _gpu_none(case: Case) -> Finding:
    facts = case.facts
    if facts.gpus:
        return Finding("gpu.none", "ok", ", ".join(counted([gpu.name for gpu in facts.gpus])))
    if facts.system == "macos":
        return Finding("gpu.none", "ok", "a Mac has no NVIDIA GPU", "containers train on the CPU")
    if facts.smi.state in {"failed", "unreadable"}:
        return Finding("gpu.none", "skip", "nvidia-smi does not tell, see below")
    if case.has_gpu:
        return Finding("gpu.none", "skip", "the driver does not list the GPU, see below")
    return Finding(
        "gpu.none", "warn", "no NVIDIA GPU was found", "training runs on the CPU, which suits only small data"
    )


def _driver_missing(case: Case) -> Finding:
    facts = case.facts
    failed = facts.smi.state == "failed" or (facts.smi.state == "blocked" and facts.system != "wsl2")
    if failed:
        cause = f"nvidia-smi failed: {_excerpt(facts.smi.message) or 'it gave no reason'}"
        return Finding("driver.missing", "fail", cause, "the GPU cannot be used", "nvidia-smi", LINKS["driver"])
    if facts.smi.state == "no-devices" and facts.pci and facts.module:
        return Finding(
            "driver.missing", "fail", f"an NVIDIA GPU is at PCI {facts.pci[0]}, but its driver does not list it",
            "the GPU cannot be used", "sudo dmesg | grep -i nvrm", LINKS["driver"],
        )  # fmt: skip
    if facts.driver and facts.smi.state != "no-driver":
        if facts.smi.state == "missing":
            return Finding(
                "driver.missing", "fail", f"driver {facts.module} is loaded but nvidia-smi is not installed",
                "which GPUs there are cannot be told, so the CPU would be used",
                _SMI_PACKAGE.get(case.family, ""), LINKS["driver"],
            )  # fmt: skip
        return Finding("driver.missing", "ok", f"NVIDIA driver {facts.driver}")
    if not case.has_gpu and facts.smi.state in {"missing", "no-devices"}:
        return Finding("driver.missing", "skip", "there is no NVIDIA GPU")
    command, link = _driver_command(case, legacy=False)
    if facts.smi.state == "missing" and facts.wsl_driver:
        return Finding(
            "driver.missing", "fail", "WSL2 has the Windows driver, but not its nvidia-smi",
            "the GPU cannot be used", "wsl --update && wsl --shutdown", LINKS["wsl"],
        )  # fmt: skip
    if facts.smi.state in {"missing", "no-driver", "no-devices"} and facts.pci:
        there = f"an NVIDIA GPU is at PCI {facts.pci[0]}"
        cause = f"{there}, but its driver is not {'installed' if facts.smi.state == 'missing' else 'loaded'}"
        return Finding("driver.missing", "fail", cause, "the GPU cannot be used", command, link)
    if facts.smi.state == "no-driver":
        cause = "nvidia-smi is installed, but no NVIDIA driver is loaded"
        return Finding("driver.missing", "fail", cause, "a GPU could not be used", command, link)
    return Finding("driver.missing", "skip", "nvidia-smi did not answer, see the other checks")


_SMI_PACKAGE = {
    "ubuntu": "sudo apt-get install -y nvidia-utils-$(cut -d. -f1 /sys/module/nvidia/version)",
    "debian": "sudo apt-get install -y nvidia-smi",
    "fedora": "sudo dnf install -y xorg-x11-drv-nvidia-cuda",
    "rhel": "sudo dnf install -y nvidia-driver-cuda",
    "suse": "sudo zypper install -y nvidia-compute-utils-G06",
    "arch": "sudo pacman -S --needed nvidia-utils",
}


def _driver_hangs(case: Case) -> Finding:
    if case.facts.smi.state == "hangs":
        return Finding(
            "driver.hangs", "fail", "nvidia-smi does not answer", "the driver is stuck: no program can use the GPU",
            "sudo dmesg | grep -iE 'nvrm|xid' ; sudo reboot", LINKS["xid"],
        )  # fmt: skip
    if case.facts.smi.state == "missing":
        return Finding("driver.hangs", "skip", "there is no nvidia-smi")
    return Finding("driver.hangs", "ok", "nvidia-smi answers")


def _driver_unreadable(case: Case) -> Finding:
    smi = case.facts.smi
    if smi.state == "unreadable":
        cause = f"nvidia-smi answers nothing that can be read: {_excerpt(smi.message) or 'nothing at all'}"
        return Finding(
            "driver.unreadable", "fail", cause, "which GPUs there are cannot be told, so the CPU would be used",
            "nvidia-smi --query-gpu=index,name,driver_version --format=csv", LINKS["driver"],
        )  # fmt: skip
    if case.facts.gpus and not case.facts.driver:
        return Finding(
            "driver.unreadable", "fail", "nvidia-smi lists a GPU, but no version of its driver that can be read",
            "no torch build can be chosen for it, so the CPU would be used", "nvidia-smi", LINKS["driver"],
        )  # fmt: skip
    if not case.facts.gpus:
        return Finding("driver.unreadable", "skip", "no GPU is listed")
    return Finding("driver.unreadable", "ok", "what nvidia-smi says can be read")


def _excerpt(text: str) -> str:
    """The beginning of what a program said, for a sentence."""
    return printable(" ".join(text[:160].split()))[:160]


def _nvml_mismatch(case: Case) -> Finding:
    if case.facts.smi.state == "mismatch":
        loaded = f" {case.facts.module}" if case.facts.module else ""
        return Finding(
            "nvml.mismatch", "fail", f"the driver was updated, but the old kernel module{loaded} is still loaded",
            "no program can use the GPU until they agree", "sudo reboot", LINKS["driver"],
        )  # fmt: skip
    if case.facts.smi.state == "permission":
        return Finding(
            "nvml.mismatch", "fail", "the driver refuses this user (insufficient permissions)",
            "the GPU cannot be used", "ls -l /dev/nvidia* && sudo nvidia-modprobe -u", LINKS["driver"],
        )  # fmt: skip
    if not case.facts.gpus:
        return Finding("nvml.mismatch", "skip", "no driver answers")
    return Finding("nvml.mismatch", "ok", "driver and its libraries agree")


def _gpu_lost(case: Case) -> Finding:
    smi = case.facts.smi
    if smi.state == "lost" or "gpu is lost" in smi.message.lower():
        return Finding(
            "gpu.lost", "fail", "a GPU fell off the bus (heat, power or hardware)", "it is gone until the next start",
            "sudo dmesg | grep -i xid ; sudo reboot", LINKS["xid"],
        )  # fmt: skip
    if "inforom is corrupted" in smi.message.lower():
        return Finding(
            "gpu.lost", "warn", _excerpt(smi.message), "the GPU works, but should be serviced", "", LINKS["xid"]
        )
    if not smi.gpus:
        return Finding("gpu.lost", "skip", "no GPU is listed")
    return Finding("gpu.lost", "ok", "no GPU has fallen off the bus")


def _wsl(case: Case) -> Finding:
    facts = case.facts
    if facts.system != "wsl2":
        return Finding("wsl", "skip", "this is not WSL2")
    if facts.smi.state == "blocked":
        return Finding(
            "wsl", "fail", "Windows blocks this WSL from the GPU", "the GPU cannot be used",
            "wsl --shutdown", LINKS["wsl"],
        )  # fmt: skip
    if facts.gpus and facts.module:
        return Finding(
            "wsl", "warn", "a Linux NVIDIA driver is installed inside WSL2", "it hides the driver of Windows",
            "sudo apt-get purge -y '^nvidia-driver.*' '^libnvidia-compute.*'", LINKS["wsl"],
        )  # fmt: skip
    if facts.gpus:
        return Finding("wsl", "ok", "WSL2 shares the GPU of Windows")
    if not facts.wsl_driver:
        return Finding(
            "wsl", "warn", "WSL2 sees no GPU driver of Windows", "training runs on the CPU",
            "wsl --update && wsl --shutdown", LINKS["windows"],
        )  # fmt: skip
    return Finding("wsl", "skip", "the driver does not list the GPU, see above")


def _obstacle(case: Case, check: str, kinds: set[str], link: str, command: str = "") -> Finding | None:
    """The first obstacle of these kinds that the resolver met; skipped without a GPU, None when there is none."""
    if not case.facts.gpus or case.resolution is None:
        return Finding(check, "skip", "no GPU is listed" if not case.facts.gpus else "no torch build can be chosen")
    found = [obstacle for obstacle in case.obstacles if obstacle.kind in kinds]
    if not found:
        return None
    level = "fail" if case.resolution.status == "impossible" else "warn"
    advice = [text for text in case.resolution.advice if not text.startswith(("or ", "CUDA_VISIBLE_DEVICES"))]
    return Finding(check, level, found[0].text, (advice or ["torch cannot use the GPU"])[0], command, link)


def _legacy(case: Case) -> bool:
    """Whether a GPU here is served only by the 580 branch of the driver."""
    catalogue = case.catalogue
    if catalogue is None or case.fault:
        return False
    computes = [catalogue.compute(gpu.capability, gpu.name) for gpu in case.facts.gpus]
    return any(compute and catalogue.branch(compute) for compute in computes)


def _driver_too_old(case: Case) -> Finding:
    command = _driver_command(case, _legacy(case))[0]
    found = _obstacle(case, "driver.too-old", {"driver-old"}, LINKS["compatibility"], command)
    return found or Finding("driver.too-old", "ok", f"driver {case.facts.driver} is new enough")


def _driver_too_new(case: Case) -> Finding:
    command = _driver_command(case, legacy=True)[0]
    found = _obstacle(case, "driver.too-new", {"driver-new"}, LINKS["branch"], command)
    return found or Finding("driver.too-new", "ok", f"driver {case.facts.driver} still knows every GPU")


def _gpu_arch(case: Case) -> Finding:
    if case.fault and case.facts.driver:
        cause = f"no torch build can be chosen for this host: {case.fault}"
        return Finding("gpu.arch", "fail", cause, "the CPU would be used", "nvidia-smi", LINKS["capability"])
    found = _obstacle(case, "gpu.arch", {"arch", "unknown", "release"}, LINKS["capability"])
    answer = case.resolution
    if found or answer is None:
        return found or Finding("gpu.arch", "skip", "no GPU is listed")
    if answer.status == "partial":
        left = str(answer.excluded[0]["reason"])
        return Finding(
            "gpu.arch", "warn", left, f"only GPU {_numbers(answer.devices)} is used", "", LINKS["capability"]
        )
    if answer.build is None:
        return Finding("gpu.arch", "skip", "another obstacle comes first, see above")
    return Finding("gpu.arch", "ok", f"torch {answer.torch}+{answer.build} has code for the GPU")


# Checks of the container engine


def _docker_missing(case: Case) -> Finding:
    docker = case.facts.docker
    if docker.state == "skipped":
        return Finding("docker.missing", "skip", "the engine was not asked")
    if docker.state == "missing":
        link = LINKS["desktop" if case.family in {"macos", "windows"} else "docker"]
        command = _DOCKER.get(linux_family(case.facts) if case.facts.system == "wsl2" else case.family, "")
        return Finding("docker.missing", "fail", "there is no docker command", "no container can start", command, link)
    name = {"desktop": "Docker Desktop", "podman": "Podman"}.get(docker.kind, "Docker")
    return Finding(
        "docker.missing", "ok", f"{name} {docker.version}".strip() + (", rootless" if docker.rootless else "")
    )


def _docker_down(case: Case) -> Finding:
    docker = case.facts.docker
    if docker.state in {"down", "hangs", "failed"}:
        cause = {
            "down": "the Docker daemon is not running",
            "hangs": "the Docker daemon does not answer",
            "failed": f"docker info failed: {_excerpt(docker.message) or 'it gave no reason'}",
        }[docker.state]
        command = {"macos": "open -a Docker", "windows": "Start-Process 'Docker Desktop'"}.get(
            case.family, _restart_docker(case)
        )
        return Finding("docker.down", "fail", cause, "no container can start", command, LINKS["daemon"])
    if docker.state != "ok":
        return Finding("docker.down", "skip", "the engine could not be asked")
    return Finding("docker.down", "ok", "the daemon answers")


def _docker_permission(case: Case) -> Finding:
    docker = case.facts.docker
    if docker.state == "permission":
        return Finding(
            "docker.permission", "fail", "this user may not talk to the Docker daemon", "no container can start",
            "sudo usermod -aG docker $USER && newgrp docker", LINKS["docker-group"],
        )  # fmt: skip
    if docker.state != "ok":
        return Finding("docker.permission", "skip", "the engine could not be asked")
    return Finding("docker.permission", "ok", "this user may use the daemon")


def _compose_old(case: Case) -> Finding:
    facts = case.facts
    if facts.docker.state in {"missing", "skipped"} or (facts.docker.state == "hangs" and not facts.compose):
        return Finding("compose.old", "skip", "the engine could not be asked")
    command = _COMPOSE.get(linux_family(facts) if facts.system == "wsl2" else case.family, "")
    if not facts.compose:
        cause = "there is neither `docker compose` nor `docker-compose`"
        return Finding("compose.old", "fail", cause, "no container can start", command, LINKS["compose"])
    number = tuple(map(int, re.findall("[0-9]{1,4}", facts.compose)[:2]))
    if number < (2,):
        cause = f"Compose {facts.compose} is of the retired first generation"
        return Finding("compose.old", "fail", cause, "it does not read these files", command, LINKS["compose"])
    if number < version(COMPOSE_MINIMUM):
        cause = f"Compose {facts.compose} is older than {COMPOSE_MINIMUM}"
        return Finding("compose.old", "warn", cause, "the dev container tools may refuse it", command, LINKS["compose"])
    return Finding("compose.old", "ok", f"Compose {facts.compose}")


def has_cdi(facts: Facts) -> bool:
    """Whether the engine can hand out GPUs by CDI. Docker before 25 knows no CDI, whatever files lie there."""
    docker = facts.docker
    major = re.match("[0-9]{1,4}(?![0-9])", docker.version)
    if docker.kind == "docker" and major and int(major[0]) < 25:
        return False
    return docker.cdi or bool(facts.cdi)


def _toolkit_needed(case: Case) -> str:
    """Why the toolkit does not matter here, "" when it does."""
    facts = case.facts
    if not case.has_gpu or facts.system in {"macos", "windows"}:
        return "there is no NVIDIA GPU" if not case.has_gpu else "Docker Desktop brings its own"
    if facts.docker.kind == "desktop":
        return "Docker Desktop brings its own"
    if facts.docker.state != "ok":
        return "the engine could not be asked"
    return ""


def _toolkit_missing(case: Case) -> Finding:
    facts = case.facts
    because = _toolkit_needed(case)
    if because:
        return Finding("toolkit.missing", "skip", because)
    if facts.toolkit or facts.hook or "nvidia" in facts.docker.runtimes or has_cdi(facts):
        known = facts.toolkit if facts.toolkit not in {"", "unknown"} else ""
        return Finding("toolkit.missing", "ok", f"NVIDIA Container Toolkit {known}".strip())
    install = _TOOLKIT.get(linux_family(facts), "")
    command = f"{install} && {_toolkit_setup(case)}" if install else ""
    cause = "the NVIDIA Container Toolkit is not installed"
    return Finding("toolkit.missing", "fail", cause, "containers cannot see the GPU", command, LINKS["toolkit"])


def _toolkit_runtime(case: Case) -> Finding:
    facts = case.facts
    because = _toolkit_needed(case)
    if because:
        return Finding("toolkit.runtime", "skip", because)
    if "nvidia" in facts.docker.runtimes:
        return Finding("toolkit.runtime", "ok", "the engine has the nvidia runtime")
    if has_cdi(facts):
        return Finding("toolkit.runtime", "ok", "the engine hands out the GPU by CDI")
    if not facts.toolkit and not facts.hook:
        return Finding("toolkit.runtime", "skip", "the toolkit is not installed")
    link = LINKS["cdi" if facts.docker.kind == "podman" else "toolkit"]
    if facts.docker.kind == "podman":
        cause, level = "there is no CDI specification for the GPU, and Podman needs one", "fail"
    elif facts.hook:  # `--gpus` still works through the hook alone, without a registered runtime
        cause, level = "the engine does not have the nvidia runtime, only the toolkit's old hook", "warn"
    else:
        cause, level = "the toolkit is installed, but the engine does not have its runtime", "fail"
    consequence = "containers cannot see the GPU" if level == "fail" else "the GPU may be lost when systemd reloads"
    command = _toolkit_setup(case) if facts.toolkit else ""
    return Finding("toolkit.runtime", level, cause, consequence, command, link)


def _toolkit_vulnerable(case: Case) -> Finding:
    facts = case.facts
    if facts.toolkit in {"", "unknown"}:
        return Finding(
            "toolkit.vulnerable", "skip", "its version is not known" if facts.toolkit else "there is no toolkit"
        )
    if case.catalogue is None:
        return Finding("toolkit.vulnerable", "skip", "there is no catalogue")
    safe = case.catalogue.toolkit_safe
    if version(facts.toolkit) >= version(safe):
        return Finding("toolkit.vulnerable", "ok", f"version {facts.toolkit}, {safe} is the oldest safe one")
    return Finding(
        "toolkit.vulnerable", "warn", f"the toolkit {facts.toolkit} is older than {safe}",
        f"a hostile image could leave its container ({case.catalogue.toolkit_advisory})",
        _UPGRADE_TOOLKIT.get(linux_family(facts), ""), LINKS["toolkit"],
    )  # fmt: skip


# Checks of everything else


def _disk_space(case: Case) -> Finding:
    facts = case.facts
    if facts.docker_free is None and facts.project_free is None:
        return Finding("disk.space", "skip", "the free space could not be read")
    enough, least = DOCKER_ROOM if case.has_gpu else DOCKER_ROOM_CPU
    if facts.docker_free is not None and facts.docker_free < enough:
        level = "fail" if facts.docker_free < least else "warn"
        cause = f"{facts.docker_free / GIB:.1f} GiB are free where Docker keeps its images ({facts.docker.root})"
        need = f"building the image takes up to {enough // GIB} GiB"
        return Finding("disk.space", level, cause, need, "docker system prune", LINKS["prune"])
    if facts.project_free is not None and facts.project_free < PROJECT_ROOM:
        cause = f"{facts.project_free / GIB:.1f} GiB are free where the project lies"
        return Finding("disk.space", "warn", cause, "data and runs need room", "df -h .", LINKS["prune"])
    free = facts.docker_free if facts.docker_free is not None else facts.project_free or 0
    return Finding("disk.space", "ok", f"{free / GIB:.0f} GiB free")


def _proxy_ca(case: Case) -> Finding:
    facts = case.facts
    if facts.certificates:
        count = "one CA certificate file" if facts.certificates == 1 else f"{facts.certificates} CA certificate files"
        return Finding("proxy.ca", "ok", f"{count} of this site will be handed to the image build")
    if facts.proxy:
        return Finding(
            "proxy.ca", "warn", "a proxy is set, but this host has no CA certificate of its own",
            "if the proxy opens TLS, downloads in the image build fail",
            "export EXTRA_CA_CERTS=/path/to/ca.pem", LINKS["ca"],
        )  # fmt: skip
    return Finding("proxy.ca", "ok", "no proxy and no extra CA certificate")


CHECKS: tuple[tuple[str, tuple[Callable[[Case], Finding], ...]], ...] = (
    (
        "GPU and driver",
        (
            _gpu_none, _driver_missing, _driver_hangs, _driver_unreadable, _nvml_mismatch, _gpu_lost, _wsl,
            _driver_too_old, _driver_too_new, _gpu_arch,
        ),
    ),
    (
        "Container engine",
        (
            _docker_missing, _docker_down, _docker_permission, _compose_old,
            _toolkit_missing, _toolkit_runtime, _toolkit_vulnerable,
        ),
    ),
    ("Host", (_disk_space, _proxy_ca)),
)  # fmt: skip


# Words


def colour_wanted(stream: TextIO) -> bool:
    """Colour only on a terminal, and not where NO_COLOR is set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def as_json(findings: list[Finding]) -> str:
    """The findings as a JSON list of objects."""
    return json.dumps([finding._asdict() for finding in findings], indent=1)


_COLOURS = {"ok": "32", "warn": "33", "fail": "31", "skip": "2"}


def as_text(findings: list[Finding], colour: bool = False) -> str:
    """One line a check, grouped; below a check that is not fine what it costs, the command, and where to read on."""
    findings = [Finding(*map(printable, finding)) for finding in findings]
    lines: list[str] = []
    rest = iter(findings)
    for group, checks in CHECKS:
        lines.append(("" if not lines else "\n") + group)
        for _, finding in zip(checks, rest):  # noqa: B905 (Python 3.8; stops with the group)
            lines += _told(finding, colour)
    failed = sum(finding.level == "fail" for finding in findings)
    warned = sum(finding.level == "warn" for finding in findings)
    lines.append(
        f"\n{failed} failed, {warned} warning{'s' * (warned != 1)}" if failed or warned else "\nnothing to mend"
    )
    return "\n".join(lines)


def _told(finding: Finding, colour: bool) -> list[str]:
    level = f"{finding.level:4}"
    if colour:
        level = f"\033[{_COLOURS[finding.level]}m{level}\033[0m"
    text = f"because {finding.cause}" if finding.level == "skip" else finding.cause
    lines = [f"  {level}  {finding.id:19} {text}"]
    if finding.level in {"warn", "fail"}:
        lines += [f"        {finding.consequence}"] if finding.consequence else []
        lines += [f"        $ {finding.command}"] if finding.command else []
        lines += [f"        {finding.link}"] if finding.link else []
    return lines


WIDTH, LINES = 108, 18  # of a summary; who prints it may set it in by two


def summary(facts: Facts, answer: Resolution | None, findings: list[Finding]) -> list[str]:
    """At most 18 lines for the end of a generation: GPUs, driver, torch build and why, what fails and its command.

    No line is longer than `WIDTH`. No command is cut: it goes on below, after a backslash, or is left to the doctor.
    """
    told: list[list[str]] = []
    if facts.gpus:
        names = ", ".join(counted([gpu.name for gpu in facts.gpus]))
        told.append(_folded("GPU", f"{names}, driver {facts.driver or 'unknown'}")[:4])
    if answer and answer.build:
        where = "default package index" if answer.index_url is None else answer.index_url
        only = f" on GPU {_numbers(answer.devices)}" if answer.status == "partial" else ""
        told.append(_folded("torch", f"{answer.torch}+{answer.build}{only} ({where})"))
        told += [_folded("", text) for text in (*answer.reasons[1:2], *answer.warnings[:2], *answer.advice[:2])]
    elif answer:
        told.append(_folded("torch", f"on the CPU: {answer.reasons[0]}"))
        told += [_folded("", text) for text in answer.advice[:2]]
    elif not any(finding.level == "fail" and finding.id.startswith(("driver", "nvml", "gpu")) for finding in findings):
        told.append(_folded("GPU", "none found: training runs on the CPU"))
    known = {"driver.too-old", "driver.too-new", "gpu.arch"} if answer else set()
    for finding in findings:
        if finding.level != "fail":
            continue
        words = [] if finding.id in known else _folded("fails", f"{finding.cause}: {finding.consequence}")
        if finding.command:
            words += _folded_command(finding.command)
        elif words:
            words += _folded("", finding.link)
        told.append(words)
    lines: list[str] = []
    for number, words in enumerate(told):
        last = number == len(told) - 1
        if len(lines) + len(words) > LINES - (not last):
            return [*lines, "more    python -m generator doctor"]
        lines += words
    return lines


def _folded(label: str, text: str) -> list[str]:
    """`text` behind a label, folded at blanks; only a word that is longer than a line is cut."""
    room = WIDTH - 8
    lines: list[str] = []
    line = ""
    for word in printable(text).split():
        while len(word) > room:
            lines += [line, word[:room]] if line else [word[:room]]
            line, word = "", word[room:]  # noqa: PLW2901
        if line and len(line) + 1 + len(word) > room:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    lines.append(line)
    return [f"{label if number == 0 else '':8}{line}" for number, line in enumerate(lines)]


def _folded_command(command: str) -> list[str]:
    """A command for a POSIX shell, going on after a backslash: never within quotation marks, where it would count."""
    lines = ["        $"]
    for word in re.findall(r"""(?:[^\s'"]|'[^']*'|"[^"]*")+""", printable(command)):
        if len(lines[-1]) + 1 + len(word) + 2 > WIDTH:
            lines[-1] += " \\"
            lines.append("         ")
        lines[-1] += f" {word}"
    return lines


def _numbers(devices: list[int]) -> str:
    return ", ".join(map(str, devices))


def counted(names: list[str]) -> list[str]:
    """["A", "A", "B"] -> ["2x A", "B"]."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return [name if count == 1 else f"{count}x {name}" for name, count in counts.items()]

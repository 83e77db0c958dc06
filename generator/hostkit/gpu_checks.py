"""Checks of the GPUs, their driver, and of the torch build that was chosen for them."""

from __future__ import annotations

import re

from . import remedies
from .finding import Case, Finding, Met, counted, excerpt
from .nvidia import Card
from .probe import Facts
from .remedies import LINKS

# NVIDIA's PCI device ids rise with the generation: the last Volta is 1df6, the first Turing 1e02, the last Ada 28xx
# (pci.ids of 2023-04), and the RTX 5090 is 2b85
FIRST_TURING, FIRST_BLACKWELL = 0x1E00, 0x2900
RESTART = "the GPU cannot be used; restart the machine after the installation"


def _nothing(case: Case) -> str:
    """Why a check that needs nvidia-smi's answer is skipped."""
    return "the driver does not list a GPU" if case.has_gpu else "there is no NVIDIA GPU"


def gpu_none(case: Case) -> Finding:
    """Whether there is an NVIDIA GPU at all."""
    facts = case.facts
    if facts.gpus:
        return Finding("gpu.none", "ok", ", ".join(counted([gpu.name for gpu in facts.gpus])))
    if facts.system == "macos":
        return Finding("gpu.none", "ok", "a Mac has no NVIDIA GPU", "containers train on the CPU")
    if facts.smi.state in {"failed", "unreadable"}:
        return Finding("gpu.none", "skip", "nvidia-smi does not tell, see below")
    if case.has_gpu:
        return Finding("gpu.none", "skip", "the driver does not list a GPU that can be used, see below")
    if facts.tegra:
        return Finding(
            "gpu.none", "warn", "this is a Jetson, and nvidia-smi lists no GPU",
            "before Thor, Jetsons need NVIDIA's own builds of torch: containers of this project train on the CPU here",
            "", LINKS["jetson"],
        )  # fmt: skip
    if facts.system == "wsl2":
        cause, consequence = (
            "WSL2 sees no NVIDIA GPU",
            "training runs on the CPU; if Windows has one, its driver is missing",
        )
        return Finding("gpu.none", "warn", cause, consequence, "", LINKS["windows"])
    return Finding(
        "gpu.none", "warn", "no NVIDIA GPU was found", "training runs on the CPU, which suits only small data"
    )


def driver_missing(case: Case) -> Finding:
    """Whether an NVIDIA driver is installed and loaded for the GPU."""
    facts = case.facts
    failed = facts.smi.state == "failed" or (facts.smi.state == "blocked" and facts.system != "wsl2")
    if failed:
        cause = f"nvidia-smi failed: {excerpt(facts.smi.message) or 'it gave no reason'}"
        return Finding("driver.missing", "fail", cause, "the GPU cannot be used", "nvidia-smi", LINKS["driver"])
    if facts.smi.state == "no-devices" and facts.cards and facts.module:
        return _unlisted(facts)
    if facts.driver and facts.smi.state != "no-driver":
        if facts.smi.state == "missing":
            return _without_smi(facts)
        return Finding("driver.missing", "ok", f"NVIDIA driver {facts.driver}")
    if not case.has_gpu and facts.smi.state in {"missing", "no-devices"}:
        return Finding("driver.missing", "skip", "there is no NVIDIA GPU")
    if facts.smi.state == "missing" and facts.wsl_driver:
        return Finding(
            "driver.missing", "fail", "WSL2 has the Windows driver, but not its nvidia-smi",
            "the GPU cannot be used", "wsl.exe --update && wsl.exe --shutdown", LINKS["wsl"],
        )  # fmt: skip
    if facts.smi.state in {"missing", "no-driver", "no-devices"} and facts.cards:
        return _not_loaded(facts)
    if facts.smi.state == "no-driver":
        if facts.system == "wsl2" and facts.wsl_driver:
            return Finding("driver.missing", "skip", "a Linux driver hides that of Windows, see below")
        cause = "nvidia-smi is installed, but no NVIDIA driver is loaded"
        command = remedies.load_driver(facts)
        return Finding("driver.missing", "fail", cause, "a GPU could not be used", command, LINKS["driver"])
    return Finding("driver.missing", "skip", "nvidia-smi did not answer, see the other checks")


def _unlisted(facts: Facts) -> Finding:
    """The driver runs and lists nothing, although a card is there: old cards need an old driver, new ones a new one."""
    card = facts.cards[0]
    cause = f"an NVIDIA GPU is at PCI {card.address}, but driver {facts.module} does not list it"
    if is_legacy(card):
        command, link = remedies.driver(facts, legacy=True)
        consequence = (
            "it is older than Turing, whose last driver branch is 580; restart the machine after installing it"
        )
        return Finding("driver.missing", "fail", cause, consequence, command, link)
    if card.device >= FIRST_BLACKWELL and facts.module.partition(".")[0] < "570":
        command, link = remedies.driver(facts, newest=True)
        consequence = "a GPU as new as this needs driver 570 or newer; restart the machine after installing it"
        return Finding("driver.missing", "fail", cause, consequence, command, link)
    return Finding(
        "driver.missing", "fail", cause, "the GPU cannot be used", "sudo dmesg | grep -i nvrm", LINKS["driver"]
    )


def _without_smi(facts: Facts) -> Finding:
    cause = f"driver {facts.module} is loaded but nvidia-smi is not installed"
    command = remedies.smi_package(facts)
    if facts.listed:
        consequence = "GPUs are known by name only; their memory is not"
        return Finding("driver.missing", "warn", cause, consequence, command, LINKS["driver"])
    consequence = "which GPUs there are cannot be told, so the CPU would be used"
    return Finding("driver.missing", "fail", cause, consequence, command, LINKS["driver"])


def _not_loaded(facts: Facts) -> Finding:
    card = facts.cards[0]
    there = f"an NVIDIA GPU is at PCI {card.address}"
    if card.driver == "vfio-pci":
        return Finding(
            "driver.missing", "fail", f"{there}, but it is set aside for virtual machines (vfio-pci)",
            "this system cannot use the GPU", f"lspci -nnk -s {card.address}", LINKS["driver"],
        )  # fmt: skip
    installed = facts.smi.state != "missing"
    if installed and facts.secure_boot:
        return Finding(
            "driver.missing", "fail",
            f"{there} and its driver is installed, but not loaded: Secure Boot refuses modules of unknown origin",
            "the GPU cannot be used; after the command restart, choose 'Enroll MOK' and type the same password",
            remedies.enrol_key(facts), LINKS["secure-boot"],
        )  # fmt: skip
    if holds_nouveau(facts):
        return Finding("driver.missing", "skip", "nouveau holds the GPU, see below")
    if installed:
        return Finding(
            "driver.missing", "fail", f"{there} and its driver is installed, but not loaded",
            "the GPU cannot be used; often the kernel was updated and the driver's module not built for it",
            remedies.load_driver(facts), LINKS["driver"],
        )  # fmt: skip
    command, link = remedies.driver(facts, is_legacy(card), card.device >= FIRST_BLACKWELL)
    return Finding("driver.missing", "fail", f"{there}, but its driver is not installed", RESTART, command, link)


def is_legacy(card: Card) -> bool:
    """Whether a card is older than Turing, so that the 580 branch of the driver is its last."""
    return 0 < card.device < FIRST_TURING


def holds_nouveau(facts: Facts) -> bool:
    """Whether the free driver has the card and NVIDIA's has not."""
    return not facts.module and (facts.nouveau or any(card.driver == "nouveau" for card in facts.cards))


def driver_nouveau(case: Case) -> Finding:
    """Whether the free driver keeps NVIDIA's from the card."""
    facts = case.facts
    if facts.system != "linux" or not facts.cards:
        return Finding("driver.nouveau", "skip", _nothing(case))
    if not holds_nouveau(facts):
        return Finding("driver.nouveau", "ok", "nouveau is not loaded")
    cause = "the free driver nouveau holds the GPU, and CUDA cannot use it"
    if facts.smi.state == "missing":  # installing NVIDIA's driver keeps nouveau away as well
        card = facts.cards[0]
        command, link = remedies.driver(facts, is_legacy(card), card.device >= FIRST_BLACKWELL)
        return Finding("driver.nouveau", "fail", cause + ": NVIDIA's is not installed", RESTART, command, link)
    if facts.secure_boot:
        return Finding("driver.nouveau", "skip", "Secure Boot keeps NVIDIA's driver out, see above")
    consequence = "the GPU cannot be used; restart the machine after the command"
    return Finding("driver.nouveau", "fail", cause, consequence, remedies.without_nouveau(facts), LINKS["driver"])


def driver_hangs(case: Case) -> Finding:
    """Whether nvidia-smi answers in time."""
    facts = case.facts
    if facts.smi.state == "hangs":
        return Finding(
            "driver.hangs", "fail", "nvidia-smi does not answer within seconds",
            "without persistence mode (sudo nvidia-smi -pm 1) a server's first answer may only be slow; if the log"
            " names an Xid the driver is stuck and only a restart helps, which stops everybody's work",
            "sudo dmesg | grep -iE 'nvrm|xid' | tail", LINKS["xid"],
        )  # fmt: skip
    if facts.smi.state == "missing":
        return Finding("driver.hangs", "skip", "nvidia-smi is not installed" if case.has_gpu else _nothing(case))
    return Finding("driver.hangs", "ok", "nvidia-smi answers")


def driver_unreadable(case: Case) -> Finding:
    """Whether what nvidia-smi prints can be understood."""
    smi = case.facts.smi
    if smi.state == "unreadable":
        cause = f"nvidia-smi answers nothing that can be read: {excerpt(smi.message) or 'nothing at all'}"
        return Finding(
            "driver.unreadable", "fail", cause, "which GPUs there are cannot be told, so the CPU would be used",
            "nvidia-smi --query-gpu=index,name,driver_version --format=csv", LINKS["driver"],
        )  # fmt: skip
    if smi.gpus and not case.facts.driver:
        return Finding(
            "driver.unreadable", "fail", "nvidia-smi lists a GPU, but no version of its driver that can be read",
            "no torch build can be chosen for it, so the CPU would be used", "nvidia-smi", LINKS["driver"],
        )  # fmt: skip
    if not smi.gpus:
        return Finding("driver.unreadable", "skip", _nothing(case))
    return Finding("driver.unreadable", "ok", "what nvidia-smi says can be read")


def nvml_mismatch(case: Case) -> Finding:
    """Whether the loaded kernel module and the driver's libraries are of one version."""
    facts = case.facts
    if facts.smi.state == "mismatch":
        loaded = f" {facts.module}" if facts.module else ""
        return Finding(
            "nvml.mismatch", "fail", f"the driver was updated, but the old kernel module{loaded} is still loaded",
            "no program can use the GPU until they agree", "sudo reboot", LINKS["driver"],
        )  # fmt: skip
    if not facts.smi.gpus:
        return Finding("nvml.mismatch", "skip", _nothing(case))
    return Finding("nvml.mismatch", "ok", "driver and its libraries agree")


def driver_permission(case: Case) -> Finding:
    """Whether this user may use the device files."""
    facts = case.facts
    if facts.smi.state == "permission":
        return Finding(
            "driver.permission", "fail", "the driver refuses this user (insufficient permissions)",
            "the GPU cannot be used", "ls -l /dev/nvidia* && sudo nvidia-modprobe -u", LINKS["driver"],
        )  # fmt: skip
    if not facts.smi.gpus:
        return Finding("driver.permission", "skip", _nothing(case))
    return Finding("driver.permission", "ok", "the driver serves this user")


def gpu_bus(case: Case) -> Finding:
    """Whether a GPU has fallen off the bus."""
    smi = case.facts.smi
    if smi.state == "lost" or "gpu is lost" in smi.message.lower():
        return Finding(
            "gpu.bus", "fail", "a GPU fell off the bus (heat, power or hardware)",
            "it is gone until the machine is restarted, which stops everybody's work; the log says since when",
            "sudo dmesg | grep -i xid | tail", LINKS["xid"],
        )  # fmt: skip
    if "inforom is corrupted" in smi.message.lower():
        cause, consequence = excerpt(smi.message), "the GPU works, but should be serviced"
        return Finding("gpu.bus", "warn", cause, consequence, "", LINKS["xid"])
    if not smi.gpus:
        return Finding("gpu.bus", "skip", _nothing(case))
    return Finding("gpu.bus", "ok", "no GPU has fallen off the bus")


_HOST_FIRST = {"mismatch", "hangs", "lost", "no-driver"}


def gpu_lost(case: Case) -> Finding:
    """Whether the running container still has the GPU that it was started with."""
    running = case.facts.running
    if case.facts.smi.state in _HOST_FIRST:
        return Finding("gpu.lost", "skip", "the host's driver comes first, see above")
    if not running.id:
        return Finding("gpu.lost", "skip", "no container of this project runs")
    if not running.gpu:
        return Finding("gpu.lost", "skip", "the running container was started without a GPU")
    if running.gpu == "lost":
        return Finding(
            "gpu.lost", "fail", "the running container has lost its GPU: systemd has reloaded since it was started",
            "training in it fails; a new container has the GPU again, and CDI keeps this from coming back",
            "docker compose up --detach --force-recreate dev", LINKS["lost"],
        )  # fmt: skip
    if running.gpu == "failed":
        cause = f"the running container was started with a GPU, but nvidia-smi fails there: {excerpt(running.message)}"
        return Finding(
            "gpu.lost", "fail", cause, "training in it fails", "docker compose up --detach --force-recreate dev",
            LINKS["lost"],
        )  # fmt: skip
    return Finding("gpu.lost", "ok", "the running container has its GPU")


def wsl(case: Case) -> Finding:
    """Whether WSL2 shares the GPU of Windows."""
    facts = case.facts
    if facts.system != "wsl2":
        return Finding("wsl", "skip", "this is not WSL2")
    if facts.smi.state == "blocked":
        return Finding(
            "wsl", "fail", "Windows blocks this WSL from the GPU", "the GPU cannot be used; in Windows, too:",
            "wsl.exe --shutdown", LINKS["wsl"],
        )  # fmt: skip
    broken = facts.smi.state == "no-driver" and facts.wsl_driver
    if broken or facts.linux_driver:
        return Finding(
            "wsl", "fail" if broken else "warn", "a Linux NVIDIA driver is installed inside WSL2",
            "it hides the driver of Windows, which is the one that works here: remove it", _PURGE.get(
                remedies.linux_family(facts), ""), LINKS["wsl"],
        )  # fmt: skip
    if facts.gpus:
        return Finding("wsl", "ok", "WSL2 shares the GPU of Windows")
    if not facts.wsl_driver:
        return Finding("wsl", "skip", "Windows shares no NVIDIA GPU")
    return Finding("wsl", "skip", "the driver does not list the GPU, see above")


_PURGE = {
    "ubuntu": "sudo apt-get purge -y '^nvidia-.*' '^libnvidia-.*'",
    "debian": "sudo apt-get purge -y '^nvidia-.*' '^libnvidia-.*'",
    "fedora": "sudo dnf remove -y '*nvidia*'",
    "suse": "sudo zypper remove '*nvidia*'",
    "arch": "sudo pacman -Rns nvidia-utils",
}


def gpu_mig(case: Case) -> Finding:
    """Whether GPUs that are partitioned (MIG) have partitions, and which there are."""
    smi = case.facts.smi
    if not smi.mig:
        return Finding("gpu.mig", "skip", "no GPU is partitioned" if smi.gpus else _nothing(case))
    bare = [number for number in smi.mig if number not in {one.gpu for one in smi.slices}]
    if bare:
        level = "warn" if case.facts.gpus else "fail"
        which = "GPU " + ", ".join(map(str, bare))
        return Finding(
            "gpu.mig", level, f"{which} is in MIG mode but has no instances", "CUDA cannot use it",
            f"sudo nvidia-smi -i {bare[0]} -mig 0   # or make instances: sudo nvidia-smi mig -i {bare[0]} -cgi 0 -C",
            LINKS["mig"],
        )  # fmt: skip
    if len(smi.slices) == 1:
        return Finding("gpu.mig", "ok", f"one MIG instance, {smi.slices[0].profile}")
    listed = ", ".join(counted([one.profile for one in smi.slices]))
    return Finding(
        "gpu.mig", "ok",
        f"MIG instances {listed}: a program uses one, CUDA_VISIBLE_DEVICES={smi.slices[0].uuid} chooses it",
    )  # fmt: skip


def _obstacle(case: Case, check: str, kinds: set[str], link: str) -> Finding | None:
    """The first GPU's obstacle of these kinds; skipped without a GPU, None when there is none."""
    if not case.facts.gpus or case.resolution is None:
        return Finding(check, "skip", "no torch build can be chosen" if case.facts.gpus else _nothing(case))
    met = next((one for one in case.obstacles if one.obstacle.kind in kinds), None)
    if met is None:
        return None
    level = "fail" if case.resolution.status == "impossible" else "warn"
    return Finding(check, level, met.obstacle.text, met.change or "torch cannot use the GPU", _mend(case, met), link)


def _mend(case: Case, met: Met) -> str:
    """The command for the change that lets this GPU run: another driver, or another release in .env."""
    if met.obstacle.kind in {"driver-old", "driver-new"}:
        return remedies.driver(case.facts, met.legacy, newest=True)[0]
    release = re.match(r"use torch ([0-9.]+) ", met.change)
    return f"sed -i '1i TORCH_VERSION={release[1]}' .env   # then Rebuild Container" if release else ""


def driver_too_old(case: Case) -> Finding:
    """Whether the driver serves the CUDA of the torch that is asked for."""
    found = _obstacle(case, "driver.too-old", {"driver-old"}, LINKS["compatibility"])
    return found or Finding("driver.too-old", "ok", f"driver {case.facts.driver} is new enough")


def driver_too_new(case: Case) -> Finding:
    """Whether the driver still knows every GPU."""
    found = _obstacle(case, "driver.too-new", {"driver-new"}, LINKS["branch"])
    return found or Finding("driver.too-new", "ok", f"driver {case.facts.driver} still knows every GPU")


def gpu_arch(case: Case) -> Finding:
    """Whether the torch that is asked for has a build with code for the GPUs."""
    if case.fault and case.facts.driver:
        cause = f"no torch build can be chosen for this host: {case.fault}"
        return Finding("gpu.arch", "fail", cause, "the CPU would be used", "nvidia-smi", LINKS["capability"])
    found = _obstacle(case, "gpu.arch", {"arch", "unknown", "release"}, LINKS["capability"])
    answer = case.resolution
    if found or answer is None:
        return found or Finding("gpu.arch", "skip", _nothing(case))
    if answer.status == "partial":
        left = str(answer.excluded[0]["reason"])
        only = f"only GPU {', '.join(map(str, answer.devices))} is used"
        return Finding("gpu.arch", "warn", left, only, "", LINKS["capability"])
    if answer.build is None:
        return Finding("gpu.arch", "skip", "another obstacle comes first, see above")
    return Finding("gpu.arch", "ok", f"torch {answer.torch}+{answer.build} has code for the GPU")


CHECKS = (
    gpu_none, driver_missing, driver_nouveau, driver_hangs, driver_unreadable, nvml_mismatch, driver_permission,
    gpu_bus, wsl, gpu_mig, driver_too_old, driver_too_new, gpu_arch, gpu_lost,
)  # fmt: skip

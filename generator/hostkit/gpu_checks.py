"""Checks of the GPUs, their driver, and of the torch build that was chosen for them."""

from __future__ import annotations

from . import remedies
from .finding import Case, Finding, counted, excerpt
from .nvidia import Card
from .probe import Facts
from .remedies import LINKS

# NVIDIA's PCI device ids rise with the generation: the last Volta is 1df6, the first Turing 1e02 (pci.ids of 2023-04)
FIRST_TURING = 0x1E00


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
            "the GPU cannot be used", "wsl --update && wsl --shutdown", LINKS["wsl"],
        )  # fmt: skip
    if facts.smi.state in {"missing", "no-driver", "no-devices"} and facts.cards:
        return _not_loaded(facts)
    if facts.smi.state == "no-driver":
        command, link = remedies.driver(facts, legacy=False)
        cause = "nvidia-smi is installed, but no NVIDIA driver is loaded"
        return Finding("driver.missing", "fail", cause, "a GPU could not be used", command, link)
    return Finding("driver.missing", "skip", "nvidia-smi did not answer, see the other checks")


def _unlisted(facts: Facts) -> Finding:
    """The driver runs and lists nothing, although a card is there: old cards need an old driver, new ones a new one."""
    card = facts.cards[0]
    cause = f"an NVIDIA GPU is at PCI {card.address}, but driver {facts.module} does not list it"
    if is_legacy(card):
        command, link = remedies.driver(facts, legacy=True)
        consequence = "it is older than Turing, whose last driver branch is 580"
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
    if installed and facts.nouveau:
        return Finding("driver.missing", "skip", "nouveau holds the GPU, see below")
    if installed and facts.secure_boot:
        return Finding(
            "driver.missing", "fail",
            f"{there} and its driver is installed, but not loaded: Secure Boot refuses modules that nobody signed",
            "the GPU cannot be used", "mokutil --sb-state; sudo modprobe nvidia", LINKS["secure-boot"],
        )  # fmt: skip
    command, link = remedies.driver(facts, is_legacy(card))
    cause = f"{there}, but its driver is not {'loaded' if installed else 'installed'}"
    return Finding("driver.missing", "fail", cause, "the GPU cannot be used", command, link)


def is_legacy(card: Card) -> bool:
    """Whether a card is older than Turing, so that the 580 branch of the driver is its last."""
    return 0 < card.device < FIRST_TURING


def driver_nouveau(case: Case) -> Finding:
    """Whether the free driver keeps NVIDIA's from the card."""
    facts = case.facts
    held = facts.nouveau or any(card.driver == "nouveau" for card in facts.cards)
    if facts.system != "linux" or not facts.cards:
        return Finding("driver.nouveau", "skip", _nothing(case))
    if not held or facts.module:
        return Finding("driver.nouveau", "ok", "nouveau is not loaded")
    if facts.smi.state == "missing":  # installing NVIDIA's driver keeps nouveau away as well
        command, link = remedies.driver(facts, is_legacy(facts.cards[0]))
    else:
        command, link = remedies.without_nouveau(facts), LINKS["driver"]
    cause = "the free driver nouveau holds the GPU, and CUDA cannot use it"
    return Finding("driver.nouveau", "fail", cause, "the GPU cannot be used", command, link)


def driver_hangs(case: Case) -> Finding:
    """Whether nvidia-smi answers in time."""
    facts = case.facts
    if facts.smi.state == "hangs":
        return Finding(
            "driver.hangs", "fail", "nvidia-smi does not answer within seconds",
            "a stuck driver serves no program; without persistence mode a server's first answer may only be slow",
            "sudo nvidia-smi -pm 1 || { sudo dmesg | grep -iE 'nvrm|xid' | tail; sudo reboot; }", LINKS["xid"],
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
            "gpu.bus", "fail", "a GPU fell off the bus (heat, power or hardware)", "it is gone until the next start",
            "sudo dmesg | grep -i xid ; sudo reboot", LINKS["xid"],
        )  # fmt: skip
    if "inforom is corrupted" in smi.message.lower():
        cause, consequence = excerpt(smi.message), "the GPU works, but should be serviced"
        return Finding("gpu.bus", "warn", cause, consequence, "", LINKS["xid"])
    if not smi.gpus:
        return Finding("gpu.bus", "skip", _nothing(case))
    return Finding("gpu.bus", "ok", "no GPU has fallen off the bus")


def gpu_lost(case: Case) -> Finding:
    """Whether the running container still has the GPU that it was started with."""
    running = case.facts.running
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


def _obstacle(case: Case, check: str, kinds: set[str], link: str, command: str = "") -> Finding | None:
    """The first obstacle of these kinds that the resolver met; skipped without a GPU, None when there is none."""
    if not case.facts.gpus or case.resolution is None:
        return Finding(check, "skip", "no torch build can be chosen" if case.facts.gpus else _nothing(case))
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


def driver_too_old(case: Case) -> Finding:
    """Whether the driver serves the CUDA of the torch that is asked for."""
    command = remedies.driver(case.facts, _legacy(case))[0]
    found = _obstacle(case, "driver.too-old", {"driver-old"}, LINKS["compatibility"], command)
    return found or Finding("driver.too-old", "ok", f"driver {case.facts.driver} is new enough")


def driver_too_new(case: Case) -> Finding:
    """Whether the driver still knows every GPU."""
    command = remedies.driver(case.facts, legacy=True)[0]
    found = _obstacle(case, "driver.too-new", {"driver-new"}, LINKS["branch"], command)
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

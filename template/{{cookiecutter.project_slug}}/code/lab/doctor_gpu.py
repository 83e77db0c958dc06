"""Checks of `lab doctor`: the GPU as it was handed into this container, and its driver."""

from __future__ import annotations

import re
from collections.abc import Callable

from lab.doctor_facts import Facts, reached
from lab.doctor_finding import (
    HOST_DOCTOR,
    LINKS,
    REBUILD,
    RECREATE,
    RESTART,
    Finding,
    counted,
    ending,
    excerpt,
    has_gpu,
    init_error,
    named,
    no_device,
    used,
)


def _gpu_visible(facts: Facts) -> Finding:
    if facts.visible in {"", "-1"}:
        where = ".devcontainer/compose.local.yaml says why" if facts.accel else "CUDA_VISIBLE_DEVICES is empty"
        if facts.accel.startswith("gpu") and facts.nodes:
            return Finding(
                "gpu.visible", "warn", f"CUDA_VISIBLE_DEVICES={facts.visible} hides the GPU of this container",
                "training runs on the CPU", "unset CUDA_VISIBLE_DEVICES; lab doctor",
            )  # fmt: skip
        if facts.accel.startswith("gpu"):
            return Finding(
                "gpu.visible", "fail", "this container was made without a GPU, and host-setup has found one since",
                "training runs on the CPU", RECREATE, LINKS["toolkit"],
            )  # fmt: skip
        return Finding("gpu.visible", "skip", f"the container was opened for the CPU: {where}")
    if not facts.nodes:
        if facts.accel.startswith("gpu"):
            return Finding(
                "gpu.visible", "fail", "host-setup chose the GPU, but none was handed into this container",
                "training runs on the CPU", RECREATE, LINKS["toolkit"],
            )  # fmt: skip
        where = ".devcontainer/compose.local.yaml says why" if facts.accel else "`docker compose config` shows how"
        return Finding("gpu.visible", "skip", f"the container was started without a GPU: {where}")
    shut = [name for name, error in facts.refused.items() if error == "EACCES"]
    if shut:
        return Finding(
            "gpu.visible", "fail", f"uid {facts.uid} may not open /dev/{shut[0]}", "torch cannot use the GPU",
            "sudo chmod a+rw /dev/nvidia*  # on the host; the driver's NVreg_DeviceFileMode keeps it so",
            LINKS["toolkit"],
        )  # fmt: skip
    if facts.smi.state == "hangs":
        return Finding(
            "gpu.visible", "fail", "nvidia-smi does not answer", "the driver is stuck: no program can use the GPU",
            "sudo dmesg | grep -iE 'nvrm|xid' ; sudo reboot  # on the host", LINKS["xid"],
        )  # fmt: skip
    devices, listed = used(facts), [gpu for gpu in facts.smi.gpus if not gpu.mig]
    if not devices:
        if facts.torch.at in {"init", "devices"}:
            return Finding(
                "gpu.visible", "fail", f"torch {ending(facts.torch)} when it asks for the GPUs",
                "the driver is stuck: no program can use the GPU",
                "sudo dmesg | grep -iE 'nvrm|xid' ; sudo reboot  # on the host", LINKS["xid"],
            )  # fmt: skip
        if not reached(facts.torch, "torch") or not facts.torch.steps["torch"].get("cuda"):
            return Finding("gpu.visible", "skip", "this torch cannot say, see torch.build")
        causes = (_gpu_lost, _driver_old, _driver_compat, _nvml_mismatch, _gpu_fabric, _gpu_uvm)
        if any(check(facts).level == "fail" for check in causes):
            return Finding("gpu.visible", "skip", "the driver refuses, see below")
        return Finding(
            "gpu.visible", "fail",
            f"torch sees no GPU: {excerpt(init_error(facts) or facts.smi.message) or 'it gives no reason'}",
            "training runs on the CPU, or not at all", RESTART, LINKS["toolkit"],
        )  # fmt: skip
    names = counted([str(device["name"]) for device in devices])
    chosen = facts.visible is not None and facts.visible != "all"
    if len(devices) < len(listed) and not chosen:
        return Finding(
            "gpu.visible", "warn", f"nvidia-smi lists {len(listed)} GPUs, torch sees {len(devices)}: {names}",
            "the others are not used", HOST_DOCTOR, LINKS["toolkit"],
        )  # fmt: skip
    more = f" of {len(listed)}, by CUDA_VISIBLE_DEVICES={facts.visible}" if len(devices) < len(listed) else ""
    driver = facts.smi.gpus[0].driver if facts.smi.gpus else ""
    return Finding("gpu.visible", "ok", names + more + (f", driver {driver}" if driver else ""))


def _gpu_lost(facts: Facts) -> Finding:
    if not has_gpu(facts):
        return Finding("gpu.lost", "skip", "there is no GPU in this container")
    if facts.smi.state == "lost":
        return Finding(
            "gpu.lost", "fail", "a GPU fell off the bus (heat, power or hardware)", "it is gone until the next start",
            "sudo dmesg | grep -i xid ; sudo reboot  # on the host", LINKS["xid"],
        )  # fmt: skip
    if _taken_away(facts):
        return Finding(
            "gpu.lost", "fail", "this running container has lost its GPU: systemd on the host reloaded its rules",
            "no new program can use it; CDI (host-setup --accel gpu-cdi) is not prone to it", RECREATE,
            LINKS["toolkit"],
        )  # fmt: skip
    if facts.smi.state == "blocked":
        return Finding(
            "gpu.lost", "fail", "Windows blocks this WSL from the GPU", "the GPU cannot be used",
            "wsl --shutdown  # in Windows, then open the container again", LINKS["toolkit"],
        )  # fmt: skip
    return Finding("gpu.lost", "ok", "the device files can be opened")


def _taken_away(facts: Facts) -> bool:
    """Whether the control group refuses the device files that were handed in when the container started."""
    return not used(facts) and (facts.smi.state == "unknown-error" or "EPERM" in facts.refused.values())


def _driver_words(error: str) -> str:
    """Which check a text of CUDA's belongs to, "" for none of those with a known cause."""
    lower = error.lower()
    for check, signs in _DRIVER_TEXTS:
        if any(sign in lower for sign in signs):
            return check
    return ""


_DRIVER_TEXTS = (
    ("driver.old", ("is too old", "driver version is insufficient", "error 35:", "(error 35)")),
    ("driver.compat", ("error 804", "forward compatibility was attempted")),
    ("nvml.mismatch", ("error 803", "unsupported display driver", "version mismatch")),
    ("gpu.fabric", ("error 802", "system not yet initialized")),
    ("gpu.uvm", ("cuda unknown error", "error 999", "operation not supported on this os", "error 304")),
)


def _driver_old(facts: Facts) -> Finding:
    cuda = str(facts.torch.steps.get("torch", {}).get("cuda") or "")
    if _driver_words(init_error(facts)) == "driver.old":
        found = re.search(r"found version (\d+)", init_error(facts))
        reach = f" CUDA {int(found[1]) // 1000}.{int(found[1]) % 1000 // 10}" if found else " an older CUDA"
        return Finding(
            "driver.old", "fail", f"the host's driver reaches{reach}, and this torch needs CUDA {cuda}",
            "torch cannot use the GPU; host-setup chooses a torch build for this driver", REBUILD,
            LINKS["compatibility"],
        )  # fmt: skip
    because = no_device(facts)
    if because:
        return Finding("driver.old", "skip", because)
    return Finding("driver.old", "ok", f"the driver serves CUDA {cuda}")


def _driver_compat(facts: Facts) -> Finding:
    if _driver_words(init_error(facts)) == "driver.compat":
        return Finding(
            "driver.compat", "fail", "a newer libcuda than the host's driver is loaded here (error 804)",
            "torch cannot use the GPU; after an update of the driver the host must be started again",
            "unset LD_LIBRARY_PATH; ldconfig -p | grep libcuda.so  # names the one in the way: no compat/ may be there",
            LINKS["forward"],
        )  # fmt: skip
    because = no_device(facts)
    return Finding("driver.compat", "skip" if because else "ok", because or "libcuda is the driver's own")


def _nvml_mismatch(facts: Facts) -> Finding:
    text = init_error(facts)
    if has_gpu(facts) and (facts.smi.state == "mismatch" or _driver_words(text) == "nvml.mismatch"):
        said = " (error 803)" if "803" in text else ""
        return Finding(
            "nvml.mismatch", "fail", f"the driver's libraries and its kernel module are of different versions{said}",
            "no program can use the GPU until they agree",
            "sudo reboot  # on the host; where that changes nothing, recreate the container", LINKS["driver"],
        )  # fmt: skip
    if has_gpu(facts) and facts.smi.state == "permission":
        return Finding(
            "nvml.mismatch", "fail", "the driver refuses this user (insufficient permissions)",
            "the GPU cannot be used", "ls -l /dev/nvidia*  # SELinux: compose.yaml has label=disable", LINKS["toolkit"],
        )  # fmt: skip
    if has_gpu(facts) and facts.smi.state == "no-driver":
        return Finding(
            "nvml.mismatch", "fail", "the host's driver is not loaded any more", "the GPU cannot be used",
            HOST_DOCTOR, LINKS["driver"],
        )  # fmt: skip
    because = "" if used(facts) or facts.smi.gpus else no_device(facts)
    return Finding("nvml.mismatch", "skip" if because else "ok", because or "driver and its libraries agree")


def _gpu_fabric(facts: Facts) -> Finding:
    if _driver_words(init_error(facts)) == "gpu.fabric":
        return Finding(
            "gpu.fabric", "fail", "the fabric manager of this NVSwitch machine does not run (error 802)",
            "torch cannot use any GPU", "sudo systemctl enable --now nvidia-fabricmanager  # on the host",
            LINKS["fabric"],
        )  # fmt: skip
    because = no_device(facts)
    return Finding("gpu.fabric", "skip" if because else "ok", because or "the GPUs are initialised")


def _gpu_uvm(facts: Facts) -> Finding:
    native = any(re.fullmatch(r"nvidia\d+", node) for node in facts.nodes)
    missing = native and "nvidia-uvm" not in facts.nodes
    asked = has_gpu(facts) and not used(facts) and not _taken_away(facts)
    if asked and (missing or _driver_words(init_error(facts)) == "gpu.uvm"):
        what = "/dev/nvidia-uvm is not in this container" if missing else f"CUDA says: {excerpt(init_error(facts))}"
        return Finding(
            "gpu.uvm", "fail", what, "torch cannot use the GPU; so it often is after the host slept",
            "sudo modprobe -r nvidia_uvm; sudo modprobe nvidia_uvm && sudo nvidia-modprobe -u -c=0"
            f" && {RECREATE.partition('  #')[0]}  # on the host",
            LINKS["toolkit"],
        )  # fmt: skip
    because = no_device(facts)
    return Finding("gpu.uvm", "skip" if because else "ok", because or "CUDA's memory driver answers")


def _gpu_memory(facts: Facts) -> Finding:
    because = no_device(facts)
    if because:
        return Finding("gpu.memory", "skip", because)
    # in torch's numbers, which are not nvidia-smi's where the cards differ
    pairs = [
        (name, about["total_mib"], about["total_mib"] - about["free_mib"])
        for name, trial in facts.trials.items()
        if (about := trial.steps.get("memory", {})).get("ok")
    ]
    if not pairs:
        listed = [(str(gpu.number), gpu.total, gpu.used) for gpu in facts.smi.gpus if not gpu.mig]
        pairs = [(name, total, taken) for name, total, taken in listed if total and taken is not None]
    full = [(name, total, taken) for name, total, taken in pairs if taken > total / 2]
    if full:
        name, total, taken = full[0]
        others = f", and {len(full) - 1} more GPUs are as full" if len(full) > 1 else ""
        return Finding(
            "gpu.memory", "warn",
            f"other programs hold {taken / 1024:.1f} of GPU {name}'s {total / 1024:.1f} GiB{others}",
            f"a training has {(total - taken) / 1024:.1f} GiB: give a smaller --batch, or another --device",
            "nvidia-smi --query-compute-apps=pid,process_name,used_memory --format=csv  # on the host",
        )  # fmt: skip
    if not pairs:
        return Finding("gpu.memory", "skip", "the driver does not tell")
    free = ", ".join(f"{(total - taken) / 1024:.1f}" for _, total, taken in pairs)
    return Finding("gpu.memory", "ok", f"{free} GiB free")


def _gpu_mig(facts: Facts) -> Finding:
    if not has_gpu(facts):
        return Finding("gpu.mig", "skip", "there is no GPU in this container")
    split = [gpu for gpu in facts.smi.gpus if gpu.mig]
    if not split:
        return Finding("gpu.mig", "skip", "no GPU is split into instances (MIG)")
    names = named([str(gpu.number) for gpu in split])
    profiles = [part.profile for gpu in split for part in gpu.slices]
    if not profiles:
        return Finding(
            "gpu.mig", "warn", f"{names} is in MIG mode, and no instance of it is in this container",
            "torch cannot use it", "sudo nvidia-smi mig -cgi 0 -C  # on the host; `nvidia-smi -mig 0` switches MIG off",
            LINKS["mig"],
        )  # fmt: skip
    return Finding("gpu.mig", "ok", f"{names} is split: {counted(profiles)}; a process uses one of them")


CHECKS: tuple[Callable[[Facts], Finding], ...] = (
    _gpu_visible,
    _gpu_lost,
    _driver_old,
    _driver_compat,
    _nvml_mismatch,
    _gpu_fabric,
    _gpu_uvm,
    _gpu_memory,
    _gpu_mig,
)

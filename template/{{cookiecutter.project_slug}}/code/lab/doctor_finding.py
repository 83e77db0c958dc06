"""What the checks of `lab doctor` share: a finding, the commands and links it names, and readings of the facts."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from lab.doctor_facts import Child, Facts

CLOSE = 1e-3  # difference in float32 without TF32, as a share of the largest value

REBUILD = ".devcontainer/host-setup && docker compose up --detach --build dev  # on the host, or Rebuild Container"
RECREATE = "docker compose up --detach --force-recreate dev  # on the host, or Rebuild Container"
HOST_DOCTOR = "cd .devcontainer && python3 -m hostkit doctor  # on the host"
MORE_SHM = f"{{ echo SHM_SIZE=8gb; grep -v ^SHM_SIZE= .env; }} >.env.new && mv .env.new .env && {RECREATE}"
RESTART = ".devcontainer/host-setup && docker compose up --detach --force-recreate dev  # on the host"

LINKS = {
    "toolkit": "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/troubleshooting.html",
    "driver": "https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/",
    "compatibility": "https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html",
    "forward": "https://docs.nvidia.com/deploy/cuda-compatibility/forward-compatibility.html",
    "fabric": "https://docs.nvidia.com/datacenter/tesla/fabric-manager-user-guide/",
    "xid": "https://docs.nvidia.com/deploy/xid-errors/",
    "capability": "https://developer.nvidia.com/cuda-gpus",
    "mig": "https://docs.nvidia.com/datacenter/tesla/mig-user-guide/",
    "nccl": "https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html",
    "install": "https://pytorch.org/get-started/locally/",
    "amp": "https://github.com/ultralytics/yolov5/issues/7908",
    "workers": "https://github.com/ultralytics/yolov5/issues/3589",
    "mounts": "https://docs.docker.com/engine/storage/bind-mounts/",
    "limits": "https://docs.docker.com/engine/containers/resource_constraints/",
}


class Finding(NamedTuple):
    """One check. `level` is ok, warn, fail or skip; `cause` says what was found, for skip it is the "because"."""

    id: str
    level: str
    cause: str
    consequence: str = ""
    command: str = ""
    link: str = ""


def has_gpu(facts: Facts) -> bool:
    """Whether a GPU was handed into this container and not hidden again."""
    return bool(facts.nodes) and facts.visible not in {"", "-1"}


def used(facts: Facts) -> list[dict[str, Any]]:
    """The devices that torch sees."""
    return list(facts.torch.steps.get("devices", {}).get("devices", []))


def no_device(facts: Facts) -> str:
    """Why nothing can be said about a GPU, "" when torch sees one."""
    if not has_gpu(facts):
        return "there is no GPU in this container"
    return "" if used(facts) else "torch sees no GPU, see above"


def init_error(facts: Facts) -> str:
    """What CUDA said when torch asked for its GPUs, "" when it gave them or was not asked."""
    return str(facts.torch.steps.get("init", {}).get("error", "")) if has_gpu(facts) else ""


def serves(archs: list[str], capability: tuple[int, int]) -> str:
    """How torch runs on a device: "sass" with code of its own, "ptx" after the driver translated some, "" not at all.

    SASS runs on the same major and an equal or higher minor capability, one with the suffix a only on its very own;
    PTX on anything that is not older (CUDA's binary compatibility).
    """
    best = ""
    for arch in archs:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch)
        if match is None:
            continue
        code = (int(match[2]), int(match[3]))
        if match[4] == "a":
            same = code == capability
        elif match[1] == "sm" or match[4] == "f":
            same = code[0] == capability[0] and code[1] <= capability[1]
        else:
            same = code <= capability
        if same and match[1] == "sm":
            return "sass"
        if same:
            best = "ptx"
    return best


def excerpt(text: str, limit: int = 200) -> str:
    """The beginning of what a program said, for a sentence."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[:limit]}…"


def tail(text: str) -> str:
    """The end of what a program said, where the reason stands."""
    return excerpt(text[-200:])


def named(devices: list[str]) -> str:
    """["0", "2"] -> "GPU 0, 2"."""
    return f"GPU {', '.join(devices)}"


def counted(names: list[str]) -> str:
    """["A", "A", "B"] -> "2x A, B"."""
    counts = {name: names.count(name) for name in names}
    return ", ".join(name if count == 1 else f"{count}x {name}" for name, count in counts.items())


def ending(child: Child) -> str:
    """How a child ended, as the rest of a sentence; "" when it ended well."""
    return "does not come back" if child.end == "hangs" else child.end


def fault_of(trial: Child, step: str, close: float) -> str:
    """What is wrong with a step of a trial, "" when it is right or another step came to grief before it."""
    about = trial.steps.get(step)
    if about is None:
        return ending(trial) if trial.at == step else ""
    if not about["ok"]:
        return excerpt(str(about["error"]))
    if about.get("finite") is False:
        return "gives values that are not numbers"
    off = float(about.get("difference", 0.0))
    return f"is wrong by {off:.0e} of the largest value" if not off <= close else ""

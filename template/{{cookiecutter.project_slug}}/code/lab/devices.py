"""`--device` against what this container really has.

Resolved, it is the word `cpu` or the GPUs as CUDA_VISIBLE_DEVICES names them, by the driver's number or by UUID. The
engines are told `positions`: once CUDA sees no other GPUs, those are numbered from 0.
"""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

from lab.errors import LabError

DEV = Path("/dev")
NAME = r"\d+|(?:GPU|MIG)-[\w/-]+"  # a GPU in CUDA_VISIBLE_DEVICES


def gpu_nodes() -> list[Path]:
    """Device files through which a GPU is reached: NVIDIA's own, WSL2's, Jetson's."""
    return [*DEV.glob("nvidia*"), *DEV.glob("dxg"), *DEV.glob("nvgpu"), *DEV.glob("nvhost-gpu")]


def no_gpu(device: str) -> str:
    """The sentence for `--device 0` where no GPU can be used, with the reason."""
    why = (
        "torch cannot use it: `lab doctor` says why"
        if gpu_nodes()
        else "the container was started without one, see the last line of .devcontainer/host-setup"
    )
    return f"--device {device}: no such GPU in this container ({why}); train on the processor with --device cpu"


def visible() -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, in CUDA's order; None where it is not set and leaves all.

    CUDA reads it up to the first word that names no GPU, such as -1, or the NoDevFiles that Slurm sets.
    """
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is None:
        return None
    words = (word.strip() for word in said.split(","))
    return list(itertools.takewhile(lambda word: re.fullmatch(NAME, word), words))


def resolve(device: str) -> str:
    """`--device` as CUDA_VISIBLE_DEVICES would have it: number 0 is the first GPU that this variable leaves already.

    host-setup, Slurm or a person has narrowed it to the GPUs that torch serves or that are granted. Raises LabError for
    a word that is no device, and for a GPU that is not to be seen here.
    """
    word = re.sub("cuda:", "", device.replace(" ", ""), flags=re.IGNORECASE).strip()
    if word.lower() in ("", "cpu", "mps"):
        return word.lower()
    names = ["0"] if word.lower() == "cuda" else word.split(",")
    if not all(re.fullmatch(NAME, name) for name in names):
        raise LabError(
            f"--device {device}: give GPU numbers such as 0 or 0,1,2,3, UUIDs as `nvidia-smi -L` lists them, or cpu"
        )
    if not gpu_nodes():
        raise LabError(no_gpu(word))
    left = visible()
    if left is not None:
        if not left:
            hidden = os.environ["CUDA_VISIBLE_DEVICES"]
            raise LabError(
                f"--device {device}: CUDA_VISIBLE_DEVICES={hidden} hides every GPU: unset it, or give --device cpu"
            )
        names = [_among(left, name, device) for name in names]
    if len(set(names)) != len(names):
        raise LabError(f"--device {device} names a GPU twice")
    if len(names) > 1 and any(name.startswith("MIG-") for name in names):
        raise LabError(f"--device {device}: CUDA gives a training one MIG instance: name one, such as --device 0")
    return ",".join(names)


def _among(left: list[str], name: str, device: str) -> str:
    """The GPU of those `left` that `name` means."""
    if name.isdigit():
        if int(name) >= len(left):
            raise LabError(f"--device {device}: this container may use {len(left)} GPU(s), numbered from 0")
        return left[int(name)]
    if any(same(name, one) or same(one, name) for one in left):
        return name
    if any(one.isdigit() for one in left):
        return name  # which number has that UUID is the driver's to say; CUDA refuses a GPU that is not here
    raise LabError(f"--device {device}: CUDA_VISIBLE_DEVICES leaves {', '.join(left)} only")


def same(uuid: str, name: str) -> bool:
    """Whether `name`, a UUID or the beginning of one as CUDA takes it, means the GPU or MIG instance `uuid`."""
    return bool(uuid) and uuid.lower().startswith(name.lower())


def named(device: str) -> bool:
    """Whether a resolved `device` names GPUs."""
    return device not in ("", "cpu", "mps")


def positions(device: str) -> str:
    """A resolved `device` among the GPUs that CUDA then sees: 0, 1, …; cpu stays cpu."""
    return ",".join(map(str, range(len(device.split(","))))) if named(device) else device

"""`--device` against what this container really has."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lab.errors import LabError

DEV = Path("/dev")


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


def resolve(device: str) -> str:
    """`--device` as the engines want it. Raises LabError for a word that is no device, or without any GPU.

    Both engines write the numbers into CUDA_VISIBLE_DEVICES; where host-setup has already narrowed that to the GPUs
    which this torch build serves, number 0 must go on meaning the first of those.
    """
    device = device.strip().lower().replace("cuda:", "").replace(" ", "")
    if device in ("", "cpu", "mps", "cuda"):
        return "0" if device == "cuda" else device
    if not re.fullmatch(r"\d+(,\d+)*", device):
        raise LabError(f"--device {device}: give GPU numbers such as 0 or 0,1,2,3, or cpu")
    numbers = [int(number) for number in device.split(",")]
    if len(set(numbers)) != len(numbers):
        raise LabError(f"--device {device} names a GPU twice")
    if not gpu_nodes():
        raise LabError(no_gpu(device))
    visible = [entry.strip() for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry.strip()]
    if not visible or not all(entry.isdigit() for entry in visible):
        return device
    if max(numbers) >= len(visible):
        raise LabError(f"--device {device}: this container may use {len(visible)} GPU(s), numbered from 0")
    return ",".join(visible[number] for number in numbers)

"""What a GPU's name tells where the driver prints no compute capability: whole GPUs, MIG slices, virtual GPUs."""

from __future__ import annotations

import re
from typing import Callable, Optional, Tuple

Named = Optional[Tuple[Tuple[int, int], int]]  # (capability, MiB)

# "NVIDIA A100-SXM4-80GB MIG 3g.40gb", also "1c.3g.40gb" (a compute instance) and "1g.10gb+me" (media engines)
_SLICE = re.compile(r"(.*\S)\s+MIG\s+(?:[0-9]c\.)?[0-9]g\.([0-9]{1,3})gb(?:[+-]\S*)?", re.IGNORECASE)

# "GRID T4-16Q", "NVIDIA A40-48Q", "NVIDIA RTX6000-Ada-24Q"; "GRID A100-3-20C" is one on a MIG slice
_VIRTUAL = re.compile(
    r"(?:nvidia|grid)\s+(?:grid\s+)?([a-z0-9]+(?:-ada)?)-(?:[0-9]-)?([0-9]{1,3})([abcq])[0-9]?(?:me)?", re.IGNORECASE
)
_CUDA_PROFILES = "cq"  # A is for streamed applications, B for desktops

# A letter behind the board tells its memory or form factor: V100D has 32 GB, V100X is the SXM2 board.
_VARIANTS = re.compile(r"((?:p|v|a|h)(?:100|800))(?:c|d|dx|l|s|x|xm|xl)?")

_PASCAL = (6, 0)


def by_name(name: str, listed: Callable[[str], Named]) -> Named:
    """(capability, MiB) of a GPU, of a MIG slice or of a virtual GPU by its nvidia-smi name; None when uncertain.

    `listed` looks up the name of a whole GPU in the catalogue's table.
    """
    part = _SLICE.fullmatch(name.strip())
    if part:
        whole = listed(part[1])
        return (whole[0], int(part[2]) * 1024) if whole else None
    virtual = _VIRTUAL.fullmatch(name.strip())
    if virtual:
        if virtual[3].lower() not in _CUDA_PROFILES:
            return None
        board = _board(virtual[1].lower(), listed)
        return (board, int(virtual[2]) * 1024) if board else None
    found = listed(name)
    if found is None:
        # "Tesla V100S-PCIE-32GB" is a V100 at a higher clock
        found = listed(re.sub(r"\bV100S\b", "V100", name))
    return found


def is_virtual(name: str) -> bool:
    """Whether a name has the form of a virtual GPU, known or not."""
    return bool(_VIRTUAL.fullmatch(name.strip()))


def _board(short: str, listed: Callable[[str], Named]) -> tuple[int, int] | None:
    """The capability of the board that a virtual GPU is named after ("v100d", "rtxa6000", "rtx6000-ada")."""
    variant = _VARIANTS.fullmatch(short)
    workstation = re.fullmatch(r"rtx(a?)([0-9]{4})(p|-ada)?", short)
    if workstation:
        ampere, number, ending = workstation.groups()
        if ending == "-ada":
            names = [] if ampere else [f"RTX {number} Ada Generation"]
        else:
            names = [f"RTX A{number}"] if ampere else [f"Quadro RTX {number}"]
    else:
        short = variant[1] if variant else short
        names = [short, f"Tesla {short}"]
    found = next((found for found in map(listed, names) if found), None)
    # on Maxwell only the profile of a whole board offers CUDA, and which one that is the name does not say
    return found[0] if found and found[0] >= _PASCAL else None

"""What the user set, in the shell or in their own lines of .env, that overrides what the host would decide."""

from __future__ import annotations

import re
from typing import Mapping, NamedTuple

from .catalogue import BadRequest
from .project import own_values
from .terminal import shortened

ACCELS = ("auto", "gpu", "gpu-cdi", "cpu")

OVERRIDES = (
    "YOLO_ACCEL", "TORCH_BUILD", "TORCH_VERSION", "CUDA_VISIBLE_DEVICES", "EXTRA_CA_CERTS", "TORCH_INDEX_BASE",
    "COMPOSE_PROJECT_NAME", "MIRRORS", "NETRC", "ONNXRUNTIME",
)  # fmt: skip


class Wishes(NamedTuple):
    """What the user set, in the shell or in their own lines of .env; "" where nothing was."""

    accel: str = "auto"
    build: str = ""
    torch: str = ""
    devices: str = ""
    certificates: str = ""
    index_base: str = ""
    project_name: str = ""  # for compose
    mirrors: str = ""  # a section of mirrors.conf
    netrc: str = ""  # a file, for the image build
    onnxruntime: str = ""  # gpu: the service `serve` gets the GPU, and the image what uses it there


def read_wishes(environment: Mapping[str, str], own: str, accel: str | None = None) -> Wishes:
    """The overrides, the shell's before those in .env, `accel` (the command line's) before both. Raises BadRequest."""
    lines = own_values(own)
    value = {name: (environment.get(name) or lines.get(name) or "").strip() for name in OVERRIDES}
    wished = accel or value["YOLO_ACCEL"] or "auto"
    if wished not in ACCELS:
        raise BadRequest(f"YOLO_ACCEL={shortened(wished)} is not one of {', '.join(ACCELS)}: correct it or remove it.")
    if value["TORCH_BUILD"] and not re.fullmatch(r"cpu|cu[0-9]{3}", value["TORCH_BUILD"]):
        raise BadRequest(
            f"TORCH_BUILD={shortened(value['TORCH_BUILD'])} is not of the form cu126 or cpu: correct it or remove it."
        )
    if value["ONNXRUNTIME"] not in {"", "cpu", "gpu"}:
        raise BadRequest(
            f"ONNXRUNTIME={shortened(value['ONNXRUNTIME'])} is neither cpu nor gpu: correct it or remove it."
        )
    devices = value["CUDA_VISIBLE_DEVICES"]
    devices = "-1" if devices == "NoDevFiles" else devices  # what schedulers set for "none"
    if devices and not re.fullmatch(
        r"-1|[0-9]+(,[0-9]+)*|(GPU|MIG)-[A-Za-z0-9_/-]+(,(GPU|MIG)-[A-Za-z0-9_/-]+)*", devices
    ):
        raise BadRequest(
            f"CUDA_VISIBLE_DEVICES={shortened(devices)} is neither numbers such as 0,1 nor GPU UUIDs: correct it."
        )
    if len(set(devices.split(","))) != len(devices.split(",")):
        raise BadRequest(f"CUDA_VISIBLE_DEVICES={shortened(devices)} names a GPU twice: correct it.")
    base = value["TORCH_INDEX_BASE"].rstrip("/")
    if base and not re.fullmatch(r"(https?|file)://[^\s$'\"`#\\]+", base):
        raise BadRequest(
            f"TORCH_INDEX_BASE={shortened(base)} is not a URL such as https://mirror.example/whl: correct it."
        )
    name = value["COMPOSE_PROJECT_NAME"]
    if name and not re.fullmatch(r"[a-z0-9]+((_|__|-+)[a-z0-9]+)*", name):
        raise BadRequest(
            f"COMPOSE_PROJECT_NAME={shortened(name)} may hold only a-z and 0-9, with single _ or - between them: "
            "it names the image, too."
        )
    return Wishes(
        wished,
        value["TORCH_BUILD"],
        value["TORCH_VERSION"],
        devices,
        value["EXTRA_CA_CERTS"],
        base,
        name,
        value["MIRRORS"],
        value["NETRC"],
        value["ONNXRUNTIME"],
    )

"""The GPUs of this container, and which of them a device names: by number or UUID, as whoever answers lists them."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from lab import devices, nvml
from lab.doctor_facts import Gpu, Slice, ask_smi, ask_torch


@functools.lru_cache(maxsize=1)
def listed() -> tuple[Gpu, ...]:
    """By nvidia-smi; by NVML where it is absent or silent; by torch, which takes seconds, where both are."""
    if not devices.gpu_nodes():
        return ()
    return ask_smi().gpus or _by_nvml() or _by_torch()


def _by_nvml() -> tuple[Gpu, ...]:
    asker = nvml.Asker()
    answer = asker.ask()
    asker.close()
    return tuple(as_listed(gpu) for gpu in answer.gpus if not gpu.lost) if answer is not None else ()


def as_listed(gpu: nvml.Gpu) -> Gpu:
    """A GPU of NVML's in nvidia-smi's terms."""
    slices = tuple(Slice(part.name.removeprefix("MIG "), part.uuid, _mib(part.total)) for part in gpu.slices)
    return Gpu(gpu.number, gpu.name, "", _mib(gpu.total), _mib(gpu.memory), gpu.mig, gpu.uuid, slices)


def _mib(size: float | None) -> int | None:
    return None if size is None else int(size)


def _by_torch() -> tuple[Gpu, ...]:
    """torch counts the GPUs that CUDA_VISIBLE_DEVICES leaves, and knows no UUIDs: they are what stands there."""
    left = devices.visible() or []
    found = []
    for gpu in ask_torch():
        name = left[gpu.number] if gpu.number < len(left) else str(gpu.number)
        found.append(gpu._replace(number=int(name)) if name.isdigit() else gpu._replace(uuid=name))
    return tuple(found)


def those(device: str, among: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """Those of `among` that a resolved `device` names, or the first that CUDA sees; a MIG instance as its part."""
    if device in ("cpu", "mps"):
        return ()
    left = devices.visible()
    names = device.split(",") if device else (["0"] if left is None else left[:1])
    return tuple(gpu for name in names for gpu in _found(name, among))


def _found(name: str, among: tuple[Gpu, ...]) -> Iterator[Gpu]:
    for gpu in among:
        if name.isdigit():
            if gpu.number == int(name):
                yield _part(gpu, gpu.slices[0]) if gpu.slices else gpu  # of a GPU that is split CUDA takes the first
        elif devices.same(gpu.uuid, name) or devices.same(f"MIG-{gpu.uuid}", name.partition("/")[0]):
            yield gpu  # MIG-GPU-…/1/0 is how drivers before R470 name an instance
        else:
            yield from (_part(gpu, part) for part in gpu.slices if devices.same(part.uuid, name))


def _part(gpu: Gpu, part: Slice) -> Gpu:
    return Gpu(gpu.number, f"{gpu.name} MIG {part.profile}", gpu.driver, part.total, uuid=part.uuid)

"""What `lab tune` measures on this host: processors, disks, memory, the network's step, the cost of an image."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab import dataset as data
from lab import limits
from lab import plan as training_plan
from lab.doctor_disk import read_speed
from lab.engines import ENGINES
from lab.fast import arms, bench, choose, plan, switches, tune, turns
from lab.fast.bench import Scene, Wish
from lab.fast.tune import CACHED, Candidate, Costs, Host
from lab.job import Job
from lab.options import Request
from lab.project import Project

SAMPLE = 64  # files whose size is asked
PROBE = 64 << 20  # bytes written to the disk for stores, and read again in pieces
PIECE = 512 << 10  # bytes: about an image of 640 pixels
FAST = 10e9  # bytes a second: what a disk counts as when it cannot be told from memory
DECODED = 24  # pictures
NAMES = {plan.PLAIN: bench.UPSTREAM, CACHED: "upstream cache", plan.STORE: plan.STORE, plan.DEVICE: plan.DEVICE}


def host(scene: Scene, project: Project, dataset: data.Dataset, device: str) -> Host:
    """The facts of this host for a training on all of `dataset`; `device` is --device, resolved.

    `project` is the real one, with its own cache: the scene's goes away with it.
    """
    wish = replace(scene.wish, device=device)
    job = Job(project, ENGINES[wish.engine], Request("train", {}))
    prepared = bench.prepared(replace(scene, wish=wish), scene.place, {"workers": 0})
    seen = training_plan.look(job, prepared, dataset)
    facts = choose.gather(job, prepared, dataset, seen, plan.Wish())
    gpu = choose.device_kind(device) == switches.CUDA
    free = [gpu.total - (gpu.used or 0) for gpu in seen.gpus if gpu.total]
    try:
        shm = shutil.disk_usage(limits.SHM).free
    except OSError:
        shm = 0
    return Host(
        cores=limits.processors(),
        memory_free=facts.memory_free or 0,
        shm_free=shm,
        cache_free=facts.cache_free,
        disk_rate=data_rate(dataset),
        cache_rate=disk_rate(_existing(project.cache)),
        images=seen.images["train"],
        file_bytes=file_bytes(dataset, seen.images["train"]),
        store_bytes=facts.store_bytes,
        unstored_bytes=facts.unstored_bytes,
        imgsz=wish.imgsz,
        gpus=len(device.split(",")) if gpu else 0,
        gpu_bytes=min(free) << 20 if free else 0,
        store_obstacle=plan.inexpressible(facts),
    )


def _existing(place: Path) -> Path:
    return next(parent for parent in (place, *place.parents) if parent.exists())


def file_bytes(dataset: data.Dataset, images: int) -> int:
    """Bytes of all training images, by the size of some of them."""
    sizes = [picture.stat().st_size for picture, _ in zip(dataset.images("train"), range(SAMPLE), strict=False)]
    return round(images * sum(sizes) / max(1, len(sizes)))


def data_rate(dataset: data.Dataset) -> float:
    """Bytes a second at which the training images come from their disk, read as loader workers do."""
    source = dataset.sources["train"][0]
    found = read_speed(source if source.is_dir() else source.parent)
    if not found.get("bytes"):
        return FAST
    return float(found["bytes"] / max(found["seconds"], 1e-6))


def disk_rate(directory: Path) -> float:
    """Bytes a second of reads of PIECE at random places of a file in `directory`; FAST where it takes no file."""
    try:
        with tempfile.NamedTemporaryFile(prefix=".lab-tune-", dir=directory) as probe:
            block = os.urandom(PIECE)
            for _ in range(PROBE // PIECE):
                probe.write(block)
            probe.flush()
            os.fsync(probe.fileno())
            os.posix_fadvise(probe.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            starts = list(range(0, PROBE, PIECE))
            random.Random(0).shuffle(starts)
            begun = time.monotonic()
            total = sum(len(os.pread(probe.fileno(), PIECE, start)) for start in starts)
            return total / max(time.monotonic() - begun, 1e-6)
    except OSError:
        return FAST


def decode_seconds(dataset: data.Dataset) -> float:
    """Seconds in which one processor decodes a training image; the files are read beforehand."""
    import cv2  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    pictures = [picture for picture, _ in zip(dataset.images("train"), range(DECODED), strict=False)]
    contents = [np.frombuffer(picture.read_bytes(), np.uint8) for picture in pictures]
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    begun = time.process_time()
    for content in contents:
        cv2.imdecode(content, cv2.IMREAD_COLOR)
    spent = time.process_time() - begun
    cv2.setNumThreads(threads)
    return spent / len(contents)


def costs(scene: Scene, known: Host, until: float, show: arms.Show) -> Costs:
    """Seconds an image of loading, by path, and of the network, by batch and switches.

    What fails is not in it, but for what the engine does by itself: raises LabError without that.
    """
    wanted: dict[Any, arms.Arm] = {}
    wish = scene.wish
    chosen = tuple(scene.speed["switches"])
    for on in dict.fromkeys([(), chosen]):
        for batch in _batches(known, wish):
            name = f"network {batch} {'own' if on else 'plain'}"
            sized = replace(scene, wish=replace(wish, batch=batch))
            speed = bench.on_its_own_data(scene.speed, on)
            wanted[batch, on] = bench.arm(sized, name, f"batch {batch}", turns.FIXED, speed, workers=0)
    loaders = {one.name: one for one in bench.loaders(scene, known.store_obstacle == "").arms}
    for path, name in NAMES.items():
        if name in loaders:
            wanted[path] = loaders[name]
    groups = bench.taken(scene, list(wanted.values()), until, show)
    measured = [one for group in groups for one in group]
    own = (wanted[wish.batch, ()].name, wanted[plan.PLAIN].name)
    arms.require([one for one in measured if one.arm.name in own and not _elsewhere(one, measured)])
    found = {one.arm.name: bench.figures(one) for one in measured if bench.measured(one)}
    by_key = {key: found[one.name] for key, one in wanted.items() if one.name in found}
    device = by_key.get(plan.DEVICE)
    return Costs(
        loading={key: 1 / one.per_core for key, one in by_key.items() if isinstance(key, str) and one.per_core},
        network=network_costs({key: one.name for key, one in wanted.items() if isinstance(key, tuple)}, groups),
        painting=1 / device.rate if device else 0.0,
        failed={one.arm.name: one.failure for one in measured if one.failure and one.arm.name not in found},
        decode=decode_seconds(scene.pictures),
        memory={batch: _gpu_bytes(wish, batch) for batch in _batches(known, wish)} if known.gpus else {},
    )


def network_costs(names: dict[Any, str], groups: Sequence[Sequence[arms.Measured]]) -> dict[Any, float]:
    """Seconds an image of the arms `names`, by key; only of those that were measured.

    The first one's own, and the others' by their ratio to it within the rounds: what slows the machine down for a
    while, or in one group, must not look like the cost of an arm.
    """
    first = next(iter(names.values()))
    rates = {one.arm.name: bench.figures(one).rate for group in groups for one in group if bench.measured(one)}
    ratios = bench.ratios([bench.whole_rounds(group) for group in groups])
    return {
        key: 1 / (rates[first] * ratios[f"{name}/{first}"] if f"{name}/{first}" in ratios else rates[name])
        for key, name in names.items()
        if name in rates
    }


def _elsewhere(one: arms.Measured, measured: list[arms.Measured]) -> bool:
    """Whether the same arm, which begins every group, has figures from another group."""
    return any(bench.measured(other) for other in measured if other.arm.name == one.arm.name)


def _batches(known: Host, wish: Wish) -> list[int]:
    """Batches of a GPU: the one asked for and, where it is taken, the one up to which the learning is the same."""
    larger = tune.largest_batch(known)
    fits: Callable[[int], bool] = lambda batch: _gpu_bytes(wish, batch) < 0.92 * known.gpu_bytes  # noqa: E731
    return [wish.batch, larger] if known.gpus and wish.batch < larger and fits(larger) else [wish.batch]


def _gpu_bytes(wish: Wish, batch: int) -> int:
    return int(training_plan.memory_gib(wish.model, batch, wish.imgsz) * training_plan.GIB)


def shipped(wish: Wish) -> Candidate:
    """What the engine does by itself: eight workers, or one a processor of the host."""
    return Candidate(plan.PLAIN, min(8, os.cpu_count() or 1, wish.batch), wish.batch, ())

"""What a training will need, estimated before it starts, and the short lines that say so."""

from __future__ import annotations

import importlib
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import dataset as data
from lab import limits
from lab.doctor_facts import Gpu
from lab.doctor_torch import NO_AMP
from lab.engines import Prepared
from lab.gpu_list import listed, those
from lab.job import Job
from lab.weights import architecture

GIB = 1 << 30
NOMINAL = 64  # images whose gradients both engines gather before a step of the optimiser (`nbs`)
# Activations kept for the backward pass, GiB for each 640-pixel image with AMP: tensors saved, counted for 80 classes.
ACTIVATIONS = {"n": 0.072, "s": 0.141, "m": 0.266, "l": 0.427, "x": 0.625}
CONTEXT = 0.7  # GiB: CUDA's context and cuDNN
SLACK = 1.35  # the allocator's fragments and the convolutions' workspaces, fitted to YOLOv5's table of batch sizes
STATE = 16  # bytes a parameter: weights, gradient, momentum, average
TIGHT = 0.95  # of a GPU's memory: an estimate beyond it is said as a warning


def memory_gib(model: str, batch: int, imgsz: int, amp: bool = True, parameters: int = 0) -> float:
    """GiB that one GPU needs to train `model` (yolov5s, yolov5x6) with `batch` images of `imgsz` pixels a step.

    `parameters` is 0 where its name alone is known. The five batch sizes that YOLOv5 recommends for 16 GB come out at
    13.0 to 15.5.
    """
    fixed = STATE * (parameters or limits.parameters_of(model)) / GIB
    activations = ACTIVATIONS[size_of(model)] * (1 if amp else 2) * batch * (imgsz / 640) ** 2
    return CONTEXT + fixed + SLACK * activations


def size_of(model: str) -> str:
    """ "s" for yolov5s, "x" for yolov5x6u or yolov5x-p6; a strange name counts as the smallest."""
    known = re.fullmatch(r"yolov5([nsmlx])(6|-p6)?u?", model)
    return known[1] if known else "n"


def accumulation(batch: int) -> str:
    """What a batch means for the optimiser: both engines gather gradients up to 64 images."""
    steps = max(round(NOMINAL / batch), 1)
    if steps == 1:
        return f"{batch} images an update"
    return f"{batch} images a step, {steps} steps gathered: {batch * steps} an update"


@dataclass(frozen=True)
class Facts:
    """What the lines are made of. Sizes in bytes."""

    weights: str
    model: str  # yolov5s, yolov5x6: the size, for estimates
    engine: str
    images: dict[str, int]
    checked: str
    batch: int  # over all ranks; -1 before it is measured
    imgsz: int
    workers: int
    disk_free: int
    disk_need: int
    shm_free: int | None
    memory_free: int | None
    cache: str = ""
    cache_need: int = 0
    device: str = ""
    gpus: tuple[Gpu, ...] = field(default_factory=tuple)
    parameters: int = 0  # as the checkpoint has them, 0 when only its name is known


def look(job: Job, prepared: Prepared, dataset: data.Dataset) -> Facts:
    """Gather the facts for the training `prepared`; no torch, and nothing that waits for more than nvidia-smi."""
    options, run = prepared.options, prepared.run
    assert run is not None, "a training has a directory"
    device = str(options.get("device", ""))
    images = {split: count(dataset, split) for split in ("train", "val")}
    weights, model, parameters = _weights(job, prepared.weights, prepared.cfg)
    cache = str(options.get("cache", ""))
    cache_need = cache_bytes(dataset, images, cache, int(options["imgsz"])) if cache else 0
    try:
        shm_free: int | None = shutil.disk_usage(limits.SHM).free
    except OSError:
        shm_free = None
    return Facts(
        weights=weights,
        model=model,
        engine=job.engine.name,
        images=images,
        checked=_checked(job, dataset),
        batch=int(options.get("batch_size", 16)),
        imgsz=int(options["imgsz"]),
        workers=int(options["workers"]),
        disk_free=shutil.disk_usage(run).free,
        parameters=parameters,
        disk_need=limits.room_needed(parameters or limits.parameters_of(model))
        + (cache_need if cache == "disk" else 0),
        shm_free=shm_free,
        memory_free=limits.memory_free(),
        cache=cache,
        cache_need=cache_need,
        device=device,
        gpus=those(device, listed()),
    )


def count(dataset: data.Dataset, split: str) -> int:
    """How many pictures `split` has; by names alone, because a person waits for it."""
    number = 0
    for source in dataset.sources.get(split, []):
        if source.suffix == ".txt":
            number += sum(1 for _ in data.listed(source))
        else:
            for _, __, files in os.walk(source, followlinks=True):
                number += sum("." + name.rpartition(".")[2].lower() in data.IMAGES for name in files)
    return number


def model_of(job: Job, weights: list[str], cfg: str | None) -> str:
    """The model's size, such as yolov5s."""
    return _weights(job, weights, cfg)[1]


def _weights(job: Job, weights: list[str], cfg: str | None) -> tuple[str, str, int]:
    """What it starts from, in words, the model's size by name, and its parameters as far as a checkpoint tells."""
    named = Path(cfg).stem if cfg else job.project.model
    model = named if re.fullmatch(r"yolov5[nsmlx](6|-p6)?u?", named) else job.project.model
    if not any(weights):
        return f"none, from scratch; {Path(cfg or named).name} is a model of engine {job.engine.name}", model, 0
    file = Path(weights[0])
    mib = file.stat().st_size / limits.MEBIBYTE
    found = None if cfg else architecture(file)
    size = f", {found.parameters / 1e6:.1f} million parameters" if found else ""
    words = f"{job.project.show(file)}, {mib:.0f} MiB{size}, whole and written by engine {job.engine.name}"
    return words, found.model if found else model, found.parameters if found else 0


def _checked(job: Job, dataset: data.Dataset) -> str:
    """When `lab data check` last saw the data as they are now."""
    advice = "`lab data check` finds bad files before they cost a run"
    from lab import check, fingerprint  # noqa: PLC0415  SQLite and more, only for this line

    stamp = check.stamp(job.project, dataset)
    if stamp is None:
        return f"not checked yet: {advice}"
    now = fingerprint.quick(dataset)
    if stamp.quick != now:
        return f"changed since the check of {stamp.when}: {advice}"
    wrong = sum(stamp.problems.values())
    return f"checked {stamp.when}, unchanged since" + (f", with {wrong} problems" if wrong else "")


SAMPLE = 16  # pictures whose size is read


def cache_bytes(dataset: data.Dataset, images: dict[str, int], cache: str, imgsz: int) -> int:
    """Bytes that --cache takes for both splits: arrays of the full picture on disk, scaled to `imgsz` in memory."""
    need = 0.0
    for split, number in images.items():
        areas = [area for area in _areas(dataset, split, imgsz if cache == "ram" else None) if area]
        need += number * 3 * (sum(areas) / len(areas) if areas else imgsz**2)
    return int(need)


def _areas(dataset: data.Dataset, split: str, longest: int | None) -> list[float]:
    """Areas in pixels of the first pictures of `split`, with the longer side scaled to `longest`."""
    try:
        image_module = importlib.import_module("PIL.Image")
    except ImportError:
        return []
    areas = []
    for file, _ in zip(dataset.images(split), range(SAMPLE), strict=False):
        try:
            with image_module.open(file) as picture:  # reads the header alone
                width, height = picture.size
        except OSError:
            continue
        areas.append(float(width * height) * ((longest / max(width, height)) ** 2 if longest else 1))
    return areas


# Words


def lines(facts: Facts) -> list[tuple[str, str]]:
    """(what, its sentence), in the order a person wonders about them."""
    said = [
        ("weights", facts.weights),
        ("data", f"{facts.images['train']} pictures to train on, {facts.images['val']} to validate; {facts.checked}"),
        ("batch", _batch(facts)),
        ("disk", _disk(facts)),
        ("shm", _shm(facts)),
    ]
    if facts.cache == "ram":
        said.append(("cache", _cache(facts)))
    return [*said, ("memory", _memory(facts)), ("amp", _amp(facts))]


def sentences(facts: Facts, *more: tuple[str, str]) -> list[str]:
    """The lines, aligned, and `more` of their kind."""
    return [f"  {what:<8} {sentence}" for what, sentence in (*lines(facts), *more)]


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _batch(facts: Facts) -> str:
    return "to be measured on the GPU" if facts.batch == -1 else accumulation(facts.batch)


def _disk(facts: Facts) -> str:
    what = "checkpoints, curves and the cache" if facts.cache == "disk" else "checkpoints and curves"
    short = "TOO LITTLE: " if facts.disk_free < facts.disk_need else ""
    return f"{short}{_gib(facts.disk_free)} free; {what} take about {_gib(facts.disk_need)}"


def _shm(facts: Facts) -> str:
    if facts.shm_free is None or not facts.workers:
        return "not needed: images are loaded by the training itself" if not facts.workers else "unknown"
    return f"{_gib(facts.shm_free)} free in /dev/shm, enough for {facts.workers} workers"


def _cache(facts: Facts) -> str:
    if facts.memory_free is None:
        return f"--cache ram takes about {_gib(facts.cache_need)}"
    words = f"--cache ram takes about {_gib(facts.cache_need)} of {_gib(facts.memory_free)} free memory"
    if facts.cache_need * 1.5 > facts.memory_free:  # both engines want half as much again, and load uncached else
        return f"TOO LITTLE: {words}, so the engine will not cache; --cache disk would"
    return words


def _ranks(facts: Facts) -> int:
    return len(facts.device.split(","))


def no_amp(facts: Facts) -> list[str]:
    """Names of the cards that compute wrong values in half precision."""
    return [gpu.name for gpu in facts.gpus if NO_AMP.search(gpu.name)]


def _memory(facts: Facts) -> str:
    if not facts.gpus:
        return "no GPU is used: the processor trains, from main memory"
    if facts.batch == -1:
        return "--batch auto measures it first"
    need = memory_gib(facts.model, -(-facts.batch // _ranks(facts)), facts.imgsz, not no_amp(facts), facts.parameters)
    totals = [gpu.total for gpu in facts.gpus if gpu.total]
    if not totals:
        return f"about {need:.1f} GiB on each GPU"
    least = min(totals) / 1024
    words = f"about {need:.1f} of {least:.1f} GiB on " + ("each GPU" if len(facts.gpus) > 1 else facts.gpus[0].name)
    busy = max((gpu.used or 0) for gpu in facts.gpus) / 1024
    if busy > 1:
        words += f", where {busy:.1f} are in use already"
    if need + (busy if busy > 1 else 0) > TIGHT * least:
        return f"TIGHT: {words}; when it does not fit, the batch is halved; --batch auto measures"
    return words


def _amp(facts: Facts) -> str:
    if not facts.gpus:
        return "off: a processor trains in full precision"
    wrong = no_amp(facts)
    if wrong:
        return f"OFF: {wrong[0]} computes wrong values in half precision; slower, and about twice the memory"
    return "on, if the engine's own check on this GPU passes; it is said when it does not"


def compared(planned: dict[str, Any]) -> str:
    """Predicted against measured memory, after a training on a GPU; "" without one."""
    peak, predicted = planned.get("peak_bytes"), planned.get("predicted_bytes")
    if not peak:
        return ""
    total = planned.get("total_bytes", 0)
    free = f", {100 * (1 - peak / total):.0f} % of {_gib(total)} stayed free" if total else ""
    if not predicted:
        return f"the GPU's memory was filled to {_gib(peak)}{free}"
    return (
        f"the GPU's memory was filled to {_gib(peak)}; predicted were {_gib(predicted)} "
        f"({100 * (predicted / peak - 1):+.0f} %){free}"
    )

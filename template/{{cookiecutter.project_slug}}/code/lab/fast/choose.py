"""The facts for `lab.fast.plan`, gathered before a training, and its decision carried into the training."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from lab import dataset as data
from lab import devices, plan, telemetry
from lab.engines import Prepared
from lab.errors import LabError
from lab.fast import switches, tuned
from lab.fast.plan import (
    MARGIN,
    PLAIN,
    Facts,
    Speed,
    Wish,
    decide,
    fitting,
    painting_bytes,
    require_consistent,
    sentence,
    with_images,
)
from lab.job import Job, say
from lab.options import Request
from lab.project import Project

COMPILERS = ("cc", "gcc", "clang")
REDRAW = 0.2  # seconds between two looks of a progress line
BF16 = 8  # major compute capability from which GPUs compute in bfloat16


def device_kind(device: str) -> str:
    """cpu, cuda or mps, of --device as resolved."""
    if device in (switches.CPU, "mps"):
        return device
    return switches.CUDA if device or devices.gpu_nodes() else switches.CPU


def wish(request: Request) -> Wish:
    """What the command line asks for; with --tuned, before its settings are read.

    Raises LabError for a name that is unknown, and for words that contradict each other.
    """
    asked = Wish(
        plain=bool(request.get("plain")),
        with_=switches.words("--with", request.given["with"]) if "with" in request.given else (),
        without=switches.words("--without", request.given["without"]) if "without" in request.given else (),
        val_period=request.get("val_period"),
        tuned={} if request.get("tuned") else None,
    )
    require_consistent(asked)
    return asked


def key(project: Project, engine: str, model: str, dataset: data.Dataset, imgsz: int, device: str) -> tuned.Key:
    """What the settings of `lab tune` are filed under; `device` is --device as resolved."""
    kind = device_kind(device)
    return tuned.Key(engine, model, project.show(dataset.file), imgsz, kind if kind == "cpu" else device, tuned.host())


def choose(job: Job, prepared: Prepared, dataset: data.Dataset, seen: plan.Facts, wanted: Wish) -> Prepared:
    """`prepared` with the decision in it, and its stores open. Raises LabError."""
    facts = gather(job, prepared, dataset, seen, wanted)
    speed = replace(decide(facts, wanted), steps=_steps(prepared, seen))
    return _with_stores(job, prepared, dataset, speed, insist=bool({*wanted.with_} & {*switches.DATA_PATHS}))


def again(job: Job, prepared: Prepared, dataset: data.Dataset | None) -> Prepared:
    """The same for a run that goes on: as it was, but for what its device, if it is another now, cannot do."""
    if not prepared.speed:
        return prepared
    kind = device_kind(str(prepared.options.get("device", "")))
    speed = fitting(_speed(prepared), job.engine.name, kind)
    if dataset is None:
        speed = replace(speed, data=PLAIN)
    return _with_stores(job, prepared, dataset, speed, insist=False)


def _with_stores(job: Job, prepared: Prepared, dataset: data.Dataset | None, speed: Speed, insist: bool) -> Prepared:
    """`prepared` with `speed`, for which the stores are built or brought up to date, by this node for itself.

    When that fails and nobody asked for a store by name, images are read the engine's own way. Raises LabError.
    """
    if speed.data != PLAIN and dataset is not None:
        imgsz = int(prepared.options["imgsz"])
        try:
            found = {split: _store(job, dataset, split, imgsz) for split in ("train", "val")}
            places = {split: store and store[0] for split, store in found.items()}
            speed = replace(speed, stores=places)
            if found["train"]:  # the plan knew the size of a few images only
                speed = with_images(speed, found["train"][1])
        except LabError as error:
            if insist:
                raise
            say(f"{error.sentence}; until then images are read the engine's own way")
            speed = Speed(
                switches=speed.switches, val_period=speed.val_period, steps=speed.steps, reasons=("there is no store",)
            )
    return replace(prepared, speed=speed.record())


def _store(job: Job, dataset: data.Dataset, split: str, imgsz: int) -> tuple[str, int] | None:
    """The directory of the store of `split` and the bytes of its pixels; None when the split has no images."""
    from lab.fast.store_build import build  # noqa: PLC0415  OpenCV
    from lab.fast.store_decode import recipe_of  # noqa: PLC0415
    from lab.fast.store_files import cache_directory  # noqa: PLC0415

    paths = _paths(dataset, split)
    if not paths:
        return None
    recipe = recipe_of(job.engine.name, imgsz, split == "train")
    cache = cache_directory(job.project, say)
    with _progress(split) as progress:
        store = build(cache, dataset.file.parent.name, paths, recipe, progress=progress)
    return str(store.directory), int(store.pixels.nbytes)


def _paths(dataset: data.Dataset, split: str) -> list[str]:
    return [entry.path for entry in data.entries(dataset) if entry.split == split]


@contextlib.contextmanager
def _progress(split: str) -> Iterator[Callable[[int, int], None]]:
    """A line on stderr that counts images; only the last one where stderr is no terminal."""
    terminal, shown = sys.stderr.isatty(), [0.0, 0, 0]

    def progress(done: int, total: int) -> None:
        shown[1:] = [done, total]
        if terminal and time.monotonic() - shown[0] > REDRAW:
            shown[0] = time.monotonic()
            print(f"\rlab: decoding {split} images once: {done:,} of {total:,}", end="", file=sys.stderr, flush=True)

    yield progress
    if shown[2]:
        words = f"{shown[1]:,} {split} images decoded once; the next run takes them from the store"
        print(f"{chr(13) if terminal else ''}lab: {words}", file=sys.stderr, flush=True)


def _speed(prepared: Prepared) -> Speed:
    known = {name: value for name, value in prepared.speed.items() if name in Speed.__dataclass_fields__}
    known |= {name: tuple(known.get(name, ())) for name in ("switches", "reasons")}
    return Speed(**known)


def said(prepared: Prepared) -> str:
    """What is on, for the lines before a training."""
    return sentence(_speed(prepared))


def _steps(prepared: Prepared, seen: plan.Facts) -> int:
    if seen.batch < 1:
        return 0
    return math.ceil(seen.images["train"] / seen.batch) * int(prepared.options.get("epochs", 100))


def gather(job: Job, prepared: Prepared, dataset: data.Dataset, seen: plan.Facts, wanted: Wish) -> Facts:
    """The facts of this host and this training; what costs time is only looked up where it matters."""
    options = prepared.options
    kind = device_kind(seen.device)
    hyp = hyper_parameters(options)
    need = {
        split: plan.cache_bytes(dataset, {split: number}, "ram", seen.imgsz) for split, number in seen.images.items()
    }
    free = shutil.disk_usage(_existing(job.project.cache)).free
    return Facts(
        engine=job.engine.name,
        device=kind,
        options=options,
        hyp=hyp,
        store_bytes=need["train"],
        unstored_bytes=_unstored(job, dataset, seen.imgsz, need, free),
        cache=job.project.show(job.project.cache),
        cache_free=free,
        memory_free=seen.memory_free,
        gpu_left=_gpu_left(seen),
        # --batch auto measures it, in every probe
        painting=0 if seen.batch < 1 else painting_bytes(_of_each(seen), seen.imgsz, bool(hyp.get("mixup"))),
        bf16="bf16" not in wanted.with_ or kind != switches.CUDA or _bf16(),
        compiler=any(map(shutil.which, COMPILERS)),
        polygons=float(hyp.get("copy_paste") or 0) > 0 and _polygons(dataset),
        albumentations=importlib.util.find_spec("albumentations") is not None,
    )


def _unstored(job: Job, dataset: data.Dataset, imgsz: int, need: dict[str, int], free: int) -> int:
    """Bytes that the stores would grow by; what they hold is only looked up where not all would fit anew."""
    if sum(need.values()) + MARGIN <= free:
        return sum(need.values())
    from lab.fast.store_build import lacking  # noqa: PLC0415  OpenCV
    from lab.fast.store_decode import recipe_of  # noqa: PLC0415

    total = 0.0
    for split, size in need.items():
        paths = _paths(dataset, split)
        recipe = recipe_of(job.engine.name, imgsz, split == "train")
        total += size * lacking(job.project.cache, paths, recipe) / max(1, len(paths))
    return math.ceil(total)


def _existing(place: Path) -> Path:
    return next(parent for parent in (place, *place.parents) if parent.exists())


def hyper_parameters(options: dict[str, Any]) -> dict[str, Any]:
    """Of the --hyp file; it was read before, so it can be read."""
    name = options.get("hyp")
    return dict(yaml.safe_load(Path(name).read_text(encoding="utf-8"))) if name else {}


def _gpu_left(seen: plan.Facts) -> int | None:
    """Bytes of the GPU with the least memory that the training will leave; None where nothing is known of it."""
    totals = [(gpu.total, gpu.used or 0) for gpu in seen.gpus if gpu.total]
    if not totals:
        return None
    least = min(total - used for total, used in totals) << 20
    if seen.batch < 1:  # --batch auto fills what images that take a tenth leave
        return least // 10
    amp = not plan.no_amp(seen)
    return least - int(plan.memory_gib(seen.model, _of_each(seen), seen.imgsz, amp, seen.parameters) * plan.GIB)


def _of_each(seen: plan.Facts) -> int:
    """Images of a GPU's batch."""
    return -(-seen.batch // len(seen.device.split(",")))


def _bf16() -> bool:
    capabilities = [gpu.get("compute_cap", "") for gpu in telemetry.ask_gpus(("compute_cap",)) or []]
    return all(int(words.split(".")[0]) >= BF16 for words in capabilities if words[:1].isdigit())


def _polygons(dataset: data.Dataset) -> bool:
    """Whether any label of the training images has more than a box."""
    return any(_outlined(data.label_file(image)) for image in dataset.images("train"))


def _outlined(label: Path) -> bool:
    try:
        text = label.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(len(line.split()) > 6 for line in text.splitlines())

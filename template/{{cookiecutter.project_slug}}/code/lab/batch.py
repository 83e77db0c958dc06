"""`--batch auto`: the largest batch whose worst step fits the GPUs, measured; and the next one when memory ran out."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml

from lab import dataset as data
from lab import plan
from lab.engines import Call, Prepared
from lab.errors import FAILED, LabError
from lab.fast import choose
from lab.fast.plan import DEVICE, painting_bytes
from lab.gpu_list import listed
from lab.job import Job
from lab.launch import run

WITHOUT_GPU = 16  # both engines' default; a processor has no memory of its own to fill
MARGIN = 0.08  # of the GPU's memory stays free: the allocator's fragments grow over an epoch by a few per cent
ENOUGH = 0.97  # of what may be used: closer is not worth another measurement
MOST = 1024  # images a step of one GPU; past it, a larger batch gains nothing
TRIES = 12
LABELS_READ = 20_000  # label files; a sample is enough to meet a crowded image
MOSAIC = 4  # pictures in a mosaic, each of which may be the most crowded one
STEPS = 2  # the optimiser's moments are there from the second one on
SCALE = 16.0  # of the gradients: small, so that no step is left out for an overflow

# bytes in use on the device at the worst moment of a step with so many images; None when they do not fit
Measure = Callable[[int], "int | None"]


@dataclass(frozen=True)
class Found:
    """The outcome on one device; memory in bytes, of the whole device, with what other processes use."""

    batch: int
    predicted: int
    measured: int
    total: int
    probes: list[tuple[int, int | None]] = field(default_factory=list)


def search(measure: Measure, total: int, most: int = MOST, margin: float = MARGIN) -> Found | None:
    """The largest batch whose worst step leaves `margin` of `total` free; None when a single image does not fit.

    Memory is a line over the batch, up to the workspaces of convolutions, which jump: the line through the two largest
    batches measured is followed at most to four times the larger one, and the batch it ends at is measured too.
    """
    room = int(total * (1 - margin))
    probes: list[tuple[int, int | None]] = []
    fits: dict[int, int] = {}
    predicted: dict[int, int] = {}
    too_large = most + 1

    def probe(size: int) -> None:
        nonlocal too_large
        used = measure(size)
        probes.append((size, used))
        if used is not None and used <= room:
            fits[size] = used
        else:
            too_large = min(too_large, size)

    def line(size: int) -> int:
        (b1, m1), (b2, m2) = sorted(fits.items())[-2:]
        return round(m2 + (m2 - m1) / (b2 - b1) * (size - b2))

    probe(1)
    if not fits:
        return None
    probe(min(2, most))
    while len(fits) > 1 and len(probes) < TRIES:
        best = max(fits)
        if fits[best] >= ENOUGH * room and best in predicted:
            break
        growth = line(best + 1) - fits[best]
        reach = 4 * best if growth <= 0 else min(4 * best, best + (room - fits[best]) // growth)
        size = min(reach, too_large - 1)
        if size > 32:
            size -= size % 2
        if size <= best:
            break
        predicted[size] = line(size)
        probe(size)
        if size not in fits and size - best > 1:
            # the line was too optimistic: halve the way, so that the search ends whatever the device does
            middle = (best + size) // 2
            predicted[middle] = line(middle)
            probe(middle)
    best = max(fits)
    return Found(best, predicted.get(best, fits[best]), fits[best], total, probes)


def smaller(batch: int, ranks: int) -> int | None:
    """Half of `batch`, a multiple of `ranks`; None when each rank has a single image already."""
    half = batch // 2 // ranks * ranks
    return half if half >= ranks else (ranks if batch > ranks else None)


@dataclass(frozen=True)
class Filled:
    """A batch over all ranks, the sentence that gives its reason, and what run.json keeps of it."""

    batch: int
    sentence: str
    record: dict[str, Any]


def fill(job: Job, prepared: Prepared, ranks: int, log: IO[str] | None) -> Filled:
    """Measure `--batch auto` for the training `prepared`, on each of its devices. Raises LabError."""
    if prepared.options.get("device") == "cpu" or not listed():
        return _without_gpu(ranks)
    with tempfile.TemporaryDirectory(prefix="lab-batch-") as place:
        result = Path(place) / "batch.json"
        payload = request(job, prepared, result)
        device = str(prepared.options.get("device", ""))
        run(Call(Path(__file__).parent / f"run_{job.engine.name}.py", payload), job.project, None, device, log)
        said = json.loads(result.read_text(encoding="utf-8"))
    return judge(said["devices"], ranks)


def _without_gpu(ranks: int) -> Filled:
    batch = max(WITHOUT_GPU // ranks, 1) * ranks
    words = f"--batch auto fills a GPU, and there is none here: {batch}, as without the option"
    return Filled(batch, words, {"batch": batch})


def request(job: Job, prepared: Prepared, result: Path) -> dict[str, Any]:
    """What the child needs to run the worst step of this training."""
    options = prepared.options
    file = Path(str(options["data"]))
    images, labels = crowd(file, job)
    return {
        "task": "batch",
        "upstream": str(job.project.upstream),
        "result": str(result),
        "weights": prepared.weights[0] if prepared.weights else "",
        "cfg": prepared.cfg or "",
        "classes": 1 if options.get("single_cls") else len(yaml.safe_load(file.read_text(encoding="utf-8"))["names"]),
        "imgsz": int(options["imgsz"]),
        "multi_scale": bool(options.get("multi_scale")),
        "labels": labels * (1 if options.get("rect") else MOSAIC),
        "most": max(1, min(MOST, images)),
        "optimizer": options.get("optimizer", "SGD"),
        "devices": str(options.get("device", "")),
        "beside": beside(prepared),
    }


def beside(prepared: Prepared) -> tuple[int, int]:
    """Bytes that a training holds on each GPU beside its step, and for each image: images there, and painting."""
    if prepared.speed.get("data") != DEVICE:
        return 0, 0
    resident = int(prepared.speed.get("resident_bytes", 0))
    mixup = bool(choose.hyper_parameters(prepared.options).get("mixup"))
    none, one = (painting_bytes(size, int(prepared.options["imgsz"]), mixup, resident > 0) for size in (0, 1))
    return resident + none, one - none


def crowd(file: Path, job: Job) -> tuple[int, int]:
    """How many pictures train has, and the most labels of one picture among the first LABELS_READ."""
    images, most = 0, 1
    for image in data.open_dataset(str(file), job.project).images("train"):
        images += 1
        if images <= LABELS_READ:
            try:
                most = max(most, data.label_file(image).read_bytes().count(b"\n"))
            except OSError:
                continue  # a background
    return images, most


def judge(devices: list[dict[str, Any]], ranks: int) -> Filled:
    """The batch for all ranks: each gets what the fullest or smallest GPU can take. Raises LabError."""
    stuck = next((device for device in devices if device["batch"] is None), None)
    if stuck is not None:
        raise LabError(
            f"not even one image a step fits GPU {stuck['device']}: give a smaller --img or model, or end what else "
            "runs there (`lab doctor` shows it)",
            FAILED,
        )
    least = min(devices, key=lambda device: device["batch"])
    batch = least["batch"] * ranks
    each = f" ({least['batch']} on each of {ranks} GPUs)" if ranks > 1 else ""
    free = 100 * (1 - least["measured"] / least["total"])
    held = f", {_gib(least['beside'])} of them for images and their painting" if least.get("beside") else ""
    sentence = (
        f"--batch auto: {batch}{each}; its largest step was predicted to take {_gib(least['predicted'])} and took "
        f"{_gib(least['measured'])} of {_gib(least['total'])} GiB{held}, leaving {free:.0f} %; "
        f"{plan.accumulation(batch)}"
    )
    record = {"batch": batch, "predicted_bytes": least["measured"], "total_bytes": least["total"], "devices": devices}
    return Filled(batch, sentence, record)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"


# In the child


class Meter:
    """The memory of one CUDA device, in bytes, as the driver counts it."""

    def __init__(self, torch: Any, device: Any) -> None:
        self.torch, self.device = torch, device
        torch.zeros(1, device=device)  # the context counts, so it must be there
        self.total = int(torch.cuda.mem_get_info(device)[1])
        self._held: Any = None

    def hold(self, size: int) -> None:
        """Take `size` bytes of the device until `clear`. Raises what torch raises."""
        self._held = self.torch.empty(size, dtype=self.torch.uint8, device=self.device)

    def clear(self) -> None:
        """Give everything that is not in use back to the driver."""
        self._held = None
        self.torch.cuda.synchronize(self.device)
        self.torch.cuda.empty_cache()

    def peak(self) -> int:
        """Most bytes in use since `clear`: the allocator keeps what it once reserved."""
        self.torch.cuda.synchronize(self.device)
        return self.total - int(self.torch.cuda.mem_get_info(self.device)[0])


class Pretended:
    """A device that does not exist, for tests: `base` and `per_image` bytes, in use after a step of so many images."""

    def __init__(self, total: int, base: int, per_image: int) -> None:
        self.total, self.base, self.per_image, self.images, self.held = total, base, per_image, 0, 0

    def hold(self, size: int) -> None:
        """See Meter."""
        self.held = size

    def clear(self) -> None:
        """See Meter."""
        self.images = self.held = 0

    def peak(self) -> int:
        """See Meter. Raises what torch raises."""
        used = self.base + self.per_image * self.images + self.held
        if used > self.total:
            raise RuntimeError("CUDA out of memory")
        return used


def measure_all(request: dict[str, Any], worst_step: Callable[[Any, int], None], torch: Any) -> None:
    """Search on each device of `request`, by `worst_step(device, batch)`, and write the outcome to its `result`."""
    outcome = []
    fixed, each = request["beside"]
    pretended = request.get("pretended")
    if request["devices"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = request["devices"]  # as both engines do; CUDA reads it at its first use
    for number, name in enumerate((request["devices"] or "0").split(",")):
        device = torch.device("cpu" if pretended else f"cuda:{number}")
        meter: Any = Pretended(**pretended) if pretended else Meter(torch, device)
        found = search(_measure(worst_step, device, meter, fixed, each), meter.total, request["most"])
        about = {**asdict(found), "beside": fixed + each * found.batch} if found else {"batch": None}
        outcome.append({"device": name, **about})
    Path(request["result"]).write_text(json.dumps({"devices": outcome}), encoding="utf-8")


def largest_side(request: dict[str, Any], stride: int) -> int:
    """The longest side that a step may see: half as long again with --multi-scale, a multiple of the stride."""
    return int(request["imgsz"] * 1.5 + stride - 1) // stride * stride if request["multi_scale"] else request["imgsz"]


def take_steps(torch: Any, model: Any, optimizer: Any, ema: Any, amp: bool, loss: Callable[[], Any]) -> None:
    """STEPS optimiser steps as both engines do them; `loss()` is what one forward pass gives, a single number."""
    scaler = torch.amp.GradScaler("cuda", init_scale=SCALE, enabled=amp)
    model.train()
    for _ in range(STEPS):
        scaler.scale(loss()).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=10.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        ema.update(model)


def _measure(worst_step: Callable[[Any, int], None], device: Any, meter: Any, fixed: int, each: int) -> Measure:
    """Steps of a batch, while so many bytes are held beside them: `fixed`, and `each` for an image."""
    import gc  # noqa: PLC0415

    def measure(size: int) -> int | None:
        gc.collect()
        meter.clear()
        try:
            meter.hold(fixed + each * size)
            if isinstance(meter, Pretended):
                meter.images = size
                size = min(size, 2)
            worst_step(device, size)
            return int(meter.peak())
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return None

    return measure


OUT_OF_MEMORY_SIGNS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory", "not enough memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` is torch's way to say that memory, of a GPU or of the processor, did not suffice."""
    text = str(error)
    return "OutOfMemoryError" in type(error).__name__ or any(sign in text for sign in OUT_OF_MEMORY_SIGNS)

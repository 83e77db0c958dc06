"""Training pictures a second, painted on the device at hand: compiled and unfused, pixels resident and streamed.

    python benchmarks/paint_device.py [--batch 64] [--side 640] [--images 256] [--threads 4] [--seconds 3]

Needs torch and NumPy only. Mosaics of four made-up 4:3 images, affine, colours and flips changed; `mixup` is a second
layer for every picture. `painting` is the GPU's own time by CUDA events (the wall clock on a processor), `loading` the
loop over the loader with nothing else to do, from a mapped file, `host` one thread's work for a batch. On a processor
painting is not compiled, and batch and images are fewer. Writes --result, or
benchmarks/results/paint-device-DEVICE.json, after every figure, so that one that is stopped leaves what it had.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "template" / "{{cookiecutter.project_slug}}" / "code"))
from lab.fast import sheet  # noqa: E402
from lab.fast.device_loader import DeviceLoader  # noqa: E402
from lab.fast.draws import Draws  # noqa: E402
from lab.fast.paint_device import Painter  # noqa: E402
from lab.fast.store import Store  # noqa: E402

CYCLE = 8  # batches that are drawn once and painted again and again: drawing is not what is measured


def made_store(folder: Path, images: int, side: int) -> Store:
    """Noise, mapped from a file."""
    height, count = side * 3 // 4, images
    size = side * height * 3
    pixels = np.memmap(folder / "pixels", np.uint8, "w+", shape=(count * size,))
    rng = np.random.default_rng(0)
    for row in range(count):
        pixels[row * size : (row + 1) * size] = rng.integers(0, 256, size, np.uint8)
    pixels.flush()
    read = np.memmap(folder / "pixels", np.uint8, "r")
    full = np.full(count, side), np.full(count, height)
    return Store(side, [str(row) for row in range(count)], read, np.arange(count) * size, *full[::-1], *full[::-1])


def made_draws(store: Store, batch: int, layers: int, seed: int) -> Draws:
    """Mosaics as YOLOv5's hyp.scratch-low draws them: scale 0.5 to 1.5, a tenth of the side to and fro."""
    rng, side, count = np.random.default_rng(seed), store.side, batch * layers
    middle = rng.integers(side // 2, side * 3 // 2, (count, 1, 2))
    row = rng.integers(0, len(store), (count, 4))
    size = np.stack([store.width[row], store.height[row]], -1)
    shift = middle - size * [[1, 1], [0, 1], [1, 0], [0, 0]]
    place = np.concatenate([shift.clip(0, 2 * side), (shift + size).clip(0, 2 * side)], -1)
    matrix = np.tile(np.eye(3), (count, 1, 1))
    scale = rng.uniform(0.5, 1.5, count)
    matrix[:, 0, 0] = matrix[:, 1, 1] = scale
    matrix[:, :2, 2] = rng.uniform(0.4, 0.6, (count, 2)) * side - scale[:, None] * side
    return Draws(
        side,
        row.reshape(-1),
        np.repeat(np.arange(count), 4),
        place.reshape(-1, 4),
        shift.reshape(-1, 2),
        np.full((count, 2), 2 * side),
        matrix,
        np.repeat(np.arange(batch), layers),
        np.full(count, 1 / layers),
        rng.uniform(-1, 1, (batch, 3)) * [0.015, 0.7, 0.4] + 1,
        rng.random((batch, 2)) < [0.0, 0.5],
    )


def milliseconds(work: Callable[[int], Any], device: torch.device, seconds: float) -> list[float]:
    """Of each call, after two that do not count; at least three calls."""
    work(0), work(1)
    found, end, number = [], time.perf_counter() + seconds, 0
    while len(found) < 3 or time.perf_counter() < end:
        if device.type == "cuda":
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
            work(number)
            last.record()
            last.synchronize()
            found.append(first.elapsed_time(last))
        else:
            began = time.perf_counter()
            work(number)
            found.append((time.perf_counter() - began) * 1e3)
        number += 1
    return found


def painting(
    store: Store, shape: sheet.Shape, device: torch.device, compiled: bool, drawn: list[Draws], seconds: float
) -> dict[str, Any]:
    """With all pixels on the device, and the numbers uploaded for each batch."""
    pixels = torch.from_numpy(np.array(store.pixels)).to(device)
    sheets = [torch.zeros(shape.size, dtype=torch.uint8, pin_memory=device.type == "cuda") for _ in drawn]
    for one, draws in zip(sheets, drawn, strict=True):
        sheet.fill(shape, one.numpy(), draws, store)
    painter = Painter(shape, device, compiled=compiled)
    began = time.perf_counter()
    painter(pixels, sheets[0])
    if device.type == "cuda":
        torch.cuda.synchronize()
    first = time.perf_counter() - began
    found = milliseconds(lambda number: painter(pixels, sheets[number % CYCLE]), device, seconds)
    middle = statistics.median(found)
    return {
        "compiled": painter.compiled,  # not, where that failed
        "batch_ms": {"median": round(middle, 3), "min": round(min(found), 3), "max": round(max(found), 3)},
        "images_per_s": round(shape.pictures / middle * 1e3, 1),
        "written_gb_per_s": round(shape.pictures * 3 * shape.side**2 / middle / 1e6, 2),
        "first_call_s": round(first, 2),
    }


def loading(
    store: Store,
    shape: sheet.Shape,
    device: torch.device,
    compiled: bool,
    resident: bool,
    drawn: list[Draws],
    threads: int,
    seconds: float,
) -> dict[str, Any]:
    """The loop over the loader, whose consumer does nothing."""
    calls = iter(range(10**9))
    loader = DeviceLoader(
        store,
        shape,
        range(shape.pictures * CYCLE),
        lambda _: drawn[next(calls) % CYCLE],
        lambda draws: torch.zeros(len(draws), 6),
        device,
        budget=store.pixels.nbytes if resident else 0,
        threads=threads,
        compiled=compiled,
    )
    crops = [sheet.fill(shape, np.zeros(shape.size, np.uint8), draws, store, True) for draws in drawn]
    copied = 0 if resident else statistics.mean(crop.size for crop in crops if crop is not None)
    for _ in loader:
        pass
    count, began = 0, time.perf_counter()
    while time.perf_counter() < began + seconds:
        for _ in loader:
            count += 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    took = time.perf_counter() - began
    loader.close()
    return {
        "compiled": loader.painter.compiled,
        "images_per_s": round(count * shape.pictures / took, 1),
        "copied_mb_per_image": round(copied / shape.pictures / 1e6, 3),
        "copied_gb_per_s": round(count * copied / took / 1e9, 2),
        "host_mib": loader.host_bytes >> 20,
        "device_mib": loader.device_bytes >> 20,
    }


def host(store: Store, shape: sheet.Shape, drawn: list[Draws], seconds: float) -> dict[str, Any]:
    """One thread's work for a batch: the numbers in their shape, and the copy of what it shows."""
    room, to = np.zeros(shape.size, np.uint8), np.zeros(sheet.most_bytes(shape, store), np.uint8)
    cpu = torch.device("cpu")
    filled = milliseconds(lambda number: sheet.fill(shape, room, drawn[number % CYCLE], store, True), cpu, seconds)
    crops = [crop for draws in drawn if (crop := sheet.fill(shape, room, draws, store, True)) is not None]

    def copy(number: int) -> None:
        crop = crops[number % CYCLE]
        crop.copy(store, to, 0, len(crop.row))

    copied = statistics.median(milliseconds(copy, cpu, seconds))
    return {
        "fill_ms": round(statistics.median(filled), 3),
        "copy_ms": round(copied, 3),
        "copy_gb_per_s": round(statistics.mean(crop.size for crop in crops) / copied / 1e6, 2),
    }


def keep(file: Path, result: dict[str, Any]) -> None:
    """Write what there is so far, in one step."""
    if torch.cuda.is_available():
        result["peak_device_mib"] = torch.cuda.max_memory_allocated() >> 20
    fresh = file.with_suffix(".fresh")
    fresh.write_text(json.dumps(result, indent=2) + "\n")
    fresh.replace(file)


def main() -> None:
    """Measure, print, keep the figures."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64 if gpu else 4)
    parser.add_argument("--side", type=int, default=640)
    parser.add_argument("--images", type=int, default=256 if gpu else 32)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--result", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if gpu else "cpu")
    name = torch.cuda.get_device_name(device) if gpu else "cpu"
    own = f"paint-device-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    file = options.result or ROOT / "benchmarks" / "results" / own
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": f"{len(os.sched_getaffinity(0))} cores, {platform.platform(terse=True)}",
        "device": name,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda},
        "options": {key: value for key, value in vars(options).items() if key != "result"},
        "host": {},
        "painting": {},
        "loading": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        store = made_store(Path(scratch), options.images, options.side)
        for layers, kind in ((1, "mosaic"), (2, "mixup")):
            shape = sheet.Shape(options.side, options.batch, layers)
            drawn = [made_draws(store, options.batch, layers, seed) for seed in range(CYCLE)]
            result["host"][kind] = host(store, shape, drawn, options.seconds)
            keep(file, result)
            print(kind, result["host"][kind], flush=True)
            for compiled in (True, False) if gpu else (False,):
                how = f"{kind}, {'compiled' if compiled else 'unfused'}"
                result["painting"][how] = painting(store, shape, device, compiled, drawn, options.seconds)
                keep(file, result)
                for resident in (True, False):
                    where = f"{how}, {'resident' if resident else 'streamed'}"
                    result["loading"][where] = loading(
                        store, shape, device, compiled, resident, drawn, options.threads, options.seconds
                    )
                    keep(file, result)
                    print(where, result["loading"][where], flush=True)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

"""How many training images a second does one core give, and what does a worker hold? YOLOv5's loader, and ours.

    docker run --rm --shm-size 1g -v PROJECT:/workspace -v "$PWD/benchmarks":/benchmarks -w /workspace IMAGE \\
        python /benchmarks/loader.py --result /benchmarks/results/loader.json

Inside the container, in a project with YOLOv5's source (`lab fetch`). 512 synthetic JPEGs of 1280 x 720 and some 236 kB
at 640, mosaic on, YOLOv5's hyp.scratch-low. The arms take turns in one process that is bound to one core, without
workers; then with two workers on two cores. Seconds of processor time are counted beside those of the clock, because
machines are shared. Ours reads from a mapped file that YOLOv5's own `load_image` filled.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import torch
import ultralytics
import yaml

SIDE = 640
KILOBYTES = 236  # of a JPEG
BOXES = 8  # in an image
WORKERS = 2
PIXELS = "pixels.store"  # a file
AHEAD = 2  # batches that torch's loader prepares for each worker
WORDS = {
    "clock": "images_per_s",
    "spent": "images_per_processor_s",
    "private": "private_mib_of_a_worker",
    "pixels": "pixels_mapped_mib_of_a_worker",
    "share": "pixels_share_mib_of_a_worker",
}
ARMS = ("upstream", "upstream, --cache ram", "store, partners all", "store, partners ring")


def pictures(place: Path, count: int) -> Path:
    """Write `count` JPEGs and their labels."""
    chance = np.random.default_rng(0)
    (place / "images").mkdir(parents=True)
    (place / "labels").mkdir()
    quality = 0
    for number in range(count):
        coarse = chance.integers(0, 256, (45, 80, 3), dtype=np.uint8)
        smooth = cv2.resize(coarse, (1280, 720), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        picture = np.clip(smooth + chance.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)
        if not quality:
            sizes = {q: len(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, q])[1]) for q in range(50, 100)}
            quality = min(sizes, key=lambda q: abs(sizes[q] - KILOBYTES * 1000))
        cv2.imwrite(str(place / "images" / f"{number:06d}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
        boxes = np.concatenate([0.1 + 0.8 * chance.random((BOXES, 2)), 0.02 + 0.2 * chance.random((BOXES, 2))], 1)
        lines = [f"{chance.integers(0, 10)} " + " ".join(f"{value:.4f}" for value in box) for box in boxes]
        (place / "labels" / f"{number:06d}.txt").write_text("\n".join(lines), encoding="utf-8")
    return place / "images"


def mapped(dataset: Any, file: Path) -> Any:
    """A store in `file` of what a data set with --cache ram holds."""
    from lab.fast.store import Store  # noqa: PLC0415  the project's, on the path only now

    sizes, full = np.array(dataset.im_hw, np.int64), np.array(dataset.im_hw0, np.int64)
    with file.open("wb") as out:
        for image in dataset.ims:
            out.write(image.tobytes())
    offset = np.concatenate([[0], np.cumsum(sizes.prod(1) * 3)[:-1]])
    paths = [str(Path(image).absolute()) for image in dataset.im_files]
    pixels = np.memmap(file, np.uint8, "r")
    return Store(SIDE, paths, pixels, offset, sizes[:, 0], sizes[:, 1], full[:, 0], full[:, 1])


def arms(engine: Any, images: Path, scratch: Path, batch: int, hyp: dict[str, float]) -> dict[str, Any]:
    """The data set of each arm, by its name."""
    from lab.fast.loader_yolov5 import data_set  # noqa: PLC0415

    own = engine.LoadImagesAndLabels
    named = {"augment": True, "hyp": hyp}
    plain = own(str(images), SIDE, batch, **named)
    cached = own(str(images), SIDE, batch, cache_images="ram", **named)
    store = mapped(cached, scratch / PIXELS)
    stored = [data_set(own, {"train": store}, ring)(str(images), SIDE, batch, **named) for ring in (False, True)]
    return dict(zip(ARMS, [plain, cached, *stored], strict=True))


def loader(engine: Any, dataset: Any, batch: int, workers: int) -> Any:
    """As YOLOv5's create_dataloader makes it."""
    return engine.InfiniteDataLoader(
        dataset,
        batch_size=batch,
        shuffle=True,
        num_workers=workers,
        collate_fn=dataset.collate_fn,
        worker_init_fn=engine.seed_worker,
        generator=torch.Generator().manual_seed(0),
    )


def take(batches: Any, count: int) -> None:
    """Take `count` batches."""
    for _ in range(count):
        next(batches)


def turn(batches: Any, count: int, batch: int) -> tuple[float, float]:
    """Images a second by the clock, and by this process's time on the processor."""
    clock, spent = time.perf_counter(), time.process_time()
    take(batches, count)
    return count * batch / (time.perf_counter() - clock), count * batch / (time.process_time() - spent)


def turn_with_workers(engine: Any, dataset: Any, count: int, batch: int) -> dict[str, list[float]]:
    """Images a second by the clock and by the workers' time on the processor, and MiB of each worker.

    "private" is its own memory alone; "pixels" what it has mapped of a store, and "share" that over all who have.
    """
    made = loader(engine, dataset, batch, WORKERS)
    batches = made.iterator
    take(batches, 2 * AHEAD * WORKERS)
    workers = [psutil.Process(worker.pid) for worker in batches._workers]
    clock, spent = time.perf_counter(), sum(sum(worker.cpu_times()[:2]) for worker in workers)
    take(batches, count)
    seconds, spent = time.perf_counter() - clock, sum(sum(worker.cpu_times()[:2]) for worker in workers) - spent
    seen: dict[str, list[float]] = {"clock": [count * batch / seconds], "spent": [count * batch / spent]}
    for worker in workers:
        seen.setdefault("private", []).append(worker.memory_full_info().uss / 2**20)
        for mapping in worker.memory_maps():
            if mapping.path.endswith(PIXELS) and mapping.rss:  # inherited by all
                seen.setdefault("pixels", []).append(mapping.rss / 2**20)
                seen.setdefault("share", []).append(mapping.pss / 2**20)
    batches._shutdown_workers()
    return seen


def spread(values: list[float]) -> dict[str, float]:
    """The middle and the ends."""
    return {
        "median": round(statistics.median(values), 1),
        "least": round(min(values), 1),
        "most": round(max(values), 1),
    }


def processor() -> str:
    """What the kernel calls it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=8, help="in a turn")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--project", type=Path, default=Path.cwd())
    parser.add_argument("--result", type=Path, required=True)
    wanted = parser.parse_args()
    sys.path[:0] = [str(wanted.project / "code"), str(wanted.project / "code" / "yolov5")]
    import utils.dataloaders as engine  # noqa: PLC0415

    torch.set_num_threads(1)
    hyp = yaml.safe_load((wanted.project / "code/yolov5/data/hyps/hyp.scratch-low.yaml").read_text(encoding="utf-8"))
    cores = sorted(os.sched_getaffinity(0))
    scratch = Path(tempfile.mkdtemp(dir=wanted.project))
    clock: dict[str, list[float]] = {arm: [] for arm in ARMS}
    spent: dict[str, list[float]] = {arm: [] for arm in ARMS}
    two: dict[str, dict[str, list[float]]] = {arm: {} for arm in ARMS}
    try:
        images = pictures(scratch, wanted.images)
        size = statistics.mean(file.stat().st_size for file in images.iterdir())
        datasets = arms(engine, images, scratch, wanted.batch, hyp)
        os.sched_setaffinity(0, {wanted.core})
        running = {arm: loader(engine, dataset, wanted.batch, 0).iterator for arm, dataset in datasets.items()}
        for batches in running.values():
            take(batches, 2)
        for _ in range(wanted.turns):
            for arm, batches in running.items():
                speeds = turn(batches, wanted.batches, wanted.batch)
                clock[arm].append(speeds[0])
                spent[arm].append(speeds[1])
        os.sched_setaffinity(0, cores[:WORKERS])
        for _ in range(max(1, wanted.turns // 3)):
            for arm, dataset in datasets.items():
                for name, values in turn_with_workers(engine, dataset, 2 * wanted.batches, wanted.batch).items():
                    two[arm].setdefault(name, []).extend(values)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    base = statistics.median(spent[ARMS[0]])
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "hardware": f"{processor()}, {len(cores)} cores, no GPU used",
        "load": round(os.getloadavg()[1], 1),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "opencv": cv2.__version__,
            "numpy": np.__version__,
            "ultralytics": ultralytics.__version__,
        },
        "options": {
            "images": wanted.images,
            "jpeg_kB": round(size / 1000),
            "side": SIDE,
            "hyp": "scratch-low",
            "batch": wanted.batch,
            "turns": wanted.turns,
            "images_a_turn": wanted.batches * wanted.batch,
        },
        "one_core": {
            arm: {
                "images_per_s": spread(clock[arm]),
                "images_per_processor_s": spread(spent[arm]),
                "to_upstream": round(statistics.median(spent[arm]) / base, 2),
            }
            for arm in ARMS
        },
        "two_workers": {arm: {WORDS[name]: spread(values) for name, values in two[arm].items()} for arm in ARMS},
    }
    wanted.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in ("load", "one_core", "two_workers")}, indent=1))


if __name__ == "__main__":
    main()

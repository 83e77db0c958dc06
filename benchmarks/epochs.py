"""Is an epoch on ten times the images ten times as long, with no more memory? And how fast is the store built?

    PYTHONPATH=code python benchmarks/epochs.py --model yolov5n --batch 64 --images 2560 --result FILE

In a project with YOLOv5's source, as benchmarks/gpu.sh makes one. Two trainings as `lab train` would do them, on
--images and on ten times as many made-up pictures, take turns of whole epochs; validation is left out. Where the GPU
holds the images, the same two again without that, "streamed": only of these must memory stay flat. `--path device` on a
processor takes the GPU's loader there, its images resident and streamed, to see that all of it works.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lab import dataset as data
from lab import limits, record, telemetry
from lab.fast import arms, bench, choose, plan, turns
from lab.job import say
from lab.project import open_project

TIMES = 10
ROUNDS = 3
DIFFERENT = 64  # pictures; the others are copies that differ in a byte, so that a store takes them for others


def make(root: Path, images: int, width: int) -> Path:
    """A data set of `images` 16:9 pictures, `width` pixels wide; its yaml file."""
    random = np.random.default_rng(0)
    pictures = []
    for _ in range(DIFFERENT):
        rough = random.integers(0, 255, (9, 16, 3), dtype=np.uint8)
        large = cv2.resize(rough, (width, width * 9 // 16), interpolation=cv2.INTER_CUBIC)
        pictures.append(cv2.imencode(".jpg", large)[1].tobytes())
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)

    def write(number: int) -> None:
        split = "train" if number < images else "val"
        # what follows a JPEG's end mark is not decoded
        content = pictures[number % DIFFERENT] + number.to_bytes(4, "little")
        (root / "images" / split / f"{number:06d}.jpg").write_bytes(content)
        (root / "labels" / split / f"{number:06d}.txt").write_text("0 0.4 0.4 0.2 0.2\n1 0.6 0.6 0.3 0.2\n")

    with ThreadPoolExecutor(limits.processors()) as writers:
        list(writers.map(write, range(images + 8)))
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [a, b]\n")
    return root / "data.yaml"


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="yolov5n")
    parser.add_argument("--img", type=int, default=640)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="")
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--picture", type=int, default=1280, help="width in pixels")
    parser.add_argument("--path", choices=("store", "device"), help="[default: device on a GPU, else store]")
    parser.add_argument("--result", type=Path, required=True)
    asked = parser.parse_args()
    project = open_project()
    wish = bench.Wish("yolov5", asked.model, asked.img, asked.batch, asked.device)
    wish = bench.require(wish, project)
    path = asked.path or ("device" if wish.device != "cpu" else "store")
    found: dict[str, Any] = {}
    if path == plan.DEVICE and wish.device == "cpu":
        _paint_on_the_processor()
    with tempfile.TemporaryDirectory(prefix="lab-epochs-") as scratch:
        wanted = []
        for name, images in (("small", asked.images), ("large", TIMES * asked.images)):
            place = Path(scratch) / name
            place.mkdir()
            pictures = data.open_dataset(str(make(place / "data", images, asked.picture)), project)
            file = data.write_absolute(pictures, place)
            scene = bench.Scene(wish, project, place, file, pictures)
            begun = time.monotonic()
            speed = bench.ours(scene, plan.STORE if wish.device == "cpu" else path)
            assert speed["data"] == path, speed["reasons"]
            seconds = time.monotonic() - begun
            say(f"store of {images} images: {seconds:.1f} s")
            found[name] = {"images": images, "store_seconds": seconds, "store_images_per_second": images / seconds}
            found[name] |= {"resident_bytes": speed["resident_bytes"]}
            found["speed"] = {"data": speed["data"], "switches": speed["switches"]}
            workers = bench.ours_workers(wish)
            wanted.append(bench.arm(scene, name, f"{images} images", turns.OWN, speed, **workers))
            if speed["resident_bytes"]:
                streamed = {**speed, "resident_bytes": 0}
                found[f"{name} streamed"] = {"images": images}
                wanted.append(
                    bench.arm(scene, f"{name} streamed", f"{images} images, copied", turns.OWN, streamed, **workers)
                )
        until = time.monotonic() + 3600  # whoever starts this limits it
        with arms.ready(wanted, project, Path(scratch) / "arms", until, say) as (running, measured):
            for number in range(ROUNDS + 1):  # the first epoch of each compiles, and reads the store for the first time
                for each in running:
                    took = each.ask({"do": "epoch"}, until)
                    say(f"epoch {number} of {each.arm.name}: {took['seconds']:.2f} s")
                    if number:
                        found[each.arm.name].setdefault("epochs", []).append(took)
                        keep(asked, found, measured[0].facts)


def _paint_on_the_processor() -> None:
    """Have the decision for a GPU made where there is none: all else of that path runs on a processor too."""
    decide = choose.decide
    choose.decide = lambda facts, wish: replace(decide(facts, wish), data=plan.DEVICE, resident_room=sys.maxsize)


def keep(asked: argparse.Namespace, found: dict[str, Any], device: dict[str, Any]) -> None:
    """Write what there is so far."""
    medians = {
        name: statistics.median(took["seconds"] for took in one["epochs"])
        for name, one in found.items()
        if "epochs" in one
    }
    gpus = telemetry.ask_gpus(("name", "memory.total", "driver_version")) or []
    host = {**record.host([{**gpu, "uuid": ""} for gpu in gpus]), "processor": bench.processor()}
    ratios = {
        key: medians[f"large{kind}"] / medians[f"small{kind}"]
        for key, kind in (("ratio", ""), ("ratio_streamed", " streamed"))
        if {f"large{kind}", f"small{kind}"} <= set(medians)
    }
    said = {
        "date": record.now(), "host": host, "device": device, "versions": record.versions(),
        "options": {"model": asked.model, "imgsz": asked.img, "batch": asked.batch, "images": asked.images},
        **found, "seconds": medians, "ratio": None, **ratios,
    }  # fmt: skip
    asked.result.parent.mkdir(parents=True, exist_ok=True)
    asked.result.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    print(f"{TIMES} times the images took {said['ratio']} times as long")


if __name__ == "__main__":
    main()

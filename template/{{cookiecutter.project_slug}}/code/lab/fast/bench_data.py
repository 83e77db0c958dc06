"""A made-up data set for measurements: JPEGs of the size and weight that cameras write, each different."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from lab.limits import processors

WIDTH, HEIGHT = 1280, 720
QUALITY = 90  # as most cameras and converters write; about 240 kB for a picture like these
BOXES = 7  # in a picture, as COCO has on the average
CLASSES = 80
FEWEST = 256
VALIDATION = 8  # pictures; nothing is validated while it is measured, but the engines want some


def make_for(batch: int, root: Path, show: Callable[[str], None]) -> Path:
    """`make` as many as a measurement with `batch` wants."""
    pictures = number(batch)
    show(f"making {pictures} pictures of {WIDTH}x{HEIGHT}")
    return make(root, pictures)


def number(batch: int) -> int:
    """Pictures to train on: a few hundred, and a whole number of batches so that all batches are of one size."""
    return batch * max(4, -(-FEWEST // batch))


def make(root: Path, pictures: int) -> Path:
    """Write `pictures` 720p JPEGs for training, a few for validation, their labels and data.yaml, which is returned."""
    cv2.setNumThreads(1)  # OpenCV's threads would not survive the fork of the processes that build a store
    random = np.random.default_rng(0)
    rough = random.integers(0, 255, (HEIGHT // 8 + 40, WIDTH // 8 + 40, 3), dtype=np.uint8)
    smooth = np.asarray(cv2.resize(rough, (WIDTH + 320, HEIGHT + 320), interpolation=cv2.INTER_CUBIC), np.int16)
    field = smooth + random.normal(0, 2, smooth.shape).astype(np.int16)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
    splits = ["train"] * pictures + ["val"] * VALIDATION

    def write(which: int) -> None:
        own = np.random.default_rng(which)
        x, y = (int(start) for start in own.integers(0, 320, 2))
        shade = own.integers(-20, 20, 3).astype(np.int16)
        image = np.clip(field[y : y + HEIGHT, x : x + WIDTH] + shade, 0, 255).astype(np.uint8)
        jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
        (root / "images" / splits[which] / f"{which:05d}.jpg").write_bytes(jpeg.tobytes())
        boxes = np.concatenate([own.uniform(0.2, 0.8, (BOXES, 2)), own.uniform(0.05, 0.35, (BOXES, 2))], 1)
        lines = (f"{own.integers(CLASSES)} {' '.join(f'{edge:.6f}' for edge in box)}\n" for box in boxes)
        (root / "labels" / splits[which] / f"{which:05d}.txt").write_text("".join(lines), encoding="utf-8")

    with ThreadPoolExecutor(processors()) as writers:
        list(writers.map(write, range(len(splits))))
    names = "".join(f"  {one}: c{one}\n" for one in range(CLASSES))
    file = root / "data.yaml"
    file.write_text(f"train: images/train\nval: images/val\nnames:\n{names}", encoding="utf-8")
    return file

"""A made-up data set of JPEGs of photographic size, for the benchmarks that read one."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

BOXES = 7  # a picture, as in COCO


def make(root: Path, count: int, width: int, height: int, quality: int = 90) -> None:
    """A data set of `count` pictures, a tenth of them for validation, each a noisy field of its own colour."""
    random = np.random.default_rng(0)
    rough = random.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    smooth = cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    field = smooth + random.normal(0, 3, smooth.shape).astype(np.int16)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
    for number in range(count):
        split = "val" if number % 10 == 0 else "train"
        image = np.clip(field + random.integers(-20, 20, 3), 0, 255).astype(np.uint8)
        image[:8, :8] = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        (root / "images" / split / f"{number:07d}.jpg").write_bytes(jpeg.tobytes())
    label(root, 0)
    names = "".join(f"  {number}: c{number}\n" for number in range(80))
    (root / "data.yaml").write_text(f"path: .\ntrain: images/train\nval: images/val\nnames:\n{names}")


def label(root: Path, seed: int) -> None:
    """Write every label file anew."""
    random = np.random.default_rng(seed)
    for image in (root / "images").rglob("*.jpg"):
        rows = [
            f"{int(random.integers(80))} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n"
            for x, y, w, h in random.uniform(0.2, 0.4, (BOXES, 4))
        ]
        (root / "labels" / image.parent.name / f"{image.stem}.txt").write_text("".join(rows))

"""Synthetic pictures of circles, squares and triangles with exact boxes: a data set made in seconds, offline.

Every picture has its own random stream (seed, split, number), so the result does not depend on how many processes draw.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from lab.errors import FAILED, LabError
from lab.limits import MEBIBYTE, processors

NAMES = ("circle", "square", "triangle")
RECIPE = "demo.json"  # in the data set: the options it was made from
CHUNK = 16  # pictures a task, so that progress moves and processes stay busy
SUBPIXEL = 4  # fractional bits of drawn coordinates, 1/16 pixel
CENTRE = 0.5  # OpenCV counts from the middle of the first pixel, a box from its edge
Image = npt.NDArray[np.uint8]
Box = tuple[int, float, float, float, float]  # class, then centre x, centre y, width, height as fractions


@dataclass(frozen=True)
class Recipe:
    """What determines a demo data set. `size` in pixels; radii as fractions of it."""

    images: int = 512
    size: int = 640
    seed: int = 0
    val_share: float = 0.2
    shapes: tuple[int, int] = (1, 5)  # fewest and most in a picture
    radius: tuple[float, float] = (0.08, 0.2)
    turn: float = 0.4  # largest rotation to either side, radians
    version: int = 1

    def counts(self) -> dict[str, int]:
        """Pictures in each split; at least one in both."""
        val = min(self.images - 1, max(1, round(self.images * self.val_share)))
        return {"train": self.images - val, "val": val}


def make(recipe: Recipe, out: Path, force: bool = False, progress: Callable[[int], None] = lambda _: None) -> bool:
    """Write the data set into `out`; returns False when exactly this one is already there.

    It appears in one step. `progress` gets the number of pictures just finished. Raises LabError.
    """
    _require_sane(recipe)
    there = _recipe_in(out)
    if there == json.loads(json.dumps(asdict(recipe))) and not force:
        return False
    if there is not None and not force:
        raise LabError(
            f"{out} holds demo data made with other options: add --force to replace it, or name another --out"
        )
    if there is None and out.exists() and (not out.is_dir() or any(path.name != ".gitkeep" for path in out.iterdir())):
        raise LabError(f"{out} holds something that `lab data demo` did not make: name another directory with --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _require_room(recipe, out.parent)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            fresh = Path(scratch) / "fresh"
            _write(recipe, fresh, progress)
            if out.exists():
                out.rename(Path(scratch) / "old")
            fresh.rename(out)
    except OSError as error:
        raise LabError(f"{out} cannot be written: {error.strerror}", FAILED) from error
    except BrokenProcessPool as error:
        raise LabError(
            "a process that draws pictures was killed, most likely because memory ran out", FAILED
        ) from error
    return True


def _require_sane(recipe: Recipe) -> None:
    if not 2 <= recipe.images <= 1_000_000:
        raise LabError(f"--images {recipe.images}: give a number from 2 to 1000000")
    if not 32 <= recipe.size <= 8192:
        raise LabError(f"--size {recipe.size}: give a number of pixels from 32 to 8192")
    if not 0 < recipe.val_share < 1:
        raise LabError(f"--val-share {recipe.val_share}: give a share between 0 and 1, such as 0.2")
    if recipe.seed < 0:
        raise LabError(f"--seed {recipe.seed}: give 0 or more")


def _recipe_in(out: Path) -> Any:
    try:
        return json.loads((out / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _require_room(recipe: Recipe, directory: Path) -> None:
    need = (
        int(recipe.images * recipe.size**2 * 0.35) + MEBIBYTE
    )  # bytes; JPEG q90 of such a picture is about 0.3 a pixel
    free = shutil.disk_usage(directory).free
    if free < need:
        raise LabError(
            f"{directory} has {free // MEBIBYTE} MiB free and the pictures need {need // MEBIBYTE} MiB", FAILED
        )


def _write(recipe: Recipe, directory: Path, progress: Callable[[int], None]) -> None:
    tasks = []
    for split, count in recipe.counts().items():
        for kind in ("images", "labels"):
            (directory / kind / split).mkdir(parents=True)
        tasks += [(recipe, directory, split, range(at, min(at + CHUNK, count))) for at in range(0, count, CHUNK)]
    for done in _spread(tasks):
        progress(done)
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(NAMES))
    (directory / "data.yaml").write_text(
        f"# {recipe.images} synthetic pictures by `lab data demo`; paths count from this file\n"
        f"path: .\ntrain: images/train\nval: images/val\nnames:\n{names}",
        encoding="utf-8",
    )
    (directory / RECIPE).write_text(json.dumps(asdict(recipe)) + "\n", encoding="utf-8")


def _spread(tasks: list[tuple[Recipe, Path, str, range]]) -> Iterator[int]:
    if len(tasks) <= 4 or processors() == 1:
        yield from map(_draw_chunk, tasks)
        return
    with ProcessPoolExecutor(min(processors(), 16)) as pool:
        yield from pool.map(_draw_chunk, tasks)


def _draw_chunk(task: tuple[Recipe, Path, str, range]) -> int:
    recipe, directory, split, numbers = task
    cv2.setNumThreads(1)
    for number in numbers:
        image, boxes = draw(recipe, split, number)
        stem = f"{number:06d}"
        encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        (directory / "images" / split / f"{stem}.jpg").write_bytes(encoded.tobytes())
        rows = "".join(f"{label} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for label, x, y, w, h in boxes)
        (directory / "labels" / split / f"{stem}.txt").write_text(rows, encoding="utf-8")
    return len(numbers)


def draw(recipe: Recipe, split: str, number: int) -> tuple[Image, list[Box]]:
    """One picture, `size` x `size` x 3 in BGR, and the box of every shape in it."""
    random = np.random.default_rng([recipe.seed, ("train", "val").index(split), number])
    size = recipe.size
    image = _background(random, size)
    placed: list[tuple[float, float, float]] = []
    boxes: list[Box] = []
    for _ in range(int(random.integers(recipe.shapes[0], recipe.shapes[1] + 1))):
        spot = _free_spot(random, recipe, placed)
        if spot is None:
            break
        placed.append(spot)
        label = int(random.integers(len(NAMES)))
        boxes.append((label, *_paint(image, random, label, spot, recipe.turn)))
    return image, boxes


def _background(random: np.random.Generator, size: int) -> Image:
    """Smooth colour clouds with a little grain."""
    clouds = np.zeros((size, size, 3), np.float32)
    for cells, strength in ((3, 34.0), (9, 14.0)):
        coarse = random.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        clouds += cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    grain = random.normal(0, 5.0, (128, 128, 1)).astype(np.float32)
    tiles = -(-size // 128)
    clouds += np.tile(grain, (tiles, tiles, 1))[:size, :size] + random.uniform(70, 170)
    return np.clip(clouds, 0, 255).astype(np.uint8)


def _free_spot(
    random: np.random.Generator, recipe: Recipe, placed: list[tuple[float, float, float]]
) -> tuple[float, float, float] | None:
    """Centre and circumscribed radius in pixels of a shape that lies inside and touches no other."""
    for _ in range(20):
        radius = random.uniform(*recipe.radius) * recipe.size
        x, y = random.uniform(radius + 1, recipe.size - radius - 1, 2)
        if all(math.hypot(x - u, y - v) > 0.9 * (radius + r) for u, v, r in placed):
            return float(x), float(y), float(radius)
    return None


def _paint(
    image: Image, random: np.random.Generator, label: int, spot: tuple[float, float, float], turn: float
) -> tuple[float, float, float, float]:
    """Draw one shape; returns its exact box as fractions."""
    x, y, radius = spot
    size = image.shape[0]
    fill = _colour(random, image[int(y), int(x)])
    edge = tuple(int(0.55 * channel) for channel in fill)
    width = max(1, round(radius / 14))
    if label == 0:
        centre = (round((x - CENTRE) * 2**SUBPIXEL), round((y - CENTRE) * 2**SUBPIXEL))
        drawn = round(radius * 2**SUBPIXEL)
        cv2.circle(image, centre, drawn, edge, -1, cv2.LINE_AA, SUBPIXEL)
        cv2.circle(image, centre, drawn - width * 2**SUBPIXEL, fill, -1, cv2.LINE_AA, SUBPIXEL)
        return x / size, y / size, 2 * radius / size, 2 * radius / size
    corners, start = (
        (4, math.pi / 4) if label == 1 else (3, -math.pi / 2)
    )  # a square on its side, a triangle on its base
    start += random.uniform(-turn, turn)
    angles = start + 2 * math.pi * np.arange(corners) / corners
    points = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)
    inner = (x, y) + (points - (x, y)) * (1 - 1.6 * width / radius)
    for outline, colour in ((points, edge), (inner, fill)):
        cv2.fillPoly(
            image, [np.round((outline - CENTRE) * 2**SUBPIXEL).astype(np.int32)], colour, cv2.LINE_AA, SUBPIXEL
        )
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    return (
        float((left + right) / 2 / size),
        float((top + bottom) / 2 / size),
        float((right - left) / size),
        float((bottom - top) / size),
    )


def _colour(random: np.random.Generator, behind: Image) -> tuple[int, int, int]:
    """A saturated colour that stands out against the pixel `behind`."""
    while True:
        hsv = np.array([[[random.integers(180), random.integers(130, 256), random.integers(110, 256)]]], np.uint8)
        colour = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0]
        if np.abs(colour.astype(int) - behind.astype(int)).sum() > 120:
            return int(colour[0]), int(colour[1]), int(colour[2])


def default_out(root: Path) -> Path:
    """data/demo of the project at `root`."""
    return Path(os.path.normpath(root / "data" / "demo"))

"""From the bytes of an image file to the very pixels that an engine's own `load_image` gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from lab.picture_header import exceeds

INTERPOLATIONS = ("linear", "area")
OWN_READER = (".tif", ".tiff", ".avif", ".heic", ".heif")  # ultralytics reads these in its own way, see its patches.py


@dataclass(frozen=True)
class Recipe:
    """What is done to each image: the longer side becomes `side` pixels.

    `area` averages where an image shrinks, as YOLOv5 does for validation; everything else is linear. The engines differ
    in a pixel of some sizes and in how they read TIFF, so their stores are not the same.
    """

    side: int
    interpolation: str = "linear"
    engine: str = "yolov5"

    @property
    def name(self) -> str:
        """Part of a file name."""
        return f"{self.side}-{self.interpolation}-{self.engine}"

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after resizing. The products may round up beyond `side`; only ultralytics cuts that off."""
        ratio = self.side / max(height, width)
        if ratio == 1:
            return height, width
        tall, wide = math.ceil(height * ratio), math.ceil(width * ratio)
        return (min(tall, self.side), min(wide, self.side)) if self.engine == "yolov5u" else (tall, wide)

    def resize(self, image: Any) -> Any:
        """`image` (height, width, 3), resized; itself when it has the size already."""
        height, width = image.shape[:2]
        if self.side == max(height, width):
            return image
        area = self.interpolation == "area" and self.side < max(height, width)
        tall, wide = self.size(height, width)
        return cv2.resize(image, (wide, tall), interpolation=cv2.INTER_AREA if area else cv2.INTER_LINEAR)


def recipe_of(engine: str, side: int, training: bool) -> Recipe:
    """How `engine` resizes images that it trains on, or validates with."""
    return Recipe(side, "area" if engine == "yolov5" and not training else "linear", engine)


def decode(content: bytes, path: str, recipe: Recipe) -> tuple[Any, tuple[int, int]] | None:
    """The resized image, uint8 (height, width, 3), blue first, and its height and width before; None if undecodable.

    EXIF orientation is applied, as both engines do. Raises MemoryError; what claims too much of it is not tried.
    """
    if exceeds(content):
        return None
    try:
        image = _own(content, path, recipe)
        if image is None:
            image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from error
        return None
    if image is None or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        return None
    return np.ascontiguousarray(recipe.resize(image)), image.shape[:2]


def _own(content: bytes, path: str, recipe: Recipe) -> Any:
    if recipe.engine != "yolov5u" or not content or not path.lower().endswith(OWN_READER):
        return None
    from ultralytics.utils.patches import imread  # noqa: PLC0415

    return imread(path)

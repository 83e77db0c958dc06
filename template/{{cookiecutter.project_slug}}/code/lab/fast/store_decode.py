"""From the bytes of an image file to the very pixels that an engine's own `load_image` gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from lab.check_facts import exif_orientation

INTERPOLATIONS = ("linear", "area")
OWN_READER = (".tif", ".tiff", ".avif", ".heic", ".heif")  # ultralytics reads these in its own way, see its patches.py
TRIALS = 3  # JPEGs of a kind that the faster decoder must give as OpenCV does before it is trusted with the others


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


def decode(content: bytes, path: str, recipe: Recipe, jpegs: Jpegs | None = None) -> tuple[Any, tuple[int, int]] | None:
    """The resized image, uint8 (height, width, 3), blue first, and its height and width before; None if undecodable.

    EXIF orientation is applied, as both engines do. Raises MemoryError.
    """
    try:
        image = _own(content, path, recipe)
        if image is None:
            swift = jpegs.decode(content) if jpegs else None
            if swift is not None:
                # red first; channels are resized apart, so turning the smaller image gives the same pixels
                return cv2.cvtColor(recipe.resize(swift), cv2.COLOR_RGB2BGR), swift.shape[:2]
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


class Jpegs:
    """torchvision's JPEG decoder: nearly twice as fast as OpenCV's, and of the same library, so of the same pixels.

    That is not taken for granted: each kind of JPEG (baseline or progressive, subsampling) is tried against OpenCV
    first. What OpenCV turns by EXIF, colours that are not YCbCr, and files without an end are left to OpenCV.
    """

    def __init__(self) -> None:
        import torch  # noqa: PLC0415
        from torchvision.io import decode_jpeg  # noqa: PLC0415

        torch.set_num_threads(1)
        self._decode = decode_jpeg
        self._tensor = torch.frombuffer
        self._type = torch.uint8
        self._equal: dict[bytes, int] = {}  # how often a kind came out equal; -1 when it did not

    def decode(self, content: bytes) -> Any | None:
        """uint8 (height, width, 3), red first; None where OpenCV is to do it."""
        kind = jpeg_kind(content)
        if kind is None or self._equal.get(kind) == -1:
            return None
        try:
            tensor = self._decode(self._tensor(bytearray(content), dtype=self._type))
        except RuntimeError:
            return None
        image = tensor.permute(1, 2, 0).numpy()
        if self._equal.get(kind, 0) < TRIALS:
            judge = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
            same = judge is not None and np.array_equal(judge[..., ::-1], image)
            self._equal[kind] = self._equal.get(kind, 0) + 1 if same else -1
            if not same:
                return None
        return image


def jpeg_kind(content: bytes) -> bytes | None:
    """The frame's marker and sampling factors of a whole JPEG in YCbCr without EXIF orientation; None for any other.

    Markers and segments: ITU T.81, annex B.
    """
    if content[:2] != b"\xff\xd8" or content[-2:] != b"\xff\xd9":
        return None
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        segment = content[at + 4 : at + 2 + length]
        if marker == 0xEE or (marker == 0xE1 and segment[:4] == b"Exif" and exif_orientation(segment[6:]) != 1):
            return None
        if marker in (0xC0, 0xC1, 0xC2):
            if len(segment) != 15 or segment[0] != 8 or segment[6:7] != b"\x01":
                return None
            return bytes((marker, segment[7], segment[10], segment[13]))
        if (0xC0 <= marker <= 0xCF and marker != 0xC4) or marker in (0xD9, 0xDA) or length < 2:
            return None
        at += 2 + length
    return None

"""The numbers of a batch in arrays of one shape, whatever was drawn: what paint_device.py needs to paint it.

A painter that is compiled for shapes must not see others, so pictures, layers and tiles that a batch lacks are there
and empty. Also here: which part of each stored image a batch shows, for loaders that copy only that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from lab.fast.draws import Draws
from lab.fast.store import Store

ALIGN = 64  # bytes: Inductor copies inputs that do not lie on 16
NARROW = 2**31  # bytes of pixels up to which addresses are int32


def scaled_hue(gain: Any) -> Any:
    """Tables (B, 3, 256) from uint8 hue, saturation and value to new ones, as YOLOv5 makes them of gains (B, 3)."""
    level = np.arange(256) * np.asarray(gain, np.float64)[..., None]
    level[:, 0] %= 180
    return np.clip(level, 0, 255).astype(np.uint8)


def shifted_hue(gain: Any) -> Any:
    """As `scaled_hue`, the way of ultralytics since 8.3.79: hue moves by 180 (gain - 1), and white stays white."""
    gain = np.asarray(gain, np.float64)
    level = np.arange(256) * gain[..., None]
    level[:, 0] = (np.arange(256) + (gain[:, :1] - 1) * 180) % 180
    level[:, 1, 0] = 0
    return np.clip(level, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Shape:
    """Of every batch: B pictures of S x S pixels, at most L layers in a picture and K tiles on a layer."""

    side: int
    pictures: int
    layers: int = 1
    tiles: int = 4
    perspective: bool = False
    wide: bool = False  # addresses are int64

    @cached_property
    def fields(self) -> dict[str, tuple[int, str, tuple[int, ...]]]:
        """Where each array of a sheet begins, in bytes, its type and its shape."""
        pictures, layers, tiles = self.pictures, self.layers, self.tiles
        fields: dict[str, tuple[int, str, tuple[int, ...]]] = {}
        start = 0
        for name, kind, shape in (
            # of the pixel at (0, 0) of the canvas, were the tile that large; may be negative
            ("base", "int64" if self.wide else "int32", (pictures, layers, tiles)),
            ("pitch", "int32", (pictures, layers, tiles)),  # bytes in a row of the stored image
            ("place", "int32", (pictures, layers, tiles, 4)),  # x1, y1, x2, y2 on the canvas, x2 and y2 excluded
            ("matrix", "float32", (pictures, layers, 9)),  # picture to canvas, flips included
            ("share", "float32", (pictures, layers)),
            ("table", "uint8", (pictures, 3, 256)),  # of hue, saturation, value
            ("coloured", "uint8", (pictures,)),  # 0: the tables are not to be used
        ):
            fields[name] = start, kind, shape
            start += -(-int(np.prod(shape)) * np.dtype(kind).itemsize // ALIGN) * ALIGN
        return fields

    @cached_property
    def size(self) -> int:
        """Bytes of a sheet."""
        start, kind, shape = list(self.fields.values())[-1]
        return start + -(-int(np.prod(shape)) * np.dtype(kind).itemsize // ALIGN) * ALIGN

    def views(self, sheet: Any) -> dict[str, Any]:
        """The arrays that lie in `sheet`, uint8 (size)."""
        return {
            name: sheet[start : start + int(np.prod(shape)) * np.dtype(kind).itemsize].view(kind).reshape(shape)
            for name, (start, kind, shape) in self.fields.items()
        }


@dataclass(frozen=True)
class Source:
    """Where the pixels of the K tiles of a batch lie: an image, or part of one, each with rows of its own length."""

    start: Any  # int64 (K): byte of the first pixel
    pitch: Any  # int64 (K): bytes in a row
    corner: Any  # int64 (K, 2): x, y on the canvas of the first pixel
    place: Any  # int64 (K, 4): of it on the canvas; empty where nothing of the tile is seen


@dataclass(frozen=True)
class Crops:
    """The parts of stored images to copy together, in the order of the store, so that a disk is read forwards."""

    row: Any  # int64 (C): of the store
    box: Any  # int64 (C, 4): x1, y1, x2, y2 in the stored image
    start: Any  # int64 (C): byte to copy to; there, rows follow each other without gaps
    size: int  # bytes of all

    def copy(self, store: Store, to: Any, first: int, last: int) -> None:
        """Copy crops first to last - 1 into `to`, uint8. NumPy lets other threads run meanwhile."""
        for crop in range(first, last):
            x1, y1, x2, y2 = self.box[crop].tolist()
            start, length = int(self.start[crop]), (x2 - x1) * 3
            part = to[start : start + length * (y2 - y1)].reshape(y2 - y1, x2 - x1, 3)
            np.copyto(part, store.image(int(self.row[crop]))[y1:y2, x1:x2])

    def parts(self, count: int) -> list[tuple[int, int]]:
        """At most `count` ranges of crops of about as many bytes each."""
        area = (self.box[:, 2] - self.box[:, 0]) * (self.box[:, 3] - self.box[:, 1])
        ends = np.searchsorted(np.cumsum(area), np.arange(1, count) * (area.sum() / count))
        bounds = [0, *ends.tolist(), len(area)]
        return [(first, last) for first, last in pairwise(bounds) if first < last]


def inverse(matrix: Any) -> Any:
    """float64 (L, 3, 3), inverted; all zeros for a singular one, as OpenCV has it."""
    cofactors = np.stack([np.cross(matrix[:, i - 2], matrix[:, i - 1]) for i in range(3)], -1)
    determinant = (matrix[:, 0] * cofactors[:, :, 0]).sum(1)[:, None, None]
    return np.divide(cofactors, determinant, out=np.zeros_like(cofactors), where=determinant != 0)


def _whole(draws: Draws, store: Store) -> Source:
    """Tiles in the store itself. Raises ValueError where a tile goes beyond its image: nothing checks that later."""
    row = np.asarray(draws.row)
    if len(row) and (row.min() < 0 or row.max() >= len(store)):
        raise ValueError(f"row {row.min()} or {row.max()} of a store of {len(store)} images")
    place, shift = np.array(draws.place), np.asarray(draws.shift)
    canvas = np.asarray(draws.canvas)[draws.layer]
    place[:, :2] = np.maximum(place[:, :2], 0)
    place[:, 2:] = np.minimum(place[:, 2:], canvas)
    place[(place[:, :2] >= place[:, 2:]).any(1)] = 0
    seen = place[:, 2] > 0
    size = np.stack([store.width[row], store.height[row]], 1)
    beyond = seen & ((place[:, :2] < shift) | (place[:, 2:] - shift > size)).any(1)
    if beyond.any():
        tile = int(beyond.argmax())
        raise ValueError(f"tile {tile} at {place[tile]} goes beyond its image, {size[tile]} pixels at {shift[tile]}")
    return Source(np.asarray(store.offset[row]), size[:, 0] * 3, shift, place)


def _seen(draws: Draws, back: Any) -> Any:
    """int64 (L, 4): x1, y1, x2, y2 of the part of each canvas that its picture shows."""
    far = draws.side - 1.0
    corner = np.array([[0, 0, 1], [far, 0, 1], [0, far, 1], [far, far, 1]])
    at = corner @ back.transpose(0, 2, 1)  # L, corners, (x, y, w)
    depth = at[:, :, 2:]
    # a picture that holds the horizon has no corners to go by
    whole = ~((depth > 0).all(1) | (depth < 0).all(1))[:, 0]
    at = at[:, :, :2] / np.where(depth == 0, 1, depth)
    at = np.clip(at, -1e6, 1e6)
    # one more on each side: the painter counts in float32
    low, high = np.floor(at.min(1)) - 1, np.floor(at.max(1)) + 3
    low[whole], high[whole] = -1e6, 1e6
    return np.concatenate([low, high], 1).astype(np.int64)


def _cut(draws: Draws, whole: Source, back: Any) -> tuple[Source, Crops]:
    """Tiles copied together, and what to copy for that: no pixel that no picture shows."""
    seen = _seen(draws, back)[draws.layer]
    place = np.concatenate(
        [np.maximum(whole.place[:, :2], seen[:, :2]), np.minimum(whole.place[:, 2:], seen[:, 2:])], 1
    )
    place[(place[:, :2] >= place[:, 2:]).any(1)] = 0
    width, height = place[:, 2] - place[:, 0], place[:, 3] - place[:, 1]
    order = np.argsort(whole.start, kind="stable")
    order = order[width[order] > 0]
    lengths = (width * height * 3)[order]
    start = np.zeros(len(place), np.int64)
    start[order] = np.cumsum(lengths) - lengths
    box = place - np.tile(whole.corner, 2)
    crops = Crops(np.asarray(draws.row)[order], box[order], start[order], int(lengths.sum()))
    return Source(start, width * 3, place[:, :2], place), crops


def fill(
    shape: Shape,
    sheet: Any,
    draws: Draws,
    store: Store,
    crop: bool = False,
    tables: Callable[[Any], Any] = scaled_hue,
) -> Crops | None:
    """Write a batch of at most B pictures into `sheet`, uint8 (size). With `crop` the pixels are those that get copied.

    Raises ValueError for numbers that do not fit the shape or the store.
    """
    layers, pictures = len(draws.share), len(draws)
    picture, layer = np.asarray(draws.picture), np.asarray(draws.layer)
    level = np.arange(layers) - np.searchsorted(picture, picture)
    tile = np.arange(len(layer)) - np.searchsorted(layer, layer)
    most = int(level.max(initial=0)) + 1, int(tile.max(initial=0)) + 1
    if draws.side != shape.side or pictures > shape.pictures or most[0] > shape.layers or most[1] > shape.tiles:
        raise ValueError(
            f"{pictures} pictures of {draws.side} pixels with {most[0]} layers of {most[1]} tiles do not fit {shape}"
        )
    matrix = np.asarray(draws.matrix, np.float64)
    if not shape.perspective and (matrix[:, 2] != (0, 0, 1)).any():
        raise ValueError(f"a matrix with perspective does not fit {shape}")
    back = inverse(matrix)
    source, crops = _whole(draws, store), None
    if crop:
        source, crops = _cut(draws, source, back)
    mirror = np.tile(np.eye(3), (pictures, 1, 1))
    for axis, flipped in ((1, draws.flip[:, 0]), (0, draws.flip[:, 1])):
        mirror[flipped, axis, axis], mirror[flipped, axis, 2] = -1, shape.side - 1
    views = shape.views(sheet)
    for name in ("base", "pitch", "place", "matrix", "share", "coloured"):
        views[name].fill(0)
    views["matrix"][picture, level] = (back @ mirror[picture]).reshape(-1, 9)
    views["share"][picture, level] = draws.share
    at = picture[layer], level[layer], tile
    views["base"][at] = source.start - source.corner[:, 1] * source.pitch - source.corner[:, 0] * 3
    views["pitch"][at] = source.pitch
    views["place"][at] = source.place
    views["table"][:pictures] = tables(draws.gain)
    views["coloured"][:pictures] = (np.asarray(draws.gain) != 1).any(1)
    return crops


def most_bytes(shape: Shape, store: Store) -> int:
    """What the pixels of a batch can take: every tile the largest image, or every canvas full (2 S x 2 S), if less."""
    largest = int((store.height * store.width).max()) * shape.tiles
    return shape.pictures * shape.layers * min(largest, 4 * shape.side**2) * 3

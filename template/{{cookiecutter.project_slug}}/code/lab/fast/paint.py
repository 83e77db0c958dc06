"""Training pictures painted on the processor, with OpenCV, from stored images.

Only what is seen is painted. The part of the canvas that a picture shows is put together from its tiles and warped once
into the part of the picture that they cover: tiles warped one by one would have to be blended at their seams. Four
bytes a pixel instead of three because OpenCV (5.0) warps those more than twice as fast, with the same result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from lab.fast.draws import GREY, Draws

Rectangle = tuple[int, int, int, int]  # x1, y1, x2, y2, the last two excluded


class Painter:
    """Paints batches; keeps its working memory between them, so each process or thread needs its own.

    `tables`: what hue, saturation and value become, from gains as in Draws; uint8 (B, 3, 256).
    """

    def __init__(self, tables: Callable[[Any], Any] | None = None) -> None:
        self._tables = tables or scaled_hue
        self._memory: dict[str, Any] = {}

    def paint(self, draws: Draws, image: Callable[[int], Any], out: Any) -> None:
        """Fill `out`, uint8 (B, 3, side, side), red first; `image(row)` is uint8 (height, width, 3), blue first."""
        tables = self._tables(draws.gain)
        tiles = np.searchsorted(draws.layer, np.arange(len(draws.picture) + 1))
        layers = np.searchsorted(draws.picture, np.arange(len(draws) + 1))
        for picture in range(len(draws)):
            begin, end = int(layers[picture]), int(layers[picture + 1])
            if end - begin == 1:
                area, pixels = self._layer(draws, begin, int(tiles[begin]), int(tiles[begin + 1]), image)
            else:
                area, pixels = self._blend(draws, range(begin, end), tiles, image)
            table = tables[picture] if (draws.gain[picture] != 1).any() else None
            self._finish(area, pixels, table, draws.flip[picture], out[picture])

    def _room(self, name: str, height: int, width: int, channels: int) -> Any:
        """Working memory, uint8, without gaps, not cleared."""
        size = height * width * channels
        held = self._memory.get(name)
        if held is None or len(held) < size:
            held = self._memory[name] = np.empty(size, np.uint8)
        return held[:size].reshape(height, width, channels)

    def _layer(
        self, draws: Draws, layer: int, first: int, last: int, image: Callable[[int], Any]
    ) -> tuple[Rectangle, Any]:
        """What the tiles first … last - 1 of a layer cover of the picture, and its pixels: B, G, R, anything."""
        matrix, side = draws.matrix[layer], draws.side
        places, shifts = draws.place[first:last].tolist(), draws.shift[first:last].tolist()
        width, height = draws.canvas[layer].tolist()
        area, seen = _area(matrix, places, (width, height), side)
        x1, y1, x2, y2 = seen
        if area[0] >= area[2] or area[1] >= area[3] or x1 >= x2 or y1 >= y2:
            return (0, 0, 0, 0), None
        canvas = self._room("canvas", y2 - y1, x2 - x1, 4)
        visible = [(max(a, x1), max(b, y1), min(c, x2), min(d, y2)) for a, b, c, d in places]
        for a, b, c, d in _between(seen, visible):
            canvas[b - y1 : d - y1, a - x1 : c - x1] = GREY
        for row, (a, b, c, d), (across, down) in zip(draws.row[first:last].tolist(), visible, shifts, strict=True):
            if a < c and b < d:
                part = image(row)[b - down : d - down, a - across : c - across]
                cv2.cvtColor(part, cv2.COLOR_BGR2BGRA, dst=canvas[b - y1 : d - y1, a - x1 : c - x1])
        matrix = _moved(matrix, (x1, y1), area[:2])
        size = (area[2] - area[0], area[3] - area[1])
        if size == (x2 - x1, y2 - y1) and (matrix == np.eye(3)).all():
            return area, canvas
        pixels = self._room("layer", size[1], size[0], 4)
        warp, by = (cv2.warpAffine, matrix[:2]) if _affine(matrix) else (cv2.warpPerspective, matrix)
        warp(canvas, by, size, dst=pixels, borderValue=(GREY,) * 4)
        return area, pixels

    def _blend(self, draws: Draws, layers: range, tiles: Any, image: Callable[[int], Any]) -> tuple[Rectangle, Any]:
        """A picture of two layers, the whole of it: the sum of their shares, rounded down as both engines do."""
        side, blended = draws.side, list[Any]()
        for layer in layers:
            (x1, y1, x2, y2), pixels = self._layer(draws, layer, int(tiles[layer]), int(tiles[layer + 1]), image)
            whole = self._room(f"blended {len(blended)}", side, side, 4)
            whole.fill(GREY)
            if pixels is not None:
                whole[y1:y2, x1:x2] = pixels
            blended.append(whole)
        first, second = blended
        share, rest = draws.share[layers.start : layers.stop].tolist()
        # OpenCV rounds to the nearest; the small rest keeps grey and grey from becoming a darker grey
        return (0, 0, side, side), cv2.addWeighted(first, share, second, rest, -0.5 + 1e-4, dst=first)

    def _finish(self, area: Rectangle, pixels: Any, table: Any, flip: Any, out: Any) -> None:
        """Change the colours, flip, and lay the planes into `out`, uint8 (3, side, side)."""
        side = out.shape[-1]
        x1, y1, x2, y2 = area
        height, width = y2 - y1, x2 - x1
        if flip[0]:
            y1, y2 = side - y2, side - y1
        if flip[1]:
            x1, x2 = side - x2, side - x1
        for a, b, c, d in _between((0, 0, side, side), [(x1, y1, x2, y2)]):
            out[:, b:d, a:c] = GREY if table is None else table[2, GREY]
        if pixels is None:
            return
        colours = self._room("colours", height, width, 3)
        if table is None:
            cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGB, dst=colours)
        else:
            work = self._room("work", height, width, 3)
            cv2.cvtColor(pixels, cv2.COLOR_BGR2HSV, dst=work)
            planes = list(self._room("planes", 3, height, width))
            cv2.split(work, planes)
            for plane, values in zip(planes, table, strict=True):
                cv2.LUT(plane, values, dst=plane)
            cv2.merge(planes, work)
            cv2.cvtColor(work, cv2.COLOR_HSV2RGB, dst=colours)
        if flip.any():
            turned = self._room("work", height, width, 3)
            cv2.flip(colours, -1 if flip.all() else int(flip[1]), dst=turned)
            colours = turned
        cv2.split(colours, list(out[:, y1:y2, x1:x2]))


def _between(whole: Rectangle, tiles: list[Rectangle]) -> list[Rectangle]:
    """What the tiles leave of a rectangle, in rectangles."""
    left = [whole]
    for a, b, c, d in tiles:
        if a >= c or b >= d:
            continue
        parts = []
        for x1, y1, x2, y2 in left:
            if c <= x1 or x2 <= a or d <= y1 or y2 <= b:
                parts.append((x1, y1, x2, y2))
                continue
            top, bottom = max(y1, b), min(y2, d)
            parts += [(x1, y1, x2, top), (x1, bottom, x2, y2), (x1, top, a, bottom), (c, top, x2, bottom)]
        left = [part for part in parts if part[0] < part[2] and part[1] < part[3]]
    return left


def scaled_hue(gain: Any) -> Any:
    """Tables (B, 3, 256) of hue, saturation and value for gains (B, 3), as YOLOv5 makes them; hue counts to 180."""
    values = np.arange(256) * gain[:, :, None]
    values[:, 0] %= 180
    return np.clip(values, 0, 255).astype(np.uint8)


def shifted_hue(gain: Any) -> Any:
    """The same as ultralytics makes them since 8.3.79: hue moves by 180 (gain - 1)."""
    values = np.arange(256) * gain[:, :, None]
    values[:, 0] = (np.arange(256) + (gain[:, :1] - 1) * 180) % 180
    return np.clip(values, 0, 255).astype(np.uint8)


def _affine(matrix: Any) -> bool:
    return bool((matrix[2] == (0, 0, 1)).all())


def _moved(matrix: Any, source: tuple[int, int], target: tuple[int, ...]) -> Any:
    """The matrix between parts that begin at `source` on the canvas and at `target` in the picture."""
    there, back = np.eye(3), np.eye(3)
    there[:2, 2] = source
    back[:2, 2] = -target[0], -target[1]
    return back @ matrix @ there


def _area(matrix: Any, places: list[list[int]], canvas: tuple[int, int], side: int) -> tuple[Rectangle, Rectangle]:
    """What the tiles cover of the picture, and what of the canvas is seen there, each with room to interpolate."""
    whole = (0, 0, side, side), (0, 0, *canvas)
    if not _affine(matrix):
        return whole  # a horizon may cross the picture: four corners do not bound it
    (a, b, x), (c, d, y) = matrix[:2].tolist()
    turned = a * d - b * c
    if turned == 0:
        return whole
    left, top = min(place[0] for place in places) - 1, min(place[1] for place in places) - 1
    right, bottom = max(place[2] for place in places), max(place[3] for place in places)
    across = [a * u + b * v + x for u in (left, right) for v in (top, bottom)]
    down = [c * u + d * v + y for u in (left, right) for v in (top, bottom)]
    x1, x2 = max(0, math.floor(min(across))), min(side, math.ceil(max(across)) + 1)
    y1, y2 = max(0, math.floor(min(down))), min(side, math.ceil(max(down)) + 1)
    corners = [(u - x, v - y) for u in (x1, x2 - 1) for v in (y1, y2 - 1)]
    across = [(d * u - b * v) / turned for u, v in corners]
    down = [(a * v - c * u) / turned for u, v in corners]
    seen = (
        max(0, math.floor(min(across)) - 1),
        max(0, math.floor(min(down)) - 1),
        min(canvas[0], math.ceil(max(across)) + 2),
        min(canvas[1], math.ceil(max(down)) + 2),
    )
    return (x1, y1, x2, y2), seen

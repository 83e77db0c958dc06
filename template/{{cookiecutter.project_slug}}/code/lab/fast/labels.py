"""Boxes of training pictures, moved by the same numbers as the pixels: a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lab.fast.draws import Draws

POINTS = 1000  # that both engines lay along an outline before they move it
CHUNK = 256  # outlines moved at once: 12 MB


@dataclass(frozen=True)
class Labels:
    """The labels of N images in one array, and where those of each image begin: M boxes, P points of outlines."""

    first: Any  # int64 (N + 1)
    boxes: Any  # float32 (M, 5): class, and centre, width, height as shares of the image
    first_point: Any  # int64 (M + 1)
    points: Any  # float32 (P, 2): x, y as shares of the image; the line closes from the last to the first
    outlined: Any  # bool (N): each box of this image has an outline


@dataclass(frozen=True)
class Rules:
    """Which boxes stay, and which follow their outline."""

    least: float = 2  # pixels of width and of height: more than that
    slimmest: float = 100  # one side over the other: less than that
    left: float = 0.1  # of a box's area: more than that
    left_outlined: float = 0.01
    # YOLOv5 moves outlines in a mosaic only. Everywhere: if all labels of a layer have one, else none of them
    outlines_alone: bool = False
    # ultralytics keeps the corners of an outline among its POINTS, and cuts it at the picture's edge; YOLOv5 takes the
    # POINTS inside
    outlines_cut: bool = False
    drops_lines: bool = False  # boxes that the edge of a mosaic leaves without area; turned, they would gain some
    edge: float = 1e-3  # pixels kept from the right and the lower edge


YOLOV5 = Rules()
YOLOV5U = Rules(outlines_alone=True, outlines_cut=True, drops_lines=True, edge=0)


def gathered(labels: Sequence[Any], outlines: Sequence[Sequence[Any]] = ()) -> Labels:
    """Labels from one array (n, 5) for each image and, for images that have them, n outlines (points, 2)."""
    count = np.array([len(rows) for rows in labels], np.int64)
    boxes = [np.asarray(rows, np.float32).reshape(-1, 5) for rows in labels]
    outlined = np.zeros(len(labels), bool)
    lengths = np.zeros(int(count.sum()), np.int64)
    points = []
    at = 0
    for image, n in enumerate(count):
        here = outlines[image] if len(outlines) else ()
        if n and len(here) == n:
            outlined[image] = True
            lengths[at : at + n] = [len(line) for line in here]
            points += [np.asarray(line, np.float32).reshape(-1, 2) for line in here]
        at += n
    return Labels(
        first=np.concatenate([[0], np.cumsum(count)]),
        boxes=np.concatenate(boxes) if boxes else np.zeros((0, 5), np.float32),
        first_point=np.concatenate([[0], np.cumsum(lengths)]),
        points=np.concatenate(points) if points else np.zeros((0, 2), np.float32),
        outlined=outlined,
    )


def moved(draws: Draws, labels: Labels, sizes: Any, rules: Rules = YOLOV5) -> Any:
    """The boxes of a batch, float32 (n, 6): picture, class, and centre, width, height as shares of the picture.

    `sizes`, int64 (N, 2): height and width of the images that `draws.row` counts. Single precision up to the canvas
    and from the picture on, double between, as the engines calculate: a box on a threshold falls on the same side.
    """
    number, tile = _runs(labels.first, draws.row)
    layer = draws.layer[tile]
    size = np.asarray(sizes)[draws.row][:, ::-1]
    tiles_on = np.bincount(draws.layer, minlength=len(draws.canvas))
    alone = tiles_on[draws.layer] == 1
    # a letterboxed image lies on whole pixels, its boxes in both engines at the exact half: apart by half a pixel
    shift = np.where(alone[:, None], (draws.canvas[draws.layer] - size) / 2, draws.shift)
    size, shift = size[tile].astype(np.float32), shift[tile].astype(np.float32)
    box = labels.boxes[number]
    half = box[:, 3:5] / 2
    low = size * (box[:, 1:3] - half) + shift
    high = size * (box[:, 1:3] + half) + shift
    inside = ~alone[tile]  # what crosses the edge of a mosaic is cut there
    edge = draws.canvas[layer].astype(np.float32)
    low = np.where(inside[:, None], np.clip(low, 0, edge), low)
    high = np.where(inside[:, None], np.clip(high, 0, edge), high)

    matrix = draws.matrix[layer]
    new = _moved_boxes(low, high, matrix, draws.side)
    outlined = _by_outline(draws, labels, rules, layer)
    if outlined.any():
        new[outlined] = _moved_outlines(
            labels,
            number[outlined],
            size[outlined],
            shift[outlined],
            np.where(inside[outlined, None], edge[outlined], np.inf),
            matrix[outlined],
            draws.side,
            rules.outlines_cut,
        )

    scale = draws.scale if draws.scale is not None else np.sqrt(np.abs(np.linalg.det(draws.matrix[:, :2, :2])))
    scale = scale[layer].astype(np.float32)[:, None]
    keep = _stays(high * scale - low * scale, new, np.where(outlined, rules.left_outlined, rules.left), rules)
    if rules.drops_lines:
        keep &= ~inside | ((high - low).prod(1) > 0)
    return _rows(draws, draws.picture[layer[keep]], box[keep, 0], new[keep], rules)


def _runs(first: Any, rows: Any) -> tuple[Any, Any]:
    """All of first[row] … first[row + 1] - 1 for each row, and at which of `rows` each stands."""
    count = first[rows + 1] - first[rows]
    which = np.repeat(np.arange(len(rows)), count)
    begin = np.cumsum(count) - count
    return np.arange(len(which)) - begin[which] + first[rows][which], which


def _moved_boxes(low: Any, high: Any, matrix: Any, side: int) -> Any:
    """x1, y1, x2, y2 around the moved corners, float64 (n, 4), cut at the picture's edge."""
    x = np.stack([low[:, 0], high[:, 0], low[:, 0], high[:, 0]], 1).astype(np.float64)
    y = np.stack([low[:, 1], high[:, 1], high[:, 1], low[:, 1]], 1).astype(np.float64)
    to_x, to_y = _through(matrix, x, y)
    new = np.stack([to_x.min(1), to_y.min(1), to_x.max(1), to_y.max(1)], 1) if len(x) else np.zeros((0, 4))
    return new.clip(0, side)


def _through(matrix: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """Points, (n, points) each, through n matrices."""
    to_x, to_y, to_w = (row[:, 0, None] * x + row[:, 1, None] * y + row[:, 2, None] for row in matrix.swapaxes(0, 1))
    return to_x / to_w, to_y / to_w


def _by_outline(draws: Draws, labels: Labels, rules: Rules, layer: Any) -> Any:
    """Whether each box follows its outline: only if all boxes of its layer have one."""
    if not labels.outlined.any():
        return np.zeros(len(layer), bool)
    bare = ~labels.outlined[draws.row] & (labels.first[draws.row + 1] > labels.first[draws.row])
    layers = len(draws.canvas)
    follows = np.bincount(draws.layer, weights=bare, minlength=layers) == 0
    if not rules.outlines_alone:
        follows &= np.bincount(draws.layer, minlength=layers) > 1
    return follows[layer]


def _moved_outlines(
    labels: Labels, number: Any, size: Any, shift: Any, edge: Any, matrix: Any, side: int, cut_out: bool
) -> Any:
    """The boxes around what is inside the picture of each outline, laid out in POINTS; zeros where nothing is.

    `edge` is where the canvas cuts, infinite where it does not. `cut_out`: see Rules.outlines_cut; the canvas then cuts
    the POINTS, else the outline's own.
    """
    new = np.zeros((len(number), 4))
    for begin in range(0, len(number), CHUNK):
        part = slice(begin, begin + CHUNK)
        point, line = _runs(labels.first_point, number[part])
        at = size[part][line] * labels.points[point] + shift[part][line]
        at = (at if cut_out else _cut(at, edge[part][line])).astype(np.float64)
        count = np.bincount(line, minlength=len(number[part]))
        first = np.cumsum(count) - count
        # evenly by number, not by length: POINTS positions from the first point around to it again
        where = _corners_and_between(count) if cut_out else np.linspace(0, count, POINTS, axis=1)
        before = np.minimum(where.astype(np.int64), count[:, None] - 1)
        after = (before + 1) % count[:, None]
        share = (where - before)[:, :, None]
        start = at[first[:, None] + before]
        along = start + (at[first[:, None] + after] - start) * share
        along = _cut(along, edge[part][:, None]) if cut_out else along
        x, y = _through(matrix[part], along[:, :, 0], along[:, :, 1])
        inside = (x >= 0) & (y >= 0) & (x <= side) & (y <= side)
        if cut_out:
            new[part] = np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], 1)
            for across in np.flatnonzero(~inside.all(1)):
                new[begin + across] = _box_of_cut(x[across], y[across], side)
            continue
        box = [np.where(inside, x, np.inf).min(1), np.where(inside, y, np.inf).min(1)]
        box += [np.where(inside, x, -np.inf).max(1), np.where(inside, y, -np.inf).max(1)]
        new[part] = np.where(inside.any(1)[:, None], np.stack(box, 1), 0)
    return new


def _cut(at: Any, edge: Any) -> Any:
    return np.where(np.isfinite(edge), np.clip(at, 0, edge), at)


def _corners_and_between(count: Any) -> Any:
    """POINTS positions along outlines of `count` corners each, from the first around to it again, all corners included.

    An outline of more corners than that has more points.
    """
    width = max(POINTS, int(count.max(initial=0)) + 1)
    where = np.empty((len(count), width))
    for row, corners in enumerate(count.tolist()):
        between = np.linspace(0, corners, width - corners - 1)
        where[row] = np.sort(np.concatenate([between, np.arange(corners + 1)]))
    return where


def _box_of_cut(x: Any, y: Any, side: int) -> Any:
    """x1, y1, x2, y2 around what a square from 0 to `side` leaves of a closed line, (n) each; zeros for nothing.

    The extreme points of that are points of the line, points where it crosses the square's edge, or corners of the
    square that it surrounds (by the rule of odd crossings).
    """
    line = np.stack([x, y], 1)
    if (line.max(0) < 0).any() or (line.min(0) > side).any():
        return np.zeros(4)
    ahead = np.roll(line, -1, 0)
    found = [line[((line >= 0) & (line <= side)).all(1)]]
    for axis in (0, 1):
        for border in (0, side):
            here, there = line[:, axis] - border, ahead[:, axis] - border
            crosses = (here * there <= 0) & (here != there)
            share = (here[crosses] / (here - there)[crosses])[:, None]
            at = line[crosses] + share * (ahead - line)[crosses]
            at[:, axis] = border
            found.append(at[((at >= 0) & (at <= side)).all(1)])
    for u in (0, side):
        for v in (0, side):
            spans = (line[:, 1] > v) != (ahead[:, 1] > v)
            begin, way = line[spans], (ahead - line)[spans]
            if (begin[:, 0] + (v - begin[:, 1]) / way[:, 1] * way[:, 0] > u).sum() % 2:
                found.append(np.array([[u, v]], np.float64))
    points = np.concatenate(found)
    return np.concatenate([points.min(0), points.max(0)]) if len(points) else np.zeros(4)


def _stays(before: Any, new: Any, left: Any, rules: Rules) -> Any:
    """Whether a box is still large, wide and whole enough; `before`, (n, 2), is its size if nothing were cut off."""
    wide, high = new[:, 2] - new[:, 0], new[:, 3] - new[:, 1]
    slim = np.maximum(wide / (high + 1e-16), high / (wide + 1e-16))
    share = wide * high / (before[:, 0] * before[:, 1] + 1e-16)
    return (wide > rules.least) & (high > rules.least) & (share > left) & (slim < rules.slimmest)


def _rows(draws: Draws, picture: Any, kind: Any, new: Any, rules: Rules) -> Any:
    box = np.clip(new.astype(np.float32), 0, np.float32(draws.side - rules.edge))
    rows = np.empty((len(box), 6), np.float32)
    rows[:, 0], rows[:, 1] = picture, kind
    rows[:, 2:4] = (box[:, :2] + box[:, 2:]) / 2 / np.float32(draws.side)
    rows[:, 4:6] = (box[:, 2:] - box[:, :2]) / np.float32(draws.side)
    for axis, column in ((0, 3), (1, 2)):
        turned = draws.flip[picture, axis]
        rows[turned, column] = 1 - rows[turned, column]
    return rows

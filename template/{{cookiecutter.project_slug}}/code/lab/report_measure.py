"""Measure predictions against labels: average precision, precision and recall, confusion. Pure NumPy.

The rules are those by which both engines count, so that the numbers agree with theirs: a prediction belongs to the
labelled box of its class that it overlaps most; of several that belong to one box the surest counts, the others are
wrong; average precision is the area under the precision envelope, at 101 recalls, averaged over the overlaps 0.50,
0.55, … 0.95 (COCO's definition).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
CONFIDENCES = np.linspace(0, 1, 1001)
SURE = 0.25  # confidence from which a prediction is shown and enters the confusion matrix, as in both engines
SAME = 0.45  # overlap from which it is the same thing there
# sides of a box in pixels of the network's input, after COCO: small, medium, large
SIZES = (32.0, 96.0)


@dataclass(frozen=True)
class Picture:
    """One picture: `truth` is N x 5 (class, left, top, right, bottom; fractions), `found` M x 6 (… and confidence)."""

    truth: Array
    found: Array


@dataclass(frozen=True)
class ClassScore:
    """One class. `boxes` are labelled ones; precision and recall at the confidence of the best mean F1.

    Everything but the counts is None for a class without labelled boxes.
    """

    number: int
    pictures: int
    boxes: int
    precision: float | None
    recall: float | None
    ap50: float | None
    ap: float | None
    curve: list[float]  # precision at 101 recalls, overlap 0.5


@dataclass(frozen=True)
class Measured:
    """What was measured. `confusion[i][j]`: boxes labelled i and predicted as j; the last index is background."""

    pictures: int
    boxes: int
    confidence: float
    precision: float
    recall: float
    ap50: float
    ap: float
    classes: list[ClassScore]
    confusion: list[list[int]]
    sizes: list[tuple[int, int]]  # small, medium, large: labelled boxes and those found


def overlap(a: Array, b: Array) -> Array:
    """Intersection over union of N and M boxes (left, top, right, bottom): N x M.

    The same in fractions and in pixels: scaling an axis cancels out.
    """
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=2)
    area_a, area_b = np.prod(a[:, 2:] - a[:, :2], axis=1), np.prod(b[:, 2:] - b[:, :2], axis=1)
    return np.asarray(both / np.maximum(area_a[:, None] + area_b[None] - both, 1e-12))


def measure(pictures: list[Picture], classes: int, shapes: list[tuple[float, float]] | None = None) -> Measured:
    """Measure all `pictures`. `shapes` are their width and height in pixels of the network's input."""
    labels = np.concatenate([p.truth[:, 0] for p in pictures] or [np.empty(0)]).astype(int)
    kind, confidence, nearest, area = _assign(pictures)
    right = _right(nearest, area)
    counts = np.bincount(labels, minlength=classes)
    seen = np.zeros(classes, int)
    for picture in pictures:
        seen[np.unique(picture.truth[:, 0]).astype(int)] += 1
    scored = [number for number in range(classes) if counts[number]]
    p, r, f1 = (np.zeros((len(scored), len(CONFIDENCES))) for _ in range(3))
    ap = np.zeros((len(scored), len(OVERLAPS)))
    envelopes = np.zeros((len(scored), len(RECALLS)))
    for row, number in enumerate(scored):
        own = kind == number
        p[row], r[row] = _at_confidences(right[own, 0], confidence[own], counts[number])
        for column in range(len(OVERLAPS)):
            envelope = _envelope(right[own, column], counts[number])
            # the area by the trapezoid rule
            ap[row, column] = float((envelope[1:] + envelope[:-1]).sum() / 2 / (len(RECALLS) - 1))
            if column == 0:
                envelopes[row] = envelope
    f1 = 2 * p * r / np.maximum(p + r, 1e-16)
    best = int(f1.mean(axis=0).argmax()) if scored else 0
    lines = {number: row for row, number in enumerate(scored)}
    return Measured(
        pictures=len(pictures),
        boxes=int(counts.sum()),
        confidence=float(CONFIDENCES[best]),
        precision=_mean(p[:, best]),
        recall=_mean(r[:, best]),
        ap50=_mean(ap[:, 0]),
        ap=_mean(ap),
        classes=[
            _score(number, int(seen[number]), int(counts[number]), lines.get(number), p, r, ap, envelopes, best)
            for number in range(classes)
        ],
        confusion=confusion(pictures, classes).tolist(),
        sizes=by_size(pictures, shapes) if shapes else [],
    )


def _mean(values: Array) -> float:
    return float(values.mean()) if values.size else 0.0


def _score(
    number: int, pictures: int, boxes: int, row: int | None, p: Array, r: Array, ap: Array, envelopes: Array, best: int
) -> ClassScore:
    if row is None:
        return ClassScore(number, pictures, boxes, None, None, None, None, [])
    return ClassScore(
        number, pictures, boxes, float(p[row, best]), float(r[row, best]), float(ap[row, 0]), float(ap[row].mean()),
        [round(float(value), 3) for value in envelopes[row]],
    )  # fmt: skip


def _assign(pictures: list[Picture]) -> tuple[Array, Array, npt.NDArray[np.int64], Array]:
    """For all predictions, surest first: class, confidence, the labelled box of that class overlapped most (numbered
    through all pictures, -1 for none), and that overlap."""
    kinds, sure, boxes, areas = [], [], [], []
    offset = 0
    for picture in pictures:
        found, truth = picture.found, picture.truth
        kinds.append(found[:, 0])
        sure.append(found[:, 5])
        if len(truth) and len(found):
            area = overlap(found[:, 1:5], truth[:, 1:]) * (found[:, :1] == truth[None, :, 0])
            boxes.append(area.argmax(axis=1) + offset)
            areas.append(area.max(axis=1))
        else:
            boxes.append(np.full(len(found), -1))
            areas.append(np.zeros(len(found)))
        offset += len(truth)
    if not kinds:
        return np.empty(0), np.empty(0), np.empty(0, np.int64), np.empty(0)
    order = np.argsort(-np.concatenate(sure), kind="stable")
    kind, confidence, box, area = (np.concatenate(parts)[order] for parts in (kinds, sure, boxes, areas))
    return kind, confidence, box, area


def _right(nearest: npt.NDArray[np.int64], area: Array) -> npt.NDArray[np.bool_]:
    """Which predictions (surest first) are right, at each of OVERLAPS: the surest of those that belong to one box."""
    right = np.zeros((len(nearest), len(OVERLAPS)), bool)
    for column, least in enumerate(OVERLAPS):
        enough = np.flatnonzero(area >= least)
        _, first = np.unique(nearest[enough], return_index=True)
        right[enough[first], column] = True
    return right


def _envelope(right: npt.NDArray[np.bool_], boxes: int) -> Array:
    """Precision at RECALLS: the best that is reached at that recall or a higher one, falling to 0 at recall 1.

    Between two recalls it is a straight line, also beyond the last one: that is how both engines have it.
    """
    if not len(right):
        return np.zeros(len(RECALLS))
    hits = np.cumsum(right)
    recall = np.concatenate([[0.0], hits / boxes, [1.0]])
    precision = np.concatenate([[1.0], hits / np.arange(1, len(right) + 1), [0.0]])
    return np.interp(RECALLS, recall, np.maximum.accumulate(precision[::-1])[::-1])


def _at_confidences(right: npt.NDArray[np.bool_], confidence: Array, boxes: int) -> tuple[Array, Array]:
    """Precision and recall of one class when only predictions of at least each of CONFIDENCES count."""
    hits = np.concatenate([[0], np.cumsum(right)])
    kept = np.searchsorted(-confidence, -CONFIDENCES, side="right")  # how many are that sure
    return np.where(kept > 0, hits[kept] / np.maximum(kept, 1), 1.0), hits[kept] / boxes


def pairs(picture: Picture, named: bool = False) -> tuple[list[tuple[int, int]], list[int]]:
    """Labelled boxes and the predictions that overlap them most, one to one; with `named`, of the same class only.

    Returns (index of the box, index of the prediction) pairs, best overlap first, and the sure predictions' indices.
    """
    kept = np.flatnonzero(picture.found[:, 5] >= SURE)
    if not len(kept) or not len(picture.truth):
        return [], kept.tolist()
    area = overlap(picture.truth[:, 1:], picture.found[kept, 1:5])
    if named:
        area = area * (picture.truth[:, :1] == picture.found[kept, 0])
    rows, columns = np.nonzero(area >= SAME)
    order = np.argsort(-area[rows, columns], kind="stable")
    taken_rows: set[int] = set()
    taken: set[int] = set()
    matched = []
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in taken_rows and column not in taken:
            taken_rows.add(row)
            taken.add(column)
            matched.append((row, int(kept[column])))
    return matched, kept.tolist()


def confusion(pictures: list[Picture], classes: int) -> npt.NDArray[np.int64]:
    """Labelled class (row) against predicted class (column); the last row and column are background."""
    table = np.zeros((classes + 1, classes + 1), np.int64)
    for picture in pictures:
        matched, kept = pairs(picture)
        for row, column in matched:
            table[int(picture.truth[row, 0]), int(picture.found[column, 0])] += 1
        rows, columns = {row for row, _ in matched}, {column for _, column in matched}
        for row in set(range(len(picture.truth))) - rows:
            table[int(picture.truth[row, 0]), classes] += 1
        for column in set(kept) - columns:
            table[classes, int(picture.found[column, 0])] += 1
    return table


def errors(picture: Picture) -> tuple[int, int]:
    """Labelled boxes that were missed, and predictions that are wrong. One under another name is both."""
    matched, kept = pairs(picture, named=True)
    return len(picture.truth) - len(matched), len(kept) - len(matched)


def by_size(pictures: list[Picture], shapes: list[tuple[float, float]]) -> list[tuple[int, int]]:
    """Labelled boxes, and those of them found with the right class: small, medium, large as the network sees them."""
    counts = [[0, 0] for _ in range(len(SIZES) + 1)]
    for picture, (width, height) in zip(pictures, shapes, strict=True):
        matched = {row for row, _ in pairs(picture, named=True)[0]}
        for row, (_, left, top, right, bottom) in enumerate(picture.truth.tolist()):
            side = ((right - left) * width * (bottom - top) * height) ** 0.5
            group = counts[sum(side >= size for size in SIZES)]
            group[0] += 1
            group[1] += row in matched
    return [(total, hit) for total, hit in counts]


def from_json(said: dict[str, Any]) -> Measured:
    """A Measured from `dataclasses.asdict` gone through JSON. Raises KeyError or TypeError for anything else."""
    classes = [ClassScore(**score) for score in said["classes"]]
    return Measured(**{**said, "classes": classes, "sizes": [tuple(pair) for pair in said["sizes"]]})

"""Detect with an exported ONNX file of either engine: letterbox, decode, non-maximum suppression, in numpy alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from lab.errors import LabError

Array = npt.NDArray[np.float32]
Classes = npt.NDArray[np.intp]
GREY = 114  # the padding colour of both engines
CANDIDATES = 30_000  # predictions that non-maximum suppression looks at, as in both engines


@dataclass(frozen=True)
class Detection:
    """A box in pixels of the network's input (left, top, right, bottom), with class and score."""

    box: tuple[float, float, float, float]
    label: int
    score: float


@dataclass(frozen=True)
class Fit:
    """How a picture lies in the network's input: scaled to `height` x `width`, moved to `top`, `left`."""

    height: int
    width: int
    top: int
    left: int

    def restore(self, boxes: Array, shape: tuple[int, ...]) -> Array:
        """Boxes K x 4 in pixels of the network's input, in pixels of the picture of `shape`, cut at its borders."""
        rows, columns = shape[:2]
        corner = np.array([self.left, self.top] * 2, np.float32)
        # each side by its own: whole pixels make them differ, on a large picture by some of its pixels
        scale = np.array([columns / self.width, rows / self.height] * 2, np.float32)
        moved: Array = (boxes - corner) * scale
        return np.clip(moved, 0, np.array([columns, rows] * 2, np.float32), out=moved)


def fit(shape: tuple[int, ...], size: tuple[int, int]) -> Fit:
    """How a picture of `shape` (height, width, …) lies in an input of `size` (height, width): whole, and centred."""
    scale = min(size[0] / shape[0], size[1] / shape[1])
    height, width = max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
    return Fit(height, width, (size[0] - height) // 2, (size[1] - width) // 2)


def letterbox(image: npt.NDArray[np.uint8], size: int | tuple[int, int], out: Array | None = None) -> Array:
    """A BGR picture, scaled and padded to `size` (both sides, or height and width); 3 x H x W in RGB, 0 to 1.

    Written to `out` when it is given: fresh memory of that size costs more than the arithmetic.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    to = fit(image.shape, (rows, columns))
    same = image.shape[:2] == (to.height, to.width)
    resized = image if same else cv2.resize(image, (to.width, to.height), interpolation=cv2.INTER_LINEAR)
    planes = np.empty((3, rows, columns), np.float32) if out is None else out
    if (to.height, to.width) != (rows, columns):
        planes.fill(np.float32(GREY) / np.float32(255))
    for plane, channel in zip(planes[::-1], cv2.split(resized), strict=True):
        inside = plane[to.top : to.top + to.height, to.left : to.left + to.width]
        np.divide(channel, np.float32(255), out=inside, dtype=np.float32)
    return planes


def infer(model: Path, images: Array, batch: int = 1) -> Array:
    """The raw output for images N x 3 x H x W, `batch` at a time, as they were exported."""
    import onnxruntime  # noqa: PLC0415  half a second

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session: Any = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    asked = session.get_inputs()[0]
    images = images.astype(np.float16) if asked.type == "tensor(float16)" else images
    filled = np.concatenate([images, np.repeat(images[-1:], -len(images) % batch, axis=0)])
    parts = [filled[at : at + batch] for at in range(0, len(filled), batch)]
    return np.concatenate([session.run(None, {asked.name: part})[0] for part in parts])[: len(images)]


def layout(shape: tuple[int, ...], classes: int | None) -> str:
    """What an output of `shape` (N x …) is: "yolov5", "yolov5u" as `decode` has them, or "suppressed", N x M x 6.

    `classes` are those that the file names, None when it names none; then the shorter side holds the channels.
    Raises LabError when it is no output of a detection model.
    """
    if len(shape) == 3:
        _, first, second = shape
        if classes is not None:
            if first == 4 + classes:
                return "yolov5u"
            # a model of one class has 6 channels too, but thousands of predictions
            if second == 6 and (classes != 1 or first <= 1000):
                return "suppressed"
            if second == 5 + classes:
                return "yolov5"
        elif first < second and first > 4:
            return "yolov5u"
        elif second > 5:
            return "suppressed" if second == 6 and first <= 1000 else "yolov5"
    named = "" if classes is None else f" for {classes} classes"
    raise LabError(f"its output has the shape {' x '.join(map(str, shape))}{named}, which no detection model has")


def decode(raw: Array, engine: str) -> tuple[Array, Array]:
    """Raw output to boxes N x P x 4 (left, top, right, bottom; pixels) and scores N x P x classes.

    yolov5 gives N x P x (4 + objectness + classes), yolov5u N x (4 + classes) x P, both with centre, width, height.
    """
    if engine == "yolov5u":
        raw = raw.transpose(0, 2, 1)
        scores = raw[..., 4:]
    else:
        scores = raw[..., 5:] * raw[..., 4:5]
    centre, half = raw[..., :2], raw[..., 2:4] / 2
    return np.concatenate([centre - half, centre + half], axis=-1), scores


def candidates(raw: Array, engine: str, confidence: float) -> tuple[Array, Array, Classes]:
    """One image's predictions of at least `confidence`, best first: boxes K x 4, scores K, classes K.

    `raw` is one row of what `decode` takes, or M x 6 (left, top, right, bottom, score, class) when `engine` is
    "suppressed". The same numbers as `decode`, but of the few predictions that count.
    """
    if engine == "suppressed":
        rows = raw[raw[:, 4] >= confidence]
        return _best_first(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.intp))
    if engine == "yolov5u":
        chosen = np.flatnonzero(raw[4:].max(axis=0) >= confidence)
        few = raw[:, chosen].T
        scores = few[:, 4:]
    else:
        few = raw[raw[:, 4] >= confidence]  # a score is the objectness times at most 1
        scores = few[:, 5:] * few[:, 4:5]
    labels = scores.argmax(axis=1)
    best = scores[np.arange(len(scores)), labels]
    sure = best >= confidence
    centre, half = few[sure, :2], few[sure, 2:4] / 2
    return _best_first(np.concatenate([centre - half, centre + half], axis=1), best[sure], labels[sure])


def _best_first(boxes: Array, scores: Array, labels: Classes) -> tuple[Array, Array, Classes]:
    order = np.argsort(-scores, kind="stable")[:CANDIDATES]
    return boxes[order], scores[order], labels[order]


def distinct(boxes: Array, labels: Classes, overlap: float, limit: int | None = None) -> Classes:
    """Greedy non-maximum suppression by class: which of the boxes K x 4, best first, stay; `limit` of them at most."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left = np.arange(len(boxes))
    kept: list[int] = []
    while len(left) and (limit is None or len(kept) < limit):
        best, left = left[0], left[1:]
        kept.append(int(best))
        near = boxes[left]
        sides = np.minimum(near[:, 2:], boxes[best, 2:]) - np.maximum(near[:, :2], boxes[best, :2])
        both = np.clip(sides, 0, None).prod(axis=1)
        # not a quotient: a box without area has none
        left = left[(both <= overlap * (areas[left] + areas[best] - both)) | (labels[left] != labels[best])]
    return np.array(kept, np.intp)


def suppress(boxes: Array, scores: Array, confidence: float = 0.25, overlap: float = 0.45) -> list[Detection]:
    """Non-maximum suppression by class of one image's P x 4 boxes and P x classes scores, best first."""
    labels, best = scores.argmax(axis=1), scores.max(axis=1)
    sure = best >= confidence
    some, sums, classes = _best_first(boxes[sure], best[sure], labels[sure])
    return [
        Detection(
            (float(some[i][0]), float(some[i][1]), float(some[i][2]), float(some[i][3])),
            int(classes[i]),
            float(sums[i]),
        )
        for i in distinct(some, classes, overlap)
    ]


def iou(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    size = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    both = float(size[0] * size[1])
    total = float((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])) - both
    return both / total if total > 0 else 0.0

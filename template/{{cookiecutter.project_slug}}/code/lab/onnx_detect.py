"""Detect with an exported ONNX file in onnxruntime: letterbox, decode, non-maximum suppression, in numpy alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
GREY = 114  # the padding colour of both engines


@dataclass(frozen=True)
class Detection:
    """A box in pixels of the network's input (left, top, right, bottom), with class and score."""

    box: tuple[float, float, float, float]
    label: int
    score: float


def letterbox(image: npt.NDArray[np.uint8], size: int | tuple[int, int]) -> Array:
    """A BGR picture, scaled and padded to `size` (both sides, or height and width); 3 x H x W in RGB, 0 to 1."""
    rows, columns = (size, size) if isinstance(size, int) else size
    scale = min(rows / image.shape[0], columns / image.shape[1])
    height, width = round(image.shape[0] * scale), round(image.shape[1] * scale)
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR) if scale != 1 else image
    padded = np.full((rows, columns, 3), GREY, np.uint8)
    top, left = (rows - height) // 2, (columns - width) // 2
    padded[top : top + height, left : left + width] = resized
    return np.ascontiguousarray(padded[:, :, ::-1].transpose(2, 0, 1), np.float32) / np.float32(255)


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


def suppress(boxes: Array, scores: Array, confidence: float = 0.25, overlap: float = 0.45) -> list[Detection]:
    """Greedy non-maximum suppression by class of one image's P x 4 boxes and P x classes scores, best first."""
    labels = scores.argmax(axis=1)
    best = scores.max(axis=1)
    order = np.argsort(-best)
    order = order[best[order] >= confidence]
    kept: list[Detection] = []
    for index in order:
        box, label = boxes[index], int(labels[index])
        if all(label != other.label or iou(box, np.array(other.box)) <= overlap for other in kept):
            kept.append(
                Detection((float(box[0]), float(box[1]), float(box[2]), float(box[3])), label, float(best[index]))
            )
    return kept


def iou(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    size = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    both = float(size[0] * size[1])
    total = float((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])) - both
    return both / total if total > 0 else 0.0

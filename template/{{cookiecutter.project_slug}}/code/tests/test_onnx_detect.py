import numpy as np
import pytest

from lab.onnx_detect import decode, iou, letterbox, suppress


def test_letterbox_keeps_the_shape_and_pads_with_grey() -> None:
    blob = letterbox(np.full((50, 100, 3), (255, 0, 0), np.uint8), 64)  # blue, wide
    assert blob.shape == (3, 64, 64)
    assert blob.dtype == np.float32
    assert np.allclose(blob[:, 0, 0], 114 / 255)
    assert np.allclose(blob[:, 32, 32], (0, 0, 1))  # RGB
    assert np.count_nonzero(blob[2, :, 32] == 1) == 32


def test_both_layouts_decode_to_the_same() -> None:
    classic = np.array([[[50, 40, 20, 10, 0.5, 0.8, 0.2]]], np.float32)
    boxes, scores = decode(classic, "yolov5")
    other = np.array([[[50, 40, 20, 10, 0.4, 0.1]]], np.float32).transpose(0, 2, 1)
    boxes_u, scores_u = decode(other, "yolov5u")
    assert boxes.tolist() == boxes_u.tolist() == [[[40, 35, 60, 45]]]
    assert scores == pytest.approx(scores_u)


def test_suppression_is_by_class_and_keeps_the_best() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [1, 1, 11, 11], [50, 50, 60, 60]], np.float32)
    scores = np.array([[0.6, 0], [0.9, 0], [0, 0.7], [0.1, 0]], np.float32)
    kept = suppress(boxes, scores)
    assert [(d.label, round(d.score, 3)) for d in kept] == [(0, 0.9), (1, 0.7)]


def test_iou() -> None:
    a, b = np.array([0, 0, 2, 2]), np.array([1, 0, 3, 2])
    assert iou(a, b) == pytest.approx(1 / 3)
    assert iou(a, a + 5) == 0

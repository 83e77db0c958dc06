"""Boxes follow the numbers: worked out by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from lab.fast.draws import Draws
from lab.fast.labels import YOLOV5, Labels, gathered, moved

SIDE = 100
SIZES = np.array([[50, 100], [100, 100], [51, 100]])  # height, width


def four(scale: float = 1.0, flip: tuple[bool, bool] = (False, False), row: int = 1) -> Draws:
    """Four tiles of one image around (100, 100) on a canvas of 200; its middle in the middle of the picture."""
    high, wide = SIZES[row]
    shift = np.array([[100 - wide, 100 - high], [100, 100 - high], [100 - wide, 100], [100, 100]])
    matrix = np.array([[scale, 0, 50 - 100 * scale], [0, scale, 50 - 100 * scale], [0, 0, 1]])
    return Draws(
        side=SIDE,
        row=np.full(4, row),
        layer=np.zeros(4, np.int64),
        place=np.concatenate([shift, shift + np.array([wide, high])], 1),
        shift=shift,
        canvas=np.array([[200, 200]]),
        matrix=matrix[None],
        picture=np.array([0]),
        share=np.ones(1),
        gain=np.ones((1, 3)),
        flip=np.array([flip]),
        scale=np.array([scale]),
    )


def alone(row: int) -> Draws:
    shift = np.array([[0, (SIDE - SIZES[row, 0]) // 2]])
    return dataclasses.replace(
        four(),
        row=np.array([row]),
        layer=np.array([0]),
        shift=shift,
        place=np.concatenate([shift, shift + SIZES[row][::-1]], 1),
        canvas=np.array([[SIDE, SIDE]]),
        matrix=np.eye(3)[None],
    )


def labels(*rows: list[float], outlines: Any = ()) -> Labels:
    """The same labels for each image."""
    return gathered([np.array(rows, np.float32).reshape(-1, 5)] * 3, [outlines] * 3)


def test_a_box_goes_to_each_tile_and_outside_ones_are_dropped() -> None:
    found = moved(four(scale=0.5), labels([7, 0.5, 0.5, 0.2, 0.4]), SIZES)
    assert found.dtype == np.float32
    assert np.allclose(
        found,
        [
            [0, 7, 0.25, 0.25, 0.1, 0.2],
            [0, 7, 0.75, 0.25, 0.1, 0.2],
            [0, 7, 0.25, 0.75, 0.1, 0.2],
            [0, 7, 0.75, 0.75, 0.1, 0.2],
        ],
    )
    # at scale 1 the centres lie on the corners of the picture: a quarter of each box is left
    assert len(moved(four(), labels([7, 0.5, 0.5, 0.2, 0.4]), SIZES)) == 4
    # each of these lies in what only one tile shows; the last in what none does
    seen = moved(four(), labels([1, 0.8, 0.8, 0.1, 0.1], [2, 0.2, 0.8, 0.1, 0.1], [3, 0.5, 0.97, 0.1, 0.01]), SIZES)
    assert seen[:, 1].tolist() == [1, 2]


def test_what_is_left_of_a_box_decides() -> None:
    # of the tile at the top left the picture shows x and y from 50 on: the box from 40 to 60 leaves a quarter
    quarter = labels([0, 0.5, 0.5, 0.2, 0.2])
    assert len(moved(four(), quarter, SIZES)) == 4
    assert not len(moved(four(), quarter, SIZES, dataclasses.replace(YOLOV5, left=0.26)))
    # as wide as 2 pixels is too narrow, however much is left of it
    assert not len(moved(four(scale=0.5), labels([0, 0.5, 0.5, 0.04, 0.5]), SIZES))
    assert len(moved(four(scale=0.5), labels([0, 0.5, 0.5, 0.0402, 0.5]), SIZES)) == 4
    slim = labels([0, 0.5, 0.5, 0.06, 0.6])
    assert not len(moved(four(scale=0.5), slim, SIZES, dataclasses.replace(YOLOV5, slimmest=9)))
    # the zoom that was drawn is what a box is measured against, whatever the matrix says
    assert not len(moved(dataclasses.replace(four(), scale=np.array([2.0])), quarter, SIZES))
    assert len(moved(dataclasses.replace(four(), scale=None), quarter, SIZES)) == 4


def test_a_box_is_cut_at_the_edge_of_the_picture() -> None:
    found = moved(four(), labels([0, 0.5, 0.5, 0.2, 0.2]), SIZES)
    assert np.allclose(found[0], [0, 0, 0.05, 0.05, 0.1, 0.1])
    last = found[3, 2:] * SIDE
    assert last[0] + last[2] / 2 == pytest.approx(SIDE - 1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("flip", "expected"), [((True, False), (0.25, 0.7)), ((False, True), (0.75, 0.3)), ((True, True), (0.75, 0.7))]
)
def test_flips(flip: tuple[bool, bool], expected: tuple[float, float]) -> None:
    found = moved(four(scale=0.5, flip=flip), labels([0, 0.5, 0.6, 0.2, 0.2]), SIZES)
    assert np.allclose(found[0, 2:4], expected)


def test_a_letterboxed_image_moves_its_boxes_by_the_exact_half() -> None:
    # 51 rows in 100: the pixels begin at 24, the boxes at 24.5, in both engines
    assert np.allclose(moved(alone(2), labels([0, 0.5, 0.5, 0.5, 1]), SIZES), [[0, 0, 0.5, 0.5, 0.5, 0.51]])
    assert np.allclose(moved(alone(0), labels([0, 0.5, 0.5, 0.5, 1]), SIZES), [[0, 0, 0.5, 0.5, 0.5, 0.5]])


def test_boxes_keep_the_order_of_pictures_layers_tiles_and_labels() -> None:
    draws = four(scale=0.5)
    pictures = dataclasses.replace(
        draws,
        row=np.tile(draws.row, 3),
        layer=np.repeat([0, 1, 2], 4),
        place=np.tile(draws.place, (3, 1)),
        shift=np.tile(draws.shift, (3, 1)),
        canvas=np.tile(draws.canvas, (3, 1)),
        matrix=np.tile(draws.matrix, (3, 1, 1)),
        picture=np.array([0, 1, 1]),
        share=np.array([1, 0.5, 0.5]),
        gain=np.ones((2, 3)),
        flip=np.array([[False, False], [False, True]]),
        scale=np.tile(draws.scale, 3),
    )
    found = moved(pictures, labels([1, 0.5, 0.5, 0.2, 0.2], [2, 0.5, 0.5, 0.3, 0.3]), SIZES)
    assert found[:, 0].tolist() == [0] * 8 + [1] * 16
    assert found[:, 1].tolist() == [1, 2] * 12
    assert np.allclose(found[8:16, 2], 1 - found[:8, 2])


def test_no_labels_at_all() -> None:
    for empty in (labels(), gathered([], [])):
        draws = four()
        if not len(empty.first) - 1:
            draws = dataclasses.replace(draws, row=draws.row[:0], layer=draws.layer[:0], shift=draws.shift[:0])
        found = moved(draws, empty, SIZES)
        assert found.shape == (0, 6) and found.dtype == np.float32


def test_an_outline_gives_the_box_of_its_part_inside_the_picture() -> None:
    # a diamond around (50, 50) in the image; only the corner of it that points to the canvas' middle is seen
    diamond = np.array([[0.5, 0.1], [0.9, 0.5], [0.5, 0.9], [0.1, 0.5]], np.float32)
    outlined = labels([0, 0.5, 0.5, 0.8, 0.8], outlines=[diamond])
    found = moved(four(), outlined, SIZES)
    # the tile at the top left shows x, y from 50: the part of the diamond there reaches 40 pixels far
    assert np.allclose(found[0, 2:] * SIDE, [20, 20, 40, 40], atol=0.2)
    whole = moved(four(scale=0.5), outlined, SIZES)
    assert np.allclose(whole[0, 2:] * SIDE, [25, 25, 40, 40], atol=0.2)
    # turned, a box around the turned diamond is smaller than one around the turned box
    draws = four(scale=0.5)
    turn = np.array([[np.cos(0.7), np.sin(0.7), 0], [-np.sin(0.7), np.cos(0.7), 0], [0, 0, 1]])
    turned = dataclasses.replace(draws, matrix=draws.matrix @ _about(turn, 100))
    boxes, lines = moved(turned, labels([0, 0.5, 0.5, 0.8, 0.8]), SIZES), moved(turned, outlined, SIZES)
    assert lines[:, 4:].prod(1).sum() < 0.8 * boxes[:, 4:].prod(1).sum()


def test_outlines_count_only_if_all_of_a_mosaic_have_one() -> None:
    diamond = np.array([[0.5, 0.1], [0.9, 0.5], [0.5, 0.9], [0.1, 0.5]], np.float32)
    box = np.array([[0, 0.5, 0.5, 0.8, 0.8]], np.float32)
    draws = dataclasses.replace(four(), row=np.array([1, 1, 1, 2]))
    mixed = gathered([box, box, box], [[], [diamond], []])
    plain = gathered([box, box, box])
    assert np.array_equal(moved(draws, mixed, SIZES[[0, 1, 1]]), moved(draws, plain, SIZES[[0, 1, 1]]))
    # an image without labels has nothing to outline, and does not count
    empty = gathered([box, box, box[:0]], [[], [diamond], []])
    bare = gathered([box, box, box[:0]])
    assert not np.allclose(moved(draws, empty, SIZES[[0, 1, 1]]), moved(draws, bare, SIZES[[0, 1, 1]]))
    # alone, YOLOv5 moves the box
    assert np.array_equal(moved(alone(1), mixed, SIZES), moved(alone(1), plain, SIZES))


def _about(turn: Any, centre: float) -> Any:
    there, back = np.eye(3), np.eye(3)
    there[:2, 2], back[:2, 2] = -centre, centre
    return back @ turn @ there

"""What the fast path's geometry promises for any numbers: tried with many."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.fast.draw_yolov5 import draw
from lab.fast.draws import Draws
from lab.fast.labels import gathered, moved
from lab.fast.paint import _between

SIDE = 64
SIZES = np.array([[64, 36], [36, 64], [64, 64], [17, 64], [64, 65]])
NO_CHANGE = {"hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0, "perspective": 0.0, "flipud": 0.0, "fliplr": 0.0}
edges = st.integers(0, 12)
rectangles = st.tuples(edges, edges, edges, edges)
whole_rectangles = rectangles.filter(lambda sides: sides[0] < sides[2] and sides[1] < sides[3])


@st.composite
def hyps(draw_value: st.DrawFn) -> dict[str, float]:
    """Augmentation of any strength, without flips and colours."""
    some = {
        "degrees": st.floats(0, 180),
        "translate": st.floats(0, 0.9),
        "scale": st.floats(0, 0.9),
        "shear": st.floats(0, 30),
        "mosaic": st.sampled_from([0.0, 0.5, 1.0]),
        "mixup": st.sampled_from([0.0, 0.5, 1.0]),
    }
    return {**NO_CHANGE, **{name: draw_value(values) for name, values in some.items()}}


def drawn(hyp: dict[str, float], seed: int) -> Draws:
    chance, numbers = random.Random(seed), np.random.RandomState(seed)
    return draw(list(range(5)), SIZES, range(5), hyp, SIDE, True, chance, numbers)


@settings(max_examples=60, deadline=None)
@given(whole_rectangles, st.lists(rectangles, max_size=4))
def test_tiles_and_what_is_between_them_cover_a_rectangle_once(
    whole: tuple[int, int, int, int], tiles: list[tuple[int, int, int, int]]
) -> None:
    count = np.zeros((12, 12), int)
    covered = np.zeros((12, 12), bool)
    for x1, y1, x2, y2 in tiles:
        covered[y1:y2, x1:x2] = True
    for x1, y1, x2, y2 in _between(whole, tiles):
        assert x1 < x2
        assert y1 < y2
        count[y1:y2, x1:x2] += 1
    inside = np.zeros((12, 12), bool)
    inside[whole[1] : whole[3], whole[0] : whole[2]] = True
    assert (count == (inside & ~covered)).all()


@settings(max_examples=60, deadline=None)
@given(hyps(), st.integers(0, 99))
def test_a_tile_stays_on_its_canvas_and_within_its_image(hyp: dict[str, float], seed: int) -> None:
    draws = drawn(hyp, seed)
    size, canvas = SIZES[draws.row][:, ::-1], draws.canvas[draws.layer]
    assert (draws.place[:, :2] >= np.maximum(draws.shift, 0)).all()
    assert (draws.place[:, 2:] <= np.minimum(draws.shift + size, canvas)).all()
    assert (np.diff(draws.layer) >= 0).all()
    assert (np.diff(draws.picture) >= 0).all()
    assert np.allclose(np.bincount(draws.picture, weights=draws.share), 1)


@settings(max_examples=60, deadline=None)
@given(hyps(), st.integers(0, 99), st.integers(0, 9))
def test_boxes_stay_in_the_picture_and_flip_with_it(hyp: dict[str, float], seed: int, boxes: int) -> None:
    chance = np.random.default_rng(seed)
    rows = [np.concatenate([chance.integers(0, 9, (boxes, 1)), chance.random((boxes, 4))], 1) for _ in SIZES]
    labels, draws = gathered(rows), drawn(hyp, seed)
    found = moved(draws, labels, SIZES)
    low, high = found[:, 2:4] - found[:, 4:6] / 2, found[:, 2:4] + found[:, 4:6] / 2
    assert (low >= -1e-6).all()
    assert (high <= 1 + 1e-6).all()
    assert (found[:, 4:] * SIDE > 2 - 2e-3).all()
    turned = moved(dataclasses.replace(draws, flip=np.ones((5, 2), bool)), labels, SIZES)
    assert np.allclose(turned[:, 2:4], 1 - found[:, 2:4])
    assert np.array_equal(np.delete(turned, [2, 3], 1), np.delete(found, [2, 3], 1))

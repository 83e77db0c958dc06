"""The random numbers of a batch, by themselves: reproducible, from the generators given, with partners as asked for."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np

from lab.fast.draw_yolov5 import draw
from lab.fast.draws import Draws

SIDE = 64
HYP = {
    "hsv_h": 0.015, "hsv_s": 0.7, "hsv_v": 0.4, "degrees": 5.0, "translate": 0.1, "scale": 0.5, "shear": 2.0,
    "perspective": 0.0, "flipud": 0.2, "fliplr": 0.5, "mosaic": 1.0, "mixup": 0.0,
}  # fmt: skip
SIZES = np.array([[64, 36], [36, 64], [64, 64], [17, 64], [64, 65], [64, 63]])


def drawn(indices: list[int], seed: int = 0, partners: Any = range(6), **changed: float) -> Draws:
    mosaic = bool(changed.pop("think_of_mosaic", True))
    chance, numbers = random.Random(seed), np.random.RandomState(seed)
    return draw(indices, SIZES, partners, {**HYP, **changed}, SIDE, mosaic, chance, numbers)


def same(one: Draws, other: Draws) -> bool:
    return all(np.array_equal(value, getattr(other, name)) for name, value in vars(one).items())


def test_a_seed_gives_its_numbers_and_a_batch_those_of_its_pictures_one_by_one() -> None:
    whole = drawn([0, 1, 2], mosaic=0.5, mixup=0.5)
    assert same(whole, drawn([0, 1, 2], mosaic=0.5, mixup=0.5))
    assert not same(whole, drawn([0, 1, 2], seed=1, mosaic=0.5, mixup=0.5))
    chance, numbers = random.Random(0), np.random.RandomState(0)
    apart = [
        draw([index], SIZES, range(6), {**HYP, "mosaic": 0.5, "mixup": 0.5}, SIDE, True, chance, numbers)
        for index in (0, 1, 2)
    ]
    assert np.array_equal(whole.matrix, np.concatenate([draws.matrix for draws in apart]))
    assert np.array_equal(whole.row, np.concatenate([draws.row for draws in apart]))
    assert np.array_equal(whole.gain, np.concatenate([draws.gain for draws in apart]))


def test_given_generators_leave_those_of_the_process_alone() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    drawn([0, 1, 2, 3], mixup=1.0)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[index]


def test_four_tiles_touch_the_centre_and_stay_on_the_canvas() -> None:
    draws = drawn(list(range(6)) * 5)
    assert len(draws.picture) == 30 and len(draws.row) == 120
    place = draws.place.reshape(-1, 4, 4)
    centre = place[:, 0, 2:]
    assert (place[:, 3, :2] == centre).all() and (place[:, 1, 0] == centre[:, 0]).all()
    assert (place[:, 2, 1] == centre[:, 1]).all()
    assert (place[..., :2] >= 0).all() and (place[..., 2:] <= 2 * SIDE).all()
    size = SIZES[draws.row][:, ::-1]
    assert (draws.place[:, :2] >= draws.shift).all() and (draws.place[:, 2:] <= draws.shift + size).all()


def test_the_picture_itself_is_among_its_tiles_and_partners_come_from_where_they_may() -> None:
    draws = drawn([3, 4] * 10, partners=[5])
    rows = draws.row.reshape(-1, 4)
    assert all(sorted(four) == sorted([index, 5, 5, 5]) for four, index in zip(rows.tolist(), [3, 4] * 10, strict=True))


def test_a_ring_offers_the_last_images_only() -> None:
    ring: deque[int] = deque(maxlen=2)
    rows = drawn([0, 1, 2, 3, 4], partners=ring, mixup=0.5)
    assert list(ring) == [3, 4]
    for picture, layer in zip(rows.picture[rows.layer].tolist(), rows.row.tolist(), strict=True):
        assert layer in (picture, picture - 1)


def test_mixup_has_two_layers_that_share_the_picture() -> None:
    draws = drawn([0, 1], mixup=1.0)
    assert draws.picture.tolist() == [0, 0, 1, 1]
    assert np.allclose(draws.share.reshape(-1, 2).sum(1), 1)


def test_one_image_fills_a_picture_without_mosaic() -> None:
    for draws in (drawn([0, 4, 3], mosaic=0.0), drawn([0, 4, 3], think_of_mosaic=False)):
        assert draws.row.tolist() == [0, 4, 3]
        assert draws.share.tolist() == [1, 1, 1]
        assert draws.place[0].tolist() == [14, 0, 50, 64]
        assert draws.place[2].tolist() == [0, 23, 64, 40]  # half of 47 rounds down
        assert draws.canvas.tolist() == [[64, 64], [65, 65], [64, 64]]  # an image a pixel too long is shrunk


def test_without_gains_colours_stay() -> None:
    assert (drawn([0], hsv_h=0.0, hsv_s=0.0, hsv_v=0.0).gain == 1).all()
    assert (drawn([0], hsv_h=0.0).gain[0, 1:] != 1).all()

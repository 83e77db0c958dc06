"""What the device gets to paint from: numbers in fixed shapes, and only those pixels that a picture shows."""

from dataclasses import replace

import made_draws
import numpy as np
import pytest

from lab.fast import sheet


def filled(draws: sheet.Draws, store: sheet.Store, crop: bool = False, **shape: int) -> tuple[dict, sheet.Crops | None]:
    of = sheet.Shape(draws.side, **{"pictures": len(draws), "layers": 2, "perspective": True, **shape})
    array = np.full(of.size, 255, np.uint8)  # what the batch before left
    crops = sheet.fill(of, array, draws, store, crop)
    return of.views(array), crops


def test_every_array_lies_on_its_own_aligned_bytes() -> None:
    shape = sheet.Shape(64, 3, 2, 4, wide=True)
    ends = 0
    for start, kind, of in shape.fields.values():
        assert start % sheet.ALIGN == 0
        assert start >= ends
        ends = start + int(np.prod(of)) * np.dtype(kind).itemsize
    assert ends <= shape.size
    assert shape.views(np.zeros(shape.size, np.uint8))["base"].dtype == np.int64


def test_what_a_batch_lacks_is_empty() -> None:
    store = made_draws.store()
    draws = made_draws.draws(store, 2, mosaics=0.0)
    views, _ = filled(draws, store, pictures=5)
    assert (views["share"] == np.eye(1, 2)[0] * np.array([1, 1, 0, 0, 0])[:, None]).all()
    assert not views["place"][2:].any()
    assert not views["place"][:, :, 1:].any()
    assert views["coloured"].tolist() == [1, 1, 0, 0, 0]


def test_address_of_a_tiles_pixels() -> None:
    store = made_draws.store()
    draws = made_draws.draws(store, 3, mixup=1.0)
    views, _ = filled(draws, store)
    for tile in range(len(draws.row)):
        layer = draws.layer[tile]
        first = np.flatnonzero(draws.layer == layer)[0]
        at = draws.picture[layer], layer % 2, tile - first
        x, y = draws.place[tile, :2]
        address = views["base"][at] + y * views["pitch"][at] + x * 3
        image = store.image(int(draws.row[tile]))
        inside = image[y - draws.shift[tile, 1], x - draws.shift[tile, 0]]
        assert store.pixels[address : address + 3].tolist() == inside.tolist()


def test_crops_are_the_bytes_of_the_images_and_fewer() -> None:
    store = made_draws.store()
    draws = made_draws.draws(store, 4, mixup=0.5)
    _, crops = filled(draws, store, crop=True)
    assert crops is not None
    shape = sheet.Shape(draws.side, 4, 2)
    whole = (store.height * store.width * 3)[draws.row].sum()
    assert 0 < crops.size < whole
    assert crops.size <= sheet.most_bytes(shape, store)
    to = np.zeros(crops.size, np.uint8)
    parts = crops.parts(3)
    assert [first for first, _ in parts] == [0, *(last for _, last in parts[:-1])]
    assert parts[-1][1] == len(crops.row)
    for first, last in parts:
        crops.copy(store, to, first, last)
    assert (np.diff(store.offset[crops.row]) >= 0).all()  # a disk is read forwards
    for crop, (x1, y1, x2, y2) in enumerate(crops.box.tolist()):
        start, size = int(crops.start[crop]), (y2 - y1) * (x2 - x1) * 3
        want = store.image(int(crops.row[crop]))[y1:y2, x1:x2]
        assert (to[start : start + size] == want.reshape(-1)).all()


def test_tables_are_the_engines() -> None:
    gain = np.array([[1.01, 1.7, 0.6], [0.99, 0.3, 1.4]])
    levels = np.arange(256.0)
    for number, (hue, saturation, value) in enumerate(gain):
        ours = sheet.scaled_hue(gain)[number]
        assert (ours[0] == ((levels * hue) % 180).astype(np.uint8)).all()
        assert (ours[1] == np.clip(levels * saturation, 0, 255).astype(np.uint8)).all()
        assert (ours[2] == np.clip(levels * value, 0, 255).astype(np.uint8)).all()
        moved = sheet.shifted_hue(gain)[number]
        assert abs(moved[0].astype(int) - ((levels + (hue - 1) * 180) % 180).astype(int)).max() <= 1
        assert moved[1, 0] == 0


def test_a_singular_matrix_is_inverted_to_nothing() -> None:
    matrices = np.array([np.eye(3), np.diag([0.0, 2.0, 1.0]), np.diag([2.0, 4.0, 1.0])])
    assert (sheet.inverse(matrices) == [np.eye(3), np.zeros((3, 3)), np.diag([0.5, 0.25, 1.0])]).all()


def test_refuses_what_does_not_fit() -> None:
    store = made_draws.store()
    draws = made_draws.draws(store, 2, mixup=1.0, perspective=1e-3)
    with pytest.raises(ValueError, match="do not fit"):
        filled(draws, store, layers=1)
    with pytest.raises(ValueError, match="do not fit"):
        filled(draws, store, tiles=1)
    with pytest.raises(ValueError, match="do not fit"):
        filled(draws, store, pictures=1)
    with pytest.raises(ValueError, match="perspective"):
        filled(draws, store, perspective=False)
    with pytest.raises(ValueError, match="of a store of 9 images"):
        filled(replace(draws, row=draws.row + 5), store)
    with pytest.raises(ValueError, match="goes beyond its image"):
        filled(replace(draws, shift=draws.shift + 1), store)

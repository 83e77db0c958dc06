"""YOLOv5's random numbers for training pictures: its distributions, in the order in which it draws them.

The order is that of LoadImagesAndLabels.__getitem__, load_mosaic, random_perspective, mixup and augment_hsv: with the
state of its generators these are its numbers. Pictures and boxes need no chance beyond them.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lab.fast.draws import Draws

MIXUP = 32.0  # both parameters of the beta distribution that a share is drawn from


def draw(
    indices: Sequence[int],
    sizes: Any,
    partners: Sequence[int],
    hyp: Mapping[str, float],
    side: int,
    mosaic: bool = True,
    chance: Any = random,
    numbers: Any = np.random,
) -> Draws:
    """The numbers of one picture for each of `indices`, which count the images of the data set.

    `sizes`, int64 (N, 2): height and width of the images as stored, the longer side about `side` pixels.
    `partners` are what a mosaic and mixup choose from; a deque (a ring of the last images) takes each index first.
    `mosaic`: whether YOLOv5 would think of one, that is, not with --rect. `chance`: `random` or a random.Random;
    `numbers`: `numpy.random` or a RandomState.
    """
    gains = np.array([hyp["hsv_h"], hyp["hsv_s"], hyp["hsv_v"]])
    tiles: list[list[int]] = []  # of each layer: four, or one
    centres: list[tuple[int, int]] = []
    warps: list[list[float]] = []
    picture: list[int] = []
    share: list[float] = []
    gain, flip = np.ones((len(indices), 3)), np.zeros((len(indices), 2), bool)

    def four(index: int) -> None:
        y, x = (int(chance.uniform(side // 2, 2 * side - side // 2)) for _ in range(2))
        rows = [index, *chance.choices(partners, k=3)]
        chance.shuffle(rows)
        tiles.append(rows)
        centres.append((x, y))
        warps.append(_warp(hyp, chance))

    for number, index in enumerate(indices):
        if isinstance(partners, deque):
            partners.append(index)
        if mosaic and chance.random() < hyp["mosaic"]:
            four(index)
            if chance.random() < hyp["mixup"]:
                four(chance.choice(partners))
                first = numbers.beta(MIXUP, MIXUP)
                picture += [number, number]
                share += [first, 1 - first]
            else:
                picture.append(number)
                share.append(1.0)
        else:
            tiles.append([index])
            centres.append((0, 0))
            warps.append(_warp(hyp, chance))
            picture.append(number)
            share.append(1.0)
        if gains.any():
            gain[number] = numbers.uniform(-1, 1, 3) * gains + 1
        flip[number] = chance.random() < hyp["flipud"], chance.random() < hyp["fliplr"]

    count = np.array([len(rows) for rows in tiles], np.int64)
    row = np.array([int(one) for rows in tiles for one in rows], np.int64)
    layer = np.repeat(np.arange(len(tiles)), count)
    size = np.asarray(sizes, np.int64).reshape(-1, 2)[row, ::-1]  # width, height
    whole = count == 1
    canvas = np.full((len(tiles), 2), 2 * side, np.int64)
    shift = _mosaic_shift(np.array(centres, np.int64).reshape(-1, 2)[layer], size, _corner(count))
    matrix, scale = matrices(np.array(warps).reshape(-1, 8), np.where(whole, side, 2 * side)[:, None], side)
    alone = whole[layer]
    if alone.any():
        canvas[whole], shift[alone], boxed, zoom = _letterbox(size[alone], side)
        matrix[whole] = matrix[whole] @ boxed
        scale[whole] *= zoom
    place = np.concatenate([np.maximum(shift, 0), np.minimum(shift + size, canvas[layer])], 1)
    return Draws(
        side=side,
        row=row,
        layer=layer,
        place=place,
        shift=shift,
        canvas=canvas,
        matrix=matrix,
        picture=np.array(picture, np.int64),
        share=np.array(share),
        gain=gain,
        flip=flip,
        scale=scale,
    )


def _warp(hyp: Mapping[str, float], chance: Any) -> list[float]:
    """Perspective x and y, degrees, scale, shear x and y in degrees, translation x and y as shares of the side."""
    width = {key: hyp[key] for key in ("perspective", "degrees", "scale", "shear", "translate")}
    return [
        chance.uniform(centre - width[key], centre + width[key])
        for key, centre in (
            ("perspective", 0),
            ("perspective", 0),
            ("degrees", 0),
            ("scale", 1),
            ("shear", 0),
            ("shear", 0),
            ("translate", 0.5),
            ("translate", 0.5),
        )
    ]


def _corner(count: Any) -> Any:
    """0 to 3 for the tiles of a mosaic: top left, top right, bottom left, bottom right."""
    return np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)


def _mosaic_shift(centre: Any, size: Any, corner: Any) -> Any:
    """Each tile touches the centre with one corner."""
    return centre - size * np.stack([corner % 2 == 0, corner < 2], 1)


def matrices(warps: Any, canvas: Any, side: int) -> tuple[Any, Any]:
    """The matrix of each layer, (L, 3, 3), and its scale: to the centre, perspective, rotate, shear, move back.

    `warps` (L, 8): perspective x and y, degrees, scale, shear x and y in degrees, translation x and y as shares of the
    side. `canvas` (L, 2): widths and heights, or (L, 1) where they are equal. Both engines multiply in this order.
    """
    to_x, to_y, degrees, scale, shear_x, shear_y, move_x, move_y = warps.T
    turn = np.deg2rad(degrees)
    centre, tilt, zoom, lean, back = (np.tile(np.eye(3), (len(warps), 1, 1)) for _ in range(5))
    centre[:, :2, 2] = -canvas / 2
    tilt[:, 2, 0], tilt[:, 2, 1] = to_x, to_y
    zoom[:, 0, 0] = zoom[:, 1, 1] = scale * np.cos(turn)
    zoom[:, 0, 1] = scale * np.sin(turn)
    zoom[:, 1, 0] = -zoom[:, 0, 1]
    lean[:, 0, 1], lean[:, 1, 0] = np.tan(np.deg2rad(shear_x)), np.tan(np.deg2rad(shear_y))
    back[:, 0, 2], back[:, 1, 2] = move_x * side, move_y * side
    return back @ lean @ zoom @ tilt @ centre, scale.copy()


def _letterbox(size: Any, side: int) -> tuple[Any, Any, Any, Any]:
    """Canvas, shift, matrix and zoom of images that fill a picture each.

    Nearly always the longer side is `side` and the matrix the identity. YOLOv5 rounds up when it resizes, so that an
    image may be a pixel longer; here the matrix then shrinks it.
    """
    zoom = side / size.max(1)
    pad = (side - np.round(size * zoom[:, None])) / 2
    canvas = np.repeat(size.max(1)[:, None], 2, 1)
    half = (canvas - size) / 2
    shift = np.round(half - 0.1).astype(np.int64)
    matrix = np.tile(np.eye(3), (len(size), 1, 1))
    matrix[:, 0, 0] = matrix[:, 1, 1] = zoom
    matrix[:, :2, 2] = pad - half * zoom[:, None]
    return canvas, shift, matrix, zoom

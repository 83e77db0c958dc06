"""Random stores and draws, and the pictures that OpenCV makes of them by way of a whole canvas."""

from typing import Any

import cv2
import numpy as np

from lab.fast.draws import GREY, Draws
from lab.fast.store import Store, in_memory


def store(count: int = 9, side: int = 64, seed: int = 0) -> Store:
    """Smooth images whose longer side is `side`, so that parts of a pixel hardly matter."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        width, height = (side, int(rng.integers(side // 2, side + 1)))[:: int(rng.choice([-1, 1]))]
        coarse = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
        images.append(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
    return in_memory([f"/images/{number}.jpg" for number in range(count)], images)


def matrix(rng: Any, canvas: tuple[int, int], side: int, perspective: float = 0.0, degrees: float = 20.0) -> Any:
    """Centre, perspective, rotation and scale, shear, translation: what both engines multiply."""
    centre, tilt, turn, shear, move = np.eye(3), np.eye(3), np.eye(3), np.eye(3), np.eye(3)
    centre[:2, 2] = -canvas[0] / 2, -canvas[1] / 2
    tilt[2, :2] = rng.uniform(-perspective, perspective, 2)
    turn[:2] = cv2.getRotationMatrix2D((0, 0), rng.uniform(-degrees, degrees), rng.uniform(0.5, 1.5))
    shear[0, 1], shear[1, 0] = rng.uniform(-0.1, 0.1, 2)
    move[:2, 2] = rng.uniform(0.4, 0.6, 2) * side
    return move @ shear @ turn @ tilt @ centre


def mosaic(rng: Any, have: Store, rows: Any, side: int) -> tuple[Any, Any]:
    """Place and shift of four images that meet in a point of a canvas of 2 side x 2 side."""
    middle_x, middle_y = (int(v) for v in rng.uniform(side / 2, 3 * side / 2, 2))
    places, shifts = [], []
    for number, row in enumerate(rows):
        height, width = int(have.height[row]), int(have.width[row])
        shift = middle_x - width * (number % 2 == 0), middle_y - height * (number < 2)
        places.append(
            (max(shift[0], 0), max(shift[1], 0), min(shift[0] + width, 2 * side), min(shift[1] + height, 2 * side))
        )
        shifts.append(shift)
    return places, shifts


def draws(
    have: Store,
    pictures: int = 4,
    seed: int = 0,
    mosaics: float = 1.0,
    mixup: float = 0.0,
    perspective: float = 0.0,
    gains: bool = True,
    flips: bool = True,
    degrees: float = 20.0,
    rows: Any = None,
) -> Draws:
    """A random batch; `rows` are the first images of the pictures."""
    rng = np.random.default_rng(seed)
    side = have.side
    row, layer, place, shift, canvas, matrices, picture, share = ([] for _ in range(8))
    for number in range(pictures):
        layers = 1 + int(rng.random() < mixup)
        first = rng.beta(8.0, 8.0) if layers == 2 else 1.0
        for level in range(layers):
            if rng.random() < mosaics:
                some = rng.integers(0, len(have), 4)
                if rows is not None and level == 0:
                    some[0] = rows[number]
                places, shifts = mosaic(rng, have, some, side)
                size = 2 * side, 2 * side
            else:
                one = int(rng.integers(0, len(have))) if rows is None or level else int(rows[number])
                some, size = np.array([one]), (side, side)
                x, y = (side - int(have.width[one])) // 2, (side - int(have.height[one])) // 2
                places, shifts = [(x, y, x + int(have.width[one]), y + int(have.height[one]))], [(x, y)]
            layer += [len(canvas)] * len(some)
            row += some.tolist()
            place += places
            shift += shifts
            canvas.append(size)
            matrices.append(matrix(rng, size, side, perspective, degrees))
            picture.append(number)
            share.append(first if level == 0 else 1 - first)
    gain = rng.uniform(-1, 1, (pictures, 3)) * (0.015, 0.7, 0.4) + 1 if gains else np.ones((pictures, 3))
    flip = rng.random((pictures, 2)) < 0.5 if flips else np.zeros((pictures, 2), bool)
    whole = [np.array(values, np.int64) for values in (row, layer, place, shift, canvas, picture)]
    return Draws(side, *whole[:5], np.array(matrices), whole[5], np.array(share), gain, flip)


def painted(made: Draws, have: Store, tables: Any) -> Any:
    """uint8 (B, 3, side, side), red first, by OpenCV: each canvas is built and warped as the engines do it."""
    size, pictures = (made.side, made.side), []
    for number in range(len(made)):
        layers = []
        for layer in np.flatnonzero(made.picture == number):
            width, height = made.canvas[layer].tolist()
            canvas = np.full((height, width, 3), GREY, np.uint8)
            for tile in np.flatnonzero(made.layer == layer):
                x1, y1, x2, y2 = made.place[tile].tolist()
                x, y = made.shift[tile].tolist()
                canvas[y1:y2, x1:x2] = have.image(int(made.row[tile]))[y1 - y : y2 - y, x1 - x : x2 - x]
            by, border = made.matrix[layer], (GREY, GREY, GREY)
            if (by[2] == (0, 0, 1)).all():
                layers.append(cv2.warpAffine(canvas, by[:2], size, borderValue=border))
            else:
                layers.append(cv2.warpPerspective(canvas, by, size, borderValue=border))
        shares = made.share[made.picture == number]
        picture = layers[0]
        if len(layers) > 1:
            picture = sum(one * share for one, share in zip(layers, shares, strict=True)).astype(np.uint8)
        if (made.gain[number] != 1).any():
            table = tables(made.gain[number : number + 1])[0].T.reshape(1, 256, 3)
            picture = cv2.cvtColor(cv2.LUT(cv2.cvtColor(picture, cv2.COLOR_BGR2HSV), table), cv2.COLOR_HSV2BGR)
        if made.flip[number, 0]:
            picture = picture[::-1]
        if made.flip[number, 1]:
            picture = picture[:, ::-1]
        pictures.append(picture.transpose(2, 0, 1)[::-1])
    return np.stack(pictures)


def on_gpu() -> bool:
    """Whether tests of the device path run on a GPU: where there is one."""
    import torch

    return torch.cuda.is_available()


def device() -> Any:
    """The torch device of these tests."""
    import torch

    return torch.device("cuda" if on_gpu() else "cpu")

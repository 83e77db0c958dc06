"""The random numbers of a batch, drawn as ultralytics 8.4 draws them: the same streams, in the same order.

One picture takes, from Python's stream unless said otherwise: mosaic or not, its partners, its centre, the eight
numbers of the matrix; mixup or not, the partner, the same again for the partner, the share (NumPy's); cutmix or not;
the gains of hue, saturation and value (NumPy's); the flips; the order of channels.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lab.fast.draw_yolov5 import matrices
from lab.fast.draws import Draws

BETA = 32.0  # of the share in mixup, both parameters


def expressible(hyp: Any, dataset: Any) -> str | None:
    """Why this training cannot be drawn here, as the end of a sentence that begins "because"; None when it can.

    `hyp` are ultralytics' arguments, `dataset` its YOLODataset.
    """
    if hyp.task != "detect":
        return f"the task is {hyp.task}"
    if dataset.rect:
        return "`rect` gives every batch a shape of its own"
    if dataset.channels != 3:
        return f"images have {dataset.channels} channels"
    if not isinstance(dataset.imgsz, int):
        return "pictures are not square"
    if hyp.copy_paste and any(len(label["segments"]) for label in dataset.labels):
        return "`copy_paste` cuts out polygons"
    if hyp.cutmix:
        return "`cutmix` is on"
    if hyp.bgr:
        return "`bgr` is on"
    if importlib.util.find_spec("albumentations"):
        return "albumentations is installed, which ultralytics then uses"
    return None


@dataclass
class Ring:
    """The images last loaded, from which ultralytics takes a mosaic's partners: it holds their pixels in memory."""

    length: int  # it keeps one less, and any number when it is 1
    images: list[int] = field(default_factory=list)

    def load(self, image: int) -> None:
        """Take `image` in, for the oldest."""
        if image in self.images:
            return
        self.images.append(image)
        if 1 < len(self.images) >= self.length:
            self.images.pop(0)


@dataclass
class Layers:
    """What was drawn for the layers and tiles of a batch so far: the columns of Draws, as lists."""

    row: list[int] = field(default_factory=list)
    layer: list[int] = field(default_factory=list)
    place: list[tuple[int, int, int, int]] = field(default_factory=list)
    shift: list[tuple[int, int]] = field(default_factory=list)
    canvas: list[tuple[int, int]] = field(default_factory=list)
    warps: list[list[float]] = field(default_factory=list)  # the eight numbers of each layer's matrix
    picture: list[int] = field(default_factory=list)
    share: list[float] = field(default_factory=list)


@dataclass
class Drawing:
    """Draws batches of N images. Rows of its Draws count those, as `sizes` does.

    `ring` is None where any image may be a mosaic's partner, as in ultralytics with `cache=ram`. `chance`: `random` or
    a random.Random; `numbers`: `numpy.random` or a RandomState. `stand_in`, int64 (N): who takes the place of each
    partner that was drawn; None where each takes its own.
    """

    hyp: Any
    side: int
    sizes: Any  # int64 (N, 2): height and width, in pixels
    ring: Ring | None = None
    chance: Any = random
    numbers: Any = np.random
    stand_in: Any = None

    def batch(self, images: Sequence[int]) -> Draws:
        """The numbers of one picture for each of `images` (0 to N - 1)."""
        hyp, drawn = self.hyp, Layers()
        gains, flips = [], []
        for picture, image in enumerate(images):
            self._load(image)
            self._layer(drawn, picture, image)
            if self.chance.uniform(0, 1) <= hyp.mixup:
                partner = self._any()
                self._load(partner)
                self._layer(drawn, picture, partner)
                share = self.numbers.beta(BETA, BETA)
                drawn.share[-2:] = [share, 1 - share]
            self.chance.uniform(0, 1)  # cutmix or not: never
            reach = hyp.hsv_h, hyp.hsv_s, hyp.hsv_v
            gains.append(1 + self.numbers.uniform(-1, 1, 3) * reach if any(reach) else np.ones(3))
            flips.append((self.chance.random() < hyp.flipud, self.chance.random() < hyp.fliplr))
            self.chance.uniform(0, 1)  # the order of channels: always red first
        canvas = np.array(drawn.canvas, np.int64)
        matrix, scale = matrices(np.array(drawn.warps, np.float64), canvas, self.side)
        return Draws(
            side=self.side,
            row=np.array(drawn.row, np.int64),
            layer=np.array(drawn.layer, np.int64),
            place=np.array(drawn.place, np.int64),
            shift=np.array(drawn.shift, np.int64),
            canvas=canvas,
            matrix=matrix,
            picture=np.array(drawn.picture, np.int64),
            share=np.array(drawn.share, np.float64),
            gain=np.array(gains, np.float64),
            flip=np.array(flips, bool),
            scale=scale,
        )

    def _any(self) -> int:
        image: int = self.chance.randint(0, len(self.sizes) - 1)
        return image if self.stand_in is None else int(self.stand_in[image])

    def _load(self, image: int) -> None:
        if self.ring is not None:
            self.ring.load(image)

    def _layer(self, drawn: Layers, picture: int, image: int) -> None:
        hyp, layer = self.hyp, len(drawn.picture)
        if self.chance.uniform(0, 1) <= hyp.mosaic:
            tiles = [image, *self._partners()]
            places, shifts = self._mosaic(tiles)
            drawn.canvas.append((2 * self.side, 2 * self.side))
        else:
            tiles = [image]
            height, width = self.sizes[image].tolist()
            places, shifts = [(0, 0, width, height)], [(0, 0)]
            drawn.canvas.append((width, height))
        drawn.row += tiles
        drawn.layer += [layer] * len(tiles)
        drawn.place += places
        drawn.shift += shifts
        drawn.picture.append(picture)
        drawn.share.append(1.0)
        scale = hyp.scale if isinstance(hyp.scale, (tuple, list)) else (1 - hyp.scale, 1 + hyp.scale)
        drawn.warps.append(
            [
                self.chance.uniform(-hyp.perspective, hyp.perspective),
                self.chance.uniform(-hyp.perspective, hyp.perspective),
                self.chance.uniform(-hyp.degrees, hyp.degrees),
                self.chance.uniform(*scale),
                self.chance.uniform(-hyp.shear, hyp.shear),
                self.chance.uniform(-hyp.shear, hyp.shear),
                self.chance.uniform(0.5 - hyp.translate, 0.5 + hyp.translate),
                self.chance.uniform(0.5 - hyp.translate, 0.5 + hyp.translate),
            ]
        )

    def _partners(self) -> list[int]:
        if self.ring is None:
            return [self._any() for _ in range(3)]
        partners: list[int] = self.chance.choices(self.ring.images, k=3)
        for partner in partners:
            self.ring.load(partner)
        return partners

    def _mosaic(self, tiles: Sequence[int]) -> tuple[list[tuple[int, int, int, int]], list[tuple[int, int]]]:
        """Places and shifts of four tiles that touch a drawn point: left and right above it, left and right below."""
        far, border = 2 * self.side, -self.side // 2
        middle_y = int(self.chance.uniform(-border, far + border))
        middle_x = int(self.chance.uniform(-border, far + border))
        places, shifts = [], []
        for corner, image in enumerate(tiles):
            height, width = self.sizes[image].tolist()
            left = middle_x - width if corner in (0, 2) else middle_x
            top = middle_y - height if corner in (0, 1) else middle_y
            places.append((max(left, 0), max(top, 0), min(left + width, far), min(top + height, far)))
            shifts.append((left, top))
        return places, shifts

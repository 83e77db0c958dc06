"""The random numbers of a batch, apart from what is done with them.

A training picture is made of tiles (four for a mosaic, one without it) laid on a grey canvas, which an affine or
perspective matrix maps to the picture; with mixup two such layers are blended. Labels (labels.py) and pixels
(paint.py on the processor, paint_device.py on a GPU) both follow from these numbers, so they agree by construction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GREY = 114  # of canvas and border, in both engines


@dataclass(frozen=True)
class Draws:
    """What was drawn for the B pictures of a batch: L layers (B or more), K tiles (L or more). NumPy arrays.

    Tiles are in the order of their layers, layers in the order of their pictures. All lengths are pixels.
    """

    side: int  # of the pictures
    row: Any  # int64 (K): which image of the store
    layer: Any  # int64 (K): the layer that a tile lies on
    place: Any  # int64 (K, 4): x1, y1, x2, y2 of the tile on the canvas, x2 and y2 excluded
    shift: Any  # int64 (K, 2): canvas x = x in the stored image + shift; may be negative
    canvas: Any  # int64 (L, 2): width, height
    matrix: Any  # float64 (L, 3, 3): canvas to picture, pixel centres at whole numbers, as OpenCV counts
    picture: Any  # int64 (L): the picture that a layer belongs to
    share: Any  # float64 (L): how much of the picture the layer is; 1 without mixup
    gain: Any  # float64 (B, 3): of hue, saturation and value; 1 leaves them
    flip: Any  # bool (B, 2): up-down, left-right
    # float64 (L): the zoom that was drawn. What is left of a box is judged by it, and shear and perspective hide it in
    # the matrix; None: the root of the matrix' determinant, the same without them
    scale: Any = None

    def __len__(self) -> int:
        return len(self.gain)

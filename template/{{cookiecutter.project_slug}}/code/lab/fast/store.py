"""Images decoded and resized once: one long array of bytes, and where in it each image lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Store:
    """N images whose longer side is `side` pixels: height x width x 3 bytes each, blue first, rows without gaps.

    `pixels` may be mapped from a file: nothing is read before it is touched, and processes share what was read.
    """

    side: int
    paths: Sequence[str]  # N absolute paths
    pixels: Any  # uint8, one-dimensional, read-only
    offset: Any  # int64 (N): where in `pixels` an image begins
    height: Any  # int64 (N), in pixels
    width: Any  # int64 (N)
    full_height: Any  # int64 (N): of the file's image, before it was resized
    full_width: Any  # int64 (N)

    def __len__(self) -> int:
        return len(self.offset)

    def image(self, row: int) -> Any:
        """A view of one image: uint8 (height, width, 3), blue first, read-only."""
        height, width, start = int(self.height[row]), int(self.width[row]), int(self.offset[row])
        return self.pixels[start : start + height * width * 3].reshape(height, width, 3)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {path: row for row, path in enumerate(self.paths)}

    def rows(self, paths: Sequence[str]) -> Any:
        """int64: the row of each path; -1 for one that is not here."""
        return np.array([self._rows.get(path, -1) for path in paths], np.int64)


def in_memory(paths: Sequence[str], images: Sequence[Any], full: Sequence[tuple[int, int]] | None = None) -> Store:
    """A store of uint8 images (height, width, 3), blue first; `full` are heights and widths before resizing."""
    sizes = np.array([image.shape[:2] for image in images], np.int64).reshape(-1, 2)
    lengths = sizes.prod(1) * 3
    pixels = np.concatenate([np.ascontiguousarray(image).reshape(-1) for image in images])
    pixels.flags.writeable = False
    before = np.array(full, np.int64).reshape(-1, 2) if full is not None else sizes
    offset = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    return Store(int(sizes.max()), paths, pixels, offset, sizes[:, 0], sizes[:, 1], before[:, 0], before[:, 1])

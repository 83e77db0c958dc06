"""What the device loaders of both engines share: random numbers of their own, and labels from the engine's data set."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lab.fast.device_loader import DeviceLoader
from lab.fast.draws import Draws
from lab.fast.labels import YOLOV5, Rules, moved
from lab.fast.sheet import Shape

NUMPY_SEEDS = 2**32


class EngineLoader(DeviceLoader):
    """A DeviceLoader in the place of an engine's `loader`, whose data set, batch size and order it takes.

    The data set has `store`, `rows` (int64 (N): the row in the store of each of its images, -1 for one that is not
    there), `sizes` and `gathered`. Random numbers come from streams of its own, `chance` and `numbers`, with the
    process's seed: they are drawn in a thread. `named` is DeviceLoader's; a subclass says what is drawn.

    In the place of an image that is not in the store its neighbour is painted, with its boxes: `stand_in`.
    """

    rules: Rules = YOLOV5

    def __init__(self, loader: Any, shape: Shape, device: torch.device, **named: Any) -> None:
        self.dataset = data = loader.dataset
        seed = torch.initial_seed()
        self.chance, self.numbers = random.Random(seed), np.random.RandomState(seed % NUMPY_SEEDS)
        self._number = np.full(len(data.store), -1, np.int64)  # of the image in the data set, for each row of the store
        there = data.rows >= 0
        self._number[data.rows[there]] = np.flatnonzero(there)
        self.stand_in, lacking = stand_ins(data.rows), int((~there).sum())
        if lacking:
            named.get("say", print)(
                f"{lacking} of {len(there)} training images are not in the store: a neighbour is painted in the place "
                "of each"
            )
        super().__init__(data.store, shape, loader.sampler, self._drawn, self._boxes, device, **named)

    def drawn(self, images: list[int]) -> Draws:
        """The numbers of a batch of these images; rows count the data set."""
        raise NotImplementedError

    def _drawn(self, images: Any) -> Draws:
        draws = self.drawn(images.tolist())
        return replace(draws, row=self.dataset.rows[draws.row])

    def _boxes(self, draws: Draws) -> torch.Tensor:
        own = replace(draws, row=self._number[draws.row])
        return torch.from_numpy(moved(own, self.dataset.gathered, self.dataset.sizes, self.rules))


def stand_ins(rows: Any) -> Any:
    """int64 (N): each image itself where it has a row, else the next one that has. `rows`: -1 for none; not all."""
    there = np.flatnonzero(rows >= 0)
    return there[np.searchsorted(there, np.arange(len(rows))) % len(there)]

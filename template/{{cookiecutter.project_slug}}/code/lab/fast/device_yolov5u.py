"""The device loader in the place of ultralytics' training loader: the same sampler, the same dictionary of a batch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lab.fast.device_loader import Batch, DeviceLoader
from lab.fast.draw_yolov5u import Drawing
from lab.fast.draws import Draws
from lab.fast.labels import YOLOV5U, moved
from lab.fast.sheet import Shape, shifted_hue

NUMPY_SEEDS = 2**32


class TrainLoader(DeviceLoader):
    """Batches of a StoredDataset, painted on `device`, in the order of ultralytics' `loader`, which it replaces.

    Every image must be in the store. `budget`: bytes that the store may take there. Random numbers come from streams of
    its own, with the process's seed: they are drawn in a thread.
    """

    def __init__(self, loader: Any, device: torch.device, budget: int, threads: int, **named: Any) -> None:
        self.dataset = data = loader.dataset
        seed = torch.initial_seed()
        self._chance, self._numbers = random.Random(seed), np.random.RandomState(seed % NUMPY_SEEDS)
        self._number = np.full(len(data.store), -1, np.int64)  # of the image in the data set, for each row of the store
        self._number[data.rows] = np.arange(len(data.rows))
        hyp = data.drawing.hyp
        super().__init__(
            data.store,
            Shape(data.imgsz, loader.batch_size, 2 if hyp.mixup else 1, perspective=bool(hyp.perspective)),
            loader.sampler,
            self._drawn,
            self._boxes,
            device,
            adapt=self._described,
            tables=shifted_hue,
            budget=budget,
            threads=threads,
            drop_last=loader.drop_last,
            **named,
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """An epoch, begun when its first batch is asked for: the trainer makes iterators that it does not use."""
        yield from super().__iter__()

    def _drawn(self, images: Any) -> Draws:
        drawing: Drawing = replace(self.dataset.drawing, chance=self._chance, numbers=self._numbers)
        draws = drawing.batch(images.tolist())
        return replace(draws, row=self.dataset.rows[draws.row])

    def _boxes(self, draws: Draws) -> torch.Tensor:
        data = self.dataset
        own = replace(draws, row=self._number[draws.row])
        return torch.from_numpy(moved(own, data.gathered, data.sizes, YOLOV5U))

    def _described(self, batch: Batch) -> dict[str, Any]:
        return dict(self.dataset.described(batch.labels, batch.indices.tolist(), batch.images))

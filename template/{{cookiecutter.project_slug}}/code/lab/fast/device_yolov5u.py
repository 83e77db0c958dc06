"""The device loader in the place of ultralytics' training loader: the same sampler, the same dictionary of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from lab.fast.device_engine import EngineLoader
from lab.fast.device_loader import Batch
from lab.fast.draw_yolov5u import Drawing
from lab.fast.draws import Draws
from lab.fast.labels import YOLOV5U
from lab.fast.sheet import Shape, shifted_hue


class TrainLoader(EngineLoader):
    """Batches of a StoredDataset, painted on `device`, in the order of ultralytics' `loader`, which it replaces.

    Some image must be in the store. `budget`: bytes that the store may take there.
    """

    rules = YOLOV5U

    def __init__(self, loader: Any, device: torch.device, budget: int, threads: int, **named: Any) -> None:
        data, hyp = loader.dataset, loader.dataset.drawing.hyp
        shape = Shape(data.imgsz, loader.batch_size, 2 if hyp.mixup else 1, perspective=bool(hyp.perspective))
        super().__init__(
            loader,
            shape,
            device,
            adapt=self._described,
            indices=lambda: self.stand_in,
            tables=shifted_hue,
            budget=budget,
            threads=threads,
            drop_last=loader.drop_last,
            **named,
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """An epoch, begun when its first batch is asked for: the trainer makes iterators that it does not use."""
        yield from super().__iter__()

    def drawn(self, images: list[int]) -> Draws:
        """As ultralytics draws, by its hyper-parameters of this moment."""
        drawing: Drawing = self.dataset.drawing
        own = replace(drawing, chance=self.chance, numbers=self.numbers, stand_in=self.stand_in)
        return own.batch(images)

    def _described(self, batch: Batch) -> dict[str, Any]:
        return dict(self.dataset.described(batch.labels, batch.indices.tolist(), batch.images))

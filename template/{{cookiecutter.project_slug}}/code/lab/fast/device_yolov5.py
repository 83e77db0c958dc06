"""The device loader in the place of YOLOv5's training loader: the same sampler, the same four parts of a batch."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lab.fast.device_loader import Batch, DeviceLoader
from lab.fast.draw_yolov5 import draw
from lab.fast.draws import Draws
from lab.fast.labels import moved
from lab.fast.sheet import Shape

NUMPY_SEEDS = 2**32


def install(speed: Mapping[str, Any]) -> None:
    """Have YOLOv5's training pictures painted on the GPU; after `loader_yolov5.install`, which brings the store.

    `speed`: "resident_bytes" (of the store that may lie on the GPU), "switches" (for the layout of the pictures).
    """
    import utils.dataloaders  # noqa: PLC0415  upstream's package, importable only in its process

    own = utils.dataloaders.create_dataloader

    def create_dataloader(*given: Any, **named: Any) -> tuple[Any, Any]:
        if not named.get("augment"):
            return own(*given, **named)  # type: ignore[no-any-return]
        loader, dataset = own(*given, **{**named, "workers": 0})  # threads of this process do the work
        if not dataset.whole_batches or (dataset.rows < 0).any():
            _say("some training images cannot be painted from the store on the GPU, so the processor paints all")
            return own(*given, **named)  # type: ignore[no-any-return]
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        return TrainLoader(
            loader,
            device,
            int(speed.get("resident_bytes", 0)),
            max(1, int(named.get("workers") or 1)),
            channels_last="channels_last" in speed.get("switches", ()),
            say=_say,
        ), dataset

    utils.dataloaders.create_dataloader = create_dataloader


def _say(sentence: str) -> None:
    print(f"lab: {sentence}", file=sys.stderr, flush=True)


class TrainLoader(DeviceLoader):
    """Batches of a StoredImagesAndLabels, painted on `device`, in the order of YOLOv5's `loader`, which it replaces.

    A batch is images, uint8 (B, 3, S, S) on the device, labels, float32 (n, 6) on the device, paths, and None: what
    train.py takes. Every image must be in the store. `budget`: bytes that the store may take on the device. Random
    numbers come from streams of its own, with the process's seed: they are drawn in a thread.
    """

    def __init__(self, loader: Any, device: torch.device, budget: int, threads: int, **named: Any) -> None:
        self.dataset = data = loader.dataset
        seed = torch.initial_seed()
        self._chance, self._numbers = random.Random(seed), np.random.RandomState(seed % NUMPY_SEEDS)
        self._number = np.full(len(data.store), -1, np.int64)  # of the image in the data set, for each row of the store
        self._number[data.rows] = np.arange(len(data.rows))
        hyp = data.hyp
        super().__init__(
            data.store,
            Shape(
                data.img_size, loader.batch_size, 2 if hyp.get("mixup") else 1, perspective=bool(hyp.get("perspective"))
            ),
            loader.sampler,
            self._drawn,
            self._boxes,
            device,
            adapt=self._parts,
            budget=budget,
            threads=threads,
            **named,
        )

    def _drawn(self, images: Any) -> Draws:
        data = self.dataset
        draws = draw(
            images.tolist(), data.sizes, data.indices, data.hyp, data.img_size, data.mosaic, self._chance, self._numbers
        )
        return replace(draws, row=data.rows[draws.row])

    def _boxes(self, draws: Draws) -> torch.Tensor:
        data = self.dataset
        own = replace(draws, row=self._number[draws.row])
        return torch.from_numpy(moved(own, data.gathered, data.sizes))

    def _parts(self, batch: Batch) -> tuple[Any, Any, tuple[str, ...], None]:
        return batch.images, batch.labels, tuple(self.dataset.im_files[i] for i in batch.indices.tolist()), None

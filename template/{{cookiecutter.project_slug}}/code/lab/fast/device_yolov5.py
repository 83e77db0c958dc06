"""The device loader in the place of YOLOv5's training loader: the same sampler, the same four parts of a batch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from lab.fast.device_engine import EngineLoader
from lab.fast.device_loader import Batch
from lab.fast.draw_yolov5 import draw
from lab.fast.draws import Draws
from lab.fast.sheet import Shape


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
        if not dataset.whole_batches or (dataset.rows < 0).all():
            _say("the training images cannot be painted from the store on the GPU, so the processor paints them")
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


class TrainLoader(EngineLoader):
    """Batches of a StoredImagesAndLabels, painted on `device`, in the order of YOLOv5's `loader`, which it replaces.

    A batch is images, uint8 (B, 3, S, S) on the device, labels, float32 (n, 6) on the device, paths, and None: what
    train.py takes. Some image must be in the store. `budget`: bytes that the store may take on the device.
    """

    def __init__(self, loader: Any, device: torch.device, budget: int, threads: int, **named: Any) -> None:
        data, hyp = loader.dataset, loader.dataset.hyp
        self._complete = bool((data.rows >= 0).all())
        layers, perspective = 2 if hyp.get("mixup") else 1, bool(hyp.get("perspective"))
        shape = Shape(data.img_size, loader.batch_size, layers, perspective=perspective)
        # what the sampler gives are places in `indices`, under DDP those of the images that are this rank's
        named["indices"] = self._present
        super().__init__(loader, shape, device, adapt=self._parts, budget=budget, threads=threads, **named)

    def drawn(self, images: list[int]) -> Draws:
        """As YOLOv5 draws, by its hyper-parameters of this moment."""
        data = self.dataset
        partners = self._present()
        return draw(images, data.sizes, partners, data.hyp, data.img_size, data.mosaic, self.chance, self.numbers)

    def _present(self) -> Any:
        """The images of this moment, or who stands in for them."""
        indices = self.dataset.indices
        return indices if self._complete else self.stand_in[np.asarray(indices, np.int64)]

    def _parts(self, batch: Batch) -> tuple[Any, Any, tuple[str, ...], None]:
        return batch.images, batch.labels, tuple(self.dataset.im_files[i] for i in batch.indices.tolist()), None

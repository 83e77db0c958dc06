"""Ultralytics' input of images, replaced through its own classes: pixels from stores, pictures painted by the batch.

Scanning labels, sampling, worker processes and everything after the batch stay ultralytics' own. Import this module in
the process that trains only: it needs ultralytics.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from ultralytics.data import build
from ultralytics.data.dataset import YOLODataset
from ultralytics.models.yolo.detect import DetectionTrainer

from lab.fast.draw_yolov5u import Drawing, Ring, expressible
from lab.fast.labels import YOLOV5U, gathered, moved
from lab.fast.loader_yolov5 import room
from lab.fast.paint import Painter
from lab.fast.sheet import shifted_hue
from lab.fast.store import Store
from lab.fast.store_decode import recipe_of
from lab.fast.store_files import open_store

Batch = dict[str, Any]


def install(speed: dict[str, Any]) -> None:
    """Have every training of this process read from the stores of `speed`.

    `speed`: "data" (plain, store or device), "stores" (directories of "train" and "val", or None), "partners" (of a
    mosaic: "all", or "ring" for ultralytics' few), "resident_bytes" (of the store that may lie on the device).
    """
    if speed["data"] == "plain":
        return
    stores = {split: open_store(Path(directory)) for split, directory in speed["stores"].items() if directory}

    def dataset(*given: Any, augment: bool, **named: Any) -> StoredDataset:
        store = stores.get("train" if augment else "val")
        return StoredDataset(*given, augment=augment, store=store, ring=speed["partners"] == "ring", **named)

    build.YOLODataset = dataset
    if speed["data"] == "device":
        DetectionTrainer.get_dataloader = _on_device(DetectionTrainer.get_dataloader, int(speed["resident_bytes"]))


def _on_device(own: Callable[..., Any], budget: int) -> Callable[..., Any]:
    """The trainer's `get_dataloader`, with training pictures painted on its device."""

    def get_dataloader(self: Any, path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        loader = own(self, path, batch_size=batch_size, rank=rank, mode=mode)
        if mode != "train" or loader.dataset.drawing is None:
            return loader
        if (loader.dataset.rows < 0).all():
            _say("the training images are not in the store, so pictures are painted on the processor")
            return loader
        from lab.fast.device_yolov5u import TrainLoader  # noqa: PLC0415  of this path alone

        last = self.device.type == "cuda" and self.args.channels_last is not False  # as the trainer lays out its model
        threads = max(1, self.args.workers)
        return TrainLoader(loader, self.device, budget, threads, channels_last=last, say=_say)

    return get_dataloader


class StoredDataset(YOLODataset):  # type: ignore[misc]
    """Ultralytics' dataset with images from `store`; its training pictures are painted by the batch where they can be.

    An image that the store lacks is read from its file. `ring` restricts a mosaic's partners to the images last loaded,
    as ultralytics does.
    """

    def __init__(self, *given: Any, store: Store | None, ring: bool = False, **named: Any) -> None:
        self.store, self.ring = store, ring
        self.drawing: Drawing | None = None
        self.rows: Any = None  # int64 (N): row of each image in the store, -1 for one that is not there
        if store is not None and store.side != named["imgsz"]:
            _say(
                f"images are stored at {store.side} pixels and wanted at {named['imgsz']}, so they are read from files"
            )
            self.store = None
        if self.store is not None:
            named["cache"] = None  # the store is one, and shared
        super().__init__(*given, **named)

    def build_transforms(self, hyp: Any) -> Any:
        """Ultralytics' transforms, and our drawing beside them; called again when mosaics end."""
        transforms = super().build_transforms(hyp)
        if self.store is None:
            return transforms
        if self.rows is None:
            self.rows = self.store.rows([os.path.abspath(file) for file in self.im_files])  # noqa: PTH100  many
        if self.augment:
            why = expressible(hyp, self)
            if why:
                _say(f"ultralytics paints the training pictures itself, one by one, because {why}")
            elif self.drawing is None:
                self._prepare(self.store, hyp)
            else:
                self.drawing = replace(self.drawing, hyp=hyp)
        return transforms

    def _prepare(self, store: Store, hyp: Any) -> None:
        """What batches are drawn, painted and described from."""
        self.full, self.sizes = _sizes(store, self.rows, self.labels, self.imgsz)
        self.gathered = gathered(
            [np.concatenate([label["cls"], label["bboxes"]], 1) for label in self.labels],
            [label["segments"] for label in self.labels],
        )
        self.painter = Painter(shifted_hue)
        self.drawing = Drawing(hyp, self.imgsz, self.sizes, Ring(self.max_buffer_length) if self.ring else None)

    def load_image(self, i: int, rect_mode: bool = True, resize_short: bool = False) -> Any:
        """Image `i` as stored, read-only, and its heights and widths: of the file, as stored."""
        store = self.store
        if store is None or self.rows is None or self.rows[i] < 0 or not rect_mode or resize_short:
            return super().load_image(i, rect_mode, resize_short)
        if self.augment:  # ultralytics' own mosaic chooses among these
            Ring(self.max_buffer_length, self.buffer).load(i)
        row = self.rows[i]
        image = store.image(row)
        return image, (int(store.full_height[row]), int(store.full_width[row])), image.shape[:2]

    def image(self, i: int) -> Any:
        """The pixels of image `i`, of the size in `sizes` even if its header says another."""
        if self.store is not None and self.rows[i] >= 0:
            return self.store.image(self.rows[i])
        image = self.load_image(i)[0]
        height, width = self.sizes[i].tolist()
        return image if image.shape[:2] == (height, width) else cv2.resize(image, (width, height))

    def __getitems__(self, images: Sequence[int]) -> Any:
        """A whole batch, as collate_fn would make it; torch's loader asks for it where it can."""
        if self.drawing is None:
            return [self[image] for image in images]
        draws = self.drawing.batch(images)
        pictures = room(len(draws), draws.side)
        self.painter.paint(draws, self.image, pictures.numpy())
        boxes = torch.from_numpy(moved(draws, self.gathered, self.sizes, YOLOV5U))
        return self.described(boxes, images, pictures)

    def described(self, boxes: Any, images: Sequence[int], pictures: Any) -> Batch:
        """Ultralytics' dictionary of a batch: `boxes` as `moved` gives them, the main image of each picture, pictures.

        `boxes` and `pictures`, uint8 (B, 3, side, side), are tensors.
        """
        full, stored = (list(map(tuple, sizes[list(images)].tolist())) for sizes in (self.full, self.sizes))
        return {
            "batch_idx": boxes[:, 0],
            "bboxes": boxes[:, 2:],
            "cls": boxes[:, 1:2],
            "im_file": tuple(self.im_files[image] for image in images),
            "img": pictures,
            "ori_shape": tuple(full),
            "ratio_pad": tuple((h / h0, w / w0) for (h, w), (h0, w0) in zip(stored, full, strict=True)),
            "resized_shape": ((self.imgsz, self.imgsz),) * len(images),
        }

    @staticmethod
    def collate_fn(batch: Any) -> Batch:
        """The batch itself, or ultralytics' of single pictures."""
        return batch if isinstance(batch, dict) else dict(YOLODataset.collate_fn(batch))


def _sizes(store: Store, rows: Any, told: Sequence[dict[str, Any]], side: int) -> tuple[Any, Any]:
    """Heights and widths, int64 (N, 2), of the files' images and as resized."""
    full = np.array([label["shape"] for label in told], np.int64).reshape(-1, 2)
    sizes = np.array([recipe_of("yolov5u", side, True).size(*size) for size in full.tolist()], np.int64).reshape(-1, 2)
    here = rows >= 0
    full[here] = np.stack([store.full_height[rows[here]], store.full_width[rows[here]]], 1)
    sizes[here] = np.stack([store.height[rows[here]], store.width[rows[here]]], 1)
    return full, sizes


def _say(sentence: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"lab: {sentence}", file=sys.stderr, flush=True)

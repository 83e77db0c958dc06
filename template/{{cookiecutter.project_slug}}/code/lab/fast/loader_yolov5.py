"""YOLOv5's data set, fed from a store of decoded images: the seam to its data loaders.

`create_dataloader` finds its data set class by name in its own module: that name is given a subclass. Finding and
checking images and labels, samplers, workers and seeds stay YOLOv5's own. Training batches are drawn, labelled and
painted whole (torch's fetcher asks `__getitems__` where there is one); validation pads stored images as YOLOv5 does.
"""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from lab.fast.draw_yolov5 import draw
from lab.fast.draws import Draws
from lab.fast.labels import gathered, moved
from lab.fast.paint import Painter
from lab.fast.store import Store

RING = 1000  # images at most that mosaics choose from with partners "ring": as many as ultralytics keeps
RING_BATCHES = 8


def install(speed: Mapping[str, Any]) -> None:
    """Have YOLOv5, whose source is on sys.path, read images as `speed` says; before its train.py or val.py runs.

    `speed`: "data" (plain, store or device), "stores" (of "train" and "val": a directory, or None; images as resized
    for training, and for measuring), "partners" (of a mosaic: "all" is YOLOv5's own; a "ring" of the last images reads
    each from the disk once). Raises what `open_store` raises.
    """
    if speed["data"] == "plain":
        return
    import utils.dataloaders  # noqa: PLC0415  upstream's package, importable only now

    stores = {split: opened(place) for split, place in speed["stores"].items() if place is not None}
    utils.dataloaders.LoadImagesAndLabels = data_set(
        utils.dataloaders.LoadImagesAndLabels,
        stores,
        speed.get("partners", "all") == "ring",
        speed["data"] == "device",
    )


def opened(place: Any) -> Store:
    """The store in a directory; a store that is open already stays as it is."""
    if not isinstance(place, (str, Path)):
        return cast(Store, place)
    from lab.fast.store_files import open_store  # noqa: PLC0415

    return cast(Store, open_store(place))


class Batch(list[Any]):
    """YOLOv5's items (image, labels, path, shapes) of one batch, which lie together already."""

    images: Any  # uint8 tensor (B, 3, side, side)
    targets: Any  # float32 tensor (n, 6)


def data_set(upstream: Any, stores: Mapping[str, Store], ring: bool, on_device: bool = False) -> Any:
    """A subclass of YOLOv5's LoadImagesAndLabels that takes images from `stores` ("train", "val") where they have them.

    Without a store for its purpose and its image size it is YOLOv5's own. `on_device`: the device loader paints what
    whole batches are trained on, and says itself what the store lacks.
    """

    class StoredImagesAndLabels(upstream):  # type: ignore[misc]
        def __init__(
            self, path: Any, img_size: int = 640, batch_size: int = 16, augment: bool = False, **named: Any
        ) -> None:
            store = stores.get("train" if augment else "val")
            if store is not None and store.side != img_size:
                _say(f"images are read from their files: the store holds them at {store.side} pixels, not {img_size}")
                store = None
            self.store = store
            if store is not None:
                named["cache_images"] = False  # the store is one, and shared
            super().__init__(path, img_size, batch_size, augment=augment, **named)
            self.whole_batches = False
            if self.store is None:
                return
            self.rows = self.store.rows([os.path.abspath(file) for file in self.im_files])  # noqa: PTH100  many
            self.full, self.sizes = _sizes(self.store, self.rows, self.shapes, img_size)
            self.ring: deque[int] | None = None
            if ring:
                self.ring = deque(maxlen=max(1, min(self.n, RING_BATCHES * batch_size, RING)))
            why = inexpressible(self) if augment else None
            self.whole_batches = augment and why is None
            lacking = int((self.rows < 0).sum())
            if lacking and not (on_device and self.whole_batches):
                _say(f"{lacking} of {len(self.rows)} images are not in the store: read from their files each time")
            if why is not None:
                _say(f"YOLOv5 paints the training pictures itself, one by one, because {why}")
            if self.whole_batches:
                self.gathered = gathered(self.labels, self.segments)
                self.painter = Painter()

        def load_image(self, i: int) -> tuple[Any, tuple[int, int], tuple[int, int]]:
            """A stored image, its full and its stored height and width; from its file if the store lacks it."""
            if self.store is None or self.rows[i] < 0:
                return super().load_image(i)  # type: ignore[no-any-return]
            image = self.store.image(self.rows[i])
            return image, tuple(self.full[i].tolist()), image.shape[:2]

        def __getitem__(self, index: int) -> Any:
            return self.__getitems__([index])[0] if self.whole_batches else super().__getitem__(index)

        def __getitems__(self, indices: Sequence[int]) -> list[Any]:
            if not self.whole_batches:
                return [super(StoredImagesAndLabels, self).__getitem__(index) for index in indices]
            draws = self.draws(indices)
            images = room(len(draws), draws.side)
            self.painter.paint(draws, self.image, images.numpy())
            return self.items(indices, draws, images)

        def items(self, indices: Sequence[int], draws: Draws, images: Any) -> Batch:
            """YOLOv5's items for painted `images`, uint8 tensor (B, 3, side, side)."""
            return _batch(self, [self.indices[index] for index in indices], draws, images)

        def draws(self, indices: Sequence[int]) -> Draws:
            """The random numbers of a batch, by the state of `random` and `numpy.random`; rows count the data set."""
            partners = self.ring if self.ring is not None else self.indices
            wanted = [int(self.indices[index]) for index in indices]
            return draw(wanted, self.sizes, partners, self.hyp, self.img_size, self.mosaic)

        def targets(self, draws: Draws) -> Any:
            """The boxes of a batch, float32 (n, 6): picture, class, x, y, w, h."""
            return moved(draws, self.gathered, self.sizes)

        def image(self, row: int) -> Any:
            """The pixels of an image, of the size in `sizes` even if its header says another."""
            image = self.load_image(row)[0]
            height, width = self.sizes[row].tolist()
            if image.shape[:2] != (height, width):
                import cv2  # noqa: PLC0415

                image = cv2.resize(image, (width, height))
            return image

        @staticmethod
        def collate_fn(batch: Any) -> Any:
            """Images, labels with the number of their picture, paths, shapes."""
            if not isinstance(batch, Batch):
                return upstream.collate_fn(batch)
            _, _, paths, shapes = zip(*batch, strict=True)
            return batch.images, batch.targets, paths, shapes

    return StoredImagesAndLabels


def inexpressible(dataset: Any) -> str | None:
    """Why `Draws` cannot say what a training data set wants done to its pictures, after "because"; None if they can."""
    if dataset.rect:
        return "`--rect` gives every batch a shape of its own"
    if dataset.hyp["copy_paste"] and any(len(outlines) for outlines in dataset.segments):
        return "`copy_paste` cuts out polygons"
    if dataset.albumentations.transform is not None:
        return "albumentations is installed, which YOLOv5 then uses"
    return None


def _say(words: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"lab: {words}\n")


def _sizes(store: Store, rows: Any, shapes: Any, side: int) -> tuple[Any, Any]:
    """Heights and widths, int64 (N, 2), of the files' images and as resized; `shapes` are widths and heights."""
    full = np.array(shapes, np.int64).reshape(-1, 2)[:, ::-1].copy()
    resized = np.array(
        [[math.ceil(length * (side / max(size))) for length in size] for size in full.tolist()], np.int64
    ).reshape(-1, 2)
    here = rows >= 0
    full[here] = np.stack([store.full_height[rows[here]], store.full_width[rows[here]]], 1)
    resized[here] = np.stack([store.height[rows[here]], store.width[rows[here]]], 1)
    return full, resized


def room(count: int, side: int) -> Any:
    """An uint8 tensor (count, 3, side, side), not cleared; a worker's in shared memory: it would be copied there."""
    import torch  # noqa: PLC0415

    shape = (count, 3, side, side)
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape)


def _batch(dataset: Any, wanted: Sequence[int], draws: Draws, images: Any) -> Batch:
    import torch  # noqa: PLC0415

    rows = dataset.targets(draws)
    first = np.searchsorted(rows[:, 0], np.arange(len(draws) + 1)).tolist()
    batch = Batch()
    batch.images, batch.targets = images, torch.from_numpy(rows)
    tiles = np.searchsorted(draws.layer, np.arange(len(draws.picture) + 1))
    for picture, layer in enumerate(np.searchsorted(draws.picture, np.arange(len(draws))).tolist()):
        main = wanted[picture]
        shapes = None
        if tiles[layer + 1] - tiles[layer] == 1:
            shapes = _shapes(dataset.full[main].tolist(), dataset.sizes[main].tolist(), draws.side)
        labels = batch.targets[first[picture] : first[picture + 1]]
        batch.append((images[picture], labels, dataset.im_files[main], shapes))
    return batch


def _shapes(full: list[int], size: list[int], side: int) -> Any:
    """YOLOv5's account of a letterboxed image: (h0, w0), ((h / h0, w / w0), (x, y of the padding))."""
    zoom = side / max(size)
    pad = tuple((side - round(length * zoom)) / 2 for length in reversed(size))
    return tuple(full), ((size[0] / full[0], size[1] / full[1]), pad)

"""Files that both engines keep beside a data set and believe too long: label caches and decoded pictures.

A label cache counts as fresh while paths and the sum of the sizes are the same, so a corrected class number (one digit
for another) is not seen (YOLOv5's issues 306, 4946, 12301). A decoded picture (.npy, --cache disk) counts as fresh for
ever.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lab import pickles
from lab.dataset import Dataset, label_file
from lab.errors import LabError


def drop(dataset: Dataset) -> list[Path]:
    """Delete the caches of `dataset` that are older than what they hold; returns them.

    Costs one look at each file, as the engines' own check does. Raises LabError where a stale file cannot be deleted,
    and where an array is no decoded picture, which an engine would take it for.
    """
    stale = [*_label_caches(dataset), *_pictures(dataset)]
    for file in stale:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise LabError(
                f"{file} is older than the data it was made from and cannot be deleted ({error.strerror}): delete it"
            ) from error
    return stale


def drop_foreign(dataset: Dataset) -> list[Path]:
    """Delete the label caches that hold more than numbers; returns them. The engines load them as full pickles.

    Raises LabError where one cannot be deleted.
    """
    foreign = [cache for cache in _caches(dataset) if _foreign(cache)]
    for file in foreign:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise LabError(
                f"{file} would run a program when an engine reads it, and cannot be deleted ({error.strerror}): delete "
                "it, and do not trust whoever made this data set"
            ) from error
    return foreign


def _foreign(cache: Path) -> bool:
    try:
        return bool(pickles.strangers(cache, pickles.CACHE))
    except OSError:
        return False  # nor will the engine read it
    except ValueError:
        return True


def _changed(path: str | Path) -> int:
    """When the content last changed, ns; the inode's own time too, because copies keep the older one. 0 for none."""
    try:
        status = os.stat(path)  # noqa: PTH116  a hundred thousand of them
    except OSError:
        return 0
    return max(status.st_mtime_ns, status.st_ctime_ns)


def _label_caches(dataset: Dataset) -> Iterator[Path]:
    newest: dict[Path, int] = {}  # by the cache's place: both engines name it after the labels' directory
    for split in dataset.sources:
        for image in dataset.images(split):
            label = label_file(image)
            cache = label.parent.with_suffix(".cache")
            newest[cache] = max(newest.get(cache, 0), _changed(label))
    for source in (source for sources in dataset.sources.values() for source in sources if source.suffix == ".txt"):
        newest[source.with_suffix(".cache")] = max(newest.values(), default=0)
    for cache, time in newest.items():
        if cache.is_file() and cache.stat().st_mtime_ns <= time:
            yield cache


def _caches(dataset: Dataset) -> set[Path]:
    """The label caches that an engine would read."""
    images = (image for split in dataset.sources for image in dataset.images(split))
    places = {label_file(image).parent.with_suffix(".cache") for image in images}
    lists = {source.with_suffix(".cache") for sources in dataset.sources.values() for source in sources}
    return {cache for cache in places | lists if cache.is_file()}


def _pictures(dataset: Dataset) -> Iterator[Path]:
    for directory in {image.parent for split in dataset.sources for image in dataset.images(split)}:
        arrays = [path for path in directory.glob("*.npy") if path.is_file()] if directory.is_dir() else []
        if not arrays:
            continue
        made = {path.stem: path for path in arrays}
        for image in directory.iterdir():
            array = made.get(image.stem)
            if array is None or image.suffix == ".npy":
                continue
            if not decoded(array):
                raise LabError(
                    f"{array} is no picture that an engine decoded, but both engines would train on it instead of "
                    f"{image.name}: move such arrays to a folder of their own"
                )
            if array.stat().st_mtime_ns <= _changed(image):
                yield array


def decoded(array: Path) -> bool:
    """Whether `array` can be what --cache disk makes of a picture: uint8 (H, W, 3). Only its header is read."""
    import numpy as np  # noqa: PLC0415  few data sets have any

    try:
        held = np.load(array, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return True  # cut short while it was written: a cache, and to be made again
    return bool(held.dtype == np.uint8 and held.ndim == 3 and held.shape[2] == 3)

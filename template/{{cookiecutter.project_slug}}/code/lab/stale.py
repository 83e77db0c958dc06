"""Files that both engines keep beside a data set and believe too long: label caches and decoded pictures.

A label cache counts as fresh while paths and the sum of the sizes are the same, so a corrected class number (one digit
for another) is not seen (YOLOv5's issues 306, 4946, 12301). A decoded picture (.npy, --cache disk) counts as fresh for
ever.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab import pickles
from lab.dataset import Dataset, entries, label_file
from lab.errors import LabError
from lab.picture_header import size_of


def drop(dataset: Dataset) -> list[Path]:
    """Delete the caches of `dataset` that are older than what they hold; returns them.

    Costs one look at each file, as the engines' own check does. Raises LabError where a stale file cannot be deleted,
    and where an array is somebody's own, which an engine would take for the picture.
    """
    arrays = list(suspects(dataset))
    if theirs := next((one for one in arrays if one.foreign), None):
        raise LabError(
            f"{theirs.array} is no picture that an engine decoded (it {theirs.why}), but both engines would train on "
            f"it instead of {theirs.picture.name}: keep such arrays in a folder of their own; `lab data check --fix` "
            "moves them aside"
        )
    stale = [*_label_caches(dataset), *(one.array for one in arrays)]
    for file in stale:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise LabError(
                f"{file} is older than the data it was made from, or cut short, and cannot be deleted "
                f"({error.strerror}): delete it"
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


@dataclass(frozen=True)
class Suspect:
    """An array beside a picture, which both engines would read instead of it, and should not.

    `foreign`: no engine made it of this picture, so it is somebody's own. Else it is an engine's, and worth nothing.
    """

    split: str
    array: Path
    picture: Path
    foreign: bool
    why: str


def suspects(dataset: Dataset) -> Iterator[Suspect]:
    """The arrays beside the pictures of `dataset` that must not be read, each once. Reads headers, and no pixels."""
    some: dict[str, bool] = {}  # whether a directory holds any array: most hold none
    seen: set[str] = set()
    for entry in entries(dataset):
        directory = entry.path.rpartition("/")[0]
        if directory not in some:
            some[directory] = _holds_arrays(directory)
        array = f"{entry.path.rpartition('.')[0]}.npy"
        if some[directory] and array not in seen and os.path.isfile(array):  # noqa: PTH113
            found = _judged(entry.split, Path(array), Path(entry.path))
            if found is not None:
                seen.add(array)
                yield found


def _holds_arrays(directory: str) -> bool:
    try:
        with os.scandir(directory) as found:
            return any(entry.name.endswith(".npy") for entry in found)
    except OSError:
        return False


def _judged(split: str, array: Path, picture: Path) -> Suspect | None:
    """None for an array that may be read.

    Both engines write what cv2.imread returns: uint8, height x width x 3 of the whole picture, turned as its EXIF tag
    says or, in other versions of OpenCV, as it lies in the file. They find a file that was cut off while it was
    written, and do not write it again. Of a picture that Pillow cannot read nothing can be said.
    """
    try:
        status = array.stat()
        held = _held(array)
        width, height = size_of(picture)
    except (OSError, ValueError):
        return None
    whole = [((height, width, 3), "uint8"), ((width, height, 3), "uint8")]
    if status.st_size and held not in whole:
        shape, kind = held
        described = f"{' x '.join(map(str, shape))} of {kind}" if kind else "no plain array"
        return Suspect(split, array, picture, True, f"holds {described}, and the picture is {height} x {width}")
    if status.st_size < 3 * height * width:
        return Suspect(split, array, picture, False, "is cut short")
    if status.st_mtime_ns <= _changed(picture):
        return Suspect(split, array, picture, False, f"is older than {picture.name}")
    return None


def _held(array: Path) -> tuple[tuple[int, ...], str]:
    """Shape and type by the header alone; ((), "") where that is none. Raises OSError."""
    from numpy.lib import format as npy  # noqa: PLC0415  few data sets have any

    with array.open("rb") as opened:
        try:
            # an engine's header is of the first version: it is short
            if npy.read_magic(opened) == (1, 0):
                shape, _, kind = npy.read_array_header_1_0(opened)
                return tuple(shape), str(kind)
        except ValueError:
            pass
    return (), ""

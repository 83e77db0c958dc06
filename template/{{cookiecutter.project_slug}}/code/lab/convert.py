"""`lab data convert`: annotations of another tool become a data set in YOLOv5's layout. The source stays as it is."""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import yaml

from lab.convert_read import FORMATS, Drawn
from lab.dataset import IMAGES, SPLITS, label_path
from lab.errors import FAILED, LabError

UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the name of an uploaded file


@dataclass
class Converted:
    """What came over, and what did not."""

    pictures: Counter[str] = field(default_factory=Counter)  # by split
    boxes: int = 0
    missing: list[str] = field(default_factory=list)  # annotated pictures that were not found
    flat: int = 0  # boxes without area inside their picture
    ignored: Counter[str] = field(default_factory=Counter)  # shapes that are no boxes, by kind


def convert(
    form: str, source: Path, out: Path, images: Path | None = None, progress: Callable[[int], None] = lambda _: None
) -> Converted:
    """Write `source`, of the format `form`, as a data set into `out`, which must not hold anything yet.

    Pictures are searched for in `images`, else around the annotations, and linked (copied to another disk). `progress`
    gets the number of pictures done. Raises LabError.
    """
    if form not in FORMATS:
        raise LabError(f"--from {form}: it may be {', '.join(FORMATS)}")
    if not source.exists():
        raise LabError(f"{source} does not exist: give the annotations, a file or a directory")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LabError(f"{out} holds something already: name a new directory")
    if images is not None and not images.is_dir():
        raise LabError(f"--images {images} is no directory")
    try:
        reading = FORMATS[form](source)
        done = Converted(ignored=reading.ignored)
        shelf = _Shelf([images] if images is not None else reading.places, reading.names)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            fresh = Path(scratch) / "fresh"
            for number, drawn in enumerate(reading.pictures, 1):
                shelf.take(drawn, fresh, done)
                progress(number)
            if not done.pictures:
                where = " or ".join(str(place) for place in shelf.places)
                first = f", such as {done.missing[0]}," if done.missing else ""
                raise LabError(f"none of the pictures{first} is in {where}: name their directory with --images")
            _write_yaml(fresh, reading.names, done)
            if out.exists():
                out.rmdir()
            fresh.rename(out)
            (out.parent / out.name).chmod(0o755)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise LabError(f"{source} is not of the format {form}: {type(error).__name__} {error}") from error
    except OSError as error:
        raise LabError(f"{error.filename or out} cannot be written ({error.strerror})", FAILED) from error
    return done


class _Shelf:
    """Where the pictures lie, and which names are taken in the new data set."""

    def __init__(self, places: list[Path], names: list[str]) -> None:
        self.places = places
        self.numbers = {name: number for number, name in enumerate(names)}
        self.by_name: dict[str, Path | None] | None = None
        self.used: dict[Path, str] = {}  # picture on the disk: the name under which it was annotated
        self.taken: dict[str, str] = {}  # label file of the new data set: the picture it belongs to

    def take(self, drawn: Drawn, out: Path, done: Converted) -> None:
        """Bring one picture over, with its labels."""
        picture = self.find(drawn.name)
        if picture is None:
            done.missing.append(drawn.name)
            return
        other = self.used.setdefault(picture, drawn.name)
        if other != drawn.name:  # found by its name alone: one of the two would get the other's boxes
            raise LabError(f"{other} and {drawn.name} are annotated, but only {picture} is here: bring the other too")
        width, height = drawn.width, drawn.height
        if not width or not height:
            width, height = _size(picture)
        parts = PurePosixPath(drawn.name).parts[:-1]
        name = PurePosixPath(*(part for part in parts if part not in ("/", "..", ".")), picture.name)
        place = out / "images" / drawn.split / name
        label = label_path(str(place))
        if self.taken.setdefault(label, drawn.name) != drawn.name:  # a.jpg and a.png would share their labels
            place = place.with_name(f"{place.stem}-{picture.suffix[1:]}{picture.suffix}")
            label = label_path(str(place))
            self.taken[label] = drawn.name
        if place.exists():
            raise LabError(f"{drawn.name} is annotated twice: once in each split at most")
        rows = []
        for named, corners in drawn.boxes:
            row = _row(self.numbers[named], corners, width, height)
            rows += [row] if row else []
            done.flat += not row
        for file in (place, Path(label)):
            file.parent.mkdir(parents=True, exist_ok=True)
        _bring(picture, place)
        Path(label).write_text("".join(rows), encoding="utf-8")
        done.pictures[drawn.split] += 1
        done.boxes += len(rows)

    def find(self, name: str) -> Path | None:
        """The picture `name`: at that path in one of the places, else of that file name anywhere below the first."""
        tail = PurePosixPath(name.replace("\\", "/"))
        for place in self.places:
            for base in (place, place / "images"):
                found = base / (tail.relative_to("/") if tail.is_absolute() else tail)
                if found.suffix.lower() in IMAGES and found.is_file():
                    return found
        if self.by_name is None:
            self.by_name = {}
            for directory, _, files in os.walk(self.places[0]):
                for file in files:
                    if Path(file).suffix.lower() in IMAGES:
                        for key in (file, Path(file).stem):  # of two with one name, neither is meant for sure
                            self.by_name[key] = None if key in self.by_name else Path(directory, file)
        return self.by_name.get(tail.name) or self.by_name.get(UPLOADED.sub("", tail.name))


def _row(number: int, corners: tuple[float, float, float, float], width: float, height: float) -> str:
    """A line of a label file, clipped to the picture; "" when nothing of the box is inside, or a number is none."""
    if not all(map(math.isfinite, (*corners, width, height))):
        return ""
    left, right = (min(max(x / width, 0.0), 1.0) for x in (corners[0], corners[2]))
    top, bottom = (min(max(y / height, 0.0), 1.0) for y in (corners[1], corners[3]))
    w, h = round(right - left, 6), round(bottom - top, 6)
    if not (w > 0 and h > 0):  # nor when a number is none
        return ""
    return f"{number} {(left + right) / 2:.6f} {(top + bottom) / 2:.6f} {w:.6f} {h:.6f}\n"


def _size(picture: Path) -> tuple[float, float]:
    import cv2  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    image = cv2.imdecode(np.fromfile(picture, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise LabError(f"{picture} cannot be read, and the annotations do not tell its size", FAILED)
    return float(image.shape[1]), float(image.shape[0])


def _bring(picture: Path, place: Path) -> None:
    """Link the picture, which takes no room; copy it to another disk, or where links are not to be had."""
    try:
        os.link(picture.resolve(), place)
    except OSError:
        shutil.copy2(picture, place)


def _write_yaml(out: Path, names: list[str], done: Converted) -> None:
    said: dict[str, object] = {"path": "."}
    said |= {split: f"images/{split}" for split in SPLITS if done.pictures[split]}
    said["names"] = dict(enumerate(names))
    text = yaml.safe_dump(said, sort_keys=False, allow_unicode=True)
    (out / "data.yaml").write_text(f"# by `lab data convert`; paths count from this file\n{text}", encoding="utf-8")

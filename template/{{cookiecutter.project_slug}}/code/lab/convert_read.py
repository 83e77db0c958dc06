"""Readers of other tools' annotations. Each yields one picture after the other with its boxes.

COCO, Pascal VOC and LabelMe are read by the package supervision, one picture at a time (its own whole-data-set loaders
hold a mask for every polygon); CVAT's and Label Studio's own formats, which it does not know, are read here.
Polygons, ellipses and turned rectangles become the upright boxes around them.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import urllib.parse
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from xml.etree import ElementTree

from lab.errors import FAILED, LabError

Corners = tuple[float, float, float, float]  # left, top, right, bottom
SUBSETS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Drawn:
    """A picture as an annotation names it. Boxes count in units of which the picture is `width` x `height`."""

    name: str
    split: str
    width: float  # 0: unknown, the picture itself tells
    height: float
    boxes: list[tuple[str, Corners]]


@dataclass
class Reading:
    """An annotated data set: its classes in order, its pictures, where they may lie; `ignored` fills while read."""

    names: list[str]
    pictures: Iterator[Drawn]
    places: list[Path]
    ignored: Counter[str] = field(default_factory=Counter)


def supervision(module: str) -> Any:
    """A module of the package supervision. Raises LabError when it is not installed."""
    try:
        return importlib.import_module(f"supervision.dataset.formats.{module}")
    except ImportError as error:
        # without its dependency av, a hundred megabytes of video codecs that only its video classes import
        raise LabError(
            f"reading COCO, Pascal VOC and LabelMe needs the package supervision ({error}): add it to "
            "docker/requirements.in and rebuild, or, for this container only, "
            "`pip install --no-deps supervision defusedxml 'pydeprecate<0.14' tqdm`",
            FAILED,
        ) from error


def split_named(text: str) -> str:
    """The split that a file or directory name speaks of: instances_val2017 is val; train when of none."""
    words = re.split(r"[^a-z]+", text.lower())
    return next((SUBSETS[word] for word in words if word in SUBSETS), "train")


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise LabError(f"{file} cannot be read as JSON: {error}") from error


def _xml(file: Path) -> Any:
    try:
        return ElementTree.parse(file).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise LabError(f"{file} cannot be read as XML: {error}") from error


def _files(source: Path, pattern: str, what: str) -> list[Path]:
    """`source` itself, or the files below it."""
    if source.is_file():
        return [source]
    files = sorted(source.rglob(pattern))
    if not files:
        raise LabError(f"{source} holds no {what}")
    return files


def coco(source: Path) -> Reading:
    """COCO's instances_*.json: one file, or all below a directory. Category numbers become classes in their order."""
    library = supervision("coco")
    files = _files(source, "*.json", "COCO file (*.json)")
    loaded = {file: _json(file) for file in files}
    loaded = {
        file: said for file, said in loaded.items() if isinstance(said, dict) and {"images", "categories"} <= set(said)
    }
    if not loaded:
        raise LabError(f"{files[0]} is no COCO file: it lacks the keys images, categories and annotations")
    categories = {int(c["id"]): str(c["name"]) for said in loaded.values() for c in said["categories"]}
    ignored: Counter[str] = Counter()

    def pictures() -> Iterator[Drawn]:
        for file, said in loaded.items():
            of_picture = defaultdict(list)
            for annotation in said.get("annotations", []):
                if annotation.get("iscrowd"):
                    ignored["crowd"] += 1
                elif "bbox" not in annotation or len(annotation["bbox"]) != 4:
                    ignored["annotation without bbox"] += 1
                else:
                    of_picture[annotation["image_id"]].append(annotation)
            for image in said["images"]:
                size = (image.get("width") or 0, image.get("height") or 0)
                found = library.coco_annotations_to_detections(
                    of_picture[image["id"]], size, with_masks=False, use_iscrowd=False
                )
                boxes = _boxes(found, lambda number: categories[number])
                yield Drawn(str(image["file_name"]), split_named(file.stem), *size, boxes)

    base = source if source.is_dir() else source.parent
    names = [categories[number] for number in sorted(categories)]
    return Reading(names, pictures(), _around(base), ignored)


def voc(source: Path) -> Reading:
    """Pascal VOC: a directory with Annotations/*.xml, or with the files themselves. ImageSets/Main tells the splits."""
    library = supervision("pascal_voc")
    files = _files(source, "*.xml", "Pascal VOC file (*.xml)")
    root = source if source.is_dir() else source.parent
    names = sorted({name.text.strip() for file in files for name in _xml(file).iterfind("object/name") if name.text})
    splits = {
        stem.split()[0]: split
        for split in ("test", "val", "train")
        for listed in sorted(root.rglob(f"ImageSets/Main/{split}.txt"))
        for stem in listed.read_text(encoding="utf-8").splitlines()
        if stem.strip()
    }

    def pictures() -> Iterator[Drawn]:
        for file in files:
            tree = _xml(file)
            size = tuple(int(float(tree.findtext(f"size/{key}") or 0)) for key in ("width", "height"))
            try:
                found, known = library.detections_from_xml_obj(tree, list(names), (max(1, size[0]), max(1, size[1])))
            except ValueError as error:
                raise LabError(f"{file}: {error}") from error
            boxes = _boxes(found, known.__getitem__)
            split = splits.get(file.stem) or split_named(file.parent.name)
            yield Drawn(tree.findtext("filename") or f"{file.stem}.jpg", split, size[0], size[1], boxes)

    return Reading(names, pictures(), _around(root))


def labelme(source: Path) -> Reading:
    """LabelMe: a JSON file for each picture, most often beside it."""
    library = supervision("labelme")
    files = [file for file in _files(source, "*.json", "LabelMe file (*.json)") if "shapes" in (_json(file) or ())]
    if not files:
        raise LabError(f"{source} holds no LabelMe file: none has the key shapes")
    kinds = library.SUPPORTED_SHAPE_TYPES
    ignored: Counter[str] = Counter()
    names = sorted({str(s["label"]) for file in files for s in _json(file)["shapes"] if s.get("shape_type") in kinds})
    numbers = {name: number for number, name in enumerate(names)}
    root = source if source.is_dir() else source.parent

    def pictures() -> Iterator[Drawn]:
        for file in files:
            said = _json(file)
            ignored.update(str(s.get("shape_type")) for s in said["shapes"] if s.get("shape_type") not in kinds)
            size = (int(said.get("imageWidth") or 0), int(said.get("imageHeight") or 0))
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of shapes it skips, which we count ourselves
                    found = library.labelme_shapes_to_detections(said["shapes"], numbers, size, with_masks=False)
            except ValueError as error:
                raise LabError(f"{file}: {error}") from error
            # the path counts from the file, and has the separators of the system that wrote it
            name = PureWindowsPath(str(said.get("imagePath") or f"{file.stem}.jpg")).name
            inside = file.parent.relative_to(root).as_posix() if file.parent.is_relative_to(root) else "."
            yield Drawn(
                str(PurePosixPath(inside, name)), split_named(file.parent.name), *size, _boxes(found, names.__getitem__)
            )

    return Reading(names, pictures(), _around(root), ignored)


def _boxes(found: Any, name: Any) -> list[tuple[str, Corners]]:
    """Boxes of supervision's Detections."""
    if found.class_id is None:
        return []
    return [
        (name(int(number)), (float(x1), float(y1), float(x2), float(y2)))
        for (x1, y1, x2, y2), number in zip(found.xyxy, found.class_id, strict=True)
    ]


def cvat(source: Path) -> Reading:
    """CVAT's own export "CVAT for images 1.1": annotations.xml."""
    files = _files(source, "*.xml", "CVAT file (annotations.xml)")
    names: dict[str, None] = {}
    for file in files:
        tree = _xml(file)
        if tree.find("track") is not None:
            raise LabError(f"{file} is of the format CVAT for video: export the task as `CVAT for images 1.1`")
        if tree.tag != "annotations" or tree.find("image") is None:
            raise LabError(f"{file} is not of the format CVAT for images: it has no pictures")
        declared = [label.text for label in tree.iterfind(".//labels/label/name") if label.text]
        used = sorted({shape.get("label", "") for image in tree.iterfind("image") for shape in image} - {""})
        names |= dict.fromkeys([*declared, *used])
    ignored: Counter[str] = Counter()

    def pictures() -> Iterator[Drawn]:
        for file in files:
            for image in _xml(file).iterfind("image"):
                boxes = []
                for shape in image:
                    corners = _cvat_corners(shape)
                    if corners is None:
                        ignored[shape.tag] += 1
                    else:
                        boxes.append((shape.get("label", ""), corners))
                split = split_named(image.get("subset") or "")
                size = (float(image.get("width") or 0), float(image.get("height") or 0))
                yield Drawn(image.get("name") or "", split, *size, boxes)

    return Reading(list(names), pictures(), _around(source if source.is_dir() else source.parent), ignored)


def _cvat_corners(shape: Any) -> Corners | None:
    def number(key: str) -> float:
        return float(shape.get(key) or 0)

    turn = math.radians(number("rotation"))
    if shape.tag == "box":
        x1, y1, x2, y2 = (number(key) for key in ("xtl", "ytl", "xbr", "ybr"))
        middle = ((x1 + x2) / 2, (y1 + y2) / 2)
        return around(turned([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], middle, turn)) if turn else (x1, y1, x2, y2)
    if shape.tag == "polygon":
        return around(tuple(map(float, point.split(","))) for point in shape.get("points", "").split(";"))
    if shape.tag == "ellipse":
        return _ellipse(number("cx"), number("cy"), number("rx"), number("ry"), turn)
    if shape.tag == "mask":
        return number("left"), number("top"), number("left") + number("width"), number("top") + number("height")
    return None


def labelstudio(source: Path) -> Reading:
    """Label Studio's export JSON, and its JSON-MIN. Coordinates are percent of the picture."""
    files = _files(source, "*.json", "Label Studio export (*.json)")
    tasks = []
    for file in files:
        said = _json(file)
        if not isinstance(said, list) or not all(isinstance(task, dict) for task in said):
            raise LabError(f"{file} is no Label Studio export: it should be a list of tasks (export as JSON)")
        tasks += said
    ignored: Counter[str] = Counter()
    read = [(_studio_name(task), _studio_boxes(task, ignored)) for task in tasks]
    names = sorted({name for _, boxes in read for name, _ in boxes})

    def pictures() -> Iterator[Drawn]:
        for task, (name, boxes) in zip(tasks, read, strict=True):
            data = task.get("data", task)
            yield Drawn(name, split_named(str(data.get("split") or data.get("subset") or "")), 100, 100, boxes)

    return Reading(names, pictures(), _around(source if source.is_dir() else source.parent), ignored)


def _studio_name(task: dict[str, Any]) -> str:
    """The picture of a task: /data/upload/3/1a2b3c4d-name.jpg, /data/local-files/?d=dir/name.jpg, a bucket's."""
    data = task.get("data", task)
    values = [data.get("image"), *data.values()]
    found = next(
        (
            v
            for v in values
            if isinstance(v, str) and re.search(r"\.(jpe?g|png|bmp|tiff?|webp)(\?|$)", v, re.IGNORECASE)
        ),
        "",
    )
    address = urllib.parse.urlsplit(found)
    local = urllib.parse.parse_qs(address.query).get("d")
    path = local[0] if local else urllib.parse.unquote(address.path if address.scheme else found)
    return PurePosixPath(path).name


def _studio_boxes(task: dict[str, Any], ignored: Counter[str]) -> list[tuple[str, Corners]]:
    done = [a for a in task.get("annotations", task.get("completions", [])) if not a.get("was_cancelled")]
    # one of several annotators' work: the ground truth if one is marked so, else the latest
    results = max(done, key=lambda a: (bool(a.get("ground_truth")), str(a.get("updated_at", "")))) if done else {}
    regions = results.get("result") or [
        {"value": value, "original_width": value.get("original_width"), "original_height": value.get("original_height")}
        for key in ("label", "bbox", "rectangle")
        if isinstance(task.get(key), list)
        for value in task[key]
        if isinstance(value, dict)
    ]
    boxes = []
    for region in regions:
        value = region.get("value", {})
        key = next((key for key in value if key.endswith("labels") and value[key]), None)
        corners = _studio_corners(
            value, float(region.get("original_width") or 1), float(region.get("original_height") or 1)
        )
        if key is None or corners is None:
            ignored[str(region.get("type", "region"))] += 1
        else:
            boxes += [(str(name), corners) for name in value[key]]
    return boxes


def _studio_corners(value: dict[str, Any], width: float, height: float) -> Corners | None:
    """Percent; turning happens in pixels, because percent of two sides are two units."""
    turn = math.radians(float(value.get("rotation") or 0))

    def percent(corners: Corners) -> Corners:
        return (
            corners[0] / width * 100,
            corners[1] / height * 100,
            corners[2] / width * 100,
            corners[3] / height * 100,
        )

    if {"x", "y", "width", "height"} <= set(value):
        x, y = value["x"] * width / 100, value["y"] * height / 100
        w, h = value["width"] * width / 100, value["height"] * height / 100
        # Label Studio turns about the upper left corner
        return percent(around(turned([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], (x, y), turn)))
    if {"x", "y", "radiusX", "radiusY"} <= set(value):
        x, y = value["x"] * width / 100, value["y"] * height / 100
        return percent(_ellipse(x, y, value["radiusX"] * width / 100, value["radiusY"] * height / 100, turn))
    if len(value.get("points") or ()) >= 3:
        return around(value["points"])
    return None


def turned(
    points: Iterable[tuple[float, float]], middle: tuple[float, float], turn: float
) -> Iterator[tuple[float, float]]:
    """`points` turned clockwise (y points down) about `middle` by `turn` radians."""
    cosine, sine = math.cos(turn), math.sin(turn)
    for x, y in points:
        dx, dy = x - middle[0], y - middle[1]
        yield middle[0] + dx * cosine - dy * sine, middle[1] + dx * sine + dy * cosine


def _ellipse(x: float, y: float, rx: float, ry: float, turn: float) -> Corners:
    wide = math.hypot(rx * math.cos(turn), ry * math.sin(turn))
    tall = math.hypot(rx * math.sin(turn), ry * math.cos(turn))
    return x - wide, y - tall, x + wide, y + tall


def around(points: Iterable[Any]) -> Corners:
    """The upright box around points."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _around(base: Path) -> list[Path]:
    """Where pictures may lie: beside the annotations, or beside their directory."""
    return [base, base.parent]


FORMATS = {"coco": coco, "voc": voc, "labelme": labelme, "cvat": cvat, "labelstudio": labelstudio}

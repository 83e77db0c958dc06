"""What a run's checkpoint finds in the validation pictures: asked of the engine once, measured, kept in report.json."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lab import dataset as data
from lab import devices, limits, record, report_measure
from lab.errors import LabError
from lab.gpu_list import listed, those
from lab.options import Request
from lab.project import Project
from lab.report_measure import SURE, Array, Measured, Picture
from lab.report_run import Run

NAME = "report.json"
FAIR, WORST = 8, 4  # pictures shown: spread over the validation set, and those with the most errors
SPEED = re.compile(r"([\d.]+)ms (pre-?process|inference|NMS|postprocess)")
FORMAT = 1  # of report.json


@dataclass(frozen=True)
class Sample:
    """A picture to show. Rows are class, left, top, right, bottom as fractions; `found` has a confidence too.

    The surest prediction comes last, so that it is drawn on top.
    """

    image: str
    truth: list[list[float]]
    found: list[list[float]]
    missed: list[bool]  # of each labelled box: nothing of its class was found there
    wrong: list[bool]  # of each prediction: there is nothing of that class


@dataclass(frozen=True)
class Findings:
    """What the report knows about the checkpoint; `why_not` says why it knows nothing.

    `trained` counts the labelled boxes of each class in the training pictures. `speed` is milliseconds a picture
    on `device`, which is in words.
    """

    measured: Measured | None = None
    names: list[str] = field(default_factory=list)
    fair: list[Sample] = field(default_factory=list)
    worst: list[Sample] = field(default_factory=list)
    speed: dict[str, float] = field(default_factory=dict)
    device: str = ""
    trained: list[int] = field(default_factory=list)
    why_not: str = ""


def findings(run: Run, project: Project, device: str | None, ask: bool = True) -> Findings:
    """Measure `run`'s checkpoint on its validation pictures, or read what was measured before.

    With `ask` false the engine is not started. Never raises LabError: the reason goes into the report.
    """
    try:
        return _findings(run, project, device, ask)
    except LabError as error:
        return Findings(why_not=error.sentence)


def _findings(run: Run, project: Project, device: str | None, ask: bool) -> Findings:
    weights, yaml_file = run.checkpoint, run.data_file
    if weights is None:
        raise LabError("the run saved no checkpoint")
    if yaml_file is None:
        raise LabError("the data set's yaml file is gone")
    dataset = data.open_dataset(str(yaml_file), project, ("val",))
    pictures = _labelled(dataset)
    if not pictures:
        raise LabError("none of the validation pictures is there")
    key = _key(weights, pictures)
    kept = _read(run.directory / NAME, key)
    if kept is not None:
        return kept
    if not ask:
        raise LabError("the checkpoint was not measured (--no-val)")
    found, speed = _predict(run, project, weights, list(pictures), dataset, device)
    both = [Picture(truth, prediction) for truth, prediction in zip(pictures.values(), found, strict=True)]
    measured = report_measure.measure(both, len(dataset.names), _shapes(list(pictures), run.image_size))
    fair, worst = choose(list(pictures), both)
    made = Findings(measured, list(dataset.names.values()), fair, worst, speed, _named(device), _counted(dataset))
    try:
        record.write(run.directory / NAME, json.dumps({"format": FORMAT, "key": key, **asdict(made)}))
    except OSError:
        print(f"lab: {NAME} cannot be written, so the next report measures again", file=sys.stderr)
    return made


def _labelled(dataset: data.Dataset) -> dict[Path, Array]:
    """The validation pictures with their boxes; one whose labels both engines would refuse is left out, as there."""
    found: dict[Path, Array] = {}
    for image in dataset.images("val"):
        rows = boxes(data.label_file(image), len(dataset.names))
        if rows is not None and image.is_file():
            found[image] = rows
    return found


def boxes(file: Path, classes: int) -> Array | None:
    """A label file as N x 5: class, left, top, right, bottom; fractions. Polygons by their bounding box.

    None for a file that the engines refuse: not numbers, a class too high, coordinates outside of the picture.
    """
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return np.empty((0, 5))
    rows: set[tuple[float, ...]] = set()  # the engines drop repeated lines too
    try:
        for line in filter(str.strip, lines):
            number, *rest = map(float, line.split())
            if not (len(rest) == 4 or (len(rest) >= 6 and len(rest) % 2 == 0)):
                return None
            if not (0 <= number < classes and number == int(number) and all(0 <= value <= 1 for value in rest)):
                return None
            rows.add((number, *_corners(rest)))
    except ValueError:
        return None
    return np.array(sorted(rows)).reshape(-1, 5)


def _corners(rest: list[float]) -> tuple[float, float, float, float]:
    if len(rest) == 4:
        x, y, width, height = rest
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    return min(rest[::2]), min(rest[1::2]), max(rest[::2]), max(rest[1::2])


def _key(weights: Path, pictures: dict[Path, Array]) -> str:
    """Changes with the checkpoint and with the labels: what was measured before then no longer counts."""
    status = weights.stat()
    sha = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode())
    for image, truth in pictures.items():
        sha.update(image.name.encode(errors="surrogateescape"))
        sha.update(truth.tobytes())
    return sha.hexdigest()[:16]


def _read(file: Path, key: str) -> Findings | None:
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        if said.pop("format") != FORMAT or said.pop("key") != key:
            return None
        measured = report_measure.from_json(said.pop("measured"))
        fair, worst = ([Sample(**sample) for sample in said.pop(name)] for name in ("fair", "worst"))
        return Findings(measured, fair=fair, worst=worst, **said)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _named(device: str | None) -> str:
    """Where the engine measures when it is told `device`, in words: it takes the first GPU when it is told nothing."""
    used = those(devices.resolve(device or ""), listed())
    return used[0].name if used else f"{limits.processors()} processors, without a GPU"


def _counted(dataset: data.Dataset) -> list[int]:
    """Boxes of each class in the training pictures."""
    counts = np.zeros(len(dataset.names), int)
    for image in dataset.images("train"):
        rows = boxes(data.label_file(image), len(dataset.names))
        if rows is not None:
            counts += np.bincount(rows[:, 0].astype(int), minlength=len(counts))
    return [int(count) for count in counts]


def _shapes(images: list[Path], size: int) -> list[tuple[float, float]] | None:
    """Width and height of each picture as the network sees it, from the files' heads; None when they do not tell."""
    try:
        from PIL import Image  # noqa: PLC0415  OpenCV would decode whole pictures; the image has both
    except ImportError:
        return None
    shapes = []
    for image in images:
        try:
            with Image.open(image) as opened:
                width, height = opened.size
        except OSError:
            return None
        scale = size / max(width, height)
        shapes.append((width * scale, height * scale))
    return shapes


# Asking the engine


def _predict(
    run: Run, project: Project, weights: Path, images: list[Path], dataset: data.Dataset, device: str | None
) -> tuple[list[Array], dict[str, float]]:
    """What the engine's own validation finds in each picture (M x 6, confidence last), and its milliseconds a picture.

    The pictures are linked into a scratch directory under numbers: the engine's text files then name them clearly,
    wherever they lie, and no cache file is written beside the user's data.
    """
    from lab.job import say  # noqa: PLC0415
    from lab.tasks import perform  # noqa: PLC0415  it imports much, and a report from memory needs none of it

    say(f"measuring {project.show(weights)} on {len(images)} validation pictures; the next report need not")
    with tempfile.TemporaryDirectory(prefix="lab-report-") as scratch:
        place = Path(scratch)
        for part in ("images", "labels"):
            (place / part).mkdir()
        for number, image in enumerate(images):
            (place / "images" / f"{number:08}{image.suffix}").symlink_to(image)
            label = data.label_file(image)
            if label.is_file():
                (place / "labels" / f"{number:08}.txt").symlink_to(label)
        file = place / "data.yaml"
        said = {"train": "images", "val": "images", "names": list(dataset.names.values())}
        file.write_text(json.dumps(said), encoding="utf-8")  # which is yaml too
        options: dict[str, Any] = {
            "engine": run.engine,
            "weights": [str(weights)],
            "data": str(file),
            "imgsz": run.image_size,
            "save_txt": True,
            "save_conf": True,
            "project": str(place),
            "name": "val",
            "exist_ok": True,
        }
        if device is not None:
            options["device"] = device
        if run.options.get("single_cls"):
            options["single_cls"] = True
        with (place / "log").open("w+", encoding="utf-8") as log, _progress(place / "val" / "labels", len(images)):
            perform(Request("val", options), project, log)
            log.seek(0)
            speed = {name: float(value) for value, name in SPEED.findall(log.read())}
        texts = (place / "val" / "labels" / f"{number:08}.txt" for number in range(len(images)))
        return [_predicted(text) for text in texts], {_stage(name): value for name, value in speed.items()}


def _stage(name: str) -> str:
    return {"pre-process": "preparing", "preprocess": "preparing", "inference": "network"}.get(name, "choosing boxes")


def _predicted(file: Path) -> Array:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return np.empty((0, 6))
    rows = np.array([[float(word) for word in line.split()] for line in lines if line.strip()]).reshape(-1, 6)
    centre, half = rows[:, 1:3], rows[:, 3:5] / 2
    return np.hstack([rows[:, :1], centre - half, centre + half, rows[:, 5:]])


@contextmanager
def _progress(directory: Path, total: int) -> Iterator[None]:
    """A bar on a terminal, from the text files that the engine has written."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    ended = threading.Event()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("pictures", total=total)

        def follow() -> None:
            while not ended.wait(1.0):
                bar.update(task, completed=sum(1 for _ in directory.glob("*.txt")))

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


# Pictures to show


def choose(images: list[Path], pictures: list[Picture]) -> tuple[list[Sample], list[Sample]]:
    """A fair sample, evenly spread, and of the others those with the most errors."""
    spread = np.unique(np.linspace(0, len(images) - 1, min(FAIR, len(images))).round().astype(int)).tolist()
    wrong = [sum(report_measure.errors(picture)) for picture in pictures]
    others = sorted(set(range(len(images))) - set(spread), key=lambda index: (-wrong[index], index))
    worst = [index for index in others[:WORST] if wrong[index]]
    fair, bad = ([_sample(images[index], pictures[index]) for index in indices] for indices in (spread, worst))
    return fair, bad


def _sample(image: Path, picture: Picture) -> Sample:
    order = np.argsort(picture.found[:, 5], kind="stable")
    shown = Picture(picture.truth, picture.found[order][picture.found[order, 5] >= SURE])
    matched, _ = report_measure.pairs(shown, named=True)
    hit, right = {row for row, _ in matched}, {column for _, column in matched}
    return Sample(
        str(image),
        shown.truth.round(4).tolist(),
        shown.found.round(4).tolist(),
        [row not in hit for row in range(len(shown.truth))],
        [column not in right for column in range(len(shown.found))],
    )

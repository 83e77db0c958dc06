"""`lab smoke`: prove a machine from pictures to detections, with nothing of the user's touched."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np

from lab import demo, limits, upstream
from lab.errors import FAILED, LabError
from lab.export_check import TOLERANCE, checkpoint_predictions, gap
from lab.job import say
from lab.launch import Interrupted
from lab.onnx_detect import Array, Detection, decode, infer, iou, letterbox, suppress
from lab.options import Request
from lab.project import CODE, Project
from lab.tasks import perform

SIZE = 96  # pixels
RECIPE = demo.Recipe(images=112, size=SIZE, seed=7, val_share=1 / 7, shapes=(1, 2), radius=(0.16, 0.26), turn=0.1)
EPOCHS = {"yolov5": 29, "yolov5u": 24}
ENOUGH = 0.6  # of the shapes must be found; a net that learnt nothing finds none


@dataclass
class Times:
    """Seconds by stage, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[None]:
        """Measure one stage and say that it begins."""
        print(f"smoke: {len(self.seconds) + 1}/{total} {name}", file=sys.stderr, flush=True)
        begun = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - begun


def main(project: Project, engine: str, keep: bool, quick: bool = False) -> int:
    """Run the test with `engine` (the project's when empty); returns the exit status, prints one final line.

    `quick`: every stage runs and .pt and ONNX must agree, but one epoch teaches nothing, so nothing must be found.
    """
    wanted = engine or project.engine
    note = ""
    if wanted == "yolov5" and not upstream.present(project.upstream):
        try:
            say(upstream.fetch(project))
        except LabError as error:
            if engine:
                raise
            say(error.sentence)
            wanted, note = "yolov5u", "; engine yolov5 is not proven, its source could not be had"
    limits.require_writable(project.runs)
    directory = project.runs / f"smoke-{time.strftime('%Y%m%d-%H%M%S')}-{wanted}"
    directory.mkdir(parents=True, exist_ok=True)
    passed = False
    try:
        passed = _prove(project, wanted, directory, note, quick)
    finally:
        if keep or not passed:
            say(f"the files of this test are kept in {project.show(directory)}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    return 0 if passed else FAILED


def _prove(project: Project, engine: str, directory: Path, note: str, quick: bool) -> bool:
    times = Times()
    with (directory / "log.txt").open("w", encoding="utf-8") as log:
        try:
            counts, difference = _stages(project, engine, directory, times, log, 1 if quick else EPOCHS[engine])
        except Interrupted:
            raise
        except LabError as error:
            raise LabError(
                f"smoke: {engine} failed: {error.sentence}; log: {project.show(Path(log.name))}", FAILED
            ) from error
    total = sum(times.seconds.values())
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in times.seconds.items())
    found, shapes = counts
    enough, agree = quick or found >= ENOUGH * shapes, difference <= TOLERANCE["float32"]
    words = "ok" if enough and agree else "FAILED"
    print(
        f"smoke: {engine} {words} in {total:.0f} s ({parts}): "
        f"{'one epoch' if quick else f'{found} of {shapes} shapes found'}, .pt and ONNX "
        f"{'agree' if agree else 'differ'} to {difference:.0e}{note}",
        flush=True,
    )
    return enough and agree


def _stages(
    project: Project, engine: str, directory: Path, times: Times, log: IO[str], epochs: int
) -> tuple[tuple[int, int], float]:
    with times.stage("data", 5):
        demo.make(RECIPE, directory / "data")
    data = str(directory / "data" / "data.yaml")
    common = {"engine": engine, "project": str(directory), "exist_ok": True}
    with times.stage("train", 5):
        options = {**common, **training(engine, directory / "data" / "data.yaml"), "epochs": epochs}
        perform(Request("train", options), project, log)
    checkpoint = directory / "train" / "weights" / "best.pt"
    with times.stage("val", 5):
        val = {"weights": [str(checkpoint)], "data": data, "imgsz": SIZE, "workers": 0, "name": "val"}
        perform(Request("val", {**common, **val}), project, log)
    with times.stage("export", 5):
        export = {"engine": engine, "weights": [str(checkpoint)], "include": ["onnx"], "imgsz": [SIZE]}
        perform(Request("export", export), project, log)
    with times.stage("onnxruntime", 5):
        return _compare(project, engine, directory, checkpoint, log)


def training(engine: str, data: Path) -> dict[str, Any]:
    """Options of a training on pictures of RECIPE that learns them in seconds."""
    return {
        "engine": engine,
        "weights": "",
        "cfg": "yolov5n.yaml",
        "data": str(data),
        "hyp": str(CODE / "configs" / "hyp.small.yaml"),
        "imgsz": SIZE,
        "batch_size": 8,
        "epochs": EPOCHS[engine],
        "optimizer": "AdamW",
        "cache": "ram",
        "workers": 0,  # 96 small pictures in memory: starting workers would take longer than loading
        "noplots": True,
        "noval": True,
        "nosave": True,
        "name": "train",
    }


def _compare(
    project: Project, engine: str, directory: Path, checkpoint: Path, log: IO[str]
) -> tuple[tuple[int, int], float]:
    """Shapes of the validation pictures that the ONNX file finds, of all; and the largest difference to the .pt.

    Both see the same pictures, and every prediction of both is decoded the same way, before non-maximum suppression:
    boxes are compared as fractions of the image size, scores as they are.
    """
    pictures = sorted((directory / "data" / "images" / "val").iterdir())
    images = np.stack([letterbox(_picture(file), SIZE) for file in pictures])
    reference = checkpoint_predictions(project, engine, checkpoint, images, directory, log)
    boxes, scores = decode(infer(checkpoint.with_suffix(".onnx"), images), engine)
    pt_boxes, pt_scores = decode(reference, engine)
    difference = max(gap(boxes, pt_boxes)[0] / SIZE, gap(scores, pt_scores)[0])
    truth = [_labels(directory / "data" / "labels" / "val" / f"{file.stem}.txt") for file in pictures]
    found = sum(_found(suppress(b, s), t) for b, s, t in zip(boxes, scores, truth, strict=True))
    (directory / "smoke.json").write_text(
        json.dumps({"found": found, "shapes": sum(map(len, truth)), "difference": difference}), encoding="utf-8"
    )
    return (found, sum(map(len, truth))), difference


def _picture(file: Path) -> Any:
    image = cv2.imread(str(file))
    assert image is not None, file
    return image


def _labels(file: Path) -> list[tuple[int, Array]]:
    """Class and box (left, top, right, bottom; pixels) of each line."""
    rows = [[float(word) for word in line.split()] for line in file.read_text(encoding="utf-8").splitlines()]
    return [
        (int(c), np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2], np.float32) * SIZE) for c, x, y, w, h in rows
    ]


def _found(detections: list[Detection], truth: list[tuple[int, Array]]) -> int:
    """How many shapes have a detection of their class that overlaps by half or more; each detection counts once."""
    left = list(detections)
    found = 0
    for label, box in truth:
        match = next((d for d in left if d.label == label and iou(np.array(d.box), box) >= 0.5), None)
        if match is not None:
            left.remove(match)
            found += 1
    return found

"""Run directories as the engines leave them, written by hand: what the tests of the report read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from lab import record, telemetry
from lab.dataset import Dataset, label_file

YOLOV5 = (
    "epoch", "train/box_loss", "train/obj_loss", "train/cls_loss", "metrics/precision", "metrics/recall",
    "metrics/mAP_0.5", "metrics/mAP_0.5:0.95", "val/box_loss", "val/obj_loss", "val/cls_loss",
    "x/lr0", "x/lr1", "x/lr2",
)  # fmt: skip
YOLOV5U = (
    "epoch", "time", "train/box_loss", "train/cls_loss", "train/dfl_loss", "metrics/precision(B)",
    "metrics/recall(B)", "metrics/mAP50(B)", "metrics/mAP50-95(B)", "val/box_loss", "val/cls_loss", "val/dfl_loss",
    "lr/pg0", "lr/pg1", "lr/pg2",
)  # fmt: skip
NAMES = ("circle", "square", "triangle")


def write_results(file: Path, engine: str, epochs: int, peak: int | None = None) -> None:
    """results.csv as `engine` writes it: YOLOv5 pads its cells and counts from 0. The best epoch is `peak`."""
    heads = YOLOV5 if engine == "yolov5" else YOLOV5U
    peak = epochs if peak is None else peak
    lines = []
    for number in range(1, epochs + 1):
        rise = 1 - math.exp(-4 * min(number, peak) / epochs) - 0.002 * max(0, number - peak)
        loss = 0.02 + 0.1 * math.exp(-3 * number / epochs)
        over = 0.004 * max(0, number - peak)
        values: dict[str, float] = {"epoch": number - (engine == "yolov5"), "time": 3.5 * number}
        for head in heads[1:]:
            if head.startswith("metrics"):
                values[head] = rise * (0.55 if "95" in head else 0.85)
            elif head != "time":
                values[head] = 0.01 * (1 - number / (epochs + 1)) if "lr" in head else loss + over * ("val" in head)
        cells = [f"{values[head]:.5g}" for head in heads]
        lines.append(",".join(cell.rjust(20) for cell in cells) if engine == "yolov5" else ",".join(cells))
    title = ",".join(head.rjust(20) for head in heads) if engine == "yolov5" else ",".join(heads)
    file.write_text("\n".join([title, *lines, ""]), encoding="utf-8")


def write_telemetry(file: Path, samples: int, gpus: int, gpu_util: float = 90, cpu_util: float = 40) -> None:
    """A sample every two seconds; a busy GPU takes 400 images a second and waits for the twentieth part of the time."""
    lines = [",".join(telemetry.COLUMNS)]
    for number in range(samples):
        wave = 5 * math.sin(number / 7)
        common = f"{cpu_util + wave:.1f},{4000 + number % 50},{3 + wave / 5:.2f},{cpu_util + 10 + wave:.1f}"
        common += f",{400 + wave:.1f},5.0"
        for gpu in range(gpus):
            lines.append(
                f"{2 * number + 2},{gpu},{gpu_util + wave - gpu:.0f},{9000 + 10 * gpu},{300 + wave:.1f},{common},1700"
            )
        if not gpus:
            lines.append(f"{2 * number + 2},,,,,{common},")
    file.write_text("\n".join([*lines, ""]), encoding="utf-8")


def write_pictures(root: Path, count: int, names: tuple[str, ...] = NAMES, size: int = 160) -> Path:
    """A small data set, two boxes a picture, the same pictures for training and validation; returns its yaml file."""
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture = np.full((size * 3 // 4, size, 3), 60 + number % 90, np.uint8)
        lines = []
        for box in range(2):
            x, y = 0.25 + 0.5 * box + rng.uniform(-0.05, 0.05), rng.uniform(0.3, 0.7)
            w, h = rng.uniform(0.15, 0.3, 2)
            corners = [round(v) for v in ((x - w / 2) * size, (y - h / 2) * size * 3 / 4)]
            far = [round(v) for v in ((x + w / 2) * size, (y + h / 2) * size * 3 / 4)]
            label = (2 * number + box) % len(names)
            colour = (40 + 90 * (label % 3), 200 - 60 * (label % 3), 120)
            cv2.rectangle(picture, tuple(corners), tuple(far), colour, -1)
            lines.append(f"{label} {x:.4f} {y:.4f} {w:.4f} {h:.4f}\n")
        cv2.imwrite(str(root / "images" / f"{number:04}.jpg"), picture)
        (root / "labels" / f"{number:04}.txt").write_text("".join(lines), encoding="utf-8")
    file = root / "data.yaml"
    said = {"train": str(root / "images"), "val": str(root / "images"), "names": dict(enumerate(names))}
    file.write_text(yaml.safe_dump(said), encoding="utf-8")
    return file


def make_run(
    directory: Path,
    pictures: Path,
    engine: str = "yolov5",
    epochs: int = 30,
    planned: int | None = None,
    peak: int | None = None,
    gpus: int = 1,
    samples: int = 60,
    **more: Any,
) -> Path:
    """A training on the data set `pictures` with everything in its place; `more` replaces keys of run.json."""
    (directory / "weights").mkdir(parents=True)
    (directory / "weights" / "best.pt").write_bytes(b"PK weights")
    names = yaml.safe_load(pictures.read_text(encoding="utf-8"))["names"]
    (directory / "data.yaml").write_text(
        f"# {pictures}, with absolute paths\n" + pictures.read_text(encoding="utf-8"), encoding="utf-8"
    )
    options = {"epochs": planned or epochs, "imgsz": 160, "data": str(directory / "data.yaml"), "seed": 0, "workers": 8}
    if engine == "yolov5":
        said = {**options, "weights": "", "cfg": "/x/yolov5n.yaml", "batch_size": 16, "hyp": {"lr0": 0.01, "box": 0.05}}
        (directory / "opt.yaml").write_text(yaml.safe_dump(said), encoding="utf-8")
        (directory / "hyp.yaml").write_text("lr0: 0.01\nbox: 0.05\n", encoding="utf-8")
    else:
        said = {**options, "model": "yolov5n.yaml", "pretrained": False, "batch": 16, "lr0": 0.01, "box": 7.5}
        (directory / "args.yaml").write_text(yaml.safe_dump(said), encoding="utf-8")
    write_results(directory / "results.csv", engine, epochs, peak)
    write_telemetry(directory / telemetry.NAME, samples, gpus)
    card = {"name": "NVIDIA H200", "capability": "9.0", "memory_bytes": 150 << 30, "uuid": "GPU-1"}
    about = {
        "lab": 1,
        "command": ["lab", "train", "--engine", engine, "--data", "data/x.yaml", "--epochs", str(epochs)],
        "engine": engine,
        "task": "train",
        "started": "2026-11-23T08:00:00+00:00",
        "ended": "2026-11-23T08:10:00+00:00",
        "status": "done",
        "attempts": [
            {
                "batch": 16,
                "started": "2026-11-23T08:00:00+00:00",
                "ended": "2026-11-23T08:10:00+00:00",
                "status": "done",
                "reason": None,
            }
        ],
        "seed": 0,
        "torch_build": "cu128",
        "versions": {"python": "3.11.2", "torch": "2.8.0+cu128", "driver": None},
        "git": {
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "dirty": True,
            "diff": "diff.patch",
            "untracked": 1,
        },
        "data": {
            "file": "data/x.yaml",
            "fingerprint": "00112233aabbccdd",
            "images": {"train": 40, "val": 40},
            "names": list(names.values()),
        },
        "host": {"name": None, "cpus": 16, "memory_bytes": 128 << 30, "gpus": [card] * gpus},
        "resumed_from": None,
    }
    record.write(directory / record.NAME, json.dumps({**about, **more}))
    return directory


def predicted(images: list[Path], dataset: Dataset) -> list[np.ndarray[Any, Any]]:
    """What a fair detector might find: most boxes, a little off, some under another name, some that are not there."""
    rng = np.random.default_rng(1)
    found = []
    for image in images:
        rows = []
        for line in label_file(image).read_text(encoding="utf-8").splitlines():
            label, x, y, w, h = map(float, line.split())
            if rng.random() < 0.1:
                continue
            if rng.random() < 0.1:
                label = float(rng.integers(len(dataset.names)))
            x, y = x + rng.normal(0, 0.01), y + rng.normal(0, 0.01)
            rows.append([label, x - w / 2, y - h / 2, x + w / 2, y + h / 2, rng.uniform(0.3, 0.95)])
        if rng.random() < 0.3:
            rows.append([0.0, 0.05, 0.05, 0.2, 0.2, rng.uniform(0.05, 0.6)])
        found.append(np.array(rows).reshape(-1, 6))
    return found

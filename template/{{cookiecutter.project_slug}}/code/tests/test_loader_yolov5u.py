"""The fast data path of yolov5u against ultralytics' own, for the same seed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from lab import demo
from lab.fast.store import in_memory
from lab.project import CODE, Project

pytestmark = pytest.mark.container
SIDE = 96
PLAIN = {"mosaic": 0.0, "translate": 0.0, "scale": 0.0, "hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0, "fliplr": 0.0}
KINDS: dict[str, dict[str, Any]] = {
    "as it ships": {},
    "nothing": PLAIN,
    "no mosaic": {"mosaic": 0.0},
    "half of them": {"mosaic": 0.5, "mixup": 0.5},
    "turned": {"degrees": 20.0, "shear": 6.0},
    "leaning": {"mosaic": 0.5, "degrees": 10.0, "perspective": 0.001, "scale": 0.9},
    "flipped": {"flipud": 0.5, "fliplr": 0.5},
    "scale of two": {"scale": (0.4, 1.1)},
}
IMAGES = [5, 1, 2, 11, 0, 3, 7, 12, 4, 6, 8, 9]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """16 training images and 4 of validation, all of different shapes; one has no labels."""
    demo.make(demo.Recipe(images=20, size=SIDE, shapes=(1, 4)), tmp_path / "shapes")
    files = sorted(tmp_path.glob("shapes/images/*/*.jpg"))
    for number, file in enumerate(files):
        picture = cv2.imread(str(file))
        cv2.imwrite(str(file), cv2.resize(picture, (60 + 17 * number % 140, 150 - 11 * number % 90)))
    bare = tmp_path / "shapes" / "labels" / "train" / f"{files[3].stem}.txt"
    assert bare.is_file()
    bare.write_text("", encoding="utf-8")
    return tmp_path / "shapes"


def outline(label: Path) -> None:
    """Replace the boxes of `label` by polygons in them."""
    lines = []
    for line in label.read_text(encoding="utf-8").splitlines():
        number, x, y, width, height = (float(word) for word in line.split())
        turn = np.linspace(0, 2 * np.pi, 13)[:-1]
        points = np.stack([x + width / 2 * np.cos(turn), y + height / 2 * np.sin(turn)], 1).clip(0, 1)
        lines.append(" ".join([str(int(number)), *(f"{value:.6f}" for value in points.reshape(-1))]))
    label.write_text("\n".join(lines), encoding="utf-8")


def arguments(**changed: Any) -> Any:
    from ultralytics.cfg import get_cfg

    return get_cfg(overrides={"task": "detect", "imgsz": SIDE, "deterministic": False, **changed})


def upstream(root: Path, split: str, hyp: Any) -> Any:
    from ultralytics.data.build import build_yolo_dataset

    names = {"names": dict(enumerate(demo.NAMES)), "channels": 3}
    place = str(root / "images" / split)
    # the ring of a mosaic's partners is eight batches long; pictures of a validation batch share a shape
    return build_yolo_dataset(hyp, place, {"train": 1, "val": 4}[split], names, mode=split, rect=split == "val")


def stored(root: Path, split: str, hyp: Any, monkeypatch: pytest.MonkeyPatch, ring: bool = True) -> Any:
    """Our data set, over a store that holds what ultralytics loads."""
    from ultralytics.data import build

    from lab.fast.loader_yolov5u import StoredDataset

    own = upstream(root, split, arguments(mosaic=0.0))
    loaded = [own.load_image(number) for number in range(len(own))]
    store = in_memory(own.im_files, [image for image, _, _ in loaded], [full for _, full, _ in loaded])
    with monkeypatch.context() as patch:
        patch.setattr(build, "YOLODataset", lambda **named: StoredDataset(store=store, ring=ring, **named))
        return upstream(root, split, hyp)


def seed() -> None:
    random.seed(7)
    np.random.seed(7)


def fetched(dataset: Any, numbers: list[int]) -> dict[str, Any]:
    """A batch as torch's loader makes it."""
    asked = getattr(dataset, "__getitems__", None)
    found = asked(numbers) if asked else [dataset[number] for number in numbers]
    return dict(dataset.collate_fn(found))


def both(mine: Any, theirs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same batches of both, from the same seed; both have used as many random numbers."""
    made = []
    for dataset in (mine, theirs):
        seed()
        fetched(dataset, IMAGES[::-1])  # fills the ring
        made.append((fetched(dataset, IMAGES), random.random(), np.random.rand()))
    assert made[0][1:] == made[1][1:]
    return made[0][0], made[1][0]


def agree(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    """All but the pictures is the same, coordinates to a thousandth of a pixel."""
    assert mine.keys() == theirs.keys()
    for key in ("im_file", "ori_shape", "ratio_pad", "resized_shape"):
        assert mine[key] == theirs[key], key
    for key in ("batch_idx", "cls", "bboxes", "img"):
        assert mine[key].dtype == theirs[key].dtype, key
        assert mine[key].shape == theirs[key].shape, key
    assert mine["batch_idx"].tolist() == theirs["batch_idx"].tolist()
    assert mine["cls"].tolist() == theirs["cls"].tolist()
    assert float((mine["bboxes"] - theirs["bboxes"]).abs().max()) * SIDE < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_ultralytics_own(images: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hyp = arguments(**KINDS[kind])
    mine, theirs = both(stored(images, "train", hyp, monkeypatch), upstream(images, "train", hyp))
    agree(mine, theirs)
    assert len(theirs["cls"]) > len(IMAGES) // 2


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_of_polygons_are_ultralytics_own(images: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for label in (images / "labels" / "train").glob("*.txt"):
        outline(label)
    hyp = arguments(**KINDS[kind])
    theirs = upstream(images, "train", hyp)
    assert any(len(label["segments"]) for label in theirs.labels)
    agree(*both(stored(images, "train", hyp, monkeypatch), theirs))


def test_any_image_may_be_a_partner_as_with_images_in_memory(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hyp = arguments(mixup=0.5)
    theirs = upstream(images, "train", arguments(mixup=0.5, cache="ram"))
    assert theirs.cache == "ram"
    agree(*both(stored(images, "train", hyp, monkeypatch, ring=False), theirs))


def test_the_last_epochs_have_no_mosaics(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hyp = arguments(mixup=0.5)
    mine, theirs = stored(images, "train", hyp, monkeypatch), upstream(images, "train", hyp)
    before, _ = both(mine, theirs)
    for dataset in (mine, theirs):
        dataset.close_mosaic(arguments(mixup=0.5))
    after = both(mine, theirs)
    agree(*after)
    assert len(after[0]["cls"]) < len(before["cls"])


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_ultralytics_own_within_interpolation(
    images: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hyp = arguments(**KINDS[kind])
    mine, theirs = both(stored(images, "train", hyp, monkeypatch), upstream(images, "train", hyp))
    gap = (mine["img"].float() - theirs["img"].float()).abs()
    assert float(gap.mean()) < 0.1
    assert float(gap.max()) <= 8


def test_validation_batches_are_the_same_bytes(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hyp = arguments()
    mine, theirs = stored(images, "val", hyp, monkeypatch), upstream(images, "val", hyp)
    assert mine.rows.min() == 0
    batches = [fetched(dataset, [0, 1, 2, 3]) for dataset in (mine, theirs)]
    assert batches[0]["img"].equal(batches[1]["img"])
    assert {key: str(value) for key, value in batches[0].items()} == {k: str(v) for k, v in batches[1].items()}


def test_what_can_be_drawn() -> None:
    from types import SimpleNamespace

    from lab.fast.draw_yolov5u import expressible

    def why(hyp: dict[str, Any], **dataset: Any) -> str | None:
        told = {"rect": False, "channels": 3, "imgsz": SIDE, "labels": [{"segments": []}], **dataset}
        return expressible(arguments(**hyp), SimpleNamespace(**told))

    assert why({"copy_paste": 0.5, "mixup": 0.5, "perspective": 0.001, "erasing": 0.4}) is None
    assert "rect" in str(why({}, rect=True))
    assert "segment" in str(why({"task": "segment"}))
    assert "1 channels" in str(why({}, channels=1))
    assert "polygons" in str(why({"copy_paste": 0.1}, labels=[{"segments": []}, {"segments": [0]}]))


@pytest.mark.parametrize("words", [{"cutmix": 0.5}, {"bgr": 0.5}], ids=str)
def test_what_cannot_be_drawn_is_painted_by_ultralytics(
    images: Path, words: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hyp = arguments(**words)
    mine, theirs = stored(images, "train", hyp, monkeypatch), upstream(images, "train", hyp)
    said = capsys.readouterr().err
    assert "ultralytics paints the training pictures itself" in said
    assert f"`{next(iter(words))}`" in said
    found = both(mine, theirs)
    agree(*found)
    assert found[0]["img"].equal(found[1]["img"])


def test_polygons_that_are_pasted_are_painted_by_ultralytics(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hyp = arguments(copy_paste=0.5)
    assert stored(images, "train", hyp, monkeypatch).drawing is not None
    for label in (images / "labels" / "train").glob("*.txt"):
        outline(label)
    assert stored(images, "train", hyp, monkeypatch).drawing is None


def test_an_image_that_came_later_is_read_from_its_file(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lab.fast import loader_yolov5u

    theirs = upstream(images, "train", arguments())
    loaded = [theirs.load_image(number) for number in range(2, len(theirs))]
    store = in_memory(theirs.im_files[2:], [image for image, _, _ in loaded], [full for _, full, _ in loaded])
    theirs = upstream(images, "train", arguments())
    with monkeypatch.context() as patch:
        patch.setattr(
            loader_yolov5u.build,
            "YOLODataset",
            lambda **named: loader_yolov5u.StoredDataset(store=store, ring=True, **named),
        )
        mine = upstream(images, "train", arguments())
    assert mine.rows.tolist() == [-1, -1, *range(len(theirs) - 2)]
    found = both(mine, theirs)
    agree(*found)
    assert float((found[0]["img"].float() - found[1]["img"].float()).abs().max()) <= 8


def test_a_store_of_another_size_is_not_used(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = stored(images, "train", arguments(imgsz=64), monkeypatch)
    assert "images are stored at 96 pixels and wanted at 64" in capsys.readouterr().err
    found = both(mine, upstream(images, "train", arguments(imgsz=64)))
    assert found[0]["img"].equal(found[1]["img"])


def test_worker_processes_fetch_whole_batches(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.data.build import build_dataloader

    dataset = stored(images, "train", arguments(), monkeypatch)
    loader = build_dataloader(dataset, 4, 2, shuffle=True, rank=-1, device="cpu")
    assert loader.num_workers == 2
    seen = [list(loader) for _ in range(2)]
    dataset.close_mosaic(arguments())
    loader.reset()
    seen.append(list(loader))
    loader.close()
    for epoch in seen:
        assert sorted(name for batch in epoch for name in batch["im_file"]) == sorted(dataset.im_files)
        assert all(batch["img"].shape == (4, 3, SIDE, SIDE) for batch in epoch)
    boxes = [sum(len(batch["cls"]) for batch in epoch) for epoch in seen]
    assert boxes[2] < boxes[1]


@pytest.mark.parametrize("kind", ["as it ships", "half of them", "leaning"])
def test_the_device_loader_gives_the_same_batches(images: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from ultralytics.data.build import build_dataloader

    from lab.fast.device_yolov5u import TrainLoader

    hyp = arguments(**KINDS[kind])
    dataset = stored(images, "train", hyp, monkeypatch)
    torch.manual_seed(7)
    loader = TrainLoader(
        build_dataloader(dataset, 6, 0, shuffle=True, rank=-1, device="cpu"), torch.device("cpu"), 0, 2, compiled=False
    )
    assert (len(loader), loader.batch_size, loader.num_workers, loader.dataset) == (3, 6, 0, dataset)
    unused = iter(loader)
    batches = list(loader)
    theirs = upstream(images, "train", hyp)
    seed()
    for batch in batches:
        numbers = [dataset.im_files.index(name) for name in batch["im_file"]]
        own = fetched(theirs, numbers)
        agree(batch, own)
        gap = (batch["img"].float() - own["img"].float()).abs()
        assert float(gap.mean()) < 1.0
        assert float((gap > 32).float().mean()) < 0.01
    assert sorted(name for batch in batches for name in batch["im_file"]) == sorted(dataset.im_files)
    dataset.close_mosaic(hyp)
    loader.reset()
    after = list(loader)
    assert sum(len(batch["cls"]) for batch in after) < sum(len(batch["cls"]) for batch in batches)
    assert next(unused)["img"].shape == (6, 3, SIDE, SIDE)
    loader.close()


def test_the_trainer_gets_the_device_loader(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    import torch

    from lab.fast import loader_yolov5u
    from lab.fast.device_yolov5u import TrainLoader

    dataset = stored(images, "train", arguments(), monkeypatch)
    own = loader_yolov5u.build.build_dataloader(dataset, 4, 0, device="cpu")
    get = loader_yolov5u._on_device(lambda *_, **__: own, 1 << 30)
    trainer = SimpleNamespace(device=torch.device("cpu"), args=arguments(workers=2))
    assert get(trainer, "", mode="val") is own
    loader = get(trainer, "", mode="train")
    assert isinstance(loader, TrainLoader)
    assert loader.resident
    loader.close()
    dataset.rows[:] = -1
    assert get(trainer, "", mode="train") is own


@pytest.mark.parametrize("kind", ["half of them", "leaning"])
def test_a_neighbour_is_painted_for_an_image_that_the_store_lacks(
    images: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    import torch

    from lab.fast import loader_yolov5u
    from lab.fast.device_yolov5u import TrainLoader

    hyp = arguments(workers=2, **KINDS[kind])
    dataset = stored(images, "train", hyp, monkeypatch)
    lacking = [0, len(dataset) - 1]
    dataset.rows[lacking] = -1
    own = loader_yolov5u.build.build_dataloader(dataset, 4, 0, shuffle=True, rank=-1, device="cpu")
    said: list[str] = []
    monkeypatch.setattr(loader_yolov5u, "_say", said.append)
    trainer = SimpleNamespace(device=torch.device("cpu"), args=hyp)
    loader = loader_yolov5u._on_device(lambda *_, **__: own, 0)(trainer, "")
    assert isinstance(loader, TrainLoader)
    assert f"2 of {len(dataset)} training images are not in the store: a neighbour" in said[0]
    torch.manual_seed(7)
    batches = list(loader)
    loader.close()
    names = [name for batch in batches for name in batch["im_file"]]
    there = [name for number, name in enumerate(dataset.im_files) if number not in lacking]
    assert sorted(names) == sorted([*there, there[0], there[0]])  # the last one's neighbour is the first
    assert all(len(batch["cls"]) for batch in batches)


def test_a_training_reads_from_the_store_and_goes_on(project: Project, shapes: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "lab", "train", "--engine", "yolov5u", "--weights", "", "--cfg", "yolov5n.yaml"]
    words += ["--img", str(SIDE), "--batch", "4", "--epochs", "4", "--noplots", "--with", "store"]
    there = {**os.environ, "PYTHONPATH": str(CODE)}
    running = subprocess.Popen(words, env=there, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    run = project.root / "runs/train/exp"
    until = time.monotonic() + 300
    while not (run / "weights/last.pt").exists() and running.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=120)[1]
    assert running.returncode == 130, said
    assert "images from the store" in said
    done = subprocess.run([*words[:4], "--resume", str(run)], env=there, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "paints the training pictures itself" not in said + done.stderr
    speed = json.loads((run / "request.json").read_text(encoding="utf-8"))["speed"]
    assert speed["data"] == "store"
    assert (run / "results.csv").read_text(encoding="utf-8").count("\n") == 5

"""Inside the container: our loader beside YOLOv5's own, with the same seeds."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from lab import upstream
from lab.fast import loader_yolov5
from lab.fast.store import Store, in_memory
from lab.project import CODE

pytestmark = pytest.mark.container
SIDE = 160
SIZES = [(90, 160), (160, 90), (121, 203), (160, 160), (64, 64), (300, 200), (480, 640)]  # height, width
TOO_LONG = (147, 97)  # YOLOv5 makes 161 pixels of 147


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """YOLOv5's module of data loaders."""
    source = CODE / "yolov5"
    if not upstream.present(source):
        pytest.skip("YOLOv5's source is not here: run `lab fetch` first")
    sys.path.insert(0, str(source))
    import utils.dataloaders

    own = utils.dataloaders.LoadImagesAndLabels
    yield utils.dataloaders
    utils.dataloaders.LoadImagesAndLabels = own
    sys.path.remove(str(source))


def write(place: Path, count: int = 21, outlined: str = "none", sizes: Any = None) -> Path:
    """Smooth images of odd sizes; every fourth without labels. `outlined`: which labels are polygons."""
    chance = np.random.default_rng(1)
    (place / "images").mkdir(parents=True)
    (place / "labels").mkdir()
    for number in range(count):
        height, width = (sizes or SIZES)[number % len(sizes or SIZES)]
        coarse = chance.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(place / "images" / f"{number:03d}.png"), image)
        lines = []
        for _ in range((3, 0, 7, 1)[number % 4]):
            values: Any = [*(0.1 + 0.8 * chance.random(2)), *(0.02 + 0.5 * chance.random(2))]
            if outlined == "all" or (outlined == "some" and number % 2 == 0):
                values = chance.random(2 * chance.integers(4, 9))
            lines.append(" ".join([str(chance.integers(0, 5)), *(f"{value:.4f}" for value in values)]))
        (place / "labels" / f"{number:03d}.txt").write_text("\n".join(lines), encoding="utf-8")
    return place / "images"


def hyp(**changed: float) -> dict[str, float]:
    import yaml

    text = (CODE / "yolov5/data/hyps/hyp.scratch-low.yaml").read_text(encoding="utf-8")
    return {**yaml.safe_load(text), **changed}


def stored(own: Any, lacking: int = 0) -> Store:
    """A store of what YOLOv5's `load_image` gives, but for every `lacking`-th image."""
    there = [number for number in range(own.n) if not lacking or number % lacking]
    images = [own.load_image(number) for number in there]
    paths = [str(Path(own.im_files[number]).absolute()) for number in there]
    store = in_memory(paths, [image[0] for image in images], [image[1] for image in images])
    return dataclasses.replace(store, side=own.img_size)


def pair(engine: Any, images: Path, ring: bool = False, lacking: int = 0, **named: Any) -> tuple[Any, Any]:
    """YOLOv5's training data set, and ours on a store."""
    named = {"augment": True, "hyp": hyp(), **named}
    own = engine.LoadImagesAndLabels(str(images), SIDE, 8, **named)
    stores = {"train" if named["augment"] else "val": stored(own, lacking)}
    kind = loader_yolov5.data_set(engine.LoadImagesAndLabels, stores, ring)
    return own, kind(str(images), SIDE, 8, **named)


def seeded(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)


def batches(own: Any, ours: Any, seed: int, count: int = 8) -> tuple[Any, Any]:
    """The same batch of both. Both must leave the generators in the same state."""
    indices = [(seed * count + number) % own.n for number in range(count)]
    seeded(seed)
    one = own.collate_fn([own[index] for index in indices])
    state = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    seeded(seed)
    other = ours.collate_fn(ours.__getitems__(indices))
    assert state == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]
    return one, other


def assert_same_targets(one: Any, other: Any) -> None:
    assert one[1].shape == other[1].shape
    assert one[1].dtype == other[1].dtype
    assert np.abs(one[1].numpy() - other[1].numpy()).max(initial=0) < 1e-6
    assert one[2:] == other[2:]  # paths, shapes


def assert_close_images(one: Any, other: Any, coloured: bool = True) -> None:
    """Measured: without change of colours one level in 1 of 15 000 values; see test_paint.py for the rest."""
    assert one[0].dtype == other[0].dtype
    assert one[0].shape == other[0].shape
    difference = np.abs(one[0].numpy().astype(int) - other[0].numpy())
    assert difference.mean() < (0.05 if coloured else 0.0002)
    assert (difference > 1).mean() < (0.0003 if coloured else 1e-9)


@pytest.fixture(scope="module", params=["none", "some", "all"])
def images(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp(request.param), outlined=request.param)


@pytest.fixture(scope="module")
def plain_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("plain"))


GREYS = {"hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        GREYS,
        {"mosaic": 0.5},
        {"mosaic": 0.0},
        {"degrees": 20.0, **GREYS},
        {"shear": 8.0, "flipud": 0.5},
        {"scale": 0.9, "translate": 0.5, **GREYS},
        {"degrees": 10.0, "shear": 5.0, "perspective": 0.0008, "mosaic": 0.7},
    ],
    ids=" ".join,
)
def test_labels_and_pixels_are_yolov5s_for_the_same_seed(engine: Any, images: Path, changed: dict[str, float]) -> None:
    own, ours = pair(engine, images, hyp=hyp(**changed))
    boxes = 0
    for seed in range(6):
        one, other = batches(own, ours, seed)
        assert_same_targets(one, other)
        assert_close_images(one, other, "hsv_h" not in changed)
        boxes += len(one[1])
    assert boxes > 50


def test_mixup_blends_as_yolov5_does(engine: Any, images: Path) -> None:
    own, ours = pair(engine, images, hyp=hyp(mixup=0.5, **GREYS))
    for seed in range(6):
        one, other = batches(own, ours, seed)
        assert_same_targets(one, other)
        difference = np.abs(one[0].numpy().astype(int) - other[0].numpy())
        assert difference.max() <= 1
        assert difference.mean() < 0.02  # where YOLOv5's 114 r + 114 (1 - r) falls below 114


def test_an_image_that_yolov5_makes_a_pixel_too_long(engine: Any, tmp_path: Path) -> None:
    images = write(tmp_path, sizes=[TOO_LONG, (90, 160)])
    for mosaic in (0.0, 1.0):
        own, ours = pair(engine, images, hyp=hyp(mosaic=mosaic))
        assert ours.sizes.max() == SIDE + 1
        for seed in range(6):
            assert_same_targets(*batches(own, ours, seed))
    # YOLOv5 shrinks it and then warps it, we do both at once: sharper
    own, ours = pair(engine, images, hyp=hyp(mosaic=0.0, **GREYS))
    one, other = batches(own, ours, 0)
    assert np.abs(one[0].numpy().astype(int) - other[0].numpy()).mean() < 1.5


def test_images_that_the_store_lacks_come_from_their_files(
    engine: Any, plain_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, ours = pair(engine, plain_images, lacking=2)
    assert "11 of 21 images are not in the store" in capsys.readouterr().err
    assert (ours.rows < 0).sum() == 11
    for seed in range(6):
        one, other = batches(own, ours, seed)
        assert_same_targets(one, other)
        assert_close_images(one, other)
    del one
    seeded(0)
    first = ours[4]
    seeded(0)
    assert np.abs(first[0].numpy().astype(int) - own[4][0].numpy()).mean() < 0.05


def test_on_the_device_a_neighbour_is_painted_for_an_image_that_the_store_lacks(
    engine: Any, plain_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lab.fast import device_yolov5

    own = engine.LoadImagesAndLabels(str(plain_images), SIDE, 8, augment=True, hyp=hyp())
    speed = {"data": "device", "stores": {"train": stored(own, lacking=10), "val": None}, "switches": []}
    class_, create = engine.LoadImagesAndLabels, engine.create_dataloader
    loader_yolov5.install(speed)
    device_yolov5.install(speed)
    try:
        loader, _ = created(engine, plain_images, hyp=hyp(mixup=0.5))
    finally:
        engine.LoadImagesAndLabels, engine.create_dataloader = class_, create
    assert isinstance(loader, device_yolov5.TrainLoader)
    said = capsys.readouterr().err
    assert "3 of 21 training images are not in the store: a neighbour is painted" in said
    assert "read from their files" not in said
    epoch = list(loader)
    loader.close()
    present = [name for number, name in enumerate(own.im_files) if number % 10]
    standing_in = [own.im_files[number] for number in (1, 11, 1)]  # for the images 0, 10 and 20
    assert sorted(name for batch in epoch for name in batch[2]) == sorted([*present, *standing_in])
    assert all(len(targets) for _, targets, _, _ in epoch)


@pytest.mark.parametrize("what", ["rect", "copy_paste"])
def test_what_the_numbers_cannot_say_is_yolov5s_own(
    engine: Any, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write(tmp_path, outlined="all")
    own, ours = pair(
        engine, images, stride=32, **({"hyp": hyp(copy_paste=0.5)} if what == "copy_paste" else {what: True})
    )
    assert what in capsys.readouterr().err
    for seed in range(3):
        indices = [number for number in range(own.n) if own.batch[number] == seed % 3] if own.rect else [1, 2, 3, 4]
        seeded(seed)
        one = own.collate_fn([own[index] for index in indices])
        seeded(seed)
        other = ours.collate_fn(ours.__getitems__(indices))
        assert np.array_equal(one[0].numpy(), other[0].numpy())
        assert_same_targets(one, other)


def test_without_a_store_of_its_size_it_is_yolov5s_own(
    engine: Any, plain_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = engine.LoadImagesAndLabels(str(plain_images), SIDE, 8, augment=True, hyp=hyp())
    kind = loader_yolov5.data_set(engine.LoadImagesAndLabels, {"train": stored(own)}, False)
    smaller = kind(str(plain_images), 96, 8, augment=True, hyp=hyp())
    assert smaller.store is None
    assert "at 160 pixels, not 96" in capsys.readouterr().err
    seeded(0)
    assert smaller.collate_fn(smaller.__getitems__([0, 1]))[0].shape == (2, 3, 96, 96)


def test_a_ring_keeps_to_the_images_of_late(engine: Any, plain_images: Path) -> None:
    _, ours = pair(engine, plain_images, ring=True)
    seeded(0)
    draws = ours.draws(range(6))
    assert draws.row.max() == 5
    assert list(ours.ring) == [0, 1, 2, 3, 4, 5]


def created(engine: Any, images: Path, **named: Any) -> Any:
    import torch

    torch.manual_seed(0)
    seeded(0)
    named = {"hyp": hyp(), "augment": True, "shuffle": True, "workers": 2, **named}
    return engine.create_dataloader(str(images), SIDE, 8, 32, **named)


@pytest.mark.parametrize(
    "named",
    [{}, {"workers": 0}, {"image_weights": True, "shuffle": False}, {"quad": True}, {"cache": "ram"}, {"rank": 0}],
    ids=str,
)
def test_whole_epochs_through_the_seam(
    engine: Any, plain_images: Path, monkeypatch: pytest.MonkeyPatch, named: dict[str, Any]
) -> None:
    if "rank" in named:  # the first of two, without the other to wait for
        import torch

        monkeypatch.setattr(engine, "torch_distributed_zero_first", lambda _: contextlib.nullcontext())
        monkeypatch.setattr(torch.distributed, "is_available", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
        monkeypatch.setattr(engine, "WORLD_SIZE", 2)
        monkeypatch.setattr(engine, "RANK", 0)
    loader, own = created(engine, plain_images, **named)
    theirs = [batch for _ in range(2) for batch in loader]
    stores = {"train": stored(own)}
    upstream_class = engine.LoadImagesAndLabels
    loader_yolov5.install({"data": "store", "stores": {**stores, "val": None}, "partners": "all"})
    try:
        loader, ours = created(engine, plain_images, **named)
        assert isinstance(ours, upstream_class) and ours.whole_batches
        assert ours.ims == [None] * ours.n  # --cache has nothing to hold
        mine = [batch for _ in range(2) for batch in loader]
    finally:
        engine.LoadImagesAndLabels = upstream_class
    assert len(mine) == len(theirs) > 1
    for one, other in zip(theirs, mine, strict=True):
        assert type(other[2]) is type(one[2])
        if "cache" in named:  # YOLOv5 draws chance to judge its memory, so the pictures are others
            assert one[0].shape == other[0].shape and one[0].dtype == other[0].dtype
            continue
        assert_same_targets(one, other)
        assert_close_images(one, other)


def test_validation_sees_the_very_same(engine: Any, plain_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = {"augment": False, "shuffle": False, "rect": True, "pad": 0.5, "workers": 1}
    loader, own = created(engine, plain_images, **named)
    theirs = list(loader)
    kind = loader_yolov5.data_set(engine.LoadImagesAndLabels, {"val": stored(own)}, False)
    monkeypatch.setattr(engine, "LoadImagesAndLabels", kind)
    loader, ours = created(engine, plain_images, **named)
    assert ours.store is not None
    for one, other in zip(theirs, loader, strict=True):
        assert np.array_equal(one[0].numpy(), other[0].numpy())
        assert np.array_equal(one[1].numpy(), other[1].numpy())
        assert one[2:] == other[2:]


def test_plain_leaves_yolov5_alone(engine: Any) -> None:
    before = engine.LoadImagesAndLabels
    loader_yolov5.install({"data": "plain", "stores": {}, "partners": "all"})
    assert engine.LoadImagesAndLabels is before


def test_workers_share_the_stored_pixels(
    engine: Any, plain_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = engine.LoadImagesAndLabels(str(plain_images), SIDE, 8, augment=True, hyp=hyp())
    store = stored(own)
    file = tmp_path / "pixels"
    file.write_bytes(store.pixels.tobytes())
    mapped = dataclasses.replace(store, pixels=np.memmap(file, np.uint8, "r"))
    kind = loader_yolov5.data_set(engine.LoadImagesAndLabels, {"train": mapped}, False)
    monkeypatch.setattr(engine, "LoadImagesAndLabels", kind)
    loader, _ = created(engine, plain_images)
    assert len(list(loader)) == 3
    workers = [process.pid for process in loader.iterator._workers]
    assert len(workers) == 2
    for worker in workers:
        lines = Path(f"/proc/{worker}/smaps").read_text(encoding="utf-8").splitlines()
        begins = [number for number, line in enumerate(lines) if line.endswith(str(file))]
        kilobytes = {"Rss": 0, "Private_Dirty": 0}
        for begin in begins:
            for line in lines[begin + 1 : begin + 20]:
                name, _, rest = line.partition(":")
                if name in kilobytes:
                    kilobytes[name] += int(rest.split()[0])
        assert kilobytes["Rss"] > 0
        assert kilobytes["Private_Dirty"] == 0

"""Inside the container: a store holds, byte for byte, what each engine's own `load_image` gives."""

import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from lab import upstream
from lab.fast.store_build import build
from lab.fast.store_decode import recipe_of
from lab.project import CODE

pytestmark = pytest.mark.container
SIDE = 320
LOAD = """
import sys
import numpy as np
from pathlib import Path
import torch
from utils.dataloaders import LoadImagesAndLabels
augment, out, *paths = sys.argv[1:]
dataset = object.__new__(LoadImagesAndLabels)
dataset.im_files = paths
dataset.npy_files = [Path(path).with_suffix(".npy") for path in paths]
dataset.ims = [None] * len(paths)
dataset.img_size, dataset.augment = {side}, augment == "True"
np.savez(out, *[dataset.load_image(number)[0] for number in range(len(paths))])
"""


def exif(orientation: int) -> bytes:
    block = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    return b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Every way in which an image may be odd."""
    random = np.random.default_rng(0)

    def field(width: int, height: int) -> Any:
        rough = random.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        return cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)

    for number, (width, height) in enumerate([(1280, 720), (533, 400), (400, 533), (320, 200), (100, 40), (37, 331)]):
        for ending in ("jpg", "png", "bmp", "webp", "tif"):
            cv2.imwrite(str(tmp_path / f"{number}.{ending}"), field(width, height))
    image = field(411, 299)
    for name, options in {
        "444": [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444],
        "422": [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422],
        "440": [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440],
        "411": [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411],
        "progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
        "restarts": [cv2.IMWRITE_JPEG_RST_INTERVAL, 4],
    }.items():
        for copy in range(2):
            cv2.imwrite(str(tmp_path / f"{name}-{copy}.jpg"), np.roll(image, 9 * copy, axis=1), options)
    cv2.imwrite(str(tmp_path / "grey.jpg"), image[..., 0])
    cv2.imwrite(str(tmp_path / "grey.png"), image[..., 0])
    cv2.imwrite(str(tmp_path / "deep.png"), image.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "deep.tif"), image.astype(np.uint16) * 250)
    cv2.imwrite(str(tmp_path / "grey.tif"), image[..., 0])
    cv2.imwrite(str(tmp_path / "alpha.png"), cv2.cvtColor(image, cv2.COLOR_BGR2BGRA))
    jpeg = cv2.imencode(".jpg", image)[1].tobytes()
    for orientation in range(1, 9):
        (tmp_path / f"exif-{orientation}.jpg").write_bytes(jpeg[:2] + exif(orientation) + jpeg[2:])
    middle = len(jpeg) // 2
    (tmp_path / "holed.jpg").write_bytes(jpeg[:middle] + jpeg[middle + 400 :])
    (tmp_path / "flipped.jpg").write_bytes(jpeg[:middle] + bytes([jpeg[middle] ^ 0x55]) + jpeg[middle + 1 :])
    (tmp_path / "cut.jpg").write_bytes(jpeg[:middle])
    (tmp_path / "cut-with-end.jpg").write_bytes(jpeg[:middle] + b"\xff\xd9")
    (tmp_path / "trailing.jpg").write_bytes(jpeg + b"\0" * 100)
    return sorted(map(str, tmp_path.iterdir()))


def loaded_yolov5(paths: list[str], training: bool, out: Path) -> list[Any]:
    if not upstream.present(CODE / "yolov5"):
        pytest.skip("YOLOv5's source is not here: run `lab fetch` first")
    subprocess.run(
        [sys.executable, "-c", LOAD.replace("{side}", str(SIDE)), str(training), str(out), *paths],
        cwd=CODE / "yolov5", env={**os.environ, "PYTHONPATH": "."}, check=True,
    )  # fmt: skip
    with np.load(out) as images:
        return [images[f"arr_{number}"] for number in range(len(paths))]


def loaded_yolov5u(paths: list[str], training: bool) -> list[Any]:
    from ultralytics.data.dataset import YOLODataset

    dataset: Any = object.__new__(YOLODataset)
    dataset.im_files = paths
    dataset.npy_files = [Path(path).with_suffix(".npy") for path in paths]
    dataset.ims, dataset.im_hw0, dataset.im_hw = ([None] * len(paths) for _ in range(3))
    dataset.imgsz, dataset.augment, dataset.cache, dataset.prefix = SIDE, training, None, ""
    dataset.channels, dataset.cv2_flag = 3, cv2.IMREAD_COLOR
    dataset.buffer, dataset.max_buffer_length = [], 0
    return [dataset.load_image(number)[0] for number in range(len(paths))]


@pytest.mark.parametrize("training", [True, False], ids=["train", "val"])
@pytest.mark.parametrize("engine", ["yolov5", "yolov5u"])
def test_pixels_are_the_engines_own(
    engine: str, training: bool, paths: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    apart = tmp_path_factory.mktemp("apart")
    store = build(apart, "odd", paths, recipe_of(engine, SIDE, training), 1)
    kept = [path for path in paths if store.rows([path])[0] >= 0]
    assert {Path(path).name for path in set(paths) - set(kept)} <= {"cut.jpg"}
    own = loaded_yolov5(kept, training, apart / "own.npz") if engine == "yolov5" else loaded_yolov5u(kept, training)
    different = [
        Path(path).name
        for path, row, image in zip(kept, store.rows(kept).tolist(), own, strict=True)
        if not np.array_equal(store.image(row), image)
    ]
    assert different == []

from pathlib import Path

import cv2
import numpy as np
import pytest

from lab import check, dataset, demo
from lab.errors import LabError
from lab.project import Project

SMALL = demo.Recipe(images=10, size=96)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_the_same_seed_draws_the_same_whatever_the_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = demo.Recipe(images=100, size=48)
    monkeypatch.setattr(demo, "processors", lambda: 1)
    demo.make(recipe, tmp_path / "one")
    monkeypatch.setattr(demo, "processors", lambda: 3)
    demo.make(recipe, tmp_path / "three")
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    demo.make(demo.Recipe(images=100, size=48, seed=1), tmp_path / "other")
    assert contents(tmp_path / "one") != contents(tmp_path / "other")


def test_it_is_a_data_set_in_good_order(tmp_path: Path, project: Project) -> None:
    demo.make(demo.Recipe(images=20, size=64), tmp_path / "demo")
    found = dataset.open_dataset(str(tmp_path / "demo/data.yaml"), project)
    result = check.run(found, project, workers=1)
    assert {split: counts.images for split, counts in result.splits.items()} == {"train": 16, "val": 4}
    assert result.findings == []
    assert tuple(found.names.values()) == demo.NAMES


def test_boxes_fit_the_shapes_to_a_pixel_and_a_half() -> None:
    recipe = demo.Recipe(size=320, shapes=(1, 1))
    for number in range(12):
        random = np.random.default_rng(number)
        image = np.full((320, 320, 3), 90, np.uint8)
        label = number % 3
        x, y, w, h = (320 * v for v in demo._paint(image, random, label, (150.3, 160.7, 40.0 + number), 0.4))
        ys, xs = np.nonzero(np.abs(image.astype(int) - 90).sum(axis=2) > 30)
        drawn = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert np.abs(drawn - [x - w / 2, y - h / 2, x + w / 2, y + h / 2]).max() <= 1.5, demo.NAMES[label]
    image, boxes = demo.draw(recipe, "train", 0)
    assert image.shape == (320, 320, 3)
    assert len(boxes) == 1


def test_again_is_nothing_to_do_and_other_options_need_force(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    assert demo.make(SMALL, out)
    before = contents(out)
    assert not demo.make(SMALL, out)
    other = demo.Recipe(images=12, size=96)
    with pytest.raises(LabError, match="--force"):
        demo.make(other, out)
    assert contents(out) == before
    assert demo.make(other, out, force=True)
    assert len(list(out.rglob("*.jpg"))) == 12
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_directory_of_the_users_is_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "photos"
    out.mkdir()
    (out / "mine.jpg").touch()
    with pytest.raises(LabError, match="did not make"):
        demo.make(SMALL, out, force=True)
    assert contents(out) == {"mine.jpg": b""}


def test_pictures_are_readable_jpegs(tmp_path: Path) -> None:
    demo.make(SMALL, tmp_path / "demo")
    for file in (tmp_path / "demo").rglob("*.jpg"):
        image = cv2.imread(str(file))
        assert image is not None
        assert image.shape == (96, 96, 3)

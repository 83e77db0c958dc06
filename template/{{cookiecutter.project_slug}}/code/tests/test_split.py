import re
from pathlib import Path

import pytest
import yaml

from lab import cli, dataset
from lab.errors import LabError
from lab.project import Project
from lab.split import split


@pytest.fixture
def images(project: Project) -> Path:
    """60 pictures of 6 cameras, 10 each, in 3 directories."""
    images = project.root / "data" / "mine" / "images"
    for number in range(60):
        picture = images / f"day{number % 3}" / f"cam{number // 10}_{number:03d}.jpg"
        label = Path(dataset.label_path(str(picture)))
        for file in (picture, label):
            file.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(b"")
        label.write_text(f"{number % 4} .5 .5 .1 .1\n", encoding="utf-8")
    return images


def lists(root: Path) -> dict[str, list[str]]:
    return {file.stem: file.read_text(encoding="utf-8").splitlines() for file in sorted(root.glob("*.txt"))}


def test_every_picture_is_in_one_list_and_nothing_moves(images: Path, project: Project) -> None:
    before = sorted(images.rglob("*"))
    made = split(images, 0.2, 0.1)
    assert made.pictures == {"train": 42, "val": 12, "test": 6}
    written = lists(images.parent)
    assert {name: len(lines) for name, lines in written.items()} == made.pictures
    every = sorted(line for lines in written.values() for line in lines)
    assert len(set(every)) == 60
    assert all(line.startswith("./images/day") for line in every)
    assert sorted(images.rglob("*")) == before


def test_what_it_writes_is_a_data_set_with_relative_paths(images: Path, project: Project) -> None:
    made = split(images)
    said = yaml.safe_load(made.file.read_text(encoding="utf-8"))
    assert said == {
        "path": ".",
        "train": "train.txt",
        "val": "val.txt",
        "names": {number: f"class {number}" for number in range(4)},
    }
    assert str(project.root) not in made.file.read_text(encoding="utf-8")
    found = dataset.open_dataset(str(made.file), project)
    entries = list(dataset.entries(found))
    assert len(entries) == 60
    assert all(Path(entry.path).is_file() and Path(entry.label).is_file() for entry in entries)


def test_the_seed_decides_and_a_new_picture_changes_little(images: Path) -> None:
    split(images, seed=3)
    first = lists(images.parent)
    split(images, seed=3)
    assert lists(images.parent) == first
    (images / "day0" / "cam9_999.jpg").touch()
    split(images, seed=3)
    again = lists(images.parent)
    assert len(set(first["val"]) ^ set(again["val"])) <= 2
    split(images, seed=4)
    assert lists(images.parent) != again


@pytest.mark.parametrize(("by", "groups"), [("folder", 3), (r"cam(\d+)_", 6), (r"cam\d+", 6)])
def test_groups_stay_together(images: Path, by: str, groups: int) -> None:
    made = split(images, 0.25, 0.25 if groups > 3 else 0.0, group_by=by)
    assert sum(made.groups.values()) == groups
    written = lists(images.parent)
    assert all(written.values())

    def group(line: str) -> str:
        return line.split("/")[2] if by == "folder" else line.rpartition("/")[2].partition("_")[0]

    sides = [{group(line) for line in lines} for lines in written.values()]
    assert sum(len(side) for side in sides) == groups == len(set.union(*sides))


def test_one_large_group_leaves_something_for_each(images: Path) -> None:
    for number in range(200):
        (images / "day0" / f"cam0_x{number}.jpg").touch()
    made = split(images, 0.3, 0.3, group_by="folder")
    assert min(made.groups.values()) == 1


def test_names_come_from_what_is_there(images: Path) -> None:
    (images / "classes.txt").write_text("cat\ndog\n\nhorse\ncow\n", encoding="utf-8")
    assert yaml.safe_load(split(images).file.read_text(encoding="utf-8"))["names"] == {
        0: "cat",
        1: "dog",
        2: "horse",
        3: "cow",
    }
    for file in (images.parent / "train.txt", images.parent / "val.txt"):
        file.unlink()
    own = images.parent / "data.yaml"
    own.write_text("train: images\nval: images\nnames: [a, b, c, d]\n", encoding="utf-8")
    made = split(images, force=False)
    assert made.file.name == "split.yaml"
    assert yaml.safe_load(made.file.read_text(encoding="utf-8"))["names"][3] == "d"
    assert own.read_text(encoding="utf-8").startswith("train: images")


def test_a_list_of_somebody_else_stays(images: Path) -> None:
    (images.parent / "train.txt").write_text("mine\n", encoding="utf-8")
    with pytest.raises(LabError, match="--force"):
        split(images)
    assert lists(images.parent) == {"train": ["mine"]}
    split(images, force=True)
    assert len(lists(images.parent)["train"]) == 48


def test_lines_that_somebody_added_are_not_dropped_in_silence(images: Path, project: Project) -> None:
    split(images)
    train = images.parent / "train.txt"
    written = train.read_text(encoding="utf-8")
    extra = project.root / "data" / "extra" / "images" / "a.jpg"
    extra.parent.mkdir(parents=True)
    extra.touch()
    for more, words in (
        (
            "../extra/images/a.jpg\n",
            "a line of yours that this split would drop, such as ../extra/images/a.jpg: add --force",
        ),
        (f"{extra}\n../extra/images/a.jpg\n", f"2 lines of yours that this split would drop, such as {extra}"),
        (written.splitlines()[3] + "\n", "a line of yours"),  # seen twice as often
    ):
        train.write_text(written + more, encoding="utf-8")
        with pytest.raises(LabError, match=re.escape(words)):
            split(images, seed=5)
        assert train.read_text(encoding="utf-8") == written + more
    split(images, seed=5, force=True)
    assert "extra" not in train.read_text(encoding="utf-8")


def test_lines_of_pictures_that_are_gone_are_dropped(images: Path) -> None:
    split(images)
    gone = images.parent / (images.parent / "train.txt").read_text(encoding="utf-8").splitlines()[0]
    gone.unlink()
    assert sum(split(images).pictures.values()) == 59


def test_lists_elsewhere_keep_the_names(images: Path, project: Project) -> None:
    own = images.parent / "data.yaml"
    own.write_text("train: images\nval: images\nnames: [a, b, c, d]\n", encoding="utf-8")
    made = split(images, out=project.root / "data" / "lists")
    assert yaml.safe_load(made.file.read_text(encoding="utf-8"))["names"] == {0: "a", 1: "b", 2: "c", 3: "d"}


def test_lists_elsewhere(images: Path, project: Project) -> None:
    made = split(images, out=project.root / "data" / "lists")
    entries = list(dataset.entries(dataset.open_dataset(str(made.file), project)))
    assert len(entries) == 60
    assert all(Path(entry.label).is_file() for entry in entries)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("nowhere", "is no directory"),
        ("data/mine/images --val 0", "leave something for training"),
        ("data/mine/images --val 0.6 --test 0.4", "leave something for training"),
        ("data/mine/images --group-by (", "regular expression"),
        ("data/mine/images --group-by nothing", "finds nothing in"),
        ("data/mine/images --group-by jpg", "too few"),
    ],
)
def test_bad_input(images: Path, capsys: pytest.CaptureFixture[str], words: str, part: str) -> None:
    assert cli.main(["data", "split", *words.split()]) == 2
    assert part in capsys.readouterr().err


def test_the_command(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "split", "data/mine/images", "--test", "0.1", "--group-by", "folder"]) == 0
    assert "in 1 groups: data/mine/data.yaml" in capsys.readouterr().out

from pathlib import Path

import pytest
import yaml

from lab import dataset
from lab.errors import LabError
from lab.project import Project


def make(root: Path, names: str = "names: [a, b]", label: str | None = "0 .5 .5 .2 .2") -> Path:
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        (root / "images" / split / "1.jpg").touch()
        if label is not None:
            (root / "labels" / split / "1.txt").write_text(label + "\n", encoding="utf-8")
    file = root / "data.yaml"
    file.write_text(f"path: .\ntrain: images/train\nval: images/val\n{names}\ndownload: exec\n", encoding="utf-8")
    return file


def test_paths_become_absolute_and_the_download_goes(project: Project, tmp_path: Path) -> None:
    found = dataset.open_dataset(str(make(tmp_path / "set")), project)
    written = yaml.safe_load(dataset.write_absolute(found, tmp_path).read_text(encoding="utf-8"))
    assert written == {
        "train": str(tmp_path / "set/images/train"),
        "val": str(tmp_path / "set/images/val"),
        "names": {0: "a", 1: "b"},
    }


def test_path_may_count_from_the_projects_root(project: Project, tmp_path: Path) -> None:
    make(tmp_path / "data" / "own")
    file = tmp_path / "elsewhere.yaml"
    (tmp_path / "configs").mkdir()
    file = tmp_path / "configs" / "own.yaml"
    file.write_text("path: data/own\ntrain: images/train\nval: images/val\nnames: {0: a}\n", encoding="utf-8")
    found = dataset.open_dataset("configs/own.yaml", project)
    assert found.sources["val"] == [tmp_path / "data/own/images/val"]


def test_a_list_of_pictures_is_read_and_made_absolute(project: Project, tmp_path: Path) -> None:
    file = make(tmp_path / "set")
    (tmp_path / "set" / "train.txt").write_text("images/train/1.jpg\n", encoding="utf-8")
    file.write_text("train: train.txt\nval: images/val\nnames: [a]\n", encoding="utf-8")
    found = dataset.open_dataset(str(file), project)
    written = yaml.safe_load(dataset.write_absolute(found, tmp_path).read_text(encoding="utf-8"))
    assert Path(written["train"]).read_text(encoding="utf-8") == f"{tmp_path}/set/images/train/1.jpg\n"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("train: images/train\nval: images/val\n", "has no names"),
        ("val: images/val\nnames: [a]\n", "has no train"),
        ("train: images/train\nnames: [a]\n", "has no val"),
        ("train: images/nope\nval: images/val\nnames: [a]\n", "images/nope"),
        ("train: images/train\nval: images/val\nnames: {1: a}\n", "without a gap"),
        ("train: images/train\nval: images/val\nnames: [a]\nnc: 3\n", "delete nc"),
        ("train: labels/train\nval: images/val\nnames: [a]\n", "no pictures"),
        ("just text\n", "must hold the keys"),
        ("a: [\n", "cannot be read"),
    ],
)
def test_a_wrong_yaml_file_is_one_sentence(project: Project, tmp_path: Path, text: str, part: str) -> None:
    file = make(tmp_path / "set")
    file.write_text(text, encoding="utf-8")
    with pytest.raises(LabError) as caught:
        dataset.open_dataset(str(file), project)
    assert part in caught.value.sentence
    assert "\n" not in caught.value.sentence


def test_missing_labels_are_told_with_the_place_they_belong(project: Project, tmp_path: Path) -> None:
    file = make(tmp_path / "set", label=None)
    with pytest.raises(LabError, match=str(tmp_path / "set/labels/train/1.txt")):
        dataset.open_dataset(str(file), project)


def test_the_last_images_directory_becomes_labels() -> None:
    assert dataset.label_file(Path("/images/set/images/train/a.b.jpg")) == Path("/images/set/labels/train/a.b.txt")


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("/a/images/b/images/c/x.y.jpg", "/a/images/b/labels/c/x.y.txt"),
        ("/a/b.c/x", "/a/b.c/x.txt"),
        ("/a/b/x.jpg", "/a/b/x.txt"),
    ],
)
def test_label_path(image: str, label: str) -> None:
    assert dataset.label_path(image) == label


def test_entries_go_through_directories_links_and_lists(project: Project, tmp_path: Path) -> None:
    file = make(tmp_path / "set")
    (tmp_path / "set/images/train/deep").mkdir()
    (tmp_path / "set/images/train/deep/2.PNG").touch()
    (tmp_path / "set/images/train/deep/up").symlink_to(tmp_path / "set/images/train")
    (tmp_path / "set/images/train/notes.md").touch()
    (tmp_path / "set/val.txt").write_text("images/val/1.jpg\n\n/else/images/9.jpg\n", encoding="utf-8")
    file.write_text("train: images/train\nval: val.txt\nnames: [a]\n", encoding="utf-8")
    passed: list[str] = []
    found = dataset.open_dataset(str(file), project)
    entries = list(dataset.entries(found, lambda _, entry: passed.append(entry.name)))
    root = f"{tmp_path}/set"
    assert sorted((entry.split, entry.path, entry.label, entry.name) for entry in entries) == [
        ("train", f"{root}/images/train/1.jpg", f"{root}/labels/train/1.txt", "1.jpg"),
        ("train", f"{root}/images/train/deep/2.PNG", f"{root}/labels/train/deep/2.txt", "deep/2.PNG"),
        ("val", "/else/images/9.jpg", "/else/labels/9.txt", "9.jpg"),
        ("val", f"{root}/images/val/1.jpg", f"{root}/labels/val/1.txt", "images/val/1.jpg"),
    ]
    assert passed == ["notes.md"]


@pytest.mark.parametrize("names", ["names: [yes, no]", "names: [a, null]"])
def test_names_that_yaml_reads_otherwise(project: Project, tmp_path: Path, names: str) -> None:
    with pytest.raises(LabError, match="put it in quotes"):
        dataset.open_dataset(str(make(tmp_path / "set", names)), project)


def test_lists_of_one_name_stay_apart(project: Project, tmp_path: Path) -> None:
    file = make(tmp_path / "set")
    for split in ("train", "val"):
        (tmp_path / "set" / split).mkdir()
        (tmp_path / "set" / split / "files.txt").write_text(f"../images/{split}/1.jpg\n", encoding="utf-8")
    file.write_text("train: train/files.txt\nval: val/files.txt\nnames: [a]\n", encoding="utf-8")
    found = dataset.open_dataset(str(file), project)
    written = dataset.open_dataset(str(dataset.write_absolute(found, tmp_path)), project)
    for split in ("train", "val"):
        assert list(written.images(split)) == list(found.images(split))
        assert f"images/{split}/" in str(next(written.images(split)))


def test_names_that_are_numbers(project: Project, tmp_path: Path) -> None:
    file = make(tmp_path / "set")
    file.write_text("train: images/train\nval: images/val\nnames: [0, 1, 2]\n", encoding="utf-8")
    assert dataset.open_dataset(str(file), project).names == {0: "0", 1: "1", 2: "2"}
    file.write_text("train: images/train\nval: images/val\nnames: [yes, no]\n", encoding="utf-8")
    with pytest.raises(LabError, match="in quotes"):
        dataset.open_dataset(str(file), project)

"""`lab data check` on a data set with a fault of every kind planted in it, and nothing else wrong."""

import errno
import json
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_pictures import huge_png

from lab import check, check_facts, check_fix, check_page, cli, dataset, demo, fingerprint
from lab.check_kinds import KINDS
from lab.check_store import Store, place
from lab.errors import LabError
from lab.project import CODE, Project

Faults = set[tuple[str, str, str]]  # kind, split, name


@pytest.fixture
def root(project: Project) -> Path:
    """A data set of 60 sound pictures."""
    root = project.root / "data" / "planted"
    demo.make(demo.Recipe(images=60, size=96, val_share=0.5), root)
    return root


def opened(root: Path, project: Project) -> dataset.Dataset:
    return dataset.open_dataset(str(root / "data.yaml"), project)


def found(root: Path, project: Project) -> Faults:
    whole = opened(root, project)
    check.run(whole, project, workers=1)
    with Store(place(project, whole)) as store:
        return {(fault.kind, fault.split, Path(fault.path).name) for fault in store.faults()}


def exif(orientation: int) -> bytes:
    """An EXIF segment that holds nothing but an orientation."""
    block = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    return b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block


def png(seed: int, side: int = 64) -> bytes:
    image = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return cv2.imencode(".png", image)[1].tobytes()


def holed(jpeg: bytes) -> bytes:
    """A JPEG without some bytes of its middle: the end is there, the decoder runs out of data before."""
    middle = len(jpeg) // 2
    return jpeg[:middle] + jpeg[middle + 400 :]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


PICTURES: dict[str, list[tuple[str, Callable[[bytes], bytes]]]] = {
    "unreadable": [
        (".jpg", lambda _: b""),
        (".jpg", lambda _: b"<html>404</html>"),
        (".png", lambda _: b"\x89PNG"),
        (".jpg", lambda jpeg: jpeg[:20] + b"\xff\xd9"),
        (".png", lambda _: huge_png(20_000, 20_000)),
    ],
    "truncated": [
        (".jpg", lambda jpeg: jpeg[: len(jpeg) // 2]),
        (".jpg", lambda jpeg: jpeg[:-2]),
        (".jpg", lambda jpeg: jpeg[:2] + exif(1) + jpeg[2:-200]),
        (".png", lambda _: png(1)[:-12]),
        (".png", lambda _: png(2)[:3000]),
        (".webp", lambda jpeg: encoded(jpeg, ".webp")[:-40]),
        (".bmp", lambda jpeg: encoded(jpeg, ".bmp")[:-400]),
    ],
    "damaged": [(".jpg", holed), (".png", lambda _: flip(png(3)))],
    "extension": [(".jpg", lambda _: png(4)), (".png", lambda jpeg: jpeg[:-2] + b"\xff\xff\xd9")],
    "format": [(".jpg", lambda _: b"P6\n64 64\n255\n" + bytes(64 * 64 * 3))],
    "tiny": [(".png", lambda _: png(5, side=9))],
    "trailing": [(".jpg", lambda jpeg: jpeg + bytes(100))],
    "rotated": [(".jpg", lambda jpeg: jpeg[:2] + exif(6) + jpeg[2:])],
}
LABELS = {
    "row": [
        "0 .5 .5 .2",
        "0 .5 .5 .2 .2 .9",
        "0 .5 .5 .2 x",
        "0 nan .5 .2 .2",
        "0 .5 inf .2 .2",
        "-1 .5 .5 .2 .2",
        "0.5 .5 .5 .2 .2",
        "0,.5,.5,.2,.2",
        "\ufeff0 .5 .5 .2 .2",
        "0 .5 .5 .2 .2\n  \n0 .6 .6 .2 .2",
    ],
    "pixels": ["0 320 240 50 60", "1 .5 .5 12 .3"],
    "outside": ["0 -.1 .5 .2 .2", "0 .5 1.01 .2 .2", "0 .1 .1 .2 .1 1.2 .2"],
    "class": ["3 .5 .5 .2 .2", "0 .3 .3 .1 .1\n80 .5 .5 .2 .2"],
    "mixed": ["0 .5 .5 .2 .2\n1 .1 .1 .2 .1 .2 .2"],
    "flat": ["0 .5 .5 0 .2", "0 .1 .1 .2 .1 .3 .1"],
    "edge": ["0 .95 .5 .2 .2", "1 .5 .01 .1 .2"],
    "repeated": ["0 .5 .5 .2 .2\n0 .50 .50 .2 .2"],
    "empty": ["", "\n\n"],
}
SOUND = [  # what looks odd and is not
    "0 .5 .5 1 1",
    "0 .500000 .500000 1.00000001 1",
    "0 .1 .1 .2 .1 .2 .2\n1 .3 .3 .4 .3 .4 .4",
    "2.0 .5 .5 .2 .2",
    "0 .5 .5 .2 .2\n\n1 .5 .5 .2 .2\n\n",
    "0 .5 .5 .2 .2\r\n1 .5 .5 .3 .3\r\n",
    "0 0.005 0.5 0.0100001 .2",
]


def encoded(jpeg: bytes, ending: str) -> bytes:
    return cv2.imencode(ending, cv2.imdecode(np.frombuffer(jpeg, np.uint8), 1))[1].tobytes()


def plant(root: Path) -> Faults:
    """Plant faults in pictures of train and val; returns what is to be found."""
    free = {split: iter(sorted((root / "images" / split).iterdir())) for split in ("train", "val")}
    turns = random.Random(0)
    planted: Faults = set()
    for kind, ways in PICTURES.items():
        for ending, way in ways:
            split = turns.choice(("train", "val"))
            picture = next(free[split])
            content = way(picture.read_bytes())
            picture.unlink()
            picture.with_suffix(ending).write_bytes(content)
            planted.add((kind, split, picture.with_suffix(ending).name))
    for kind, texts in LABELS.items():
        for text in texts:
            split = turns.choice(("train", "val"))
            picture = next(free[split], None) or next(free["val" if split == "train" else "train"])
            label = dataset.label_file(picture)
            label.write_text(text, encoding="utf-8")
            planted.add((kind, picture.parent.name, label.name))
    return planted


def test_every_planted_fault_is_found_and_nothing_else(root: Path, project: Project) -> None:
    assert found(root, project) == set()
    planted = plant(root)
    assert {kind for kind, _, _ in planted} == {*PICTURES, *LABELS}
    assert found(root, project) == planted


def test_odd_labels_that_are_sound(root: Path, project: Project) -> None:
    labels = sorted((root / "labels" / "train").iterdir())
    for label, text in zip(labels, SOUND, strict=False):
        label.write_bytes(text.encode())
    assert found(root, project) == set()


def test_copies_in_a_split_and_between_splits(root: Path, project: Project) -> None:
    train, val = root / "images" / "train", root / "images" / "val"
    shutil.copy(train / "000003.jpg", train / "copy.jpg")
    shutil.copy(root / "labels/train/000003.txt", root / "labels/train/copy.txt")
    shutil.copy(train / "000004.jpg", val / "leak.jpg")
    (root / "labels/val/leak.txt").write_text("0 .5 .5 .1 .1\n", encoding="utf-8")
    assert found(root, project) == {("duplicate", "train", "copy.jpg"), ("overlap", "train", "000004.jpg")}
    with Store(place(project, opened(root, project))) as store:
        said = {fault.kind: fault.words for fault in store.faults()}
    assert said["duplicate"] == f"is also {train}/000003.jpg"
    assert said["overlap"] == f"is also in val: {val}/leak.jpg, with other labels"


def test_what_lies_beside_the_pictures(root: Path, project: Project) -> None:
    (root / "images/train/notes.txt").touch()
    (root / "images/train/old.gif").touch()
    (root / "labels/train/stray.txt").touch()
    (root / "labels/train/classes.txt").touch()
    (root / "labels/val/000001.txt").unlink()
    cache = root / "labels" / "train.cache"
    cache.touch()
    os.utime(cache, (1, 1))
    fresh = root / "labels" / "val.cache"
    fresh.touch()
    os.utime(fresh, (4e9, 4e9))
    array = root / "images/train/000002.npy"
    array.touch()
    os.utime(array, (1, 1))
    assert found(root, project) == {
        ("skipped", "train", "old.gif"),
        ("orphan", "train", "stray.txt"),
        ("unlabelled", "val", "000001.jpg"),
        ("cache", "", "train.cache"),
        ("cache", "train", "000002.npy"),
    }


@pytest.mark.parametrize("listed", [False, True])
def test_fix_moves_arrays_aside_and_undo_brings_them_back(
    root: Path, project: Project, capsys: pytest.CaptureFixture[str], listed: bool
) -> None:
    """An engine's that is out of date, and somebody's own, which engines would train on; a fresh one stays."""
    depth, cached, fresh = (root / f"images/train/{name}.npy" for name in ("000002", "000003", "000004"))
    np.save(depth, np.zeros((8, 8), np.float32))
    for array in (cached, fresh):
        np.save(array, np.zeros((96, 96, 3), np.uint8))
    os.utime(cached, (1, 1))
    os.utime(fresh, (4e9, 4e9))
    if listed:
        lines = "".join(f"images/train/{picture.name}\n" for picture in (root / "images/train").glob("*.jpg"))
        (root / "train.txt").write_text(lines, encoding="utf-8")
        text = (root / "data.yaml").read_text(encoding="utf-8").replace("images/train", "train.txt")
        (root / "data.yaml").write_text(text, encoding="utf-8")
    assert found(root, project) == {("array", "train", depth.name), ("cache", "train", cached.name)}
    before = contents(root)
    words = ["data", "check", str(root / "data.yaml")]
    assert cli.main([*words, "--fix"]) == 0
    assert "moved 0 pictures and 2 arrays into data/planted/aside" in capsys.readouterr().out
    gone = {f"images/train/{array.name}" for array in (depth, cached)}
    assert {name for name in contents(root) if not name.startswith("aside/")} == set(before) - gone
    assert contents(root)["aside/array/images/train/000002.npy"] == before["images/train/000002.npy"]
    assert cli.main([*words, "--undo"]) == 0
    assert contents(root) == before
    assert cached.stat().st_mtime == 1


def test_lists(root: Path, project: Project) -> None:
    (root / "train.txt").write_text("images/train/000000.jpg\nimages\\train\\1.jpg\n", encoding="utf-8")
    text = (root / "data.yaml").read_text(encoding="utf-8").replace("images/train", "train.txt")
    (root / "data.yaml").write_text(text, encoding="utf-8")
    assert found(root, project) == {("missing", "train", "images\\train\\1.jpg")}
    moved = check_fix.set_aside(opened(root, project), project)
    assert (moved.pictures, moved.lines) == (0, 1)
    assert (root / "train.txt").read_text(encoding="utf-8") == "images/train/000000.jpg\n"
    check_fix.undo(opened(root, project))
    assert "train\\1" in (root / "train.txt").read_text(encoding="utf-8")


def test_what_cannot_be_opened_is_not_moved_and_looked_at_again(root: Path, project: Project) -> None:
    (root / "images/odd.jpg").mkdir()
    (root / "train.txt").write_text("images/train/000000.jpg\nimages/odd.jpg\n", encoding="utf-8")
    text = (root / "data.yaml").read_text(encoding="utf-8").replace("images/train", "train.txt")
    (root / "data.yaml").write_text(text, encoding="utf-8")
    (root / "labels/val/000000.txt").unlink()
    (root / "labels/val/000000.txt").mkdir()
    faults = {fault for fault in found(root, project) if fault[0] == "denied"}
    assert faults == {("denied", "train", "odd.jpg"), ("denied", "val", "000000.txt")}
    assert check_fix.set_aside(opened(root, project), project).pictures == 0
    assert check.run(opened(root, project), project).read == 2


def test_stale_caches(root: Path, project: Project) -> None:
    (root / "val.txt").write_text("images/val/000000.jpg\n", encoding="utf-8")
    text = (root / "data.yaml").read_text(encoding="utf-8").replace("images/val", "val.txt")
    (root / "data.yaml").write_text(text, encoding="utf-8")
    caches = [root / "labels/train.cache", root / "val.cache"]
    for cache in caches:
        cache.touch()
    assert dataset.stale_caches(opened(root, project)) == []
    for cache in caches:
        os.utime(cache, (1, 1))
    assert dataset.stale_caches(opened(root, project)) == caches


@pytest.mark.parametrize(
    ("sources", "aside"),
    [
        ({"train": "a/images/train", "val": "a/images/val"}, "a/aside"),
        ({"train": "a/train", "val": "a/val"}, "a/aside"),
        ({"train": "a", "val": "a/b/val"}, "aside"),
        ({"train": "a/train.txt", "val": "b/images"}, "aside"),
    ],
)
def test_aside_is_never_where_engines_read(sources: dict[str, str], aside: str) -> None:
    base = Path("/data/set")
    places = {split: [base / source] for split, source in sources.items()}
    assert check_fix.aside_of(dataset.Dataset(base / "data.yaml", {0: "a"}, places, {})) == base / aside


def test_a_class_that_train_lacks(root: Path, project: Project) -> None:
    for label in (root / "labels/train").iterdir():
        text = label.read_text(encoding="utf-8")
        label.write_text("".join(f"{line}\n" for line in text.splitlines() if line[0] != "2"), encoding="utf-8")
    kinds = {finding.kind: finding for finding in check.run(opened(root, project), project).findings}
    assert kinds["absent"].examples[0].words == "class 2 triangle has no box in train"


def test_counts_and_sizes(root: Path, project: Project) -> None:
    for label in (root / "labels/val").iterdir():
        label.write_text("1 .5 .5 .5 .5\n1 .5 .5 .24 .24\n", encoding="utf-8")
    val = check.run(opened(root, project), project).splits["val"]
    assert (val.images, val.boxes, val.backgrounds) == (30, 60, 0)
    assert val.classes == {0: 0, 1: 60, 2: 0}
    assert val.bins == {1: 30, 2: 30}
    # a box of 100 x 100 pixels in a 1280 x 720 picture is 50 pixels at 640: in the octave from 40 to 80
    assert check_facts.size_bin(100 / 1280, 100 / 720, 1280, 720) == 3


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pictures and labels that are read from now on, by process: all in this one."""
    reads = [0, 0]

    def read(number: int, real: Callable[..., object]) -> Callable[..., object]:
        def counting(*arguments: object) -> object:
            reads[number] += 1
            return real(*arguments)

        return counting

    monkeypatch.setattr(check_facts, "read_picture", read(0, check_facts.read_picture))
    monkeypatch.setattr(check_facts, "read_label", read(1, check_facts.read_label))
    monkeypatch.setattr(check._Crew, "_start", lambda self, chunk, known: _Now(self.classes, chunk, known))
    monkeypatch.setattr(check, "wait", lambda waiting, **_: (list(waiting), []))
    return reads


class _Now:
    """A future that is done at once, in this process."""

    def __init__(self, classes: int, chunk: list[dataset.Entry], known: list[check_facts.Known]) -> None:
        task = [(entry.path, entry.label, fact) for entry, fact in zip(chunk, known, strict=True)]
        self.facts = check_facts.examine((classes, task))

    def result(self) -> list[check_facts.Facts]:
        return self.facts


def test_only_what_changed_is_read_again(root: Path, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    check.run(opened(root, project), project)
    reads = counted(monkeypatch)
    assert check.run(opened(root, project), project).read == 0
    assert reads == [0, 0]
    (root / "labels/train/000001.txt").write_text("7 .5 .5 .2 .2\n", encoding="utf-8")
    result = check.run(opened(root, project), project)
    assert (reads, result.problems) == ([0, 1], 1)
    shutil.copy(root / "images/train/000005.jpg", root / "images/train/000006.jpg")
    check.run(opened(root, project), project)
    assert reads == [1, 2]  # a picture's size is part of what its labels are judged by
    text = (root / "data.yaml").read_text(encoding="utf-8") + "  3: a\n  4: b\n  5: c\n  6: d\n  7: e\n"
    (root / "data.yaml").write_text(text, encoding="utf-8")
    result = check.run(opened(root, project), project)
    assert reads == [1, 62]
    assert "class" not in {finding.kind for finding in result.findings}


def test_a_stopped_check_goes_on(root: Path, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "CHUNK", 10)

    def stop(done: int, _: int) -> None:
        if done >= 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check.run(opened(root, project), project, 1, stop)
    assert check.stamp(project, opened(root, project)) is None
    reads = counted(monkeypatch)
    assert check.run(opened(root, project), project).problems == 0
    assert reads == [30, 30]


def test_a_picture_that_kills_its_worker(root: Path, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are forked, so what is patched here is patched there."""
    real = check_facts.kind_of
    monkeypatch.setattr(check_facts, "kind_of", lambda b: os._exit(9) if b.startswith(b"DEADLY") else real(b))
    (root / "images/train/000001.jpg").write_bytes(b"DEADLY")
    (root / "images/val/000002.jpg").write_bytes(b"DEADLY too")
    faults = found(root, project)
    assert faults == {("unreadable", "train", "000001.jpg"), ("unreadable", "val", "000002.jpg")}


def test_a_spoilt_store_is_made_anew(root: Path, project: Project) -> None:
    file = place(project, opened(root, project))
    file.parent.mkdir(parents=True)
    file.write_bytes(b"not a database, not at all" * 100)
    assert check.run(opened(root, project), project).read == 60


def test_two_at_once_are_told(root: Path, project: Project) -> None:
    with Store(place(project, opened(root, project))), pytest.raises(LabError, match="being checked right now"):
        check.run(opened(root, project), project)


def test_the_stamp(root: Path, project: Project) -> None:
    whole = opened(root, project)
    assert check.stamp(project, whole) is None
    plant(root)
    result = check.run(whole, project)
    said = check.stamp(project, whole)
    assert said is not None
    assert said.fingerprint == result.fingerprint == fingerprint.fingerprint(whole)
    assert said.quick == fingerprint.quick(whole)
    assert said.images == {"train": 30, "val": 30}
    assert sum(said.problems.values()) == result.problems
    assert said.notes["empty"] == 2
    (root / "labels/train/000001.txt").write_text("", encoding="utf-8")
    assert said.quick != fingerprint.quick(whole)


def test_the_fingerprint_is_of_the_content(root: Path, project: Project) -> None:
    first = fingerprint.fingerprint(opened(root, project))
    assert len(first) == 16
    other = project.root / "elsewhere" / "copy"
    shutil.copytree(root, other)
    (other / "images/train/thumbs.db").touch()
    assert fingerprint.fingerprint(opened(other, project)) == first
    label = other / "labels/train/000000.txt"
    label.write_text(label.read_text(encoding="utf-8").replace("0 0.", "1 0.", 1) + "\n", encoding="utf-8")
    assert fingerprint.fingerprint(opened(other, project)) != first


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_fix_moves_aside_and_undo_brings_back(
    root: Path, project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_fix, "LARGEST_SHARE", 0.9)
    planted = plant(root)
    shutil.copy(root / "images/val/000029.jpg", root / "images/train/leak.jpg")
    (root / "labels/train.cache").touch()
    os.utime(root / "labels/train.cache", (1, 1))
    before = contents(root)
    assert cli.main(["data", "check", str(root / "data.yaml"), "--fix"]) == 1  # edges stay
    moved = {fault for fault in planted if KINDS[fault[0]].moves}
    assert f"moved {len(moved) + 1} pictures into data/planted/aside" in capsys.readouterr().out
    assert (root / "aside/overlap/images/train/leak.jpg").is_file()
    assert (root / "aside/pixels/labels").is_dir()
    left = found(root, project)
    assert {kind for kind, _, _ in left if KINDS[kind].moves} == set()
    assert cli.main(["data", "check", str(root / "data.yaml"), "--undo"]) == 0
    del before["labels/train.cache"]
    assert contents(root) == before
    assert cli.main(["data", "check", str(root / "data.yaml"), "--undo"]) == 2
    assert "nothing to undo" in capsys.readouterr().err


def test_fix_refuses_to_move_a_whole_split(root: Path, project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    for label in (root / "labels/train").iterdir():
        label.write_text("0 300 200 40 40\n", encoding="utf-8")
    before = contents(root)
    assert cli.main(["data", "check", str(root / "data.yaml"), "--fix"]) == 1
    said = capsys.readouterr().err
    assert "30 of 30 pictures of train" in said
    assert "divide x and width by the picture's width" in said
    assert contents(root) == before


def test_fix_keeps_a_label_that_another_picture_needs(root: Path, project: Project) -> None:
    (root / "images/train/000001.png").write_bytes(b"broken")
    check.run(opened(root, project), project)
    check_fix.set_aside(opened(root, project), project)
    assert (root / "labels/train/000001.txt").is_file()
    assert (root / "aside/unreadable/images/train/000001.png").is_file()


@pytest.fixture
def in_a_list(root: Path) -> Path:
    """The list of train, whose second and fourth picture are unreadable."""
    for name in ("000001", "000003"):
        (root / f"images/train/{name}.jpg").write_bytes(b"broken")
    train = root / "train.txt"
    train.write_text("".join(f"./images/train/{number:06}.jpg\n" for number in range(6)), encoding="utf-8")
    text = (root / "data.yaml").read_text(encoding="utf-8").replace("images/train", "train.txt")
    (root / "data.yaml").write_text(text, encoding="utf-8")
    return train


def test_undo_puts_lines_back_and_keeps_what_was_edited(in_a_list: Path, root: Path, project: Project) -> None:
    before = in_a_list.read_text(encoding="utf-8").splitlines()
    check.run(opened(root, project), project)
    assert check_fix.set_aside(opened(root, project), project).lines == 2
    edited = [line for line in in_a_list.read_text(encoding="utf-8").splitlines() if "000002" not in line]
    in_a_list.write_text("\n".join([*edited, "./images/train/000009.jpg", ""]), encoding="utf-8")
    check_fix.undo(opened(root, project))
    after = in_a_list.read_text(encoding="utf-8").splitlines()
    assert after[:3] == [before[0], before[1], before[4]]
    assert after[3:] == [before[5], "./images/train/000009.jpg", before[3]]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_undo_leaves_an_untouched_list_as_it_was(in_a_list: Path, root: Path, project: Project, ends: str) -> None:
    lines = in_a_list.read_text(encoding="utf-8").splitlines()
    in_a_list.write_bytes(ends.join([lines[1], lines[3], *lines]).encode())  # twice in the list, no end of line
    before = in_a_list.read_bytes()
    check.run(opened(root, project), project)
    assert check_fix.set_aside(opened(root, project), project).lines == 4
    check_fix.undo(opened(root, project))
    assert in_a_list.read_bytes() == before


# root may write everywhere but where it may not override permissions
MAY_NOT = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


@pytest.mark.skipif(bool(MAY_NOT) and shutil.which("setpriv") is None, reason="root may write everywhere")
def test_fix_leaves_a_picture_with_the_label_that_it_cannot_move(root: Path, project: Project) -> None:
    (root / "images/train/000001.jpg").write_bytes(b"broken")
    (root / "images/val/000005.jpg").write_bytes(b"broken")
    before = contents(root)
    (root / "labels/train").chmod(0o555)
    command = [*MAY_NOT, sys.executable, "-m", "lab", "data", "check", str(root / "data.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(CODE)}

    def check_data(word: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*command, word], cwd=project.root, env=environment, capture_output=True, text=True, check=False
        )

    try:
        fixed = check_data("--fix")
        assert fixed.returncode == 1
        assert f"left as they were: {root}/images/train/000001.jpg ({root}/labels/train: Permission" in fixed.stderr
        assert (root / "images/train/000001.jpg").is_file()
        assert (root / "aside/unreadable/labels/val/000005.txt").is_file()
        undone = check_data("--undo")
        assert (undone.returncode, undone.stderr) == (0, "")
    finally:
        (root / "labels/train").chmod(0o755)
    assert contents(root) == before


def test_a_move_that_fails_half_way_is_taken_back(
    root: Path, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "images/train/000001.jpg").write_bytes(b"broken")
    before = contents(root)
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self.suffix == ".txt":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return rename(self, target)

    check.run(opened(root, project), project)
    monkeypatch.setattr(Path, "rename", fails)
    moved = check_fix.set_aside(opened(root, project), project)
    assert moved.pictures == 0
    assert "No space left" in moved.refused[0]
    assert check_fix.undo(opened(root, project)) == 0
    assert contents(root) == before


def test_undo_goes_on_past_what_it_cannot_put_back(
    root: Path, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("000001", "000002", "000003"):
        (root / f"images/train/{name}.jpg").write_bytes(name.encode())
    before = contents(root)
    check.run(opened(root, project), project)
    check_fix.set_aside(opened(root, project), project)
    (root / "images/train/000002.jpg").write_bytes(b"another")
    (root / "aside/unreadable/images/train/000003.jpg").unlink()
    undo = ["data", "check", str(root / "data.yaml"), "--undo"]
    assert cli.main(undo) == 1
    said = capsys.readouterr().err
    assert "4 files are back; 2 could not be put back" in said
    assert "images/train/000002.jpg (another file is in its place)" in said
    assert "aside/unreadable/images/train/000003.jpg (is gone)" in said
    assert cli.main(undo) == 1
    assert "0 files are back; 1 could not be put back" in capsys.readouterr().err
    (root / "images/train/000002.jpg").unlink()
    assert cli.main(undo) == 0
    del before["images/train/000003.jpg"]
    assert contents(root) == before


def test_the_same_directory_for_two_splits(root: Path, project: Project) -> None:
    """As coco128 has it: said, and nothing is moved."""
    text = (root / "data.yaml").read_text(encoding="utf-8").replace("images/val", "images/train")
    (root / "data.yaml").write_text(text, encoding="utf-8")
    faults = found(root, project)
    assert {kind for kind, _, _ in faults} == {"overlap"}
    with pytest.raises(LabError, match="overlap"):
        check_fix.set_aside(opened(root, project), project)


def test_the_page_holds_everything(root: Path, project: Project) -> None:
    text = (root / "data.yaml").read_text(encoding="utf-8").replace("circle", "'<script>alert(1)</script>'")
    (root / "data.yaml").write_text(text, encoding="utf-8")
    plant(root)
    whole = opened(root, project)
    page = check_page.write(whole, project, check.run(whole, project)).read_text(encoding="utf-8")
    assert "<script>" not in page
    assert page.count("data:image/jpeg;base64,") > 10
    assert "http" not in page.replace("http://www.w3.org", "")
    for kind in (*PICTURES, *LABELS):
        assert f">{kind}</td>" in page


def test_the_command(root: Path, project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "check", str(root / "data.yaml")]) == 0
    assert "fingerprint" in capsys.readouterr().out
    (root / "labels/val/000000.txt").write_text("9 1 1 1 1\n", encoding="utf-8")
    assert cli.main(["data", "check", str(root / "data.yaml"), "--workers", "1"]) == 1
    captured = capsys.readouterr()
    assert "data/planted/labels/val/000000.txt: line 1: class 9; there are classes 0 to 2" in captured.out
    assert captured.err == "lab: 2 problems in data/planted/data.yaml\n"  # the class, and the edge
    assert (project.runs / "data-check" / "planted.html").is_file()
    assert json.loads(next((project.runs / ".lab").glob("*.json")).read_text(encoding="utf-8"))["problems"]


@pytest.mark.container
def test_an_engine_drops_what_is_called_broken_and_nothing_else(root: Path, project: Project) -> None:
    from ultralytics.data.utils import verify_image_label

    planted = plant(root)
    whole = opened(root, project)
    check.run(whole, project, workers=1)
    with Store(place(project, whole)) as store:
        broken = {fault.picture for fault in store.faults() if KINDS[fault.kind].level == "broken"}
    dropped = {
        entry.path
        for entry in dataset.entries(whole)
        if verify_image_label((entry.path, entry.label, "", False, len(whole.names), 0, 0, False))[0] is None
    }
    assert dropped <= broken
    # what this engine lets pass: a BMP cut short and a JPEG with a hole (they fail while it trains), and three labels
    # that only YOLOv5 drops: a byte-order mark, a line of blanks, a coordinate between 1 and 1.01
    assert len(broken - dropped) == 5
    assert len(broken) == sum(KINDS[kind].level == "broken" for kind, _, _ in planted)

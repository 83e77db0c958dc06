"""Each format, written by hand as its documentation has it, comes back as the boxes it was written from."""

import importlib.util
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from lab import check, cli, convert, convert_read, dataset
from lab.errors import LabError
from lab.project import Project

NAMES = ["box van", "lorry", "Räder & more"]
WIDTH, HEIGHT = 320, 180
Truth = dict[str, list[tuple[int, float, float, float, float]]]  # picture: class, then corners in pixels

library = pytest.mark.skipif(
    importlib.util.find_spec("supervision") is None, reason="needs the package supervision, which is in the container"
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def drawn(source: Path, where: str = "") -> Truth:
    """12 pictures below `source`, and their boxes: whole pixels, that Pascal VOC can tell them too."""
    random = np.random.default_rng(0)
    truth: Truth = {}
    for number in range(12):
        image = random.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        file = source / where / f"pic {number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), image)
        truth[file.name] = []
        for _ in range(number % 4):
            x1, y1 = int(random.integers(0, 200)), int(random.integers(0, 100))
            w, h = int(random.integers(5, 120)), int(random.integers(5, 80))
            truth[file.name].append((int(random.integers(3)), x1, y1, x1 + w, y1 + h))
    for number in range(3):  # every class is there
        truth["pic 3.jpg"][number] = (number, *truth["pic 3.jpg"][number][1:])
    return truth


def coco(source: Path) -> Truth:
    truth = drawn(source, "images")
    images, annotations = [], []
    for number, (name, boxes) in enumerate(truth.items(), 100):
        images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        for label, x1, y1, x2, y2 in boxes:
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            polygon = {"segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]}
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": 7 * label + 3, **box, **polygon}
            )
    crowd = {"bbox": [0, 0, 50, 50], "area": 9, "iscrowd": 1, "segmentation": {"counts": [9], "size": [3, 3]}}
    annotations.append({"id": 9999, "image_id": 100, "category_id": 3, **crowd})
    categories = [{"id": 7 * n + 3, "name": name, "supercategory": "x"} for n, name in enumerate(NAMES)]
    said = {"images": images, "annotations": annotations, "categories": categories}
    (source / "annotations").mkdir()
    (source / "annotations" / "instances_train2017.json").write_text(json.dumps(said), encoding="utf-8")
    return truth


def voc(source: Path) -> Truth:
    """1-based, and the last pixel is part of the box."""
    truth = drawn(source, "JPEGImages")
    (source / "Annotations").mkdir()
    (source / "ImageSets" / "Main").mkdir(parents=True)
    for name, boxes in truth.items():
        objects = "".join(
            f"<object><name>{NAMES[label].replace('&', '&amp;')}</name><pose>Unspecified</pose><difficult>0</difficult>"
            f"<bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"
            "</object>"
            for label, x1, y1, x2, y2 in boxes
        )
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
        text = f"<annotation><folder>VOC2012</folder><filename>{name}</filename>{size}{objects}</annotation>"
        (source / "Annotations" / f"{Path(name).stem}.xml").write_text(text, encoding="utf-8")
    return truth


def labelme(source: Path) -> Truth:
    truth = drawn(source)
    for name, boxes in truth.items():
        shapes = [
            {
                "label": NAMES[label],
                "points": [[x2, y2], [x1, y1]] if number % 2 else [[x1, y1], [x2, y1], [x2, y2], [x1, y2]],
                "shape_type": "rectangle" if number % 2 else "polygon",
                "group_id": None,
                "flags": {},
            }
            for number, (label, x1, y1, x2, y2) in enumerate(boxes)
        ]
        shapes.append({"label": NAMES[0], "points": [[1, 1]], "shape_type": "point", "group_id": None, "flags": {}})
        said = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": f"..\\photos\\{name}",
            "imageData": None,
        }
        said |= {"imageHeight": HEIGHT, "imageWidth": WIDTH}
        (source / f"{Path(name).stem}.json").write_text(json.dumps(said), encoding="utf-8")
    return truth


def cvat(source: Path) -> Truth:
    truth = drawn(source, "images")
    images = []
    for number, (name, boxes) in enumerate(truth.items()):
        shapes = []
        for label, x1, y1, x2, y2 in boxes:
            named = f'label="{NAMES[label].replace("&", "&amp;")}" source="manual" z_order="0"'
            corners = f'xtl="{x1:.2f}" ytl="{y1:.2f}" xbr="{x2:.2f}" ybr="{y2:.2f}"'
            points = f"{x1:.2f},{y1:.2f};{x2:.2f},{y1:.2f};{x2:.2f},{y2:.2f};{x1:.2f},{y2:.2f}"
            shapes.append(
                f'<polygon {named} occluded="0" points="{points}"></polygon>'
                if label == 2
                else f'<box {named} occluded="1" {corners}><attribute name="colour">red</attribute></box>'
            )
        size = f'width="{WIDTH}" height="{HEIGHT}"'
        images.append(f'<image id="{number}" name="{name}" subset="default" {size}>{"".join(shapes)}</image>')
    labels = "".join(f"<label><name>{n.replace('&', '&amp;')}</name><attributes/></label>" for n in NAMES)
    meta = f"<meta><task><id>5</id><labels>{labels}</labels></task></meta>"
    text = f'<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>{meta}{"".join(images)}'
    (source / "annotations.xml").write_text(f"{text}</annotations>", encoding="utf-8")
    return truth


def labelstudio(source: Path) -> Truth:
    truth = drawn(source, "upload")
    tasks = []
    for number, (name, boxes) in enumerate(truth.items()):
        regions = [
            {
                "original_width": WIDTH,
                "original_height": HEIGHT,
                "image_rotation": 0,
                "type": "rectanglelabels",
                "from_name": "label",
                "to_name": "image",
                "value": {
                    "x": 100 * x1 / WIDTH,
                    "y": 100 * y1 / HEIGHT,
                    "width": 100 * (x2 - x1) / WIDTH,
                    "height": 100 * (y2 - y1) / HEIGHT,
                    "rotation": 0,
                    "rectanglelabels": [NAMES[label]],
                },
            }
            for label, x1, y1, x2, y2 in boxes
        ]
        wrong = {"id": 1, "was_cancelled": True, "result": regions * 2, "updated_at": "2026-12-01"}
        done = {"id": 2, "was_cancelled": False, "result": regions, "updated_at": "2026-01-01"}
        image = f"/data/upload/3/1a2b3c4d-{name}" if number % 2 else f"/data/local-files/?d=there/{name}"
        tasks.append({"id": number, "annotations": [wrong, done], "data": {"image": image}})
    (source / "export.json").write_text(json.dumps(tasks), encoding="utf-8")
    return truth


FORMATS = {"coco": coco, "voc": voc, "labelme": labelme, "cvat": cvat, "labelstudio": labelstudio}


@pytest.mark.parametrize(
    "form", [*(pytest.param(f, marks=library) for f in ("coco", "voc", "labelme")), "cvat", "labelstudio"]
)
def test_round_trip(form: str, source: Path, project: Project) -> None:
    truth = FORMATS[form](source)
    out = project.root / "data" / "new"
    done = convert.convert(form, source, out)
    assert (done.pictures, done.missing, done.flat) == ({"train": 12}, [], 0)
    said = yaml.safe_load((out / "data.yaml").read_text(encoding="utf-8"))
    assert said["path"] == "."
    assert said["train"] == "images/train"
    names = said["names"]
    assert sorted(names.values()) == sorted(NAMES)
    for name, boxes in truth.items():
        assert (out / "images" / "train" / name).read_bytes() == next(source.rglob(name)).read_bytes()
        rows = (out / "labels" / "train" / name).with_suffix(".txt").read_text(encoding="utf-8").splitlines()
        back = []
        for row in rows:
            number, x, y, w, h = map(float, row.split())
            corners = ((x - w / 2) * WIDTH, (y - h / 2) * HEIGHT, (x + w / 2) * WIDTH, (y + h / 2) * HEIGHT)
            back.append((NAMES.index(names[int(number)]), *corners))
        assert len(back) == len(boxes)
        for given, got in zip(sorted(boxes), sorted(back), strict=True):
            assert got == pytest.approx(given, abs=1e-3), (name, given, got)
    assert sum(done.ignored.values()) == {"coco": 1, "labelme": 12}.get(form, 0)
    text = (out / "data.yaml").read_text(encoding="utf-8").replace("images/train", "images/train\nval: images/train")
    (out / "data.yaml").write_text(text, encoding="utf-8")
    result = check.run(dataset.open_dataset(str(out / "data.yaml"), project), project)
    assert {finding.kind for finding in result.findings} == {"overlap", "empty"}


@library
def test_the_libraries_own_exports_come_back(source: Path, tmp_path: Path) -> None:
    """What supervision writes, which is not what we wrote by hand."""
    import supervision

    truth = drawn(source, "images")
    annotations = {
        str(source / "images" / name): supervision.Detections(
            xyxy=np.array([box[1:] for box in boxes], dtype=np.float32).reshape(-1, 4),
            class_id=np.array([box[0] for box in boxes], dtype=int),
        )
        for name, boxes in truth.items()
    }
    whole = supervision.DetectionDataset(classes=NAMES, images=list(annotations), annotations=annotations)
    whole.as_coco(annotations_path=str(source / "coco" / "instances.json"))
    whole.as_pascal_voc(annotations_directory_path=str(source / "voc"))
    whole.as_labelme(annotations_directory_path=str(source / "labelme"))
    rows = {}
    for form in ("coco", "voc", "labelme"):
        convert.convert(form, source / form, tmp_path / form, source / "images")
        files = sorted((tmp_path / form / "labels").rglob("*.txt"))
        assert len(files) == 12, form
        names = yaml.safe_load((tmp_path / form / "data.yaml").read_text(encoding="utf-8"))["names"]
        rows[form] = [
            sorted((names[int(row.split()[0])], *(round(float(v), 4) for v in row.split()[1:])) for row in text)
            for text in (file.read_text(encoding="utf-8").splitlines() for file in files)
        ]
    assert rows["coco"] == rows["labelme"] == rows["voc"]


@library
def test_splits_that_a_source_tells(source: Path, tmp_path: Path) -> None:
    voc(source)
    (source / "ImageSets/Main/val.txt").write_text("pic\n", encoding="utf-8")
    for file in (source / "Annotations").iterdir():
        file.rename(file.with_name(file.name.replace(" ", "_")))
    (source / "ImageSets/Main/val.txt").write_text("pic_1\npic_2 1\n", encoding="utf-8")
    done = convert.convert("voc", source, tmp_path / "out")
    assert done.pictures == {"train": 10, "val": 2}


def test_cvat_subsets_turned_boxes_and_what_is_no_box(source: Path, tmp_path: Path) -> None:
    drawn(source)
    shapes = (
        '<box label="a" xtl="100" ytl="50" xbr="140" ybr="70" rotation="90.00"/>'
        '<ellipse label="a" cx="60" cy="60" rx="20" ry="10"/>'
        '<mask label="b" left="10" top="20" width="30" height="40" rle="1"/>'
        '<polyline label="b" points="1,1;2,2"/><tag label="b"/>'
        '<box label="b" xtl="-50" ytl="-50" xbr="-1" ybr="-1"/>'
    )
    image = f'<image id="0" name="pic 0.jpg" subset="Validation" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>'
    (source / "annotations.xml").write_text(f"<annotations>{image}</annotations>", encoding="utf-8")
    done = convert.convert("cvat", source / "annotations.xml", tmp_path / "out")
    assert (done.pictures, done.ignored, done.flat) == ({"val": 1}, {"polyline": 1, "tag": 1}, 1)
    rows = (tmp_path / "out/labels/val/pic 0.txt").read_text(encoding="utf-8").splitlines()
    boxes = [[float(v) * s for v, s in zip(r.split()[1:], (WIDTH, HEIGHT) * 2, strict=True)] for r in rows]
    assert boxes[0] == pytest.approx([120, 60, 20, 40], abs=1e-3)
    assert boxes[1] == pytest.approx([60, 60, 40, 20], abs=1e-3)
    assert boxes[2] == pytest.approx([25, 40, 30, 40], abs=1e-3)


def test_label_studio_turns_about_the_corner_in_pixels(source: Path, tmp_path: Path) -> None:
    drawn(source)
    value = {"x": 50, "y": 50, "width": 10, "height": 10, "rotation": 90, "rectanglelabels": ["a"]}
    region = {"original_width": WIDTH, "original_height": HEIGHT, "type": "rectanglelabels", "value": value}
    polygon = {"points": [[10, 10], [20, 10], [15, 30]], "polygonlabels": ["b"]}
    choice = {"type": "choices", "value": {"choices": ["x"]}}
    task = {"data": {"image": "s3://bucket/there/pic%201.jpg"}}
    task |= {"annotations": [{"result": [region, {"type": "polygonlabels", "value": polygon}, choice]}]}
    least = {"image": "/data/upload/1/00000000-pic 2.jpg", "label": [{**value, "rotation": 0}]}  # JSON-MIN
    (source / "export.json").write_text(json.dumps([task, least]), encoding="utf-8")
    done = convert.convert("labelstudio", source / "export.json", tmp_path / "out")
    assert (done.pictures, done.boxes, done.ignored) == ({"train": 2}, 3, {"choices": 1})
    first, second = (tmp_path / "out/labels/train/pic 1.txt").read_text(encoding="utf-8").splitlines()
    x, y, w, h = (float(v) * s for v, s in zip(first.split()[1:], (WIDTH, HEIGHT) * 2, strict=True))
    # 32 x 18 pixels from (160, 90), turned by a quarter clockwise: 18 to the left, 32 down
    assert (x - w / 2, y - h / 2, x + w / 2, y + h / 2) == pytest.approx((142, 90, 160, 122), abs=1e-3)
    assert [float(v) for v in second.split()[1:]] == pytest.approx([0.15, 0.2, 0.1, 0.2])


def test_turning_goes_clockwise() -> None:
    ((x, y),) = convert_read.turned([(1, 0)], (0, 0), math.pi / 2)
    assert (x, y) == pytest.approx((0, 1))


def test_pictures_that_would_share_a_label_file(source: Path, tmp_path: Path) -> None:
    drawn(source)
    cv2.imwrite(str(source / "pic 0.png"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    box = '<box label="a" xtl="10" ytl="10" xbr="50" ybr="50"/>'
    images = "".join(f'<image name="pic 0.{e}" width="{WIDTH}" height="{HEIGHT}">{box}</image>' for e in ("jpg", "png"))
    (source / "annotations.xml").write_text(f"<annotations>{images}</annotations>", encoding="utf-8")
    convert.convert("cvat", source, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out/labels/train").iterdir()) == ["pic 0-png.txt", "pic 0.txt"]


def test_missing_pictures_are_told(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], project: Project
) -> None:
    cvat(source)
    (source / "images" / "pic 3.jpg").unlink()
    assert cli.main(["data", "convert", "--from", "cvat", str(source), str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert "1 annotated pictures were not found, such as pic 3.jpg" in captured.err
    assert "lab data split out/images" in captured.out
    assert cli.main(["data", "split", str(tmp_path / "out/images")]) == 0
    assert cli.main(["data", "check", str(tmp_path / "out/data.yaml")]) == 0


@pytest.mark.parametrize(
    ("form", "text", "part"),
    [
        ("yolo", "", "it may be coco, voc"),
        ("cvat", "<annotations><track id='0'/></annotations>", "CVAT for images 1.1"),
        ("cvat", "<annotations/>", "has no pictures"),
        ("cvat", "<anno", "cannot be read as XML"),
        ("cvat", '<annotations><image name="x.jpg" width="1" height="1"/></annotations>', "none of the pictures"),
        ("labelstudio", "{}", "list of tasks"),
        ("labelstudio", "[", "cannot be read as JSON"),
        pytest.param("coco", "{}", "is no COCO file", marks=library),
        pytest.param("labelme", "{}", "holds no LabelMe file", marks=library),
        pytest.param("voc", "<a", "cannot be read as XML", marks=library),
    ],
)  # fmt: skip
def test_bad_sources(source: Path, tmp_path: Path, form: str, text: str, part: str) -> None:
    file = source / ("a.xml" if text.startswith("<") else "a.json")
    file.write_text(text, encoding="utf-8")
    with pytest.raises(LabError) as caught:
        convert.convert(form, file, tmp_path / "out")
    assert part in caught.value.sentence
    assert not (tmp_path / "out").exists()


def test_a_directory_with_something_in_it_stays(source: Path, tmp_path: Path) -> None:
    cvat(source)
    with pytest.raises(LabError, match="holds something already"):
        convert.convert("cvat", source, source)


def test_without_the_library_there_is_one_sentence(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> object:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(convert_read.importlib, "import_module", absent)
    with pytest.raises(LabError, match="needs the package supervision"):
        convert.convert("coco", source, tmp_path / "out")


def test_a_name_cannot_leave_the_new_data_set(source: Path, tmp_path: Path) -> None:
    drawn(source)
    image = f'<image name="../source/pic 0.jpg" width="{WIDTH}" height="{HEIGHT}"/>'
    (source / "annotations.xml").write_text(f"<annotations>{image}</annotations>", encoding="utf-8")
    convert.convert("cvat", source, tmp_path / "out")
    assert (tmp_path / "out" / "images" / "train" / "source" / "pic 0.jpg").is_file()

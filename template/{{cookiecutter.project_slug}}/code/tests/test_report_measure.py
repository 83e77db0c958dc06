"""Average precision, precision and recall, confusion: against cases that can be counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lab import report_measure
from lab.report_measure import Array, Picture, measure
from lab.report_predict import boxes, choose


def truth(*rows: tuple[float, ...]) -> Array:
    return np.array(rows, float).reshape(-1, 5)


def found(*rows: tuple[float, ...]) -> Array:
    return np.array(rows, float).reshape(-1, 6)


BOX, OTHER = (0.1, 0.1, 0.3, 0.3), (0.6, 0.6, 0.9, 0.9)


def test_a_detector_without_fault() -> None:
    pictures = [Picture(truth((0, *BOX), (1, *OTHER)), found((0, *BOX, 0.9), (1, *OTHER, 0.8)))] * 5
    got = measure(pictures, 2)
    # the area is one but for the last of 101 recalls
    assert got.ap == pytest.approx(got.ap50) == pytest.approx(0.995)
    assert (got.precision, got.recall) == (1, 1)
    assert got.confusion == [[5, 0, 0], [0, 5, 0], [0, 0, 0]]
    assert [score.boxes for score in got.classes] == [5, 5]


def test_nothing_found_and_nothing_there() -> None:
    nothing = measure([Picture(truth((0, *BOX)), found())], 2)
    assert (nothing.ap, nothing.recall, nothing.confusion) == (0, 0, [[0, 0, 1], [0, 0, 0], [0, 0, 0]])
    assert nothing.classes[1].ap is None
    empty = measure([Picture(truth(), found((0, *BOX, 0.9)))], 1)
    assert (empty.ap, empty.boxes, empty.confusion) == (0, 0, [[0, 0], [1, 0]])
    assert measure([], 3).pictures == 0


def test_a_box_counts_once_and_for_the_surest() -> None:
    pictures = [Picture(truth((0, *BOX), (0, *OTHER)), found((0, *BOX, 0.5), (0, *BOX, 0.9), (0, *OTHER, 0.3)))]
    got = measure(pictures, 1).classes[0]
    # surest first: right, repeated, right; precision 1 up to half the recall, 2/3 up to all of it
    assert got.ap50 == pytest.approx(0.5 * 1 + 0.5 * 2 / 3, abs=0.01)
    assert got.curve[0] == 1
    assert got.curve[99] == pytest.approx(2 / 3, abs=0.01)


def test_a_loose_box_counts_at_loose_limits_only() -> None:
    loose = (0.1, 0.1, 0.3, 0.25)  # overlap 0.75
    got = measure([Picture(truth((0, *BOX)), found((0, *loose, 0.9)))], 1)
    assert got.ap50 == pytest.approx(0.995)
    assert got.ap == pytest.approx(0.995 * 6 / 10, abs=0.001)  # 0.50, 0.55, … 0.75


def test_a_wrong_name_is_wrong_and_seen_in_the_confusion() -> None:
    got = measure([Picture(truth((0, *BOX)), found((1, *BOX, 0.9)))], 2)
    assert (got.ap, got.confusion) == (0, [[0, 1, 0], [0, 0, 0], [0, 0, 0]])


def test_an_unsure_prediction_is_in_no_confusion() -> None:
    assert measure([Picture(truth((0, *BOX)), found((0, *BOX, 0.2)))], 1).confusion == [[0, 1], [0, 0]]


def test_the_numbers_do_not_depend_on_the_pictures_order() -> None:
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(30):
        low = rng.uniform(0, 0.7, (4, 2))
        true = np.hstack([rng.integers(0, 3, (4, 1)), low, low + rng.uniform(0.1, 0.3, (4, 2))])
        moved = true + np.hstack([np.zeros((4, 1)), rng.normal(0, 0.02, (4, 4))])
        pictures.append(Picture(true, np.hstack([moved, rng.uniform(0, 1, (4, 1))])))
    one, two = measure(pictures, 3), measure(pictures[::-1], 3)
    assert one.ap == pytest.approx(two.ap)
    assert one.confusion == two.confusion
    assert 0 < one.ap < one.ap50 < 1


def test_found_by_size() -> None:
    small, large = (0.0, 0.0, 0.02, 0.02), (0.2, 0.2, 0.9, 0.9)
    picture = Picture(truth((0, *small), (0, *large)), found((0, *large, 0.9)))
    assert measure([picture], 1, [(640.0, 640.0)]).sizes == [(1, 0), (0, 0), (1, 1)]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("0 0.5 0.5 0.2 0.4\n", [[0, 0.4, 0.3, 0.6, 0.7]]),
        ("0 0.5 0.5 0.2 0.4\n0 0.5 0.5 0.2 0.4\n\n", [[0, 0.4, 0.3, 0.6, 0.7]]),
        ("1 0.1 0.1 0.5 0.1 0.3 0.6\n", [[1, 0.1, 0.1, 0.5, 0.6]]),
        ("", []),
        ("2 0.5 0.5 0.2 0.4\n", None),
        ("0 0.5 0.5 0.2\n", None),
        ("0 0.5 1.5 0.2 0.4\n", None),
        ("0 0.5 nan 0.2 0.4\n", None),
        ("cat 0.5 0.5 0.2 0.4\n", None),
    ],
)
def test_labels_as_the_engines_read_them(tmp_path: Path, text: str, rows: list[list[float]] | None) -> None:
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    got = boxes(tmp_path / "a.txt", 2)
    assert got is None if rows is None else got is not None and got.tolist() == [pytest.approx(row) for row in rows]


def test_pictures_to_show_are_spread_and_the_worst_are_among_the_others() -> None:
    good, bad = Picture(truth((0, *BOX)), found((0, *BOX, 0.9))), Picture(truth((0, *BOX)), found((0, *OTHER, 0.9)))
    pictures = [bad if index in (3, 50) else good for index in range(100)]
    fair, worst = choose([Path(f"{index}.jpg") for index in range(100)], pictures)
    assert [sample.image for sample in fair][:2] == ["0.jpg", "14.jpg"]
    assert [(sample.image, sample.missed, sample.wrong) for sample in worst] == [
        ("3.jpg", [True], [True]),
        ("50.jpg", [True], [True]),
    ]
    assert report_measure.errors(good) == (0, 0)


def test_a_right_box_is_right_though_a_wrong_one_lies_closer() -> None:
    loose = (0.1, 0.1, 0.3, 0.28)
    picture = Picture(truth((0, *BOX)), found((1, *BOX, 0.5), (0, *loose, 0.9)))
    assert report_measure.errors(picture) == (0, 1)
    assert measure([picture], 2).confusion == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]

"""How large a picture says it is, and pictures that claim more memory than there is: named, and never decoded."""

import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from made_pictures import huge_png

from lab import check_facts, picture_header
from lab.fast import store_decode
from lab.picture_header import Enormous, dimensions, exceeds

IMAGE = np.random.default_rng(0).integers(0, 255, (40, 64, 3), dtype=np.uint8)
PPM = b"P6\n40000 40000\n255\n" + bytes(100)


def claiming() -> bytes:
    """A PNG one of whose chunks claims two gigabytes: OpenCV 5 takes them, and the tests would die of it."""
    data = cv2.imencode(".png", IMAGE)[1].tobytes()
    at = data.index(b"IDAT") - 4
    return data[:at] + struct.pack(">I", 0x7FFFFFF0) + data[at + 4 :]


TOO_MUCH = {"png": huge_png(30_000, 30_000), "larger": huge_png(1_000_000, 1_000_000), "ppm": PPM, "chunk": claiming()}


@pytest.fixture
def no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def imdecode(*_: Any) -> Any:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(cv2, "imdecode", imdecode)


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "webp", "tif", "ppm"])
def test_the_size_comes_from_the_header(ending: str) -> None:
    data = cv2.imencode(f".{ending}", IMAGE)[1].tobytes()
    assert dimensions(data) == (64, 40)
    assert exceeds(data) == ""


def test_what_is_no_picture_or_of_another_kind() -> None:
    for data in (b"", b"no picture", b"\x89PNG", cv2.imencode(".tif", IMAGE)[1].tobytes()):
        with pytest.raises(ValueError):
            dimensions(data, ("JPEG", "PNG"))
    assert exceeds(b"no picture") == ""  # that is for its decoder to say


def test_the_limit() -> None:
    assert dimensions(huge_png(9_000, 9_000)) == (9_000, 9_000)
    assert exceeds(huge_png(13_000, 13_000)) == ""
    assert "179 million pixels" in exceeds(huge_png(13_400, 13_400))
    with pytest.raises(Enormous):
        dimensions(huge_png(30_000, 30_000))
    assert picture_header.Image.MAX_IMAGE_PIXELS * 2 == 178_956_970


@pytest.mark.parametrize("case", TOO_MUCH)
def test_the_check_names_it_without_decoding_it(case: str, tmp_path: Path, no_decoder: None) -> None:
    file = tmp_path / f"a.{'png' if case != 'ppm' else 'ppm'}"
    file.write_bytes(TOO_MUCH[case])
    faults = dict(check_facts.read_picture(str(file), check_facts.stamp_of(str(file))).faults)
    if case == "chunk":  # the end of the file is looked at first
        assert "truncated" in faults
    else:
        assert "more than 179 million pixels" in faults["unreadable"]


@pytest.mark.parametrize("case", TOO_MUCH)
def test_the_store_leaves_it_out_without_decoding_it(case: str, no_decoder: None) -> None:
    assert store_decode.decode(TOO_MUCH[case], "a.png", store_decode.Recipe(64)) is None

"""A picture that a stranger sent: what it is and how large, read from its header, before a pixel of it is decoded."""

from __future__ import annotations

import contextlib
import io
import warnings

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

KINDS = ("JPEG", "PNG", "BMP", "WEBP")
MEGAPIXEL = 1_000_000
PNG = b"\x89PNG\r\n\x1a\n"
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is the caller's


class Refusal(Exception):
    """A request that is not served: the HTTP status, and one sentence for whoever sent it."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = headers or {}


def dimensions(data: bytes) -> tuple[int, int]:
    """Width and height as the header has them. Raises Refusal when it is no picture of KINDS."""
    try:
        with Image.open(io.BytesIO(data), formats=KINDS) as image:
            size: tuple[int, int] = image.size
            return size
    except Image.DecompressionBombError:
        raise Refusal(413, "it has far too many pixels") from None
    except Exception:  # whatever a damaged header makes of Pillow
        raise Refusal(
            415, f"it is no picture that is known here ({', '.join(KINDS)}), or its beginning is damaged"
        ) from None


def decode(data: bytes, most: int) -> npt.NDArray[np.uint8]:
    """The picture, H x W x 3 in BGR, turned as its EXIF data says. Raises Refusal, also beyond `most` pixels."""
    width, height = dimensions(data)
    if width * height > most:
        raise Refusal(
            413,
            f"it is {width} x {height} pixels, and {most / MEGAPIXEL:g} million are the limit: send it smaller",
        )
    image = None
    if not data.startswith(PNG) or _chunks_fit(data):
        with contextlib.suppress(cv2.error):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise Refusal(422, f"its header says {width} x {height} pixels, but the rest is damaged or cut short")
    return image  # type: ignore[return-value]


def _chunks_fit(png: bytes) -> bool:
    """Whether each chunk, to the last, lies within the file: OpenCV 5 takes memory for as many bytes as one claims."""
    at = len(PNG)
    while at + 12 <= len(png):
        length, kind = int.from_bytes(png[at : at + 4], "big"), png[at + 4 : at + 8]
        at += 12 + length
        if kind == b"IEND":
            return at <= len(png)
    return False

"""A picture that a stranger sent: what it is and how large, read from its header, before a pixel of it is decoded."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

from lab.picture_header import Enormous, chunks_fit, dimensions

KINDS = ("JPEG", "PNG", "BMP", "WEBP")
MEGAPIXEL = 1_000_000


class Refusal(Exception):
    """A request that is not served: the HTTP status, and one sentence for whoever sent it."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = headers or {}


class Pixels:
    """How many pixels may be decoded at once, in all threads together: memory does not grow with the processors."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._freed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, count: int) -> Iterator[None]:
        """Wait until there are so many, and give them back afterwards. `count` must not be over `most`."""
        with self._freed:
            self._freed.wait_for(lambda: self._left >= count)
            self._left -= count
        try:
            yield
        finally:
            with self._freed:
                self._left += count
                self._freed.notify_all()


def measure(data: bytes, most: int) -> tuple[int, int]:
    """Width and height that its header says. Raises Refusal, also beyond `most` pixels."""
    try:
        width, height = dimensions(data, KINDS)
    except Enormous:
        raise Refusal(413, "it has far too many pixels") from None
    except ValueError:
        raise Refusal(
            415, f"it is no picture that is known here ({', '.join(KINDS)}), or its beginning is damaged"
        ) from None
    if width * height > most:
        raise Refusal(
            413,
            f"it is {width} x {height} pixels, and {most / MEGAPIXEL:g} million are the limit: send it smaller",
        )
    return width, height


def decode(data: bytes, most: int) -> npt.NDArray[np.uint8]:
    """The picture, H x W x 3 in BGR, turned as its EXIF data says. Raises Refusal, also beyond `most` pixels."""
    width, height = measure(data, most)
    image = None
    if chunks_fit(data):
        with contextlib.suppress(cv2.error):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise Refusal(422, f"its header says {width} x {height} pixels, but the rest is damaged or cut short")
    return image  # type: ignore[return-value]

"""How large a picture is by its header alone, before a pixel of it is decoded: a few bytes may claim gigabytes."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import IO

from PIL import Image

PNG = b"\x89PNG\r\n\x1a\n"
KINDS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM", "GIF", "JPEG2000")
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # half of its limit is no reason for words


class Enormous(ValueError):
    """A header that claims more pixels than Pillow opens, 179 million."""


def dimensions(data: bytes, kinds: tuple[str, ...] = KINDS) -> tuple[int, int]:
    """Width and height as the header has them. Raises Enormous; ValueError when it is no picture of `kinds`."""
    return _dimensions(io.BytesIO(data), kinds)


def size_of(file: Path) -> tuple[int, int]:
    """`dimensions` of a file, of which no more than the header is read. Raises OSError as well."""
    with file.open("rb") as opened:
        return _dimensions(opened, KINDS)


def _dimensions(opened: IO[bytes], kinds: tuple[str, ...]) -> tuple[int, int]:
    try:
        with Image.open(opened, formats=kinds) as image:
            size: tuple[int, int] = image.size
            return size
    except Image.DecompressionBombError as error:
        raise Enormous(str(error)) from None
    except Exception as error:  # whatever a damaged header makes of Pillow
        raise ValueError(str(error)) from None


def exceeds(data: bytes) -> str:
    """What is too much about a picture, in words; "" for one whose decoding takes no more memory than it should.

    Both engines leave out what Pillow does not open, when they scan a data set.
    """
    try:
        dimensions(data)
    except Enormous:
        return "its header claims more than 179 million pixels, which no engine takes"
    except ValueError:
        pass
    return "one of its chunks claims more bytes than the file has" if not chunks_fit(data) else ""


def chunks_fit(data: bytes) -> bool:
    """Whether each chunk of a PNG, to the last, lies within the file; True for other pictures.

    OpenCV 5 takes memory for as many bytes as a chunk claims.
    """
    if not data.startswith(PNG):
        return True
    at = len(PNG)
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        at += 12 + length
        if kind == b"IEND":
            return at <= len(data)
    return False

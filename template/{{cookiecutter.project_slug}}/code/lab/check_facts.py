"""What is to be known of one picture and its label file: small facts, gathered in a worker process.

Faults are those that the two engines stumble over, found before they do, and without their side effects: YOLOv5 writes
some JPEGs anew while it scans.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import math
import os
import re
import signal
import struct
import sys
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

# float32, in which both engines compare, rounds anything up to here down to 1
ONE = 1 + 2**-24
PIXELS = 2.0  # a coordinate above this is no fraction gone astray
LEAST_SIDE = 10  # pixels; both engines refuse less
BINS = 10  # octaves of box size, see `size_bin`
ABSENT = -1  # the size of a file that is not there
AGAIN = -1  # in the place of a file's time: what was found may be over, so the next check looks again
PR_SET_PDEATHSIG = 1  # prctl(2)
# what the decoders say of real damage; much of what else they print is harmless ("known incorrect sRGB profile")
DAMAGE = re.compile(r"Corrupt JPEG data[^\n]*|Premature end[^\n]*|libpng error[^\n]*|\[ERROR[^\n]*")
KEPT = 3  # faults of one kind that are kept of one file

ENDINGS = {
    "jpeg": (".jpg", ".jpeg", ".mpo"),
    "png": (".png",),
    "bmp": (".bmp",),
    "tiff": (".tif", ".tiff", ".dng"),
    "webp": (".webp",),
    "pfm": (".pfm",),
}
BEGINNINGS = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "tiff"),
    (b"BM", "bmp"),
    ((b"PF\n", b"Pf\n"), "pfm"),
    ((b"GIF87a", b"GIF89a"), "gif"),
    ((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), "jpeg 2000"),
)
NETPBM = (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")
OTHER_PICTURES = frozenset((".gif", ".heic", ".heif", ".avif", ".jfif", ".jp2", ".svg", ".psd", ".tga", ".jpe", ".raw"))
Fault = tuple[str, str]  # kind, what exactly


@dataclass(frozen=True)
class Known:
    """What the store knows of a picture already: (size, mtime in ns) of both files, and the picture's size."""

    picture: tuple[int, int] | None = None
    label: tuple[int, int] | None = None
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Picture:
    """A picture: bytes, time, pixels (after EXIF turned it), EXIF orientation, digest, faults."""

    size: int
    mtime: int
    width: int = 0
    height: int = 0
    orientation: int = 1
    digest: bytes = b""
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Label:
    """A label file: bytes (ABSENT when there is none), time, digest, boxes by class and by size, faults."""

    size: int
    mtime: int
    digest: bytes = b""
    classes: dict[int, int] = field(default_factory=dict)
    bins: dict[int, int] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Facts:
    """Facts of one picture; None where the store's are still true."""

    path: str
    picture: Picture | None
    label: Label | None


def start_worker() -> None:
    """Prepare a worker process: one thread each, and what the decoders print goes where `read_picture` finds it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a parent that was killed leaves no workers behind
    _COMPLAINTS.clear()
    os.dup2(_complaints().fileno(), 2)


def examine(task: tuple[int, list[tuple[str, str, Known]]]) -> list[Facts]:
    """Facts of some pictures: (number of names, [(picture, label file, what is known)])."""
    classes, pictures = task
    return [_examine(path, label, known, classes) for path, label, known in pictures]


def _examine(path: str, label: str, known: Known, classes: int) -> Facts:
    signature = stamp_of(path)
    try:
        picture = None if signature == known.picture else read_picture(path, signature)
    except MemoryError:
        picture = Picture(signature[0], AGAIN, faults=(("denied", "does not fit into the memory"),))
    if signature[0] == ABSENT:
        return Facts(path, picture, Label(*stamp_of(label)))
    width, height = (picture.width, picture.height) if picture else (known.width, known.height)
    signature = stamp_of(label)
    fresh = picture is None and signature == known.label
    return Facts(path, picture, None if fresh else read_label(label, signature, classes, width, height))


def stamp_of(path: str) -> tuple[int, int]:
    """(size, mtime in ns) of a file, (ABSENT, 0) when there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116  a Path for each of 100,000 files costs more than the call
    except OSError:
        return ABSENT, 0
    return found.st_size, found.st_mtime_ns


# Pictures


def read_picture(path: str, signature: tuple[int, int]) -> Picture:
    """Decode a picture as far as it takes to know that every byte of it is sound."""
    size, mtime = signature
    if size == ABSENT:
        return Picture(size, mtime, faults=(("missing", "is listed and does not exist"),))
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        return Picture(size, AGAIN, faults=(("denied", f"{error.strerror}"),))
    digest = hashlib.sha256(content).digest()[:16]
    found = kind_of(content)
    if found is None:
        what = "is empty" if not content else f"is no picture, it begins with {content[:8]!r}"
        return Picture(size, mtime, digest=digest, faults=(("unreadable", what),))
    faults: list[Fault] = []
    if found not in ENDINGS:
        faults.append(("format", f"holds {found.upper()}"))
    elif os.path.splitext(path)[1].lower() not in ENDINGS[found]:  # noqa: PTH122
        faults.append(("extension", f"holds {found.upper()}"))
    if (end := _end_fault(content, found)) is not None:
        faults.append(end)
        if end[0] in ("truncated", "damaged"):
            return Picture(size, mtime, digest=digest, faults=tuple(faults))
    from lab.picture_header import exceeds  # noqa: PLC0415  only workers that decode need Pillow

    if too_much := exceeds(content):
        return Picture(size, mtime, digest=digest, faults=(*faults, ("unreadable", too_much)))
    shape, complaint = _decode(content, found)
    if shape is None:
        faults.append(("unreadable", complaint or f"the decoder gives up on this {found.upper()}"))
        return Picture(size, mtime, digest=digest, faults=tuple(faults))
    width, height, orientation = _seen(content, found, shape)
    faults += [("damaged", complaint)] if complaint else []
    faults += [("tiny", f"is {width} x {height} pixels")] if min(width, height) < LEAST_SIDE else []
    faults += [("rotated", f"EXIF orientation {orientation}")] if orientation != 1 else []
    return Picture(size, mtime, width, height, orientation, digest, tuple(faults))


def _seen(content: bytes, found: str, shape: tuple[int, int]) -> tuple[int, int, int]:
    """(width, height, EXIF orientation) as engines see a picture, which may have been decoded smaller."""
    height, width = shape
    if found != "jpeg":
        return width, height, 1
    said, orientation, _ = jpeg_header(content)
    width, height = said or (width, height)
    return (height, width, orientation) if orientation >= 5 else (width, height, orientation)  # from 5 on on its side


def _end_fault(content: bytes, found: str) -> Fault | None:
    """Whether a file ends where its format says. OpenCV fills what is missing with grey, and PIL may not look."""
    if found == "jpeg":
        scan = jpeg_header(content)[2]
        end = content.find(b"\xff\xd9", scan)  # in compressed data 0xFF is followed by 0x00
        if end < 0:
            return "truncated", "has no end-of-image marker"
        # a stereo picture (MPO) is two JPEGs in a row, and engines know that
        if not content.endswith(b"\xff\xd9") and content.find(b"MPF\0", 0, scan) < 0:
            return "trailing", f"{len(content) - end - 2} bytes after the end"
    if found == "png":
        return _png_fault(content)
    if found == "webp" and int.from_bytes(content[4:8], "little") + 8 > len(content):
        return "truncated", "is shorter than its header says"
    if found == "bmp" and int.from_bytes(content[2:6], "little") > len(content):
        return "truncated", "is shorter than its header says"
    return None


def kind_of(content: bytes) -> str | None:
    """The format of a picture by its first bytes; None when it is none."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    if content[4:8] == b"ftyp":
        return "avif" if content[8:12] in (b"avif", b"avis") else "heic"
    if content[:2] in NETPBM and content[2:3].isspace():
        return "netpbm"
    return next((name for begin, name in BEGINNINGS if content.startswith(begin)), None)


def jpeg_header(content: bytes) -> tuple[tuple[int, int] | None, int, int]:
    """((width, height), EXIF orientation, offset of the first scan) of a JPEG (ITU T.81 annex B)."""
    at, size, orientation = 2, None, 1
    while at + 4 <= len(content):
        if content[at] != 0xFF:
            break
        marker = content[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        length = int.from_bytes(content[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and at + 9 <= len(content):
            size = (int.from_bytes(content[at + 7 : at + 9], "big"), int.from_bytes(content[at + 5 : at + 7], "big"))
        elif marker == 0xE1 and content[at + 4 : at + 10] == b"Exif\0\0":
            orientation = exif_orientation(content[at + 10 : at + 2 + length])
        elif marker == 0xDA:
            return size, orientation, at + 2 + length
        at += 2 + length
    return size, orientation, at


def exif_orientation(block: bytes) -> int:
    """Tag 0x0112 of a TIFF header; 1, upright, when it is absent or nonsense."""
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack_from(order + "I", block, 4)
        (entries,) = struct.unpack_from(order + "H", block, first)
        for number in range(entries):
            tag, _, _, value = struct.unpack_from(order + "HHIH", block, first + 2 + 12 * number)
            if tag == 0x0112:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _png_fault(content: bytes) -> Fault | None:
    """Walk the chunks: each has its checksum, and the last is IEND."""
    at = 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        end = at + 12 + length
        if end > len(content):
            break
        if zlib.crc32(content[at + 4 : end - 4]) != int.from_bytes(content[end - 4 : end], "big"):
            return "damaged", f"the checksum of its chunk at byte {at} is wrong"
        if content[at + 4 : at + 8] == b"IEND":
            return None
        at = end
    return "truncated", "has no IEND chunk"


def _decode(content: bytes, found: str) -> tuple[tuple[int, int] | None, str]:
    """((height, width) or None, what the decoder complained of).

    A JPEG is decoded to an eighth: all its entropy-coded bytes are read all the same, and it takes half the time.
    """
    import cv2  # noqa: PLC0415  only workers that decode need it
    import numpy as np  # noqa: PLC0415

    cv2.setNumThreads(1)
    how = cv2.IMREAD_REDUCED_GRAYSCALE_8 if found == "jpeg" else cv2.IMREAD_COLOR
    complaints = _complaints()
    begun = os.fstat(complaints.fileno()).st_size
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), how | cv2.IMREAD_IGNORE_ORIENTATION)
    except (cv2.error, MemoryError) as error:
        return None, " ".join(str(error).split())[:120]
    sys.stderr.flush()
    said = b""
    if os.fstat(complaints.fileno()).st_size > begun:
        said = os.pread(complaints.fileno(), 400, begun)
        os.ftruncate(complaints.fileno(), 0)
        os.lseek(complaints.fileno(), 0, os.SEEK_SET)
    damage = DAMAGE.search(said.decode("utf-8", "replace"))
    words = damage.group()[:120] if damage else ""
    return (None if image is None else (int(image.shape[0]), int(image.shape[1]))), words


_COMPLAINTS: list[io.BufferedRandom] = []


def _complaints() -> io.BufferedRandom:
    """The file that stands in for a worker's stderr: libjpeg and libpng report damage there and nowhere else."""
    if not _COMPLAINTS:
        _COMPLAINTS.append(tempfile.TemporaryFile())  # noqa: SIM115
    return _COMPLAINTS[0]


# Labels


def read_label(path: str, signature: tuple[int, int], classes: int, width: int, height: int) -> Label:
    """Read a label file as the engines do. `width` and `height` of the picture in pixels, 0 when it is unreadable."""
    size, mtime = signature
    if size == ABSENT:
        return Label(size, mtime, faults=(("unlabelled", "has no label file"),))
    try:
        content = Path(path).read_bytes()
        text = content.decode("utf-8")
    except OSError as error:
        return Label(size, AGAIN, faults=(("denied", f"{error.strerror}"),))
    except UnicodeDecodeError:
        digest = hashlib.sha256(content).digest()[:16]
        return Label(size, mtime, digest, faults=(("row", "is not UTF-8 text"),))
    digest = hashlib.sha256(content).digest()[:16]
    reading = _Reading(classes, width, height)
    if text.startswith("\ufeff"):
        reading.fault("row", 1, "begins with a byte-order mark, which YOLOv5 cannot read")
        text = text[1:]
    text = text.rstrip()
    for number, line in enumerate(text.splitlines(), 1):
        row = line.split()
        if row:
            reading.take(number, row)
        elif line and reading.rows:
            reading.fault("row", number, "holds blanks alone, which YOLOv5 cannot read")
    return reading.label(size, mtime, digest)


class _Reading:
    """The rows of one label file, and what is wrong with them."""

    def __init__(self, classes: int, width: int, height: int) -> None:
        self.names = classes
        self.width, self.height = width, height
        self.rows = 0
        self.seen: set[tuple[float, ...]] = set()
        self.kinds: set[bool] = set()  # whether polygons, whether boxes
        self.classes: dict[int, int] = {}
        self.bins: dict[int, int] = {}
        self.faults: dict[str, list[str]] = {}

    def fault(self, kind: str, line: int, words: str) -> None:
        told = self.faults.setdefault(kind, [])
        if len(told) < KEPT:
            told.append(f"line {line}: {words}")

    def take(self, line: int, row: list[str]) -> None:
        self.rows += 1
        shown = " ".join(row)[:60]
        try:
            numbers = tuple(map(float, row))
        except ValueError:
            return self.fault("row", line, f"{shown!r} is not a row of numbers")
        count = len(numbers)
        polygon = count > 6 and count % 2 == 1
        if count != 5 and not polygon:
            return self.fault("row", line, f"{count} numbers; a box has 5 (class x y width height)")
        if not all(map(math.isfinite, numbers)):
            return self.fault("row", line, f"{shown!r} holds a number that is none")
        number = numbers[0]
        if number != int(number) or number < 0:
            return self.fault("row", line, f"class {row[0]} is not a whole number from 0")
        if number >= self.names:
            self.fault("class", line, f"class {row[0]}; there are classes 0 to {self.names - 1}")
        low, high = min(numbers[1:]), max(numbers[1:])
        if high > PIXELS:
            return self.fault("pixels", line, shown)
        if high > ONE or low < 0:
            return self.fault("outside", line, shown)
        self.kinds.add(polygon)
        if len(self.kinds) > 1:
            self.fault("mixed", line, "a polygon among boxes" if polygon else "a box among polygons")
        if numbers in self.seen:
            self.fault("repeated", line, shown)
        self.seen.add(numbers)
        x, y, w, h = _enclosing(numbers) if polygon else numbers[1:]
        if w <= 0 or h <= 0:
            return self.fault("flat", line, shown)
        # six printed digits are never a pixel off
        beyond_x = max(w / 2 - x, x + w / 2 - 1) * (self.width or 500)
        beyond_y = max(h / 2 - y, y + h / 2 - 1) * (self.height or 500)
        if beyond_x > 1 or beyond_y > 1:
            self.fault("edge", line, f"{shown} ({max(beyond_x, beyond_y):.0f} pixels)" if self.width else shown)
        self.classes[int(number)] = self.classes.get(int(number), 0) + 1
        place = size_bin(w, h, self.width, self.height)
        self.bins[place] = self.bins.get(place, 0) + 1
        return None

    def label(self, size: int, mtime: int, digest: bytes) -> Label:
        faults = tuple((kind, words) for kind, told in self.faults.items() for words in told)
        if not self.rows and not faults:
            faults = (("empty", "is empty"),)
        return Label(size, mtime, digest, self.classes, self.bins, faults)


def _enclosing(numbers: tuple[float, ...]) -> tuple[float, float, float, float]:
    xs, ys = numbers[1::2], numbers[2::2]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def size_bin(w: float, h: float, width: int, height: int) -> int:
    """Octave of a box's side: 0 for half to all of the picture's longer side, 1 for a quarter to half, and so on.

    The side is the square root of the box's area in the letterboxed picture, as a share of its longer side.
    """
    longest = max(width, height) or 1
    side = math.sqrt(w * h * (width or 1) * (height or 1)) / longest
    return min(BINS - 1, max(0, math.floor(-math.log2(side)))) if side < 1 else 0

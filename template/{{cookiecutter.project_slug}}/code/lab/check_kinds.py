"""The kinds of fault that `lab data check` knows: what each means for training, and what mends it."""

from __future__ import annotations

from dataclasses import dataclass

BROKEN, WRONG, NOTE = "broken", "wrong", "note"


@dataclass(frozen=True)
class Kind:
    """One kind of fault.

    level: BROKEN, an engine drops the picture or stops; WRONG, it trains and the result suffers; NOTE, worth knowing.
    moves: `--fix` moves the picture and its label file aside.
    """

    level: str
    says: str
    mend: str
    moves: bool = False


KINDS = {
    # pictures
    "missing": Kind(BROKEN, "listed, and not there", "correct the list; --fix takes the line out", moves=True),
    "unreadable": Kind(BROKEN, "no engine can read it", "bring the picture again, or --fix", moves=True),
    "denied": Kind(BROKEN, "cannot be opened", "correct its permissions, or the disk; then check again"),
    "truncated": Kind(BROKEN, "the file ends early", "copy it again from its source, or --fix", moves=True),
    "damaged": Kind(BROKEN, "bytes inside are corrupt", "copy it again from its source, or --fix", moves=True),
    "format": Kind(BROKEN, "a format that YOLOv5 refuses", "convert it to JPEG or PNG, or --fix", moves=True),
    "tiny": Kind(BROKEN, "a side below 10 pixels, which engines refuse", "remove it, or --fix", moves=True),
    "overlap": Kind(
        WRONG,
        "the same picture in two splits: the measured quality is too good",
        "keep it in one; --fix moves the one in train aside",
        moves=True,
    ),
    "duplicate": Kind(
        WRONG, "the same bytes more than once in a split", "keep one; --fix moves the others", moves=True
    ),
    "array": Kind(
        BROKEN,
        "an array beside a picture that no engine made: both would train on it",
        "keep such arrays in a folder of their own; --fix moves them aside",
    ),
    # labels
    "row": Kind(BROKEN, "a row that is no box", "correct the row: class x y width height; or --fix", moves=True),
    "pixels": Kind(
        BROKEN,
        "coordinates in pixels",
        "divide x and width by the picture's width, y and height by its height; or --fix",
        moves=True,
    ),
    "outside": Kind(BROKEN, "coordinates below 0 or above 1", "correct the row, or --fix", moves=True),
    "class": Kind(
        BROKEN, "a class beyond names", "add the name to names in the yaml file, or correct the row", moves=True
    ),
    "mixed": Kind(
        BROKEN,
        "boxes and polygons in one file: YOLOv5 takes the boxes for polygons",
        "write all rows as boxes, or all as polygons; or --fix",
        moves=True,
    ),
    "flat": Kind(WRONG, "a box without width or height", "correct or delete the row, or --fix", moves=True),
    "edge": Kind(WRONG, "a box that reaches beyond the picture", "clip it where the labels come from"),
    "repeated": Kind(NOTE, "the same row twice: engines drop one", "delete it"),
    # worth knowing
    "empty": Kind(NOTE, "an empty label file: a picture of background", "nothing, if nothing is on it"),
    "unlabelled": Kind(NOTE, "no label file: a picture of background", "nothing, if nothing is on it"),
    "extension": Kind(NOTE, "the name says one format, the content another", "rename it; engines go by the content"),
    "rotated": Kind(
        NOTE, "turned by its EXIF tag: labels count on the turned picture", "see in the page whether the boxes fit"
    ),
    "trailing": Kind(
        NOTE,
        "bytes after the JPEG's end: YOLOv5 writes the file anew, and on a read-only disk drops it",
        "save the picture again",
    ),
    "name": Kind(BROKEN, "a name that is not UTF-8: it was not looked at", "rename it"),
    "skipped": Kind(NOTE, "a picture whose ending no engine reads", "convert it to JPEG or PNG"),
    "orphan": Kind(NOTE, "a label file without a picture", "bring the picture, or delete the file"),
    "absent": Kind(NOTE, "a class without any box in train", "add pictures of it, or take the name out"),
    "cache": Kind(NOTE, "an engine's cache, older than the data or cut short", "delete it, or --fix"),
}

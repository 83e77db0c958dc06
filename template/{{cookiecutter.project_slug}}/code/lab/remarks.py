"""Warnings of the engines that change what a result means: said as one sentence, instead of one line among hundreds."""

from __future__ import annotations

import logging
import sys

# what an engine writes -> what it means here and what to do
REMARKS: tuple[tuple[str, str], ...] = (
    (
        "NMS time limit",
        "non-maximum suppression ran out of time and left pictures without boxes, so this mAP is too low; in the first "
        "epochs it passes by itself, later let `lab val` measure with a larger --conf-thres or on a GPU",
    ),
    (
        "ignoring corrupt image/label",
        "pictures were dropped because a label or the file is broken: `lab data check`, with the same data, names them",
    ),
    (
        "pycocotools unable to run",
        "the boxes are written as COCO JSON; the mAP above is the engine's own, pycocotools is not in this image",
    ),
)


class Interpreter(logging.Handler):
    """Says each remark once, on stderr, when an engine logs its sign."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        text = record.getMessage()
        for sign, sentence in REMARKS:
            if sign in text and sign not in self.said:
                self.said.add(sign)
                print(f"lab: {sentence}", file=sys.stderr, flush=True)


def listen() -> None:
    """Interpret what the engines log from now on; both use this logger."""
    logging.getLogger("ultralytics").addHandler(Interpreter())

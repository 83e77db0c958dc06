"""Words of others (names of GPUs, paths, variables) on their way to a person's terminal."""

from __future__ import annotations

import io
from typing import TextIO


def printable(text: str) -> str:
    """`text` as one line, its control characters written out (`\\x1b`) so that none of them reaches a terminal.

    The same for what turns the writing direction, for blanks that are not one, and for what no encoding carries.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def shortened(text: str, limit: int = 80) -> str:
    """`text`, cut where it would drown the sentence that names it."""
    return text if len(text) <= limit else f"{text[:limit]}..."


def quoted(text: str) -> str:
    """`text` in quotation marks for a sentence."""
    return repr(shortened(text))


def tolerate(*streams: TextIO) -> None:
    """Let streams write characters that their encoding lacks as escapes instead of raising."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

"""Every file of every layer of an image, as the engine hands them out: also those that a later layer deleted."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Iterator
from typing import IO


def layers(image: str) -> Iterator[tuple[str, str, bytes]]:
    """(layer, path, content) of each plain file of an image; of a link the place it leads to."""
    with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saved:
        assert saved.stdout is not None
        with tarfile.open(fileobj=saved.stdout, mode="r|") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file is None:
                    continue
                try:
                    yield from _files(member.name, file)
                except tarfile.ReadError:  # the configuration and the list of layers, which are JSON
                    continue
    assert saved.returncode == 0


def _files(layer: str, file: IO[bytes]) -> Iterator[tuple[str, str, bytes]]:
    # engines write layers as they are, or compressed
    with tarfile.open(fileobj=file, mode="r|*") as opened:
        for member in opened:
            held = opened.extractfile(member) if member.isfile() else None
            yield layer, member.name.removeprefix("./"), held.read() if held else member.linkname.encode()

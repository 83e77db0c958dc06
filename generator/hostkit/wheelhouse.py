"""wheelhouse/: what a bundle holds, whether it is whole, and whether it fits this project and this host.

wheelhouse/*.whl  apt/*.deb  yolov5-*.tar.gz  image/*.tar  weights/*      and manifest.json, which names them all
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from .program import ask
from .project import CannotWrite, read_text
from .terminal import printable, shortened

FOLDER = "wheelhouse"
MANIFEST = "wheelhouse/manifest.json"
FORMAT = 1
CHUNK = 1 << 20
LOAD_LIMIT = 900.0  # seconds for `docker load`
AGAIN = (
    "run `make bundle` again where there is a network (what is whole is not fetched twice) and bring wheelhouse/ here"
)


class Held(NamedTuple):
    """A file of the bundle."""

    sha256: str
    size: int  # bytes
    used_for: str


class Manifest(NamedTuple):
    """What a bundle was made for, and what is in it: files by their path below wheelhouse/."""

    made: str  # date and time, UTC
    python: str
    machine: str
    torch: str
    builds: tuple[str, ...]
    logger: str
    image: str  # the base image's name
    recipes: dict[str, str]  # docker/… that decide what is in the image, with their SHA-256
    files: dict[str, Held]


class Bad(Exception):
    """A bundle that cannot be used. One sentence: what is wrong, and the mend."""


def read_manifest(project: Path) -> Manifest | None:
    """The bundle's manifest, None where there is no bundle. Raises Bad when it is damaged."""
    try:
        text = read_text(project / MANIFEST)
    except CannotWrite as error:
        raise Bad(str(error)) from None
    if not text:
        return None
    try:
        data: dict[str, Any] = json.loads(text)
        if data["format"] != FORMAT:
            raise Bad(f"{MANIFEST} is of another version of this template: {AGAIN}.")
        files = {
            str(name): Held(str(one["sha256"]), int(one["bytes"]), str(one["for"]))
            for name, one in data["files"].items()
        }
        if any(name.startswith("/") or ".." in name.split("/") for name in files):
            raise ValueError
        return Manifest(
            made=str(data["made"]),
            python=str(data["python"]),
            machine=str(data["machine"]),
            torch=str(data["torch"]),
            builds=tuple(map(str, data["builds"])),
            logger=str(data["logger"]),
            image=str(data["image"]),
            recipes={str(name): str(value) for name, value in data["recipes"].items()},
            files=files,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Bad(f"{MANIFEST} is damaged: {AGAIN}.") from None


def manifest_text(manifest: Manifest) -> str:
    """What `read_manifest` reads."""
    files = {
        name: {"for": held.used_for, "bytes": held.size, "sha256": held.sha256}
        for name, held in sorted(manifest.files.items())
    }
    return json.dumps({"format": FORMAT, **manifest._asdict(), "files": files}, indent=1) + "\n"


def misfits(
    manifest: Manifest, python: str, machine: str, torch: str, build: str, logger: str, image: str
) -> list[str]:
    """Why a bundle is not the one for this image, half a sentence each; what is "" is not compared."""
    found = []
    pairs = (
        ("Python", manifest.python, python),
        ("the machine", manifest.machine, machine),
        ("torch", manifest.torch, torch),
        ("the logger", manifest.logger, logger),
        ("the base image", manifest.image, image),
    )
    for what, held, wanted in pairs:
        if wanted and held != wanted:
            found.append(f"it was made for {what} {held}, and this project needs {wanted} here")
    if build and build not in manifest.builds:
        found.append(f"it holds torch {', '.join(manifest.builds)}, and this host needs {build}")
    return found


def damage(project: Path, manifest: Manifest) -> list[str]:
    """What of the bundle is missing or changed, one half sentence each, by the checksums."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - slow to import, and only a bundle needs it

    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda name: _fault(project, manifest, name), sorted(manifest.files))
        return [said for said in found if said]


def _fault(project: Path, manifest: Manifest, name: str) -> str:
    """What is wrong with a file of the bundle, "" when it is as the manifest says."""
    file, held = project / FOLDER / name, manifest.files[name]
    try:
        size = file.stat().st_size
        if size != held.size:
            return f"{name} has {size} bytes instead of {held.size}"
        return "" if digest(file) == held.sha256 else f"{name} is damaged"
    except OSError as error:
        return f"{name} is missing" if isinstance(error, FileNotFoundError) else f"{name}: {error.strerror}"


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    sha = hashlib.sha256()
    with file.open("rb") as opened:
        for chunk in iter(lambda: opened.read(CHUNK), b""):
            sha.update(chunk)
    return sha.hexdigest()


def some(names: list[str]) -> str:
    """The first of them, and how many more."""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return printable("; ".join(map(shortened, names[:2])) + more)


def base_image(project: Path, manifest: Manifest) -> str:
    """See that the engine has the bundle's base image; a sentence when it had to be loaded. Raises Bad."""
    archive = image_archive(manifest.image)
    if archive not in manifest.files or ask(["docker", "image", "inspect", manifest.image], 20).state == "ok":
        return ""
    wrong = _fault(project, manifest, archive)
    if wrong:  # an engine takes what it is given, under whatever names stand in it
        raise Bad(f"the base image is not loaded, because {printable(wrong)}: {AGAIN}.")
    answer = ask(["docker", "load", "--input", str(project / FOLDER / archive)], LOAD_LIMIT)
    if answer.state != "ok":
        said = " ".join(answer.text.split())[:160] or answer.state
        raise Bad(f"the base image cannot be loaded from wheelhouse/{archive} ({said}): {AGAIN}.")
    return f"the base image {manifest.image} was not in this engine and came from wheelhouse/."


def image_archive(image: str) -> str:
    """Where the base image lies below wheelhouse/."""
    plain = "".join(one if one.isalnum() or one in ".-" else "-" for one in image)
    return f"image/{plain}.tar"


def gigabytes(size: float) -> str:
    """1234567890 -> "1.23 GB"; below a gigabyte in MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"

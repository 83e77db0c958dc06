"""Where a project downloads from: one section of .devcontainer/mirrors.conf."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterable, Mapping

from .catalogue import BadRequest
from .project import read_text
from .terminal import shortened

FILE = ".devcontainer/mirrors.conf"
NAMES = ("PYTHON_IMAGE", "APT_MIRROR", "UV_DEFAULT_INDEX", "TORCH_INDEX_BASE", "HF_ENDPOINT", "YOLOV5_GIT_URL")
BUILD = ("APT_MIRROR", "UV_DEFAULT_INDEX", "TORCH_INDEX_BASE")  # arguments of the image build
VALUE = re.compile(r"[^\s$'\"`#\\]+")  # what stands in .env as it is


def sections(text: str) -> dict[str, dict[str, str]]:
    """The sections of mirrors.conf. Raises BadRequest for a line that means nothing, by its number."""
    found: dict[str, dict[str, str]] = {"default": {}}
    name = ""
    for number, line in enumerate(text.splitlines(), 1):
        said = line.strip()
        if not said or said[0] in "#;":
            continue
        head = re.fullmatch(r"\[([\w-]+)\]", said)
        if head:
            name = head[1]
            found.setdefault(name, {})
            continue
        key, equals, value = (part.strip() for part in said.partition("="))
        if not name or not equals:
            raise BadRequest(
                f"{FILE}, line {number}: {shortened(said)} is neither [a section] nor NAME = value: mend it."
            )
        if key not in NAMES:
            raise BadRequest(f"{FILE}, line {number}: {shortened(key)} is not one of {', '.join(NAMES)}: mend it.")
        if value and not VALUE.fullmatch(value):
            raise BadRequest(f"{FILE}, line {number}: {shortened(value)} holds a blank or a quote: mend it.")
        if value:
            found[name][key] = value
    return found


def refuse_passwords(values: Mapping[str, str], where: str, names: Iterable[str] = BUILD) -> None:
    """Raises BadRequest when an address of `values` holds a user or a password, which the image's history would keep.

    The sentence does not repeat it.
    """
    for name in names:
        if re.match(r"[\w+.-]+://[^/]*@", values.get(name, "")):
            raise BadRequest(
                f"{name} {where} holds a user or a password, which would stay readable: put them into a netrc file "
                "(machine HOST login USER password PASSWORD) and NETRC=/path/of/it into .env."
            )


def netrc(wished: str, project: Path) -> str:
    """The file whose users and passwords the image build may use, "" for none. Raises BadRequest."""
    if not wished:
        return ""
    try:
        file = project / Path(wished).expanduser()
        with file.open("rb"):
            return str(file)
    except (OSError, RuntimeError, ValueError):
        raise BadRequest(f"NETRC={shortened(wished)} cannot be read: correct it or remove it.") from None


def chosen(project: Path, wished: str, python: str) -> dict[str, str]:
    """What the section `wished` ("" is default) sets. Raises BadRequest for a section that is not there."""
    known = sections(read_text(project / FILE))
    if (wished or "default") not in known:
        raise BadRequest(
            f"MIRRORS={shortened(wished)} is no section of {FILE}, which has {', '.join(known)}: correct it."
        )
    refuse_passwords(known[wished or "default"], f"in {FILE}, which is committed,", NAMES)
    return {name: value.replace("{python}", python or "3.11") for name, value in known[wished or "default"].items()}


def unless_set(values: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """Those that no line of the user's own .env sets; compose takes the shell's before either."""
    return {name: value for name, value in values.items() if name not in own and name != "TORCH_INDEX_BASE"}

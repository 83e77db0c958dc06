"""A project's own files, read: its settings, the lines of its .env, and what its compose.yaml asks of a host."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from .catalogue import BadRequest
from .engine import size
from .probe import Needs

BEGIN = "# >>> written by .devcontainer/host-setup each time the container opens; put your own lines above"
END = "# <<<"


class CannotWrite(Exception):
    """A file of the project cannot be read or written. One sentence."""


class Project(NamedTuple):
    """.devcontainer/project.json: what was answered when the project was made."""

    slug: str = ""
    torch: str = "auto"
    python: str = ""
    mirrors: str = ""


def project_settings(project: Path) -> Project:
    """What project.json says; the defaults of `Project` when there is none. Raises BadRequest when it is damaged."""
    path = project / ".devcontainer" / "project.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Project(
            str(data["slug"]),
            str(data.get("torch") or "auto"),
            str(data.get("python") or ""),
            str(data.get("mirrors") or ""),
        )
    except OSError:
        return Project(project.resolve().name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        name = path.relative_to(project).as_posix()
        raise BadRequest(f"{path} is damaged: restore it, e.g. with git checkout -- {name}.") from None


def read_text(path: Path) -> str:
    """The file's text with its line ends, "" when there is none. Raises CannotWrite when it cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, a device never ends
            raise CannotWrite(f"{path} is not a regular file: move it away.")
        content = path.read_bytes()
        if b"\0" in content:  # also what PowerShell's > writes
            raise CannotWrite(f"{path} is not plain text (UTF-16 or binary): save it as UTF-8.")
        return content.decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise CannotWrite(f"{path} cannot be read: {error.strerror}.") from None


# LAB_…: not the names of the overrides, which compose would take from the shell instead of the decision
KEYS = (
    "COMPOSE_FILE", "COMPOSE_PATH_SEPARATOR", "COMPOSE_PROJECT_NAME", "DEV_UID", "DEV_GID", "LAB_TORCH_VERSION",
    "LAB_TORCHVISION_VERSION", "LAB_TORCH_BUILD", "LAB_TORCH_INDEX", "HOST_CA", "LAB_NETRC", "TENSORBOARD_PORT",
    "JUPYTER_PORT", "SSH_PORT", "SERVE_PORT", "JUPYTER_TOKEN", "PYTHON_IMAGE", "APT_MIRROR", "UV_DEFAULT_INDEX",
    "HF_ENDPOINT", "YOLOV5_GIT_URL",
)  # fmt: skip

BOM = "\ufeff"  # some editors of Windows begin a file with it, and compose skips it


def split_env(text: str) -> tuple[str, str]:
    """(the user's own lines, our block) of a .env, every byte in one of them.

    A block whose end mark was deleted ends before the first line that is not ours. A strange line before an end mark
    stays the user's.
    """
    mark = BOM if text.startswith(BOM) else ""
    own, block = [mark], []
    lines = text[len(mark) :].splitlines(keepends=True)
    marks = [line.strip() if line.strip() in {BEGIN, END} else "" for line in lines]
    start = 0
    while start < len(lines):
        if marks[start] != BEGIN:
            own.append(lines[start])
            start += 1
            continue
        end = next((place for place in range(start + 1, len(lines)) if marks[place]), len(lines))
        closed = marks[end : end + 1] == [END]
        keys = [line.strip().partition("=")[0] for line in lines[start + 1 : end]]
        if not closed:
            end = next((start + 1 + place for place, key in enumerate(keys) if key not in KEYS), end)
        block.append(lines[start])
        for line, key in zip(lines[start + 1 : end], keys):  # noqa: B905 (Python 3.8; a cut block has fewer lines)
            (block if key in KEYS else own).append(line)
        start = end
        if closed:
            block.append(lines[end])
            start += 1
    return "".join(own), "".join(block)


def own_values(text: str) -> dict[str, str]:
    """The variables that lines of a .env set; the last one wins, as in compose."""
    values = {}
    for line in text.split("\n"):  # and at nothing else that Python takes for the end of a line
        match = re.match(BOM + r"?\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)", line)
        if not match:
            continue
        name, value = match[1], match[2].strip()
        if value[:1] in {"'", '"'}:
            end = value.find(value[0], 1)
            value = value[1:end] if end > 0 else value[1:]
        else:
            value = re.split(r"(?:^|\s)#", value, maxsplit=1)[0].strip()
        values[name] = value
    return values


def needs(project: Path) -> Needs:
    """What compose.yaml asks of the host, with the values of .env and the shell; nothing where there is no project.

    Line by line, because a host's Python has no YAML: ports are written as 127.0.0.1:${NAME:-number}:number.
    """
    try:
        compose, text = read_text(project / "compose.yaml"), read_text(project / ".env")
    except CannotWrite:
        return Needs()
    if not compose:
        return Needs()
    values = {**own_values(text), **{name: value for name, value in os.environ.items() if value}}
    ports = []
    for name, default in re.findall(r"127\.0\.0\.1:\$\{([A-Z_]+):-([0-9]{1,5})\}:[0-9]+", compose):
        port = values.get(name) or default
        if port.isdigit() and 0 < int(port) < 65536:
            ports.append((name, int(port)))
    shm = re.search(r"shm_size: \$\{([A-Z_]+):-(\w+)\}", compose)
    return Needs(
        values.get("COMPOSE_PROJECT_NAME", ""),
        tuple(ports),
        (size(values.get(shm[1]) or shm[2]) or 0) if shm else None,
    )

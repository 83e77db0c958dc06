"""What the project's services need of their host, chosen once and kept in .env: ports, Jupyter's token, SSH's keys."""

from __future__ import annotations

import base64
import contextlib
import os
import re
from pathlib import Path
from typing import Mapping

from .catalogue import BadRequest
from .files import host_path
from .probe import PORT_CLAIMS, busy
from .program import ask
from .project import read_text
from .terminal import shortened

PORTS = {"TENSORBOARD_PORT": 6006, "JUPYTER_PORT": 8888, "SSH_PORT": 2222, "SERVE_PORT": 8000}
TRIED = 500  # ports from the usual one on
TOKEN = "JUPYTER_TOKEN"
KEYS = "SSH_AUTHORIZED_KEYS"
KEYS_FILE = ".devcontainer/authorized_keys"
KEY = re.compile(r"(ssh-(ed25519|rsa)|ecdsa-sha2-nistp\d+|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com) [\w+/]+=*")
AGENT_LIMIT = 2.0  # seconds; an agent that is asked through a dead connection never answers


def settings(project: Path, own: Mapping[str, str], before: Mapping[str, str], system: str) -> dict[str, str]:
    """Our lines of .env for the services; none for what the user's `own` lines set. `before` is what ours were.

    A port that was chosen stays: bookmarks and SSH configurations hold it. A new one is free now and claimed by no
    other project of this machine, whoever's it is.
    """
    chosen: dict[str, str] = {}
    copied = False
    for name, usual in PORTS.items():
        if name in own:
            continue
        kept = before.get(name, "")
        taken = {int(value) for value in (*own.values(), *chosen.values()) if value.isdigit()}
        # a folder that was copied brings the ports of the first one, and its token
        if kept.isdigit() and 0 < int(kept) < 65536 and claim(int(kept), project):
            chosen[name] = kept
        else:
            copied = copied or kept.isdigit()
            chosen[name] = str(_free_port(usual, taken, project, system))
    if TOKEN not in own:
        kept = before.get(TOKEN, "")
        chosen[TOKEN] = kept if re.fullmatch(r"[\w-]{32,}", kept) and not copied else _token()
    return chosen


def _token() -> str:
    return base64.urlsafe_b64encode(os.urandom(32)).rstrip(b"=").decode("ascii")


def _free_port(usual: int, taken: set[int], project: Path, system: str) -> int:
    for port in range(usual, usual + TRIED):
        if port not in taken and not busy((("", port),), system) and claim(port, project):
            return port
    return usual  # compose will say that it is taken, and the doctor how to move it


def claim(port: int, project: Path) -> bool:
    """Whether this project may have `port`: it is written down for all users of the machine, first come, first served.

    A claim counts while the project it names exists. Where nothing can be written down, nothing is claimed.
    """
    place = _claims()
    file = place / str(port)
    mine = os.fsencode(project.resolve())
    for _ in range(2):
        try:
            if place.is_symlink():  # it leads to a folder in which nothing is ours to write or to remove
                return True
            if not place.is_dir():
                place.mkdir()
                place.chmod(0o1777)  # like /tmp: everybody adds, nobody removes another's
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb") as new:
                new.write(mine)
            return True
        except FileExistsError:
            owner = _claimant(file)
            if owner == mine:
                return True
            if owner and not _gone(owner):
                return False
            with contextlib.suppress(OSError):
                file.unlink()
        except OSError:
            return True
    return False


def _gone(place: bytes) -> bool:
    """Whether nothing is at `place`. What is in another user's closed home cannot be seen, and is there."""
    try:
        os.lstat(place)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _claims() -> Path:
    if os.name == "posix":
        return host_path(PORT_CLAIMS)
    return Path(os.environ.get("TEMP", ".")) / Path(PORT_CLAIMS).name


def _claimant(file: Path) -> bytes:
    try:
        # not a link, and not a pipe that would be waited for: others write here
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb") as claim_file:
            return claim_file.read(4096)
    except OSError:
        return b"/"  # unreadable: somebody's


def public_keys(environment: Mapping[str, str], own: Mapping[str, str], project: Path) -> bytes:
    """The public keys that may log in by SSH, one a line: of SSH_AUTHORIZED_KEYS, else ~/.ssh/*.pub and the agent's.

    Raises BadRequest when the file that the user named has none.
    """
    named = (environment.get(KEYS) or own.get(KEYS) or "").strip()
    if named:
        file = _expanded(named)
        found = _keys(read_text(file if file.is_absolute() else project / file))
        if not found:
            raise BadRequest(
                f"{KEYS}={shortened(named)} holds no public key (a line such as ssh-ed25519 AAAA…): mend it."
            )
        return _lines(found)
    found = []
    home = host_path(str(_expanded("~")))
    with contextlib.suppress(OSError):
        for file in sorted((home / ".ssh").glob("*.pub")):
            with contextlib.suppress(OSError, UnicodeDecodeError):
                found += _keys(file.read_text(encoding="utf-8"))
    if environment.get("SSH_AUTH_SOCK"):
        found += _keys(ask(["ssh-add", "-L"], AGENT_LIMIT).out)
    return _lines(found)


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # nobody's home: a uid without an entry
        return Path(path)


def _keys(text: str) -> list[str]:
    """Plain keys only: a line with options before the key, or a certificate, would be a rule of its own."""
    return [line.strip() for line in text.splitlines() if KEY.match(line.strip())]


def _lines(keys: list[str]) -> bytes:
    unique = {" ".join(key.split()[:2]): key for key in reversed(keys)}
    return "".join(f"{key}\n" for key in sorted(unique.values())).encode("utf-8")

"""What Compose would build for this project on this host, with the values of .env and the shell."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Mapping, NamedTuple

from .catalogue import BadRequest
from .program import ask

LIMIT = 60.0  # seconds for Compose to read its files
UPSTREAM = "code/lab/upstream.py"
DEFAULT_GIT = "https://github.com/ultralytics/yolov5"


class Recipe(NamedTuple):
    """The image of the service `dev`: build arguments, and the files that it gets as secrets."""

    arguments: Mapping[str, str]
    certificates: Path
    netrc: Path  # empty where nobody asks for a password
    git_url: str  # of YOLOv5's source

    def argument(self, name: str) -> str:
        """A build argument, "" when it is not set."""
        return self.arguments.get(name, "")


class Cannot(Exception):
    """Something of the host or the network stands in the way. One sentence with the mend."""


def read_recipe(project: Path) -> Recipe:
    """Ask Compose. Raises Cannot when it does not answer."""
    command = ["docker", "compose", "--project-directory", str(project), "--env-file", str(project / ".env")]
    files = [project / "compose.yaml", project / ".devcontainer" / "compose.local.yaml"]
    command += [word for file in files for word in ("--file", str(file))]
    answer = ask([*command, "config", "--format", "json"], LIMIT)
    if answer.state == "missing":
        raise Cannot("there is no docker on this host's PATH: install Docker Engine with Compose 2.")
    try:
        data = json.loads(answer.out)
        dev = data["services"]["dev"]
        arguments = {name: str(value or "") for name, value in dev["build"]["args"].items()}
        certificates, netrc = (Path(data["secrets"][name]["file"]) for name in ("host-ca", "netrc"))
        url = str((dev.get("environment") or {}).get("YOLOV5_GIT_URL") or DEFAULT_GIT)
    except (ValueError, KeyError, TypeError, AttributeError):
        said = " ".join(answer.text.split())[:200] or answer.state
        raise Cannot(f"docker compose cannot read this project ({said}): mend that first.") from None
    return Recipe(arguments, certificates, netrc, url)


def pinned_commit(project: Path) -> str:
    """The commit of YOLOv5 that this project uses. Raises BadRequest when its code does not say."""
    try:
        found = re.search(r'^COMMIT = "([0-9a-f]{40})"', (project / UPSTREAM).read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    if not found:
        raise BadRequest(f"{UPSTREAM} does not name YOLOv5's commit: restore it with git checkout -- {UPSTREAM}.")
    return found[1]


def proxies() -> list[str]:
    """Names of the caller's proxy variables, which containers get as well."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
    return [name for name in names if os.environ.get(name)]


def fingerprints(project: Path, recipe: Recipe) -> dict[str, str]:
    """SHA-256 of the files that say what is in the image: another one needs another bundle."""
    names = ["apt.in", "bootstrap.lock", "torch.lock", "requirements.lock"]
    logger = recipe.argument("LOGGER")
    names += [] if logger in {"", "none"} else [f"logger-{logger}.lock"]
    names += ["onnxruntime-cu12.lock", "onnxruntime-cu13.lock"] if recipe.argument("ONNXRUNTIME") == "gpu" else []
    found = {}
    for name in names:
        file = project / "docker" / name
        if not file.is_file():
            raise BadRequest(
                f"docker/{name} is missing from the project: restore it with git checkout -- docker/{name}."
            )
        found[f"docker/{name}"] = hashlib.sha256(file.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
    return found

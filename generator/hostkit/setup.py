"""Prepare a project for this host: write what compose reads.

Written are the block at the end of `.env`, `.devcontainer/compose.local.yaml`, `.devcontainer/host-ca.pem` and
`.devcontainer/authorized_keys`, each in one step and only when it changes. The user's own lines in `.env` are kept.
Where wheelhouse/ holds a bundle and the engine lacks its base image, that is loaded.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
import time
from pathlib import Path
from typing import Mapping

from . import doctor, mirrors, services, wheelhouse
from .catalogue import BadRequest, Catalogue
from .certificates import collect_certificates
from .decision import Decision, decide
from .finding import counted
from .probe import Facts, probe
from .project import BEGIN, END, CannotWrite, Project, needs, own_values, project_settings, read_text, split_env
from .terminal import printable
from .wishes import Wishes, read_wishes

PATIENCE = 10.0  # seconds more for nvidia-smi than a doctor gives it: to go on without the GPU would be worse


def run(project: Path, accel: str | None, catalogue: Catalogue, facts: Facts | None = None) -> int:
    """Prepare `project` and print what was decided. Returns the exit status: 0, 1 cannot write, 2 a bad override."""
    try:
        settings = project_settings(project)
        own, _ = split_env(read_text(project / ".env"))
        wishes = read_wishes(os.environ, own, accel)
        mirrors.refuse_passwords(own_values(own), "in .env")
        mirrors.refuse_passwords(os.environ, "in the shell")
        sources = mirrors.chosen(project, wishes.mirrors or settings.mirrors, settings.python)
        wishes = wishes._replace(index_base=wishes.index_base or sources.get("TORCH_INDEX_BASE", ""))
        facts = facts or probe(project, needs=needs(project), patience=PATIENCE)
        decision = decide(facts, settings, wishes, catalogue)
        _sweep(project)
        owner = _owner(project, facts)
        wanted = files(project, settings, facts, decision, wishes, sources)
        about = [*_about_identity(project, facts), *doctor.claims(facts)]
        notes = [*about, *(_stale(facts, decision) or _changed(project, wanted))]
        for name, content in wanted.items():
            write_atomically(project / name, content, owner)
    except BadRequest as error:
        print(printable(f"host-setup: {error}"), file=sys.stderr)
        return 2
    except CannotWrite as error:
        print(printable(f"host-setup: {error}"), file=sys.stderr)
        return 1
    for note in [
        *[*notes, *decision.notes][:10],
        decision.summary,
        *_from_wheelhouse(project, settings, facts, decision),
    ]:
        print(printable(f"host-setup: {note}"))
    return 0


def _from_wheelhouse(project: Path, settings: Project, facts: Facts, decision: Decision) -> list[str]:
    """What a bundle means for this host: its base image goes into an engine that lacks it, and a misfit is told."""
    try:
        manifest = wheelhouse.read_manifest(project)
        if manifest is None:
            return []
        build = decision.build
        wrong = wheelhouse.misfits(manifest, settings.python, facts.machine, build.torch, build.name, "", "")
        notes = [f"wheelhouse/ does not fit, so the image needs a network: {said}." for said in wrong[:2]]
        if facts.docker.state == "ok":
            notes.append(wheelhouse.base_image(project, manifest))
        return [note for note in notes if note]
    except wheelhouse.Bad as error:
        return [str(error)]


def files(
    project: Path, settings: Project, facts: Facts, decision: Decision, wishes: Wishes, sources: Mapping[str, str]
) -> dict[str, bytes]:
    """What the files have to hold, by their path below the project. Raises CannotWrite, BadRequest."""
    overlay = project / f"compose.{decision.accel}.yaml"
    text = read_text(overlay)
    if not text:
        raise CannotWrite(f"{overlay.name} is missing from {project}: restore it with git checkout -- {overlay.name}.")
    if wishes.onnxruntime == "gpu":
        text = with_serve(text)
    local = _header(facts, decision) + with_devices(text, decision.devices)
    own, block = split_env(read_text(project / ".env"))
    own += "\n" if own and not own.endswith("\n") else ""
    said = own_values(own)
    # a name from the shell is written as well: the next `docker compose` may come from a shell that lacks it
    name = wishes.project_name or compose_project_name(settings.slug, facts, project)
    name = "" if said.get("COMPOSE_PROJECT_NAME") else name
    chosen = services.settings(project, said, own_values(block), facts.system)
    netrc = mirrors.netrc(wishes.netrc, project)
    chosen.update({"LAB_NETRC": netrc} if netrc else {}, **mirrors.unless_set(sources, said))  # Python 3.8 has no |=
    env = own + env_block(decision, identity(project, facts), name, chosen)
    return {
        services.KEYS_FILE: services.public_keys(os.environ, said, project),
        ".devcontainer/host-ca.pem": collect_certificates(wishes.certificates, project),
        ".devcontainer/compose.local.yaml": local.encode("utf-8", "surrogateescape"),
        ".env": env.encode("utf-8", "surrogateescape"),
    }


def env_block(decision: Decision, ids: tuple[int, int], name: str, chosen: Mapping[str, str]) -> str:
    """Our lines of .env: what was decided, and what was `chosen` for the services and of the mirrors.

    `name` is for compose, "" leaves it to the user's own line, which ours must not follow.
    """
    values = {
        "COMPOSE_FILE": "compose.yaml:.devcontainer/compose.local.yaml",
        "COMPOSE_PATH_SEPARATOR": ":",
        "COMPOSE_PROJECT_NAME": name,
        "DEV_UID": str(ids[0]),
        "DEV_GID": str(ids[1]),
        "LAB_TORCH_VERSION": decision.build.torch,
        "LAB_TORCHVISION_VERSION": decision.build.torchvision,
        "LAB_TORCH_BUILD": decision.build.name,
        "LAB_TORCH_INDEX": decision.index_url,
        "HOST_CA": "./.devcontainer/host-ca.pem",
        **chosen,
    }
    if not name:
        del values["COMPOSE_PROJECT_NAME"]
    return "\n".join([BEGIN, *(f"{name}={value}" for name, value in values.items()), END]) + "\n"


def compose_project_name(slug: str, facts: Facts, project: Path) -> str:
    """<slug>-<user>-<place>, of the characters that compose allows.

    The tools find a container by this name alone, so two users of one server and two folders of one user must differ:
    else the second would open the first one's container, with the first one's files mounted.
    """
    import hashlib  # noqa: PLC0415  only here, and not every host check comes here

    user = facts.user or (str(facts.uid) if facts.uid is not None else "user")
    place = hashlib.sha256(os.fsencode(project.resolve())).hexdigest()[:6]
    return f"{_safe(slug) or 'project'}-{_safe(user) or 'user'}-{place}"


def _safe(text: str) -> str:
    """`text` as a part of a compose project's name and of an image's: a-z and 0-9 with single _ or - between them."""
    plain = re.sub("[^a-z0-9_]+", "-", text.lower())
    return re.sub("_*-[-_]*|__+", "-", plain).strip("-_")[:40].rstrip("-_")


def identity(project: Path, facts: Facts) -> tuple[int, int]:
    """(uid, gid) of the container's user, so that the files it writes belong to the right person."""
    if facts.system in {"macos", "windows"} or facts.uid is None or facts.gid is None:
        return 1000, 1000  # Docker Desktop maps owners by itself
    if facts.docker.rootless:
        return 0, 0  # there, root of the container is the caller
    return (facts.uid, facts.gid) if facts.uid != 0 else _owner_of(project)


def _owner_of(project: Path) -> tuple[int, int]:
    try:
        owner = project.stat()
    except OSError as error:
        raise CannotWrite(f"{project} cannot be read: {error.strerror}.") from None
    return owner.st_uid, owner.st_gid


def _about_identity(project: Path, facts: Facts) -> list[str]:
    uid, _ = identity(project, facts)
    if uid == 0 and facts.docker.rootless:
        return ["the engine is rootless, so root of the container is you, and `dev` is an alias of it."]
    if uid == 0:
        return ["root runs this and owns the project, so `dev` is an alias of root inside the container."]
    if facts.uid == 0:
        return [f"root runs this, so the container's user is the owner of the project, uid {uid}."]
    return []


def _stale(facts: Facts, decision: Decision) -> list[str]:
    """A sentence, at each open, while the container that exists is not what was decided: the tools would start it."""
    there = facts.running
    if not there.id:
        return []
    tag = f"torch{decision.build.torch}-{decision.build.name}"
    if there.accel in {"", decision.accel} and (not there.image or there.image.endswith(f":{tag}")):
        return []
    made = there.image.rpartition(":")[2].replace("torch", "torch ", 1).replace("-", "+", 1) or "another build"
    where = {"cpu": " on the CPU", "gpu": " with the GPU", "gpu-cdi": " with the GPU by CDI"}.get(there.accel, "")
    return [f"the container that exists was made for {made}{where}: choose 'Rebuild Container' to get the one below."]


def _changed(project: Path, wanted: dict[str, bytes]) -> list[str]:
    """A sentence when an earlier open decided otherwise: the tools start a container that exists as it was made."""

    def effective(text: str, name: str) -> list[str]:
        lines = (split_env(text)[1] if name == ".env" else text).splitlines()
        return [line for line in lines if line.strip() and not line.startswith("#")]

    changed, was = False, ""
    for name in (".devcontainer/compose.local.yaml", ".env"):
        before, after = read_text(project / name), wanted[name].decode("utf-8", "surrogateescape")
        if effective(before, name) and effective(before, name) != effective(after, name):
            changed = True
            old, new = _torch(before), _torch(after)
            was = f" ({old})" if name == ".env" and old != new else was
    return [f"this differs from the last time{was}: {_AGAIN}"] if changed else []


_AGAIN = "if the container opens as it was, choose 'Rebuild Container'."


def _torch(env: str) -> str:
    """The build that a .env names."""
    block = own_values(split_env(env)[1])
    return f"torch {block.get('LAB_TORCH_VERSION', '')}+{block.get('LAB_TORCH_BUILD', '')}"


def _owner(project: Path, facts: Facts) -> tuple[int, int] | None:
    """Whom root must give the files to; None when the caller is not root."""
    if facts.uid != 0 or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    return _owner_of(project)


def _header(facts: Facts, decision: Decision) -> str:
    machine = f"{facts.distribution.name or facts.system} ({facts.machine})"
    names = ", ".join(counted([gpu.name for gpu in facts.gpus])) or "no NVIDIA GPU"
    driver = f", driver {facts.driver or 'unknown'}" if facts.gpus else ""
    engine = facts.docker
    runtime = f"{engine.kind} {engine.version}".strip() if engine.state == "ok" else f"docker: {engine.state}"
    lines = [
        "Written by .devcontainer/host-setup each time the container opens: changes here are lost.",
        "",
        f"found    {names}{driver}; {runtime}; {machine}",
        f"decided  {decision.summary}",
        *(f"because  {note}" for note in decision.notes),
        "to override, in .env: YOLO_ACCEL=auto|gpu|gpu-cdi|cpu, TORCH_BUILD=cu126|cpu, TORCH_VERSION=2.9.1|auto,",
        "CUDA_VISIBLE_DEVICES=0,1",
    ]
    # a name may hold what YAML forbids even in comments
    return "".join(f"# {printable(line)}".rstrip() + "\n" for line in lines) + "\n"


def with_serve(text: str) -> str:
    """`text`, a compose file of ours for GPUs, with one for `serve` too.

    It decodes strangers' pictures and has none by default. A file for the CPU, or somebody's own, stays as it is.
    """
    if not re.search(r"^x-gpu: &gpu$", text, re.MULTILINE) or re.search(r"^  serve:", text, re.MULTILINE):
        return text
    return re.sub(r"^(  ssh: \*gpu)$", r"\1\n  serve: *gpu", text, flags=re.MULTILINE)


def with_devices(text: str, devices: str) -> str:
    """`text`, a compose file, with CUDA_VISIBLE_DEVICES in the environment of each of its services.

    Line by line, because a host's Python has no YAML: services are the keys two blanks deep below `services:`.
    CUDA orders GPUs by speed unless told otherwise; the numbers here are nvidia-smi's, which are by PCI address.
    """
    if not devices:
        return text
    setting = [f'      CUDA_VISIBLE_DEVICES: "{devices}"', "      CUDA_DEVICE_ORDER: PCI_BUS_ID"]
    lines: list[str] = []
    inside = False
    source = text.splitlines()
    for number, line in enumerate(source):
        if re.match(r"\S", line) and not line.startswith("#"):
            inside = line.startswith("services:")
        service = re.match(r"  ([\w.-]+):\s*(\S.*)?$", line) if inside else None
        if inside and re.match(r"    environment:\s*(#.*)?$", line):
            lines += [line, *setting]
            continue
        if not service:
            lines.append(line)
            continue
        value = re.sub(r"(^|\s)#.*", "", service[2] or "").strip()
        body = _block(source, number)
        if value.startswith("*"):  # an alias stands for the whole service: merge it instead
            lines += [f"  {service[1]}:", f"    <<: {value}"]
        elif value:
            raise BadRequest(f"service {service[1]} is written on one line, so its GPUs cannot be chosen: unfold it.")
        else:
            lines.append(line)
        if not any(re.match(r"    environment:", below) for below in body):
            lines += ["    environment:", *setting]
    return "\n".join(lines) + "\n"


def _block(lines: list[str], start: int) -> list[str]:
    """The lines of the service that begins at `start`."""
    body = []
    for line in lines[start + 1 :]:
        if re.match(r" {0,3}[^\s#]", line):
            break
        body.append(line)
    return body


OLD = 600.0  # seconds after which nobody is still writing


def _sweep(project: Path) -> None:
    """Remove what an open that was killed in the middle had begun: it may hold secrets of .env."""
    ours = ["compose.local.yaml", "host-ca.pem", "authorized_keys"]
    for folder, names in ((project, [".env"]), (project / ".devcontainer", ours)):
        for name in names:
            for left in folder.glob(f".{name}." + "[0-9a-f]" * 12):
                with contextlib.suppress(OSError):
                    if time.time() - left.lstat().st_mtime > OLD:
                        left.unlink()


def write_atomically(path: Path, content: bytes, owner: tuple[int, int] | None = None) -> bool:
    """Replace a file in one step, keeping its mode; False when it held these bytes already. Raises CannotWrite.

    `owner` is for root, who gives the file away. What a link points to may be anybody's, so it keeps its owner.
    """
    # a .env may be a link and stays one; what is ours alone never leads elsewhere
    target = Path(os.path.realpath(path)) if path.name == ".env" else path
    temporary = target.with_name(f".{target.name}.{os.urandom(6).hex()}")
    try:
        old = None if not target.exists() or (target.is_symlink() and target == path) else target.stat()
        if old and not stat.S_ISREG(old.st_mode):
            raise CannotWrite(f"{path} is not a regular file: move it away.")
        if old and target.read_bytes() == content:
            return False
        # secrets of .env are nobody else's while they are written
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(content)
        if owner is not None and path.is_symlink():
            owner = (old.st_uid, old.st_gid) if old else None
        if owner is not None:
            os.chown(temporary, *owner)
        temporary.chmod(_mode(path, old.st_mode & 0o7777 if old else None))
        temporary.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise CannotWrite(f"{path} cannot be written ({error.strerror}): {_mend(error)}.") from None
    return True


def _mode(path: Path, old: int | None) -> int:
    """.env holds Jupyter's token: nobody else of the machine reads it, nor a group that many share."""
    if path.name == ".env":
        return 0o600 if old is None else old & ~0o077
    return 0o666 & ~_umask() if old is None else old


def _umask() -> int:
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    return mask


def _mend(error: OSError) -> str:
    name = errno.errorcode.get(error.errno or 0, "")
    if name in {"ENOSPC", "EDQUOT", "EFBIG"}:
        return "make room on its disk"
    if name in {"EACCES", "EPERM", "EROFS"}:
        return "make the project writable for you"
    return "mend that and open the container again"

"""Prepare a project for this host: decide how containers get their GPU, then write what compose reads.

Written are the block at the end of `.env`, `.devcontainer/compose.local.yaml` and `.devcontainer/host-ca.pem`, each in
one step and only when it changes. The user's own lines in `.env` are kept as they are.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import Mapping, NamedTuple

from . import doctor
from .catalogue import BadRequest, Build, Catalogue
from .probe import CERTIFICATE_SUFFIXES, Facts, certificate_files, probe
from .resolve import Gpu, Host, Resolution, check_python, check_release, resolve
from .terminal import printable, shortened

ACCELS = ("auto", "gpu", "gpu-cdi", "cpu")

BEGIN = "# >>> written by .devcontainer/host-setup each time the container opens; put your own lines above"
END = "# <<<"

OVERRIDES = (
    "YOLO_ACCEL", "TORCH_BUILD", "TORCH_VERSION", "CUDA_VISIBLE_DEVICES", "EXTRA_CA_CERTS", "TORCH_INDEX_BASE",
    "COMPOSE_PROJECT_NAME",
)  # fmt: skip


class CannotWrite(Exception):
    """A file of the project cannot be read or written. One sentence."""


class Project(NamedTuple):
    """.devcontainer/project.json: what was answered when the project was made."""

    slug: str = ""
    torch: str = "auto"
    python: str = ""


class Wishes(NamedTuple):
    """What the user set, in the shell or in their own lines of .env; "" where nothing was."""

    accel: str = "auto"
    build: str = ""
    torch: str = ""
    devices: str = ""
    certificates: str = ""
    index_base: str = ""
    project_name: str = ""  # for compose


class Decision(NamedTuple):
    """How the containers of a project run on this host."""

    accel: str  # gpu, gpu-cdi, cpu
    build: Build
    index_url: str  # "" is the default package index
    devices: str  # for CUDA_VISIBLE_DEVICES, "" shows every GPU
    notes: tuple[str, ...]  # why, one sentence each
    summary: str  # the decision itself


def run(project: Path, accel: str | None, catalogue: Catalogue, facts: Facts | None = None) -> int:
    """Prepare `project` and print what was decided. Returns the exit status: 0, 1 cannot write, 2 a bad override."""
    try:
        settings = project_settings(project)
        own, _ = split_env(read_text(project / ".env"))
        wishes = read_wishes(os.environ, own, accel)
        facts = facts or probe(project)
        decision = decide(facts, settings, wishes, catalogue)
        owner = _owner(project, facts)
        wanted = files(project, settings, facts, decision, wishes)
        notes = [*_about_identity(project, facts), *_changed(project, wanted)]
        for name, content in wanted.items():
            write_atomically(project / name, content, owner)
    except BadRequest as error:
        print(printable(f"host-setup: {error}"), file=sys.stderr)
        return 2
    except CannotWrite as error:
        print(printable(f"host-setup: {error}"), file=sys.stderr)
        return 1
    for note in [*[*notes, *decision.notes][:10], decision.summary]:
        print(printable(f"host-setup: {note}"))
    return 0


# Reading


def project_settings(project: Path) -> Project:
    """What project.json says; the defaults of `Project` when there is none. Raises BadRequest when it is damaged."""
    path = project / ".devcontainer" / "project.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Project(str(data["slug"]), str(data.get("torch") or "auto"), str(data.get("python") or ""))
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
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise CannotWrite(f"{path} cannot be read: {error.strerror}.") from None


# LAB_…: not the names of the overrides, which compose would take from the shell instead of the decision
KEYS = (
    "COMPOSE_FILE", "COMPOSE_PATH_SEPARATOR", "COMPOSE_PROJECT_NAME", "DEV_UID", "DEV_GID", "LAB_TORCH_VERSION",
    "LAB_TORCHVISION_VERSION", "LAB_TORCH_BUILD", "LAB_TORCH_INDEX", "HOST_CA",
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
    for line in text.splitlines():
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


def read_wishes(environment: Mapping[str, str], own: str, accel: str | None = None) -> Wishes:
    """The overrides, the shell's before those in .env, `accel` (the command line's) before both. Raises BadRequest."""
    lines = own_values(own)
    value = {name: (environment.get(name) or lines.get(name) or "").strip() for name in OVERRIDES}
    wished = accel or value["YOLO_ACCEL"] or "auto"
    if wished not in ACCELS:
        raise BadRequest(f"YOLO_ACCEL={shortened(wished)} is not one of {', '.join(ACCELS)}: correct it or remove it.")
    if value["TORCH_BUILD"] and not re.fullmatch(r"cpu|cu[0-9]{3}", value["TORCH_BUILD"]):
        raise BadRequest(
            f"TORCH_BUILD={shortened(value['TORCH_BUILD'])} is not of the form cu126 or cpu: correct it or remove it."
        )
    devices = value["CUDA_VISIBLE_DEVICES"]
    if devices and not re.fullmatch(
        r"-1|[0-9]+(,[0-9]+)*|(GPU|MIG)-[A-Za-z0-9_/-]+(,(GPU|MIG)-[A-Za-z0-9_/-]+)*", devices
    ):
        raise BadRequest(
            f"CUDA_VISIBLE_DEVICES={shortened(devices)} is neither numbers such as 0,1 nor GPU UUIDs: correct it."
        )
    base = value["TORCH_INDEX_BASE"].rstrip("/")
    if base and not re.fullmatch(r"(https?|file)://[^\s$'\"`#\\]+", base):
        raise BadRequest(
            f"TORCH_INDEX_BASE={shortened(base)} is not a URL such as https://mirror.example/whl: correct it."
        )
    name = value["COMPOSE_PROJECT_NAME"]
    if name and not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise BadRequest(
            f"COMPOSE_PROJECT_NAME={shortened(name)} may hold only a-z, 0-9, _ and -, after a letter or digit."
        )
    return Wishes(wished, value["TORCH_BUILD"], value["TORCH_VERSION"], devices, value["EXTRA_CA_CERTS"], base, name)


# Deciding


def decide(facts: Facts, project: Project, wishes: Wishes, catalogue: Catalogue) -> Decision:
    """How this project runs on this host. Pure. Raises BadRequest for a wish that nothing fits."""
    torch = wishes.torch or project.torch or "auto"
    try:
        check_release(torch, catalogue)
    except BadRequest as error:
        raise BadRequest(f"TORCH_VERSION: {error}" if wishes.torch else f"project.json: {error}") from None
    try:
        check_python(project.python)
    except BadRequest as error:
        raise BadRequest(f"project.json: {error}") from None
    on_cpu = wishes.accel == "cpu" or (wishes.accel == "auto" and wishes.build == "cpu")
    gpus = () if on_cpu else _visible(facts.gpus, wishes.devices)  # the CPU works whatever the GPUs are
    host = facts.host(torch, project.python)._replace(gpus=gpus)
    answer, fault = _asked(host, catalogue)
    if fault:  # there is a GPU, but nothing can be asked about it
        host = host._replace(gpus=())
    accel, notes = _accel(facts, wishes, answer, gpus, fault)
    if wishes.build and wishes.build != "cpu":
        build = _wished_build(wishes.build, host, catalogue)
        if host.gpus and not _runs(build, host, catalogue):
            notes.append(f"TORCH_BUILD={wishes.build} was asked for, but {build.torch}+{build.name} does not run here.")
    elif wishes.build == "cpu" or accel == "cpu":
        build = _cpu_build(host, catalogue)
    elif answer and answer.build:
        build = _named(catalogue, host.machine, str(answer.torch), answer.build)
        notes += _remarks(answer)
    else:  # a GPU was asked for that the resolver cannot vouch for: what a plain install would take
        build = _plain_build(host, catalogue)
        notes.append(f"nothing vouches for torch {build.torch}+{build.name} on this host's GPU, but it was asked for.")
    devices = "" if accel == "cpu" else wishes.devices
    if accel != "cpu" and answer and answer.status == "partial" and not wishes.build:
        devices = ",".join(map(str, answer.devices))
    index = catalogue.index(build) or ""
    if wishes.index_base:
        index = index.replace(catalogue.index_base, wishes.index_base, 1)
    decision = Decision(accel, build, index, devices, tuple(notes), "")
    return decision._replace(summary=_summary(facts, gpus, decision))


def _visible(gpus: tuple[Gpu, ...], devices: str) -> tuple[Gpu, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves; parts of a GPU (MIG) cannot be told apart here and leave all."""
    if not devices or not gpus or devices.startswith("MIG-"):
        return gpus
    if devices == "-1":
        return ()
    chosen = []
    for device in devices.split(","):
        fitting = [
            g for g in gpus if str(g.number) == device or (device.startswith("GPU-") and g.uuid.startswith(device))
        ]
        if not fitting:
            there = ", ".join(str(gpu.number) for gpu in gpus)
            named = f"CUDA_VISIBLE_DEVICES={shortened(devices)}"
            raise BadRequest(f"{named} names a GPU that is not here (there is {there}): correct it.")
        chosen += fitting
    return tuple(dict.fromkeys(chosen))


def _asked(host: Host, catalogue: Catalogue) -> tuple[Resolution | None, str]:
    """(the resolver's answer, None without a GPU; why it could not be asked). The release and Python are checked."""
    if not host.gpus:
        return None, ""
    try:
        return resolve(_machine(host, catalogue), catalogue), ""
    except BadRequest as error:
        return None, str(error)


def _accel(
    facts: Facts, wishes: Wishes, answer: Resolution | None, gpus: tuple[Gpu, ...], fault: str
) -> tuple[str, list[str]]:
    """gpu, gpu-cdi or cpu, and the sentences that say why."""
    if wishes.accel != "auto":
        return wishes.accel, [f"accelerator {wishes.accel}, as asked for."]
    if wishes.build == "cpu":
        return "cpu", ["the CPU, because TORCH_BUILD=cpu was asked for."]
    if facts.gpus and not gpus:
        return "cpu", [f"the CPU, because CUDA_VISIBLE_DEVICES={wishes.devices} hides every GPU."]
    if answer is None:
        return "cpu", [_no_gpu(facts, fault)]
    if answer.status == "impossible" and not wishes.build:
        return "cpu", [
            f"the CPU, because {answer.reasons[0]}",
            *(f"to use the GPU: {text}" for text in answer.advice[:1]),
        ]
    engine = facts.docker
    if "nvidia" in engine.runtimes:
        return "gpu", []
    if doctor.has_cdi(facts):
        return "gpu-cdi", ["the engine hands out the GPU by CDI."]
    if engine.kind == "podman":  # it has no runtimes to fall back on
        return "cpu", _no_toolkit(facts)
    if engine.kind == "desktop" or facts.hook:
        return "gpu", []
    if facts.toolkit:  # it may be set up for an engine that could not be asked; if not, the container will not start
        finding = doctor.engine_finding(facts)
        return "gpu", [f"{finding.cause}; if the container does not start: {finding.command}"]
    return "cpu", _no_toolkit(facts)


def _no_gpu(facts: Facts, fault: str) -> str:
    """Why no GPU can be asked about: a broken driver is named, a machine without one is left in peace."""
    findings = doctor.driver_findings(facts)
    if findings:
        command = f": {findings[0].command}" if findings[0].command else "."
        return f"the CPU, because {findings[0].cause}{command}"
    if fault:
        return f"the CPU, because no torch build can be chosen for the GPU: {fault}"
    if facts.smi.state not in {"missing", "no-devices"}:
        return "the CPU, because nvidia-smi lists no GPU: see what it says."
    return "no NVIDIA GPU here: the CPU trains."


def _no_toolkit(facts: Facts) -> list[str]:
    finding = doctor.engine_finding(facts)
    said = [f"the CPU, because {finding.cause}: {finding.consequence}."]
    return said + ([f"to use the GPU: {finding.command}"] if finding.command else [])


def _remarks(answer: Resolution) -> list[str]:
    return [*answer.warnings, *(str(one["reason"]) for one in answer.excluded)]


def _named(catalogue: Catalogue, machine: str, torch: str, name: str) -> Build:
    return next(build for build in catalogue.builds[machine] if (build.torch, build.name) == (torch, name))


def _machine(host: Host, catalogue: Catalogue) -> Host:
    if host.machine not in catalogue.builds:
        raise BadRequest(f"there are no torch wheels for Linux containers on {host.machine}: use x86_64 or aarch64.")
    return host


def _cpu_build(host: Host, catalogue: Catalogue) -> Build:
    torch = host.torch if host.torch != "auto" else catalogue.newest(_machine(host, catalogue).machine, host.python)
    if torch is None:
        raise BadRequest(
            f"no torch release has wheels for Python {host.python}: choose another Python for the project."
        )
    return catalogue.cpu_build(torch, _machine(host, catalogue).machine)


def _wished_build(name: str, host: Host, catalogue: Catalogue) -> Build:
    """The build of that name: the newest release that has it and runs here, else simply the newest."""
    machine = _machine(host, catalogue).machine
    fits = catalogue.of_release(machine, host.torch) & catalogue.for_python(machine, host.python)
    builds = [build for build in catalogue.members(machine, fits) if build.name == name]
    if not builds:
        known = sorted({build.name for build in catalogue.members(machine, fits)})
        there = f"it has {', '.join(known)} and cpu" if known else "it has cpu"
        what = f"torch {host.torch}" if host.torch != "auto" else "torch"
        raise BadRequest(f"TORCH_BUILD={name} is not published for {what} on {machine}: {there}.")
    if host.gpus:
        return next((build for build in builds if _runs(build, host, catalogue)), builds[0])
    return builds[0]


def _runs(build: Build, host: Host, catalogue: Catalogue) -> bool:
    return catalogue.runs(build, host.machine, host.os, host.driver, [(g.capability, g.name) for g in host.gpus])


def _plain_build(host: Host, catalogue: Catalogue) -> Build:
    machine = _machine(host, catalogue).machine
    fits = catalogue.of_release(machine, host.torch) & catalogue.for_python(machine, host.python)
    return catalogue.best(machine, fits) if fits else _cpu_build(host, catalogue)


def _summary(facts: Facts, gpus: tuple[Gpu, ...], decision: Decision) -> str:
    where = decision.index_url or "default package index"
    what = f"torch {decision.build.torch}+{decision.build.name}"
    if decision.accel == "cpu":
        return f"{what} on the CPU ({where})"
    if not gpus:
        return f"{what} on the GPU ({where})"
    names = ", ".join(doctor.counted([gpu.name for gpu in gpus]))
    only = f", CUDA_VISIBLE_DEVICES={decision.devices}" if decision.devices else ""
    return f"{names}, driver {facts.driver or 'unknown'} -> {what} on the GPU{only} ({where})"


# Certificates


_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)
CERTIFICATES = 4 << 20  # bytes of a file that is read: the bundle of every public CA has a quarter of a MiB


def collect_certificates(extra: str, project: Path) -> bytes:
    """The CA certificates that this site adds, as PEM, each once; b"" when there are none.

    `extra` is a file or a directory that the user names, relative to the project. Raises BadRequest when it is neither,
    and when nothing in it is a certificate: to go on without would only fail later, in the middle of a download.
    """
    found: dict[bytes, None] = {}
    for file in certificate_files():
        with contextlib.suppress(OSError):
            found.update(dict.fromkeys(certificates(_beginning(file))))
    if extra:
        found.update(dict.fromkeys(_named_certificates(extra, project)))
    return b"".join(_pem(der) for der in found)


def _named_certificates(extra: str, project: Path) -> list[bytes]:
    named = f"EXTRA_CA_CERTS={shortened(extra)}"
    found: list[bytes] = []
    try:
        files = _named_files(project / Path(extra).expanduser())
        if len(files) == 1 and files[0].stat().st_size > CERTIFICATES:
            raise BadRequest(f"{named} is larger than {CERTIFICATES >> 20} MiB: name a file of CA certificates.")
        for file in files:
            try:
                found += certificates(_beginning(file))
            except OSError:  # beside others it may be somebody's private key
                if len(files) == 1:
                    raise
    except BadRequest:
        raise
    except OSError as error:
        raise BadRequest(f"{named} cannot be read ({error.strerror}): correct it or remove it.") from None
    except (RuntimeError, ValueError):  # ~somebody who is not there; a byte that no path can hold
        raise BadRequest(f"{named} is no path on this host: correct it or remove it.") from None
    if not found:
        raise BadRequest(f"{named} holds no certificate: name a PEM or DER file of a CA, or a directory of such files.")
    return found


def _named_files(place: Path) -> list[Path]:
    """The file, or what in the directory is called like a certificate; nothing else (a pipe, a device) is opened."""
    if stat.S_ISDIR(place.stat().st_mode):
        files = [path for path in sorted(place.rglob("*")) if path.suffix.lower() in CERTIFICATE_SUFFIXES]
        return [path for path in files if path.is_file()]
    return [place] if place.is_file() else []


def _beginning(file: Path) -> bytes:
    """A file's content, b"" when it is too large to be certificates."""
    with file.open("rb") as opened:
        content = opened.read(CERTIFICATES + 1)
    return content if len(content) <= CERTIFICATES else b""


def certificates(content: bytes) -> list[bytes]:
    """The certificates in a PEM file, or the one that a DER file is, as DER."""
    if _is_der_certificate(content):
        return [content]
    found = []
    for body in _PEM.findall(content):
        with contextlib.suppress(binascii.Error, ValueError):
            der = base64.b64decode(b"".join(body.split()), validate=True)
            if _sequence(der):
                found.append(der)
    return found


def _is_der_certificate(content: bytes) -> bool:
    """Whether bytes are SEQUENCE { SEQUENCE, SEQUENCE, BIT STRING } (RFC 5280, 4.1), which no private key is."""
    return [tag for tag, _ in _parts(_sequence(content))] == [0x30, 0x30, 0x03]


def _sequence(content: bytes) -> bytes:
    """What an ASN.1 SEQUENCE holds; b"" when the bytes are none, or more or fewer than its length says."""
    parts = _parts(content) if content[:1] == b"\x30" else []
    return parts[0][1] if len(parts) == 1 else b""


def _parts(content: bytes) -> list[tuple[int, bytes]]:
    """The ASN.1 elements (tag, content) that follow each other in DER; none when the lengths do not fit the bytes."""
    parts = []
    place = 0
    while place < len(content):
        head = content[place : place + 2]
        if len(head) < 2 or head[1] in {0x80, 0xFF}:
            return []
        start, size = place + 2, head[1]
        if size & 0x80:  # the long form: so many bytes of length follow
            start += size & 0x7F
            size = int.from_bytes(content[place + 2 : start], "big")
        place = start + size
        if place > len(content) or start > len(content):
            return []
        parts.append((head[0], content[start:place]))
    return parts


def _pem(der: bytes) -> bytes:
    text = base64.b64encode(der)
    lines = b"\n".join(text[start : start + 64] for start in range(0, len(text), 64))
    return b"-----BEGIN CERTIFICATE-----\n" + lines + b"\n-----END CERTIFICATE-----\n"


# Writing


def files(project: Path, settings: Project, facts: Facts, decision: Decision, wishes: Wishes) -> dict[str, bytes]:
    """What the files have to hold, by their path below the project. Raises CannotWrite, BadRequest."""
    overlay = project / f"compose.{decision.accel}.yaml"
    text = read_text(overlay)
    if not text:
        raise CannotWrite(f"{overlay.name} is missing from {project}: restore it with git checkout -- {overlay.name}.")
    local = _header(facts, decision) + with_devices(text, decision.devices)
    own, _ = split_env(read_text(project / ".env"))
    own += "\n" if own and not own.endswith("\n") else ""
    # a name from the shell is written as well: the next `docker compose` may come from a shell that lacks it
    name = wishes.project_name or compose_project_name(settings.slug, facts, project)
    name = "" if own_values(own).get("COMPOSE_PROJECT_NAME") else name
    env = own + env_block(decision, identity(project, facts), name)
    return {
        ".devcontainer/host-ca.pem": collect_certificates(wishes.certificates, project),
        ".devcontainer/compose.local.yaml": local.encode("utf-8", "surrogateescape"),
        ".env": env.encode("utf-8", "surrogateescape"),
    }


def env_block(decision: Decision, ids: tuple[int, int], name: str) -> str:
    """Our lines of .env. `name` is for compose, "" leaves it to the user's own line, which ours must not follow."""
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
    return _safe(f"{_safe(slug) or 'project'}-{_safe(user) or 'user'}-{place}")


def _safe(text: str) -> str:
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")


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


def _changed(project: Path, wanted: dict[str, bytes]) -> list[str]:
    """A sentence when an earlier open decided otherwise: the tools start a container that exists as it was made."""

    def effective(text: str, name: str) -> list[str]:
        lines = (split_env(text)[1] if name == ".env" else text).splitlines()
        return [line for line in lines if line.strip() and not line.startswith("#")]

    for name in (".devcontainer/compose.local.yaml", ".env"):
        before = effective(read_text(project / name), name)
        if before and before != effective(wanted[name].decode("utf-8", "surrogateescape"), name):
            return ["this differs from the last time: if the container opens as it was, choose 'Rebuild Container'."]
    return []


def _owner(project: Path, facts: Facts) -> tuple[int, int] | None:
    """Whom root must give the files to; None when the caller is not root."""
    if facts.uid != 0 or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    return _owner_of(project)


def _header(facts: Facts, decision: Decision) -> str:
    machine = f"{facts.distribution.name or facts.system} ({facts.machine})"
    names = ", ".join(doctor.counted([gpu.name for gpu in facts.gpus])) or "no NVIDIA GPU"
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


def write_atomically(path: Path, content: bytes, owner: tuple[int, int] | None = None) -> bool:
    """Replace a file in one step, keeping its mode; False when it held these bytes already. Raises CannotWrite.

    `owner` is for root, who gives the file away. What a link points to may be anybody's, so it keeps its owner.
    """
    target = Path(os.path.realpath(path))  # a link stays a link
    temporary = target.with_name(f".{target.name}.{os.urandom(6).hex()}")
    try:
        old = target.stat() if target.exists() else None
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
        temporary.chmod(old.st_mode & 0o7777 if old else 0o666 & ~_umask())
        temporary.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise CannotWrite(f"{path} cannot be written ({error.strerror}): {_mend(error)}.") from None
    return True


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

"""Fill wheelhouse/ with everything that this project needs where there is no network: `make bundle`.

Packages are downloaded in the base image, so that they fit its Python and its Debian, by the same scripts, mirrors,
proxies and certificates as in the image build. What is there and whole is not fetched again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Mapping

from . import mirrors, setup
from .catalogue import BadRequest, Catalogue
from .probe import Facts, probe
from .program import ask, follow
from .project import CannotWrite, needs, project_settings, read_text, split_env
from .recipe import Cannot, Recipe, fingerprints, pinned_commit, proxies, read_recipe
from .terminal import printable, shortened
from .wheelhouse import (
    FOLDER,
    MANIFEST,
    Bad,
    Held,
    Manifest,
    damage,
    digest,
    gigabytes,
    image_archive,
    manifest_text,
    read_manifest,
)  # fmt: skip
from .wishes import read_wishes

WHEELS = ".wheels.json"  # what docker/download-wheels leaves
DEBIAN_PACKAGES = 120_000_000  # bytes; they were 77 MB for bookworm
GIT_LIMIT = 300.0  # seconds
NOT_OURS = "put there by hand"


def run(project: Path, builds: str, weights: str, catalogue: Catalogue) -> int:
    """Make or complete the bundle. Returns the exit status: 0, 1 it failed, 2 a bad request."""
    began = time.monotonic()
    try:
        facts = probe(project, needs=needs(project), patience=setup.PATIENCE)
        status = setup.run(project, None, catalogue, facts)  # .env and the certificates, as at each open
        if status:
            return status
        checkpoints = named_checkpoints(project, weights)
        recipe = read_recipe(project)
        sources = chosen_builds(project, builds, recipe, facts, catalogue)
        manifest = fill(project, recipe, sources, checkpoints, facts)
    except BadRequest as error:
        print(printable(f"bundle: {error}"), file=sys.stderr)
        return 2
    except (Cannot, CannotWrite, Bad) as error:
        print(printable(f"bundle: {error}"), file=sys.stderr)
        return 1
    except OSError as error:
        print(printable(f"bundle: {error.filename} cannot be written ({error.strerror}): mend that."), file=sys.stderr)
        return 1
    for line in totals(manifest):
        print(printable(f"bundle: {line}"))
    print(f"bundle: done in {time.monotonic() - began:.0f} s. `make verify-bundle` proves it; then bring the project")
    print("bundle: with its wheelhouse/ to the host without a network, and open it there as anywhere else.")
    return 0


def named_checkpoints(project: Path, weights: str) -> list[Path]:
    """The files that the user wants along. Raises BadRequest for one that is not here, and for two of one name."""
    found: dict[str, Path] = {}
    for name in (part.strip() for part in weights.split(",")):
        if not name:
            continue
        file = project / Path(name).expanduser()
        if not file.is_file():
            raise BadRequest(
                f"the weights {shortened(name)} are not a file of this host: name one, such as yolov5s.pt."
            )
        if file.name in found:
            raise BadRequest(f"two files of the weights are called {file.name}: rename one.")
        found[file.name] = file
    return list(found.values())


def chosen_builds(project: Path, builds: str, recipe: Recipe, facts: Facts, catalogue: Catalogue) -> dict[str, str]:
    """Builds of torch, each with its index ("" is the default one). Raises BadRequest for one that is not published."""
    settings = project_settings(project)
    wishes = read_wishes(os.environ, split_env(read_text(project / ".env"))[0])
    named = mirrors.chosen(project, wishes.mirrors or settings.mirrors, settings.python)
    base = wishes.index_base or named.get("TORCH_INDEX_BASE", "")
    torch = recipe.argument("TORCH_VERSION")
    known = {build.name: build for build in catalogue.builds.get(facts.machine, []) if build.torch == torch}
    wanted = [name.strip() for name in builds.split(",") if name.strip()] or [recipe.argument("TORCH_BUILD")]
    chosen = {}
    for name in wanted:
        if name not in known:
            there = ", ".join(known) or "none"
            raise BadRequest(f"torch {torch} has no build {shortened(name)} for {facts.machine}: there is {there}.")
        index = catalogue.index(known[name]) or ""
        chosen[name] = index.replace(catalogue.index_base, base, 1) if base else index
    return chosen


def fill(project: Path, recipe: Recipe, sources: Mapping[str, str], checkpoints: list[Path], facts: Facts) -> Manifest:
    """Fetch what is missing and write the manifest. Raises Cannot, CannotWrite, BadRequest, Bad."""
    wheelhouse = project / FOLDER
    wheelhouse.mkdir(exist_ok=True)
    logger, image = recipe.argument("LOGGER") or "none", recipe.argument("PYTHON_IMAGE")
    recipes = fingerprints(project, recipe)
    commit = pinned_commit(project)
    if "@" in image:
        raise BadRequest(
            f"PYTHON_IMAGE={shortened(image)} is named by its digest, which no archive of an image keeps: use a tag."
        )
    before = forget_damaged(project)
    with contextlib.suppress(OSError):
        (wheelhouse / MANIFEST.split("/")[1]).unlink()  # until all is here there is no bundle
    size = pulled(image)
    held: dict[str, Held] = {}
    fetch_wheels(project, recipe, sources, size + DEBIAN_PACKAGES, facts)
    held.update(wheels(wheelhouse))
    fetch_debian(project, recipe)
    save_image(wheelhouse, image)
    fetch_source(wheelhouse, recipe.git_url, commit)
    for file in checkpoints:
        copied(file, wheelhouse / "weights" / file.name)
    drop_old(wheelhouse, before, held, {image_archive(image), f"yolov5-{commit[:8]}.tar.gz"})
    held.update(others(wheelhouse, set(held)))
    manifest = Manifest(
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        project_settings(project).python,
        facts.machine,
        recipe.argument("TORCH_VERSION"),
        tuple(sources),
        logger,
        image,
        recipes,
        held,
    )
    setup.write_atomically(project / MANIFEST, manifest_text(manifest).encode("utf-8"), owner_of(project, facts))
    return manifest


def forget_damaged(project: Path) -> set[str]:
    """Delete what an earlier bundle names and what no longer has its content; the names of the rest.

    Wheels are left: download-wheels compares them with the index's hashes anyway.
    """
    try:
        manifest = read_manifest(project)
    except Bad:
        return set()
    if manifest is None:
        return set()
    few = manifest._replace(files={name: one for name, one in manifest.files.items() if not name.endswith(".whl")})
    for said in damage(project, few):
        name = next(name for name in few.files if said.startswith(name))
        with contextlib.suppress(OSError):
            (project / FOLDER / name).unlink()
    return {name for name, one in manifest.files.items() if one.used_for != NOT_OURS}


def pulled(image: str) -> int:
    """Bytes of the base image, which is pulled when the engine does not have it. Raises Cannot."""
    command = ["docker", "image", "inspect", "--format", "{{.Size}}", image]
    answer = ask(command, 20)
    if answer.state != "ok":
        status, said = follow(["docker", "pull", image])
        answer = ask(command, 20)
        if status or answer.state != "ok":
            last = (said.strip().splitlines() or ["no reason given"])[-1]
            raise Cannot(
                f"the base image {image} cannot be pulled ({last[:200]}): name another source with PYTHON_IMAGE or "
                "MIRRORS in .env; behind a proxy that opens TLS the engine itself must trust its certificate."
            )
    return int(answer.out.strip() or 0)


def in_base_image(project: Path, recipe: Recipe, user: str, variables: Mapping[str, str], *words: str) -> None:
    """Run one of docker/'s scripts in the base image, with wheelhouse/ and what the image build is given.

    Raises Cannot when it fails; what it says has been shown.
    """
    given = {name: recipe.argument(name) for name in ("APT_MIRROR", "UV_DEFAULT_INDEX", "LOGGER", "ONNXRUNTIME")}
    given.update({name: recipe.argument(name) for name in ("TORCH_VERSION", "TORCHVISION_VERSION")})
    environment = {"HOME": "/tmp", **given, **variables}
    command = ["docker", "run", "--rm", "--init", "--user", user, "--entrypoint", "", "--security-opt", "label=disable"]
    command += ["--tmpfs", "/run/build", "--volume", f"{project.resolve() / 'docker'}:/docker:ro"]
    command += ["--volume", f"{(project / FOLDER).resolve()}:/wheelhouse"]
    for name, file in (("host-ca", recipe.certificates), ("netrc", recipe.netrc)):
        command += ["--volume", f"{file.resolve()}:/run/secrets/{name}:ro"]
    command += [word for name in proxies() for word in ("--env", name)]
    command += [word for name in environment for word in ("--env", name)]
    status, said = follow([*command, recipe.argument("PYTHON_IMAGE"), "/docker/with-host-ca", *words], more=environment)
    if status == 130:
        raise KeyboardInterrupt
    if status:
        lines = [line for line in said.strip().splitlines() if line.strip()]
        stop = next((line for line in lines if line.startswith("STOP: ")), "")
        reason = stop[len("STOP: ") :] or (lines[-1] if lines else f"exit status {status}")
        raise Cannot(f"{reason.rstrip('.')}." if stop else f"{reason[:300]} (the bundle goes on where it stopped).")


def fetch_wheels(project: Path, recipe: Recipe, sources: Mapping[str, str], reserve: int, facts: Facts) -> None:
    """Every Python package of the image, for each build of torch; first whether the disk has room for the whole."""
    ids = "{}:{}".format(*setup.identity(project, facts))
    builds = " ".join(f"{build}={index}" for build, index in sources.items())
    in_base_image(project, recipe, ids, {"RESERVE": str(reserve), "BUILDS": builds}, "/docker/download-wheels")


def wheels(wheelhouse: Path) -> dict[str, Held]:
    """What download-wheels says is in the bundle; its note is taken away."""
    note = wheelhouse / WHEELS
    listed = json.loads(note.read_text(encoding="utf-8"))
    note.unlink()
    return {name: Held(one["sha256"], one["bytes"], ", ".join(one["for"])) for name, one in listed.items()}


def fetch_debian(project: Path, recipe: Recipe) -> None:
    """What docker/apt.in needs beside the base image."""
    print("bundle: Debian packages", flush=True)
    (project / FOLDER / "apt").mkdir(exist_ok=True)
    words = ("/docker/install-apt", "--download", "/wheelhouse/apt", "/docker/apt.in")
    in_base_image(project, recipe, "0:0", {}, *words)  # apt works for root alone; the script gives the files away


def save_image(wheelhouse: Path, image: str) -> None:
    """The base image as `docker save` writes it; not again while it is the same one. Raises Cannot."""
    archive = wheelhouse / image_archive(image)
    archive.parent.mkdir(exist_ok=True)
    number = ask(["docker", "image", "inspect", "--format", "{{.Id}}", image], 20).out.strip()
    note = archive.with_suffix(".id")
    if archive.is_file() and note.is_file() and note.read_text(encoding="utf-8").strip() == number:
        return
    print(f"bundle: the base image {image}", flush=True)
    fresh = archive.with_suffix(".part")
    answer = ask(["docker", "save", "--output", str(fresh), image], 900)
    if answer.state != "ok":
        raise Cannot(f"docker save {image} failed ({' '.join(answer.text.split())[:200] or answer.state}): mend that.")
    fresh.chmod(0o644)  # others may carry it
    fresh.replace(archive)
    note.write_text(number + "\n", encoding="utf-8")


def fetch_source(wheelhouse: Path, url: str, commit: str) -> None:
    """YOLOv5's source as an archive, by the host's git, which checks content by the commit's name. Raises Cannot."""
    archive = wheelhouse / f"yolov5-{commit[:8]}.tar.gz"
    if archive.is_file():
        return
    print(f"bundle: YOLOv5's source from {url}", flush=True)
    mend = "set YOLOV5_GIT_URL in .env to a mirror that this host reaches, or put its archive there yourself"
    with tempfile.TemporaryDirectory(prefix="bundle-") as scratch:
        git = ["git", "-C", scratch]  # without a terminal it cannot ask for a password
        ask([*git, "init", "--quiet", "--bare", "."], GIT_LIMIT)
        answer = ask([*git, "fetch", "--quiet", "--depth", "1", "--no-tags", "--", url, commit], GIT_LIMIT)
        if answer.state == "failed":  # a server that gives no single commits
            answer = ask([*git, "fetch", "--quiet", "--", url, "+refs/heads/*:refs/heads/*"], GIT_LIMIT)
        fresh = archive.with_name(f".{archive.name}.part")
        if answer.state == "ok":
            prefix = f"--prefix=yolov5-{commit[:8]}/"
            answer = ask([*git, "archive", "--format=tar.gz", prefix, f"--output={fresh.resolve()}", commit], GIT_LIMIT)
        if answer.state == "missing":
            raise Cannot(f"git is not installed here, and YOLOv5's source comes by it: install git, or {mend}.")
        if answer.state != "ok":
            said = " ".join(answer.text.split())[-200:] or answer.state
            raise Cannot(f"YOLOv5's source could not be had from {url} ({said}): {mend}.")
        fresh.replace(archive)


def copied(file: Path, target: Path) -> None:
    """A copy in one step; none when it is there already."""
    target.parent.mkdir(exist_ok=True)
    if target.exists() and (target.samefile(file) or digest(target) == digest(file)):
        return
    fresh = target.with_name(f".{target.name}.part")
    shutil.copyfile(file, fresh)
    fresh.replace(target)


def drop_old(wheelhouse: Path, before: set[str], held: Mapping[str, Held], keep: set[str]) -> None:
    """Delete what an earlier bundle brought and this one does not need. What somebody put there stays."""
    for name in before - set(held) - keep:
        if name.endswith((".whl", ".tar", ".tar.gz")):
            with contextlib.suppress(OSError):
                (wheelhouse / name).unlink()
                (wheelhouse / name).with_suffix(".id").unlink()  # of an image


KINDS = {"apt": "Debian packages", "image": "the base image", "weights": "weights"}


def others(wheelhouse: Path, known: set[str]) -> dict[str, Held]:
    """Everything beside the wheels of the image, with its checksum."""
    found = {}
    for file in sorted(wheelhouse.rglob("*")):
        name = file.relative_to(wheelhouse).as_posix()
        if name in known or not file.is_file() or file.name.startswith(".") or "/." in f"/{name}":
            continue
        folder = name.split("/")[0] if "/" in name else ""
        if folder in KINDS:
            if file.suffix not in {".id", ".part"}:
                found[name] = Held(digest(file), file.stat().st_size, KINDS[folder])
        elif not folder and name.startswith("yolov5-"):
            found[name] = Held(digest(file), file.stat().st_size, "YOLOv5's source")
        elif not folder and name.endswith(".whl"):
            found[name] = Held(digest(file), file.stat().st_size, NOT_OURS)
    return found


def totals(manifest: Manifest) -> list[str]:
    """A line for each kind of file, and the sum."""
    sums: dict[str, list[int]] = {}
    for one in manifest.files.values():
        sums.setdefault(one.used_for.split(", ")[-1], []).append(one.size)
    lines = [f"{gigabytes(sum(sizes)):>10}  {len(sizes):3} files  {kind}" for kind, sizes in sorted(sums.items())]
    everything = [one.size for one in manifest.files.values()]
    return [*lines, f"{gigabytes(sum(everything)):>10}  {len(everything):3} files in wheelhouse/, listed in {MANIFEST}"]


def owner_of(project: Path, facts: Facts) -> tuple[int, int] | None:
    """Whom root gives the manifest to: the owner of the project."""
    if facts.uid != 0 or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    status = project.stat()
    return status.st_uid, status.st_gid

"""What is in the image, as a CycloneDX 1.6 document: the Python and Debian packages, the base image, YOLOv5's commit.

`docker/sbom` on the host runs it inside the image and tells it what only the engine knows. Two documents of one image
differ in their date and serial number alone.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import uuid
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lab import upstream
from lab.errors import FAILED, LabError

LOCKS = "docker/*.lock"
# Classifiers that mean one licence; "BSD License" and the like could be several, and stay words.
LICENCES = {
    "MIT License": "MIT",
    "Apache Software License": "Apache-2.0",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "GNU Affero General Public License v3 or later (AGPLv3+)": "AGPL-3.0-or-later",
}
# Licence fields that are an SPDX name already.
NAMES = {"MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MPL-2.0", "PSF-2.0", "AGPL-3.0"}
Json = dict[str, Any]


def document(image: Json, components: Iterable[Json], now: datetime, serial: uuid.UUID) -> Json:
    """The document of `image` (a component) that holds `components`, in the order of their references."""
    parts = sorted(components, key=lambda one: str(one["bom-ref"]))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "timestamp": now.astimezone(timezone.utc).isoformat(timespec="seconds"),
            "tools": {"components": [{"type": "application", "name": "docker/sbom"}]},
            "component": image,
        },
        "components": parts,
        "dependencies": [{"ref": image["bom-ref"], "dependsOn": [one["bom-ref"] for one in parts]}],
    }


# The engine's side


def the_image(name: str, inspected: Json) -> Json:
    """The image itself, by the digest of its configuration."""
    digest = str(inspected["Id"]).removeprefix("sha256:")
    repository, tag = _named(name)
    return {
        "type": "container",
        "bom-ref": "image",
        "name": repository,
        "version": tag,
        "hashes": [{"alg": "SHA-256", "content": digest}],
    }


def base_image(name: str, inspected: list[Json], layers: list[str]) -> Json:
    """What the image was made from. Its digest is told only while the image of that name is the one below `layers`.

    Where it is not here any more, or a newer one has its name, the digests of our own first layers are what remains.
    """
    repository, tag = _named(name.partition("@")[0])
    said: Json = {"type": "container", "bom-ref": "base", "name": repository, "version": tag}
    pinned = re.search(r"@sha256:([0-9a-f]{64})$", name)
    below = list(inspected[0].get("RootFS", {}).get("Layers", [])) if inspected else []
    same = bool(below) and layers[: len(below)] == below
    if pinned:
        digest, how = pinned[1], "the manifest, as PYTHON_IMAGE names it"
    elif same and (known := inspected[0].get("RepoDigests")):
        digest, how = str(known[0]).rpartition(":")[2], "the manifest in the registry"
    elif same:
        digest, how = str(inspected[0]["Id"]).removeprefix("sha256:"), "its configuration; it came from no registry"
    else:
        how = "not known: the image of this name that lies here is another one" if inspected else "not known: not here"
        digest = ""
    if digest:
        said["hashes"] = [{"alg": "SHA-256", "content": digest}]
    first = below if same else layers[:1]
    said["properties"] = [
        {"name": "lab:digest-of", "value": how},
        *({"name": "lab:layer", "value": layer} for layer in first),
    ]
    return said


def _named(name: str) -> tuple[str, str]:
    """(repository, tag) of an image's name; a registry's port is no tag."""
    repository, colon, tag = name.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (name, "latest")


# Python


def locked(folder: Path) -> dict[tuple[str, str], list[str]]:
    """The hashes of the lock files by (name, version): those of every wheel that pip may choose among."""
    found: dict[tuple[str, str], list[str]] = {}
    for file in sorted(folder.glob(LOCKS)):
        key: tuple[str, str] | None = None
        for line in file.read_text(encoding="utf-8").splitlines():
            if named := re.match(r"([\w.-]+)==([^\s;\\]+)", line):
                key = (normal(named[1]), named[2])
            elif key and (hashed := re.search(r"--hash=sha256:([0-9a-f]{64})", line)):
                found.setdefault(key, []).append(hashed[1])
    return {key: sorted(set(hashes)) for key, hashes in found.items()}


def normal(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def python_package(about: metadata.PackageMetadata, hashes: list[str]) -> Json:
    """One installed distribution; `hashes` are those of its lock."""
    name, version = normal(about["Name"]), str(about["Version"])
    url = f"pkg:pypi/{name}@{quote(version, safe='.-_')}"
    said: Json = {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url}
    if licences := licences_of(about):
        said["licenses"] = licences
    if hashes:
        said["externalReferences"] = [
            {
                "type": "distribution",
                "url": url,  # not an address: the index is each site's own
                "comment": "one of these was installed: the lock's hashes of this version",
                "hashes": [{"alg": "SHA-256", "content": one} for one in hashes],
            }
        ]
    else:
        how = "by no lock's hash: the build of torch that fits the host, or what it or the base image brings"
        said["properties"] = [{"name": "lab:installed", "value": how}]
    return said


def licences_of(about: metadata.PackageMetadata) -> list[Json]:
    """What a distribution says of its licence: an SPDX expression (PEP 639) or name, else classifiers, else a line."""
    fields = {key: str(about[key]) for key in ("License", "License-Expression") if key in about}
    if expression := fields.get("License-Expression"):
        return [{"expression": expression}]
    text = fields.get("License", "").strip().splitlines()
    if len(text) == 1 and text[0] in NAMES:
        return [{"license": {"id": text[0]}}]
    begin = "License :: "
    names = sorted(
        line.removeprefix(begin).removeprefix("OSI Approved :: ")
        for line in about.get_all("Classifier") or []
        if line.startswith(begin)
    )
    if not names:
        names = [text[0].strip()] if text and len(text[0]) <= 64 else []
    return [{"license": {"id": LICENCES[name]} if name in LICENCES else {"name": name}} for name in names]


def python_packages(root: Path) -> list[Json]:
    """Every distribution that this Python imports; the first one where two have a name, as the import does."""
    hashes = locked(root)
    found: dict[str, Json] = {}
    for distribution in metadata.distributions():
        about = distribution.metadata
        if about["Name"]:
            key = (normal(about["Name"]), str(about["Version"]))
            found.setdefault(key[0], python_package(about, hashes.get(key, [])))
    return list(found.values())


def python_itself() -> Json:
    """The interpreter, which the base image brings and no package manager lists."""
    version = platform.python_version()
    return {
        "type": "platform",
        "bom-ref": "python",
        "name": "cpython",
        "version": version,
        "cpe": f"cpe:2.3:a:python:python:{version}:*:*:*:*:*:*:*",
        "licenses": [{"license": {"id": "PSF-2.0"}}],
    }


# Debian

FIELDS = ("binary:Package", "Version", "Architecture", "source:Package", "source:Version", "db:Status-Abbrev")


def debian_packages(listed: str, release: str) -> list[Json]:
    """The packages in what dpkg-query prints of FIELDS; `release` is Debian's number, e.g. 12."""
    found = []
    for line in listed.splitlines():
        package, version, architecture, source, source_version, status = line.split("\t")
        if not status.startswith("ii"):  # removed, its configuration still there
            continue
        name = package.partition(":")[0]
        more = f"arch={architecture}&distro=debian-{release}"
        if (source, source_version) != (name, version):
            more += f"&upstream={quote(f'{source}@{source_version}', safe='')}"
        url = f"pkg:deb/debian/{quote(name, safe='.-_')}@{quote(version, safe='.-_')}?{more}"
        found.append(
            {
                "type": "library",
                "bom-ref": url,
                "name": name,
                "version": version,
                "purl": url,
                "properties": [
                    {"name": "lab:debian:release", "value": release},
                    {"name": "lab:debian:source", "value": source},
                    {"name": "lab:debian:source-version", "value": source_version},
                ],
            }
        )
    return found


def _dpkg() -> str:
    form = "\t".join(f"${{{field}}}" for field in FIELDS) + "\n"
    try:
        return subprocess.run(
            ["dpkg-query", "--show", "--showformat", form], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise LabError(f"dpkg-query does not work here ({error}): run docker/sbom on the host", FAILED) from error


# YOLOv5


def yolov5(root: Path) -> Json:
    """The pinned commit. It is in no image: `lab fetch` puts it into the project."""
    there = upstream.present(root / "code" / "yolov5")
    return {
        "type": "application",
        "bom-ref": "yolov5",
        "name": "yolov5",
        "version": upstream.COMMIT,
        "scope": "required" if there else "optional",
        "purl": f"pkg:github/ultralytics/yolov5@{upstream.COMMIT}",
        "licenses": [{"license": {"id": "AGPL-3.0-only"}}],
        "properties": [
            {"name": "lab:where", "value": "code/yolov5" if there else "not fetched yet"},
            {"name": "lab:sha256-of-listing", "value": upstream.DIGEST},
        ],
    }


def main() -> int:
    """Read what docker/sbom knows from stdin, write the document to stdout."""
    try:
        told = json.load(sys.stdin)
        image = the_image(told["name"], told["image"][0])
        base = base_image(told["base_name"], told["base"], told["image"][0]["RootFS"]["Layers"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise LabError("this is the inner half of docker/sbom: run that on the host") from error
    root = Path.cwd()
    release = platform.freedesktop_os_release().get("VERSION_ID", "")
    parts = [base, python_itself(), yolov5(root), *python_packages(root), *debian_packages(_dpkg(), release)]
    json.dump(
        document(image, parts, datetime.now(timezone.utc), uuid.uuid4()), sys.stdout, indent=2, ensure_ascii=False
    )
    print()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        print(f"sbom: {error.sentence}", file=sys.stderr)
        sys.exit(error.status)

"""Known vulnerabilities of what a CycloneDX document lists, asked of OSV (https://osv.dev), which needs a network.

    python -m lab.audit sbom.cdx.json        what has a fix; --all also what Debian or the maker has none for
    exit status 0 nothing with a fix is known, 1 something is, 2 it cannot be told

Sent are names and versions of packages, to OSV or to the mirror that OSV_URL names.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from lab.errors import FAILED, LabError

URL = "https://api.osv.dev"
LIMIT = 30.0  # seconds an answer
MANY = 500  # questions in a request; OSV takes 1000
Json = dict[str, Any]


class Package(NamedTuple):
    """What OSV is asked about: a version of a package of an ecosystem, or a git commit."""

    ecosystem: str
    name: str
    version: str

    def question(self) -> Json:
        """As OSV's API has it."""
        if self.ecosystem == "GIT":
            return {"commit": self.version}
        return {"package": {"ecosystem": self.ecosystem, "name": self.name}, "version": self.version}


class Known(NamedTuple):
    """A vulnerability of a package; `fixed` is the versions that have it no more."""

    package: Package
    id: str
    fixed: tuple[str, ...]
    summary: str


def packages(document: Json) -> list[Package]:
    """What OSV may know: Python's packages, Debian's by their source, YOLOv5. Raises LabError when there is none."""
    found: set[Package] = set()
    for one in document.get("components", []):
        purl, version = str(one.get("purl", "")), str(one.get("version", ""))
        if purl.startswith("pkg:pypi/"):
            found.add(Package("PyPI", one["name"], version.partition("+")[0]))  # OSV knows no local versions (+cu128)
        elif purl.startswith("pkg:deb/debian/"):
            more = {field["name"]: field["value"] for field in one["properties"]}
            ecosystem = f"Debian:{more['lab:debian:release']}"
            found.add(Package(ecosystem, more["lab:debian:source"], more["lab:debian:source-version"]))
        elif purl.startswith("pkg:github/"):
            found.add(Package("GIT", one["name"], version))
    if not found:
        raise LabError("this document lists no package: `make sbom` writes one")
    return sorted(found)


def ask(url: str, path: str, body: Json | None = None) -> Json:
    """The answer to one request. Raises LabError when there is none, or none that can be understood."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url.rstrip("/") + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=LIMIT) as answer:
            said = json.load(answer)
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = getattr(error, "reason", None) or error
        raise LabError(
            f"the database of vulnerabilities at {url} gave no answer ({why}), so nothing is known, good or bad: try "
            "again where the network lets you through, set HTTPS_PROXY, or name a mirror with OSV_URL"
        ) from error
    if not isinstance(said, dict):
        raise LabError(f"{url} does not answer as OSV does, so nothing is known, good or bad: correct OSV_URL")
    return said


def look_up(url: str, asked: list[Package]) -> list[tuple[Package, str]]:
    """(package, id) of every vulnerability known. Raises LabError unless each question was answered."""
    found: list[tuple[Package, str]] = []
    waiting = [(package, package.question()) for package in asked]
    while waiting:
        now, waiting = waiting[:MANY], waiting[MANY:]
        said = ask(url, "/v1/querybatch", {"queries": [question for _, question in now]}).get("results")
        if not isinstance(said, list) or len(said) != len(now):
            raise LabError(f"{url} did not answer every question, so nothing is known, good or bad: try again later")
        for (package, question), answer in zip(now, said, strict=True):
            found += [(package, str(one["id"])) for one in (answer or {}).get("vulns", [])]
            if token := (answer or {}).get("next_page_token"):
                waiting.append((package, {**question, "page_token": token}))
    return sorted(set(found))


def understood(package: Package, told: Json) -> Known | None:
    """What OSV tells of a vulnerability, for this package; None when it was withdrawn."""
    if told.get("withdrawn"):
        return None
    fixed: set[str] = set()
    for affected in told.get("affected", []):
        about = affected.get("package", {})
        mine = (about.get("ecosystem"), str(about.get("name", "")).lower()) == (package.ecosystem, package.name.lower())
        for reach in affected.get("ranges", []) if mine or package.ecosystem == "GIT" else []:
            fixed |= {str(event["fixed"]) for event in reach.get("events", []) if "fixed" in event}
    names = [name for name in told.get("aliases", []) if str(name).startswith("CVE-")]
    text = str(told.get("summary") or told.get("details") or "").strip().splitlines()
    return Known(package, " ".join([str(told["id"]), *names]), tuple(sorted(fixed)), text[0][:100] if text else "")


def lines(known: Iterable[Known], every: bool) -> list[str]:
    """What a person reads: one line each, those with a fix first."""
    ordered = sorted(known, key=lambda one: (not one.fixed, one))
    return [
        f"{one.package.name} {one.package.version}: {one.id}, "
        f"{'fixed in ' + ', '.join(one.fixed) if one.fixed else 'no fix yet'}: {one.summary}"
        for one in ordered
        if one.fixed or every
    ]


def main(arguments: list[str]) -> int:
    """Audit the document named. Raises LabError."""
    every = "--all" in arguments
    names = [word for word in arguments if word != "--all"]
    if len(names) != 1 or names[0].startswith("-"):
        raise LabError("use: python -m lab.audit [--all] sbom.cdx.json")
    try:
        document = json.loads(Path(names[0]).read_text(encoding="utf-8"))
        asked = packages(document)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LabError(f"{names[0]} is no document of `make sbom` ({error}): make one") from error
    url = os.environ.get("OSV_URL") or URL
    pairs = look_up(url, asked)
    with ThreadPoolExecutor(8) as pool:
        ids = sorted({name for _, name in pairs})
        told = dict(zip(ids, pool.map(lambda name: ask(url, f"/v1/vulns/{name}"), ids), strict=True))
    if any("id" not in one for one in told.values()):
        raise LabError(f"{url} does not answer as OSV does, so nothing is known, good or bad: correct OSV_URL")
    known = [one for package, name in pairs if (one := understood(package, told[name]))]
    for line in lines(known, every):
        print(line)
    mendable = sum(bool(one.fixed) for one in known)
    print(
        f"audit: {len(asked)} packages, {mendable} known vulnerabilities with a fix, {len(known) - mendable} without"
        + ("" if every or mendable == len(known) else " (--all lists them)")
    )
    return FAILED if mendable else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except LabError as error:
        print(f"audit: {error.sentence}", file=sys.stderr)
        sys.exit(error.status)

"""`make sbom` and `make audit` of a generated project: a valid document, the same each time, and never a green lie."""

from __future__ import annotations

import json
import sys
import threading
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import Bake, run
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from lab import audit, sbom
from lab.errors import LabError

ID = "sha256:" + "a1" * 32
OSI = "License :: OSI Approved ::"
IMAGE = {"Id": ID, "RootFS": {"Layers": ["sha256:l1", "sha256:l2", "sha256:l3"]}}
BASE = {"Id": "sha256:" + "b2" * 32, "RepoDigests": ["python@sha256:" + "c3" * 32], "RootFS": {"Layers": ["sha256:l1"]}}
DPKG = (
    "libc6:amd64\t2.36-9+deb12u10\tamd64\tglibc\t2.36-9+deb12u10\tii \n"
    "login\t1:4.13+dfsg1-1+b1\tamd64\tshadow\t1:4.13+dfsg1-1\tii \n"
    "gone\t1.0\tall\tgone\t1.0\trc \n"
)


def about(**fields: str | list[str]) -> Any:
    """A distribution's metadata; a list is a field that comes more than once."""
    message = Message()
    for name, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            message[name.replace("_", "-")] = one
    return message


def whole(root: Path, now: datetime | None = None) -> dict[str, Any]:
    """A document of every kind of component, the test environment's own packages among them."""
    parts = [
        sbom.base_image("python:3.11-slim-bookworm", [BASE], IMAGE["RootFS"]["Layers"]),
        sbom.python_itself(),
        sbom.yolov5(root),
        *sbom.python_packages(root),
        *sbom.debian_packages(DPKG, "12"),
    ]
    image = sbom.the_image("registry.example:5000/my-detector:torch2.8.0-cu128", IMAGE)
    return sbom.document(image, reversed(parts), now or datetime.now(timezone.utc), uuid.uuid4())


def test_the_document_is_valid(bake: Bake) -> None:
    strict = JsonStrictValidator(SchemaVersion.V1_6)
    document = whole(bake())
    assert strict.validate_str(json.dumps(document)) is None
    document["components"][0]["purl"] = 5
    assert strict.validate_str(json.dumps(document)) is not None


def test_two_documents_differ_in_date_and_number_alone(bake: Bake) -> None:
    one, two = whole(bake()), whole(bake(), datetime.now(timezone.utc) + timedelta(days=1))
    assert one != two
    for document in (one, two):
        del document["serialNumber"], document["metadata"]["timestamp"]
    assert json.dumps(one) == json.dumps(two)
    references = [part["bom-ref"] for part in one["components"]]
    assert references == sorted(set(references))


def test_hashes_of_the_locks_are_there(bake: Bake) -> None:
    hashes = sbom.locked(bake())
    assert len(hashes) > 100
    assert ("ultralytics", "8.4.190") in hashes
    assert all(len(one) == 64 for many in hashes.values() for one in many)
    said = sbom.python_package(about(Name="Ultralytics", Version="8.4.190"), hashes["ultralytics", "8.4.190"])
    [reference] = said["externalReferences"]
    assert [one["content"] for one in reference["hashes"]] == hashes["ultralytics", "8.4.190"]
    torch = sbom.python_package(about(Name="torch", Version="2.8.0+cu128"), [])
    assert torch["purl"] == "pkg:pypi/torch@2.8.0%2Bcu128"
    assert "by no lock's hash" in torch["properties"][0]["value"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"License_Expression": "MIT OR Apache-2.0", "License": "x"}, [{"expression": "MIT OR Apache-2.0"}]),
        ({"License": "BSD-3-Clause", "Classifier": f"{OSI} BSD License"}, [{"license": {"id": "BSD-3-Clause"}}]),
        ({"License": "Copyright (c) 2001\nmore", "Classifier": f"{OSI} MIT License"}, [{"license": {"id": "MIT"}}]),
        ({"Classifier": ["Topic :: X", "License :: Public Domain"]}, [{"license": {"name": "Public Domain"}}]),
        ({"License": "Our own"}, [{"license": {"name": "Our own"}}]),
        ({"License": "a text of a whole licence " * 9}, []),
        ({}, []),
    ],
)  # fmt: skip
def test_licences(fields: dict[str, Any], said: list[Any]) -> None:
    assert sbom.licences_of(about(Name="a", Version="1", **fields)) == said


def test_debian_packages_with_their_sources() -> None:
    libc, login = sbom.debian_packages(DPKG, "12")
    assert libc["purl"] == (
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64&distro=debian-12&upstream=glibc%402.36-9%2Bdeb12u10"
    )
    assert login["version"] == "1:4.13+dfsg1-1+b1"
    assert {"name": "lab:debian:source-version", "value": "1:4.13+dfsg1-1"} in login["properties"]


@pytest.mark.parametrize(
    ("name", "inspected", "digest", "how"),
    [
        ("python:3.11-slim-bookworm", [BASE], "c3" * 32, "the manifest in the registry"),
        ("python:3.11-slim-bookworm", [{**BASE, "RepoDigests": []}], "b2" * 32, "its configuration"),
        ("python:3.11-slim-bookworm", [{**BASE, "RootFS": {"Layers": ["sha256:new"]}}], "", "another one"),
        ("python:3.11-slim-bookworm", [], "", "not known: not here"),
        ("registry:5000/python@sha256:" + "d4" * 32, [], "d4" * 32, "as PYTHON_IMAGE names it"),
    ],
)
def test_the_base_image_is_the_one_that_was_used(name: str, inspected: list[Any], digest: str, how: str) -> None:
    said = sbom.base_image(name, inspected, IMAGE["RootFS"]["Layers"])
    assert said["name"] in ("python", "registry:5000/python")
    assert [one["content"] for one in said.get("hashes", [])] == ([digest] if digest else [])
    assert how in said["properties"][0]["value"]
    assert said["properties"][1:] == [{"name": "lab:layer", "value": "sha256:l1"}]


def test_without_an_image_there_is_no_document(bake: Bake, tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    config = 'printf "services:\\n  dev:\\n    image: none:here\\n"'
    docker.write_text(f'#!/bin/sh\ncase "$1 $2" in "compose config") {config} ;; *) exit 1 ;; esac\n')
    docker.chmod(0o755)
    done = run("docker/sbom", cwd=bake(), env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "sbom: there is no image none:here yet: docker compose build dev\n"


# --- the audit --------------------------------------------------------------------------------------------------------

DOCUMENT = {
    "components": [
        {"name": "jinja2", "version": "2.4.1", "purl": "pkg:pypi/jinja2@2.4.1"},
        {"name": "torch", "version": "2.8.0+cu128", "purl": "pkg:pypi/torch@2.8.0%2Bcu128"},
        {"name": "yolov5", "version": "50813", "purl": "pkg:github/ultralytics/yolov5@50813"},
        *sbom.debian_packages(DPKG, "12"),
    ]
}
TOLD = {
    "GHSA-1": {
        "id": "GHSA-1",
        "aliases": ["CVE-2019-1", "PYSEC-1"],
        "summary": "a sandbox escape",
        "affected": [
            {"package": {"ecosystem": "PyPI", "name": "Jinja2"}, "ranges": [{"events": [{"fixed": "2.8.1"}]}]},
            {"package": {"ecosystem": "Debian:11", "name": "jinja2"}, "ranges": [{"events": [{"fixed": "9"}]}]},
        ],
    },
    "CVE-2010-4756": {"id": "CVE-2010-4756", "details": "glob\nmore", "affected": [
        {"package": {"ecosystem": "Debian:12", "name": "glibc"}, "ranges": [{"events": [{"introduced": "0"}]}]}]},
    "OLD-1": {"id": "OLD-1", "withdrawn": "2020-01-01T00:00:00Z"},
}  # fmt: skip
HAS = {"jinja2": ["GHSA-1", "OLD-1"], "glibc": ["CVE-2010-4756"]}


class Osv(HTTPServer):
    """Answers as OSV's documentation describes; `way` is how it misbehaves."""

    way = ""
    asked: list[Any]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Osv

    def reply(self, said: Any) -> None:
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(503 if self.server.way == "503" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        self.server.asked += queries
        results: list[Any] = []
        for query in queries:
            names = HAS.get(query.get("package", {}).get("name"), [])
            if len(names) > 1 and "page_token" not in query:  # the first on the first page, the rest on the next
                results.append({"vulns": [{"id": names[0]}], "next_page_token": "2"})
            else:
                results.append({"vulns": [{"id": name} for name in names[-1:]]} if names else {})
        if self.server.way == "few":
            results.pop()
        self.reply(b"<html>log in</html>" if self.server.way == "portal" else {"results": results})

    def do_GET(self) -> None:
        self.reply({} if self.server.way == "empty" else TOLD[self.path.removeprefix("/v1/vulns/")])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def osv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Osv]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sbom.cdx.json").write_text(json.dumps(DOCUMENT))
    with Osv(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        monkeypatch.setenv("OSV_URL", server.url)
        yield server
        server.shutdown()


def test_what_has_a_fix_fails_the_audit(osv: Osv, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main(["sbom.cdx.json"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "jinja2 2.4.1: GHSA-1 CVE-2019-1, fixed in 2.8.1: a sandbox escape",
        "audit: 5 packages, 1 known vulnerabilities with a fix, 1 without (--all lists them)",
    ]
    assert {"package": {"ecosystem": "PyPI", "name": "torch"}, "version": "2.8.0"} in osv.asked
    assert {"package": {"ecosystem": "Debian:12", "name": "shadow"}, "version": "1:4.13+dfsg1-1"} in osv.asked
    assert {"commit": "50813"} in osv.asked
    assert audit.main(["--all", "sbom.cdx.json"]) == 1
    assert "glibc 2.36-9+deb12u10: CVE-2010-4756, no fix yet: glob" in capsys.readouterr().out


def test_what_has_no_fix_does_not(osv: Osv, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sbom.cdx.json").write_text(json.dumps({"components": DOCUMENT["components"][1:]}))
    assert audit.main(["sbom.cdx.json"]) == 0
    assert "4 packages, 0 known vulnerabilities with a fix, 1 without" in capsys.readouterr().out


@pytest.mark.parametrize("way", ["503", "portal", "few", "empty", "gone", "name"])
def test_a_database_that_does_not_answer_is_never_good_news(
    osv: Osv, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    osv.way = way
    if way in ("gone", "name"):
        monkeypatch.setenv("OSV_URL", {"gone": "http://127.0.0.1:9", "name": "https://osv.invalid"}[way])
    with pytest.raises(LabError, match=r"nothing is known, good or bad") as caught:
        audit.main(["sbom.cdx.json"])
    assert caught.value.status == 2


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"components": []}', '{"components": [{"purl": "pkg:deb/debian/a"}]}']
)
def test_no_document_no_answer(osv: Osv, tmp_path: Path, content: str) -> None:
    (tmp_path / "sbom.cdx.json").write_text(content)
    with pytest.raises(LabError, match="make sbom"):
        audit.main(["sbom.cdx.json"])


def test_the_command_line_of_the_audit(osv: Osv, bake: Bake, tmp_path: Path) -> None:
    """One sentence and status 2, no traceback."""
    command = (sys.executable, "-B", "-m", "lab.audit")
    place = {"PYTHONPATH": str(bake() / "code"), "OSV_URL": "http://127.0.0.1:9"}
    done = run(*command, "sbom.cdx.json", cwd=tmp_path, env=place)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("audit: the database of vulnerabilities at http://127.0.0.1:9 gave no answer")
    assert done.stderr.count("\n") == 1
    assert run(*command, cwd=tmp_path, env=place).returncode == 2

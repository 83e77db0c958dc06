"""catalog.yaml, the hand-edited facts: read, checked row by row, and compiled to catalog.json for hostkit."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

import yaml

SOURCE = Path(__file__).with_name("catalog.yaml")
COMPILED = Path(__file__).with_name("catalog.json")

STATUS = ("verified", "secondary", "unverified")
MACHINES = ("x86_64", "aarch64")


class BadCatalog(ValueError):
    """A row of catalog.yaml is wrong. One sentence that names the row."""


def load(path: Path = SOURCE) -> dict[str, Any]:
    """The checked content of catalog.yaml. Raises BadCatalog."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadCatalog(f"{path.name} cannot be read: {error.strerror}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise BadCatalog(f"{path.name} is not YAML{where}: {getattr(error, 'problem', error)}.") from None
    check(data)
    return data  # type: ignore[no-any-return]


def check(data: Any) -> None:
    """Raise BadCatalog, naming the row, for the first thing in `data` that hostkit could not rely on."""
    _fields(data, "the catalogue", _TOP)
    sources = set(data["sources"])
    for table, fields in _TABLES.items():
        for row in data[table]:
            where = f"{table}: {_title(table, row)}"
            _fields(row, where, {**fields, **_ORIGIN})
            _known_sources(row, where, sources)
    _unique(data["gpus"], "gpus", "name")
    _unique(data["first_toolkits"], "first_toolkits", "capability")
    _check_first_toolkits(data["first_toolkits"], {row["toolkit"] for row in data["toolkits"] if row["update"] == 0})
    _unique(data["advisories"], "advisories", "cve")
    _check_advisories(data["advisories"])
    _unique(data["releases"], "releases", "torch")
    _check_releases(data["releases"], sources, {row["cuda"] for row in data["floors"]})


def _check_first_toolkits(rows: list[dict[str, Any]], toolkits: set[str]) -> None:
    for row in rows:
        if row["toolkit"] not in toolkits:
            raise BadCatalog(
                f"first_toolkits: capability {row['capability']}: toolkits has no {row['toolkit']} with update: 0."
            )


def _check_advisories(rows: list[dict[str, Any]]) -> None:
    if not rows:
        raise BadCatalog("advisories is empty: the newest row names the oldest safe container toolkit.")
    for row in rows:
        if row["severity"] is not None and not 0 <= row["severity"] <= 10:
            raise BadCatalog(
                f"advisories: cve {row['cve']}: severity is {row['severity']}, a CVSS score is 0.0 to 10.0."
            )
    order = [_numbers(row["fixed"]) for row in rows]
    for older, newer, row in zip(order, order[1:], rows[1:], strict=False):
        if newer < older:
            raise BadCatalog(
                f"advisories: cve {row['cve']}: fixed {row['fixed']} comes after a newer one: sort by fixed."
            )


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def _check_releases(releases: list[dict[str, Any]], sources: set[str], majors: set[int]) -> None:
    for release in releases:
        _check_release(release, sources, majors)
    order = [_numbers(release["torch"]) for release in releases]
    if order != sorted(order):
        raise BadCatalog("releases are not ordered: put them oldest first.")


def _check_release(release: dict[str, Any], sources: set[str], majors: set[int]) -> None:
    where = f"releases: torch {release['torch']}"
    _known_sources(release, where, sources)
    if set(release["default"]) != set(MACHINES):
        raise BadCatalog(f"{where}: default names {list(release['default'])}, it needs x86_64 and aarch64.")
    for machine, missing in (release.get("not_on") or {}).items():
        known = isinstance(missing, list) and all(python in release["python"] for python in missing)
        if machine not in MACHINES or not known:
            raise BadCatalog(f"{where}: not_on names a machine or a Python that the release does not have.")
    for python in release["python"]:
        if not _fits(python, _PYTHON):
            raise BadCatalog(f"{where}: python holds {python!r}, expected {_expected(_PYTHON)}.")
    seen = set()
    for build in release["builds"]:
        name = _check_build(build, where, sources, majors)
        if (build["build"], build["machine"]) in seen:
            raise BadCatalog(f"{name} is there twice: keep one.")
        seen.add((build["build"], build["machine"]))
    published = [(row["build"], row["machine"]) for row in release["builds"] if row["published"] is True]
    for machine in MACHINES:
        for build_name in (release["default"][machine], "cpu"):
            if (build_name, machine) not in published:
                raise BadCatalog(f"{where}: {build_name} on {machine} has no row with published: true.")


def _check_build(build: Any, where: str, sources: set[str], majors: set[int]) -> str:
    """Check one wheel's row and return what to call it."""
    if not isinstance(build, dict):
        raise BadCatalog(f"{where}: the build {build!r} is not a mapping of names to values.")
    name = f"{where} {build.get('build', '(build missing)')} on {build.get('machine', '(machine missing)')}"
    _fields(build, name, {**_BUILD, **_ORIGIN})
    _known_sources(build, name, sources)
    if build["build"] == "cpu":
        return name
    if int(build["build"][2:-1]) not in majors:
        raise BadCatalog(f"{name}: floors has no row for CUDA {build['build'][2:-1]}.")
    if build["published"] is True and not build["sass"]:
        raise BadCatalog(f"{name} is published but sass is empty: list what it was built for, or say unknown.")
    for codes in (build["sass"], build["ptx"]):
        if not all(isinstance(code, int) and 30 <= code < 200 for code in codes) or codes != sorted(set(codes)):
            raise BadCatalog(f"{name}: sass and ptx hold rising numbers such as 86 or 120.")
    return name


class _Pattern(str):
    """A field that holds a string of this form."""


_VERSION = _Pattern(r"\d+(\.\d+){0,3}")
_PYTHON = _Pattern(r"3\.\d+t?")
_CAPABILITY = _Pattern(r"\d+\.\d")
_TOP: dict[str, Any] = {
    "as_of": datetime.date, "index_base": _Pattern(r"https://\S+[^/]"), "sources": dict, "floors": list,
    "toolkits": list, "branches": list, "first_toolkits": list, "jetson": list, "advisories": list, "releases": list,
    "gpus": list,
}  # fmt: skip
_ORIGIN: dict[str, Any] = {"status": STATUS, "sources": list}
_TABLES: dict[str, dict[str, Any]] = {
    "floors": {"cuda": int, "linux": _VERSION, "windows": _VERSION},
    "toolkits": {"toolkit": _Pattern(r"\d+\.\d+"), "update": int, "linux": _VERSION, "windows": (None, _VERSION)},
    "branches": {"major": int, "minor_below?": int, "architecture": str, "last": int, "gone_from": int},
    "first_toolkits": {"capability": _CAPABILITY, "toolkit": _Pattern(r"\d+\.\d+")},
    "jetson": {"capability": _CAPABILITY, "family_code_from": (None, _VERSION)},
    "advisories": {
        "cve": _Pattern(r"CVE-\d{4}-\d{4,}"), "fixed": _VERSION, "severity": (None, float), "note": (None, str),
    },
    "gpus": {
        "name": str, "capability": _CAPABILITY, "memory_gib": int, "architecture": str, "class": str,
    },
}  # fmt: skip
_RELEASE: dict[str, Any] = {
    "torch": _Pattern(r"\d+\.\d+\.\d+"), "date": datetime.date, "torchvision": _Pattern(r"\d+\.\d+\.\d+"),
    "python": list, "not_on?": dict, "default": dict, "numpy?": (1,), "builds": list, **_ORIGIN,
}  # fmt: skip
_BUILD: dict[str, Any] = {
    "build": _Pattern(r"cu\d{3}|cpu"), "machine": MACHINES, "sass": list, "ptx": list,
    "published": (True, False, "unknown"),
}  # fmt: skip


def _title(table: str, row: Any) -> str:
    keys = {"floors": "cuda", "toolkits": "toolkit", "branches": "major", "advisories": "cve", "gpus": "name"}
    key = keys.get(table, "capability")
    return f"{key} {row.get(key, '(missing)')}" if isinstance(row, dict) else repr(row)


def _fields(row: Any, where: str, fields: dict[str, Any]) -> None:
    """Every field there, none more, each of its kind; a `?` after the name makes it optional."""
    if not isinstance(row, dict):
        raise BadCatalog(f"{where} is not a mapping of names to values.")
    names = {name.rstrip("?") for name in fields}
    for name in row:
        if name not in names:
            raise BadCatalog(f"{where}: nobody reads {name!r}; known are {', '.join(sorted(names))}.")
    for name, kind in fields.items():
        if name.rstrip("?") not in row:
            if name.endswith("?"):
                continue
            raise BadCatalog(f"{where}: {name} is missing.")
        value = row[name.rstrip("?")]
        if not _fits(value, kind):
            raise BadCatalog(f"{where}: {name.rstrip('?')} is {value!r}, expected {_expected(kind)}.")


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, _Pattern):
        return isinstance(value, str) and re.fullmatch(kind, value) is not None
    if isinstance(kind, tuple):
        return any(value is one or _fits(value, one) for one in kind)
    if isinstance(kind, type):
        return isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    return bool(value == kind) and type(value) is type(kind)


def _expected(kind: Any) -> str:
    if isinstance(kind, _Pattern):
        return "a quoted string such as " + {_VERSION: '"580.65.06"', _PYTHON: '"3.11"', _CAPABILITY: '"8.6"'}.get(
            kind, f"/{kind}/"
        )
    if isinstance(kind, tuple):
        return " or ".join(_expected(one) for one in kind)
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _known_sources(row: dict[str, Any], where: str, sources: set[str]) -> None:
    for source in row["sources"]:
        if not isinstance(source, str) or source not in sources:
            raise BadCatalog(f"{where}: source {source!r} is not explained under sources.")
    if not row["sources"] and row["status"] != "unverified":
        raise BadCatalog(f"{where}: status {row['status']} needs a source.")


def _unique(rows: list[dict[str, Any]], table: str, key: str) -> None:
    if table == "releases":
        for row in rows:
            name = row.get("torch", "(missing)") if isinstance(row, dict) else repr(row)
            _fields(row, f"releases: torch {name}", _RELEASE)
    seen = set()
    for row in rows:
        if row[key] in seen:
            raise BadCatalog(f"{table}: {row[key]} is there twice: keep one.")
        seen.add(row[key])


def compile_catalog(data: dict[str, Any]) -> str:
    """catalog.json: what hostkit reads. One release, GPU or driver row a line, so that a change is a line in a diff.

    Only published builds are kept; of each toolkit the newest update, because it is not known which one a wheel used.
    """
    newest = {row["toolkit"]: row for row in sorted(data["toolkits"], key=lambda row: int(row["update"]))}
    first = {row["toolkit"]: row for row in data["toolkits"] if row["update"] == 0}
    releases = [
        {
            "torch": release["torch"],
            "date": str(release["date"]),
            "torchvision": release["torchvision"],
            **({"numpy": release["numpy"]} if "numpy" in release else {}),
            "python": {
                machine: [p for p in release["python"] if p not in (release.get("not_on") or {}).get(machine, [])]
                for machine in MACHINES
            },
            "default": {machine: release["default"][machine] for machine in MACHINES},
            "builds": sorted(
                [row["build"], row["machine"], row["sass"], row["ptx"]]
                for row in release["builds"]
                if row["published"] is True
            ),
        }
        for release in data["releases"]
    ]
    tables: dict[str, list[Any]] = {
        "floors": [{key: row[key] for key in ("cuda", "linux", "windows")} for row in data["floors"]],
        "toolkits": [{key: row[key] for key in ("toolkit", "linux", "windows")} for row in newest.values()],
        "branches": [
            {
                "major": row["major"],
                "minor_below": row.get("minor_below"),
                "architecture": row["architecture"],
                "last": row["last"],
                "gone_from": row["gone_from"],
            }
            for row in data["branches"]
        ],
        "first_branches": [
            {
                "capability": row["capability"],
                "linux": _branch(first[row["toolkit"]]["linux"]),
                "windows": _branch(first[row["toolkit"]]["windows"]),
            }
            for row in data["first_toolkits"]
        ],
        "jetson": [{key: row[key] for key in ("capability", "family_code_from")} for row in data["jetson"]],
        "advisories": [[row["cve"], row["fixed"]] for row in data["advisories"]],
        "releases": releases,
        "gpus": sorted([row["name"], row["capability"], row["memory_gib"]] for row in data["gpus"]),
    }
    head = {
        "as_of": str(data["as_of"]),
        "index_base": data["index_base"],
    }
    lines = ["{"]
    lines += [f"{json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    for name, rows in tables.items():
        body = ",\n".join(json.dumps(row, separators=(",", ":"), ensure_ascii=False) for row in rows)
        lines += [f"{json.dumps(name)}: [", body, "]," if name != "gpus" else "]"]
    return "\n".join([*lines, "}"]) + "\n"


def _branch(driver: str | None) -> int | None:
    """The branch of a driver version: 570 for "570.26"."""
    return int(driver.split(".")[0]) if driver else None

"""docs/matrix.md, made from the catalogue: what runs on a card, and every build with its sources."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from .hostkit.catalogue import Catalogue
from .matrix import Card, Question, Row, Table, build_rows, builds, markdown, newest, short, verdict

PAGE = Path(__file__).resolve().parent.parent / "docs" / "matrix.md"

# Driver branches that people have: the long-lived ones, and the newest.
BRANCHES = (470, 525, 535, 550, 570, 580, 595, 610)

_TEXT = """\
<!-- Made from generator/catalog.yaml by `python -m generator catalog`: edit that file, not this one. -->

# What runs on my card?

The newest PyTorch and its CUDA build, by GPU and NVIDIA driver. Facts of {as_of}, up to torch {newest}.
A project asks the same catalogue each time its container opens: this page is for those who buy, upgrade or pin.

1. `nvidia-smi --query-gpu=name,driver_version --format=csv` prints your card and your driver.
2. Find the card's row, and in it the last driver that is not newer than yours. Under WSL2 the driver is that of
   Windows; its branches have the same numbers.
3. For several cards, one release or an exact driver, ask:

       python -m generator matrix --gpu "RTX 3090" --gpu "GTX 1080 Ti" --driver 535.104.05

*too old*: a newer driver helps. *too new*: this driver no longer knows the card, an older one helps. *none*: no wheel
has code for the card; the CPU remains.

## PCs and servers (x86_64)

{cards_x86_64}

## Arm servers (aarch64)

Other cards of the same capability do alike; below {least_aarch64} no Arm wheel has code. Jetson boards need NVIDIA's
own builds of torch.

{cards_aarch64}

## Drivers

The first two digits of a build are its CUDA major: cu126 is CUDA 12. From these versions on a driver serves all builds
of a major, and those of older majors.

{floors}

The last driver branch for an architecture:

{branches}

That drivers older than an architecture's first CUDA toolkit do not know its cards is inferred; it makes the *too old*
of the newest cards.

## NVIDIA Container Toolkit

Before {toolkit_safe} a hostile image can reach the host:

{advisories}

## Every build

*Machine code for* lists compute capabilities: code for 8.0 runs on 8.0, 8.6 and 8.9, not on 9.0. PTX is compiled by the
driver at the first start, if it is as new as the build's toolkit. `*` is what the default package index carries; the
others are on PyTorch's own. Releases before {numpy_2} work with NumPy 1 only. *Known from* names [sources](#sources).

### x86_64

{builds_x86_64}

### aarch64

{builds_aarch64}

### Not counted

Announced or built, but nobody looked into the wheel, or for it on the index; or known not to be there.

{not_counted}

## Sources

*verified*: read from a primary source. *secondary*: a third party's copy or quote of one. *unverified*: memory or
inference.

{sources}
"""


def page(data: dict[str, Any], catalogue: Catalogue) -> str:
    """The text of docs/matrix.md: `data` is catalog.yaml, for what only people need; `catalogue` the same, compiled."""
    parts: dict[str, str] = {
        "as_of": catalogue.as_of,
        "newest": next(iter(catalogue.releases)),
        "numpy_2": next(torch for torch in reversed(catalogue.releases) if not catalogue.numpy_1_only(torch)),
        "least_aarch64": "{}.{}".format(*min(build.sass[0] for build in catalogue.builds["aarch64"] if build.sass)),
        "toolkit_safe": catalogue.toolkit_safe,
        "floors": markdown(*_floors(data)),
        "branches": markdown(*_last_branches(data)),
        "advisories": markdown(*_advisories(data)),
        "not_counted": markdown(*_not_counted(data)),
        "sources": "\n".join(f"- **{name}**: {_literal(text)}" for name, text in data["sources"].items()),
    }
    for machine in ("x86_64", "aarch64"):
        parts[f"cards_{machine}"] = markdown(*_cards(data, machine, catalogue))
        parts[f"builds_{machine}"] = markdown(*_builds(data, machine, catalogue))
    return _TEXT.format(**parts)


def _cards(data: dict[str, Any], machine: str, catalogue: Catalogue) -> Table:
    """The newest build by capability and driver, newest GPUs first; drivers that answer alike share a column."""
    cards: dict[tuple[int, int], list[str]] = {}
    about: dict[tuple[int, int], str] = {}
    listed = {row["name"]: row for row in data["gpus"] if _found_in(machine, row["class"])}
    for name, compute, _ in catalogue.gpu_names():
        if name in listed:
            cards.setdefault(compute, []).append(short(name))
            about[compute] = f"{listed[name]['capability']} {listed[name]['architecture']}"
    computes = sorted(cards, reverse=True)
    columns = [
        (str(branch), tuple(_newest_for(Card("", compute), branch, machine, catalogue) for compute in computes))
        for branch in BRANCHES
    ]
    shared = [
        (", ".join(branch for branch, _ in alike), cells) for cells, alike in groupby(columns, key=lambda one: one[1])
    ]
    rows: list[Row] = [
        (", ".join(cards[compute]), about[compute], *(cells[place] for _, cells in shared))
        for place, compute in enumerate(computes)
    ]
    if machine == "aarch64":
        rows = [row for row in rows if set(row[2:]) != {"none"}]
    return ("card", "capability", *(f"driver {branches}" for branches, _ in shared)), rows


def _found_in(machine: str, kind: str) -> bool:
    """Whether GPUs of this class are found in such machines. Arm's own ("sbsa") are in no PC, and few others in Arm."""
    return "sbsa" not in kind if machine == "x86_64" else not kind.startswith("geforce")


def _newest_for(one: Card, branch: int, machine: str, catalogue: Catalogue) -> str:
    """A cell: the newest build with the newest driver of a branch, else what is the matter."""
    asked = Question(machine, cards=(one,), driver=str(branch))
    verdicts = [verdict(build, asked, catalogue) for build in builds(asked, catalogue)]
    if not any(row.oldest for row in verdicts):
        return "none"
    last = catalogue.branch(one.compute)
    if last and branch >= last.gone_from:
        return "too new"
    first = catalogue.first_branch(one.compute, "linux")
    best = newest(verdicts)
    if not best or (first and branch < first):
        return "too old"
    return f"{best.build.torch} {best.build.name}"


def _floors(data: dict[str, Any]) -> Table:
    return ("CUDA", "Linux driver", "Windows driver (WSL2)", "known from"), [
        (f"{row['cuda']}.x", f"{row['linux']} or newer", f"{row['windows']} or newer", _origin(row))
        for row in data["floors"]
    ]


def _last_branches(data: dict[str, Any]) -> Table:
    return ("architecture", "last branch", "known from"), [
        (row["architecture"], str(row["last"]), _origin(row)) for row in data["branches"]
    ]


def _advisories(data: dict[str, Any]) -> Table:
    return ("CVE", "mended in", "CVSS", "note", "known from"), [
        (
            row["cve"],
            row["fixed"],
            "" if row["severity"] is None else f"{row['severity']:.1f}",
            row["note"] or "",
            _origin(row),
        )
        for row in data["advisories"]
    ]


def _builds(data: dict[str, Any], machine: str, catalogue: Catalogue) -> Table:
    """Every build, with where its row is from."""
    origins = {
        (release["torch"], row["build"]): _origin(row)
        for release in data["releases"]
        for row in release["builds"]
        if row["machine"] == machine
    }
    asked = Question(machine)
    heading, rows = build_rows(asked, catalogue)
    return (*heading, "known from"), [
        (*cells, origins[build.torch, build.name]) for build, cells in zip(builds(asked, catalogue), rows, strict=True)
    ]


def _not_counted(data: dict[str, Any]) -> Table:
    return ("torch", "build", "machine", "published", "known from"), [
        (
            release["torch"],
            row["build"],
            row["machine"],
            "no" if row["published"] is False else "not known",
            _origin(row),
        )
        for release in reversed(data["releases"])
        for row in release["builds"]
        if row["published"] is not True
    ]


def _origin(row: dict[str, Any]) -> str:
    return f"{row['status']}: {' '.join(row['sources'])}" if row["sources"] else str(row["status"])


def _literal(text: str) -> str:
    """`text` with the underscores of names such as __init__ kept from meaning bold."""
    return text.replace("_", "\\_")

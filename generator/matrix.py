"""`python -m generator matrix`: every build of torch, and which of them run on a GPU with a driver."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from .hostkit.catalogue import (
    MACHINES,
    SYSTEMS,
    BadRequest,
    Build,
    Catalogue,
    Need,
    capability,
    driver_version,
    version,
)
from .hostkit.resolve import check_release
from .hostkit.terminal import printable, quoted

Row = tuple[str, ...]
Table = tuple[Row, list[Row]]  # a heading, and what stands below it


class Card(NamedTuple):
    """A GPU that is asked about."""

    name: str
    compute: tuple[int, int]

    @property
    def title(self) -> str:
        """`"Tesla T4 (7.5)"`."""
        return f"{self.name} ({_dotted(self.compute)})"


class Question(NamedTuple):
    """What the tables are for; `driver` "" asks for the drivers needed, `torch` "auto" means every release."""

    machine: str = "x86_64"
    torch: str = "auto"
    system: str = "linux"
    cards: tuple[Card, ...] = ()
    driver: str = ""


class Verdict(NamedTuple):
    """Whether a build runs on all GPUs asked about; where no driver was named, with some driver."""

    build: Build
    runs: bool
    by_ptx: bool
    oldest: str  # the driver needed, "" when none helps
    gone_from: int | None  # the first branch that no longer knows one of the GPUs
    reason: str  # why not, "" when it runs


def add_matrix(parser: argparse.ArgumentParser) -> None:
    """Options of `matrix`."""
    parser.add_argument(
        "--gpu", action="append", default=[], metavar="NAME[,CAPABILITY]",
        help='which builds run on it, e.g. "RTX 5090" or "Some GPU,8.6"; repeat for GPUs that must run together',
    )  # fmt: skip
    parser.add_argument("--driver", help="with --gpu: this driver, e.g. 570.86.10, or a branch such as 570")
    parser.add_argument("--os", default="linux", choices=SYSTEMS, help="wsl2 counts drivers as Windows does")
    parser.add_argument(
        "--machine", default="x86_64", choices=MACHINES, metavar="MACHINE", help="x86_64 (default) or aarch64"
    )
    parser.add_argument("--torch", default="auto", help="one release, e.g. 2.8.0 (default: all)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print an object with one entry a build")
    form.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.set_defaults(run=_matrix)


def _matrix(options: argparse.Namespace) -> int:
    catalogue = Catalogue.read()
    check_release(options.torch, catalogue)
    if options.driver is not None:
        driver_version(options.driver)  # also an empty one is a mistake, not the question without a driver
        if not options.gpu:
            raise BadRequest('--driver goes with --gpu: name the GPU, e.g. --gpu "RTX 4090".')
    cards = tuple(card(text, catalogue) for text in options.gpu)
    asked = Question(MACHINES[options.machine], options.torch, options.os, cards, (options.driver or "").strip())
    if options.json:
        print(json.dumps(as_dict(asked, catalogue)))
    elif options.markdown:
        print(markdown(*(verdict_rows if cards else build_rows)(asked, catalogue)))
    else:
        print("\n".join(map(printable, as_text(asked, catalogue))))
    return 0


# GPUs


def card(text: str, catalogue: Catalogue) -> Card:
    """`"NVIDIA GeForce RTX 5090,12.0"`, or a name alone, also in part ("RTX 5090"). Raises BadRequest.

    What follows a second comma, the memory in questions to `resolve`, does not matter here.
    """
    name, *rest = (part.strip() for part in text.split(","))
    if not name:
        raise BadRequest(f'--gpu {quoted(text)} has no name: write e.g. "NVIDIA GeForce RTX 4090,8.9".')
    printed = capability(rest[0]) if rest else None
    if printed:
        return Card(name, printed)
    alike = [Card(known, compute) for known, compute, _ in catalogue.gpu_names() if _holds(known, name)]
    named = catalogue.by_name(name)
    if named:
        same = [one for one in alike if one.compute == named[0]]
        whole = not same or any(one.name == name for one in same)
        return Card(name, named[0]) if whole else min(same, key=lambda one: len(one.name))
    if len({one.compute for one in alike}) > 1:
        raise BadRequest(f"GPU {quoted(name)} may be {_either(alike)}: give the whole name.")
    if alike:
        return min(alike, key=lambda one: len(one.name))
    names = {_compared(known): known for known, _, _ in catalogue.gpu_names()}
    nearest = difflib.get_close_matches(_compared(name), names, n=1)
    meant = f"did you mean {names[nearest[0]]}? Else " if nearest else ""
    raise BadRequest(
        f"GPU {quoted(name)} is not in the catalogue of {catalogue.as_of}: "
        f'{meant}give its compute capability as well, such as --gpu "NAME,8.6".'
    )


def _holds(known: str, asked: str) -> bool:
    """Whether the words of a name, as asked, stand together in a known one."""
    return f" {_compared(asked)} " in f" {_compared(known)} "


def _either(cards: Sequence[Card]) -> str:
    one_each = list({one.compute: one.title for one in cards}.values())
    return ", ".join(one_each[:-1]) + f" or {one_each[-1]}"


def _compared(name: str) -> str:
    return short(name.lower().replace("-", " "))


def short(name: str) -> str:
    """A GPU's name without the words that most share: "RTX 5090"."""
    return " ".join(word for word in name.split() if word.lower() not in {"nvidia", "geforce"})


# Answers


def builds(asked: Question, catalogue: Catalogue) -> list[Build]:
    """The builds of the releases asked about, newest first; with GPUs asked about, those with CUDA."""
    return [
        build
        for build in catalogue.builds[asked.machine]
        if asked.torch in {"auto", build.torch} and (build.cuda or not asked.cards)
    ]


def verdict(build: Build, asked: Question, catalogue: Catalogue) -> Verdict:
    """Whether `build` runs on all GPUs asked about, by the rule of `resolve`. Raises BadRequest for the driver."""
    driver = driver_version(asked.driver) if asked.driver else ()
    needs = {one: catalogue.need(build, asked.system, one.compute) for one in asked.cards}
    oldest = max((need.oldest for need in needs.values() if need), key=version, default="")
    gone_from = min((need.gone_from for need in needs.values() if need and need.gone_from), default=None)
    by_ptx = any(need.by_ptx for need in needs.values() if need)
    for one, need in needs.items():
        reason = _obstacle(one, need, driver, catalogue)
        if reason:
            # a driver helps only where there is code for every GPU
            return Verdict(build, False, by_ptx, oldest if all(needs.values()) else "", gone_from, reason)
    return Verdict(build, True, by_ptx, oldest, gone_from, "")


def _obstacle(one: Card, need: Need | None, driver: tuple[int, ...], catalogue: Catalogue) -> str:
    if need is None:
        return f"no code for {_dotted(one.compute)}"
    branch = catalogue.branch(one.compute)
    if driver and branch and driver[0] >= branch.gone_from:
        return f"the driver no longer knows {_dotted(one.compute)}: {branch.last} is the last branch"
    if driver and driver < version(need.oldest):
        return f"driver too old: {'its PTX ' if need.by_ptx else ''}needs {need.oldest}"
    return ""


def newest(verdicts: Iterable[Verdict]) -> Verdict | None:
    """What `resolve` takes: of the builds that run the newest with machine code, else the newest with PTX."""
    running = [one for one in verdicts if one.runs]
    return next((one for one in running if not one.by_ptx), running[0] if running else None)


def as_dict(asked: Question, catalogue: Catalogue) -> dict[str, Any]:
    """What is printed as JSON."""
    head: dict[str, Any] = {"as_of": catalogue.as_of, "machine": asked.machine}
    if not asked.cards:
        return {**head, "builds": [_facts(build, asked, catalogue) for build in builds(asked, catalogue)]}
    rows = [verdict(build, asked, catalogue) for build in builds(asked, catalogue)]
    best = newest(rows)
    return {
        **head,
        "os": asked.system,
        "driver": asked.driver or None,
        "gpus": [{"name": one.name, "capability": _dotted(one.compute)} for one in asked.cards],
        "newest": {"torch": best.build.torch, "build": best.build.name} if best else None,
        "notes": notes(asked, catalogue),
        "builds": [
            {
                **_facts(row.build, asked, catalogue),
                "runs": row.runs,
                "by": ("ptx" if row.by_ptx else "sass") if row.runs else None,
                "driver_from": row.oldest or None,
                "driver_below": row.gone_from,
                "reason": row.reason or None,
            }
            for row in rows
        ],
    }


def _facts(build: Build, asked: Question, catalogue: Catalogue) -> dict[str, Any]:
    return {
        "torch": build.torch,
        "date": catalogue.releases[build.torch]["date"],
        "build": build.name,
        "default": build.default,
        "index": catalogue.index(build),
        "sass": [_dotted(code) for code in build.sass],
        "ptx": [_dotted(code) for code in build.ptx],
        "oldest_driver": {system: _floor(build, system, catalogue) or None for system in SYSTEMS},
        "python": catalogue.pythons(build.torch, asked.machine),
        "torchvision": build.torchvision,
    }


def notes(asked: Question, catalogue: Catalogue) -> list[str]:
    """What the table itself cannot say about the GPUs asked about: one sentence each."""
    said = []
    branch = driver_version(asked.driver)[0] if asked.driver else None
    for one in asked.cards:
        first = catalogue.first_branch(one.compute, asked.system)
        if not catalogue.known(one.compute):
            said.append(f"No GPU of capability {_dotted(one.compute)} is in the catalogue of {catalogue.as_of}.")
        elif branch and first and branch < first:
            said.append(
                f"Drivers before {first} are older than {one.title}: the table counts only if nvidia-smi lists it."
            )
    return said


def _floor(build: Build, system: str, catalogue: Catalogue) -> str:
    return catalogue.floors[system][build.cuda[0]][0] if build.cuda else ""


# Tables


def build_rows(asked: Question, catalogue: Catalogue) -> Table:
    """Every build with what it holds and needs."""
    heading = ("torch", "date", "build", "machine code for", "driver from", "Python", "torchvision")
    return heading, [
        (
            build.torch,
            catalogue.releases[build.torch]["date"],
            _marked(build),
            _codes(build),
            _floor(build, asked.system, catalogue) or "-",
            _pythons(catalogue.pythons(build.torch, asked.machine)),
            build.torchvision,
        )
        for build in builds(asked, catalogue)
    ]


def verdict_rows(asked: Question, catalogue: Catalogue) -> Table:
    """Every build with whether it runs on the GPUs asked about."""
    rows = [verdict(build, asked, catalogue) for build in builds(asked, catalogue)]
    return ("torch", "build", "runs", "why not, or with which driver" if not asked.driver else "why not"), [
        (
            row.build.torch,
            _marked(row.build),
            "no" if not row.runs else "from PTX" if row.by_ptx else "yes",
            row.reason or ("" if asked.driver else _drivers(row)),
        )
        for row in rows
    ]


def _drivers(row: Verdict) -> str:
    return f"{row.oldest} or newer" + (f", below {row.gone_from}" if row.gone_from else "")


def _marked(build: Build) -> str:
    return f"{build.name}*" if build.default else build.name


def _codes(build: Build) -> str:
    """`"7.0 7.5 12.0 +PTX 12.0"`."""
    if not build.cuda:
        return "-"
    ptx = " ".join(map(_dotted, build.ptx))
    return " ".join(map(_dotted, build.sass)) + (f" +PTX {ptx}" if ptx else "")


def _dotted(compute: tuple[int, int]) -> str:
    return f"{compute[0]}.{compute[1]}"


def _pythons(versions: list[str]) -> str:
    """`"3.10-3.14 3.13t"`: the range, then the free-threaded ones."""
    usual = [one for one in versions if not one.endswith("t")]
    minors = [int(one.split(".")[1]) for one in usual]
    if len(usual) > 1 and minors == list(range(minors[0], minors[-1] + 1)):
        usual = [f"{usual[0]}-{usual[-1]}"]
    return " ".join([*usual, *(one for one in versions if one.endswith("t"))])


def as_text(asked: Question, catalogue: Catalogue) -> list[str]:
    """The answer for a terminal, not over 120 columns wide."""
    if not asked.cards:
        return [*aligned(*build_rows(asked, catalogue)), "", *_legend(asked, catalogue)]
    rows = [verdict(build, asked, catalogue) for build in builds(asked, catalogue)]
    where = f"{asked.machine}, {'WSL2' if asked.system == 'wsl2' else 'Linux'}"
    names = [f"{one.title}" for one in asked.cards]
    lines = [*names, f"{f'driver {asked.driver}' if asked.driver else 'any driver'}, {where}", ""]
    best = newest(rows)
    if best:
        needed = "" if asked.driver else f", with driver {_drivers(best)}"
        lines.append(f"{best.build.torch}+{best.build.name} is the newest torch that runs{needed}.")
    else:
        lines.append("No torch build that is asked about runs on " + ("it." if len(names) == 1 else "all of them."))
    return [*lines, *notes(asked, catalogue), "", *aligned(*verdict_rows(asked, catalogue)), "", _star(catalogue)]


def _legend(asked: Question, catalogue: Catalogue) -> list[str]:
    floors = ", ".join(f"CUDA {major} from {text}" for major, (text, _) in catalogue.floors["wsl2"].items())
    lines = [
        f"{asked.machine}, facts of {catalogue.as_of}.",
        _star(catalogue),
        "Code for 8.0 runs on 8.0, 8.6 and 8.9, not on 9.0; PTX is compiled by a driver as new as the build's toolkit.",
    ]
    return [*lines, f"Under WSL2 the Windows driver counts: {floors}."] if asked.system == "linux" else lines


def _star(catalogue: Catalogue) -> str:
    return f"* is what the default package index carries; other builds come from {catalogue.index_base}/<build>."


def aligned(heading: Row, rows: list[Row]) -> list[str]:
    """A table as lines, its columns under each other."""
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (heading, *rows)
    ]


def markdown(heading: Row, rows: list[Row]) -> str:
    """A table in Markdown."""
    lines = [heading, ("---",) * len(heading), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") or " " for cell in line) + " |" for line in lines)

"""What an answer may be, alone and together with the others. Pure: answers in, problems out.

The same rules serve the pre-generation hook, the command line and the tests. The choices themselves stand in
template/cookiecutter.json and nowhere else.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

TEMPLATE = Path(__file__).resolve().parents[1] / "template"

# A folder name, an image name and a Compose project name at once: the strictest common form.
SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
# Windows keeps these names for devices, whatever the extension.
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
JINJA = ("{{", "{%", "{#", "}}", "%}", "#}")
# Largest stride of the networks: P5 models end at 32, P6 models (yolov5n6 …) at 64.
STRIDE, STRIDE_P6 = 32, 64
LONGEST_SIDE = 4096
MOST_CLASSES = 1000


class Problem(NamedTuple):
    """An answer that cannot be used: which question, what is wrong, what mends it."""

    question: str
    wrong: str
    mend: str

    def __str__(self) -> str:
        return f"{self.question}: {self.wrong}. {self.mend}."


def questions() -> dict[str, Any]:
    """The questions of template/cookiecutter.json in order: a text default or a list of choices, default first."""
    raw: dict[str, Any] = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))
    return {key: value for key, value in raw.items() if not key.startswith("_")}


def check(answers: Mapping[str, Any], python_bounds: Mapping[str, list[str]]) -> list[Problem]:
    """Every problem of `answers`, all at once.

    `python_bounds` says for each torch release the Pythons it has wheels for, as the catalogue knows them.
    """
    return [*_alone(answers), *_together(answers, python_bounds)]


def shown(value: str) -> str:
    """`value` as it may stand in a message: short, on one line, control characters escaped."""
    text = value if len(value) <= 40 else value[:39] + "…"
    return "'" + "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text) + "'"


def _alone(answers: Mapping[str, Any]) -> Iterator[Problem]:
    asked = questions()
    for question, default in asked.items():
        value = answers.get(question)
        if not isinstance(value, str):
            yield Problem(question, "has no answer", "Give it a text")
        elif isinstance(default, list):
            if value not in default:
                yield Problem(question, f"{shown(value)} is not a choice", f"Choose one of: {', '.join(default)}")
        else:
            yield from (Problem(question, *found) for found in RULES[question](value))


def _slug(value: str) -> Iterator[tuple[str, str]]:
    if not SLUG.fullmatch(value):
        yield (
            f"{shown(value)} cannot name a folder, an image and a Compose project",
            "Use 1 to 40 lower-case letters, digits and hyphens, with a letter or digit at both ends",
        )
    elif value in RESERVED:
        yield f"{shown(value)} is a device name on Windows", "Choose another, for example my-detector"


def _line(longest: int) -> Callable[[str], Iterator[tuple[str, str]]]:
    def rule(value: str) -> Iterator[tuple[str, str]]:
        if not value.strip():
            yield "is empty", "Write a few words"
        if value != value.strip():
            yield f"{shown(value)} begins or ends with a blank", "Remove it"
        if len(value) > longest:
            yield f"is {len(value)} characters long", f"Use at most {longest}"
        # Cc control, Cf invisible (such as those that reverse the reading direction), Cs lone surrogates, Zl and Zp
        # line ends of Unicode; the two joiners are part of scripts and of emoji
        if any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and c not in "\u200c\u200d" for c in value):
            yield f"{shown(value)} holds a line end or another invisible character", "Keep it to one plain line"
        if any(mark in value for mark in JINJA):
            # `cruft update` renders recorded answers, so they would run there.
            yield f"{shown(value)} holds template marks", "Leave out {{ }}, {% %} and {# #}"

    return rule


def _image_size(value: str) -> Iterator[tuple[str, str]]:
    if not re.fullmatch(r"[1-9][0-9]{1,3}", value) or int(value) % STRIDE or int(value) > LONGEST_SIDE:
        yield (
            f"{shown(value)} is not a size the network can take",
            f"Use a multiple of {STRIDE} from {STRIDE} to {LONGEST_SIDE}, for example 640",
        )


def _class_names(value: str) -> Iterator[tuple[str, str]]:
    yield from _line(8000)(value)
    names = [name.strip() for name in value.split(",")]
    if any(not name for name in names):
        yield "one of the names is empty", "Separate the names by single commas"
    if len(names) > MOST_CLASSES or any(len(name) > 50 for name in names):
        yield f"holds {len(names)} names or a very long one", f"Use at most {MOST_CLASSES} names of 50 characters"
    twice = sorted({name for name in names if names.count(name) > 1 and name})
    if twice:
        yield f"{shown(twice[0])} is there twice", "Every class needs its own name"


RULES: dict[str, Callable[[str], Iterator[tuple[str, str]]]] = {
    "project_name": _line(80),
    "project_slug": _slug,
    "description": _line(200),
    "author_name": _line(80),
    "image_size": _image_size,
    "class_names": _class_names,
}


def _together(answers: Mapping[str, Any], python_bounds: Mapping[str, list[str]]) -> Iterator[Problem]:
    torch, python = answers.get("torch_version"), answers.get("python_version")
    pythons = python_bounds.get(str(torch))
    if pythons is not None and python not in pythons:
        offered = [version for version in questions()["python_version"] if version in pythons]
        yield Problem(
            "python_version",
            f"torch {torch} has no wheels for Python {python}",
            f"Choose Python {' or '.join(offered)}, or another torch_version",
        )
    size = str(answers.get("image_size"))
    if (
        str(answers.get("model")).endswith("6")
        and re.fullmatch(r"[0-9]{1,4}", size)
        and not int(size) % STRIDE
        and int(size) % STRIDE_P6
    ):
        yield Problem(
            "image_size",
            f"{answers.get('model')} needs a multiple of {STRIDE_P6}, and {size} is none",
            f"Use {int(size) // STRIDE_P6 * STRIDE_P6 + STRIDE_P6}, or a model without the 6",
        )

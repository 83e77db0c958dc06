"""Answers are refused all at once, each with its mend, or accepted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from generator import answers
from hooks.pre_gen_project import python_bounds

DEFAULTS: dict[str, Any] = {
    **{key: value[0] if isinstance(value, list) else value for key, value in answers.questions().items()},
    "project_slug": "my-detector",
}


def problems(**changed: Any) -> list[str]:
    return [str(problem) for problem in answers.check({**DEFAULTS, **changed}, python_bounds())]


def test_the_defaults_are_accepted() -> None:
    assert problems() == []


def test_every_open_question_has_a_rule() -> None:
    open_questions = {key for key, default in answers.questions().items() if not isinstance(default, list)}
    assert open_questions == set(answers.RULES)


@pytest.mark.parametrize("slug", ["a", "my-detector", "3d", "x" * 40, "a-1-b"])
def test_good_slugs(slug: str) -> None:
    assert problems(project_slug=slug) == []


@pytest.mark.parametrize(
    "slug",
    [
        "",
        "../x",
        "a/b",
        "A",
        "-a",
        "a-",
        "a b",
        "a.b",
        "x" * 41,
        "con",
        "lpt1",
        "ä",
        "a;b",
        "$(id)",
        "a\n",
        "{{x}}",
        "😀",
        ".",
    ],
)
def test_bad_slugs(slug: str) -> None:
    (problem,) = problems(project_slug=slug)
    assert problem.startswith("project_slug: ")


@pytest.mark.parametrize(
    "text",
    [
        "O'Connor",
        'say "hi"',
        "C:\\new\\x41",
        "ends in \\",
        "$(touch x)",
        "a; rm -rf ~",
        "😀 fast",
        "<script>",
        "`id`",
        "# no",
        "%s",
        "y",
    ],
)
@pytest.mark.parametrize("question", ["project_name", "description", "author_name"])
def test_odd_texts_are_accepted(question: str, text: str) -> None:
    assert problems(**{question: text}) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        " a",
        "a ",
        "two\nlines",
        "tab\there",
        "\x00",
        "\x1b[31m",
        "{{ 7*7 }}",
        "{% raw %}",
        "x" * 300,
        "a\u2028b",
        "\u202eevil",
        "\u2066evil\u2069",
        "\u200b",
        "\ud800",
    ],
)
@pytest.mark.parametrize("question", ["project_name", "description", "author_name", "class_names"])
def test_bad_texts_are_refused(question: str, text: str) -> None:
    if question == "class_names" and text == "x" * 300:
        text = "x" * 300  # one class name far too long
    found = problems(**{question: text})
    assert found
    assert all(problem.startswith(question) for problem in found)


@pytest.mark.parametrize("size", ["0", "-32", "640.0", "abc", "100", "8192", "", "0640", "1e3", "٦٤٠"])
def test_bad_image_sizes(size: str) -> None:
    (problem,) = problems(image_size=size)
    assert "multiple of 32" in problem


def test_a_p6_model_needs_a_multiple_of_64() -> None:
    (problem,) = problems(model="yolov5s6", image_size="672")
    assert problem == (
        "image_size: yolov5s6 needs a multiple of 64, and 672 is none. Use 704, or a model without the 6."
    )


def test_a_size_of_thousands_of_digits_is_a_problem_not_a_traceback() -> None:
    assert problems(model="yolov5n6", image_size="9" * 5000)


def test_torch_without_wheels_for_that_python() -> None:
    (problem,) = problems(torch_version="2.15.0", python_version="3.10")
    assert problem == (
        "python_version: torch 2.15.0 has no wheels for Python 3.10."
        " Choose Python 3.11 or 3.12 or 3.13, or another torch_version."
    )


@pytest.mark.parametrize("names", ["a,,b", "a,b,a", ",", "x" * 51, ",".join(f"c{i}" for i in range(1001))])
def test_bad_class_names(names: str) -> None:
    assert problems(class_names=names)


def test_all_problems_come_at_once() -> None:
    assert len(problems(project_slug="A", torch_version="1.0", image_size="7", description="")) == 4


def test_messages_are_one_line_and_printable() -> None:
    for problem in problems(project_slug="\x1b[2J\n" * 50, description="\r" * 400):
        assert problem.isprintable()
        assert len(problem) < 250


def test_every_offered_torch_is_in_the_catalogue_and_has_the_default_python() -> None:
    bounds = python_bounds()
    for release in answers.questions()["torch_version"]:
        assert release == "auto" or DEFAULTS["python_version"] in bounds[release]


def test_every_question_and_choice_that_needs_words_has_them() -> None:
    raw = json.loads((answers.TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))
    assert set(raw["__prompts__"]) == set(answers.questions())
    for question, prompt in raw["__prompts__"].items():
        if isinstance(prompt, dict):
            assert set(prompt) - {"__prompt__"} <= set(raw[question])

"""`python -m generator new | doctor | resolve | matrix | catalog | options`: what the repository itself can do."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .hostkit.__main__ import add_doctor, add_resolve
from .hostkit.catalogue import BadRequest, Catalogue
from .hostkit.terminal import printable, tolerate
from .matrix import add_matrix

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = ROOT / "template" / "cookiecutter.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is what it says in its help."""
    parser = argparse.ArgumentParser(
        prog="python -m generator", description="Make projects, and ask what they will do."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_new(
        commands.add_parser("new", help="make a project without asking: key=value for answers, defaults for the rest")
    )
    add_doctor(commands.add_parser("doctor", help="check this host; exit status 0 fine, 1 a check failed, 2 no answer"))
    add_resolve(
        commands.add_parser("resolve", help="the torch build for GPUs and a driver; 0 ok, 1 partial or impossible")
    )
    add_matrix(commands.add_parser("matrix", help="every torch build, or which run on a GPU with a driver"))
    _add_catalog(commands.add_parser("catalog", help="check catalog.yaml and rewrite catalog.json and docs/matrix.md"))
    options = commands.add_parser("options", help="print the questions of the template as a Markdown table")
    options.set_defaults(run=lambda _: _options())
    tolerate(sys.stdout, sys.stderr)
    chosen = parser.parse_args(arguments)
    try:
        return int(chosen.run(chosen))
    except BadRequest as error:
        print(printable(f"generator: {error}"), file=sys.stderr)
        return 2
    except BrokenPipeError:  # `… | head` has seen enough
        sys.stderr.close()
        return 0


# new


def _add_new(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("answers", nargs="*", metavar="key=value", help="see `options` for the keys")
    parser.add_argument("--output", type=Path, default=Path(), metavar="DIR", help="where the project's folder is made")
    parser.set_defaults(run=_new)


def _new(options: argparse.Namespace) -> int:
    answers = checked_answers(options.answers, questions(QUESTIONS))
    try:
        from cookiecutter.exceptions import CookiecutterException, FailedHookException  # type: ignore[import-untyped]  # noqa: PLC0415 (slow)
        from cookiecutter.main import cookiecutter  # type: ignore[import-untyped]  # noqa: PLC0415 (slow)
    except ImportError:
        raise BadRequest("cookiecutter is not installed: pip install cookiecutter.") from None
    logging.getLogger("cookiecutter").setLevel(logging.CRITICAL)  # it logs what it raises as well
    try:
        cookiecutter(str(ROOT), no_input=True, extra_context=answers, output_dir=str(options.output))
    except FailedHookException:
        raise BadRequest("the project was not made: a hook refused it, see above.") from None
    except (CookiecutterException, ValueError) as error:
        raise BadRequest(" ".join(str(error).split()).rstrip(".") + ".") from None
    except OSError as error:
        # cookiecutter raises its own, which holds neither name nor reason
        reason = error.strerror or getattr(error.__cause__, "strerror", None) or str(error)
        where = error.filename or options.output
        raise BadRequest(f"{where} cannot be written ({reason}): name another folder with --output.") from None
    return 0


def checked_answers(pairs: Sequence[str], known: dict[str, Any]) -> dict[str, str]:
    """{"key": "value"} from `key=value` texts. Raises BadRequest for a key or a choice that does not exist.

    cookiecutter renders every value as a Jinja template, so a value that holds one is refused rather than executed.
    """
    answers = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise BadRequest(f"{pair!r} is not key=value: write e.g. project_name='My Detector'.")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            meant = f"did you mean {near[0]}?" if near else "see `python -m generator options`."
            raise BadRequest(f"there is no question {key!r}: {meant}")
        if any(mark in value for mark in ("{{", "{%", "{#")):
            raise BadRequest(f"{key}: the value holds Jinja ({{{{, {{% or {{#), which would be executed: remove it.")
        choices = known[key]
        if isinstance(choices, list) and value not in choices:
            near = difflib.get_close_matches(value, choices, n=1)
            meant = f"did you mean {near[0]}?" if near else f"choose from {', '.join(choices)}."
            raise BadRequest(f"{key}: {value!r} is not a choice: {meant}")
        answers[key] = value
    return answers


def questions(path: Path = QUESTIONS) -> dict[str, Any]:
    """The questions of the template, in order: {key: default, or the list of choices}. Raises BadRequest."""
    return {key: value for key, value in _template(path).items() if not key.startswith("_")}


def _template(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRequest(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise BadRequest(f"{path} is not JSON: {error}.") from None
    if not isinstance(data, dict):
        raise BadRequest(f"{path} does not hold an object of questions.")
    return data


# catalog


def _add_catalog(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 when a file is stale")
    parser.set_defaults(run=_catalog)


def _catalog(options: argparse.Namespace) -> int:
    from . import catalog, matrix_page  # noqa: PLC0415 (PyYAML, which only this command needs)

    try:
        data = catalog.load()
    except catalog.BadCatalog as error:
        raise BadRequest(str(error)) from None
    compiled = catalog.compile_catalog(data)
    page = matrix_page.page(data, Catalogue(json.loads(compiled)))
    stale = 0
    for path, text in ((catalog.COMPILED, compiled), (matrix_page.PAGE, page)):
        current = path.read_text(encoding="utf-8") if path.exists() else ""
        if options.check and current != text:
            print(f"generator: {path.name} is stale: run python -m generator catalog.", file=sys.stderr)
            stale = 1
        elif not options.check:
            if current != text:
                path.write_text(text, encoding="utf-8", newline="\n")
            print(f"{path.name}: {'rewritten' if current != text else 'up to date'}")
    return stale


# options


def _options() -> int:
    print(options_table(_template(QUESTIONS)))
    return 0


def options_table(template: dict[str, Any]) -> str:
    """The questions as a Markdown table: question, default, choices, what it means (from `__prompts__`)."""
    prompts = template.get("__prompts__", {})
    rows = [("question", "default", "choices", "what it means"), ("---",) * 4]
    for key, value in template.items():
        if key.startswith("_"):
            continue
        prompt = prompts.get(key, "")
        labels = prompt if isinstance(prompt, dict) else {}
        meaning = labels.get("__prompt__", "") if labels else prompt
        if isinstance(value, list):
            # labels repeat their choice, because cookiecutter shows them instead of it
            described = [f"`{choice}`{labels.get(choice, '').removeprefix(choice)}" for choice in value]
            rows.append((f"`{key}`", f"`{value[0]}`", "<br>".join(described), meaning))
        else:
            derived = "{{" in str(value)
            rows.append((f"`{key}`", "from the answers above" if derived else f"`{value}`", "any text", meaning))
    return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows)


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())

"""Finish a project: the host check goes in, updates are linked, git knows the files, the user reads what comes next.

Nothing is downloaded, nothing outside the project is written, and nothing that this host lacks makes it fail.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any

from generator.hostkit.terminal import printable, tolerate

ROOT = Path(__file__).resolve().parents[1]
# Seconds a hook waits for the host's own programs. A slow answer is left to the check when the container opens.
PATIENCE = 2.0
# What of the repository decides what a project looks like.
SOURCES = ("template", "hooks", "generator")


GIT_PLACES = {
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_PREFIX",
    "GIT_OBJECT_DIRECTORY",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
}


class CannotRun(Exception):
    """This host cannot run the project, and the answers want none then. Holds the lines that say why."""


def main(answers: Mapping[str, Any]) -> None:
    """Complete the project in the current directory, or exit 1 with a sentence: cookiecutter then removes it."""
    tolerate(sys.stdout, sys.stderr)
    project = Path.cwd()
    try:
        install_hostkit(project)
        remove_what_was_not_chosen(project)
    except OSError as error:
        sys.exit(f"\nNo project was made: {error.filename} could not be written ({error.strerror}).\n")
    # Beside the host check, which waits for other programs too.
    tracking = Thread(target=link_and_track, args=(project, answers))
    tracking.start()
    try:
        words = closing_words(project, answers)
    except CannotRun as refusal:
        tracking.join()
        because = "because host_check is strict and this host cannot run it; host_check=advise makes it anyway"
        sys.exit("\n".join(["", f"No project was made, {because}:", *(f"  {line}" for line in refusal.args[0]), ""]))
    tracking.join()
    # A name that the terminal's encoding lacks, or a reader that went away (`| head`), must not cost the project.
    try:
        print("\n".join(words), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def link_and_track(project: Path, answers: Mapping[str, Any]) -> None:
    """Let `cruft update` find its way back, and git know the files."""
    # cruft sets `_commit` and keeps its own link; a .git of ours would end up in its patches.
    if "_commit" not in answers:
        link_for_updates(project, answers)
        track(project)


def install_hostkit(project: Path) -> None:
    """Copy the host check and its facts into the project, where it runs without this repository."""
    source, target = ROOT / "generator", project / ".devcontainer"
    (target / "hostkit").mkdir(exist_ok=True)
    for path in [source / "catalog.json", *sorted((source / "hostkit").glob("*.py"))]:
        (target / path.relative_to(source)).write_bytes(path.read_bytes())


def remove_what_was_not_chosen(project: Path) -> None:
    """Remove folders in which every file was left out by an answer, and compiled Python of the template's own tests."""
    for folder in sorted((path for path in project.rglob("*") if path.is_dir()), reverse=True):
        if folder.name == "__pycache__":
            for file in folder.iterdir():
                file.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()


def link_for_updates(project: Path, answers: Mapping[str, Any]) -> None:
    """Write .cruft.json, so that `cruft check`, `diff` and `update` work on a project of plain cookiecutter.

    Only when this repository has an origin and its template is unchanged since the commit that the link names.
    """
    if not (ROOT / ".git").exists():  # a folder of another repository: its commits are not ours
        return
    status = git(ROOT, "status", "--porcelain=v2", "--branch", "--", *SOURCES)
    if status is None:
        return
    about = dict(line[2:].split(" ", 1) for line in status.splitlines() if line.startswith("# "))
    changed = any(not line.startswith("# ") for line in status.splitlines())
    commit, origin = about.get("branch.oid", ""), address(git(ROOT, "remote", "get-url", "origin") or "")
    if changed or not origin or commit in ("", "(initial)"):
        return
    kept = {key: value for key, value in answers.items() if not key.startswith("_")}
    link = {
        "template": origin,
        "commit": commit,
        "checkout": answers.get("_checkout") or None,
        "context": {"cookiecutter": {**kept, "_template": origin}},
        "directory": "template",
    }
    text = json.dumps(link, indent=2, ensure_ascii=False) + "\n"
    (project / ".cruft.json").write_bytes(text.encode("utf-8"))


def address(origin: str) -> str:
    """`origin` as it may be committed and used from elsewhere: without a password or token, a local path in full."""
    if "://" in origin:
        return re.sub(r"^([a-z+]+://)[^/@]*@", r"\1", origin)
    if origin and ":" not in origin.split("/", maxsplit=1)[0]:  # unlike git@host:path
        return str((ROOT / origin).resolve())
    return origin


def track(project: Path) -> None:
    """Start a git repository that knows every file, unless the project lies inside another one.

    Known, not yet stored (`--intent-to-add`): `git commit --all` does that, and storing costs a quarter of the time of
    a generation.
    """
    inside = any((folder / ".git").exists() for folder in project.parents)
    if not inside and git(project, "init", "--quiet") is not None:
        git(project, "add", "--intent-to-add", ".")


def git(folder: Path, *arguments: str) -> str | None:
    """What git answers in `folder`, or None when it fails or is not installed."""
    # A GIT_DIR or GIT_INDEX_FILE of the caller (a git hook, say) would lead into another repository.
    environment = {name: value for name, value in os.environ.items() if name not in GIT_PLACES}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def closing_words(project: Path, answers: Mapping[str, Any]) -> list[str]:
    """What this host has, which torch build it would use and why, and the next three commands: 25 lines at most."""
    # The hook stands in the project; the shell in which the user goes on stands in PWD.
    shell = Path(os.environ.get("PWD") or project.parent)
    place = str(project.relative_to(shell) if shell in project.parents else project)
    return [
        "",
        f"{answers['project_name']} is in {place}/",
        "",
        "This host",
        *(f"  {line}" for line in host_words(answers)),
        "",
        "Next",
        f"  cd {shlex.quote(place)}",
        "  code .         and choose 'Reopen in Container'",
        "  lab smoke      in its terminal: proves data, training and export on this machine",
    ]


def host_words(answers: Mapping[str, Any]) -> list[str]:
    """The host check in short. A fault of ours in it must not cost the user the project.

    Raises CannotRun when the answers say that a host which cannot run the project gets none.
    """
    # cruft sets `_commit`: it renders the project again for an update, which may happen on any machine.
    strict = answers.get("host_check") == "strict" and "_commit" not in answers
    try:
        # Inside the guard, with everything that they import.
        from generator.hostkit import decision, doctor, probe, report  # noqa: PLC0415
        from generator.hostkit.catalogue import Catalogue  # noqa: PLC0415
        from generator.hostkit.program import LIMIT  # noqa: PLC0415
        from generator.hostkit.project import Project  # noqa: PLC0415
        from generator.hostkit.wishes import Wishes  # noqa: PLC0415

        catalogue = Catalogue.read(ROOT / "generator" / "catalog.json")
        # Without asking the container engine, which takes longer than everything else here: nothing of it decides the
        # build, and it is looked at when the container opens. Who is strict wants it looked at now.
        facts = probe.probe(limit=LIMIT if strict else PATIENCE, docker=strict)
        torch, python = str(answers["torch_version"]), str(answers["python_version"])
        answer = doctor.resolution(facts, catalogue, torch, python)
        findings = doctor.examine(facts, answer, catalogue, torch, python)
        words = report.summary(facts, answer, findings)
        if not facts.gpus:
            decided = decision.decide(facts, Project(torch=torch, python=python), Wishes(), catalogue)
            words.append(printable(decided.summary.replace("torch ", "torch   ", 1)))
        failed = strict and doctor.exit_status(findings) != 0
    except Exception as error:
        return [
            f"This host could not be checked ({type(error).__name__}: {error}).",
            "It is looked at again when the container opens.",
        ]
    if failed:
        raise CannotRun(words)
    return words

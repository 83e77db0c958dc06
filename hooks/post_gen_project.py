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

from generator.hostkit.terminal import tolerate
from hooks.host_check import look

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
    words = closing_words(project, answers)
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
    """Remove folders of the template in which every file was left out by an answer, and its tests' compiled Python.

    Only what the template itself makes: in a folder that was there before, everything else is somebody's own.
    """
    source = next((ROOT / "template").glob("{{*}}"))
    for folder, _, files in os.walk(source, topdown=False):
        target = project / Path(folder).relative_to(source)
        if target == project or target.is_symlink() or not target.is_dir():
            continue
        if target.name == "__pycache__":
            for name in files:
                (target / name).unlink(missing_ok=True)
        if not any(target.iterdir()):
            target.rmdir()


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
        return re.sub(r"^([\w+.-]+://)[^/]*@", r"\1", origin)  # a password may hold an @ of its own
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
        *(f"  {line}" for line in look(answers, patience=PATIENCE, engine=False).words),
        "",
        "Next",
        f"  cd {shlex.quote(place)}",
        "  code .         and choose 'Reopen in Container'",
        "  lab smoke      in its terminal: proves data, training and export on this machine",
    ]

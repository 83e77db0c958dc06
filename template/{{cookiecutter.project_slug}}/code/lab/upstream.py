"""YOLOv5's own source: one pinned commit, fetched into code/yolov5, verified by content, never edited.

It is AGPL-3.0 and not an installable package, so a project fetches it instead of carrying it.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from lab.credentials import hidden
from lab.errors import FAILED, LabError
from lab.project import Project

COMMIT = "5081342f04fb287fc2e5f2b5a4e06752b7937b1c"
DIGEST = "872ed71861fb663a575a249f3e2f5ef2e3ee433cf008f36d95f5c77bc5faf8c9"  # of the pinned content, see `digest`
URL = "https://github.com/ultralytics/yolov5"
PINNED = ".pinned"  # in code/yolov5: one "sha1 path" line a file; the digest covers it
SHALLOW_LIMIT, FULL_LIMIT = 90, 300  # seconds

Files = dict[str, bytes]


def blob(content: bytes) -> str:
    """The name git gives to `content`: SHA-1 over a header and the bytes, whatever the file's mode."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def listing(files: Files) -> str:
    """One "sha1 path" line a file, sorted by path."""
    return "".join(f"{blob(content)} {path}\n" for path, content in sorted(files.items()))


def digest(lines: str) -> str:
    """SHA-256 of a listing: equal for a git checkout, a tarball and a zip of the same commit."""
    return hashlib.sha256(lines.encode()).hexdigest()


def present(target: Path) -> bool:
    """Whether `fetch` has put a copy there."""
    return (target / PINNED).is_file()


def changed(target: Path) -> list[str]:
    """Files of the fetched copy that differ from the pinned commit or are gone. Files that upstream does not have
    (compiled Python, a checkpoint someone put there) do not count."""
    try:
        lines = (target / PINNED).read_text(encoding="utf-8")
    except OSError:
        return [PINNED]
    if digest(lines) != DIGEST:
        return [PINNED]
    return [path for sha1, path in (line.split(" ", 1) for line in lines.splitlines()) if sha1 != _sha1(target / path)]


def _sha1(file: Path) -> str:
    try:
        return blob(file.read_bytes())
    except OSError:
        return ""


def fetch(project: Project) -> str:
    """Bring the pinned commit into `project.upstream`; returns one sentence on what was done.

    Sources in this order: an archive yolov5-*.tar.gz or yolov5-*.zip in wheelhouse/, then git from $YOLOV5_GIT_URL.
    The new copy appears in one step, or not at all. Raises LabError when no source has the pinned content.
    """
    target = project.upstream
    if present(target):
        spoilt = changed(target)
        if not spoilt:
            return f"YOLOv5 {COMMIT[:8]} is already here, verified: {project.show(target)}"
        raise LabError(
            f"{project.show(target)} differs from YOLOv5 {COMMIT[:8]} in {_some(spoilt)}: move the directory away, "
            "then run `lab fetch` again",
            FAILED,
        )
    if target.is_dir() and any(target.iterdir()):
        raise LabError(f"{project.show(target)} holds files that `lab fetch` did not put there: move them away", FAILED)
    problems: list[str] = []
    for archive in _archives(project.wheelhouse):
        try:
            files = read_archive(archive)
            _verify(files, archive.name)
        except LabError as error:
            problems.append(error.sentence)
            continue
        _install(files, target)
        return f"YOLOv5 {COMMIT[:8]} from {project.show(archive)}, verified: {project.show(target)}"
    url = os.environ.get("YOLOV5_GIT_URL") or URL
    try:
        files = from_git(url)
        _verify(files, url)
    except LabError as error:
        problems.append(error.sentence)
        raise LabError(
            f"YOLOv5's source could not be had: {'; '.join(problems)}. Set YOLOV5_GIT_URL to a git mirror, or put an "
            f"archive of commit {COMMIT} into wheelhouse/ as yolov5-{COMMIT[:8]}.tar.gz",
            FAILED,
        ) from error
    _install(files, target)
    return f"YOLOv5 {COMMIT[:8]} from {hidden(url)}, verified: {project.show(target)}"


def _archives(wheelhouse: Path) -> list[Path]:
    return sorted([*wheelhouse.glob("yolov5-*.tar.gz"), *wheelhouse.glob("yolov5-*.zip")])


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more files" if len(names) > 3 else "")


def _verify(files: Files, source: str) -> None:
    if digest(listing(files)) != DIGEST:
        raise LabError(f"{source} does not hold the pinned content of commit {COMMIT[:8]} ({len(files)} files)", FAILED)


def read_archive(archive: Path) -> Files:
    """Contents by path, without the one directory at the top that GitHub's archives have.

    A symbolic link becomes a file with the link's target as its text, which git hashes the same, so nothing in an
    archive can point outside. Raises LabError for a broken archive or a path that leaves it.
    """
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as opened:
                pairs = [(i.filename, opened.read(i)) for i in opened.infolist() if not i.is_dir()]
        else:
            with tarfile.open(archive) as tar:
                pairs = list(_members(tar))
    # zlib, lzma, encryption and unknown compression raise errors of their own: a damaged archive has many faces
    except Exception as error:
        words = " ".join(str(error).split())[:120]
        raise LabError(f"{archive.name} cannot be read ({words})", FAILED) from error
    return _without_top(pairs, archive.name)


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in tar:
        if member.issym():
            yield member.name, member.linkname.encode()
        elif member.isfile():
            handle = tar.extractfile(member)
            yield member.name, handle.read() if handle else b""


def _without_top(pairs: Iterable[tuple[str, bytes]], source: str) -> Files:
    files: Files = {}
    for name, content in pairs:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise LabError(f"{source} holds a path that leaves it ({name}) and is refused", FAILED)
        if path.parts:
            files[str(path)] = content
    tops = {PurePosixPath(path).parts[0] for path in files}
    if len(tops) == 1 and "train.py" not in files:
        files = {str(PurePosixPath(*PurePosixPath(path).parts[1:])): content for path, content in files.items()}
    return files


def from_git(url: str) -> Files:
    """The pinned commit of the repository at `url`: that commit alone, or all of it where a server refuses that."""
    if shutil.which("git") is None:
        raise LabError("git is not installed", FAILED)
    with tempfile.TemporaryDirectory(prefix="lab-fetch-") as scratch:
        _git(scratch, ["init", "--quiet", "--bare", "."], SHALLOW_LIMIT)
        try:
            _git(scratch, ["fetch", "--quiet", "--depth", "1", "--no-tags", "--", url, COMMIT], SHALLOW_LIMIT)
        except LabError as refusal:
            if not any(sign in refusal.sentence for sign in ("not our ref", "unadvertised", "shallow", "dumb http")):
                raise
            _git(scratch, ["fetch", "--quiet", "--", url, "+refs/heads/*:refs/heads/*"], FULL_LIMIT)
        tar = _git(scratch, ["archive", "--format=tar", COMMIT], SHALLOW_LIMIT)
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return dict(_members(opened))


def _git(directory: str, arguments: list[str], limit: int) -> bytes:
    """Run git without questions and within `limit` seconds. Raises LabError with git's last line."""
    slow = ["-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=20"]  # bytes a second, seconds
    ssh = "ssh -o BatchMode=yes -o ConnectTimeout=15"
    environment = {"GIT_SSH_COMMAND": ssh, **os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", "-C", directory, *slow, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"git gave no answer within {limit} s", FAILED) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        raise LabError(f"git {arguments[0]}: {' '.join(said[-2:])}".rstrip("."), FAILED)
    return done.stdout


def _install(files: Files, target: Path) -> None:
    """Write `files` beside `target` and rename, so that a half-written copy is never taken for the real one."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".yolov5-", dir=target.parent) as scratch:
            fresh = Path(scratch) / "yolov5"
            for path, content in files.items():
                file = fresh / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            (fresh / PINNED).write_text(listing(files), encoding="utf-8")
            if target.is_dir() and not any(target.iterdir()):
                target.rmdir()
            try:
                fresh.rename(target)
            except OSError:
                if not present(target):  # another `lab fetch` may have been first, with the same content
                    raise
    except OSError as error:
        raise LabError(f"{target} cannot be written: {error.strerror}", FAILED) from error

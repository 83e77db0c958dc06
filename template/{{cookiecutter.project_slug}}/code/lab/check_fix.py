"""`lab data check --fix`: move what is broken aside, with a log that brings it back. Nothing of the data is deleted."""

from __future__ import annotations

import errno
import filecmp
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.check_kinds import KINDS
from lab.check_store import Found, Row, Store, place
from lab.dataset import Dataset, label_path
from lab.errors import FAILED, LabError
from lab.project import Project

LOG = "log.jsonl"
LARGEST_SHARE = 0.5  # of a split; more is one wrong setting, and not so many broken files
NAMED = 5  # files that one sentence names


@dataclass
class Moved:
    """What `--fix` did."""

    aside: Path
    pictures: int = 0
    arrays: int = 0
    lines: int = 0  # taken out of lists
    caches: int = 0
    left: list[Found] = field(default_factory=list)  # the same file in two splits, by directories: not ours to move
    refused: list[str] = field(default_factory=list)  # what could not be moved, shortened or deleted, and why


def aside_of(dataset: Dataset) -> Path:
    """The directory `aside` of a data set: beside its pictures, and never inside a directory that engines read."""
    sources = [source for found in dataset.sources.values() for source in found]
    directories = [source for source in sources if source.suffix != ".txt"]
    base = Path(os.path.commonpath([source.parent for source in sources]))
    while base.name == "images" or any(base == source or base.is_relative_to(source) for source in directories):
        base = base.parent
    return (dataset.file.parent if base == base.parent else base) / "aside"


def set_aside(dataset: Dataset, project: Project) -> Moved:
    """Move the pictures at fault, with their labels, into `aside_of`; take them out of lists; drop old label caches.

    Arrays are moved, an engine's too: by its header alone nobody can be sure that it is not somebody's own. A picture
    stays with its label where one of the two cannot be moved. `check.run` must have come first. Raises LabError.
    """
    moved = Moved(aside_of(dataset))
    with Store(place(project, dataset)) as store:
        chosen = _chosen(store)
        _require_few(dataset, store, chosen)
        with _Log(moved.aside) as log:
            lines = _move_pictures(dataset, store, chosen, log, moved)
            for split, sources in dataset.sources.items():
                for source in (source for source in sources if source.suffix == ".txt"):
                    with _refusals(moved, source):
                        moved.lines += _shorten(source, {path for its, path in lines if its == split}, log)
            for found in (found for found in store.faults() if found.kind in ("cache", "array")):
                with _refusals(moved, found.path):
                    if found.path.endswith(".npy"):
                        target = moved.aside / found.kind / "images" / found.split / _within(dataset, found)
                        log.move([(Path(found.path), target)])
                        moved.arrays += 1
                    else:
                        Path(found.path).unlink(missing_ok=True)
                        moved.caches += 1
    return moved


def _move_pictures(
    dataset: Dataset, store: Store, chosen: dict[tuple[str, str], Found], log: _Log, moved: Moved
) -> set[tuple[str, str]]:
    """Move the chosen pictures; returns those, by split and path, whose lines lists must lose."""
    lines = set(chosen)
    for (split, path), found in chosen.items():
        row = store.picture(split, path)
        if row is None or found.kind == "missing":
            continue
        if any((other, path) not in chosen for other in store.splits_of(path)):
            if not _listed(dataset, split):
                moved.left.append(found)
                lines.discard((split, path))
            continue
        lines.discard((split, path))
        with _refusals(moved, path):
            _move(row, found.kind, store, chosen, log)
            moved.pictures += 1
            lines.add((split, path))
    return lines


def _within(dataset: Dataset, found: Found) -> str:
    """The path of a file within the source that it was found in; its name, where a list names its picture."""
    file = Path(found.path)
    sources = [source for source in dataset.sources[found.split] if file.is_relative_to(source)]
    return str(file.relative_to(sources[0])) if sources else file.name


@contextmanager
def _refusals(moved: Moved, file: Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        moved.refused.append(_refusal(file, error))


def _refusal(file: Path | str, error: OSError) -> str:
    where = f"{error.filename}: " if error.filename and str(error.filename) != str(file) else ""
    return f"{file} ({where}{error.strerror})"


def told(what: list[str]) -> str:
    """The first few of `what` for one sentence, and how many more there are."""
    return ", ".join(what[:NAMED]) + (f" and {len(what) - NAMED} more" if len(what) > NAMED else "")


def _chosen(store: Store) -> dict[tuple[str, str], Found]:
    """The fault for which each picture goes, the first."""
    chosen: dict[tuple[str, str], Found] = {}
    for found in store.faults():
        if found.picture and KINDS[found.kind].moves:
            chosen.setdefault((found.split, found.picture), found)
    return chosen


def _listed(dataset: Dataset, split: str) -> bool:
    return all(source.suffix == ".txt" for source in dataset.sources[split])


def _require_few(dataset: Dataset, store: Store, chosen: dict[tuple[str, str], Found]) -> None:
    images = Counter(row.split for row in store.rows())
    for split in dataset.sources:
        faulty = Counter(found.kind for found in chosen.values() if found.split == split)
        if faulty.total() > LARGEST_SHARE * images[split]:
            kind, count = faulty.most_common(1)[0]
            raise LabError(
                f"--fix would move {faulty.total()} of {images[split]} pictures of {split} aside, {count} of them for "
                f"{kind!r} ({KINDS[kind].says}): {KINDS[kind].mend.partition(';')[0]} instead",
                FAILED,
            )


class _Log:
    """aside/log.jsonl: a line before each step, so that one which was cut short can be undone as well.

    {"moved": file, "to": file}, or {"list": file, "taken": [[the line before or null, the line], ...]}; paths are
    relative to the directory that holds aside.
    """

    def __init__(self, aside: Path) -> None:
        self.aside = aside
        self.file: Any = None

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()

    def say(self, said: dict[str, Any]) -> None:
        """Write a line, and have it on its way to the disk before what it tells of is done."""
        if self.file is None:
            try:
                self.aside.mkdir(parents=True, exist_ok=True)
                self.file = (self.aside / LOG).open("a", encoding="utf-8")
            except OSError as error:
                raise LabError(
                    f"{self.aside} cannot be written ({error.strerror}): nothing was moved", FAILED
                ) from None
        self.file.write(json.dumps(said) + "\n")
        self.file.flush()

    def shown(self, file: Path) -> str:
        """A path as the log has it."""
        return os.path.relpath(file, self.aside.parent)

    def move(self, pairs: list[tuple[Path, Path]]) -> None:
        """Move all files of `pairs` (where it is, a name like which it shall have), or none. Raises OSError."""
        for source, _ in pairs:
            _require_writable(source.parent)
        for _, target in pairs:
            target.parent.mkdir(parents=True, exist_ok=True)
        done: list[tuple[Path, Path]] = []
        for source, target in pairs:
            free = _free(target)
            self.say({"moved": self.shown(source), "to": self.shown(free)})
            try:
                _rename(source, free)
            except OSError:
                for home, there in reversed(done):
                    _rename(there, home)
                raise
            done.append((source, free))


def _require_writable(directory: Path) -> None:
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(directory))


def _free(target: Path) -> Path:
    free, number = target, 2
    while os.path.lexists(free):
        free, number = target.with_name(f"{target.stem}-{number}{target.suffix}"), number + 1
    return free


def _rename(source: Path, target: Path) -> None:
    """Move a file so that it is never in two places at the end; on another file system it is copied. Raises OSError."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        try:
            shutil.copy2(source, target, follow_symlinks=False)
            source.unlink()
        except OSError:
            target.unlink(missing_ok=True)
            raise


def _move(row: Row, kind: str, store: Store, chosen: dict[tuple[str, str], Found], log: _Log) -> None:
    target = log.aside / kind / "images" / row.split / row.name
    pairs = [(Path(row.path), target)]
    if os.path.lexists(row.label) and all(owner in chosen for owner in store.owners(row.label)):
        pairs.append((Path(row.label), Path(label_path(str(target)))))
    log.move(pairs)


def _shorten(source: Path, gone: set[str], log: _Log) -> int:
    """Take the lines of these pictures out of a list; returns their number. Raises OSError."""
    lines = _read_list(source)
    kept: list[str] = []
    taken: list[tuple[str | None, str]] = []
    before: str | None = None
    for line in lines:
        if os.path.normpath(source.parent / line.strip()) in gone:
            taken.append((before, line))
        else:
            kept.append(line)
        before = line
    if taken:
        _require_writable(source.parent)
        log.say({"list": log.shown(source), "taken": taken})
        _write_list(source, kept)
    return len(taken)


def _read_list(file: Path) -> list[str]:
    """The lines of a list of pictures with their ends, whichever those are."""
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as opened:
        return list(opened)


def _write_list(file: Path, lines: list[str]) -> None:
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as opened:
            opened.writelines(lines)
        shutil.copymode(file, part)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def undo(dataset: Dataset) -> int:
    """Bring everything back that `--fix` moved or took out of lists; returns how many files that concerns.

    What cannot be put back is passed over, named at the end, and tried again by the next undo. Raises LabError.
    """
    aside = aside_of(dataset)
    log = aside / LOG
    if not log.is_file():
        raise LabError(f"there is nothing to undo: {log} does not exist")
    back = 0
    waiting: list[dict[str, Any]] = []
    reasons: list[str] = []
    for said in reversed(list(_logged(log))):
        try:
            back += _lengthen(aside.parent / said["list"], said["taken"]) if "list" in said else _bring(aside, said)
        except FileNotFoundError as error:
            reasons.append(f"{error.filename} (is gone)")
        except OSError as error:
            waiting.append(said)
            reasons.append(_refusal(aside.parent / (said.get("list") or said["moved"]), error))
    if waiting:
        part = log.with_name(f".{LOG}")
        part.write_text("".join(json.dumps(said) + "\n" for said in reversed(waiting)), encoding="utf-8")
        part.replace(log)
    else:
        log.unlink()
        for directory, _, _ in os.walk(aside, topdown=False):
            if not os.listdir(directory):  # noqa: PTH208
                Path(directory).rmdir()
    if reasons:
        again = "; mend that and give --undo again" if waiting else ""
        raise LabError(f"{back} files are back; {len(reasons)} could not be put back: {told(reasons)}{again}", FAILED)
    return back


def _bring(aside: Path, said: dict[str, Any]) -> int:
    """Move one file home; 0 when it is there already. Raises OSError."""
    there, home = aside.parent / said["to"], aside.parent / said["moved"]
    if not os.path.lexists(there):
        if not os.path.lexists(home):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(there))
        return 0  # brought back already, or never moved
    if os.path.lexists(home):
        if not (there.is_file() and home.is_file() and filecmp.cmp(there, home, shallow=False)):
            raise FileExistsError(errno.EEXIST, "another file is in its place")
        there.unlink()  # a copy whose original was never deleted
        return 0
    home.parent.mkdir(parents=True, exist_ok=True)
    _rename(there, home)
    return 1


def _lengthen(file: Path, taken: list[tuple[str | None, str]]) -> int:
    """Put lines back where they were in a list, which may have been edited meanwhile. Raises OSError."""
    lines = _read_list(file)
    there = {line.strip() for line in lines}
    missing = [(before, line) for before, line in taken if line.strip() not in there]
    if not missing:
        return 0
    whole = _merged(lines, missing)
    ended = [line if line.endswith(("\n", "\r")) else f"{line}\n" for line in whole[:-1]]
    _write_list(file, ended + whole[-1:])
    return 1


def _merged(lines: list[str], missing: list[tuple[str | None, str]]) -> list[str]:
    """`lines` with each of `missing` after the line that it followed; at the end where that one is gone."""
    after: dict[str | None, list[str]] = defaultdict(list)
    for before, line in missing:
        after[before and before.strip()].append(line)
    whole: list[str] = []

    def add(line: str) -> None:
        waiting = [line]
        while waiting:
            whole.append(waiting.pop(0))
            waiting[:0] = after.pop(whole[-1].strip(), [])

    for line in [*after.pop(None, []), *lines]:
        add(line)
    while after:
        for line in after.pop(next(iter(after))):
            add(line)
    return whole


def _logged(log: Path) -> Iterator[dict[str, Any]]:
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            continue  # a line that was cut short: its step never began
        yield said

"""`lab data check --fix`: move what is broken aside, with a log that brings it back. Nothing of the data is deleted."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
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


@dataclass
class Moved:
    """What `--fix` did."""

    aside: Path
    pictures: int = 0
    lines: int = 0  # taken out of lists
    caches: int = 0
    left: list[Found] = field(default_factory=list)  # the same file in two splits, by directories: not ours to move


def aside_of(dataset: Dataset) -> Path:
    """The directory `aside` of a data set: beside its pictures, and never inside a directory that engines read."""
    sources = [source for found in dataset.sources.values() for source in found]
    directories = [source for source in sources if source.suffix != ".txt"]
    base = Path(os.path.commonpath([source.parent for source in sources]))
    while base.name == "images" or any(base == source or base.is_relative_to(source) for source in directories):
        base = base.parent
    return (dataset.file.parent if base == base.parent else base) / "aside"


def set_aside(dataset: Dataset, project: Project) -> Moved:
    """Move the pictures at fault, with their labels, into `aside_of`; take them out of lists; delete stale caches.

    `check.run` must have come first. Raises LabError.
    """
    moved = Moved(aside_of(dataset))
    with Store(place(project, dataset)) as store:
        chosen = _chosen(store)
        _require_few(dataset, store, chosen)
        with _Log(moved.aside) as log:
            lines = {(split, path) for split, path in chosen}
            for (split, path), found in chosen.items():
                row = store.picture(split, path)
                if row is None or found.kind == "missing":
                    continue
                if any((other, path) not in chosen for other in store.splits_of(path)):
                    if not _listed(dataset, split):
                        moved.left.append(found)
                        lines.discard((split, path))
                    continue
                _move(row, found.kind, store, chosen, log)
                moved.pictures += 1
            for split, sources in dataset.sources.items():
                for source in sources:
                    if source.suffix == ".txt":
                        moved.lines += _shorten(source, {path for its, path in lines if its == split}, log)
            for found in store.faults():
                if found.kind == "cache":
                    Path(found.path).unlink(missing_ok=True)
                    moved.caches += 1
    return moved


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
    """aside/log.jsonl: a line before each move, so that a move which was cut short can be undone as well."""

    def __init__(self, aside: Path) -> None:
        self.aside = aside
        self.file: Any = None

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()

    def move(self, source: Path, target: Path, copy: bool = False) -> None:
        """Move, or copy, `source` to a free name like `target`."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.file is None:
            self.file = (self.aside / LOG).open("a", encoding="utf-8")
        free, number = target, 2
        while free.exists():
            free, number = target.with_name(f"{target.stem}-{number}{target.suffix}"), number + 1
        base = self.aside.parent
        said = {"copied" if copy else "moved": os.path.relpath(source, base), "to": os.path.relpath(free, base)}
        self.file.write(json.dumps(said) + "\n")
        self.file.flush()
        (shutil.copy2 if copy else shutil.move)(str(source), str(free))


def _move(row: Row, kind: str, store: Store, chosen: dict[tuple[str, str], Found], log: _Log) -> None:
    target = log.aside / kind / "images" / row.split / row.name
    log.move(Path(row.path), target)
    if os.path.lexists(row.label) and all(owner in chosen for owner in store.owners(row.label)):
        log.move(Path(row.label), Path(label_path(str(target))))


def _shorten(source: Path, gone: set[str], log: _Log) -> int:
    """Take the lines of these pictures out of a list, whose old form is kept; returns their number."""
    text = source.read_text(encoding="utf-8", errors="surrogateescape")
    lines = text.splitlines(keepends=True)
    kept = [line for line in lines if os.path.normpath(source.parent / line.strip()) not in gone]
    if len(kept) < len(lines):
        log.move(source, log.aside / "lists" / source.name, copy=True)
        source.write_text("".join(kept), encoding="utf-8", errors="surrogateescape")
    return len(lines) - len(kept)


def undo(dataset: Dataset) -> int:
    """Bring everything back that `--fix` moved; returns how many files. Raises LabError."""
    aside = aside_of(dataset)
    log = aside / LOG
    if not log.is_file():
        raise LabError(f"there is nothing to undo: {log} does not exist")
    back = 0
    blocked: list[str] = []
    for said in reversed(list(_logged(log))):
        there = aside.parent / said["to"]
        home = aside.parent / (said.get("moved") or said["copied"])
        if not os.path.lexists(there):
            continue  # brought back already, or never moved
        if "moved" in said and os.path.lexists(home):
            blocked.append(str(home))
            continue
        home.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(str(there), str(home))
        back += 1
    if blocked:
        raise LabError(
            f"{back} files are back; {len(blocked)} are not, because something is in their place, such as {blocked[0]}",
            FAILED,
        )
    log.unlink()
    for directory, _, _ in os.walk(aside, topdown=False):
        if not os.listdir(directory):  # noqa: PTH208
            Path(directory).rmdir()
    return back


def _logged(log: Path) -> Iterator[dict[str, str]]:
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            continue  # a line that was cut short: its move never began
        yield said

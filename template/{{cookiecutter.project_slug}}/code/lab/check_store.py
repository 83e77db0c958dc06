"""What `lab data check` has found out so far: an SQLite file for each data set, below runs/.lab/.

A picture's facts are kept with the size and time of its file, so a check that was stopped goes on where it stopped, and
a second one costs a `stat` for each file. All that grows with the number of pictures is here, on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.check_facts import Facts, Fault, Known
from lab.dataset import SPLITS, Dataset, Entry
from lab.errors import FAILED, LabError
from lab.project import Project

FORM = 1  # raise it when a table or the meaning of a fact changes: old files are then made anew
TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE picture (
    split TEXT, path TEXT, label TEXT, name TEXT, round INTEGER,
    size INTEGER, mtime INTEGER, width INTEGER, height INTEGER, orientation INTEGER, digest BLOB, faults TEXT,
    label_size INTEGER, label_mtime INTEGER, label_digest BLOB, classes TEXT, bins TEXT, label_faults TEXT,
    PRIMARY KEY (split, path)
) WITHOUT ROWID;
CREATE TABLE beside (split TEXT, path TEXT, kind TEXT, words TEXT);
"""


@dataclass(frozen=True)
class Found:
    """A fault of one file: `path` is the picture's, or the label's when the fault is there."""

    kind: str
    split: str
    path: str
    words: str
    picture: str = ""  # the picture that goes with it, "" for none


@dataclass(frozen=True)
class Row:
    """A picture as it is summed up and drawn."""

    split: str
    path: str
    label: str
    name: str
    size: int
    width: int
    height: int
    label_size: int
    label_digest: bytes | None
    classes: dict[int, int]
    bins: dict[int, int]
    background: bool  # no label file, or an empty one


class Store:
    """The facts of one data set. One process writes at a time; use it in a `with`."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.round = 0
        self.base = self._open()

    def _open(self) -> sqlite3.Connection:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(2):
                base = sqlite3.connect(self.file, timeout=1, isolation_level=None)
                try:
                    # what a power cut spoils is found out again
                    base.execute("PRAGMA synchronous = OFF")
                    base.execute("PRAGMA cache_size = -8000")
                    base.execute("BEGIN IMMEDIATE")
                    if base.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
                        for statement in TABLES.split(";"):
                            base.execute(statement)
                        base.execute("INSERT INTO meta VALUES ('form', ?)", (str(FORM),))
                    if base.execute("SELECT value FROM meta WHERE key = 'form'").fetchone() == (str(FORM),):
                        return base
                except sqlite3.OperationalError as error:
                    base.close()
                    if "locked" in str(error):
                        raise LabError("this data set is being checked right now: wait for the other check") from error
                    raise LabError(f"{self.file} cannot be written ({error})", FAILED) from error
                except sqlite3.DatabaseError:
                    pass  # spoilt, or of another form: nothing in it that cannot be found out again
                base.close()
                self.file.unlink()
        except OSError as error:
            raise LabError(f"{self.file.parent} cannot be written ({error.strerror})", FAILED) from error
        raise LabError(f"{self.file} cannot be used: delete it", FAILED)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(sqlite3.Error):
            self.base.execute("COMMIT")
        self.base.close()

    def commit(self) -> None:
        """Keep what was found up to now, whatever happens next."""
        self.base.execute("COMMIT")
        self.base.execute("BEGIN IMMEDIATE")

    def value(self, key: str) -> str | None:
        """A remembered value."""
        found = self.base.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if found is None else str(found[0])

    def remember(self, key: str, value: str) -> None:
        """Remember a value."""
        self.base.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def begin(self, classes: int) -> None:
        """Start a round. What is known of labels holds only for the same number of classes."""
        if self.value("classes") != str(classes):
            self.base.execute("UPDATE picture SET label_size = -2")
            self.remember("classes", str(classes))
        self.round = int(self.value("round") or 0) + 1
        self.remember("round", str(self.round))
        self.base.execute("DELETE FROM beside")

    def known(self, entries: list[Entry]) -> list[Known]:
        """What is known of each of these pictures, which are all of one split."""
        marks = ",".join("?" * len(entries))
        rows = self.base.execute(
            "SELECT path, label, size, mtime, label_size, label_mtime, width, height FROM picture "
            f"WHERE split = ? AND path IN ({marks})",
            (entries[0].split, *(entry.path for entry in entries)),
        )
        found = {row[0]: row for row in rows}
        known = []
        for entry in entries:
            row = found.get(entry.path)
            if row is None:
                known.append(Known())
            else:
                label = (row[4], row[5]) if row[1] == entry.label else None
                known.append(Known((row[2], row[3]), label, row[6], row[7]))
        return known

    def keep(self, entries: list[Entry], facts: list[Facts]) -> None:
        """Take in what a worker found out about these pictures."""
        split = entries[0].split
        self.base.executemany(
            "INSERT INTO picture (split, path, label, name, round) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET label = excluded.label, name = excluded.name, round = excluded.round",
            [(entry.split, entry.path, entry.label, entry.name, self.round) for entry in entries],
        )
        self.base.executemany(
            "UPDATE picture SET size = ?, mtime = ?, width = ?, height = ?, orientation = ?, digest = ?, faults = ? "
            "WHERE split = ? AND path = ?",
            [
                (p.size, p.mtime, p.width, p.height, p.orientation, p.digest, _text(p.faults), split, fact.path)
                for fact in facts
                if (p := fact.picture) is not None
            ],
        )
        self.base.executemany(
            "UPDATE picture SET label_size = ?, label_mtime = ?, label_digest = ?, classes = ?, bins = ?, "
            "label_faults = ? WHERE split = ? AND path = ?",
            [
                (x.size, x.mtime, x.digest or None, json.dumps(x.classes), json.dumps(x.bins), _text(x.faults), split,
                 fact.path)
                for fact in facts
                if (x := fact.label) is not None
            ],
        )  # fmt: skip

    def beside(self, split: str, path: str, kind: str, words: str) -> None:
        """Note a file that is no picture of the data set, and lies beside them."""
        self.base.execute("INSERT INTO beside VALUES (?, ?, ?, ?)", (split, path, kind, words))

    def finish(self) -> None:
        """Forget the pictures that this round did not meet."""
        self.base.execute("DELETE FROM picture WHERE round <> ?", (self.round,))

    def rows(self) -> Iterator[Row]:
        """Every picture, in the order of paths."""
        for row in self.base.execute(_ROWS + "ORDER BY split, path"):
            yield _row(row)

    def samples(self, split: str, count: int) -> list[Row]:
        """Some sound pictures with boxes, always the same: the order of digests is as good as chance."""
        rows = self.base.execute(
            _ROWS + "WHERE split = ? AND classes NOT IN ('', '{}') AND width > 0 AND faults = '' "
            "ORDER BY digest, path LIMIT ?",
            (split, count),
        )
        return [_row(row) for row in rows]

    def picture(self, split: str, path: str) -> Row | None:
        """One picture."""
        found = self.base.execute(_ROWS + "WHERE split = ? AND path = ?", (split, path)).fetchone()
        return None if found is None else _row(found)

    def strangers(self, labels: list[str]) -> list[str]:
        """Those of these label files that belong to no picture."""
        marks = ",".join("?" * len(labels))
        own = {row[0] for row in self.base.execute(f"SELECT label FROM picture WHERE label IN ({marks})", labels)}
        return [label for label in labels if label not in own]

    def owners(self, label: str) -> set[tuple[str, str]]:
        """(split, path) of the pictures to which a label file belongs: a.jpg and a.png share one."""
        return set(self.base.execute("SELECT split, path FROM picture WHERE label = ?", (label,)))

    def splits_of(self, path: str) -> set[str]:
        """The splits that a picture is in."""
        return {row[0] for row in self.base.execute("SELECT split FROM picture WHERE path = ?", (path,))}

    def index_labels(self) -> None:
        """Prepare for `strangers` and `owners`."""
        self.base.execute("CREATE INDEX IF NOT EXISTS by_label ON picture (label)")

    def faults(self) -> Iterator[Found]:
        """Every fault, of pictures, of labels, of copies, of files beside them."""
        for split, path, label, faults, label_faults in self.base.execute(
            "SELECT split, path, label, faults, label_faults FROM picture WHERE faults <> '' OR label_faults <> '' "
            "ORDER BY split, path"
        ):
            for kind, words in _faults(faults):
                yield Found(kind, split, path, words, path)
            for kind, words in _faults(label_faults):
                yield Found(kind, split, path if kind == "unlabelled" else label, words, path)
        yield from self._copies()
        for split, path, kind, words in self.base.execute("SELECT * FROM beside ORDER BY kind, path"):
            yield Found(kind, split, path, words)

    def _copies(self) -> Iterator[Found]:
        """Pictures of the same bytes. Named is the one to do without: in a split all but the first, else train's."""
        rank = {split: number for number, split in enumerate(SPLITS)}
        copies = self.base.execute(
            "SELECT digest, split, path, label_digest FROM picture WHERE width > 0 AND digest IN "
            "(SELECT digest FROM picture WHERE width > 0 GROUP BY digest HAVING count(*) > 1) ORDER BY digest, path"
        )
        for group in _grouped(copies):
            kept = max(group, key=lambda row: rank.get(row[1], 0))[1]
            firsts: dict[str, Any] = {}
            for _, split, path, label in group:
                first = firsts.setdefault(split, (path, label))
                if first[0] != path:
                    differ = "" if first[1] == label else ", with other labels"
                    yield Found("duplicate", split, path, f"is also {first[0]}{differ}", path)
                elif split != kept:
                    other = next(row for row in group if row[1] == kept)
                    differ = "" if other[3] == label else ", with other labels"
                    same = "the very same file" if other[2] == path else other[2]
                    yield Found("overlap", split, path, f"is also in {kept}: {same}{differ}", path)


def _grouped(rows: Iterable[Any]) -> Iterator[list[Any]]:
    group: list[Any] = []
    for row in rows:
        if group and row[0] != group[0][0]:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


_ROWS = (
    "SELECT split, path, label, name, size, width, height, label_size, label_digest, classes, bins, "
    "label_faults LIKE '[[\"empty\"%' OR label_faults LIKE '[[\"unlabelled\"%' FROM picture "
)


def _row(row: tuple[Any, ...]) -> Row:
    facts: Any = (*row[:9], _numbers(row[9]), _numbers(row[10]), bool(row[11]))
    return Row(*facts)


def _numbers(text: str | None) -> dict[int, int]:
    return {int(key): value for key, value in json.loads(text or "{}").items()}


def _text(faults: tuple[Fault, ...]) -> str:
    return json.dumps(faults) if faults else ""


def _faults(text: str | None) -> list[Fault]:
    return [(kind, words) for kind, words in json.loads(text)] if text else []


def place(project: Project, dataset: Dataset) -> Path:
    """Where the facts of `dataset` are kept."""
    mark = hashlib.blake2b(str(dataset.file).encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
    return project.runs / ".lab" / f"check-{dataset.file.parent.name}-{mark}.sqlite"

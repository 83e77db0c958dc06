"""`lab data check`: look at every picture and every label before a training does. In parallel, restartable.

Worker processes find out small facts (check_facts), SQLite keeps them (check_store), and everything told at the end is
summed up from there one row at a time: memory does not grow with the number of pictures.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lab import fingerprint
from lab.check_facts import (
    OTHER_PICTURES,
    Facts,
    Known,
    Label,
    Picture,
    examine,
    read_label,
    stamp_of,
    start_worker,
)
from lab.check_kinds import KINDS, NOTE
from lab.check_store import Found, Store, place
from lab.dataset import Dataset, Entry, entries, label_path, stale_caches
from lab.limits import processors
from lab.project import Project
from lab.stale import suspects

CHUNK = 64  # pictures a task: a fifth of a second of decoding
EXAMPLES = 5  # faults of a kind that are named
KEEP_SECONDS = 2.0  # between two commits: what a kill costs
MOST_WORKERS = 64
Progress = Callable[[int, int], None]  # pictures done, pictures altogether


@dataclass
class Counts:
    """A split in numbers; `bins` are boxes by octave of size, see `check_facts.size_bin`."""

    images: int = 0
    boxes: int = 0
    backgrounds: int = 0  # pictures without boxes whose label file is empty or absent: legitimate
    classes: dict[int, int] = field(default_factory=dict)
    bins: dict[int, int] = field(default_factory=dict)


@dataclass
class Finding:
    """All faults of one kind: how many, and the first few."""

    kind: str
    count: int = 0
    examples: list[Found] = field(default_factory=list)

    @property
    def level(self) -> str:
        """broken, wrong or note."""
        return KINDS[self.kind].level


@dataclass(frozen=True)
class Result:
    """What a check found. `read` of the pictures were looked at now; the rest had not changed since the last check."""

    splits: dict[str, Counts]
    findings: list[Finding]
    fingerprint: str
    read: int
    seconds: float

    @property
    def problems(self) -> int:
        """Faults that are more than a note."""
        return sum(finding.count for finding in self.findings if finding.level != NOTE)


@dataclass(frozen=True)
class Stamp:
    """The last completed check of a data set. `quick` and `fingerprint` are lab.fingerprint's, as of then."""

    when: str  # ISO 8601, UTC
    quick: str
    fingerprint: str
    images: dict[str, int]  # by split
    problems: dict[str, int]  # broken and wrong, by kind
    notes: dict[str, int]


def short(words: str, project: Project) -> str:
    """`words` with paths as a person would type them."""
    return words.replace(f"{project.root}/", "")


def stamp(project: Project, dataset: Dataset) -> Stamp | None:
    """When `dataset` was last checked and what came of it; None when never. It is current while `quick` is the same."""
    file = _stamp_file(project, dataset)
    try:
        return Stamp(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _stamp_file(project: Project, dataset: Dataset) -> Path:
    return place(project, dataset).with_suffix(".json")


def run(dataset: Dataset, project: Project, workers: int = 0, progress: Progress = lambda *_: None) -> Result:
    """Check every picture and label of `dataset`; 0 `workers` means one for each processor. Raises LabError."""
    begun = time.monotonic()
    when = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    quick = fingerprint.quick(dataset)  # before: what changes meanwhile makes the stamp out of date
    with Store(place(project, dataset)) as store:
        store.begin(len(dataset.names))
        read = _examine_all(dataset, store, min(workers or processors(), MOST_WORKERS), progress)
        store.finish()
        _look_beside(dataset, store)
        result = _sum_up(dataset, store, read, begun)
    said = Stamp(
        when,
        quick,
        result.fingerprint,
        images={split: found.images for split, found in result.splits.items()},
        problems={finding.kind: finding.count for finding in result.findings if finding.level != NOTE},
        notes={finding.kind: finding.count for finding in result.findings if finding.level == NOTE},
    )
    fresh = _stamp_file(project, dataset).with_suffix(".fresh")
    fresh.write_text(json.dumps(asdict(said)) + "\n", encoding="utf-8")
    fresh.replace(_stamp_file(project, dataset))
    return result


def _examine_all(dataset: Dataset, store: Store, workers: int, progress: Progress) -> int:
    total = sum(1 for _ in entries(dataset))
    done = read = 0
    kept = time.monotonic()
    with _Crew(workers, len(dataset.names)) as crew:
        for chunk, facts in crew.facts(_chunks(dataset, store), store):
            store.keep(chunk, facts)
            done += len(chunk)
            read += sum(fact.picture is not None or fact.label is not None for fact in facts)
            progress(done, max(total, done))
            if time.monotonic() - kept > KEEP_SECONDS:
                store.commit()
                kept = time.monotonic()
    return read


def _chunks(dataset: Dataset, store: Store) -> Iterator[list[Entry]]:
    """Pictures of one split at a time, CHUNK by CHUNK."""

    def beside(split: str, entry: os.DirEntry[str]) -> None:
        ending = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
        if ending in OTHER_PICTURES:
            store.beside(split, _spoken(entry.path), "skipped", f"ends in {ending}")

    def sayable() -> Iterator[Entry]:
        for entry in entries(dataset, beside):
            spoken = _spoken(entry.path)
            if spoken == entry.path:
                yield entry
            else:
                store.beside(entry.split, spoken, "name", "its name is not UTF-8")

    chunk: list[Entry] = []
    for entry in sayable():
        if len(chunk) == CHUNK or (chunk and chunk[0].split != entry.split):
            yield chunk
            chunk = []
        chunk.append(entry)
    if chunk:
        yield chunk


def _spoken(path: str) -> str:
    """A path as it can be printed and stored."""
    return path.encode("utf-8", "replace").decode("utf-8")


class _Crew:
    """The worker processes. A decoder that dies on a picture takes a worker along, and the check goes on without."""

    def __init__(self, workers: int, classes: int) -> None:
        self.workers = workers
        self.classes = classes
        self.pool = ProcessPoolExecutor(workers, initializer=start_worker)

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)

    def facts(self, chunks: Iterable[list[Entry]], store: Store) -> Iterator[tuple[list[Entry], list[Facts]]]:
        """Each chunk with its facts, in the order in which they are done; only a few are under way at a time."""
        chunks = iter(chunks)
        waiting: dict[Future[list[Facts]], list[Entry]] = {}
        while True:
            for chunk in itertools.islice(chunks, 2 * self.workers + 1 - len(waiting)):
                waiting[self._start(chunk, store.known(chunk))] = chunk
            if not waiting:
                return
            ready, _ = wait(waiting, return_when=FIRST_COMPLETED)
            lost = []
            for future in ready:
                chunk = waiting.pop(future)
                try:
                    yield chunk, future.result()
                except BrokenProcessPool:
                    lost.append(chunk)
            if lost:
                lost += waiting.values()  # the others of a broken pool are lost as well
                waiting.clear()
                self._renew(self.workers)
                for chunk in lost:
                    yield chunk, [self._alone(entry) for entry in chunk]

    def _start(self, chunk: list[Entry], known: list[Known]) -> Future[list[Facts]]:
        task = [(entry.path, entry.label, fact) for entry, fact in zip(chunk, known, strict=True)]
        try:
            return self.pool.submit(examine, (self.classes, task))
        except BrokenProcessPool:
            self._renew(self.workers)
            return self.pool.submit(examine, (self.classes, task))

    def _renew(self, workers: int) -> None:
        self.pool.shutdown(wait=True)
        self.pool = ProcessPoolExecutor(workers, initializer=start_worker)

    def _alone(self, entry: Entry) -> Facts:
        """One picture, of which it is known that it may kill its worker."""
        try:
            return self._start([entry], [Known()]).result()[0]
        except BrokenProcessPool:
            self._renew(self.workers)
            size, mtime = stamp_of(entry.path)
            picture = Picture(size, mtime, faults=(("unreadable", "kills the decoder, or fills the memory"),))
            label: Label = read_label(entry.label, stamp_of(entry.label), self.classes, 0, 0)
            return Facts(entry.path, picture, label)


def _look_beside(dataset: Dataset, store: Store) -> None:
    """Label files without a picture, caches of the engines that the data has outrun, and arrays of nobody's making."""
    store.index_labels()
    for cache in stale_caches(dataset):
        words = "is older than the data: edited labels may be ignored"
        store.beside("", _spoken(str(cache)), "cache", words)
    for one in suspects(dataset):
        if (path := str(one.array)) == _spoken(path):
            store.beside(one.split, path, "array" if one.foreign else "cache", one.why)
    for split, directory in label_directories(dataset):
        if not os.path.isdir(directory):  # noqa: PTH112
            continue
        with os.scandir(directory) as found:
            files = (entry.path for entry in found if entry.name.endswith(".txt") and _spoken(entry.path) == entry.path)
            while some := list(itertools.islice(files, 500)):
                for label in store.strangers(some):
                    if os.path.basename(label) != "classes.txt":  # noqa: PTH119  labelling tools leave it
                        store.beside(split, label, "orphan", "has no picture")


def label_directories(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """(split, directory) of all labels that belong to directories of pictures."""
    seen: set[str] = set()
    for split, sources in dataset.sources.items():
        for source in sources:
            if source.suffix == ".txt":
                continue
            for directory, _, _ in os.walk(source, followlinks=False):
                labels = label_path(f"{directory}/x").removesuffix("/x.txt")
                if labels not in seen and labels != directory:
                    seen.add(labels)
                    yield split, labels


def _sum_up(dataset: Dataset, store: Store, read: int, begun: float) -> Result:
    splits = {split: Counts(classes=dict.fromkeys(dataset.names, 0)) for split in dataset.sources}
    whole = fingerprint.Sum()
    for row in store.rows():
        counts = splits[row.split]
        counts.images += 1
        counts.boxes += sum(row.classes.values())
        counts.backgrounds += row.background
        for mine, its in ((counts.classes, row.classes), (counts.bins, row.bins)):
            for key, value in its.items():
                mine[key] = mine.get(key, 0) + value
        whole.add(fingerprint.member(row.split, row.name, row.size, row.label_digest))
    findings = {kind: Finding(kind) for kind in KINDS}
    for found in itertools.chain(store.faults(), _absent(dataset, splits)):
        finding = findings[found.kind]
        finding.count += 1
        if len(finding.examples) < EXAMPLES:
            finding.examples.append(found)
    met = [finding for finding in findings.values() if finding.count]
    return Result(splits, met, whole.text(dataset), read, time.monotonic() - begun)


def _absent(dataset: Dataset, splits: dict[str, Counts]) -> Iterator[Found]:
    for number, name in dataset.names.items():
        if "train" in splits and not splits["train"].classes.get(number):
            yield Found("absent", "train", str(dataset.file), f"class {number} {name} has no box in train")

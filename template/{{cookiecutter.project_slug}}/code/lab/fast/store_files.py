"""The files of a store, and how they are opened, shared, listed and deleted.

A store is a directory of the cache:

    index-000001   the images, size, time and digest of their files, where their pixels lie; the newest one counts
    pixels-000001  the pixels, image after image; only ever appended to
    building       the index that a running or interrupted build works towards
    journal        what that build has done: one record an image
    build.lock     held while building; `in-use`: held, together, by all who read

An index never changes: whoever opened generation 1 keeps it while generation 2 is written beside it, and nothing that
is in use is deleted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import mmap
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from lab.errors import FAILED, LabError
from lab.fast.store import Store
from lab.fast.store_decode import Recipe
from lab.project import Project

MAGIC = b"lab image store 1\n"
BUILDING, JOURNAL, IN_USE, BUILD_LOCK = "building", "journal", "in-use", "build.lock"
WAITING, STORED, BROKEN = 0, 1, 2  # states of an entry
SAMPLE = 8  # images whose checksum is compared at each opening
MOST_HEADER = 4096  # bytes
PIECE = 4096  # bytes that are summed at a time: what disks and page caches lose
ENTRY = np.dtype(
    [
        ("size", "<i8"), ("mtime", "<i8"),  # of the image file; mtime in ns
        ("digest", "<u8", (2,)),  # of its content
        ("offset", "<i8"), ("height", "<i4"), ("width", "<i4"),  # of the stored pixels
        ("full_height", "<i4"), ("full_width", "<i4"),  # of the file's image
        ("sum", "<u4"), ("state", "<u4"),
    ]
)  # fmt: skip
RECORD = np.dtype([("row", "<i8"), ("entry", ENTRY), ("sum", "<u4")])
Say = Callable[[str], None]


class Paths(Sequence[str]):
    """Many paths in one piece of memory: each ends with a zero byte."""

    def __init__(self, blob: bytes) -> None:
        self.blob = blob

    @classmethod
    def of(cls, paths: Iterable[str]) -> Paths:
        """`paths`, packed."""
        text = "\0".join(paths)
        return cls(f"{text}\0".encode("utf-8", "surrogateescape") if text else b"")

    @cached_property
    def _ends(self) -> Any:
        return np.flatnonzero(np.frombuffer(self.blob, np.uint8) == 0)

    def __len__(self) -> int:
        return int(self._ends.size)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        begin = int(self._ends[row - 1]) + 1 if row else 0
        return self.blob[begin : int(self._ends[row])].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return iter(self.blob.decode("utf-8", "surrogateescape").split("\0")[:-1])


@dataclass(frozen=True)
class Index:
    """What a store holds. Entries are rows of ENTRY, as many as paths."""

    recipe: Recipe
    generation: int
    pixels: str  # the file's name
    used: int  # bytes of it that are spoken for
    paths: Paths
    entries: Any
    boot: str = ""  # of a build under way: since when the machine has been up
    build: str = ""  # of a build under way: whose records in the journal count

    @property
    def lengths(self) -> Any:
        """int64: bytes of each entry's pixels."""
        return self.entries["height"].astype(np.int64) * self.entries["width"] * 3

    @property
    def stored(self) -> Any:
        """int64: the rows that have pixels."""
        return np.flatnonzero(self.entries["state"] == STORED)

    @property
    def end(self) -> int:
        """Where the next pixels may go: behind all that an entry points to, and all that was spoken for."""
        return max([self.used, *map(int, (self.entries["offset"] + self.lengths)[self.stored])])

    @property
    def live(self) -> int:
        """Bytes of pixels that an entry points to; what copies share counts once."""
        rows = self.stored
        _, first = np.unique(self.entries["offset"][rows], return_index=True)
        return int(self.lengths[rows][first].sum())


def write_index(file: Path, index: Index) -> None:
    """Write `index` whole or not at all. Raises OSError."""
    header = {
        "recipe": asdict(index.recipe), "generation": index.generation, "pixels": index.pixels, "used": index.used,
        "count": len(index.entries), "boot": index.boot, "build": index.build,
    }  # fmt: skip
    head = MAGIC + json.dumps(header).encode()
    head += b" " * (-(len(head) + 1) % 64) + b"\n"
    fresh = file.with_name(f"{file.name}.fresh")
    try:
        with fresh.open("wb") as out:
            mark = hashlib.blake2b(digest_size=16)
            for part in (head, index.entries.tobytes(), index.paths.blob):
                mark.update(part)
                out.write(part)
            out.write(mark.digest())
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(file)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def read_index(file: Path) -> Index | None:
    """The index in `file`; None when it is damaged. Raises FileNotFoundError."""
    content = file.read_bytes()
    body, mark = content[:-16], content[-16:]
    if not body.startswith(MAGIC) or hashlib.blake2b(body, digest_size=16).digest() != mark:
        return None
    end = body.index(b"\n", len(MAGIC)) + 1
    said = json.loads(body[len(MAGIC) : end])
    count = said.pop("count")
    entries = np.frombuffer(body, ENTRY, count, end)
    paths = Paths(body[end + entries.nbytes :])
    return Index(**{**said, "recipe": Recipe(**said["recipe"])}, paths=paths, entries=entries)


def recipe_in(file: Path) -> Recipe | None:
    """The recipe of an index, without the reading of all of it; None when that cannot be read."""
    try:
        with file.open("rb") as opened:
            magic, head = opened.read(len(MAGIC)), opened.read(MOST_HEADER).split(b"\n", 1)[0]
        return Recipe(**json.loads(head)["recipe"]) if magic == MAGIC else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def index_files(directory: Path) -> list[Path]:
    """The indexes of a store, newest first."""
    return sorted((file for file in directory.glob("index-*") if file.suffix == ""), reverse=True)


def seal(records: Any, build: str) -> bytes:
    """Records as they stand in the journal: each with a checksum that belongs to this build alone."""
    seed = zlib.crc32(build.encode())
    sealed = np.array(records, RECORD)
    whole = sealed.tobytes()
    step = RECORD.itemsize
    sealed["sum"] = [zlib.crc32(whole[at : at + step - 4], seed) for at in range(0, len(whole), step)]
    return sealed.tobytes()


def replay(index: Index, journal: Path) -> tuple[Index, Any]:
    """`index` with what the journal says was done since, and the rows that it speaks of. A torn record ends it."""
    try:
        content = journal.read_bytes()
    except FileNotFoundError:
        content = b""
    step = RECORD.itemsize
    records = np.frombuffer(content[: len(content) // step * step], RECORD)
    seed = zlib.crc32(index.build.encode())
    good = 0
    for number, said in enumerate(records["sum"].tolist()):
        if zlib.crc32(content[number * step : (number + 1) * step - 4], seed) != said:
            break
        good = number + 1
    records = records[:good]
    entries = index.entries.copy()
    entries[records["row"]] = records["entry"]
    fresh = replace(index, entries=entries)
    return replace(fresh, used=fresh.end), records["row"]


class Lease:
    """Keeps a store from being deleted while this object, or a forked copy of it, lives."""

    def __init__(self, directory: Path) -> None:
        """Raises FileNotFoundError when the store is gone."""
        self.descriptor = -1
        self.file = directory / IN_USE
        self.descriptor = os.open(self.file, os.O_RDONLY)
        fcntl.flock(self.descriptor, fcntl.LOCK_SH)
        try:
            same = os.path.samestat(os.fstat(self.descriptor), self.file.stat())
        except FileNotFoundError:
            same = False
        if not same:
            self.close()
            raise FileNotFoundError(errno.ENOENT, "was deleted", str(directory))
        with contextlib.suppress(OSError):
            os.utime(self.file)

    def alone(self) -> bool:
        """Whether nobody else reads now. The caller holds build.lock, so nothing is deleted while this one lets go."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            fcntl.flock(self.descriptor, fcntl.LOCK_SH)
        return True

    def close(self) -> None:
        """Let go."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __del__(self) -> None:
        self.close()


@contextlib.contextmanager
def locked(file: Path, waiting: Callable[[], None] = lambda: None, block: bool = True) -> Iterator[bool]:
    """Hold `file` exclusively; `waiting` is called when another holds it. Yields False when not `block`ing and held."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not block:
                yield False
                return
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield True
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class MappedStore(Store):
    """A store in files. A pickle of it is a directory's name: who unpickles maps the same pages again."""

    directory: Path = Path()
    generation: int = 0
    lease: Lease | None = field(default=None, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.directory, self.generation)


def open_store(directory: Path | str, generation: int = 0) -> MappedStore:
    """Open a store that is ready: the newest generation, or the one that another process has open.

    Raises LabError when it is not there, or damaged.
    """
    directory = Path(directory)
    mend = "run `lab data cache`"
    try:
        lease = Lease(directory)
        file = directory / f"index-{generation:06d}" if generation else next(iter(index_files(directory)), None)
        index = None if file is None else read_index(file)
    except FileNotFoundError:
        raise LabError(f"there is no image store in {directory}: {mend}", FAILED) from None
    if file is None:
        raise LabError(f"the image store {directory} is not finished: {mend}", FAILED)
    if index is None or bad_rows(directory, index, sample=SAMPLE).size:
        raise LabError(f"the image store {directory} is damaged: `lab data cache --verify` mends it", FAILED)
    return serve(directory, index, lease)


def serve(directory: Path, index: Index, lease: Lease) -> MappedStore:
    """The view of `index` that others work with: only images that have pixels."""
    rows = index.stored
    entries = index.entries[rows]
    whole = len(rows) == len(index.entries)
    every = None if whole else list(index.paths)
    paths = index.paths if every is None else Paths.of(every[row] for row in rows)
    numbers = {
        name: entries[name].astype(np.int64) for name in ("offset", "height", "width", "full_height", "full_width")
    }
    pixels = map_pixels(directory / index.pixels, index.used)
    return MappedStore(
        index.recipe.side, paths, pixels, **numbers, directory=directory, generation=index.generation, lease=lease
    )


def map_pixels(file: Path, used: int) -> Any:
    """The first `used` bytes of `file`, or as many as there are: uint8, read-only, shared with other processes."""
    try:
        with file.open("rb") as opened:
            length = min(used, os.fstat(opened.fileno()).st_size)
            if length:
                return np.frombuffer(mmap.mmap(opened.fileno(), length, prot=mmap.PROT_READ), np.uint8)
    except FileNotFoundError:
        pass
    return np.frombuffer(b"", np.uint8)


def checksum(pixels: Any) -> int:
    """Of uint8 pixels: the CRC-32 of the sums of all pieces, and of what is left at the end.

    A tenth of the cost of a CRC-32 of all bytes. A piece that is zero, old, or another one changes it, and so does any
    single byte; only words that trade places within a piece do not.
    """
    flat = pixels.reshape(-1)
    whole = flat.size - flat.size % PIECE
    sums = flat[:whole].view("<u8").reshape(-1, PIECE // 8).sum(1, dtype=np.uint64)
    return zlib.crc32(flat[whole:], zlib.crc32(sums))


def bad_rows(directory: Path, index: Index, sample: int = 0, among: Any = None) -> Any:
    """int64: stored rows whose pixels are not there or not what they were. Looks at `sample` by chance; 0 is all."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    from lab.limits import processors  # noqa: PLC0415

    rows = index.stored if among is None else np.intersect1d(index.stored, among)
    pixels = map_pixels(directory / index.pixels, index.used)
    ends = index.entries["offset"] + index.lengths
    short = ends[rows] > pixels.size
    lost, rows = rows[short], rows[~short]
    if sample and sample < rows.size:
        rows = np.random.default_rng().choice(rows, sample, replace=False)

    def damaged(row: int) -> bool:
        part = pixels[int(index.entries["offset"][row]) : int(ends[row])]
        return checksum(part) != int(index.entries["sum"][row])

    if sample:
        wrong = [damaged(row) for row in rows.tolist()]
    else:
        with ThreadPoolExecutor(processors()) as threads:
            wrong = list(threads.map(damaged, rows.tolist(), chunksize=64))
    return np.concatenate([lost, rows[np.array(wrong, bool)]])


@dataclass(frozen=True)
class Summary:
    """A store as it is listed."""

    directory: Path
    recipe: Recipe
    source: str  # the directory of its first image
    images: int
    bytes: int  # on disk, of all its files
    used: float  # when it was last opened, seconds since 1970
    ready: bool  # False: a build was interrupted


def home(cache: Path) -> Path:
    """Where the stores of a cache are."""
    return cache / "stores"


def stores(cache: Path) -> list[Summary]:
    """All stores, by name."""
    found = []
    for directory in sorted(home(cache).glob("[!.]*/")):
        files = index_files(directory)
        file = next((each for each in (*files, directory / BUILDING) if each.exists()), None)
        recipe = None if file is None else recipe_in(file)
        if file is None or recipe is None:
            continue
        index = read_index(file)
        if index is not None and not files:
            index, _ = replay(index, directory / JOURNAL)
        size = sum(each.stat().st_blocks * 512 for each in directory.iterdir())
        images = 0 if index is None else len(index.stored)
        source = index.paths[0].rpartition("/")[0] if index is not None and index.paths else ""
        found.append(
            Summary(directory, recipe, source, images, size, (directory / IN_USE).stat().st_mtime, bool(files))
        )
    return found


def clear(directory: Path) -> bool:
    """Delete a store; False when it is in use. Raises OSError."""
    with locked(directory / BUILD_LOCK, block=False) as mine:
        if not mine:
            return False
        with locked(directory / IN_USE, block=False) as unread:
            if not unread:
                return False
            # first out of sight, so that nobody opens half of it
            away = directory.with_name(f".{directory.name}.away")
            shutil.rmtree(away, ignore_errors=True)
            directory.rename(away)
    shutil.rmtree(away)
    return True


def cache_directory(project: Project, say: Say) -> Path:
    """The project's cache, or runs/.lab/cache with a sentence when that cannot be written. Raises LabError."""
    fallback = project.runs / ".lab" / "cache"
    problem = _unwritable(project.cache)
    if not problem:
        return project.cache
    if project.cache != fallback and not _unwritable(fallback):
        say(
            f"{project.cache} cannot be written ({problem}), so decoded images go to {project.show(fallback)}: give it "
            f"to uid {os.getuid()}, or name another place with CACHE_DIR in .env"
        )
        return fallback
    raise LabError(f"{project.cache} cannot be written ({problem}): name another place with CACHE_DIR in .env")


def _unwritable(directory: Path) -> str:
    probe = home(directory) / f".write-test-{os.getpid()}"
    try:
        home(directory).mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        return error.strerror or "no reason given"
    return ""

"""Make a store, or bring one up to date: only what is new or changed is decoded.

Whatever interrupts a build, nothing half is ever taken for whole: pixels count once the journal says so, and a store is
what its newest index says. The next build goes on from the journal.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import multiprocessing
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lab.check_facts import ABSENT, AGAIN, stamp_of
from lab.errors import FAILED, LabError
from lab.fast import store_files as files
from lab.fast.store_decode import Recipe, decode
from lab.fast.store_files import BROKEN, ENTRY, RECORD, STORED, WAITING, Index, Lease, MappedStore, Paths
from lab.fast.store_worker import SAME, Work, fill, start
from lab.limits import MEBIBYTE, processors

CHUNK = 16  # images a task: a tenth of a second of decoding, and what a kill costs each worker
HEADROOM = 64 * MEBIBYTE  # left free on the disk
WASTE = 1 / 3  # of the pixel file: beyond it the file is written anew
MOST_WORKERS = 64
BOOT = Path("/proc/sys/kernel/random/boot_id")
Progress = Callable[[int, int], None]  # images done, images to do


def tell(sentence: str) -> None:
    """Say a sentence as `lab` does."""
    print(f"lab: {sentence}", file=sys.stderr, flush=True)


def build(
    cache: Path,
    label: str,
    paths: Sequence[str],
    recipe: Recipe,
    workers: int = 0,
    progress: Progress = lambda *_: None,
    say: files.Say = tell,
) -> MappedStore:
    """A store in `cache` that holds the images at `paths` as they are now; `label` names it for people.

    It may hold more: an image that is no longer asked for stays as long as its file does, so ask `rows`. One that
    cannot be decoded is left out, and said. Two that build the same store share the work: the second waits.
    0 `workers` means one for each processor. Raises LabError when there is no room, or nothing can be decoded.
    """
    if not paths:
        raise LabError(f"{label} has no images to store")
    wanted = Paths.of(sorted(set(paths)))  # one order, however they were listed
    stamps = stamps_of(wanted)
    while True:
        directory = _choose(cache, label, wanted, stamps, recipe)
        try:
            lease = Lease(directory)
        except FileNotFoundError:
            continue  # deleted between the two lines
        try:
            index = _unchanged(directory, wanted, stamps)
            if index is None:
                index = bring_up_to_date(directory, lease, recipe, (wanted, stamps), False, workers, progress, say)
            _require_images(index, wanted, say)
            return files.serve(directory, index, lease)
        except BaseException:
            lease.close()  # a traceback may live for long
            raise


def verify(directory: Path, workers: int = 0, progress: Progress = lambda *_: None, say: files.Say = tell) -> int:
    """Compare every stored image with its checksum and make damaged ones again; returns how many images there are.

    Raises LabError.
    """
    recipe = next(filter(None, map(files.recipe_in, [*files.index_files(directory), directory / files.BUILDING])), None)
    try:
        lease = Lease(directory)
    except FileNotFoundError:
        recipe = None
    if recipe is None:
        raise LabError(f"{directory.name} is damaged beyond mending: `lab data cache --clear {directory.name}`", FAILED)
    try:
        index = bring_up_to_date(directory, lease, recipe, None, True, workers, progress, say)
    finally:
        lease.close()
    _require_images(index, index.paths, say)
    return len(index.stored)


def stamps_of(paths: Sequence[str]) -> Any:
    """int64 (N, 2): size and mtime in ns of each file; ABSENT and 0 for one that is not there."""
    flat = itertools.chain.from_iterable(map(stamp_of, paths))
    return np.fromiter(flat, np.int64).reshape(-1, 2)


def lacking(cache: Path, paths: Sequence[str], recipe: Recipe) -> int:
    """How many of the images at `paths` a build would have to decode; nothing is made, and nothing waited for."""
    wanted = Paths.of(sorted(set(paths)))
    stamps = stamps_of(wanted)
    directory = _sharing(files.home(cache), wanted, stamps, recipe)
    index = None if directory is None else _newest(directory)
    if directory is None or index is None:
        return len(wanted)
    if index.build:
        index, _ = files.replay(index, directory / files.JOURNAL)
    return int((~_up_to_date(index, wanted, stamps)).sum())


def _choose(cache: Path, label: str, wanted: Paths, stamps: Any, recipe: Recipe) -> Path:
    """The directory of the store that these images belong to; made when there is none."""
    place = files.home(cache)
    place.mkdir(parents=True, exist_ok=True)
    with files.locked(place / ".choose.lock"):
        found = _sharing(place, wanted, stamps, recipe)
        if found is None:
            plain = re.sub(r"[^A-Za-z0-9_]+", "_", label).strip("_") or "data"
            found = place / f"{plain}-{recipe.name}-{secrets.token_hex(3)}"
            found.mkdir()
            (found / files.IN_USE).touch()
            entries = _entries(len(wanted))
            entries["size"] = stamps[:, 0]  # so that a second run finds this store while the first is building it
            files.write_index(found / files.BUILDING, Index(recipe, 1, "pixels-000001", 0, wanted, entries))
        return found


def _sharing(place: Path, wanted: Paths, stamps: Any, recipe: Recipe) -> Path | None:
    """The directory of the store that shares most of these images by content; None when none has half of them.

    Files count as the same by name and size, so a data set that was moved or split anew finds its store, and another
    one at the same path does not.
    """
    ours: set[tuple[str, int]] | None = None
    best, shared = None, 0
    for directory in sorted(place.glob(f"[!.]*-{recipe.name}-*/")):
        index = _newest(directory)
        if index is None or index.recipe != recipe:
            continue
        if index.paths.blob == wanted.blob and (index.entries["size"] == stamps[:, 0]).mean() >= 1 / 2:
            return directory
        ours = ours or _names(wanted, stamps[:, 0])
        theirs = _names(index.paths, index.entries["size"])
        common = len(ours & theirs)
        if 2 * common >= min(len(ours), len(theirs)) and common > shared:
            best, shared = directory, common
    return best


def _names(paths: Paths, sizes: Any) -> set[tuple[str, int]]:
    return {(path.rpartition("/")[2], size) for path, size in zip(paths, sizes.tolist(), strict=True)}


def _entries(count: int) -> Any:
    return np.zeros(count, ENTRY)


def _newest(directory: Path) -> Index | None:
    """The newest index that can be read, of a ready store or of one under way."""
    for file in (*files.index_files(directory), directory / files.BUILDING):
        with contextlib.suppress(FileNotFoundError):
            index = files.read_index(file)
            if index is not None:
                return index
    return None


def _unchanged(directory: Path, wanted: Paths, stamps: Any) -> Index | None:
    """The newest index, when all that is wanted is in it as it is now."""
    file = next(iter(files.index_files(directory)), None)
    index = None if file is None else files.read_index(file)
    if index is None:
        return None
    return (
        index
        if _up_to_date(index, wanted, stamps).all() and not files.bad_rows(directory, index, sample=files.SAMPLE).size
        else None
    )


def _up_to_date(index: Index, wanted: Paths, stamps: Any) -> Any:
    """bool: whether each of `wanted` is in `index` as its file is now."""
    rows = _rows(index.paths, wanted)
    entries = index.entries[rows]
    same = (entries["size"] == stamps[:, 0]) & (entries["mtime"] == stamps[:, 1]) & (entries["state"] != WAITING)
    return same & (rows >= 0)


def _rows(paths: Paths, wanted: Paths) -> Any:
    """int64: where each of `wanted` is among `paths`; -1 for not."""
    if paths.blob == wanted.blob:
        return np.arange(len(paths))
    row_of = {path: row for row, path in enumerate(paths)}
    return np.fromiter((row_of.get(path, -1) for path in wanted), np.int64)


def bring_up_to_date(
    directory: Path,
    lease: Lease,
    recipe: Recipe,
    asked: tuple[Paths, Any] | None,  # paths and their stamps; None: those that are in it
    thorough: bool,
    workers: int,
    progress: Progress,
    say: files.Say,
) -> Index:
    """The index after all that is asked for has been looked at. Raises LabError."""
    name = directory.name

    def waiting() -> None:
        say(f"another run builds {name} right now: waiting for it")

    with files.locked(directory / files.BUILD_LOCK, waiting):
        try:
            base = _recovered(directory, recipe, thorough, say)
            if asked is None:
                asked = (base.paths, stamps_of(base.paths))
            goal, todo = _merged(base, *asked)
            ready = directory / f"index-{base.generation:06d}"
            if not todo.size and not base.build and ready.exists():
                return base
            return _carry_out(directory, lease, goal, len(asked[0]), todo, workers, progress)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise LabError(f"{directory} cannot be written ({error.strerror})", FAILED) from error
            raise LabError(
                f"the disk under {directory} is full: free some of it, or point CACHE_DIR in .env at a larger one; "
                "what is done stays, and the same command goes on from there",
                FAILED,
            ) from error


def _recovered(directory: Path, recipe: Recipe, thorough: bool, say: files.Say) -> Index:
    """All that is known and true: the newest index, or the one that an interrupted build worked towards."""
    ready = files.index_files(directory)
    base = next(filter(None, map(files.read_index, ready)), None)
    if ready and (base is None or base.generation != int(ready[0].name[6:])):
        say(f"the index of {directory.name} was damaged: what it held is made again")
        ready[0].unlink()
    under_way = None
    with contextlib.suppress(FileNotFoundError):
        under_way = files.read_index(directory / files.BUILDING)
    suspects: Any = np.empty(0, np.int64)
    if under_way is not None and under_way.generation == (base.generation if base else 0) + 1:
        base, done = files.replay(under_way, directory / files.JOURNAL)
        # pixels reach the disk after the journal when the power fails
        suspects = done if under_way.boot != _boot() else suspects
        base = replace(base, generation=base.generation - 1)
    if base is None:
        number = max([int(file.name[7:]) for file in directory.glob("pixels-*")], default=0) + 1
        return Index(recipe, 0, f"pixels-{number:06d}", 0, Paths(b""), _entries(0))
    if thorough or files.bad_rows(directory, base, sample=files.SAMPLE).size:
        bad = files.bad_rows(directory, base)
    else:
        bad = files.bad_rows(directory, base, among=suspects)
    if not bad.size:
        return base
    say(f"{bad.size:,} of {len(base.stored):,} images in {directory.name} were damaged: they are made again")
    entries = base.entries.copy()
    entries["state"][bad] = WAITING
    return replace(base, entries=entries)


def _boot() -> str:
    try:
        return BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _merged(base: Index, wanted: Paths, stamps: Any) -> tuple[Index, Any]:
    """The index to work towards, what is wanted first, then what else was there; and its rows to be looked at."""
    rows = _rows(base.paths, wanted)
    entries = _entries(len(wanted))
    there = rows >= 0
    entries[there] = base.entries[rows[there]]
    differs = (entries["size"] != stamps[:, 0]) | (entries["mtime"] != stamps[:, 1])
    todo = np.flatnonzero(differs | (entries["state"] == WAITING))
    entries["size"][todo] = stamps[todo, 0]  # so that this store is found by them while they are under way
    entries["mtime"][todo] = AGAIN
    others = np.setdiff1d(np.arange(len(base.paths)), rows)
    return replace(
        base,
        generation=base.generation + 1,
        paths=_joined(wanted, base.paths, others),
        entries=np.concatenate([entries, base.entries[others]]),
    ), todo


def _joined(wanted: Paths, paths: Paths, rows: Any) -> Paths:
    every = list(paths) if rows.size else []
    return Paths(wanted.blob + Paths.of(every[row] for row in rows.tolist()).blob)


def _without_gone(index: Index, wanted: int) -> Index:
    """`index` without images that were not asked for, that is, after the first `wanted`, and whose file is gone."""
    there = [row for row in range(wanted, len(index.paths)) if stamp_of(index.paths[row])[0] != ABSENT]
    if wanted + len(there) == len(index.paths):
        return index
    rows = np.array([*range(wanted), *there], np.int64)
    every = list(index.paths)
    return replace(index, paths=Paths.of(every[row] for row in rows.tolist()), entries=index.entries[rows])


def _carry_out(
    directory: Path, lease: Lease, goal: Index, wanted: int, todo: Any, workers: int, progress: Progress
) -> Index:
    """Do what is to do, and put the new index in its place; its first `wanted` rows were asked for.

    Raises LabError, OSError.
    """
    pixels = directory / goal.pixels
    by_digest = {_digest(goal.entries[row]): goal.entries[row] for row in goal.stored}
    goal = replace(goal, boot=_boot(), build=secrets.token_hex(8))
    files.write_index(directory / files.BUILDING, goal)
    (directory / files.JOURNAL).unlink(missing_ok=True)
    with pixels.open("ab") as file:
        if file.tell() > goal.used and lease.alone():
            file.truncate(goal.used)  # an interrupted build wrote this, and the journal does not know it
        used = file.tell()
    paths = list(goal.paths)
    todo = todo[np.argsort(goal.entries["size"][todo], kind="stable")]  # copies meet in one task
    tasks = [(int(row), paths[row]) for row in todo]
    # a file of the same size was touched, most likely, and its content is here
    before = {row for row in todo.tolist() if goal.entries["state"][row] == STORED}
    _require_room(directory, goal.recipe, [path for row, path in tasks if row not in before])
    entries = goal.entries.copy()
    work = Work(pixels, goal.recipe, set(by_digest))
    done = 0
    try:
        with (directory / files.JOURNAL).open("wb", buffering=0) as journal:
            for records in _filled(tasks, work, workers):
                for record in records:
                    _place(record["entry"], by_digest)
                journal.write(files.seal(records, goal.build))
                entries[records["row"]] = records["entry"]
                done += len(records)
                progress(done, len(tasks))
    except OSError:
        if lease.alone():
            os.truncate(pixels, replace(goal, entries=entries).end)  # a full disk needs what half an image took
        raise
    with pixels.open("rb") as file:
        os.fsync(file.fileno())
        used = max(used, os.fstat(file.fileno()).st_size)
    index = replace(goal, entries=entries, used=used, boot="", build="")
    index = _compacted(directory, _without_gone(index, wanted))
    files.write_index(directory / f"index-{index.generation:06d}", index)
    for name in (files.BUILDING, files.JOURNAL):
        (directory / name).unlink(missing_ok=True)
    if lease.alone():
        keep = {f"index-{index.generation:06d}", index.pixels, files.IN_USE, files.BUILD_LOCK}
        for old in directory.iterdir():
            if old.name not in keep:
                old.unlink()
    return index


def _digest(entry: Any) -> bytes:
    return bytes(entry["digest"].tobytes())


def _place(entry: Any, by_digest: dict[bytes, Any]) -> None:
    """Let the entry point to the pixels that its content has already, or remember its own."""
    if entry["state"] not in (SAME, STORED):
        return
    first = by_digest.get(_digest(entry))
    if first is None:
        by_digest[_digest(entry)] = entry.copy()
        return
    for name in ("offset", "height", "width", "full_height", "full_width", "sum"):
        entry[name] = first[name]
    entry["state"] = STORED


def _filled(tasks: list[tuple[int, str]], work: Work, workers: int) -> Iterator[Any]:
    """Records, chunk by chunk as they are done. A decoder that dies on an image costs that image alone."""
    chunks = iter([tasks[at : at + CHUNK] for at in range(0, len(tasks), CHUNK)])
    count = min(workers or processors(), MOST_WORKERS, max(1, -(-len(tasks) // CHUNK)))
    pool = _pool(count, work)
    waiting: dict[Future[Any], list[tuple[int, str]]] = {}
    try:
        while True:
            try:
                for chunk in itertools.islice(chunks, 2 * count + 1 - len(waiting)):
                    waiting[pool.submit(fill, chunk)] = chunk
                if not waiting:
                    return
                done = wait(waiting, return_when=FIRST_COMPLETED).done
                for future in [each for each in waiting if each in done]:
                    records = future.result()
                    del waiting[future]
                    yield records
            except BrokenProcessPool:
                pool.shutdown(wait=True)
                lost = list(itertools.chain.from_iterable(waiting.values()))
                waiting.clear()
                for task in lost:
                    yield _alone(task, work)
                pool = _pool(count, work)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pool(count: int, work: Work) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, multiprocessing.get_context("fork"), start, (work,))


def _alone(task: tuple[int, str], work: Work) -> Any:
    """One image, of which it is known that it may kill its worker."""
    with _pool(1, work) as pool:
        try:
            return pool.submit(fill, [task]).result()
        except BrokenProcessPool:
            record = np.zeros(1, RECORD)
            record["row"] = task[0]
            record["entry"]["size"], record["entry"]["mtime"] = stamp_of(task[1])
            record["entry"]["state"] = BROKEN
            return record


def _require_room(directory: Path, recipe: Recipe, paths: list[str]) -> None:
    """Raises LabError when the images cannot fit, reckoned as squares, and if those do not fit, from a sample."""
    free = shutil.disk_usage(directory).free - HEADROOM
    need = len(paths) * 3 * (recipe.side + 1) ** 2
    if need <= free:
        return
    lengths = [length for path in paths[:: max(1, len(paths) // 32)] if (length := _length(path, recipe))]
    need = round(len(paths) * sum(lengths) / len(lengths)) if lengths else 0
    if need > free:
        raise LabError(
            f"the {len(paths):,} images to store need {need / 1e9:.1f} GB and {directory} has {max(free, 0) / 1e9:.1f} "
            "GB free: free some of it, or point CACHE_DIR in .env at a larger disk",
            FAILED,
        )


def _length(path: str, recipe: Recipe) -> int:
    """Bytes of an image in the store; 0 when it cannot be read."""
    try:
        found = decode(Path(path).read_bytes(), path, recipe)
    except OSError:
        return 0
    return 0 if found is None else int(found[0].nbytes)


def _compacted(directory: Path, index: Index) -> Index:
    """`index`, or, when too much of its pixel file is waste and there is room, the same with a fresh file."""
    live = index.live
    if index.used - live <= WASTE * index.used or shutil.disk_usage(directory).free - HEADROOM < live:
        return index
    name = f"pixels-{int(index.pixels[7:]) + 1:06d}"
    pixels = files.map_pixels(directory / index.pixels, index.used)
    entries, lengths = index.entries.copy(), index.lengths
    moved: dict[int, int] = {}
    with (directory / name).open("wb") as file:
        for row in index.stored.tolist():
            offset = int(entries["offset"][row])
            if offset not in moved:
                moved[offset] = file.tell()
                file.write(pixels[offset : offset + int(lengths[row])])
            entries["offset"][row] = moved[offset]
        file.flush()
        os.fsync(file.fileno())
    return replace(index, pixels=name, used=live, entries=entries)


def _require_images(index: Index, wanted: Paths, say: files.Say) -> None:
    """Say what is wanted and could not be decoded. Raises LabError when that is all of it."""
    rows = _rows(index.paths, wanted)
    broken = rows[index.entries["state"][rows] != STORED]
    if not broken.size:
        return
    example = index.paths[int(broken[0])]
    if broken.size == len(wanted):
        raise LabError(
            f"none of the {broken.size:,} images can be decoded, such as {example}: `lab data check`", FAILED
        )
    say(
        f"{broken.size:,} of {len(wanted):,} images cannot be decoded and are not in the store, such as {example}: "
        "`lab data check` says why"
    )

"""The store of decoded images: right pixels, made once, and whole whatever happens."""

import errno
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from made_pictures import huge_png

from lab import cli
from lab.errors import LabError
from lab.fast import store_build, store_files, store_worker
from lab.fast.store import Store
from lab.fast.store_build import build, lacking, verify
from lab.fast.store_decode import Recipe, decode, recipe_of
from lab.fast.store_files import open_store
from lab.project import Project

RECIPE = Recipe(64)


class Heard:
    """Collects what a build says and how much it did."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.done = 0
        self.total = 0

    def say(self, sentence: str) -> None:
        self.sentences.append(sentence)

    def progress(self, done: int, total: int) -> None:
        self.done, self.total = done, total


def picture(seed: int, width: int = 96, height: int = 54) -> Any:
    rough = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)


def write(path: Path, seed: int, width: int = 96, height: int = 54) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture(seed, width, height))
    return str(path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    return [write(tmp_path / "images" / f"{number:03d}.jpg", number) for number in range(40)]


@pytest.fixture
def bitmaps(tmp_path: Path) -> list[str]:
    """Images whose files have the same size whatever is on them, so that it is the same data set when they change."""
    return [write(tmp_path / "bitmaps" / f"{number:03d}.bmp", number) for number in range(40)]


def made(cache: Path, paths: Sequence[str], heard: Heard | None = None, recipe: Recipe = RECIPE) -> Any:
    heard = heard or Heard()
    return build(cache, "shapes", paths, recipe, 1, heard.progress, heard.say)


def right(store: Store, paths: Sequence[str], recipe: Recipe = RECIPE) -> bool:
    """Whether the store holds exactly the pixels of these files."""
    rows = store.rows(paths).tolist()
    return min(rows) >= 0 and all(
        np.array_equal(store.image(row), recipe.resize(cv2.imread(path)))
        and (store.full_height[row], store.full_width[row]) == cv2.imread(path).shape[:2]
        for row, path in zip(rows, paths, strict=True)
    )


def pixel_bytes(store: Any) -> int:
    return sum(file.stat().st_size for file in store.directory.glob("pixels-*"))


# Pixels


@pytest.mark.parametrize(
    ("engine", "training", "interpolation"),
    [("yolov5", True, "linear"), ("yolov5", False, "area"), ("yolov5u", True, "linear"), ("yolov5u", False, "linear")],
)
def test_recipes_of_the_engines(engine: str, training: bool, interpolation: str) -> None:
    assert recipe_of(engine, 640, training) == Recipe(640, interpolation, engine)


@pytest.mark.parametrize(("width", "height"), [(96, 54), (54, 96), (64, 64), (64, 20), (30, 20), (7, 300)])
def test_sizes_and_interpolation(cache: Path, tmp_path: Path, width: int, height: int) -> None:
    path = write(tmp_path / "a.png", 1, width, height)
    image = cv2.imread(path)
    ratio = 64 / max(height, width)
    size = (int(np.ceil(width * ratio)), int(np.ceil(height * ratio)))
    for interpolation, shrinking in (("linear", cv2.INTER_LINEAR), ("area", cv2.INTER_AREA)):
        store = made(cache, [path], recipe=Recipe(64, interpolation))
        how = shrinking if ratio < 1 else cv2.INTER_LINEAR
        assert np.array_equal(store.image(0), cv2.resize(image, size, interpolation=how) if ratio != 1 else image)
        assert (store.full_height[0], store.full_width[0]) == (height, width)


def test_a_side_that_rounds_up() -> None:
    """525 * (640 / 525) is a little more than 640."""
    assert Recipe(640, engine="yolov5").size(300, 525) == (366, 641)
    assert Recipe(640, engine="yolov5u").size(300, 525) == (366, 640)


def test_grey_sixteen_bits_and_alpha(cache: Path, tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("grey.png", "deep.png", "alpha.png")]
    cv2.imwrite(paths[0], picture(1)[..., 0])
    cv2.imwrite(paths[1], picture(2).astype(np.uint16) * 257)
    cv2.imwrite(paths[2], cv2.cvtColor(picture(3), cv2.COLOR_BGR2BGRA))
    assert right(made(cache, paths), paths)


def test_packed_without_gaps_and_read_only(cache: Path, paths: list[str]) -> None:
    store = made(cache, paths)
    assert right(store, paths)
    assert store.side == 64
    assert pixel_bytes(store) == 40 * 64 * 36 * 3
    assert not store.image(0).flags.writeable
    assert store.rows(["/nowhere.jpg"]).tolist() == [-1]


# What changed, and nothing else, is done again


def test_what_a_build_would_have_to_do_is_known_before(cache: Path, paths: list[str], tmp_path: Path) -> None:
    assert lacking(cache, paths, RECIPE) == 40
    assert not cache.exists()
    made(cache, paths)
    assert lacking(cache, paths, RECIPE) == lacking(cache, paths[:7], RECIPE) == 0
    assert lacking(cache, paths, Recipe(32)) == 40
    write(Path(paths[5]), 500)
    new = write(tmp_path / "images" / "new.jpg", 501)
    assert lacking(cache, [*paths, new], RECIPE) == 2
    others = [write(tmp_path / "others" / f"other{number}.jpg", 50 + number) for number in range(3)]
    assert lacking(cache, others, RECIPE) == 3


def test_what_an_interrupted_build_has_done_counts(cache: Path, paths: list[str]) -> None:
    killed(lambda: build(cache, "shapes", paths, RECIPE, 1, lambda done, _: die() if done >= 16 else None))
    assert lacking(cache, paths, RECIPE) == 24


def test_an_unchanged_store_is_only_opened(cache: Path, paths: list[str]) -> None:
    first, heard = made(cache, paths), Heard()
    second = made(cache, paths, heard)
    assert (heard.total, heard.sentences) == (0, [])
    assert (second.directory, second.generation) == (first.directory, first.generation)
    assert right(second, paths)


def test_a_touched_file_is_not_decoded_again(cache: Path, paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made(cache, paths)
    os.utime(paths[3], ns=(1, 1))
    monkeypatch.setattr(store_worker, "decode", None)
    heard = Heard()
    assert right(made(cache, paths, heard), paths)
    assert heard.total == 1
    heard = Heard()
    made(cache, paths, heard)
    assert heard.total == 0


def test_changed_added_and_removed_files(cache: Path, paths: list[str], tmp_path: Path) -> None:
    before = pixel_bytes(made(cache, paths))
    write(Path(paths[5]), 500)
    Path(paths[7]).unlink()
    new = write(tmp_path / "images" / "new.jpg", 501)
    now = [*paths[:7], *paths[8:], new]
    heard = Heard()
    store = made(cache, now, heard)
    assert heard.total == 2
    assert right(store, now)
    assert len(store) == 40
    assert pixel_bytes(store) == before + 2 * 64 * 36 * 3


def test_what_is_not_asked_for_stays_as_long_as_its_file(cache: Path, paths: list[str]) -> None:
    made(cache, paths)
    heard = Heard()
    assert right(made(cache, paths[:25], heard), paths)
    assert heard.total == 0
    Path(paths[-1]).unlink()
    write(Path(paths[0]), 600)
    store = made(cache, paths[:25])
    assert len(store) == 39
    assert right(store, paths[:-1])


def test_copies_share_their_pixels(cache: Path, paths: list[str], tmp_path: Path) -> None:
    copy = str(tmp_path / "images" / "copy.jpg")
    shutil.copy(paths[0], copy)
    store = made(cache, [*paths, copy])
    assert right(store, [*paths, copy])
    assert pixel_bytes(store) == 40 * 64 * 36 * 3
    later = str(tmp_path / "images" / "later.jpg")
    shutil.copy(paths[1], later)
    store = made(cache, [*paths, copy, later])
    assert right(store, [*paths, copy, later])
    assert pixel_bytes(store) == 40 * 64 * 36 * 3


def test_a_moved_data_set_finds_its_store(
    cache: Path, paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(cache, paths)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    moved = [path.replace("/images/", "/elsewhere/") for path in paths]
    monkeypatch.setattr(store_worker, "decode", None)
    store = made(cache, moved)
    assert store.directory == first.directory
    assert right(store, moved)
    assert len(store) == len(moved)


def test_other_images_at_the_same_paths_have_a_store_of_their_own(cache: Path, paths: list[str]) -> None:
    first = made(cache, paths)
    for number, path in enumerate(paths):
        write(Path(path), 100 + number, 128, 128)
    second = made(cache, paths)
    assert second.directory != first.directory
    assert right(second, paths)


def test_another_recipe_has_a_store_of_its_own(cache: Path, paths: list[str]) -> None:
    stores = [made(cache, paths, recipe=recipe) for recipe in (Recipe(64), Recipe(32), Recipe(64, "area"))]
    assert len({store.directory for store in stores}) == 3
    assert right(stores[2], paths, Recipe(64, "area"))


def test_waste_is_given_back(cache: Path, bitmaps: list[str]) -> None:
    made(cache, bitmaps)
    for number in range(25):
        write(Path(bitmaps[number]), 700 + number)
    store = made(cache, bitmaps)
    assert right(store, bitmaps)
    assert pixel_bytes(store) == 40 * 64 * 36 * 3


def test_waste_stays_where_there_is_no_room_for_a_copy(
    cache: Path, bitmaps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made(cache, bitmaps)
    for number in range(25):
        write(Path(bitmaps[number]), 700 + number)
    monkeypatch.setattr(store_build, "_require_room", lambda *_: None)
    monkeypatch.setattr(store_build.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    store = made(cache, bitmaps)
    assert right(store, bitmaps)
    assert pixel_bytes(store) == 65 * 64 * 36 * 3


# Images that cannot be decoded


def test_broken_images_are_remembered_and_named(cache: Path, paths: list[str]) -> None:
    Path(paths[2]).write_bytes(huge_png(30_000, 30_000))
    Path(paths[4]).unlink()
    for total in (40, 0):
        heard = Heard()
        store = made(cache, paths, heard)
        assert heard.total == total
        assert len(store) == 38
        assert store.rows([paths[2], paths[4]]).tolist() == [-1, -1]
        (sentence,) = heard.sentences
        assert sentence.startswith(f"2 of 40 images cannot be decoded and are not in the store, such as {paths[2]}")
        assert "`lab data check`" in sentence
    write(Path(paths[2]), 2)
    write(Path(paths[4]), 4)
    assert right(made(cache, paths), paths)


def test_an_image_that_breaks_after_the_store_was_made(cache: Path, paths: list[str]) -> None:
    running = made(cache, paths)
    whole = cv2.imread(paths[9])
    content = Path(paths[9]).read_bytes()
    Path(paths[9]).write_bytes(content[:20])
    assert np.array_equal(running.image(running.rows([paths[9]])[0]), RECIPE.resize(whole))  # this run does not notice
    heard = Heard()
    store = made(cache, paths, heard)
    assert heard.sentences[0].startswith("1 of 40 images cannot be decoded")
    assert right(store, paths[:9] + paths[10:])
    Path(paths[9]).write_bytes(content)
    assert right(made(cache, paths), paths)


def test_nothing_can_be_decoded(cache: Path, paths: list[str]) -> None:
    for path in paths:
        Path(path).write_bytes(b"no picture")
    for _ in range(2):
        with pytest.raises(LabError, match=r"none of the 40 images can be decoded, such as .*lab data check"):
            made(cache, paths)
    with pytest.raises(LabError, match="no images"):
        made(cache, [])


def test_an_image_that_kills_its_decoder(cache: Path, paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def deadly(content: bytes, path: str, *rest: Any) -> Any:
        if path == paths[20]:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(content, path, *rest)

    monkeypatch.setattr(store_worker, "decode", deadly)
    heard = Heard()
    store = made(cache, paths, heard)
    assert right(store, paths[:20] + paths[21:])
    assert paths[20] in heard.sentences[0]
    assert heard.done == heard.total == 40


def test_an_image_that_is_being_written_is_looked_at_again(
    cache: Path, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(path: str) -> tuple[int, int]:
        if path == paths[0]:
            Path(path).open("ab").close()
            os.utime(path, ns=(time.time_ns(), time.time_ns()))
        status = Path(path).stat()
        return status.st_size, status.st_mtime_ns

    monkeypatch.setattr(store_worker, "stamp_of", overtaken)
    made(cache, paths)
    monkeypatch.undo()
    heard = Heard()
    made(cache, paths, heard)
    assert heard.total == 1


# Interrupted, damaged, shared


def killed(act: Callable[[], object]) -> None:
    """Run `act` in a process that is to be killed."""
    process = multiprocessing.get_context("fork").Process(target=act)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_build_goes_on(cache: Path, paths: list[str]) -> None:
    killed(lambda: build(cache, "shapes", paths, RECIPE, 1, lambda done, _: die() if done >= 16 else None))
    (summary,) = store_files.stores(cache)
    assert (summary.images, summary.ready) == (16, False)
    with pytest.raises(LabError, match="not finished"):
        open_store(summary.directory)
    heard = Heard()
    store = made(cache, paths, heard)
    assert heard.total == 24
    assert right(store, paths)
    assert heard.sentences == []
    assert {file.name for file in store.directory.iterdir()} == {
        "index-000001", "pixels-000001", "in-use", "build.lock",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("where", "what"),
    [
        (store_build, "_filled"), (store_build, "_compacted"), (store_build.os, "fsync"), (Path, "replace"),
        (store_build.files, "seal"), (store_build.Lease, "alone"),
    ],
)  # fmt: skip
def test_killed_at_other_moments(
    cache: Path, bitmaps: list[str], where: Any, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(cache, bitmaps)
    for number in range(25):
        write(Path(bitmaps[number]), 700 + number)

    def act() -> None:
        monkeypatch.setattr(where, what, die)
        made(cache, bitmaps)

    killed(act)
    store = made(cache, bitmaps)
    assert right(store, bitmaps)
    assert right(open_store(store.directory), bitmaps)
    heard = Heard()
    assert right(made(cache, bitmaps, heard), bitmaps)
    assert heard.total == 0


def test_a_torn_record_and_records_of_another_build_do_not_count(cache: Path, paths: list[str]) -> None:
    killed(lambda: build(cache, "shapes", paths, RECIPE, 1, lambda done, _: die() if done >= 32 else None))
    (summary,) = store_files.stores(cache)
    journal = summary.directory / store_files.JOURNAL
    whole = journal.read_bytes()
    index = store_files.read_index(summary.directory / store_files.BUILDING)
    assert index is not None
    assert store_files.replay(index, journal)[1].size == 32
    journal.write_bytes(whole[:-5])
    assert store_files.replay(index, journal)[1].size == 31
    other = np.frombuffer(whole, store_files.RECORD)[:3]
    journal.write_bytes(whole + store_files.seal(other, "another build"))
    assert store_files.replay(index, journal)[1].size == 32
    assert right(made(cache, paths), paths)


def test_pixels_that_a_power_cut_lost_are_made_again(
    cache: Path, paths: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    killed(lambda: build(cache, "shapes", paths, RECIPE, 1, lambda done, _: die() if done >= 32 else None))
    (summary,) = store_files.stores(cache)
    with (summary.directory / "pixels-000001").open("r+b") as file:
        file.seek(64 * 36 * 3 * 5)
        file.write(bytes(64 * 36 * 3))
    (tmp_path / "boot").write_text("another boot")
    monkeypatch.setattr(store_build, "BOOT", tmp_path / "boot")
    monkeypatch.setattr(store_files, "SAMPLE", 1)
    heard = Heard()
    assert right(made(cache, paths, heard), paths)
    assert heard.total == 9
    assert "1 of 32 images" in heard.sentences[0]


def flip(file: Path, at: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 1]))


def test_flipped_pixels_are_found_and_mended(cache: Path, paths: list[str]) -> None:
    store = made(cache, paths)
    flip(store.directory / "pixels-000001", 64 * 36 * 3 * 7 + 100)
    heard = Heard()
    assert verify(store.directory, 1, heard.progress, heard.say) == 40
    assert heard.total == 1
    assert "1 of 40 images" in heard.sentences[0]
    heard = Heard()
    assert verify(store.directory, 1, heard.progress, heard.say) == 40
    assert (heard.total, heard.sentences) == (0, [])
    assert right(made(cache, paths), paths)


def test_a_checksum_notices_what_disks_do_to_pixels() -> None:
    piece = store_files.PIECE
    random = np.random.default_rng(0)
    for size in (0, 1, piece - 1, piece, 5 * piece + 77):
        pixels = random.integers(0, 256, size, dtype=np.uint8)
        sums = {store_files.checksum(pixels)}
        for at in {0, size // 2, size - 1} if size else ():
            other = pixels.copy()
            other[at] ^= 1
            sums.add(store_files.checksum(other))
        assert len(sums) == 1 + len({0, size // 2, size - 1} if size else ())
        shifted = np.concatenate([np.zeros(3, np.uint8), pixels])[3:]  # as it lies in a file: at any byte
        assert store_files.checksum(shifted) == store_files.checksum(pixels)
    zeroed, traded, old = pixels.copy(), pixels.copy(), pixels.copy()
    zeroed[piece : 2 * piece] = 0
    traded[:piece], traded[piece : 2 * piece] = pixels[piece : 2 * piece], pixels[:piece]
    old[-100:] = pixels[:100]
    assert store_files.checksum(pixels) not in {store_files.checksum(other) for other in (zeroed, traded, old)}


def test_widespread_damage_is_noticed_when_the_store_is_opened(cache: Path, paths: list[str]) -> None:
    store = made(cache, paths)
    (store.directory / "pixels-000001").write_bytes(bytes(40 * 64 * 36 * 3))
    with pytest.raises(LabError, match="damaged: `lab data cache --verify` mends it"):
        open_store(store.directory)
    heard = Heard()
    assert right(made(cache, paths, heard), paths)
    assert "40 of 40 images" in heard.sentences[0]


def test_a_truncated_file_costs_only_what_it_lost(cache: Path, paths: list[str]) -> None:
    directory = made(cache, paths).directory
    os.truncate(directory / "pixels-000001", 30 * 64 * 36 * 3 - 1)
    with pytest.raises(LabError, match="damaged"):
        open_store(directory)
    heard = Heard()
    assert right(made(cache, paths, heard), paths)
    assert heard.total == 11


@pytest.mark.parametrize("at", [3, 30, 200, 3000, -5])
def test_a_damaged_index_is_noticed(cache: Path, paths: list[str], at: int) -> None:
    directory = made(cache, paths).directory
    file = directory / "index-000001"
    flip(file, at % file.stat().st_size)
    with pytest.raises(LabError, match="damaged"):
        open_store(directory)
    assert right(made(cache, paths), paths)


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no image store"):
        open_store(tmp_path / "nowhere")


def test_the_disk_fills_while_building(cache: Path, paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.writev, []

    def full(descriptor: int, buffers: list[Any]) -> int:
        calls.append(1)
        if len(calls) == 20:  # in the second of three tasks
            real(descriptor, [buffers[0][:9]])  # as much as went in
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, buffers)

    monkeypatch.setattr(store_worker.os, "writev", full)
    with pytest.raises(LabError, match=r"the disk under .* is full: .*CACHE_DIR"):
        made(cache, paths)
    monkeypatch.undo()
    (file,) = store_files.home(cache).glob("*/pixels-*")
    assert file.stat().st_size == 16 * 64 * 36 * 3
    heard = Heard()
    store = made(cache, paths, heard)
    assert heard.total == 24
    assert right(store, paths)
    assert pixel_bytes(store) == 40 * 64 * 36 * 3


def test_each_image_is_written_while_the_cache_has_it(
    cache: Path, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.writev

    def one(descriptor: int, buffers: list[Any]) -> int:
        assert len(buffers) == 1
        return real(descriptor, buffers)

    monkeypatch.setattr(store_worker.os, "writev", one)
    assert right(made(cache, paths), paths)


def test_a_write_that_was_cut_short_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_worker.os, "writev", lambda *_: 10)
    with pytest.raises(OSError, match="No space left"):
        store_worker.append(-1, picture(0))


def test_too_little_room_is_said_before_it_starts(
    cache: Path, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    room = store_build.HEADROOM + 40 * 64 * 36 * 3
    monkeypatch.setattr(store_build.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(room, 0, room - 1))
    with pytest.raises(LabError, match=r"the 40 images to store need 0\.0 GB .*CACHE_DIR"):
        made(cache, paths)
    monkeypatch.setattr(store_build.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(room, 0, room))
    assert right(made(cache, paths), paths)


def test_the_second_of_two_builds_waits_and_uses_the_first(cache: Path, paths: list[str], tmp_path: Path) -> None:
    begun, go = tmp_path / "begun", tmp_path / "go"

    def slowly(*_: int) -> None:
        begun.touch()
        deadline = time.monotonic() + 60
        while not go.exists() and time.monotonic() < deadline:
            time.sleep(0.01)

    process = multiprocessing.get_context("fork").Process(target=build, args=(cache, "x", paths, RECIPE, 1, slowly))
    process.start()
    deadline = time.monotonic() + 60
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    heard, stores = Heard(), []

    def say(sentence: str) -> None:
        heard.say(sentence)
        go.touch()

    second = threading.Thread(target=lambda: stores.append(build(cache, "x", paths, RECIPE, 1, heard.progress, say)))
    second.start()
    second.join(60)
    process.join(60)
    assert process.exitcode == 0
    assert right(stores[0], paths)
    assert heard.total == 0
    assert [sentence for sentence in heard.sentences if "waiting for it" in sentence] == heard.sentences
    assert len(heard.sentences) == 1
    assert len(store_files.stores(cache)) == 1


def test_a_data_set_that_grows_during_a_run(cache: Path, bitmaps: list[str], tmp_path: Path) -> None:
    running = made(cache, bitmaps)
    kept = pickle.dumps(running)
    assert len(kept) < 1000
    more = [write(tmp_path / "images" / f"more{number}.jpg", 900 + number) for number in range(10)]
    for number in range(30):  # and so much changes that the pixel file is written anew
        write(Path(bitmaps[number]), 800 + number)
    before = {number: running.image(number).copy() for number in range(40)}
    grown = made(cache, [*more, *bitmaps])
    assert right(grown, [*more, *bitmaps])
    worker = pickle.loads(kept)  # as a loader's worker that starts only now
    for store in (running, worker):
        assert list(store.paths) == bitmaps
        assert all(np.array_equal(store.image(number), image) for number, image in before.items())
    del running, worker, store
    write(Path(bitmaps[0]), 999)
    assert right(made(cache, [*more, *bitmaps]), [*more, *bitmaps])
    assert len(list(grown.directory.glob("pixels-*"))) == 2  # `grown` is open
    del grown
    write(Path(bitmaps[0]), 998)
    store = made(cache, [*more, *bitmaps])
    assert [file.name for file in sorted(store.directory.glob("[ip]*-0*"))] == [
        f"index-{store.generation:06d}", "pixels-000002",
    ]  # fmt: skip


def test_another_process_maps_the_same_pixels(cache: Path, paths: list[str]) -> None:
    store = made(cache, paths)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        image = pool.apply(Store.image, (store, 3))
    assert np.array_equal(image, store.image(3))


def test_a_store_in_use_is_not_cleared(cache: Path, paths: list[str]) -> None:
    store = made(cache, paths)
    assert not store_files.clear(store.directory)
    assert right(store, paths)
    directory = store.directory
    del store
    assert store_files.clear(directory)
    assert store_files.stores(cache) == []
    assert not [place for place in store_files.home(cache).iterdir() if place.is_dir()]


def test_paths_in_one_piece(tmp_path: Path) -> None:
    names = ["/a/b.jpg", "/ä/名.jpg", os.fsdecode(b"/\xff.jpg"), "/d.jpg"]
    packed = store_files.Paths.of(names)
    assert list(packed) == names
    assert [packed[row] for row in range(4)] == names
    assert packed[-1] == "/d.jpg"
    assert packed[1:3] == names[1:3]
    assert len(packed) == 4
    assert len(store_files.Paths.of([])) == 0
    with pytest.raises(IndexError):
        packed[4]


# Where it lies, and the command


def test_where_the_cache_is(project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CACHE_DIR", raising=False)
    assert project.cache == project.root / "runs/.lab/cache"
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "fast"))
    heard = Heard()
    assert store_files.cache_directory(project, heard.say) == tmp_path / "fast"
    assert heard.sentences == []
    (tmp_path / "file").touch()
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "file"))
    assert store_files.cache_directory(project, heard.say) == project.root / "runs/.lab/cache"
    assert "CACHE_DIR" in heard.sentences[0]
    (project.root / "runs").rename(project.root / "old")
    (project.root / "runs").touch()
    with pytest.raises(LabError, match="CACHE_DIR"):
        store_files.cache_directory(project, heard.say)


@pytest.fixture
def command(
    project: Project, shapes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    monkeypatch.delenv("CACHE_DIR", raising=False)

    def run(*words: str) -> tuple[int, str]:
        status = cli.main(["data", "cache", *words])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


def test_the_command_builds_lists_verifies_and_clears(
    command: Callable[..., tuple[int, str]], project: Project
) -> None:
    assert command("--list") == (0, "lab: no stores in runs/.lab/cache\n")
    status, said = command("--img", "90")
    assert status == 0
    assert "train: 10 images at 96 pixels: runs/.lab/cache/stores/demo-96-linear-yolov5-" in said
    assert "val: 2 images at 96 pixels: runs/.lab/cache/stores/demo-96-area-yolov5-" in said
    status, said = command("--list")
    assert status == 0
    assert said.count("demo-96-") == 2
    assert "data/demo/images/train" in said
    flip(next(store_files.home(project.cache).glob("*linear*/pixels-*")), 1000)
    status, said = command("--verify")
    assert status == 0
    assert "1 of 10 images" in said
    assert said.count("whole") == 2
    name = next(store_files.home(project.cache).glob("*area*")).name
    assert command("--clear", name)[0] == 0
    assert command("--clear", name)[0] == 2
    (left,) = store_files.stores(project.cache)
    store = open_store(left.directory)
    status, said = command("--clear")
    assert (status, "in use" in said, len(store)) == (1, True, 10)
    del store
    assert command("--clear")[0] == 0
    assert store_files.stores(project.cache) == []


def test_the_command_of_the_other_engine(command: Callable[..., tuple[int, str]], project: Project) -> None:
    status, said = command("--engine", "yolov5u", "--data", "data/demo/data.yaml")
    assert status == 0
    assert said.count("-96-linear-yolov5u-") == 2


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("--list --verify", "one of"), ("something", "--clear"), ("--img 8", "32"), ("--engine yolov9", "yolov5u"),
        ("--clear nothing", "--list"), ("--data nowhere.yaml", "does not exist"),
    ],
)  # fmt: skip
def test_wrong_uses_of_the_command(command: Callable[..., tuple[int, str]], words: str, hint: str) -> None:
    status, said = command(*words.split())
    assert status == 2
    assert hint in said

"""The loader of the device path: the same batches for any number of threads, and no thread left behind."""

import gc
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import made_draws
import numpy as np
import pytest

from lab.fast import sheet
from lab.fast.draws import Draws
from lab.fast.store import Store

pytestmark = pytest.mark.container
BATCH = 4


@pytest.fixture
def store() -> Store:
    return made_draws.store(10)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    end = time.monotonic() + 10
    while left := [thread.name for thread in threading.enumerate() if thread.name.startswith("lab-")]:
        assert time.monotonic() < end, left
        time.sleep(0.05)


class Drawer:
    """Draws with a generator of its own, as the engines' draws do; keeps what it was asked for."""

    def __init__(self, store: Store, fails_at: int | None = None) -> None:
        self.store = store
        self.calls: list[list[int]] = []
        self.fails_at = fails_at

    def __call__(self, indices: Any) -> Draws:
        self.calls.append(indices.tolist())
        if len(self.calls) - 1 == self.fails_at:
            raise RuntimeError("no luck")
        return made_draws.draws(self.store, len(indices), seed=len(self.calls), rows=indices)


def labels(draws: Draws) -> Any:
    import torch

    return torch.tensor([[picture, 0.5] for picture in range(len(draws))])


def loader(store: Store, draw: Any = None, sampler: Any = None, **more: Any) -> Any:
    from lab.fast.device_loader import DeviceLoader, Shuffled

    shape = sheet.Shape(store.side, BATCH)
    sampler = sampler or Shuffled(range(len(store)))
    return DeviceLoader(store, shape, sampler, draw or Drawer(store), labels, made_draws.device(), **more)


def epoch(of: Any) -> list[tuple[Any, Any, list[int]]]:
    return [(batch.images.cpu().numpy(), batch.labels.cpu().numpy(), batch.indices.tolist()) for batch in of]


def equal(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(
        (a == b).all() and (c == d).all() and e == f for (a, c, e), (b, d, f) in zip(first, second, strict=True)
    )


def test_each_image_once_an_epoch_in_another_order(store: Store) -> None:
    batches = loader(store)
    assert len(batches) == 3
    orders = []
    for _ in range(2):
        found = epoch(batches)
        assert [len(images) for images, _, _ in found] == [4, 4, 2]
        assert [len(rows) for _, rows, _ in found] == [4, 4, 2]
        orders.append([index for _, _, indices in found for index in indices])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10))
    assert orders[0] != orders[1]
    assert batches.waited > 0
    batches.close()


def test_pictures_are_those_that_were_drawn(store: Store) -> None:
    batches = loader(store)
    for batch in batches:
        want = made_draws.painted(batch.draws, store, sheet.scaled_hue)
        assert abs(batch.images.cpu().numpy().astype(int) - want).mean() < 0.1
    batches.close()


def test_the_same_for_any_number_of_threads_and_slots_and_resident(store: Store) -> None:
    ways: list[dict[str, int]] = [
        {"threads": 1, "slots": 1},
        {"threads": 7, "slots": 2},
        {"threads": 2, "slots": 3},
        {"budget": store.pixels.nbytes},
    ]
    found = []
    for way in ways:
        batches = loader(store, **way)
        assert batches.resident == ("budget" in way)
        found.append(epoch(batches) + epoch(batches))
        batches.close()
    assert all(equal(found[0], other) for other in found[1:])


def test_it_is_said_when_the_store_has_outgrown_its_place_on_the_device(store: Store) -> None:
    said: list[str] = []
    batches = loader(store, budget=store.pixels.nbytes - 1, say=said.append)
    assert not batches.resident
    assert [sentence for sentence in said if "copied from the store, batch by batch" in sentence]
    batches.close()
    quiet: list[str] = []
    loader(store, budget=store.pixels.nbytes, say=quiet.append).close()
    loader(store, say=quiet.append).close()
    assert not quiet


def test_no_more_buffers_than_may_be_locked(store: Store) -> None:
    from lab.fast import plan

    said: list[str] = []
    plenty = loader(store, say=said.append)
    each = plenty.host_bytes // 3
    found = [epoch(plenty)]
    for room, slots in ((3 * each, 3), (2 * each + 1, 2), (each, 1)):
        some = loader(store, room=room, say=said.append)
        assert len(some._slots) == slots
        assert some.host_bytes <= room
        found.append(epoch(some))
        some.close()
    assert not said
    none = loader(store, room=each - 1, say=said.append)
    assert len(none._slots) == 2
    assert "Uploads wait for the GPU" in said[0]
    found.append(epoch(none))
    assert all(equal(found[0], other) for other in found[1:])
    assert plan.taken(plenty.shape.size) <= each
    none.close()
    plenty.close()


def test_seed_and_epoch_say_the_order() -> None:
    from lab.fast.device_loader import Shuffled

    first, second = Shuffled(range(50), 1), Shuffled(range(50), 1)
    assert list(first) == list(second)
    list(first)
    second.set_epoch(2)  # as a run that is resumed
    assert list(first) == list(second)
    assert list(Shuffled(range(50), 2)) != list(Shuffled(range(50), 1))


def test_what_positions_stand_for_may_change_between_epochs(store: Store) -> None:
    draw, chosen = Drawer(store), [list(range(10))]
    batches = loader(store, draw, sampler=range(10), indices=lambda: chosen[0])
    list(batches)
    chosen[0] = [7] * 10
    list(batches)
    assert draw.calls == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [7] * 4, [7] * 4, [7] * 2]
    batches.close()


def test_drop_last_and_adapt(store: Store) -> None:
    batches = loader(store, drop_last=True, adapt=lambda batch: tuple(batch.images.shape))
    assert len(batches) == 2
    assert list(batches) == [(4, 3, 64, 64)] * 2
    batches.close()


def test_a_run_may_hold_its_batches(store: Store) -> None:
    batches = loader(store, slots=1)
    held = list(batches)
    again = [made_draws.painted(batch.draws, store, sheet.scaled_hue) for batch in held]
    assert all(abs(a.images.cpu().numpy().astype(int) - b).mean() < 0.1 for a, b in zip(held, again, strict=True))
    batches.close()


def test_what_fails_while_drawing_is_raised_after_the_batches_before(store: Store) -> None:
    batches = loader(store, Drawer(store, fails_at=2))
    seen = 0
    with pytest.raises(RuntimeError, match="no luck"):
        for _ in batches:
            seen += 1
    assert seen == 2
    assert sum(1 for _ in batches) == 3  # and the next epoch is whole
    batches.close()


class Torn:
    """Pixels of which a part cannot be read."""

    def __init__(self, pixels: Any, at: int) -> None:
        self.pixels, self.at, self.nbytes = pixels, at, pixels.nbytes

    def __getitem__(self, part: slice) -> Any:
        if part.start <= self.at < part.stop:
            raise OSError("input/output error")
        return self.pixels[part]


def test_what_fails_while_reading_is_raised(store: Store) -> None:
    torn = replace(store, pixels=Torn(store.pixels, int(store.offset[5])))
    batches = loader(torn)
    with pytest.raises(OSError, match="input/output error"):
        list(batches)
    batches.close()


def test_a_tile_that_cannot_be_is_raised(store: Store) -> None:
    def draw(indices: Any) -> Draws:
        draws = made_draws.draws(store, len(indices))
        return replace(draws, row=draws.row + 100)

    batches = loader(store, draw)
    with pytest.raises(ValueError, match="of a store of 10 images"):
        list(batches)
    batches.close()


def test_an_epoch_that_is_left_ends_its_threads(store: Store) -> None:
    draw = Drawer(store)
    batches = loader(store, draw, sampler=range(10))
    for number in range(3):  # without a word
        del number
        next(iter(batches))
    kept = iter(batches)
    next(kept)
    batches.reset()  # as when mosaics end
    calls = len(draw.calls)
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(draw.calls) == calls + 3
    with pytest.raises(RuntimeError, match="was ended"):
        list(kept)
    del batches, kept  # nor closed: collected


def test_ctrl_c_in_the_loop_leaves_no_thread(store: Store) -> None:
    batches = loader(store)
    with pytest.raises(KeyboardInterrupt):
        for _ in batches:
            raise KeyboardInterrupt
    assert sum(1 for _ in batches) == 3
    batches.close()


def test_pixels_of_a_batch_never_come_from_another(store: Store) -> None:
    """Many epochs over few slots while the loop and the copies are slow by turns."""
    draw = Drawer(store)
    batches = loader(store, draw, threads=3, slots=2)
    for _ in range(4):
        for number, batch in enumerate(batches):
            time.sleep(0.01 * (number % 2))
            want = made_draws.painted(batch.draws, store, sheet.scaled_hue)
            assert np.percentile(abs(batch.images.cpu().numpy().astype(int) - want), 99) <= 2
    batches.close()


def test_host_and_device_memory_are_told(store: Store) -> None:
    batches, resident = loader(store, slots=2), loader(store, budget=10**9)
    most = sheet.most_bytes(batches.shape, store)
    assert batches.device_bytes == most
    assert batches.host_bytes >= 2 * (most + batches.shape.size)
    assert resident.host_bytes < batches.host_bytes
    batches.close()
    resident.close()

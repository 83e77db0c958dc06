"""Batches of training pictures painted on the device, one ahead of the training loop. No worker processes.

One thread draws the numbers and labels of each batch, in order. Where the stored pixels do not all fit into the GPU's
memory, more threads copy the parts that a batch shows out of the mapped file into pinned memory. The training loop's
own thread enqueues upload and painting on a stream beside the training's, before it hands out the batch before. So no
random number depends on how many threads there are, and only one thread talks to the GPU.
"""

from __future__ import annotations

import queue
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from lab import limits
from lab.fast import plan
from lab.fast.draws import Draws
from lab.fast.paint_device import Painter
from lab.fast.sheet import NARROW, Shape, fill, most_bytes, scaled_hue
from lab.fast.store import Store

POLL = 0.2  # seconds after which a waiting thread looks whether it is still wanted
PIECE = 64 * 2**20  # bytes that go to the device at a time when all pixels do
PAGEABLE = 2  # buffers where none may be locked: one is filled while the other is copied


class Sampler(Protocol):
    """Gives the positions of an epoch, in order. One with `set_epoch` is told the epoch by whoever trains."""

    def __iter__(self) -> Iterator[int]: ...

    def __len__(self) -> int: ...


class Shuffled:
    """Each position below `len(what)` once an epoch, in an order by seed and epoch; epochs follow each other."""

    def __init__(self, what: Sized, seed: int = 0) -> None:
        self.what = what
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.what)

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self))
        self.epoch += 1
        return iter(order.tolist())


@dataclass(frozen=True)
class Batch:
    """What the loader has to give; `adapt` makes of it what an engine's loop expects."""

    images: torch.Tensor  # uint8 (B, 3, S, S) on the device, red first
    labels: Any  # what `labels` gave; a tensor is on the device
    indices: Any  # int64 (B): what `draw` got
    draws: Draws


def unchanged(batch: Batch) -> Any:
    """The batch as the loader made it."""
    return batch


@dataclass
class _Slot:
    """Memory of the host for one batch on its way; free again when `uploaded` has happened."""

    sheet: torch.Tensor
    pixels: torch.Tensor | None = None
    uploaded: torch.cuda.Event | None = None


@dataclass(frozen=True)
class _Staged:
    """A batch whose numbers are in a slot, and whose pixels are when the copies are done."""

    slot: _Slot
    size: int  # bytes of pixels
    copies: list[Future[None]]
    labels: Any
    indices: Any
    draws: Draws


class _Lane:
    """The way of one epoch's batches from the thread that draws to the training loop. Ends when closed."""

    def __init__(self, slots: Iterable[_Slot], ahead: int) -> None:
        self.free: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        for slot in slots:
            self.free.put(slot)
        self._ready: queue.Queue[_Staged | BaseException | None] = queue.Queue(ahead)
        self._head: list[_Staged | BaseException | None] = []  # the next one, when it was looked at
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, batches: Iterable[Any], stage: Callable[[Any, _Slot], _Staged]) -> None:
        def work() -> None:
            try:
                for indices in batches:
                    slot = self._wait_for_slot()
                    if slot is None:
                        return
                    staged = stage(indices, slot)
                    if not self._give(staged):
                        wait(staged.copies)  # into a slot that the next epoch will use
                        return
                self._give(None)
            except BaseException as error:  # raised where the batches are used
                self._give(error)

        self._thread = threading.Thread(target=work, name="lab-draw", daemon=True)
        self._thread.start()

    def _wait_for_slot(self) -> _Slot | None:
        while not self._stop.is_set():
            try:
                slot = self.free.get(timeout=POLL)
            except queue.Empty:
                continue
            if slot.uploaded is not None:
                slot.uploaded.synchronize()
            return slot
        return None

    def _give(self, what: _Staged | BaseException | None) -> bool:
        while not self._stop.is_set():
            try:
                self._ready.put(what, timeout=POLL)
            except queue.Full:
                continue
            return True
        return False

    def _fetch(self, block: bool) -> bool:
        while not self._head:
            try:
                self._head.append(self._ready.get(block, POLL))
            except queue.Empty:
                if not block:
                    return False
                if self._stop.is_set():
                    raise RuntimeError("this epoch of the loader was ended, by another one or by reset()") from None
        return True

    def take(self) -> _Staged | None:
        """The next batch, all copied; None after the last. Raises what drawing or copying raised."""
        self._fetch(True)
        staged = self._head[0]
        if isinstance(staged, BaseException):
            raise staged
        if staged is not None:
            wait(staged.copies)
            for copy in staged.copies:
                copy.result()
        self._head.clear()
        return staged

    def at_hand(self) -> bool:
        """Whether `take` would return at once, with a batch or the end."""
        if not self._fetch(False) or isinstance(self._head[0], BaseException):
            return False
        return self._head[0] is None or all(copy.done() for copy in self._head[0].copies)

    def close(self) -> None:
        """End the thread and all copies; the slots are free after that."""
        self._stop.set()
        # an abandoned iterator may be collected in any thread, also in this one
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        staged = self._head
        while not self._ready.empty():
            staged.append(self._ready.get())
        copies = [copy for one in staged if isinstance(one, _Staged) for copy in one.copies]
        for copy in copies:
            copy.cancel()
        wait(copies)
        self._head.clear()


class DeviceLoader:
    """Iterates over the batches of an epoch, as often as asked; `len` is the number of batches.

    `draw(indices)` gives the numbers of a batch, `labels(draws)` its labels: both are called in one thread of their
    own, batch after batch, and so must not use the process's random numbers, which training uses at the same time.
    `indices` gives, at the start of each epoch, what the sampler's positions stand for (image weights). Numbers that do
    not fit `shape` raise ValueError; whatever `draw`, `labels` or reading raises, the loop gets.

    All pixels of the store go to the device if they take at most `budget` bytes; what model, optimizer and activations
    need is the caller's to leave out, and under DDP each rank has a copy of its own. Otherwise up to `slots` batches
    lie in pinned memory, which has `room` bytes, and one on the device: see `host_bytes` and `device_bytes`. `waited`
    counts the seconds that the training loop waited for batches.
    """

    def __init__(
        self,
        store: Store,
        shape: Shape,
        sampler: Sampler,
        draw: Callable[[Any], Draws],
        labels: Callable[[Draws], Any],
        device: torch.device,
        *,
        adapt: Callable[[Batch], Any] = unchanged,
        indices: Callable[[], Sequence[int]] | None = None,
        tables: Callable[[Any], Any] = scaled_hue,
        budget: int = 0,
        threads: int = 4,
        slots: int = 3,
        room: int | None = None,
        drop_last: bool = False,
        channels_last: bool = False,
        compiled: bool | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        if not len(store):
            raise ValueError("a store without images")
        self.store, self.sampler, self.device = store, sampler, device
        self.batch_size, self.drop_last, self.num_workers = shape.pictures, drop_last, 0
        self.waited = 0.0
        self.resident = store.pixels.nbytes <= budget
        size = store.pixels.nbytes if self.resident else most_bytes(shape, store)
        self.shape = replace(shape, wide=size >= NARROW)
        self._draw, self._labels, self._adapt = draw, labels, adapt
        self._indices, self._tables = indices, tables
        self._lane: weakref.ref[_Lane] | None = None
        self._cuda = device.type == "cuda"
        # before the training's kernels, which are long: the loop waits for these
        self._stream = torch.cuda.Stream(device, priority=-1) if self._cuda else None
        self._say = say
        if budget and not self.resident:
            say(
                f"the images take {store.pixels.nbytes >> 20} MiB and the GPU's memory was to hold {budget >> 20}, so "
                "they are copied from the store, batch by batch"
            )
        each = [self.shape.size] if self.resident else [self.shape.size, size]
        if room is None and self._cuda:
            room = limits.pinnable()
        pinned = plan.pinned_slots(sum(map(plan.taken, each)), slots, room)
        if not pinned:
            say(
                f"Uploads wait for the GPU, which is slower: a batch may take {sum(each) >> 20} MiB, too much to be "
                f"locked where {(room or 0) >> 20} MiB may be: a smaller --batch, or more memory, lifts it"
            )
        self._pin = self._cuda and pinned > 0
        # what this stream writes to must come from its own memory: on another's, older work may still be at it
        with self._beside():
            self.painter = Painter(self.shape, device, channels_last, compiled, say)
            self._pixels = self._resident() if self.resident else torch.empty(size, dtype=torch.uint8, device=device)
        self._slots = [_Slot(*map(self._host, each)) for _ in range(pinned or min(slots, PAGEABLE))]
        self.device_bytes = 0 if self.resident and not self._cuda else size
        self.host_bytes = len(self._slots) * sum(map(plan.taken, each) if pinned else each)
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "lab-copy")

    def __len__(self) -> int:
        count = len(self.sampler)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        self.reset()
        lane = _Lane(self._slots, max(1, len(self._slots) - 1))
        self._lane = weakref.ref(lane)
        # the sampler is read here, not in the thread: it may use torch's random numbers
        order = np.fromiter(iter(self.sampler), np.int64)
        if self._indices is not None:
            order = np.asarray(self._indices(), np.int64)[order]
        size = self.batch_size
        lane.start((order[first * size : (first + 1) * size] for first in range(len(self))), self._stage)
        return self._epoch(lane)

    def _epoch(self, lane: _Lane) -> Iterator[Any]:
        painted: deque[tuple[Batch, torch.cuda.Event | None]] = deque()
        more = True
        try:
            while True:
                while more and (not painted or (len(painted) == 1 and lane.at_hand())):
                    began = time.perf_counter()
                    staged = lane.take()
                    self.waited += time.perf_counter() - began
                    if staged is None:
                        more = False
                    else:
                        painted.append(self._paint(staged))
                        lane.free.put(staged.slot)
                if not painted:
                    return
                yield self._adapt(self._handed_over(*painted.popleft()))
        finally:
            lane.close()

    def reset(self) -> None:
        """End an epoch that was not iterated to its end. The next one sees what has changed in data and settings."""
        lane = self._lane() if self._lane is not None else None
        if lane is not None:
            lane.close()
        self._lane = None

    def close(self) -> None:
        """End all threads."""
        self.reset()
        self._pool.shutdown()

    def _stage(self, indices: Any, slot: _Slot) -> _Staged:
        draws = self._draw(indices)
        labels = self._labels(draws)
        crops = fill(self.shape, slot.sheet.numpy(), draws, self.store, not self.resident, self._tables)
        copies: list[Future[None]] = []
        if crops is not None and slot.pixels is not None:
            to = slot.pixels.numpy()
            parts = crops.parts(self._threads)
            copies = [self._pool.submit(crops.copy, self.store, to, first, last) for first, last in parts]
        return _Staged(slot, crops.size if crops else 0, copies, labels, indices, draws)

    def _paint(self, staged: _Staged) -> tuple[Batch, torch.cuda.Event | None]:
        """Enqueue upload and painting, in this order on one stream: one buffer on the device serves all batches."""
        slot, labels, event = staged.slot, staged.labels, None
        with self._beside():
            if slot.pixels is not None:
                self._pixels[: staged.size].copy_(slot.pixels[: staged.size], non_blocking=True)
            images = self.painter(self._pixels, slot.sheet)[: len(staged.draws)]
            if isinstance(labels, torch.Tensor):
                if self._pin and labels.numel():
                    with suppress(RuntimeError):  # no more may be locked: they are small, so that costs little
                        labels = labels.pin_memory()
                labels = labels.to(self.device, non_blocking=True)
            if self._cuda:
                event = slot.uploaded = torch.cuda.Event(blocking=True)
                event.record()
        return Batch(images, labels, staged.indices, staged.draws), event

    def _handed_over(self, batch: Batch, event: torch.cuda.Event | None) -> Batch:
        """The batch, to be used on the current stream: that waits for it on the device, and its memory for that."""
        if event is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(event)
            for tensor in (batch.images, batch.labels):
                if isinstance(tensor, torch.Tensor):
                    tensor.record_stream(stream)
        return batch

    def _beside(self) -> Any:
        return torch.cuda.stream(self._stream) if self._cuda else nullcontext()

    def _host(self, size: int) -> torch.Tensor:
        if self._pin:
            try:
                return torch.empty(size, dtype=torch.uint8, pin_memory=True)
            except RuntimeError as error:  # little may be pinned under WSL2
                reason = str(error).strip().splitlines()[0]
                self._say(f"Uploads wait for the GPU, which is slower: {size >> 20} MiB cannot be pinned ({reason})")
        return torch.empty(size, dtype=torch.uint8)

    def _resident(self) -> torch.Tensor:
        if not self._cuda:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nor is it written to
                return torch.from_numpy(self.store.pixels)
        size = self.store.pixels.nbytes
        pixels, piece = torch.empty(size, dtype=torch.uint8, device=self.device), self._host(min(PIECE, size))
        for first in range(0, size, PIECE):
            part = self.store.pixels[first : first + PIECE]
            np.copyto(piece.numpy()[: len(part)], part)
            pixels[first : first + len(part)].copy_(piece[: len(part)])
        return pixels

"""Pictures waiting for the model, and the threads that take them: decode, letterbox, infer, suppress.

A thread takes one picture, or as many as a batch holds and its share of those that wait: nothing waits for a batch to
fill. onnxruntime and OpenCV let go of Python's lock, so that threads are enough.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lab.onnx_detect import Array, Classes, candidates, distinct, fit, letterbox
from lab.onnx_model import Network
from lab.serve_picture import Pixels, Refusal, decode, measure

PROBE_SECONDS = 20.0  # so old may the last inference be, before /health tries one
DECODED = 4  # pictures of the largest size that may be decoded at once; smaller ones, as many more
PROBE_LIMIT = 5.0  # seconds that one may take, beyond what waits before it


@dataclass(frozen=True)
class Wish:
    """What a request asks for, as `lab.onnx_detect` has it."""

    confidence: float
    overlap: float
    most: int


@dataclass(frozen=True)
class Found:
    """What is in one picture of `width` x `height` pixels: boxes K x 4 in its own pixels. Seconds by stage."""

    width: int
    height: int
    boxes: Array
    scores: Array
    labels: Classes
    waited: float
    decoding: float
    inference: float


@dataclass
class Job:
    """One picture and who waits for it. `data` is None for a look at whether the model still answers."""

    data: bytes | None
    wish: Wish
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Found]
    came: float = field(default_factory=time.monotonic)

    def end(self, found: Found | Exception) -> None:
        """Hand the result over to the event loop, from any thread."""

        def settle() -> None:
            if self.answer.done():
                return
            if isinstance(found, Exception):
                self.answer.set_exception(found)
            else:
                self.answer.set_result(found)

        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
            self.loop.call_soon_threadsafe(settle)


@dataclass(frozen=True)
class Watchers:
    """Who wants to hear about each batch: its size, each picture's decoding and the inference in seconds."""

    batch: Callable[[int], Any]
    decoding: Callable[[float], Any]
    inference: Callable[[float], Any]


class Queue:
    """Takes jobs, at most `room` pictures at once, and works them off with `workers` threads, `batch` at a time."""

    def __init__(
        self, network: Network, workers: int, batch: int, room: int, most_pixels: int, watchers: Watchers
    ) -> None:
        self.network, self.workers, self.batch, self.room = network, workers, batch, room
        self.most_pixels, self.watchers = most_pixels, watchers
        self.pixels = Pixels(DECODED * most_pixels)
        self.places = 0  # pictures that were let in and are not answered; of the event loop alone
        self.failure = ""  # why the last inference failed
        self.succeeded = time.monotonic()
        self.seconds = 0.1  # one picture's work, smoothed
        self._waiting: deque[Job] = deque()
        self._come = threading.Condition()
        self._closed = False
        self._probe: asyncio.Future[Found] | None = None
        self._threads = [threading.Thread(target=self._work, name=f"serve-{n}", daemon=True) for n in range(workers)]
        for thread in self._threads:
            thread.start()

    # The event loop's side

    def expected(self, pictures: int = 0) -> float:
        """Seconds until so many more pictures would be done, all that were let in before them."""
        return (self.places + pictures) * self.seconds / self.workers

    def require(self, pictures: int, within: float) -> None:
        """Raises Refusal (429) when there are no places for so many pictures, or they would be done too late."""
        wait = self.expected(pictures)
        if self.places + pictures > self.room or (self.places and wait > within):
            seconds = max(1, math.ceil(self.expected() - within if wait > within else self.expected() / 2))
            raise Refusal(429, f"busy: try again in {seconds} s", {"Retry-After": str(seconds)})

    def enter(self, pictures: int, within: float) -> None:
        """Take places for so many pictures, to be done `within` seconds; `leave` gives them back. Raises Refusal."""
        self.require(pictures, within)
        self.places += pictures

    def leave(self, pictures: int) -> None:
        """Give places back."""
        self.places -= pictures

    def submit(self, data: bytes | None, wish: Wish) -> asyncio.Future[Found]:
        """The future of one picture, for which a place was taken; cancelled, it is not worked upon."""
        loop = asyncio.get_running_loop()
        job = Job(data, wish, loop, loop.create_future())
        with self._come:
            if self._closed:
                raise Refusal(503, "the service is ending")
            self._waiting.append(job)
            self._come.notify()
        return job.answer

    def waiting(self) -> int:
        """Pictures that no thread has taken yet."""
        return len(self._waiting)

    async def ready(self) -> str:
        """ "" when the model answers, else why not: by its last inference, or by a new one when that was long ago."""
        if self.failure or time.monotonic() - self.succeeded > PROBE_SECONDS + self.expected():
            if self._probe is None or self._probe.done():  # one for all who ask
                self._probe = self.submit(None, Wish(1.0, 1.0, 1))
            done, _ = await asyncio.wait({self._probe}, timeout=PROBE_LIMIT + self.expected())
            if not done:
                return f"no inference ended for {time.monotonic() - self.succeeded:.0f} s"
            self._probe.exception()  # heard: what it says stands in `failure`
        return self.failure

    def close(self, seconds: float = 5.0) -> None:
        """End the threads when they have done what they hold."""
        with self._come:
            self._closed = True
            self._come.notify_all()
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    # The threads' side

    def _take(self) -> list[Job]:
        """The next batch, [] at the end."""
        with self._come:
            while True:
                while not self._waiting and not self._closed:
                    self._come.wait()
                share = math.ceil(len(self._waiting) / self.workers)
                # a power of two: a GPU prepares itself for each size it meets
                most = min(self.batch, 1 << max(0, share).bit_length() - 1) if share else 0
                taken = [self._waiting.popleft() for _ in range(most)]
                wanted = [job for job in taken if not job.answer.cancelled()]
                if wanted or self._closed:
                    return wanted

    def _work(self) -> None:
        inputs = np.empty((self.batch, 3, *self.network.size), np.float32)
        while jobs := self._take():
            begun = time.monotonic()
            try:
                self._serve(jobs, inputs)
            except Exception as error:  # a fault of ours or of the GPU must not end the thread
                for job in jobs:
                    job.end(error)
            self.seconds += 0.1 * ((time.monotonic() - begun) / len(jobs) - self.seconds)

    def _serve(self, jobs: list[Job], inputs: Array) -> None:
        """Work off one batch; who sent what cannot be decoded hears it, the others are served. `inputs` is written."""
        able: list[tuple[Job, tuple[int, ...], float, float]] = []
        for job in jobs:
            begun = time.monotonic()
            try:
                shape = self._input(job, inputs[len(able)])
            except Refusal as refusal:
                job.end(refusal)
                continue
            able.append((job, shape, begun - job.came, time.monotonic() - begun))
        if not able:
            return
        begun = time.monotonic()
        try:
            raw = self.network.run(inputs[: len(able)])
        except Exception as error:
            failure = f"inference fails: {' '.join(str(error).split())[:200] or type(error).__name__}"
            if failure != self.failure:
                print(f"lab: {failure}", file=sys.stderr, flush=True)
            self.failure = failure
            for job, *_ in able:
                job.end(Refusal(503, "the model does not answer, see /health"))
            return
        took = time.monotonic() - begun
        self.failure, self.succeeded = "", time.monotonic()
        self.watchers.batch(len(able))
        self.watchers.inference(took)
        for (job, shape, waited, decoding), row in zip(able, raw, strict=True):
            if job.data is not None:
                self.watchers.decoding(decoding)
            job.end(self._found(row, shape, job.wish, (waited, decoding, took)))

    def _input(self, job: Job, out: Array) -> tuple[int, ...]:
        """Write what the network takes to `out`, 3 x H x W; returns the picture's own shape."""
        if job.data is None:
            out.fill(0)
            return self.network.size
        width, height = measure(job.data, self.most_pixels)
        with self.pixels.taken(width * height):
            image: npt.NDArray[np.uint8] = decode(job.data, self.most_pixels)
            letterbox(image, self.network.size, out)
            shape = image.shape
            del image
        return shape

    def _found(self, raw: Array, shape: tuple[int, ...], wish: Wish, seconds: tuple[float, float, float]) -> Found:
        boxes, scores, labels = candidates(raw, self.network.layout, wish.confidence)
        kept = distinct(boxes, labels, wish.overlap, wish.most)
        restored = fit(shape, self.network.size).restore(boxes[kept], shape)
        return Found(shape[1], shape[0], restored, scores[kept], labels[kept], *seconds)

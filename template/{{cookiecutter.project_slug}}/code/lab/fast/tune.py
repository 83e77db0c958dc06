"""What limits a training on this host, and what to do about it: a decision from measured costs alone.

A training is a line of stages that work at the same time, so it is as fast as its slowest one:

    images/s = min(network, loading, disk)

network: images a step / its seconds, measured on a batch that lies on the device; painting on the same GPU adds its
seconds to it. loading: processors that load / processor seconds of an image. disk: bytes a second / bytes of an image,
where the images do not stay in memory. Where the processors also compute the network, seconds add up instead:
images/s = 1 / (step's seconds of an image + processor seconds of an image / processors).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lab.errors import FAILED, LabError
from lab.fast.plan import DEVICE, MARGIN, PLAIN, STORE, painting_bytes
from lab.plan import NOMINAL

CACHED = "cached"  # the engine's own loader with --cache ram
PATHS = (PLAIN, CACHED, STORE, DEVICE)  # simplest first
TILES = 4  # images that a mosaic reads
NEARLY = 0.97  # of the fastest: the simpler of two that close is prescribed
ROOM = 0.92  # of a GPU's memory that a training may take
CACHE_SLACK = 1.5  # both engines keep images in memory only where half as much again is free
AHEAD = 2  # batches that a worker keeps in shared memory; validation doubles them beside it
THREADS = 8  # that copy for a GPU which paints, as many as `lab train` starts by itself
DOUBT = 0.25  # of a measured gain: a prediction further from it is warned of
GIB = 1 << 30


@dataclass(frozen=True)
class Host:
    """What a training may use, and what its images are. Sizes in bytes; `disk_rate` in bytes a second."""

    cores: int
    memory_free: int
    shm_free: int
    cache_free: int  # on the disk for stores
    disk_rate: float  # of the disk that the data set lies on, not from memory
    cache_rate: float  # of the disk for stores
    images: int
    file_bytes: int  # of all training images as they are
    store_bytes: int  # of all training images, decoded at the size of the training
    unstored_bytes: int  # of those and the validation images, what the cache has to take
    imgsz: int
    gpus: int = 0
    gpu_bytes: int = 0  # free on the GPU with the least
    store_obstacle: str = ""  # why this training cannot read from a store; "" when it can
    cache_obstacle: str = ""


@dataclass(frozen=True)
class Costs:
    """Measured on one device and one processor, in seconds an image.

    `loading` by path, of one processor; `painting` of the GPU. `network` by (batch of a GPU, switches): the step alone.
    `memory` by batch of a GPU: bytes that a training takes there, estimated.
    """

    loading: dict[str, float]
    network: dict[tuple[int, tuple[str, ...]], float]
    painting: float = 0.0
    decode: float = 0.0  # of a file, for the words
    memory: dict[int, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # what could not be measured, and why


@dataclass(frozen=True)
class Candidate:
    """One way to train. `workers` and `batch` are those of each GPU.

    On DEVICE `workers` are the threads that copy, and the processes that load for validation.
    """

    path: str
    workers: int
    batch: int
    switches: tuple[str, ...]


@dataclass(frozen=True)
class Prediction:
    """A candidate and the images a second of each stage, over all GPUs; `rate` is the least, or their sum's."""

    candidate: Candidate
    rate: float
    stages: dict[str, float]

    @property
    def limit(self) -> str:
        """The slowest stage."""
        return min(self.stages, key=lambda stage: self.stages[stage])


@dataclass(frozen=True)
class Prescription:
    """What to do, what it was compared with, and what was left out because it does not fit: path or batch to reason."""

    chosen: Prediction
    shipped: Prediction
    sentence: str
    left_out: dict[str, str]
    others: list[Prediction]


def predict(candidate: Candidate, host: Host, costs: Costs) -> Prediction:
    """The formula at the top of this file."""
    step = costs.network[candidate.batch, candidate.switches]
    load = costs.loading[candidate.path]
    ranks = max(1, host.gpus)
    disk = _disk(candidate, host)
    if not host.gpus:
        together = 1 / (step + load / host.cores)
        stages = {"network": 1 / step, "loading": host.cores / load, **disk}
        return Prediction(candidate, min(together, *disk.values()) if disk else together, stages)
    painting = costs.painting if candidate.path == DEVICE else 0.0
    stages = {"network": ranks / (step + painting), **disk}
    if candidate.workers or candidate.path == DEVICE:
        stages["loading"] = loading_cores(candidate, host) / load
    else:  # the training loads by itself, between the steps
        stages["loading"] = stages["network"] = ranks / (step + load)
    return Prediction(candidate, min(stages.values()), stages)


def loading_cores(candidate: Candidate, host: Host) -> float:
    """Processors that load: no more than the workers, and one for each training is busy with its step."""
    ranks = max(1, host.gpus)
    if candidate.path == DEVICE:  # threads, beside the training's own; one at least
        return max(1, min(candidate.workers, host.cores // ranks - 1)) * ranks
    return max(0.5 * ranks, min(candidate.workers * ranks, host.cores - ranks))


def _disk(candidate: Candidate, host: Host) -> dict[str, float]:
    """The disk's stage; none where the images stay in memory after they were read once."""
    if candidate.path == CACHED:
        return {}
    stored = candidate.path in (STORE, DEVICE)
    size, rate = (host.store_bytes, host.cache_rate) if stored else (host.file_bytes, host.disk_rate)
    if size <= host.memory_free or not size:
        return {}
    return {"disk": rate / (TILES * size / host.images)}


def workers_that_fit(host: Host, batch: int) -> int:
    """Workers a GPU whose batches /dev/shm can hold, as `lab.limits` counts them; `batch` is that of a GPU."""
    return host.shm_free // max(1, host.gpus) // (AHEAD * 3 * batch * 3 * host.imgsz**2)


def obstacle(path: str, host: Host) -> str:
    """Why images cannot take this path here, "" when they can."""
    if path == CACHED:
        if host.cache_obstacle:
            return host.cache_obstacle
        need = host.store_bytes * CACHE_SLACK * max(1, host.gpus)
        if need > host.memory_free:
            return f"{_gib(need)} of memory wanted, {_gib(host.memory_free)} free"
    if path in (STORE, DEVICE):
        if host.store_obstacle:
            return host.store_obstacle
        if host.unstored_bytes and host.unstored_bytes + MARGIN > host.cache_free:
            return f"{_gib(host.unstored_bytes + MARGIN)} of disk wanted for the store, {_gib(host.cache_free)} free"
    if path == DEVICE and not host.gpus:
        return "there is no GPU to paint on"
    return ""


def candidates(host: Host, costs: Costs) -> tuple[list[Candidate], dict[str, str]]:
    """All that fits, simplest first, and what does not, with the reason."""
    left_out = {path: why for path in PATHS if (why := obstacle(path, host))}
    left_out |= {path: "it was not measured" for path in PATHS if path not in costs.loading and path not in left_out}
    found = []
    for batch, switches in sorted(costs.network, key=lambda pair: (pair[0], len(pair[1]))):
        need = costs.memory.get(batch, 0)
        if host.gpus and need > ROOM * host.gpu_bytes:
            left_out[f"batch {batch}"] = f"{_gib(need)} of GPU memory wanted, {_gib(host.gpu_bytes)} free"
            continue
        for path in PATHS:
            if path in left_out:
                continue
            if path == DEVICE and host.gpu_bytes - need < painting_bytes(batch, host.imgsz):
                left_out[path] = f"the GPU has {_gib(max(0, host.gpu_bytes - need))} left, too little to paint on it"
                continue
            found += [Candidate(path, workers, batch, switches) for workers in _workers(path, host, batch)]
    return found, left_out


def _workers(path: str, host: Host, batch: int) -> Iterator[int]:
    """Numbers of workers worth trying: none, and up to one a processor; of threads that copy, what is usual."""
    most = min(workers_that_fit(host, batch), host.cores // max(1, host.gpus), 64)
    if path == DEVICE:
        yield min(most, THREADS)
        return
    yield from (number for number in (0, 1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64) if number < most)
    yield max(0, most)


def prescribe(host: Host, costs: Costs, shipped: Candidate) -> Prescription:
    """The fastest that fits, or the simplest of those that are nearly as fast. Raises LabError when nothing fits.

    `shipped` is what the engine does without any of this. A larger batch is never chosen past NOMINAL images of all
    GPUs together: up to there both engines gather gradients to as many, and the learning is the same.
    """
    found, left_out = candidates(host, costs)
    usable = [one for one in found if one.batch <= max(largest_batch(host), shipped.batch)]
    if not usable:
        why = "; ".join(f"{what}: {reason}" for what, reason in left_out.items())
        raise LabError(f"nothing fits this host ({why}): give a smaller --batch, --img or model", FAILED)
    predictions = [predict(one, host, costs) for one in usable]
    best = max(one.rate for one in predictions)
    chosen = min((one for one in predictions if one.rate >= NEARLY * best), key=lambda one: _effort(one, shipped))
    asis = predict(_clipped(shipped, host), host, costs)
    return Prescription(chosen, asis, sentence(chosen, host, costs), left_out, _one_a_path(predictions))


def largest_batch(host: Host) -> int:
    """Images of a GPU's batch up to which the learning is the same: their share of NOMINAL."""
    return NOMINAL // max(1, host.gpus)


def _clipped(shipped: Candidate, host: Host) -> Candidate:
    most = workers_that_fit(host, shipped.batch)
    return Candidate(shipped.path, min(shipped.workers, most), shipped.batch, shipped.switches)


def _effort(one: Prediction, shipped: Candidate) -> tuple[Any, ...]:
    """How far a candidate is from what the engine does anyway; then the faster one."""
    candidate = one.candidate
    return (
        PATHS.index(candidate.path), candidate.batch != shipped.batch, len(candidate.switches), candidate.workers,
        -one.rate,
    )  # fmt: skip


def _one_a_path(predictions: list[Prediction]) -> list[Prediction]:
    """The best of each path, fastest first."""
    best: dict[str, Prediction] = {}
    for one in predictions:
        known = best.get(one.candidate.path)
        if known is None or one.rate > known.rate:
            best[one.candidate.path] = one
    return sorted(best.values(), key=lambda one: -one.rate)


def sentence(one: Prediction, host: Host, costs: Costs) -> str:
    """What the limit is once this is done, and what would lift it."""
    network, loading = one.stages["network"], one.stages["loading"]
    if not host.gpus:
        share = 1 / network * one.rate
        return (
            f"the processors are the limit: {100 * min(1.0, share):.0f} % of their time goes into the network, "
            "the rest into loading images; a GPU lifts it"
        )
    who = "the GPU is" if host.gpus == 1 else f"the {host.gpus} GPUs are"
    if one.limit == "network":
        return f"{who} the limit: {network:,.0f} images/s, and {_spare(one)}; a smaller model or image lifts it"
    if one.limit == "disk":
        return (
            f"the disk is the limit: {one.stages['disk']:,.0f} images/s where the network could take {network:,.0f}; "
            "images on a faster disk (CACHE_DIR, DATA_DIR in .env) or more memory lift it"
        )
    ranks = host.gpus
    enough = round(network * costs.loading[one.candidate.path] + ranks + 0.5)
    return (
        f"the {host.cores} processors are the limit: they load {loading:,.0f} images/s where the network could take "
        f"{network:,.0f}; {max(enough, host.cores + 1)} processors would be enough"
    )


def _spare(one: Prediction) -> str:
    rest = {stage: rate for stage, rate in one.stages.items() if stage != "network"}
    stage = min(rest, key=lambda name: rest[name])
    return f"{'images are loaded' if stage == 'loading' else 'the disk gives them'} at {rest[stage]:,.0f} a second"


def doubt(predicted: float, measured: float) -> str:
    """A warning where the gain over the engine as it ships is not what was predicted, "" where it nearly is."""
    off = predicted / measured - 1
    if abs(off) <= DOUBT:
        return ""
    words = (
        f"the prediction is off by {100 * off:+.0f} %: {predicted:.2f} times as fast as it ships was predicted, "
        f"{measured:.2f} measured; trust what was measured, and try again on a quiet machine with more --seconds"
    )
    return words if measured >= 1 else f"{words}; here and now `lab train --plain` is faster"


def settings(one: Candidate, ranks: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(options of `lab train`, fields of its Speed) for lab.fast.tuned."""
    options: dict[str, Any] = {"batch_size": one.batch * max(1, ranks), "workers": one.workers}
    if one.path == CACHED:
        options["cache"] = "ram"
    return options, {"data": PLAIN if one.path == CACHED else one.path, "switches": list(one.switches)}


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"

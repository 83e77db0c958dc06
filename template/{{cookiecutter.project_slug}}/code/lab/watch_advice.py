"""What `lab watch` advises: sentences from what was seen, and nothing else.

Workers, cache and the path of the images are chosen by lab.fast's own rules: what its `plan` would decide for this run
and what its `tune` prescribes, with the costs of an image derived from the run instead of measured alone. The
thresholds are rules of thumb, so every sentence carries the figures it rests on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lab import plan as training_plan
from lab import report_advice
from lab.errors import LabError
from lab.fast import plan, tune
from lab.nvml import BRAKE, HEAT, POWER, SLOWDOWN, Gpu
from lab.telemetry import held
from lab.watch_facts import ENDED, KILLED, Feed, Seen, Training

IDLE = 50.0  # per cent: a GPU that is less busy has time left
BUSY = 85.0  # per cent: one that is as busy is the limit
WAITING = 20.0  # per cent of the time in the steps: a training that waits longer for images waits for them
FULL, EMPTY = 0.95, 0.5  # of a GPU's memory
SLOWED = 0.9  # of its highest clock
CLEAR = 1.1  # times as fast: a change that brings less is not advised
# Images that a processor prepares in a second, for what they are to each other: benchmarks/results/loader.json
LOADED = {plan.PLAIN: 49.0, tune.CACHED: 187.0, plan.STORE: 418.0}
FAULT, ADVICE, NOTE = "fault", "advice", "note"


@dataclass(frozen=True)
class Advice:
    """A sentence and the rule that it comes from. `level`: FAULT, ADVICE, or a NOTE that asks for nothing."""

    id: str
    level: str
    sentence: str


def advise(seen: Seen) -> list[Advice]:
    """What is wrong or could be better, the weightiest first; one note when there is nothing."""
    found = [one for rule in RULES if (one := rule(seen)) is not None]
    return found or [_well(seen)]


def waits(seen: Seen) -> bool:
    """Whether the training waits for images while its GPU, if it has one that tells, is idle."""
    idle = seen.load.gpu is None or seen.load.gpu < IDLE
    return seen.running and idle and seen.load.wait is not None and seen.load.wait >= WAITING


# The GPU is not there


def _lost(seen: Seen) -> Advice | None:
    gone = [gpu.number for gpu in seen.look.gpus if gpu.lost]
    if not gone and not seen.lost:
        return None
    which = f"GPU {_and([str(number) for number in gone])}" if gone else "A GPU"
    go_on = f", then `lab train --resume {seen.training.name}`" if seen.training is not None else ""
    return Advice(
        "gpu.lost", FAULT,
        f"{which} fell off the bus (heat, power or hardware), and what trained on it cannot go on: `sudo dmesg | grep "
        f"-i xid` on the host says why; start the host again{go_on}",
    )  # fmt: skip


def _no_gpu(seen: Seen) -> Advice | None:
    if seen.look.gpus or seen.lost:
        return None
    if seen.silent:
        return Advice("gpu.silent", FAULT, f"The GPU's driver tells nothing ({seen.why}): `lab doctor` says why")
    return Advice("gpu.none", NOTE, "There is no GPU in this container: the processors train")


# Nothing trains


def _idle(seen: Seen) -> Advice | None:
    one = seen.training
    if one is None:
        return Advice("idle", NOTE, "Nothing is training, and there is no run yet: `lab train` begins one")
    if one.state == KILLED:
        return Advice(
            "killed", FAULT,
            f"{one.name} was killed after {_epochs(one)}: nobody trains in it any more. `lab train --resume "
            f"{one.name}` goes on",
        )  # fmt: skip
    if one.state != ENDED:
        return None
    how = {"done": "is done", "stopped": "was stopped", "failed": "failed"}.get(one.status, "has ended")
    when = f" ({one.ended[:16].replace('T', ' ')} UTC)" if one.ended else ""
    why = f": {one.reason.rstrip('.')}" if one.status == "failed" and one.reason else ""
    then = "" if one.status == "done" else f"; `lab train --resume {one.name}` goes on"
    return Advice("idle", NOTE, f"Nothing is training: {one.name} {how} after {_epochs(one)}{when}{why}{then}")


def _epochs(one: Training) -> str:
    return f"{one.epochs} of {one.planned or '?'} epochs"


def _unused(seen: Seen) -> Advice | None:
    one = seen.training
    if not seen.running or one is None or one.device != "cpu" or not seen.look.gpus:
        return None
    card = seen.look.gpus[0]
    return Advice(
        "gpu.unused", ADVICE,
        f"It trains on the processors although {_card(card)} is here: `lab train --device {card.number}` uses it",
    )  # fmt: skip


# Images


def _crowded(seen: Seen) -> Advice | None:
    load = seen.load
    if not seen.running or not report_advice.crowded(load):
        return None
    return Advice(
        "machine.crowded", ADVICE,
        f"Other programs keep this machine's processors busy: {load.host_cpu:.0f} %, of which the training has "
        f"{load.cpu:.0f} %. It would be faster alone",
    )  # fmt: skip


def _starved(seen: Seen) -> Advice | None:
    load, one = seen.load, seen.training
    if not waits(seen) or one is None or report_advice.crowded(load):
        return None
    busy = f"GPU utilisation is {load.gpu:.0f} % and the" if load.gpu is not None else "The"
    facts = f"{busy} training waits {load.wait:.0f} % of its time for images"
    if load.rate is None or seen.feed is None:
        return Advice("data.wait", ADVICE, f"{facts}: `lab tune` measures which of workers, cache and batch mends it")
    own_way, way = _own_way(one, seen.feed), prescribed(one, seen.feed, load.rate, load.wait or 0.0)
    if own_way and way.startswith("Try "):
        way = f"Or try {way[4:]}"
    return Advice("data.wait", ADVICE, ". ".join(filter(None, [facts, own_way, way])))


def _own_way(one: Training, feed: Feed) -> str:
    """What lab.fast.plan would decide for a run that reads images the engine's own way on a GPU."""
    if one.path not in (plan.PLAIN, tune.CACHED) or feed.facts.device != "cuda":
        return ""
    try:
        decided = plan.decide(feed.facts, plan.Wish())
    except LabError:
        return ""
    reason = decided.reasons[0]
    if decided.data == plan.PLAIN:
        return reason[:1].upper() + reason[1:]
    asked: list[str] = [word for word in ("--plain", "--cache", "--without", "--tuned") if word in one.command]
    how = f"Without {_and(asked)}" if asked else "A new run"
    return f"{how} `lab train` is fed better: {reason}"


def prescribed(one: Training, feed: Feed, rate: float, wait: float) -> str:
    """What lab.fast.tune prescribes for a run of `rate` images a second that waits `wait` per cent of its time."""
    host = feed.host
    now = tune.Candidate(one.path, one.workers, one.batch, one.switches)
    share = min(0.99, max(0.01, wait / 100))
    ranks = max(1, host.gpus)
    network = (1 - share) * ranks / rate
    if not host.gpus:  # all processors share both
        loading = share * host.cores / rate
    elif now.workers or now.path == plan.DEVICE:
        loading = tune.loading_cores(now, host) / rate
    else:  # the training loads by itself, between the steps
        loading = share * ranks / rate
    own = LOADED.get(now.path)
    paths = {path: loading * own / each for path, each in LOADED.items() if each > own} if own else {}
    costs = tune.Costs(loading={now.path: loading, **paths}, network={(now.batch, now.switches): network})
    try:
        found = tune.prescribe(host, costs, now)
    except LabError:
        return ""
    chosen = found.chosen
    if chosen.rate < CLEAR * rate or (chosen.candidate.path, chosen.candidate.workers) == (now.path, now.workers):
        return found.sentence[:1].upper() + found.sentence[1:]
    changes = []
    if chosen.candidate.path != now.path:
        changes.append("--cache ram" if chosen.candidate.path == tune.CACHED else f"--with {chosen.candidate.path}")
    if host.gpus and chosen.candidate.workers != now.workers:
        changes.append(f"--workers {chosen.candidate.workers} instead of {now.workers}")
    return (
        f"Try {' and '.join(changes)}: about {chosen.rate:,.0f} images/s instead of {rate:,.0f}; `lab tune` measures it"
    )


# The step


def _short_steps(seen: Seen) -> Advice | None:
    load = seen.load
    if not seen.running or load.gpu is None or load.gpu >= IDLE or waits(seen) or load.wait is None or seen.between:
        return None
    if larger_batch(seen) is not None:
        return None  # `_memory` says it
    return Advice(
        "step.short", ADVICE,
        f"GPU utilisation is {load.gpu:.0f} % although images are there in time (it waits {load.wait:.0f} %): its "
        "steps are many small kernels. `lab bench --switches` measures which technique of the step helps",
    )  # fmt: skip


def larger_batch(seen: Seen) -> int | None:
    """Images a step, over all ranks, that would fit where now at most half the memory is used; None for no more."""
    one, sizes = seen.training, _memory_of(seen)
    if one is None or not sizes:
        return None
    used, total = max(sizes, key=lambda pair: pair[0] / pair[1])
    if used > EMPTY * total:
        return None
    each = 1024 * (
        training_plan.memory_gib(one.model, 2, one.imgsz) - training_plan.memory_gib(one.model, 1, one.imgsz)
    )
    most, batch = one.batch + (tune.ROOM * total - used) / each, one.batch
    while 2 * batch <= most:
        batch *= 2
    return batch * one.ranks if batch > one.batch else None


def _memory_of(seen: Seen) -> list[tuple[float, float]]:
    """Used and whole memory, MiB, of the GPUs that tell."""
    found = []
    for gpu in seen.used:
        whole = sum(part.total or 0.0 for part in gpu.slices) or gpu.total
        used = held(gpu)
        if whole and used is not None:
            found.append((used, whole))
    return found


def _memory(seen: Seen) -> Advice | None:
    one, sizes = seen.training, _memory_of(seen)
    if not seen.running or one is None or not sizes:
        return None
    used, total = max(sizes, key=lambda pair: pair[0] / pair[1])
    batch = one.batch * one.ranks
    said = f"{used / 1024:.1f} of {total / 1024:.1f} GiB of GPU memory are in use"
    if used >= FULL * total:
        smaller = max(one.ranks, batch // 2)
        return Advice(
            "memory.full", ADVICE,
            f"{said}: the validation may find no room, and then the run goes on with half the batch. --batch {smaller} "
            "is safe, `--batch auto` leaves what is needed",
        )  # fmt: skip
    larger = larger_batch(seen)
    if larger is None or seen.load.rate is None or waits(seen):
        return None
    most = training_plan.NOMINAL
    if batch < most:
        within = min(larger, most)
        return Advice(
            "memory.empty", ADVICE,
            f"Only {said}: --batch {within} instead of {batch} fits and keeps the GPU busier; up to {most} images a "
            "step the learning stays the same",
        )  # fmt: skip
    if seen.load.gpu is not None and seen.load.gpu >= BUSY:
        return None
    return Advice(
        "memory.empty", ADVICE,
        f"Only {said}: --batch {larger} instead of {batch} would fit; past {most} images a step it learns differently, "
        "so compare the curves",
    )  # fmt: skip


# The card


def _hot(seen: Seen) -> Advice | None:
    gpu = next((gpu for gpu in seen.used if gpu.held and HEAT in gpu.held), None)
    if gpu is None:
        return None
    at = f" at {gpu.temperature:.0f} °C" if gpu.temperature is not None else ""
    return Advice(
        "clock.heat", ADVICE,
        f"{_card(gpu)} slows itself down because it is too hot{at}{_clock(gpu)}: free its air, clean its fans, "
        "give it a slot with room",
    )  # fmt: skip


def _power(seen: Seen) -> Advice | None:
    if not seen.running:
        return None
    braked = next(
        (gpu for gpu in seen.used if gpu.held and HEAT not in gpu.held and {BRAKE, SLOWDOWN} & {*gpu.held}), None
    )
    if braked is not None:
        return Advice(
            "clock.brake", ADVICE,
            f"{_card(braked)} is slowed down by its hardware{_clock(braked)}: most often the power supply or a cable "
            "does not give enough",
        )  # fmt: skip
    short = [
        gpu for gpu in seen.used
        if gpu.held and POWER in gpu.held and gpu.clock is not None and gpu.clock_most is not None
        and gpu.clock < SLOWED * gpu.clock_most
    ]  # fmt: skip
    if not short:
        return None
    gpu = short[0]
    limit = f" of {gpu.power_limit:.0f} W" if gpu.power_limit is not None else ""
    facts = f"{_card(gpu)} is at its power limit{limit}{_clock(gpu)}"
    if gpu.power_most and gpu.power_limit and gpu.power_most > gpu.power_limit + 1:
        return Advice(
            "clock.power", ADVICE,
            f"{facts}: `sudo nvidia-smi -i {gpu.number} -pl {gpu.power_most:.0f}` on the host lifts it, if cooling and "
            "supply allow",
        )  # fmt: skip
    return Advice("clock.power", NOTE, f"{facts}, the highest that it may have: it does what it can")


def _clock(gpu: Gpu) -> str:
    if gpu.clock is None or gpu.clock_most is None:
        return ""
    return f" ({gpu.clock:.0f} of {gpu.clock_most:.0f} MHz)"


def _others(seen: Seen) -> Advice | None:
    if not seen.others:
        return None
    first = max(seen.others, key=lambda other: other.memory or 0.0)
    who = f"{first.name} (pid {first.pid})" if first.name else "Another process"
    holds = "" if first.memory is None else f" with {first.memory / 1024:.1f} GiB"
    rest = f", and {len(seen.others) - 1} more" if len(seen.others) > 1 else ""
    where = "" if first.name else ". It is not to be seen from this container: `nvidia-smi` on the host names it"
    return Advice(
        "gpu.shared", ADVICE if seen.running else NOTE,
        f"{who}{holds} is on GPU {first.gpu} too{rest}, and takes memory and time from a training{where}",
    )  # fmt: skip


def _pcie(seen: Seen) -> Advice | None:
    for gpu in seen.used:
        if not seen.running or gpu.util is None or gpu.util < IDLE or gpu.pcie_gen is None or gpu.pcie_gen_most is None:
            continue
        narrow = gpu.pcie_width is not None and gpu.pcie_width_most is not None and gpu.pcie_width < gpu.pcie_width_most
        if gpu.pcie_gen >= gpu.pcie_gen_most and not narrow:
            continue
        lanes = f" with {gpu.pcie_width} of {gpu.pcie_width_most} lanes" if narrow else ""
        return Advice(
            "pcie.slow", ADVICE,
            f"{_card(gpu)} works over PCIe generation {gpu.pcie_gen} of {gpu.pcie_gen_most}{lanes}, although it is "
            "busy: look at its slot, its riser card and the firmware's PCIe setting",
        )  # fmt: skip
    return None


def _card(gpu: Gpu) -> str:
    return f"GPU {gpu.number}" + (f" ({gpu.name})" if gpu.name else "")


def _and(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _well(seen: Seen) -> Advice:
    load = seen.load
    if seen.between:
        return Advice("between", NOTE, "Between two epochs: it validates or writes checkpoints")
    if seen.look.pace is None and load.rate is None:
        return Advice("begins", NOTE, "The training says nothing of its steps yet: it begins, or validates")
    busy = f"the GPU is busy {load.gpu:.0f} % of the time" if load.gpu is not None else "how busy the GPU is is unknown"
    wait = f", images are there in time (it waits {load.wait:.0f} %)" if load.wait is not None else ""
    return Advice("well", NOTE, f"Nothing to mend: {busy}{wait}")


RULES: tuple[Callable[[Seen], Advice | None], ...] = (
    _lost, _idle, _no_gpu, _unused, _hot, _power, _crowded, _starved, _short_steps, _others, _memory, _pcie,
)  # fmt: skip

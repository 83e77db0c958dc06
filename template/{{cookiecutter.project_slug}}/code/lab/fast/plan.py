"""Which path images take and which switches of the step are on: decided from facts alone, each with its reason."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lab.errors import LabError
from lab.fast import switches
from lab.fast.switches import CPU, CUDA

PLAIN, STORE, DEVICE = "plain", "store", "device"
ALL, RING = "all", "ring"  # whence a mosaic takes its other pictures: all images, or the few that were read last
GIB = 1 << 30
MARGIN = GIB  # bytes of disk that stay free beside a store
# bytes of a GPU that painting without a compiler may take beside its result, some pictures at a time
UNFUSED = 512 << 20
UNFUSED_PIXEL = 160  # that one pixel takes then, at most: 119 were measured for one layer, 131 for two
PAINTED = 3  # batches on the GPU at once: what the step works on, what it has just left, the one ahead
CANVAS = 4  # times a picture's pixels: what a batch that is copied there may show of its mosaics
RESIDENT = 0.8  # of what the training leaves of a GPU, for images that live there
NO_SHAPES = {"compile": "every size would be compiled anew", "cudnn_benchmark": "every size would be timed anew"}


@dataclass(frozen=True)
class Facts:
    """What the decision is made of. Sizes in bytes; `options` are YOLOv5's, by key."""

    engine: str
    device: str  # cpu, cuda or mps
    options: dict[str, Any] = field(default_factory=dict)
    hyp: dict[str, Any] = field(default_factory=dict)  # of the --hyp file; {} means the engine's own, plain ones
    store_bytes: int = 0  # of the training images, decoded, at the size of the training
    unstored_bytes: int = 0  # of the training and validation images, what the stores do not hold yet
    cache: str = ""  # where stores lie
    cache_free: int = 0
    memory_free: int | None = None
    gpu_left: int | None = None  # of the GPU with the least, after the training's own need; None when unknown
    painting: int = 0  # of a GPU, that painting takes; 0 where `gpu_left` is free of that already
    bf16: bool = True  # the GPUs compute in bfloat16
    compiler: bool = True  # a C compiler is here
    polygons: bool = False  # labels are outlines
    albumentations: bool = False  # is installed, so YOLOv5 uses it


@dataclass(frozen=True)
class Wish:
    """What was asked for on the command line, and the speed part of settings that `lab tune` wrote."""

    plain: bool = False
    with_: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    val_period: int | None = None
    tuned: dict[str, Any] | None = None


@dataclass(frozen=True)
class Speed:
    """What a training does to be fast. Handed to the child scripts as a dictionary, and kept in request.json."""

    data: str = PLAIN
    stores: dict[str, str | None] = field(default_factory=dict)  # directory by split, once they are open
    partners: str = ALL
    resident_bytes: int = 0  # of images that live in each GPU's memory
    resident_room: int = 0  # what each GPU has for images
    image_bytes: int = 0  # of the training images, decoded; an estimate until their store is open
    switches: tuple[str, ...] = ()
    val_period: int = 1
    steps: int = 0  # of the whole run; 0 when not known
    reasons: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "switches": list(self.switches), "reasons": list(self.reasons)}


def decide(facts: Facts, wish: Wish) -> Speed:
    """Raises LabError when what was asked for contradicts itself, or cannot be had here."""
    require_consistent(wish)
    period = _val_period(facts, wish)
    if wish.plain:
        return Speed(val_period=period, reasons=("--plain: images and step are the engine's own",))
    if "evolve" in facts.options:
        if wish.with_:
            raise LabError("--evolve trains the engine's own way: leave out --with")
        return Speed(val_period=period, reasons=("an evolution trains the engine's own way",))
    chosen, why = _switches(facts, wish)
    data, reason = _data(facts, wish)
    speed = Speed(
        data=data,
        partners=_partners(facts, data),
        resident_room=int(RESIDENT * max(0, (facts.gpu_left or 0) - facts.painting)) if data == DEVICE else 0,
        switches=chosen,
        val_period=period,
        reasons=(reason, *why),
    )
    return with_images(speed, facts.store_bytes)


def with_images(speed: Speed, size: int) -> Speed:
    """`speed` for images that take `size` bytes: they live in the GPU's memory where there is room for all of them."""
    resident = size if speed.data == DEVICE and size <= speed.resident_room else 0
    return replace(speed, resident_bytes=resident, image_bytes=size)


def painting_bytes(pictures: int, side: int, mixup: bool = False, resident: bool = False) -> int:
    """Bytes of a GPU that painting so many pictures at once takes, beside the step and images that live there."""
    picture = 3 * side**2
    copied = 0 if resident else CANVAS * picture * (2 if mixup else 1)
    return max(UNFUSED, UNFUSED_PIXEL * side**2) + pictures * (PAINTED * picture + copied)


def pinned_slots(size: int, wanted: int, room: int | None) -> int:
    """How many buffers of `size` bytes may be locked in main memory: `wanted`, or as many as `room` bytes hold, or 0.

    torch takes a power of two for each. None: nothing is known of the room.
    """
    return wanted if room is None else min(wanted, room // taken(size))


def taken(size: int) -> int:
    """Bytes of the host that torch takes for `size` bytes of pinned memory: it rounds up to a power of two."""
    return 1 << max(0, size - 1).bit_length()


def require_consistent(wish: Wish) -> None:
    """Raises LabError for words that contradict each other, whatever the facts are."""
    if wish.plain:
        for option, given in (("--with", wish.with_), ("--without", wish.without), ("--tuned", wish.tuned is not None)):
            if given:
                raise LabError(f"--plain is the engine's own way in everything: leave out --plain or {option}")
    twice = next((name for name in wish.with_ if name in wish.without), None)
    if twice:
        raise LabError(f"{twice} is named by --with and by --without: leave it out of one")
    if DEVICE in wish.with_ and STORE in wish.without:
        raise LabError("--with device reads from the store: leave out --without store")
    if wish.val_period is not None and wish.val_period < 1:
        raise LabError(f"--val-period {wish.val_period}: give 1 or more epochs")


def fitting(speed: Speed, engine: str, device: str) -> Speed:
    """`speed` without what this kind of device cannot do; for a run that goes on somewhere else."""
    kept = tuple(name for name in speed.switches if switches.works(switches.named(name), engine, device))
    if speed.data == DEVICE and device != CUDA:
        return replace(speed, data=STORE, resident_bytes=0, resident_room=0, switches=kept)
    return replace(speed, switches=kept)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _val_period(facts: Facts, wish: Wish) -> int:
    period = wish.val_period
    if period is None:
        return int((wish.tuned or {}).get("val_period", 1))
    if period > 1 and facts.options.get("noval"):
        raise LabError("--noval validates after the last epoch only: leave out --noval or --val-period")
    return period


def _switches(facts: Facts, wish: Wish) -> tuple[tuple[str, ...], list[str]]:
    """Names in the table's order, and a sentence for each default that had to stay off."""
    engine, device = facts.engine, facts.device
    asked = [name for name in wish.with_ if name not in switches.DATA_PATHS]
    for name in asked:
        if obstacle := _obstacle(name, facts):
            raise LabError(f"--with {name}: {obstacle}")
    tuned = None if wish.tuned is None else wish.tuned.get("switches")
    wanted = [*(switches.defaults(engine, device) if tuned is None else tuned), *asked]
    chosen, why = [], []
    for name in switches.NAMES:
        if name not in wanted or name in wish.without:
            continue
        if obstacle := _obstacle(name, facts):
            why.append(f"{name} is off: {obstacle}")
        else:
            chosen.append(name)
    return tuple(chosen), why


def _obstacle(name: str, facts: Facts) -> str:
    """Why the switch `name` cannot be on here, "" when it can."""
    switch = switches.named(name)
    if not switches.works(switch, facts.engine, facts.device):
        if facts.engine not in switch.devices:
            return f"{facts.engine} has it already, or has nothing for it to act on"
        return f"it needs {' or '.join(_spoken(kind) for kind in switch.devices[facts.engine])}"
    if name in NO_SHAPES:
        for option in ("multi_scale", "rect"):
            if facts.options.get(option):
                return f"{NO_SHAPES[name]} with --{option.replace('_', '-')}, so leave one of them out"
    if name == "compile" and not facts.compiler:
        return "there is no C compiler here, and torch.compile needs one"
    if name == "bf16" and not facts.bf16:
        return "this GPU does not compute in bfloat16, which needs compute capability 8.0"
    if name == "loss" and facts.hyp.get("fl_gamma"):
        return "fl_gamma in the --hyp file asks for the focal loss, which only the engine's own has"
    return ""


def _spoken(kind: str) -> str:
    return {CPU: "a processor", CUDA: "an NVIDIA GPU"}[kind]


def inexpressible(facts: Facts) -> str:
    """What of this training the store's loaders cannot do, "" when they can."""
    options, hyp = facts.options, facts.hyp
    if options.get("rect"):
        return "--rect needs pictures of other shapes than the store's loaders make"
    if options.get("quad"):
        return "--quad stitches pictures in a way of its own"
    if options.get("image_weights"):
        return "--image-weights draws images in a way of its own"
    if options.get("cache"):
        return f"--cache {options['cache']} keeps images the engine's own way"
    if float(hyp.get("copy_paste") or 0) > 0 and facts.polygons:
        return "copy_paste cuts objects out along their outlines, which only the engine does"
    if float(hyp.get("cutmix") or 0) > 0:
        return "cutmix is the engine's alone"
    if facts.engine == "yolov5" and facts.albumentations:
        return "albumentations is installed, and YOLOv5 uses it"
    return ""


def _data(facts: Facts, wish: Wish) -> tuple[str, str]:
    """The path of the images and the reason for it."""
    asked = next((path for path in (DEVICE, STORE) if path in wish.with_), None)
    without = [path for path in (STORE, DEVICE) if path in wish.without]
    gpu = facts.device == CUDA
    if asked == DEVICE and not gpu:
        raise LabError("--with device paints pictures on a GPU, and none is used: give --with store")
    if STORE in without:
        return PLAIN, "--without store: images are read the engine's own way"
    tuned = (wish.tuned or {}).get("data")
    wanted = asked or tuned or (DEVICE if gpu else PLAIN)
    if wanted == DEVICE and (DEVICE in without or not gpu):
        wanted = STORE
    if wanted == PLAIN:
        if tuned:
            return PLAIN, "lab tune measured that a store brings nothing here"
        return PLAIN, "a processor is busy with the network, not with reading images; --with store reads them once"
    if obstacle := inexpressible(facts) or _no_room(facts):
        if asked:
            raise LabError(f"--with {asked}: {obstacle}")
        return PLAIN, f"images are read the engine's own way: {obstacle}"
    if wanted == DEVICE and asked is None and facts.gpu_left is not None and facts.gpu_left < facts.painting:
        return STORE, f"the GPU has {_gib(max(0, facts.gpu_left))} left, too little to paint pictures on it"
    why = {DEVICE: "images are decoded once and painted on the GPU", STORE: "images are decoded once"}
    return wanted, why[wanted]


def _no_room(facts: Facts) -> str:
    if not facts.unstored_bytes or facts.unstored_bytes + MARGIN <= facts.cache_free:
        return ""
    return (
        f"{facts.cache} has {_gib(facts.cache_free)} free, and the decoded images take {_gib(facts.unstored_bytes)}: "
        "CACHE_DIR in .env names a larger disk"
    )


def _partners(facts: Facts, data: str) -> str:
    """Ultralytics takes a mosaic's others from a few images unless all are in memory; YOLOv5 takes any."""
    fits = facts.memory_free is None or facts.store_bytes <= facts.memory_free
    return RING if facts.engine == "yolov5u" and data != PLAIN and not fits else ALL


# Words


def sentence(speed: Speed) -> str:
    """What is on, in a sentence or two, for the lines before a training."""
    first = {
        PLAIN: "images as the engine reads them",
        STORE: "images from the store",
        DEVICE: "images from the store, painted on the GPU",
    }[speed.data]
    if speed.resident_bytes:
        first += f", where {_gib(speed.resident_bytes)} of them live"
    elif speed.data == DEVICE:
        first += " from batches that are copied there"
        if speed.resident_room:
            first += f": all {_gib(speed.image_bytes)} do not fit into the {_gib(speed.resident_room)} left for them"
    on = ", ".join(speed.switches)
    words = f"{first}; " + (f"on: {on}" if on else "the step is the engine's own")
    if speed.val_period > 1:
        words += f"; validated every {speed.val_period} epochs"
    return words + (f" ({'; '.join(speed.reasons)})" if speed.reasons else "")

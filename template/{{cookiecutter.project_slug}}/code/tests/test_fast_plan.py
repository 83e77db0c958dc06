"""What a training does to be fast: decided from described facts, on no hardware at all."""

import re
from dataclasses import replace

import pytest

from lab.errors import LabError
from lab.fast import switches
from lab.fast.plan import (
    ALL,
    DEVICE,
    PLAIN,
    RING,
    STORE,
    Facts,
    Speed,
    Wish,
    decide,
    fitting,
    painting_bytes,
    pinned_slots,
    sentence,
    with_images,
)
from lab.fast.trial import STEPS, WARM, Trial

GIB = 1 << 30
GPU = Facts(
    engine="yolov5",
    device="cuda",
    store_bytes=10 * GIB,
    unstored_bytes=12 * GIB,
    cache="/cache",
    cache_free=100 * GIB,
    memory_free=64 * GIB,
    gpu_left=40 * GIB,
    painting=GIB,
)
CPU = replace(GPU, device="cpu", gpu_left=None)


def test_a_gpu_paints_what_lives_on_it() -> None:
    speed = decide(GPU, Wish())
    assert (speed.data, speed.resident_bytes, speed.partners) == (DEVICE, 10 * GIB, ALL)
    assert speed.switches == switches.defaults("yolov5", "cuda")
    assert sentence(speed).startswith(
        "images from the store, painted on the GPU, where 10.0 GiB of them live; on: chan"
    )


def test_what_does_not_fit_is_never_chosen() -> None:
    small = decide(replace(GPU, gpu_left=4 * GIB), Wish())
    assert (small.data, small.resident_bytes) == (DEVICE, 0)
    assert "copied there: all 10.0 GiB do not fit into the 2.4 GiB left for them" in sentence(small)
    full = decide(replace(GPU, gpu_left=GIB // 2), Wish())
    assert full.data == STORE
    assert "0.5 GiB left" in full.reasons[0]
    disk = decide(replace(GPU, cache_free=5 * GIB), Wish())
    assert disk.data == PLAIN
    assert "/cache has 5.0 GiB free, and the decoded images take 12.0 GiB" in disk.reasons[0]
    assert decide(replace(GPU, cache_free=12 * GIB), Wish()).data == PLAIN  # some disk stays free
    assert decide(replace(GPU, cache_free=5 * GIB, unstored_bytes=3 * GIB), Wish()).data == DEVICE
    assert decide(replace(GPU, cache_free=0, unstored_bytes=0), Wish()).data == DEVICE  # it is there, whole
    with pytest.raises(LabError, match=r"--with device: /cache has 5\.0 GiB free"):
        decide(replace(GPU, cache_free=5 * GIB), Wish(with_=("device",)))


def test_images_live_on_the_gpu_by_their_real_size() -> None:
    guessed = decide(GPU, Wish())
    larger = with_images(guessed, 39 * GIB)  # the images that were not looked at were the large ones
    assert (larger.resident_bytes, larger.image_bytes) == (0, 39 * GIB)
    assert "all 39.0 GiB do not fit into the 31.2 GiB left for them" in sentence(larger)
    assert "of them live" not in sentence(larger)
    smaller = with_images(decide(replace(GPU, store_bytes=50 * GIB), Wish()), 9 * GIB)
    assert "where 9.0 GiB of them live" in sentence(smaller)
    assert with_images(decide(CPU, Wish(with_=("store",))), 1).resident_bytes == 0


def test_no_more_is_locked_than_there_is_room_for() -> None:
    batch = 64 * 4 * 3 * 640**2  # 300 MiB, for which torch takes 512
    assert pinned_slots(batch, 3, None) == pinned_slots(batch, 3, 64 * GIB) == 3
    assert pinned_slots(batch, 3, 3 * 512 << 20) == 3
    assert pinned_slots(batch, 3, (3 * 512 << 20) - 1) == 2
    assert pinned_slots(batch, 3, 384 << 20) == 0


def test_what_painting_takes_grows_with_the_batch() -> None:
    few, many = (painting_bytes(pictures, 640) for pictures in (1, 64))
    assert many - few == 63 * 7 * 3 * 640**2  # three painted, and a canvas of four to copy
    assert painting_bytes(64, 640, mixup=True) > many > painting_bytes(64, 640, resident=True)
    assert painting_bytes(1, 2560) > 160 * 2560**2  # one picture at a time takes what it takes


def test_a_processor_keeps_the_engines_own_way_unless_told_or_tuned() -> None:
    speed = decide(CPU, Wish())
    assert (speed.data, speed.switches) == (PLAIN, switches.defaults("yolov5", "cpu"))
    assert decide(CPU, Wish(with_=("store",))).data == STORE
    assert decide(CPU, Wish(tuned={"data": STORE, "switches": ["foreach_ema"]})).switches == ("foreach_ema",)
    assert decide(CPU, Wish(tuned={"data": DEVICE})).data == STORE
    with pytest.raises(LabError, match="--with device paints pictures on a GPU"):
        decide(CPU, Wish(with_=("device",)))


def test_plain_is_the_engines_own_in_everything() -> None:
    speed = decide(GPU, Wish(plain=True))
    assert replace(speed, reasons=()) == Speed()
    for wish in (Wish(True, with_=("loss",)), Wish(True, without=("loss",)), Wish(True, tuned={})):
        with pytest.raises(LabError, match="leave out --plain or"):
            decide(GPU, wish)


@pytest.mark.parametrize(
    ("options", "hyp", "more", "part"),
    [
        ({"rect": True}, {}, {}, "--rect needs"),
        ({"quad": True}, {}, {}, "--quad stitches"),
        ({"image_weights": True}, {}, {}, "--image-weights draws"),
        ({"cache": "ram"}, {}, {}, "--cache ram keeps"),
        ({}, {"copy_paste": 0.1}, {"polygons": True}, "copy_paste cuts"),
        ({}, {"cutmix": 0.5}, {}, "cutmix is"),
        ({}, {}, {"albumentations": True}, "albumentations is installed"),
    ],
)
def test_what_cannot_be_expressed_stays_plain(options: dict, hyp: dict, more: dict, part: str) -> None:
    facts = replace(GPU, options=options, hyp=hyp, **more)
    speed = decide(facts, Wish())
    assert speed.data == PLAIN
    assert part in speed.reasons[0]
    assert speed.switches  # the step can be fast all the same
    with pytest.raises(LabError, match=f"--with store: .*{part.split(maxsplit=1)[0]}"):
        decide(facts, Wish(with_=("store",)))


def test_copy_paste_without_outlines_and_multi_scale_do_not_keep_images_plain() -> None:
    facts = replace(GPU, options={"multi_scale": True}, hyp={"copy_paste": 0.1})
    assert decide(facts, Wish()).data == DEVICE
    with pytest.raises(LabError, match="--with compile: every size would be compiled anew with --multi-scale"):
        decide(facts, Wish(with_=("compile",)))
    tuned = decide(facts, Wish(tuned={"data": STORE, "switches": ["cudnn_benchmark", "loss"]}))
    assert tuned.switches == ("loss",)
    assert any(reason.startswith("cudnn_benchmark is off") for reason in tuned.reasons)


def test_switches_are_told_on_and_off() -> None:
    some = decide(GPU, Wish(with_=("bf16", "compile"), without=("channels_last", "device")))
    assert {"bf16", "compile", "loss"} <= set(some.switches)
    assert "channels_last" not in some.switches
    assert some.data == STORE
    assert decide(GPU, Wish(without=("store",))).data == PLAIN
    assert list(some.switches) == [name for name in switches.NAMES if name in some.switches]  # the table's order


@pytest.mark.parametrize(
    ("facts", "wish", "part"),
    [
        (replace(GPU, compiler=False), Wish(with_=("compile",)), "no C compiler"),
        (replace(GPU, bf16=False), Wish(with_=("bf16",)), "capability 8.0"),
        (CPU, Wish(with_=("cudnn_benchmark",)), "it needs an NVIDIA GPU"),
        (replace(GPU, engine="yolov5u"), Wish(with_=("foreach_ema",)), "yolov5u has it already"),
        (replace(GPU, hyp={"fl_gamma": 1.5}), Wish(with_=("loss",)), "focal loss"),
        (GPU, Wish(with_=("loss",), without=("loss",)), "leave it out of one"),
        (GPU, Wish(with_=("device",), without=("store",)), "reads from the store"),
        (GPU, Wish(val_period=0), "--val-period 0: give 1 or more"),
        (replace(GPU, options={"noval": True}), Wish(val_period=2), "leave out --noval or --val-period"),
        (replace(GPU, options={"evolve": 3}), Wish(with_=("loss",)), "--evolve trains the engine's own way"),
    ],
)
def test_contradictions_are_one_sentence(facts: Facts, wish: Wish, part: str) -> None:
    with pytest.raises(LabError) as caught:
        decide(facts, wish)
    assert part in caught.value.sentence
    assert caught.value.status == 2


def test_ultralytics_few_partners_where_memory_does_not_hold_the_images() -> None:
    facts = replace(GPU, engine="yolov5u")
    assert decide(facts, Wish()).partners == ALL
    assert decide(replace(facts, memory_free=GIB), Wish()).partners == RING
    assert decide(replace(GPU, memory_free=GIB), Wish()).partners == ALL  # YOLOv5 takes any


def test_a_run_that_goes_on_without_its_gpu() -> None:
    moved = fitting(decide(GPU, Wish(with_=("tf32",))), "yolov5", "cpu")
    assert (moved.data, moved.resident_bytes) == (STORE, 0)
    assert moved.switches == ("channels_last", "fused_optimizer", "foreach_ema", "loss")


@pytest.mark.parametrize("engine", ["yolov5", "yolov5u"])
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_every_default_works_where_it_is_one(engine: str, device: str) -> None:
    assert all(switches.works(switches.named(name), engine, device) for name in switches.defaults(engine, device))


@pytest.mark.parametrize(
    ("text", "part"),
    [("chanels_last", "did you mean channels_last?"), ("xyz", "there are channels_last, "), (" , ", "names nothing")],
)
def test_unknown_names(text: str, part: str) -> None:
    with pytest.raises(LabError, match="--with") as caught:
        switches.words("--with", text)
    assert part in caught.value.sentence


def test_names_are_read_kindly() -> None:
    assert switches.words("--with", "channels-last, store,store") == ("channels_last", "store")


# torch.compile on trial


def tried(before: float, first: float, after: float, total: int) -> tuple[list[str], int]:
    """What a trial says about steps of these seconds, and after how many of them the compiler is started."""
    said: list[str] = []
    now, ticks, started = [0.0], [0], [0]

    def start() -> None:
        started[0] = ticks[0]

    trial = Trial(start, lambda: None, said.append, total)
    trial.pause()
    while not said:
        ticks[0] += 1
        trial.tick(lambda: now[0])
        compiled = bool(started[0])
        now[0] += before if not compiled else first if ticks[0] == started[0] else after
        assert ticks[0] < 100
    return said, started[0]


def test_a_trial_says_when_the_compiler_is_earned_back() -> None:
    said, start = tried(0.4, 90.0, 0.3, 10_000)
    assert start == WARM + STEPS + 1
    assert said == [
        "torch.compile took 90 s, and a step went from 400 to 300 ms: earned back after 897 steps of the 10,000 of "
        "this run"
    ]
    assert tried(0.4, 90.0, 0.3, 500)[0][0].endswith("earned back after 897 steps, more than the 500 of this run")
    assert "it brings nothing here" in tried(0.4, 90.0, 0.4, 0)[0][0]


def test_only_what_somebody_measured_is_on_by_default() -> None:
    figure = re.compile(r"\d\.\d+[^;]*(, measured|reported by)")
    for switch in switches.SWITCHES:
        if switch.default:
            assert figure.search(switch.gain), switch.name
            assert switch.numbers in (switches.EQUAL, switches.ROUNDING), switch.name

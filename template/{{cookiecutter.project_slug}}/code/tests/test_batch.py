"""`--batch auto` against devices that do not exist: their memory is a formula."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from lab import batch
from lab.engines import Prepared
from lab.errors import LabError
from lab.fast.plan import painting_bytes

GIB = 1 << 30


def device(total: float, base: float, each: float, jump: Callable[[int], float] = lambda _: 0) -> batch.Measure:
    """A device of `total` GiB: `base` for the network, `each` for an image, and what `jump` adds; all in GiB."""

    def measure(size: int) -> int | None:
        used = base + each * size + jump(size)
        return round(used * GIB) if used <= total else None

    return measure


@pytest.mark.parametrize("total", [6, 11, 16, 24, 80, 141])
@pytest.mark.parametrize("each", [0.02, 0.07, 0.2, 0.6, 2.4])
def test_it_fills_the_gpu_and_leaves_the_margin(total: float, each: float) -> None:
    found = batch.search(device(total, 1.1, each), total * GIB)
    assert found is not None
    assert found.measured <= total * GIB * 0.92
    free = 1 - found.measured / (total * GIB)
    assert free < 0.15 or found.batch == batch.MOST or each > 0.05 * total  # one image more may be too much
    assert abs(found.predicted / found.measured - 1) < 0.1
    assert len(found.probes) <= batch.TRIES + 1


def test_workspaces_that_jump_do_not_mislead_it() -> None:
    found = batch.search(device(24, 1, 0.15, lambda size: 1.5 if size >= 40 else 0.1), 24 * GIB)
    assert found is not None
    assert 0.08 <= 1 - found.measured / (24 * GIB) < 0.15
    assert abs(found.predicted / found.measured - 1) < 0.1


def test_memory_that_grows_faster_than_a_line_does_not_end_in_an_error() -> None:
    found = batch.search(device(16, 1, 0.1, lambda size: 0.002 * size**2), 16 * GIB)
    assert found is not None
    assert found.measured <= 16 * GIB * 0.92
    assert found.batch >= 50  # 55 is the most that fits under the margin


def test_what_others_use_counts() -> None:
    alone, shared = (batch.search(device(24, 1 + others, 0.2), 24 * GIB) for others in (0, 10))
    assert alone is not None
    assert shared is not None
    assert shared.batch < alone.batch * 0.7


def test_no_more_than_there_are_images() -> None:
    found = batch.search(device(80, 1, 0.05), 80 * GIB, most=38)
    assert found is not None
    assert found.batch == 38


@pytest.mark.parametrize("held", [0, 2 * GIB])
def test_what_a_training_holds_beside_its_step_is_in_every_probe(
    held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    request = {
        "devices": "", "most": 500, "result": str(tmp_path / "batch.json"), "beside": (held, (10 << 20) * bool(held)),
        "pretended": {"total": 24 * GIB, "base": GIB, "per_image": 100 << 20},
    }  # fmt: skip
    batch.measure_all(request, lambda _, __: None, SimpleNamespace(device=str))
    (found,) = json.loads((tmp_path / "batch.json").read_text(encoding="utf-8"))["devices"]
    of_images = (110 if held else 100) << 20
    assert found["measured"] == GIB + held + of_images * found["batch"]
    assert found["measured"] <= 24 * GIB * 0.92
    assert found["measured"] + of_images > 24 * GIB * 0.92 * batch.ENOUGH
    said = batch.judge([found], 1).sentence
    assert ("for images and their painting" in said) == bool(held)


def test_what_is_held_beside_a_step_is_what_the_plan_says() -> None:
    def held(**speed: object) -> tuple[int, int]:
        return batch.beside(Prepared("train", {"imgsz": 640}, [""], None, None, speed))

    assert held(data="store") == held() == (0, 0)
    for resident in (0, 3 * GIB):
        fixed, each = held(data="device", resident_bytes=resident)
        assert fixed + 64 * each == resident + painting_bytes(64, 640, resident=resident > 0)


def test_a_single_image_may_be_too_much() -> None:
    assert batch.search(device(4, 3.9, 0.5), 4 * GIB) is None
    with pytest.raises(LabError, match="not even one image a step fits GPU 1"):
        batch.judge([{"device": "0", "batch": 4}, {"device": "1", "batch": None}], 2)


def test_the_fullest_gpu_decides_for_all() -> None:
    one = {"batch": 32, "predicted": 20 * GIB, "measured": 21 * GIB, "total": 24 * GIB}
    found = batch.judge([{"device": "0", **one}, {"device": "1", **one, "batch": 12, "measured": 22 * GIB}], 2)
    assert found.batch == 24
    assert found.sentence.startswith("--batch auto: 24 (12 on each of 2 GPUs)")
    assert "took 22.0 of 24.0 GiB, leaving 8 %" in found.sentence


@pytest.mark.parametrize(
    ("size", "ranks", "half"), [(64, 1, 32), (3, 1, 1), (1, 1, None), (64, 4, 32), (12, 4, 4), (8, 8, None), (24, 8, 8)]
)
def test_half_a_batch_is_a_multiple_of_the_gpus(size: int, ranks: int, half: int | None) -> None:
    assert batch.smaller(size, ranks) == half

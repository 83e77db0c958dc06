"""Pictures painted by torch are OpenCV's, made by way of a whole canvas."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import made_draws
import numpy as np
import pytest

from lab.fast import sheet
from lab.fast.draws import GREY, Draws
from lab.fast.store import Store

pytestmark = pytest.mark.container


def by_torch(
    draws: Draws,
    store: Store,
    crop: bool = False,
    compiled: bool = False,
    channels_last: bool = False,
    tables: Any = sheet.scaled_hue,
    **shape: Any,
) -> Any:
    import torch

    from lab.fast import paint_device

    of = sheet.Shape(draws.side, **{"pictures": len(draws), **shape})
    array = torch.zeros(of.size, dtype=torch.uint8)
    crops = sheet.fill(of, array.numpy(), draws, store, crop, tables)
    if crops is not None:
        pixels = np.zeros(sheet.most_bytes(of, store), np.uint8)
        crops.copy(store, pixels, 0, len(crops.row))
    else:
        pixels = store.pixels if store.pixels.flags.writeable else store.pixels.copy()
    device = made_draws.device()
    painter = paint_device.Painter(of, device, channels_last, compiled)
    return painter(torch.from_numpy(pixels).to(device), array).cpu()


def differences(draws: Draws, store: Store, tables: Any = sheet.scaled_hue, **more: Any) -> Any:
    ours = by_torch(draws, store, tables=tables, **more).numpy().astype(int)
    return abs(ours - made_draws.painted(draws, store, tables))


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mosaic": ({}, {}),
    "one tile": ({"mosaics": 0.0}, {}),
    "some mosaics": ({"mosaics": 0.5}, {}),
    "no colours, no flips": ({"gains": False, "flips": False}, {}),
    "perspective": ({"perspective": 1e-3}, {"perspective": True}),
    "a horizon": ({"perspective": 0.05}, {"perspective": True}),
    "mixup": ({"mixup": 0.5}, {"layers": 2}),
    "all": ({"mixup": 0.5, "mosaics": 0.5, "perspective": 1e-3}, {"layers": 2, "perspective": True}),
}


@pytest.mark.parametrize("crop", [False, True], ids=["stored", "cropped"])
@pytest.mark.parametrize("case", CASES)
def test_as_opencv_by_way_of_a_canvas(case: str, crop: bool) -> None:
    drawn, shape = CASES[case]
    store = made_draws.store()
    found = differences(made_draws.draws(store, 6, seed=len(case), **drawn), store, crop=crop, **shape)
    assert found.mean() < 0.1
    assert np.percentile(found, 99.9) <= 2


def test_exact_where_no_pixel_is_parted() -> None:
    """Whole shifts of the canvas, which also move a part of the mosaic out of the picture, and flips."""
    store = made_draws.store()
    draws = made_draws.draws(store, 6, gains=False)
    matrices = np.tile(np.eye(3), (6, 1, 1))
    matrices[:, :2, 2] = np.random.default_rng(1).integers(-90, 30, (6, 2))
    assert not differences(replace(draws, matrix=matrices), store).any()


def test_every_colour_there_and_back() -> None:
    """Hue, saturation and value of each third level of blue, green and red, against OpenCV's."""
    import torch

    from lab.fast import paint_device

    level = np.arange(0, 256, 3, dtype=np.uint8)
    colours = np.stack(np.meshgrid(level, level, level, indexing="ij"), -1).reshape(86, 86 * 86, 3)
    table = sheet.scaled_hue([[1.01, 1.3, 0.8]])
    hsv = cv2.LUT(cv2.cvtColor(colours, cv2.COLOR_BGR2HSV), table[0].T.reshape(1, 256, 3))
    want = torch.from_numpy(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR))
    planes = [torch.from_numpy(colours[None, ..., channel]).float() for channel in range(3)]
    ours = paint_device._colour(planes, torch.from_numpy(table), torch.ones(1, dtype=torch.uint8))
    for channel in range(3):
        off = (ours[channel][0] - want[..., channel]).abs()
        assert off.max() <= 1
        assert off.mean() < 0.01


def test_the_hue_of_ultralytics() -> None:
    store = made_draws.store()
    draws = made_draws.draws(store, 3)
    found = differences(draws, store, sheet.shifted_hue)
    assert found.mean() < 0.1
    other = made_draws.painted(draws, store, sheet.scaled_hue)
    assert abs(other.astype(int) - made_draws.painted(draws, store, sheet.shifted_hue)).mean() > 0.1


def test_the_processors_painter_and_the_devices_agree() -> None:
    """A training may go on with either."""
    from lab.fast.paint import Painter

    store = made_draws.store()
    draws = made_draws.draws(store, 6, mixup=0.5, mosaics=0.5)
    by_opencv = np.zeros((6, 3, draws.side, draws.side), np.uint8)
    Painter().paint(draws, store.image, by_opencv)
    assert abs(by_torch(draws, store, layers=2).numpy().astype(int) - by_opencv).mean() < 0.5


def test_pictures_that_a_batch_lacks_change_nothing() -> None:
    store = made_draws.store()
    draws = made_draws.draws(store, 3, mixup=1.0)
    alone, padded = by_torch(draws, store, layers=2), by_torch(draws, store, layers=2, pictures=5)
    assert padded.shape == (5, 3, 64, 64)
    assert (alone == padded[:3]).all()


def test_outside_all_tiles_is_grey() -> None:
    store = made_draws.store()
    draws = made_draws.draws(store, 2, gains=False)
    away = np.tile(np.diag([1.0, 1.0, 1.0]), (2, 1, 1))
    away[:, 0, 2] = 1e7, -1e12
    assert (by_torch(replace(draws, matrix=away), store) == GREY).all()
    nowhere = np.zeros((2, 3, 3))
    nowhere[:, 2, 2] = 1
    assert by_torch(replace(draws, matrix=nowhere), store).shape == (2, 3, 64, 64)


def test_channels_last_is_the_same_in_another_order() -> None:
    import torch

    store = made_draws.store()
    draws = made_draws.draws(store, 3)
    last = by_torch(draws, store, channels_last=True)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert (last == by_torch(draws, store)).all()


def test_a_few_pictures_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from lab.fast import paint_device

    store = made_draws.store()
    draws = made_draws.draws(store, 5)
    whole = by_torch(draws, store)
    monkeypatch.setattr(paint_device, "UNFUSED", 2 * 64 * 64 * paint_device.UNFUSED_PIXEL)
    assert (by_torch(draws, store) == whole).all()


def test_addresses_beyond_what_int32_holds(tmp_path: Path) -> None:
    """A store of 3 GB of which the file system holds only what is written: images before and after 2**31 bytes."""
    have = made_draws.store(6)
    big = np.memmap(tmp_path / "pixels", np.uint8, "w+", shape=(3 * 2**30,))
    offset = have.offset.copy()
    offset[3:] += 2**31 + 12345
    offset[5] = len(big) - 3 * int(have.height[5] * have.width[5])  # the last byte of all
    for row in range(6):
        image = have.image(row).reshape(-1)
        big[offset[row] : offset[row] + len(image)] = image
    store = replace(have, pixels=big, offset=offset)
    draws = made_draws.draws(store, 4)
    assert (by_torch(draws, store, wide=True) == by_torch(draws, have)).all()


@pytest.mark.long
def test_compiled_gives_the_same_bytes() -> None:
    """On a processor by Inductor's C++ backend: `fullgraph` holds there as on a GPU, and these lines make the kernel.

    A GPU multiplies and adds in one step, which may put a level off by one.
    """
    store = made_draws.store()
    draws = made_draws.draws(store, 3, mosaics=0.0)
    ours, unfused = by_torch(draws, store, compiled=True, tiles=1).int(), by_torch(draws, store, tiles=1).int()
    assert (ours - unfused).abs().max() <= made_draws.on_gpu()
    assert (ours != unfused).float().mean() < 0.01


def test_when_compiling_fails_painting_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no ptxas here\nand more")

    store = made_draws.store()
    draws = made_draws.draws(store, 2)
    want = by_torch(draws, store)
    monkeypatch.setattr(torch, "compile", fails)
    assert (by_torch(draws, store, compiled=True) == want).all()
    assert capsys.readouterr().out.splitlines() == [
        "Pictures are painted unfused, which is slower: torch.compile failed with RuntimeError: no ptxas here"
    ]


def test_why_painting_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from lab.fast import paint_device

    assert paint_device.why_not_compiled(torch.device("cpu"))
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 1))
    assert "7.0" in paint_device.why_not_compiled(gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setenv("CC", "no-such-compiler")
    assert paint_device.why_not_compiled(gpu) == "there is no C compiler"
    monkeypatch.delenv("CC")
    assert paint_device.why_not_compiled(gpu) == ""

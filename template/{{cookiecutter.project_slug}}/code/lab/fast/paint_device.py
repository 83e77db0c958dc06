"""Training pictures painted on the GPU, a whole batch at once, from the numbers of sheet.py.

For each pixel of a picture: through the matrix to the canvas, there to its four neighbours, each on a tile or grey,
and from their bytes to a colour. Nothing but arithmetic for each pixel and reads at computed places: torch.compile
makes one kernel of it, without a canvas in memory, and nothing waits for the GPU. The same lines run unfused, on a
processor too, for a few pictures at a time.

Interpolation is that of OpenCV's INTER_LINEAR with a constant border; layers are rounded before they are blended, and
blends cut off, as both engines do it; hue, saturation and value are OpenCV's uint8 ones.

What it costs, compiled, for 64 pictures of 640 pixels from mosaics (reckoned, not yet measured): 26 million pixels,
each 12 bytes read through the caches, 3 written, about 300 instructions: 0.18 GB from and to memory. That is 0.04 ms of
an H200's memory and 0.6 ms of a T4's, so arithmetic and the units that load and store decide: about 1 ms on an H200,
2 ms on an RTX 3090, 8 ms on a T4; a second layer adds half to that. Unfused, each of some 300 operations goes through
memory: about 30, 100 and 300 ms.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lab.fast.draws import GREY
from lab.fast.plan import UNFUSED, UNFUSED_PIXEL
from lab.fast.sheet import Shape


def paint(
    pixels: torch.Tensor,
    base: torch.Tensor,
    pitch: torch.Tensor,
    place: torch.Tensor,
    matrix: torch.Tensor,
    share: torch.Tensor,
    table: torch.Tensor,
    coloured: torch.Tensor,
    side: int,
    perspective: bool,
    channels_last: bool,
) -> torch.Tensor:
    """uint8 (B, 3, side, side), red first, from `pixels` (uint8, one-dimensional, blue first) and a sheet's arrays."""
    layers = share.shape[1]
    line = torch.arange(side, device=pixels.device, dtype=torch.float32)
    x, y = line.view(1, 1, side), line.view(1, side, 1)
    colours = _layer(pixels, base[:, 0], pitch[:, 0], place[:, 0], matrix[:, 0], x, y, perspective)
    if layers > 1:
        colours = [colour * share[:, 0].view(-1, 1, 1) for colour in colours]
        for layer in range(1, layers):
            more = _layer(pixels, base[:, layer], pitch[:, layer], place[:, layer], matrix[:, layer], x, y, perspective)
            part = share[:, layer].view(-1, 1, 1)
            colours = [colour + other * part for colour, other in zip(colours, more, strict=True)]
        # cut off, but not for an error of float32
        colours = [torch.floor(colour + 1e-3) for colour in colours]
    colours = _colour(colours, table, coloured)
    planes = [colour.to(torch.uint8) for colour in reversed(colours)]
    if channels_last:
        return torch.stack(planes, 3).permute(0, 3, 1, 2)
    return torch.stack(planes, 1)


def _layer(
    pixels: torch.Tensor,
    base: torch.Tensor,
    pitch: torch.Tensor,
    place: torch.Tensor,
    matrix: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    perspective: bool,
) -> list[torch.Tensor]:
    """Blue, green and red of one layer: float32 (B, side, side), whole numbers."""
    m = [matrix[:, entry].view(-1, 1, 1) for entry in range(9)]
    across, down = m[0] * x + m[1] * y + m[2], m[3] * x + m[4] * y + m[5]
    if perspective:
        depth = m[6] * x + m[7] * y + m[8]
        scale = torch.where(depth == 0, 0.0, 1.0 / torch.where(depth == 0, 1.0, depth))
        across, down = across * scale, down * scale
    # beyond any canvas all is grey, and what is too large for an integer must not become one
    across, down = across.clamp(-4.0, 1e6), down.clamp(-4.0, 1e6)
    left, top = torch.floor(across), torch.floor(down)
    right_share, low_share = across - left, down - top
    xs = left.to(torch.int32)
    ys = top.to(torch.int32)
    columns, rows = (xs, xs + 1), (ys, ys + 1)
    # address of each neighbour's blue byte, in the order of reading; -1 where the canvas is grey
    address: list[Any] = [-1, -1, -1, -1]
    for tile in range(base.shape[1]):
        x1, y1, x2, y2 = (place[:, tile, edge].view(-1, 1, 1) for edge in range(4))
        start, step = base[:, tile].view(-1, 1, 1), pitch[:, tile].view(-1, 1, 1)
        in_column = [(column >= x1) & (column < x2) for column in columns]
        in_row = [(row >= y1) & (row < y2) for row in rows]
        for number in range(4):
            row, column = divmod(number, 2)
            here = start + (rows[row] * step + columns[column] * 3)
            address[number] = torch.where(in_row[row] & in_column[column], here, address[number])
    weight = (
        (1.0 - low_share) * (1.0 - right_share),
        (1.0 - low_share) * right_share,
        low_share * (1.0 - right_share),
        low_share * right_share,
    )
    sums: list[Any] = [0.5, 0.5, 0.5]
    for at, how_much in zip(address, weight, strict=True):
        covered = at >= 0
        begin = at.clamp(min=0)
        for channel in range(3):
            # a tile has three bytes a pixel, so begin + 2 is in it too, and 0 to 2 are in any buffer
            level = torch.where(covered, pixels[begin + channel].to(torch.float32), float(GREY))
            sums[channel] = sums[channel] + level * how_much
    return [torch.floor(total) for total in sums]


def _colour(colours: list[torch.Tensor], table: torch.Tensor, coloured: torch.Tensor) -> list[torch.Tensor]:
    """Blue, green and red with hue, saturation and value changed by `table`, for the pictures that are `coloured`.

    Both ways are OpenCV's for uint8: to hue (0 to 179), saturation and value in fixed point with 12 bits, whose numbers
    are below 2**24, so that float32 holds them exactly; back in float32, cut off.
    """
    blue, green, red = colours
    value = torch.maximum(torch.maximum(blue, green), red)
    spread = value - torch.minimum(torch.minimum(blue, green), red)
    saturation = _fixed(spread * torch.round(255.0 * 4096 / value.clamp(min=1.0)))
    corner = torch.where(
        value == red,
        green - blue,
        torch.where(value == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    hue = _fixed(corner * torch.round(180.0 * 4096 / (6 * spread.clamp(min=1.0))))
    hue = torch.where(hue < 0, hue + 180.0, hue)

    levels = table.view(-1)
    picture = torch.arange(len(table), device=table.device, dtype=torch.int32).view(-1, 1, 1) * 768
    hue, saturation, value = (
        levels[picture + channel * 256 + plane.to(torch.int32)].to(torch.float32)
        for channel, plane in enumerate((hue, saturation, value))
    )

    sixth = hue * (6.0 / 180.0)
    sector = torch.floor(sixth)
    along = sixth - sector
    grey = saturation * (1.0 / 255.0)
    value = value * (1.0 / 255.0)
    low = value * (1.0 - grey)
    falling, rising = value * (1.0 - grey * along), value * (1.0 - grey * (1.0 - along))
    # sectors:  0       1        2       3        4       5
    # red       value   falling  low     low      rising  value
    # green     rising  value    value   falling  low     low
    # blue      low     low      rising  value    value   falling
    of = [sector == number for number in range(5)]
    new_red = _pick(of, (value, falling, low, low, rising), value)
    new_green = _pick(of, (rising, value, value, falling, low), low)
    new_blue = _pick(of, (low, low, rising, value, value), falling)
    used = (coloured != 0).view(-1, 1, 1)
    return [
        torch.where(used, torch.floor(new * 255.0), old)
        for new, old in ((new_blue, blue), (new_green, green), (new_red, red))
    ]


def _fixed(number: torch.Tensor) -> torch.Tensor:
    return torch.floor((number + 2048.0) * (1.0 / 4096.0))


def _pick(conditions: list[torch.Tensor], choices: tuple[torch.Tensor, ...], last: torch.Tensor) -> torch.Tensor:
    for condition, choice in zip(reversed(conditions), reversed(choices), strict=True):
        last = torch.where(condition, choice, last)
    return last


def why_not_compiled(device: torch.device) -> str:
    """Why `paint` cannot be compiled for this device; empty if nothing is known to be in the way."""
    if device.type != "cuda":
        return "painting is compiled for GPUs only"
    if torch.cuda.get_device_capability(device)[0] < 7:
        return "Triton needs a GPU of compute capability 7.0 or newer"
    try:
        import triton  # noqa: F401, PLC0415  some builds of torch come without
    except ImportError:
        return "this build of torch came without Triton"
    compiler = os.environ.get("CC")
    if not any(shutil.which(name) for name in ([compiler] if compiler else ["gcc", "clang", "cc"])):
        return "there is no C compiler"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "Python's headers (Python.h) are not installed"
    return ""


class Painter:
    """Paints batches of one shape on one device: a call enqueues the work on the current stream and does not wait.

    `compiled`: None where the device and what is installed allow it. When compiling fails, `say` gets one sentence, and
    painting goes on unfused, as many pictures at a time as fit into UNFUSED bytes.
    """

    def __init__(
        self,
        shape: Shape,
        device: torch.device,
        channels_last: bool = False,
        compiled: bool | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.shape = shape
        self.device = device
        self.channels_last = channels_last
        self._say = say
        why = why_not_compiled(device) if compiled is None else ""
        if why and device.type == "cuda":
            say(f"Pictures are painted unfused, which is slower: {why}")
        self.compiled = not why if compiled is None else compiled
        self._fused: Callable[..., Any] | None = None
        self._sheet = torch.empty(shape.size, dtype=torch.uint8, device=device)

    def __call__(self, pixels: torch.Tensor, sheet: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, S, S) on the device, from pixels there and a sheet (uint8) in the host's memory.

        `sheet` may change again when the work that was enqueued is done, or at once if it is not pinned.
        """
        self._sheet.copy_(sheet, non_blocking=True)
        numbers = {
            name: self._sheet[start : start + int(np.prod(shape)) * np.dtype(kind).itemsize]
            .view(getattr(torch, kind))
            .view(shape)
            for name, (start, kind, shape) in self.shape.fields.items()
        }
        with torch.no_grad():
            if self.compiled:
                try:
                    if self._fused is None:
                        self._fused = torch.compile(paint, fullgraph=True, dynamic=False, options=_options(self.device))
                    return self._paint(self._fused, pixels, numbers)
                except torch.cuda.OutOfMemoryError:
                    raise
                except Exception as error:  # Dynamo, Inductor, Triton and a compiler: no common class
                    self.compiled = False
                    reason = str(error).strip().splitlines()
                    self._say(
                        "Pictures are painted unfused, which is slower: torch.compile failed with "
                        f"{type(error).__name__}: {reason[0] if reason else 'no reason given'}"
                    )
            return self._unfused(pixels, numbers)

    def _paint(self, how: Callable[..., Any], pixels: torch.Tensor, numbers: dict[str, Any]) -> Any:
        shape = self.shape
        return how(pixels, **numbers, side=shape.side, perspective=shape.perspective, channels_last=self.channels_last)

    def _unfused(self, pixels: torch.Tensor, numbers: dict[str, Any]) -> torch.Tensor:
        count = self.shape.pictures
        memory = torch.channels_last if self.channels_last else torch.contiguous_format
        painted = torch.empty(
            (count, 3, self.shape.side, self.shape.side), dtype=torch.uint8, device=self.device, memory_format=memory
        )
        step = max(1, UNFUSED // (self.shape.side**2 * UNFUSED_PIXEL))
        for first in range(0, count, step):
            some = {name: array[first : first + step] for name, array in numbers.items()}
            painted[first : first + step] = self._paint(paint, pixels, some)
        return painted


def _options(device: torch.device) -> dict[str, Any]:
    """Of Inductor: one kernel, its block size found by trying, for the larger one runs out of registers with mixup."""
    if device.type != "cuda":
        return {}
    return {
        "max_fusion_size": 1024,  # of some 400 operations; at 64, planes go through memory between two or three kernels
        "max_autotune_pointwise": True,  # also under deterministic algorithms; each choice gives the same bytes
        "assert_indirect_indexing": False,  # sheet.py has checked every tile
    }

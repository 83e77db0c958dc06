"""The techniques of the training step, as data: what each does, where it works, what it changes, what it brings.

Nothing here needs torch. `lab train` chooses by this table and `--with`, `--without`; the child script then calls
`apply`, which replaces parts of the engine in memory. Neither engine's source is edited.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lab.errors import LabError

CPU, CUDA = "cpu", "cuda"
EQUAL, ROUNDING, OTHER = "equal", "rounding", "other"
DATA_PATHS = ("store", "device")  # of images; --with and --without take them too


@dataclass(frozen=True)
class Switch:
    """One technique.

    `devices` says for each engine where it can be on; `default` where it is on unless --without says otherwise.
    `numbers`: EQUAL to the engine's own to the last bit, equal but for ROUNDING, or OTHER (another precision, or a
    choice of kernels that may differ from run to run). `gain` is what it brings, with its source. On by default is
    only what somebody has measured to bring something and whose numbers are at most ROUNDING (decision 8).
    """

    name: str
    does: str
    devices: dict[str, tuple[str, ...]]
    numbers: str
    default: tuple[str, ...]
    gain: str
    docs: str


def _yolov5(*devices: str) -> dict[str, tuple[str, ...]]:
    return {"yolov5": devices}


def _both(*devices: str) -> dict[str, tuple[str, ...]]:
    return {"yolov5": devices, "yolov5u": (CUDA,)}


TORCH = "https://docs.pytorch.org/docs/stable"
SWITCHES = (
    Switch(
        "channels_last",
        "weights and pictures with their channels innermost, as tensor cores read them (yolov5u does so by itself)",
        _yolov5(CPU, CUDA),
        ROUNDING,
        (CPU, CUDA),
        "1.24 on a processor, measured; 1.21 to 1.26 on a T4 with AMP, reported by ultralytics 25362",
        "https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html",
    ),
    Switch(
        "fused_optimizer",
        "one kernel updates all weights, and skips a step that overflowed without asking the processor",
        _both(CPU, CUDA),
        ROUNDING,
        (CUDA,),
        "part of 1.2 to 1.3 together with channels_last, reported by YOLOv5 10314",
        f"{TORCH}/generated/torch.optim.SGD.html",
    ),
    Switch(
        "foreach_ema",
        "the average of the weights in one kernel instead of two for each tensor (yolov5u does so by itself)",
        _yolov5(CPU, CUDA),
        ROUNDING,
        (CUDA,),
        "4.6 to 1.4 ms an update of yolov5n on a processor, measured; merged in ultralytics 25315",
        "https://github.com/ultralytics/ultralytics/pull/25315",
    ),
    Switch(
        "loss",
        "the loss without waiting for the GPU: fixed shapes and masks instead of picking what matched",
        _yolov5(CPU, CUDA),
        ROUNDING,
        (CUDA,),
        "not measured on a GPU yet; six waits a step less; "
        "part of 1.25 with four others on a B200, reported by ultralytics 26180",
        f"{TORCH}/notes/cuda.html#asynchronous-execution",
    ),
    Switch(
        "progress",
        "the progress bar shows the losses of a moment ago instead of waiting for those of this step",
        {"yolov5": (CUDA,), "yolov5u": (CUDA,)},
        EQUAL,
        (CUDA,),
        "not measured on a GPU yet; one to three waits a step less; 1.05 to 1.07 reported by fvdb-reality-capture 144",
        f"{TORCH}/notes/cuda.html#asynchronous-execution",
    ),
    Switch(
        "compile",
        "torch.compile of the network; costs a minute or more at the start, and says when that is earned back",
        _both(CPU, CUDA),
        ROUNDING,
        (),
        "1.3, reported by ultralytics 21975; 1.1, by yolov7 1658",
        f"{TORCH}/generated/torch.compile.html",
    ),
    Switch(
        "cudnn_benchmark",
        "cuDNN times its algorithms and keeps the fastest; two runs with one seed may then differ",
        {"yolov5": (CUDA,), "yolov5u": (CUDA,)},
        OTHER,
        (),
        "not measured yet",
        f"{TORCH}/backends.html#torch.backends.cudnn.benchmark",
    ),
    Switch(
        "any_kernel",
        "kernels that are not deterministic too; two runs with one seed will then differ",
        {"yolov5": (CUDA,), "yolov5u": (CUDA,)},
        OTHER,
        (),
        "not measured yet; filling new tensors, which it ends, took 17 of 229 ms on a B200, "
        "reported by ultralytics 26180",
        f"{TORCH}/notes/randomness.html",
    ),
    Switch(
        "tf32",
        "matrices multiplied in TF32 where they are not in half precision already",
        {"yolov5": (CUDA,), "yolov5u": (CUDA,)},
        OTHER,
        (),
        "little under AMP: convolutions are in TF32 by torch's own default",
        f"{TORCH}/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices",
    ),
    Switch(
        "bf16",
        "bfloat16 instead of float16: no overflow, no scaling of the gradients",
        _both(CPU, CUDA),
        OTHER,
        (),
        "as fast as float16 on a GPU, reported by ultralytics 25931",
        f"{TORCH}/amp.html",
    ),
)
NAMES = tuple(switch.name for switch in SWITCHES)


def named(name: str) -> Switch:
    """The switch of that name."""
    return next(switch for switch in SWITCHES if switch.name == name)


def words(option: str, text: str) -> tuple[str, ...]:
    """The names in `--with a,b` (`option` is `--with`). Raises LabError with the nearest spelling."""
    known = (*NAMES, *DATA_PATHS)
    found = tuple(dict.fromkeys(word.strip().replace("-", "_") for word in text.split(",") if word.strip()))
    strange = next((word for word in found if word not in known), None)
    if strange is not None:
        near = difflib.get_close_matches(strange, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise LabError(f"{option} {strange}: there is nothing of that name; {hint}")
    if not found:
        raise LabError(f"{option} names nothing: there are {', '.join(known)}")
    return found


def works(switch: Switch, engine: str, device: str) -> bool:
    """Whether `switch` can be on with `engine` on this kind of device."""
    return device in switch.devices.get(engine, ())


def defaults(engine: str, device: str) -> tuple[str, ...]:
    """Names of the switches that are on where nothing else is said."""
    return tuple(s.name for s in SWITCHES if device in s.default and works(s, engine, device))


def apply(names: Iterable[str], engine: str, request: dict[str, Any]) -> None:
    """Turn on `names` in this process, before the engine's training is imported; `request` is the child's.

    Raises KeyError for a name that the engine does not have: `lab.fast.plan` lets none through.
    """
    step = importlib.import_module(f"lab.fast.step_{engine}")
    for name in names:
        step.APPLY[name](request)

"""What the techniques of the step need in both engines."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

FUSED = ("SGD", "Adam", "AdamW")  # optimizers of torch that have a fused kernel, on processors since 2.4


def fused(optimizer: Any) -> Any:
    """`optimizer` with torch's fused kernel, its groups and their order unchanged; itself where it has no such kernel.

    It is made anew, because GradScaler lets a kernel skip an overflow by itself only if the constructor was told. It
    must not have taken a step yet. A state that is loaded later may come from a run without this switch.
    """
    if type(optimizer) not in [getattr(torch.optim, name) for name in FUSED]:
        return optimizer
    groups = [{**group, "fused": True, "foreach": False} for group in optimizer.param_groups]
    try:
        made = type(optimizer)(groups, lr=groups[0]["lr"], fused=True)
    except (RuntimeError, TypeError) as error:  # a torch or a device without this kernel
        say(f"fused_optimizer stays off: {' '.join(str(error).split())[:200]}")
        return optimizer
    made.defaults.update({**optimizer.defaults, "fused": True, "foreach": False})

    def keep(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        groups = [{**group, "fused": True, "foreach": False} for group in state["param_groups"]]
        return {**state, "param_groups": groups}

    made.register_load_state_dict_pre_hook(keep)
    restride(made)
    begin_with_zeros(made)
    return made


def begin_with_zeros(optimizer: Any) -> None:
    """Give SGD its momentum before the first step, as zeros; without dampening the same numbers follow.

    Torch makes the buffers of the fused kernel without filling them, and the kernel leaves them so in a step that
    overflowed, which the first one, scaled by 65536, often does: the second would then read whatever lay there.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return

    def zeros(made: Any) -> None:
        for group in made.param_groups:
            for parameter in group["params"] if group["momentum"] and not group["dampening"] else ():
                if made.state[parameter].get("momentum_buffer") is None:
                    made.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    zeros(optimizer)
    optimizer.register_load_state_dict_post_hook(zeros)


def restride(optimizer: Any) -> None:
    """Have loaded state laid out in memory as its parameters are; a fused kernel demands it."""

    def lay(loaded: Any) -> None:
        for parameter, state in loaded.state.items():
            for key, value in state.items():
                if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                    state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    optimizer.register_load_state_dict_post_hook(lay)


def save_contiguous() -> None:
    """Have checkpoints written in the ordinary layout: YOLOv5's fuse() and export cannot read the other one."""
    save = torch.save

    @functools.wraps(save)
    def saved(thing: Any, *more: Any, **named: Any) -> Any:
        return save(contiguous(thing) if isinstance(thing, dict) and "optimizer" in thing else thing, *more, **named)

    torch.save = saved


def contiguous(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint with every tensor in the ordinary layout. Modules, copies anyway, are changed in place."""
    made = dict(checkpoint)
    for key in ("model", "ema"):
        if isinstance(made.get(key), torch.nn.Module):
            made[key].to(memory_format=torch.contiguous_format)
    if isinstance(made.get("optimizer"), dict):
        state = {
            number: {key: value.contiguous() if torch.is_tensor(value) else value for key, value in one.items()}
            for number, one in made["optimizer"]["state"].items()
        }
        made["optimizer"] = {**made["optimizer"], "state": state}
    return made


def tf32(_: dict[str, Any]) -> None:
    """Let matrices be multiplied in TF32."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True


def cudnn_benchmark(_: dict[str, Any]) -> None:
    """Let cuDNN choose by the clock. Neither engine's init_seeds turns it off again."""
    torch.backends.cudnn.benchmark = True


def say(sentence: str) -> None:
    """A remark on stderr, by the first rank alone."""
    if os.environ.get("RANK", "0") == "0":
        print(f"lab: {sentence}", file=sys.stderr, flush=True)


def around(holder: Any, name: str, change: Callable[[Any], Any]) -> None:
    """Pass what `holder.name()` returns through `change` from now on."""
    inner = getattr(holder, name)

    @functools.wraps(inner)
    def changed(*more: Any, **named: Any) -> Any:
        return change(inner(*more, **named))

    setattr(holder, name, changed)

"""The techniques of the step for YOLOv5: names of its modules are replaced before train.py imports them."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lab.fast import step
from lab.fast.late import Late
from lab.fast.loss_yolov5 import Loss, expressible
from lab.fast.trial import Trial

Request = dict[str, Any]
Places = list[tuple[dict[str, Any], str]]
WATCHED: dict[str, list[Callable[..., None]]] = {}  # by the name of the moment, such as on_train_batch_start


def watch(moment: str, function: Callable[..., None]) -> None:
    """Call `function` with what YOLOv5's callbacks get at `moment`, before them, on every rank."""
    import utils.callbacks  # noqa: PLC0415  upstream's package, importable only in its process

    if not WATCHED:

        class Callbacks(utils.callbacks.Callbacks):  # type: ignore[misc]
            def run(self, hook: str, *more: Any, **named: Any) -> None:
                for one in WATCHED.get(hook, ()):
                    one(*more, **{key: value for key, value in named.items() if key != "thread"})
                super().run(hook, *more, **named)

        utils.callbacks.Callbacks = Callbacks
    WATCHED.setdefault(moment, []).append(function)


def with_model(change: Callable[[Any], None]) -> None:
    """Call `change(model)` once the model is on its device, before optimizer, average and DDP are made of it."""
    import utils.general  # noqa: PLC0415

    check_amp = utils.general.check_amp

    def checked(model: Any) -> bool:
        judged = bool(check_amp(model))
        change(model)
        return judged

    utils.general.check_amp = checked


def channels_last(_: Request) -> None:
    """Lay the network out with channels innermost: its layers only, the anchors' five dimensions cannot be."""
    import utils.torch_utils  # noqa: PLC0415

    with_model(lambda model: model.model.to(memory_format=torch.channels_last))
    step.save_contiguous()

    def loaded_alike(optimizer: Any) -> Any:
        step.restride(optimizer)
        return optimizer

    step.around(utils.torch_utils, "smart_optimizer", loaded_alike)


def fused_optimizer(_: Request) -> None:
    """Use torch's fused kernel for SGD, Adam and AdamW."""
    import utils.torch_utils  # noqa: PLC0415

    step.around(utils.torch_utils, "smart_optimizer", step.fused)


def foreach_ema(_: Request) -> None:
    """Average all weights by one operation over lists."""
    import utils.torch_utils  # noqa: PLC0415

    class ModelEMA(utils.torch_utils.ModelEMA):  # type: ignore[misc]
        _places: tuple[Places, Places] | None = None

        def update(self, model: Any) -> None:
            self.updates += 1
            if self._places is None:
                self._places = _floats(self.ema, utils.torch_utils.de_parallel(model))
            mine, theirs = ([holder[key] for holder, key in places] for places in self._places)
            with torch.no_grad():
                torch._foreach_lerp_(mine, theirs, 1 - self.decay(self.updates))

    utils.torch_utils.ModelEMA = ModelEMA


def _floats(average: Any, model: Any) -> tuple[Places, Places]:
    """Where both keep their stored floating-point tensors, in one order.

    Places and not tensors: validation turns the average to half precision and back, which replaces its buffers.
    """
    mine, theirs = _places(average), _places(model)
    names = [name for name, value in average.state_dict().items() if value.dtype.is_floating_point]
    return [mine[name] for name in names], [theirs[name] for name in names]


def _places(network: Any) -> dict[str, tuple[dict[str, Any], str]]:
    """The dictionary and the key under which a network holds each parameter and buffer, by its name."""
    return {
        f"{prefix}.{key}" if prefix else key: (holder, key)
        for prefix, module in network.named_modules()
        for holder in (module._parameters, module._buffers)
        for key in holder
    }


def loss(_: Request) -> None:
    """Compute the loss in fixed shapes, and copy labels to the GPU before the step needs them."""
    import utils.dataloaders  # noqa: PLC0415
    import utils.loss  # noqa: PLC0415

    theirs = utils.loss.ComputeLoss

    def chosen(model: Any, autobalance: bool = False) -> Any:
        if autobalance or not expressible(model.hyp):
            step.say("loss stays the engine's own: `fl_gamma` is for the focal loss, which has no fixed shape here")
            return theirs(model, autobalance)
        return Loss(model)

    utils.loss.ComputeLoss = chosen
    step.around(utils.dataloaders, "create_dataloader", lambda made: (_Ahead.of(made[0]), made[1]))


class _Ahead:
    """A loader whose labels are on the GPU already; copied without waiting, from page-locked memory."""

    @staticmethod
    def of(loader: Any) -> Any:
        if not torch.cuda.is_available() or not getattr(loader, "pin_memory", False):
            return loader
        inner = type(loader).__iter__

        class Ahead(type(loader)):  # type: ignore[misc]
            def __iter__(self) -> Any:
                for images, targets, *more in inner(self):
                    yield images, targets.to(torch.cuda.current_device(), non_blocking=True), *more

        loader.__class__ = Ahead
        return loader


def progress(_: Request) -> None:
    """Show in the progress bar the losses that have arrived; what is written down at an epoch's end is exact."""
    import utils.loss  # noqa: PLC0415

    make = utils.loss.ComputeLoss

    def made(*more: Any, **named: Any) -> Callable[..., Any]:
        compute = make(*more, **named)

        def computed(predictions: Any, targets: Any) -> tuple[Any, Any]:
            total, parts = compute(predictions, targets)
            return total, parts.as_subclass(Late) if torch.is_grad_enabled() else parts

        return computed

    def exact(yes: bool) -> Callable[..., None]:
        return lambda *_, **__: setattr(Late, "exact", yes)

    utils.loss.ComputeLoss = made
    watch("on_train_epoch_start", exact(False))
    watch("on_train_epoch_end", exact(True))


def compile_network(request: Request) -> None:
    """Compile the network after some steps without, so that what it brings is measured and said."""
    models: list[Any] = []

    def start() -> None:
        for model in models:
            model.compile(dynamic=False)

    trial = Trial(start, wait, step.say, int(request.get("speed", {}).get("steps", 0)))
    with_model(models.append)
    watch("on_train_batch_start", lambda *_, **__: trial.tick(time.perf_counter))
    watch("on_train_epoch_start", lambda *_, **__: trial.pause())


def wait() -> None:
    """Until the GPU has done what it was given."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def any_kernel(_: Request) -> None:
    """Do not insist on deterministic kernels."""
    import utils.general  # noqa: PLC0415

    init_seeds = utils.general.init_seeds
    utils.general.init_seeds = lambda seed=0, deterministic=False: init_seeds(seed, deterministic=False)  # noqa: ARG005


def bf16(_: Request) -> None:
    """Train in bfloat16, which needs no scaling of the gradients. On a GPU only where half precision is sound."""
    import utils.torch_utils  # noqa: PLC0415

    def autocast(enabled: bool, device: str = "cuda") -> Any:
        kind = device if torch.cuda.is_available() else "cpu"
        return torch.autocast(kind, torch.bfloat16, enabled=enabled or kind == "cpu")

    utils.torch_utils.smart_amp_autocast = autocast
    torch.cuda.amp.GradScaler = lambda *_, **__: torch.amp.GradScaler("cuda", enabled=False)


APPLY: dict[str, Callable[[Request], None]] = {
    "channels_last": channels_last,
    "fused_optimizer": fused_optimizer,
    "foreach_ema": foreach_ema,
    "loss": loss,
    "progress": progress,
    "compile": compile_network,
    "cudnn_benchmark": step.cudnn_benchmark,
    "any_kernel": any_kernel,
    "tf32": step.tf32,
    "bf16": bf16,
}


# Validation


def validate_each(period: int) -> None:
    """Validate after every `period` epochs, and where training may end: the last epoch, and before early stopping.

    An epoch without has NaN where its measurements would be: it is never the best one.
    """
    import utils.callbacks  # noqa: PLC0415
    import utils.torch_utils  # noqa: PLC0415

    state: dict[str, Any] = {"epoch": None, "epochs": None, "stopper": None, "maps": None}
    upstreams_val: Any = importlib.import_module("val")  # our own code/val.py is not on the path here
    run = upstreams_val.run
    register = utils.callbacks.Callbacks.register_action

    class EarlyStopping(utils.torch_utils.EarlyStopping):  # type: ignore[misc]
        def __init__(self, *more: Any, **named: Any) -> None:
            super().__init__(*more, **named)
            state["stopper"] = self

    def registered(self: Any, hook: str, name: str = "", callback: Any = None) -> None:
        options = getattr(getattr(callback, "__self__", None), "opt", None)
        if options is not None:  # of YOLOv5's own loggers, which are given the options
            state["epochs"] = int(options.epochs)
        register(self, hook, name, callback)

    def validated(*more: Any, **named: Any) -> Any:
        epoch, state["epoch"] = state["epoch"], None
        last = epoch is None or state["epochs"] is None or epoch + 1 >= state["epochs"]
        if last or (epoch + 1) % period == 0 or state["stopper"].possible_stop:
            found = run(*more, **named)
            state["maps"] = found[1]
            return found
        if state["maps"] is None:
            state["maps"] = np.zeros(1 if named.get("single_cls") else int(more[0]["nc"]))
        return (float("nan"),) * 7, state["maps"], (0.0, 0.0, 0.0)

    upstreams_val.run = validated
    utils.torch_utils.EarlyStopping = EarlyStopping
    utils.callbacks.Callbacks.register_action = registered
    watch("on_train_epoch_end", lambda *_, **named: state.update(epoch=named["epoch"]))

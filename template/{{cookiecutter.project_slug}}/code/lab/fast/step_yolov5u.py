"""The techniques of the step for the ultralytics package: its own arguments where it has them, else its trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ultralytics.engine import trainer as package
from ultralytics.engine.trainer import BaseTrainer

from lab.fast import step
from lab.fast.late import Means

Request = dict[str, Any]


def _argument(key: str, value: Any) -> Callable[[Request], None]:
    def given(request: Request) -> None:
        request["arguments"][key] = value

    return given


def fused_optimizer(_: Request) -> None:
    """Use torch's fused kernel for SGD too; the package does so for Adam and AdamW."""
    step.around(BaseTrainer, "build_optimizer", step.fused)


def progress(_: Request) -> None:
    """Show in the progress bar the losses that have arrived; what is written down at an epoch's end is exact."""

    def read(trainer: Any) -> Any:
        return trainer.__dict__.get("tloss")

    def write(trainer: Any, means: Any) -> None:
        trainer.__dict__["tloss"] = Means(means) if isinstance(means, dict) else means

    BaseTrainer.tloss = property(read, write)


APPLY: dict[str, Callable[[Request], None]] = {
    "fused_optimizer": fused_optimizer,
    "progress": progress,
    "compile": _argument("compile", True),
    "cudnn_benchmark": step.cudnn_benchmark,
    "any_kernel": _argument("deterministic", False),
    "tf32": step.tf32,
    "bf16": _argument("amp", "bf16"),
}


def validate_each(period: int) -> None:
    """Validate after every `period` epochs, and where training may end: the last epoch, and before early stopping.

    An epoch without has NaN where its measurements would be, and no fitness: it is never the best one.
    """
    validate = BaseTrainer.validate

    def validated(self: Any) -> Any:
        # other ranks do not know whether the first one may stop soon; it stops only at an epoch that was measured
        ending = self.epoch + 1 >= self.epochs or self.stop or (package.RANK == -1 and self.stopper.possible_stop)
        if ending or (self.epoch + 1) % period == 0:
            return validate(self)
        return dict.fromkeys(self.metrics, float("nan")) if self.metrics else self.metrics, None

    BaseTrainer.validate = validated

"""Losses for the progress bar without waiting for the GPU: what is shown is what has arrived."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch


class Behind:
    """Numbers of a GPU's tensor, as they were when the last copy arrived; NaN before the first.

    One copy is under way at a time, into page-locked memory, so nobody waits for anything. A tensor of the processor's
    has arrived already.
    """

    def __init__(self) -> None:
        self._shown: list[float] = []
        self._under_way: tuple[Any, Any] | None = None

    def of(self, tensor: Any) -> list[float]:
        """The newest numbers that are here for `tensor`, one-dimensional; may be those of an earlier one."""
        if tensor.device.type != "cuda":
            return [float(number) for number in tensor.tolist()]
        if self._under_way is not None and self._under_way[1].query():
            self._shown = self._under_way[0].tolist()
            self._under_way = None
        if self._under_way is None:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            buffer.copy_(tensor, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._under_way = buffer, event
        return self._shown or [float("nan")] * len(tensor)


class Late(torch.Tensor):  # type: ignore[misc]
    """A tensor whose items, when it is unpacked, may be those of a moment ago; exact while `exact` is true."""

    exact = True
    behind = Behind()

    def __iter__(self) -> Iterator[float]:
        plain = self.as_subclass(torch.Tensor)
        return iter(plain.tolist() if Late.exact else Late.behind.of(plain.detach()))


class Means(dict[str, Any]):
    """Tensors by name, whose `values()` are numbers that may be those of a moment ago."""

    behind = Behind()

    def values(self) -> Any:
        """The newest numbers that are here, in the order of the names."""
        tensors = list(super().values())
        return Means.behind.of(torch.stack([tensor.detach() for tensor in tensors])) if tensors else []

"""Child script of `lab preflight`, one a rank under torchrun: meets the other ranks and measures the way to them.

Its request, a JSON file, is named by the first argument: {"gpus", "limit", "sizes", "measured"}; rank 0 writes the
last of them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

ENOUGH = 0.25  # seconds of one measurement
MOST = 200  # repetitions of it
BLOCK = 16 << 20  # bytes that a link carries at once; about half of yolov5s' gradients


def main() -> None:
    """Join, compare what only torch knows, measure, report."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if request["gpus"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = request["gpus"]
    import torch  # noqa: PLC0415  seconds
    import torch.distributed as dist  # noqa: PLC0415

    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    cuda = bool(request["gpus"])
    if cuda and torch.cuda.device_count() <= local:
        raise RuntimeError(f"torch sees no GPU number {local} here: `lab doctor` says why")
    device = f"cuda:{local}" if cuda else "cpu"
    if cuda:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=request["limit"]))
    about = {
        "rank": rank,
        "node": int(os.environ["GROUP_RANK"]),
        "device": torch.cuda.get_device_name(local) if cuda else "cpu",
        "torch": torch.__version__,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if cuda else None,
    }
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, about)
    measuring = Measuring(torch, dist, device)
    report = {
        "backend": "nccl" if cuda else "gloo",
        "ranks": ranks,
        "all_reduce": [measuring.all_reduce(size) for size in request["sizes"]],
        "links": measuring.links(leaders(ranks)),
    }
    if rank == 0:
        Path(request["measured"]).write_text(json.dumps(report), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def leaders(ranks: list[dict[str, Any]]) -> list[int]:
    """The first rank of each node; on one node all of its ranks."""
    first: dict[int, int] = {}
    for about in ranks:
        first.setdefault(about["node"], about["rank"])
    return sorted(first.values()) if len(first) > 1 else [about["rank"] for about in ranks]


def rounds(players: list[int]) -> Iterator[list[tuple[int, int]]]:
    """Every pair once, as many at a time as there can be: a tournament by the circle method."""
    circle: list[int | None] = [*players, *([None] if len(players) % 2 else [])]
    half = len(circle) // 2
    for _ in range(len(circle) - 1):
        pairs = zip(circle[:half], reversed(circle[half:]), strict=True)
        yield [(min(a, b), max(a, b)) for a, b in pairs if a is not None and b is not None]
        circle.insert(1, circle.pop())


class Measuring:
    """Times what the ranks do together. All ranks call the same methods in the same order."""

    def __init__(self, torch: Any, dist: Any, device: str) -> None:
        self.torch, self.dist, self.device = torch, dist, device
        self.rank = dist.get_rank()

    def all_reduce(self, size: int) -> dict[str, float]:
        """Seconds that the sum of `size` bytes over all ranks takes."""
        numbers = self.torch.ones(max(1, size // 4), device=self.device)

        def work() -> None:
            self.dist.all_reduce(numbers)
            numbers.fill_(1.0)

        return {"bytes": size, "seconds": self._seconds(work, self._repetitions(work))}

    def links(self, players: list[int]) -> list[dict[str, float]]:
        """Bytes a second, one way, and seconds of the shortest message, one way, between each pair of `players`."""
        mine: list[dict[str, float]] = []
        for pairs in rounds(players):
            pair = next((pair for pair in pairs if self.rank in pair), None)
            if pair is not None:
                mine += self._link(pair)
            self.dist.barrier()
        everyone: list[Any] = [None] * self.dist.get_world_size()
        self.dist.all_gather_object(everyone, mine)
        return [link for links in everyone for link in links]

    def _link(self, pair: tuple[int, int]) -> list[dict[str, float]]:
        first = self.rank == pair[0]
        other = pair[1] if first else pair[0]
        told = self.torch.zeros(1, device=self.device)

        def exchange(numbers: Any) -> Callable[[], None]:
            def there_and_back() -> None:
                for sends in (first, not first):
                    (self.dist.send if sends else self.dist.recv)(numbers, other)

            return there_and_back

        def timed(size: int) -> float:
            work = exchange(self.torch.zeros(max(1, size // 4), device=self.device))
            once = self._seconds(work, 2)
            if first:
                told[0] = min(MOST, max(2, round(ENOUGH / max(once, 1e-6))))
            (self.dist.send if first else self.dist.recv)(told, other)
            return self._seconds(work, int(told.item())) / 2

        latency, seconds = timed(4), timed(BLOCK)
        if not first:
            return []
        return [{"a": pair[0], "b": pair[1], "bytes_per_second": BLOCK / seconds, "latency": latency}]

    def _repetitions(self, work: Callable[[], None]) -> int:
        """As many as rank 0 finds enough: all ranks must take part in each."""
        work()
        told = self.torch.tensor([ENOUGH / max(self._seconds(work, 2), 1e-6)], device=self.device)
        self.dist.broadcast(told, 0)
        return min(MOST, max(2, round(float(told.item()))))

    def _seconds(self, work: Callable[[], None], count: int) -> float:
        self._settle()
        began = time.perf_counter()
        for _ in range(count):
            work()
        self._settle()
        return (time.perf_counter() - began) / count

    def _settle(self) -> None:
        if self.device != "cpu":
            self.torch.cuda.synchronize()


if __name__ == "__main__":
    main()

"""What torch.compile costs and brings, measured in the run itself: some steps without it, some with it."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

WARM, STEPS = 3, 8  # steps that are not counted, and that are
SLACK = 1.02  # a gain smaller than that is noise


class Trial:
    """Fed with the beginning of every step. `start` turns the compiler on, `wait` waits for the GPU.

    `total` is the number of steps of the whole run, 0 when it is not known.
    """

    def __init__(
        self, start: Callable[[], None], wait: Callable[[], None], say: Callable[[str], None], total: int = 0
    ) -> None:
        self.start, self.wait, self.say, self.total = start, wait, say, total
        self.before: list[float] = []
        self.after: list[float] = []
        self.compiled = self.done = False
        self._since: float | None = None
        self._skip = WARM

    def pause(self) -> None:
        """An epoch begins: what lay between the last step and the next one is no step."""
        self._since = None

    def tick(self, clock: Callable[[], float]) -> None:
        """A step begins."""
        if self.done:
            return
        self.wait()
        now = clock()
        if self._since is not None:
            self._count(now - self._since)
        self._since = None if self.done else now

    def _count(self, seconds: float) -> None:
        kept = self.after if self.compiled else self.before
        kept.append(seconds)
        if len(kept) < self._skip + STEPS:
            return
        if not self.compiled:
            self.compiled = True
            self.start()
            return
        self.done = True
        self.say(verdict(self.before[self._skip :], self.after, self._skip, self.total))


def verdict(before: list[float], after: list[float], warm: int, total: int) -> str:
    """One sentence from the seconds of steps without, and of with the compiler, its first `warm` apart."""
    plain, fast = median(before), median(after[warm:])
    cost = sum(max(0.0, seconds - fast) for seconds in after[:warm])
    told = f"torch.compile took {cost:.0f} s, and a step went from {1000 * plain:.0f} to {1000 * fast:.0f} ms"
    if plain < fast * SLACK:
        return f"{told}: it brings nothing here, leave --with compile out"
    steps = cost / (plain - fast)
    word = f"{told}: earned back after {steps:,.0f} steps"
    if not total:
        return word
    return f"{word} of the {total:,} of this run" if steps < total else f"{word}, more than the {total:,} of this run"

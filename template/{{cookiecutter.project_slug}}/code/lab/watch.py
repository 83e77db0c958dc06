"""`lab watch`: a running training and its machine, look by look, with advice in words."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lab import watch_facts
from lab.errors import LabError
from lab.project import Project
from lab.watch_advice import Advice, advise
from lab.watch_facts import Seen, Watcher
from lab.watch_scalars import Scalars

LEAST = 0.2  # seconds between two looks
Show = Callable[[Seen, list[Advice]], None]


@dataclass(frozen=True)
class Wish:
    """What was asked for: `run`, or "" for the one that runs, else the newest. `interval` in seconds."""

    run: str = ""
    once: bool = False
    json: bool = False
    interval: float = 2.0


def main(project: Project, wish: Wish) -> int:
    """Show look after look until Ctrl-C, or one. Raises LabError."""
    if wish.interval < LEAST:
        raise LabError(f"--interval {wish.interval:g}: give {LEAST:g} seconds or more")
    with contextlib.suppress(KeyboardInterrupt), _shown(wish) as show:
        watch(project, wish, show)
    return 0


def watch(project: Project, wish: Wish, show: Show) -> None:
    """Look, advise, write scalars and show. Without a name it turns to the run that begins."""
    directory = watch_facts.find(wish.run, project)
    while True:
        watcher = Watcher(project, directory)
        scalars = Scalars(directory) if directory is not None else None
        try:
            watcher.begin()
            while True:
                time.sleep(min(wish.interval, 1.0) if wish.once else wish.interval)
                seen = watcher.look()
                if scalars is not None and seen.running:
                    scalars.write(seen)
                show(seen, advise(seen))
                if wish.once:
                    return
                if wish.run or seen.running:
                    continue
                other = watch_facts.find("", project)
                if other != directory:
                    directory = other
                    break
        finally:
            watcher.close()
            if scalars is not None:
                scalars.close()


@contextlib.contextmanager
def _shown(wish: Wish) -> Iterator[Show]:
    """The way that looks are shown: JSON, a screen that is drawn again, or lines."""
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    from lab import watch_screen as words  # noqa: PLC0415

    if wish.json:
        yield lambda seen, advice: print(json.dumps(words.as_json(seen, advice)), flush=True)
        return
    console = Console()
    if console.is_terminal and wish.once:
        yield lambda seen, advice: console.print(words.screen(seen, advice))
        return
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, screen=False, vertical_overflow="crop") as live:
            yield lambda seen, advice: live.update(words.screen(seen, advice), refresh=True)
        return
    said: list[str] = []

    def lines(seen: Seen, advice: list[Advice]) -> None:
        print(words.line(seen), flush=True)
        sentences = [item.sentence for item in advice]
        if sentences != said:  # a log needs it once
            for sentence in sentences:
                print(f"  {sentence}", flush=True)
            said[:] = sentences

    yield lines

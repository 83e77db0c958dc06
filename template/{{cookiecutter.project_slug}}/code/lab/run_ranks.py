"""Child script: torchrun without its tracebacks. `lab` says in one sentence what happened to the ranks."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path

# a script's own directory comes first; lab/ is no place to import from
sys.path[0] = str(Path(__file__).resolve().parents[1])
from lab import causes  # noqa: E402
from lab.errors import FAILED  # noqa: E402


def main(arguments: list[str]) -> None:
    """Run torchrun with `arguments`, the last of which is the ranks' request.

    Ends with exit status 1 when a rank failed or a signal came. Of a rank that a signal ended, which leaves no words,
    it writes the report.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException  # noqa: PLC0415  seconds
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.run import main as torchrun  # noqa: PLC0415

    logging.disable(logging.ERROR)  # exit codes and process numbers; ranks are processes of their own and keep theirs
    try:
        torchrun(arguments)
    except ChildFailedError as error:
        request = json.loads(Path(arguments[-1]).read_text(encoding="utf-8"))
        tell({rank: failure.exitcode for rank, failure in error.failures.items()}, Path(request["report"]))
        sys.exit(FAILED)
    except SignalException:
        sys.exit(FAILED)


def tell(statuses: Mapping[int, int], report: Path) -> None:
    """Write which rank of `statuses`, the exit statuses of those that failed by themselves, a signal ended.

    A rank that has told its own failure keeps the word, unless it merely speaks of a lost partner.
    """
    order = list(causes.SIGNALS)
    killed = [(rank, -status) for rank, status in statuses.items() if status < 0]
    if not killed:
        return
    try:
        said = json.loads(report.read_text(encoding="utf-8"))
        if not causes.lost_peer(said["sentence"]):
            return
    except (OSError, ValueError):
        pass  # nobody told anything, or was killed while telling it
    rank, number = min(killed, key=lambda one: (order.index(one[1]) if one[1] in order else len(order), one[0]))
    words = {"sentence": causes.ended(f"rank {rank}", number), "status": FAILED}
    report.write_text(json.dumps(words), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

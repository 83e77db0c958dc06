"""Child script: torchrun without its tracebacks. `lab` says in one sentence what happened to the ranks."""

from __future__ import annotations

import sys
from pathlib import Path

# a script's own directory comes first; lab/ is no place to import from
sys.path[0] = str(Path(__file__).resolve().parents[1])


def main(arguments: list[str]) -> None:
    """Run torchrun with `arguments`; ends with exit status 1 when a rank failed or a signal came."""
    from torch.distributed.elastic.multiprocessing.api import SignalException  # noqa: PLC0415  seconds
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.run import main as torchrun  # noqa: PLC0415

    try:
        torchrun(arguments)
    except (ChildFailedError, SignalException):
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])

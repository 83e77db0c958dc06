"""On PYTHONPATH of a training on a processor: what is asked about half precision is answered as by DESCRIBED_GPU.

The engine's own check finds no GPU and fails; DESCRIBED_GAP is what our look at the network finds, "" for NaN.
"""

import os
import sys
from pathlib import Path

if any("run_yolov5" in word for word in sys.orig_argv):
    sys.path.append(str(Path(__file__).parents[2]))  # where lab is, which a training's own paths leave out
    import torch

    from lab import child

    sys.path.pop()
    gap = os.environ["DESCRIBED_GAP"]
    torch.cuda.get_device_name = lambda *_: os.environ["DESCRIBED_GPU"]
    child.device_of = lambda _: torch.device("cuda")
    child.half_precision_gap = lambda *_: float(gap) if gap else None

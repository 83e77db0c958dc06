"""On PYTHONPATH of a training: a step with more images than NO_MEMORY_ABOVE runs out of memory, as on a small GPU."""

import os
import sys
from typing import Any

if any("run_yolov5" in word for word in sys.orig_argv):
    import torch

    convolve, most = torch.nn.functional.conv2d, int(os.environ["NO_MEMORY_ABOVE"])
    steps = iter(range(int(os.environ.get("NO_MEMORY_AFTER", "0"))))  # that many large steps still go well

    def conv2d(images: Any, *more: Any, **named: Any) -> Any:
        first = images.shape[1] == 3 and images.shape[0] > most and torch.is_grad_enabled()
        if first and next(steps, None) is None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. (a test)")
        return convolve(images, *more, **named)

    torch.nn.functional.conv2d = conv2d

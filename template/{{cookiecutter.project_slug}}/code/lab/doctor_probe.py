"""Child script of `lab doctor`: what torch finds and computes here. It looks and computes, and judges nothing.

    python -m lab.doctor_probe torch               versions, devices, packages
    python -m lab.doctor_probe device N|cpu        a few real kernels on one device
    python -m lab.doctor_probe nccl RANK WORLD FILE [gloo]   one rank of an all-reduce; FILE is where the ranks meet;
                                                   gloo does the same on processors
    python -m lab.doctor_probe read DIRECTORY      how fast files are read

Each step prints the JSON line {"step": name} when it begins, and {"step", "ok", …} when it ends: a step that kills the
process or never ends is thereby named.
"""

from __future__ import annotations

import ctypes
import datetime
import importlib
import json
import math
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

NCCL_LIMIT = datetime.timedelta(seconds=20)
Answer = dict[str, Any]


def main(words: list[str]) -> None:
    """Do what the words after the script's name ask for."""
    task, *rest = words
    if task == "torch":
        about_torch()
    elif task == "device":
        try_device(rest[0])
    elif task == "nccl":
        rank, world, meeting, *backend = rest
        try_nccl(int(rank), int(world), meeting, *backend)
    elif task == "read":
        from lab.doctor_disk import read_speed  # noqa: PLC0415

        step("read", lambda: read_speed(Path(rest[0])))


def step(name: str, work: Callable[[], Answer]) -> Answer | None:
    """Run one step between its two lines; returns what it found, None when it failed."""
    _say({"step": name})
    try:
        found = work()
    except Exception as error:
        _say({"step": name, "ok": False, "error": " ".join(str(error).split())[:600] or type(error).__name__})
        return None
    _say({"step": name, "ok": True, **found})
    return found


def _say(line: Answer) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


# What is installed


def about_torch(load: Callable[[str], Any] = importlib.import_module) -> None:
    """The steps of `torch`; without torch there are none but the first."""
    loaded: dict[str, Any] = {}

    def find_torch() -> Answer:
        torch = loaded["torch"] = load("torch")
        return {"version": str(torch.__version__), "cuda": torch.version.cuda or ""}

    if step("torch", find_torch) is None:
        return
    torch = loaded["torch"]
    step("arch", lambda: {"archs": arch_list(torch)})
    step("cudnn", lambda: {"version": torch.backends.cudnn.version() if torch.version.cuda else None})
    step("nccl", lambda: {"version": ".".join(map(str, torch.cuda.nccl.version())) if torch.version.cuda else ""})
    if step("init", lambda: _nothing(torch.cuda.init())) is not None:
        step("devices", lambda: {"devices": devices(torch)})
    step("numpy", lambda: _numpy(torch, load("numpy")))
    step("opencv", lambda: _opencv(load("cv2"), load("numpy")))
    step("torchvision", lambda: {"version": str(load("torchvision").__version__), **_nms(torch, "cpu")})


def _nothing(_: Any) -> Answer:
    return {}


def arch_list(torch: Any) -> list[str]:
    """What `torch.cuda.get_arch_list()` would say, also where no GPU can be used: there it is always empty."""
    flags = getattr(torch._C, "_cuda_getArchFlags", lambda: None)()
    return str(flags or "").split()


def devices(torch: Any) -> list[Answer]:
    """The devices that torch sees. Makes no context on any of them, so a stuck one cannot stop it."""
    found = []
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        found.append(
            {
                "number": number,
                "name": str(about.name),
                "capability": [int(about.major), int(about.minor)],
                "memory_mib": int(about.total_memory) >> 20,
            }
        )
    return found


def _numpy(torch: Any, numpy: Any) -> Answer:
    # a torch built for NumPy 1 imports beside NumPy 2, and fails only here
    there = torch.from_numpy(numpy.arange(4, dtype=numpy.float32)).sum().item()
    if there != 6:
        raise ValueError(f"torch reads 0+1+2+3 as {there}")
    return {"version": str(numpy.__version__)}


def _opencv(cv2: Any, numpy: Any) -> Answer:
    picture = numpy.full((32, 32, 3), 127, numpy.uint8)
    encoded = cv2.imencode(".jpg", picture)[1]
    if cv2.imdecode(encoded, cv2.IMREAD_COLOR).shape != picture.shape:
        raise ValueError("a JPEG does not survive writing and reading")
    return {"version": str(cv2.__version__)}


# What computes


def try_device(word: str) -> None:
    """The steps of one device, until an error after which CUDA gives no more answers to this process."""
    import torch  # noqa: PLC0415  seconds

    device = "cpu" if word == "cpu" else f"cuda:{word}"
    steps: list[tuple[str, Callable[[], Answer]]] = [
        ("matmul", lambda: _matmul(torch, device)),
        ("convolution", lambda: _convolution(torch, device, cudnn=False)),
    ]
    if device != "cpu":
        steps.insert(0, ("memory", lambda: _memory(torch, device)))
        steps.append(("cudnn", lambda: _convolution(torch, device, cudnn=True)))
        steps.append(("amp", lambda: _amp(torch, device)))
        steps.append(("nms", lambda: _nms(torch, device)))
    for name, work in steps:
        if step(name, lambda work=work: _synchronised(torch, device, work)) is None and _broken(torch, device):  # type: ignore[misc]
            return


def _synchronised(torch: Any, device: str, work: Callable[[], Answer]) -> Answer:
    found = work()
    if device != "cpu":
        torch.cuda.synchronize(device)  # an error of a kernel belongs to the step that started it
    return found


def _broken(torch: Any, device: str) -> bool:
    """Whether the context is lost: after an illegal access every later call fails with the same words."""
    if device == "cpu":
        return False
    try:
        torch.ones(1, device=device).add(1).item()
    except Exception:
        return True
    return False


def _memory(torch: Any, device: str) -> Answer:
    free, total = torch.cuda.mem_get_info(device)
    return {"free_mib": int(free) >> 20, "total_mib": int(total) >> 20}


def difference(got: Any, wanted: Any) -> float:
    """Largest difference as a share of the largest wanted value; infinite when anything is not a number."""
    found = float((got.detach().double().cpu() - wanted.detach()).abs().max() / wanted.detach().abs().max())
    return found if math.isfinite(found) else math.inf


def _matmul(torch: Any, device: str) -> Answer:
    torch.manual_seed(0)
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    return {"difference": difference(a.to(device) @ b.to(device), a.double() @ b.double())}


def _convolution(torch: Any, device: str, cudnn: bool) -> Answer:
    """A convolution and its gradients in float32 against float64 on the processor, without TF32, which rounds."""
    torch.manual_seed(0)
    images, weight = torch.randn(2, 3, 64, 64), torch.randn(16, 3, 3, 3)

    def run(where: str, kind: Any) -> list[Any]:
        inputs = [tensor.to(where, kind, copy=True).requires_grad_() for tensor in (images, weight)]
        out = torch.nn.functional.conv2d(*inputs, stride=2, padding=1)
        out.square().mean().backward()
        return [out, *(tensor.grad for tensor in inputs)]

    flags = torch.backends.cudnn.flags(enabled=cudnn, benchmark=cudnn, allow_tf32=False)
    with flags if device != "cpu" else nullcontext():
        pairs = zip(run(device, torch.float32), run("cpu", torch.float64), strict=True)
        return {"difference": max(difference(got, wanted) for got, wanted in pairs)}


def _amp(torch: Any, device: str) -> Answer:
    """The first layers of a YOLOv5 in half precision and back, against the same layers in float32."""
    torch.manual_seed(0)
    layers = [
        torch.nn.Conv2d(3, 32, 6, 2, 2), torch.nn.BatchNorm2d(32), torch.nn.SiLU(),
        torch.nn.Conv2d(32, 64, 3, 2, 1), torch.nn.BatchNorm2d(64), torch.nn.SiLU(),
        torch.nn.Conv2d(64, 64, 3, 1, 1),
    ]  # fmt: skip
    model = torch.nn.Sequential(*layers).to(device)
    images = torch.rand(4, 3, 160, 160).to(device)
    wanted = model(images).detach().double().cpu()
    with torch.autocast(device_type=torch.device(device).type, dtype=torch.float16):
        out = model(images)
    (out.float().square().mean() * 1024).backward()  # as the gradient scaler does
    gradients = [parameter.grad for parameter in model.parameters()]
    finite = all(bool(torch.isfinite(tensor).all()) for tensor in [out, *gradients])
    return {"finite": finite, "difference": difference(out, wanted)}


def _nms(torch: Any, device: str) -> Answer:
    """torchvision's own operator, which a torchvision of another build than torch's lacks."""
    from torchvision.ops import nms  # noqa: PLC0415

    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 11.0, 11.0], [20.0, 20.0, 30.0, 30.0]], device=device)
    kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5).tolist()
    if kept != [0, 2]:
        raise ValueError(f"non-maximum suppression kept {kept} instead of [0, 2]")
    return {}


def try_nccl(rank: int, world: int, meeting: str, backend: str = "nccl") -> None:
    """One rank, on GPU `rank`: the sum over all ranks must arrive at each."""
    os.environ.setdefault("NCCL_DEBUG", "WARN")  # the reason of a failure is only told there
    import torch  # noqa: PLC0415  seconds
    import torch.distributed as dist  # noqa: PLC0415

    device = f"cuda:{rank}" if backend == "nccl" else "cpu"

    def join() -> Answer:
        if backend == "nccl":
            torch.cuda.set_device(rank)
        where = f"file://{meeting}"
        dist.init_process_group(backend, init_method=where, rank=rank, world_size=world, timeout=NCCL_LIMIT)
        return {}

    def reduce() -> Answer:
        numbers = torch.full((1 << 20,), float(rank + 1), device=device)
        dist.all_reduce(numbers)
        wanted = world * (world + 1) / 2
        if not bool((numbers == wanted).all()):
            raise ValueError(f"the sum is {float(numbers[0])} instead of {wanted}")
        dist.barrier()  # a rank that leaves early would break the sum of the others
        return {}

    if step("join", join) is not None:
        step("reduce", reduce)
    sys.stdout.flush()
    ctypes.CDLL(None).fflush(None)  # NCCL's log goes through C's stdout
    os._exit(0)  # a failed group may wait for its peers when it is taken down


if __name__ == "__main__":
    main(sys.argv[1:])

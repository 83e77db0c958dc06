"""Why a process of the training ended, in one sentence with the mend: by what it said, or by the signal that ended it.

The one list for all who see an end: the engines' child scripts, torchrun over its ranks, `lab` over both.
"""

from __future__ import annotations

import re
import signal

MEMORY = "the GPU's memory does not suffice: give a smaller --batch (auto finds one), a smaller --img or model"
MAIN_MEMORY = "main memory does not suffice: give a smaller --batch, fewer --workers, or no --cache"
ABSURD = (
    "the engine asked for more memory at once than any GPU has, most likely for pictures with very many boxes: correct "
    "the labels that `lab data check` names, and give a smaller --batch (val: a smaller --max-det)"
)
ANY_GPU_HAS = 512  # GiB, twice and more of what the largest cards have
LOST_GPUS = "the GPUs lost each other (NCCL)"
# what a rank, or the `lab` above it, says when its partner has gone: the consequence of a failure elsewhere
LOST_PEER = (
    "connection closed by peer",
    "connection reset",
    "connection refused",
    "broken pipe",
    "remote process exited",
    "ncclremoteerror",
    "unhandled system error",
    "read error",
    "socket timeout",
    "exit status",
    "(sigterm)",
    LOST_GPUS.lower(),
)
_MORE_SHM = "give --workers 0, or a larger SHM_SIZE in .env and open again"
_BY_THE_KERNEL = (
    "most likely by the kernel for want of main memory: give fewer --workers, a smaller --batch, or no --cache"
)

# After the name of whoever died of it. Of ranks that died together the signal that stands first here is the cause: a
# rank aborts when it has waited too long for one that was killed.
SIGNALS: dict[int, str] = {
    signal.SIGKILL: f"was killed (SIGKILL), {_BY_THE_KERNEL}",
    signal.SIGBUS: f"died of SIGBUS, most likely for want of shared memory: {_MORE_SHM}",
    signal.SIGSEGV: (
        "crashed (SIGSEGV) in a library: `lab doctor` tests torch and the GPU, `lab data check` the pictures, and "
        "--workers 0 tells whether loading them does it"
    ),
    signal.SIGILL: "died of SIGILL: a library was built for another processor; open the container again, on this one",
    signal.SIGABRT: (
        "aborted (SIGABRT), most likely by a library of CUDA, or by NCCL after it had waited too long for another "
        "rank; its words are above, and `lab doctor` tests the GPUs and their network"
    ),
    signal.SIGTERM: (
        "was ended from outside (SIGTERM), by somebody or a cluster's time limit: a training goes on with --resume"
    ),
}
# what an engine says -> the sentence
CAUSES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("MemoryError",), MAIN_MEMORY),
    (
        ("exited unexpectedly",),  # torch's words for a loader worker that has gone, however it went
        f"a loader worker has gone, killed {_BY_THE_KERNEL}",
    ),
    (
        ("exceeds nc=", "labels empty", "No labels found", "No valid images"),
        "the labels or pictures cannot be used: `lab data check`, with the same data file, names the files",
    ),
    (
        ("Bus error", "out of shared memory", "unable to open shared memory"),
        f"a loader worker ran out of shared memory: {_MORE_SHM}",
    ),
    (
        ("no kernel image is available",),
        "this torch build has no code for this GPU: open the container again, so that host-setup chooses another",
    ),
    (
        (
            "ncclInternalError",
            "ncclSystemError",
            "ncclRemoteError",
            "ncclUnhandledCudaError",
            "collective operation timeout",
        ),
        f"{LOST_GPUS}: `lab doctor` tests their network and names the switch that helps; NCCL_DEBUG=INFO in .env says "
        "more",
    ),
    (
        ("does not have a deterministic implementation",),
        "a layer of this model has no deterministic kernel, and YOLOv5 insists on those: train it with "
        "--engine yolov5u, or on --device cpu",
    ),
    (
        ("nothing to resume",),
        "this run is finished, there is nothing to resume: start a new one with --weights and its last.pt",
    ),
    (
        ("state_dict", "Ran out of input", "failed finding central directory", "invalid load key"),
        "the checkpoint cannot be read, or belongs to another model: it may be cut short; use another one",
    ),
)


def absurd(text: str) -> bool:
    """Whether memory was asked for that no smaller batch brings within reach."""
    asked = re.search(r"Tried to allocate ([\d.]+) (GiB|TiB|PiB|EiB)", text)
    return asked is not None and float(asked[1]) * 1024 ** ("GTPE".index(asked[2][0])) > ANY_GPU_HAS


def ended(who: str, number: int) -> str:
    """The sentence for `who` (a rank, a loader worker, a task), ended by signal `number`."""
    if number in SIGNALS:
        return f"{who} {SIGNALS[number]}"
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time signal
        name = f"signal {number}"
    return f"{who} died of {name}; its own words are above"


def lost_peer(sentence: str) -> bool:
    """Whether `sentence` merely speaks of a partner that has gone."""
    return any(sign in sentence.lower() for sign in LOST_PEER)


def said(text: str, kind: str = "") -> str | None:
    """The sentence for an error whose words are `text` and whose class is called `kind`; None for an unknown one."""
    worker = re.search(r"DataLoader worker .*is killed by signal: ([A-Z][\w ]*)", text)
    if worker:
        number = next((one for one in SIGNALS if signal.strsignal(one) == worker[1].strip()), None)
        if number is not None:
            return ended("a loader worker", number)
    for signs, sentence in CAUSES:
        if any(sign in text or sign in kind for sign in signs):
            return sentence
    return None

"""Checks of `lab doctor`: the installed torch, and what it computes on each device."""

from __future__ import annotations

import re
from collections.abc import Callable

from lab.doctor_facts import Child, Facts, reached
from lab.doctor_finding import (
    CLOSE,
    LINKS,
    MORE_SHM,
    REBUILD,
    Finding,
    ending,
    excerpt,
    fault_of,
    has_gpu,
    named,
    no_device,
    serves,
    tail,
    used,
)

CLOSE_HALF = 0.1  # difference of half precision, as a share of the largest value
# cards with which ultralytics trains without AMP, by name (its utils/checks.py, check_amp): TU116, TU117, and K40m
NO_AMP = re.compile(r"\b(GTX 16[356]0|T400|T550|T600|T1000|T1200|T2000|K40m)", re.IGNORECASE)


def _torch_build(facts: Facts) -> Finding:
    child = facts.torch
    about = child.steps.get("torch", {})
    if not about.get("ok"):
        said = str(about.get("error") or "") or ending(child) or "gave no answer"
        return Finding(
            "torch.build", "fail", f"torch cannot be imported: {excerpt(said)}", "nothing trains here", REBUILD,
            LINKS["install"],
        )  # fmt: skip
    version, cuda = str(about["version"]), str(about["cuda"])
    if not cuda and (has_gpu(facts) or facts.accel.startswith("gpu")):
        return Finding(
            "torch.build", "fail", f"torch {version} is a build for the CPU, and there is a GPU",
            "training runs on the CPU", REBUILD, LINKS["install"],
        )  # fmt: skip
    release = version.partition("+")[0]
    build = "cu" + cuda.replace(".", "") if cuda else "cpu"
    wanted = [facts.wanted_torch or release, facts.wanted_build or build]
    # where its index cannot be reached the image takes the default build instead of the CPU's: that runs as well
    if wanted[0] != release or wanted[1] not in {build, "cpu"}:
        return Finding(
            "torch.build", "warn", f"torch {release}+{build} is installed, host-setup wants {'+'.join(wanted)}",
            "this container is older than .env, or torch was installed by hand", REBUILD, LINKS["install"],
        )  # fmt: skip
    return Finding("torch.build", "ok", f"torch {release}+{build}")


def _torch_catalogue(facts: Facts) -> Finding:
    if facts.published is None:
        return Finding("torch.catalogue", "skip", facts.no_catalogue or "there is no catalogue here")
    codes = [re.fullmatch(r"(?:sm|compute)_(\d+)[af]?", arch) for arch in _archs(facts)]
    installed = {int(match[1]) for match in codes if match}
    if not installed:
        return Finding("torch.catalogue", "skip", "torch does not tell its architectures")
    if installed == facts.published:
        return Finding("torch.catalogue", "ok", f"it holds what the catalogue says: {_spelt(installed)}")
    lacks, more = facts.published - installed, installed - facts.published
    words = [f"lacks {_spelt(lacks)}"] if lacks else []
    words += [f"has {_spelt(more)} besides"] if more else []
    return Finding(
        "torch.catalogue", "warn", f"this torch {' and '.join(words)}, compared with the project's catalogue",
        "host-setup may choose a build that does not run here; torch.arch says what counts",
        "python -c 'import torch; print(torch.__version__, torch._C._cuda_getArchFlags())'", "",
    )  # fmt: skip


def _archs(facts: Facts) -> list[str]:
    return [str(arch) for arch in facts.torch.steps.get("arch", {}).get("archs", [])]


def _spelt(codes: set[int] | frozenset[int]) -> str:
    return ", ".join(f"{code // 10}.{code % 10}" for code in sorted(codes))


def _torch_arch(facts: Facts) -> Finding:
    because = no_device(facts)
    if because:
        return Finding("torch.arch", "skip", because)
    archs = _archs(facts)
    if not archs:
        return Finding("torch.arch", "skip", "torch does not tell its architectures")
    ways = [(device, serves(archs, (device["capability"][0], device["capability"][1]))) for device in used(facts)]
    without = [device for device, way in ways if not way]
    if without:
        device = without[0]
        capability = ".".join(map(str, device["capability"]))
        rest = [str(other["number"]) for other, way in ways if way]
        more = f"; leave it out with --device {','.join(rest)}" if rest else ""
        return Finding(
            "torch.arch", "fail", f"torch has no code for GPU {device['number']} {device['name']} ({capability}), "
            f"only for {', '.join(archs)}",
            f"every kernel fails there: \"no kernel image is available\"{more}", REBUILD, LINKS["capability"],
        )  # fmt: skip
    translated = _translated(facts)
    if translated:
        return Finding(
            "torch.arch", "warn", f"torch has only PTX for {named(translated)}",
            "the driver translates it at the first start, for minutes; a build with its own code starts at once",
            REBUILD, LINKS["capability"],
        )  # fmt: skip
    capabilities = sorted({(device["capability"][0], device["capability"][1]) for device in used(facts)})
    return Finding("torch.arch", "ok", f"code for {', '.join(f'{major}.{minor}' for major, minor in capabilities)}")


def _translated(facts: Facts) -> list[str]:
    """Numbers of the devices for which the driver must translate PTX."""
    ways = {str(d["number"]): serves(_archs(facts), (d["capability"][0], d["capability"][1])) for d in used(facts)}
    return [number for number, way in ways.items() if way == "ptx"]


def _untried(facts: Facts) -> str:
    """Why no kernel ran on a GPU, "" when one was tried."""
    if not reached(facts.torch, "torch"):
        return "torch cannot be imported"
    return no_device(facts)


def _torch_kernel(facts: Facts) -> Finding:
    if not facts.trials:
        return Finding("torch.kernel", "skip", "torch cannot be imported, or does not answer")
    for name, trial in facts.trials.items():
        where = "the processor" if name == "cpu" else f"GPU {name}"
        if not trial.steps and not trial.at:
            said = ending(trial) or "gives no answer"
            return _no_kernel(f"on {where} the test {said}: {tail(trial.said)}".rstrip(": "), name)
        for step, words in (
            ("memory", "the first call"),
            ("matmul", "a product of matrices"),
            ("convolution", "a convolution"),
        ):
            fault = fault_of(trial, step, CLOSE)
            if fault and trial.end == "hangs" and name in _translated(facts):
                return Finding(
                    "torch.kernel", "warn", f"on {where} {words} is not done yet: the driver translates PTX",
                    "the first start takes minutes, later ones find the result in ~/.nv", "lab doctor",
                    LINKS["capability"],
                )  # fmt: skip
            if fault:
                return _no_kernel(f"on {where} {words}: {fault}", name)
    if "cpu" in facts.trials:
        return Finding("torch.kernel", "ok", "matrices, a convolution and its gradients are right on the CPU")
    where = f"all {len(facts.trials)} GPUs" if len(facts.trials) > 1 else "the GPU"
    return Finding("torch.kernel", "ok", f"matrices, a convolution and its gradients are right on {where}")


def _no_kernel(cause: str, device: str) -> Finding:
    if "no kernel image" in cause or "unsupported toolchain" in cause:
        return Finding(
            "torch.kernel", "fail", cause, "nothing runs there: this torch has no code for it", REBUILD,
            LINKS["capability"],
        )  # fmt: skip
    if "out of memory" in cause.lower():
        return Finding(
            "torch.kernel", "fail", cause, "other programs hold its memory",
            "nvidia-smi --query-compute-apps=pid,process_name,used_memory --format=csv  # on the host", "",
        )  # fmt: skip
    if device == "cpu":
        return Finding("torch.kernel", "fail", cause, "nothing trains here", REBUILD, LINKS["install"])
    return Finding(
        "torch.kernel", "fail", cause, "training fails there, or learns nothing",
        "sudo dmesg | grep -iE 'nvrm|xid'  # on the host: what the driver says about it", LINKS["xid"],
    )  # fmt: skip


def _cudnn(facts: Facts) -> Finding:
    because = _untried(facts)
    number = facts.torch.steps.get("cudnn", {}).get("version")
    words = f"cuDNN {_cudnn_version(number)}" if number else "cuDNN"
    if because:
        return Finding("cudnn", "skip", f"{because}{f'; {words} is installed' if number else ''}")
    told = str(facts.torch.steps.get("cudnn", {}).get("error", ""))
    faults = {name: fault_of(trial, "cudnn", CLOSE) for name, trial in facts.trials.items()}
    name, fault = next(((name, fault) for name, fault in faults.items() if fault), ("", told))
    if fault:
        return Finding(
            "cudnn", "fail", f"{words}{f' on GPU {name}' if name else ''}: {excerpt(fault)}",
            "every convolution fails; most often LD_LIBRARY_PATH leads to another cuDNN than torch's",
            'unset LD_LIBRARY_PATH; pip list | grep -i cudnn', LINKS["install"],
        )  # fmt: skip
    if not all("cudnn" in trial.steps for trial in facts.trials.values()):
        return Finding("cudnn", "skip", "kernels fail before it, see torch.kernel")
    return Finding("cudnn", "ok", f"{words}, a convolution through it is right")


def _cudnn_version(number: int) -> str:
    """91002 -> "9.10.2", 8902 -> "8.9.2": from version 9 on there is a digit more."""
    major, rest = divmod(number, 10_000 if number >= 90_000 else 1_000)
    return f"{major}.{rest // 100}.{rest % 100}"


def _torch_amp(facts: Facts) -> Finding:
    because = _untried(facts)
    if because:
        return Finding("torch.amp", "skip", f"{because}, and AMP is for GPUs")
    names = {str(device["number"]): str(device["name"]) for device in used(facts)}
    weak = [name for name in facts.trials if NO_AMP.search(names.get(name, ""))]
    for name, trial in facts.trials.items():
        fault = fault_of(trial, "amp", CLOSE_HALF)
        if fault and name not in weak:
            return Finding(
                "torch.amp", "fail", f"half precision on GPU {name} {names.get(name, '')}: {fault}",
                "training with AMP, the default, fails there or learns nothing",
                "sudo dmesg | grep -iE 'nvrm|xid'  # on the host: what the driver says about it", LINKS["amp"],
            )  # fmt: skip
    if weak:
        fault = fault_of(facts.trials[weak[0]], "amp", CLOSE_HALF)
        words = fault or "known for values that are not numbers in half precision, though not in this test"
        return Finding(
            "torch.amp", "warn", f"GPU {weak[0]} {names[weak[0]]}: {words}",
            "the engines switch AMP off for such a card: it trains in float32, slower and with more memory", "",
            LINKS["amp"],
        )  # fmt: skip
    if not all("amp" in trial.steps for trial in facts.trials.values()):
        return Finding("torch.amp", "skip", "kernels fail before it, see torch.kernel")
    return Finding("torch.amp", "ok", "half precision gives finite values and gradients")


def _torchvision(facts: Facts) -> Finding:
    if not reached(facts.torch, "torch"):
        return Finding("torchvision", "skip", "torch cannot be imported")
    about = facts.torch.steps.get("torchvision", {})
    faults = [
        fault_of(facts.torch, "torchvision", CLOSE),
        *(fault_of(trial, "nms", CLOSE) for trial in facts.trials.values()),
    ]
    fault = next(filter(None, faults), "")
    if fault:
        return Finding(
            "torchvision", "fail", f"its non-maximum suppression fails: {fault}",
            "validation and detection fail: torchvision and torch are of different builds", REBUILD, LINKS["install"],
        )  # fmt: skip
    if not about:
        return Finding("torchvision", "skip", "it was not reached, see above")
    return Finding("torchvision", "ok", f"torchvision {about['version']}, its own kernels run")


def _nccl(facts: Facts) -> Finding:
    because = _untried(facts)
    if because:
        return Finding("nccl", "skip", because)
    count = len(used(facts))
    if count < 2:
        return Finding("nccl", "skip", "there is one GPU")
    if not facts.nccl:
        return Finding("nccl", "skip", "kernels fail before it, see torch.kernel")
    if all(reached(rank, "reduce") for rank in facts.nccl):
        version = facts.torch.steps.get("nccl", {}).get("version") or ""
        return Finding("nccl", "ok", f"NCCL {version}: {count} GPUs add up".replace("  ", " "))
    # torch's own watchdog ends a rank that waits for too long, with an abort
    hangs = any(rank.end == "hangs" or "timeout" in rank.said.lower() for rank in facts.nccl)
    cause = "NCCL does not end between the GPUs" if hangs else f"NCCL: {_nccl_words(facts.nccl)}"
    consequence = "training on several GPUs stops at its first step; one --device works"
    if "shared memory" in cause or "/dev/shm" in cause:
        return Finding("nccl", "fail", cause, consequence, MORE_SHM, LINKS["nccl"])
    if facts.nccl_without_p2p and all(reached(rank, "reduce") for rank in facts.nccl_without_p2p):
        return Finding(
            "nccl", "fail", f"{cause}; without peer-to-peer it works",
            f"{consequence}; the host's IOMMU or ACS is in the way", "export NCCL_P2P_DISABLE=1", LINKS["nccl"],
        )  # fmt: skip
    return Finding("nccl", "fail", cause, consequence, "NCCL_DEBUG=INFO lab train --device 0,1", LINKS["nccl"])


def _nccl_words(ranks: tuple[Child, ...]) -> str:
    """The reason, which NCCL tells only in its log, of the first rank that has one."""
    for rank in ranks:
        match = re.search(r"NCCL WARN (.*?)(?= \S+:\d+:\d+ \[|$)", rank.said) or re.search(
            r"Last error: *(.*)", rank.said
        )
        if match:
            return excerpt(match[1])
    for rank in ranks:
        for about in rank.steps.values():
            if not about["ok"]:
                error = str(about["error"])
                return excerpt(error.partition("Last error:")[2].strip() or error)
    return next((ending(rank) for rank in ranks if rank.end), "no answer")


CHECKS: tuple[Callable[[Facts], Finding], ...] = (
    _torch_build,
    _torch_catalogue,
    _torch_arch,
    _torch_kernel,
    _cudnn,
    _torch_amp,
    _torchvision,
    _nccl,
)

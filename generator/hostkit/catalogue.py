"""The compiled catalogue (catalog.json): which wheels exist, which code they hold, which drivers and GPUs run it.

A *set of builds* is an int with one bit per build. Builds are ordered by preference (newest release first, within it
the default of the package index, then the newest CUDA), so that "the best of these" is the lowest bit set.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Iterable, NamedTuple

from . import names
from .terminal import quoted

DEFAULT_PATH = Path(__file__).resolve().parent.parent / "catalog.json"

MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "x64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
SYSTEMS = ("linux", "wsl2")


class BadRequest(ValueError):
    """A question that cannot be asked. Its text is one sentence for a person: what is wrong and what mends it."""


class Build(NamedTuple):
    """One wheel of torch, on Linux: `sass` and `ptx` are capabilities (major, minor) that its kernels were made for."""

    torch: str
    torchvision: str
    name: str
    cuda: tuple[int, int] | None
    sass: tuple[tuple[int, int], ...]
    ptx: tuple[tuple[int, int], ...]
    default: bool


class Need(NamedTuple):
    """What a build asks of the driver on one GPU: at least `oldest`; where set, a branch before `gone_from`."""

    oldest: str
    gone_from: int | None
    by_ptx: bool  # the driver compiles it; else machine code is there


class Branch(NamedTuple):
    """The last driver branch of an architecture; `gone_from` is the first branch that no longer knows it."""

    architecture: str
    last: int
    gone_from: int


def version(text: str) -> tuple[int, ...]:
    """`"570.86.10"` -> (570, 86, 10). Raises ValueError for anything but numbers and dots."""
    return tuple(int(part) for part in text.split("."))


def driver_version(text: str) -> tuple[int, ...]:
    """Like `version`; a bare branch number ("580") stands for the newest driver of that branch. Raises BadRequest."""
    if not re.fullmatch(r"[0-9]{2,4}(\.[0-9]{1,6}){0,3}", text.strip()):
        raise BadRequest(f"driver {quoted(text)} is not a version: give what nvidia-smi prints, such as 570.86.10.")
    numbers = version(text.strip())
    if numbers[0] < 100:
        raise BadRequest(f"driver {quoted(text)} looks like a version of CUDA: give the driver's, such as 570.86.10.")
    return numbers if len(numbers) > 1 else (*numbers, 10**6)


def capability(text: str) -> tuple[int, int] | None:
    """`"8.6"` -> (8, 6); empty or a placeholder such as [N/A] -> None. Raises BadRequest for other text."""
    text = text.strip()
    if not text or text.startswith("[") or text in {"N/A", "ERR!"}:
        return None
    if not re.fullmatch(r"[0-9]{1,2}\.[0-9]", text):
        raise BadRequest(f"compute capability {quoted(text)} is not of the form 8.6: leave it empty to go by the name.")
    major, minor = version(text)
    return major, minor


@lru_cache(maxsize=64)
def cuda_of(build: str) -> tuple[int, int] | None:
    """`"cu128"` -> (12, 8), `"cpu"` -> None."""
    match = re.fullmatch(r"cu(\d{2})(\d)", build)
    return (int(match[1]), int(match[2])) if match else None


class Catalogue:
    """What catalog.json knows, indexed for questions. Built once, then only read: safe to share between threads."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.as_of: str = data["as_of"]
        self.index_base: str = data["index_base"]
        self._advisories = [(cve, fixed, version(fixed)) for cve, fixed in data["advisories"]]  # oldest first
        self.toolkit_safe: str = self._advisories[-1][1]
        self.releases: dict[str, dict[str, Any]] = {row["torch"]: row for row in reversed(data["releases"])}
        self.floors: dict[str, dict[int, tuple[str, tuple[int, ...]]]] = {
            "linux": {row["cuda"]: (row["linux"], version(row["linux"])) for row in data["floors"]},
            "wsl2": {row["cuda"]: (row["windows"], version(row["windows"])) for row in data["floors"]},
        }
        self._packaged = {
            "linux": {row["toolkit"]: (row["linux"], version(row["linux"])) for row in data["toolkits"]},
            "wsl2": {
                row["toolkit"]: (row["windows"], version(row["windows"])) for row in data["toolkits"] if row["windows"]
            },
        }
        self._branches = [
            (row["major"], row["minor_below"], Branch(row["architecture"], row["last"], row["gone_from"]))
            for row in data["branches"]
        ]
        self._first_branches = {
            version(row["capability"]): {"linux": row["linux"], "wsl2": row["windows"]}
            for row in data["first_branches"]
        }
        self._jetson = {
            tuple(version(row["capability"])): tuple(version(row["family_code_from"]))
            if row["family_code_from"]
            else ()
            for row in data["jetson"]
        }
        self._gpus: list[list[Any]] = data["gpus"]
        self._names = _names(data["gpus"])
        self.builds: dict[str, list[Build]] = {machine: self._ordered(machine) for machine in ("x86_64", "aarch64")}
        self._memo: dict[tuple[Any, ...], int] = {}
        self._by_name: dict[str, tuple[tuple[int, int], int] | None] = {}  # a fleet repeats its few names

    @classmethod
    def read(cls, path: Path = DEFAULT_PATH) -> Catalogue:
        """The catalogue at `path`. Raises BadRequest when it cannot be read."""
        try:
            return cls(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise BadRequest(f"the catalogue {path} cannot be read ({error.strerror}): restore the file.") from None
        except (ValueError, KeyError, TypeError, IndexError):
            raise BadRequest(f"the catalogue {path} is damaged: restore the file.") from None

    def _ordered(self, machine: str) -> list[Build]:
        builds = []
        for torch, release in self.releases.items():
            rows = [
                Build(
                    torch,
                    release["torchvision"],
                    name,
                    cuda_of(name),
                    tuple([divmod(code, 10) for code in sass]),
                    tuple([divmod(code, 10) for code in ptx]),
                    name == release["default"][machine],
                )
                for name, on, sass, ptx in release["builds"]
                if on == machine
            ]
            builds += sorted(rows, key=lambda build: (build.default, build.cuda or (0, 0)), reverse=True)
        return builds

    def index(self, build: Build) -> str | None:
        """Where the wheel is installed from: None for the default package index, else the PyTorch index's URL."""
        return None if build.default else f"{self.index_base}/{build.name}"

    def cpu_build(self, torch: str, machine: str) -> Build:
        """The CPU build of a release; every release has one on both machines."""
        return next(build for build in self.builds[machine] if build.torch == torch and build.name == "cpu")

    def pythons(self, torch: str, machine: str) -> list[str]:
        """Python versions that a release has wheels for, oldest first."""
        return list(self.releases[torch]["python"][machine])

    def newest(self, machine: str, python: str = "") -> str | None:
        """The newest release with wheels for this Python, or for any when `python` is empty."""
        return next((torch for torch in self.releases if not python or python in self.pythons(torch, machine)), None)

    def numpy_1_only(self, torch: str) -> bool:
        """Whether the wheels of a release work with NumPy 1 only; False for a release outside the catalogue."""
        return self.releases.get(torch, {}).get("numpy") == 1

    def advisories(self, toolkit: str) -> list[str]:
        """Ids of the CVEs that a container toolkit of this version still has, oldest first. ValueError: no version."""
        number = version(toolkit)
        return [cve for cve, _, fixed in self._advisories if number < fixed]

    def branch(self, compute: tuple[int, int]) -> Branch | None:
        """The last driver branch for GPUs of this capability, None while they are still supported."""
        for major, minor_below, branch in self._branches:
            if compute[0] == major and (minor_below is None or compute[1] < minor_below):
                return branch
        return None

    def first_branch(self, compute: tuple[int, int], system: str) -> int | None:
        """The driver branch of the first toolkit for this capability: older ones hardly know such a GPU."""
        return self._first_branches.get(compute, {}).get(system)

    def known(self, compute: tuple[int, int]) -> bool:
        """Whether a GPU of the table or a Jetson has this capability; if not, it may be newer than the catalogue."""
        return compute in self._jetson or any(compute == known for _, known, _ in self._names)

    def gpu_names(self) -> list[tuple[str, tuple[int, int], int]]:
        """Every GPU of the table by name: (name as nvidia-smi prints it, capability, nominal MiB)."""
        rows = []
        for name, compute, memory_gib in self._gpus:
            major, minor = version(compute)
            rows.append((name, (major, minor), memory_gib * 1024))
        return rows

    def by_name(self, name: str) -> tuple[tuple[int, int], int] | None:
        """(capability, MiB) of a GPU, MIG slice or virtual GPU by its nvidia-smi name; None when that is uncertain."""
        if name not in self._by_name:
            if len(self._by_name) > 10_000:
                self._by_name.clear()
            self._by_name[name] = names.by_name(name, self.listed)
        return self._by_name[name]

    def listed(self, name: str) -> tuple[tuple[int, int], int] | None:
        """(capability, nominal MiB) of a whole GPU of the table, longest known name first; None when not there."""
        wanted = _plain(name)
        for known, compute, memory_mib in self._names:
            if wanted.startswith(known) and (len(wanted) == len(known) or wanted[len(known)] in " -"):
                return compute, memory_mib
        return None

    def compute(self, printed: str, name: str) -> tuple[int, int] | None:
        """The capability as nvidia-smi prints it, else by name; None when neither tells. Raises BadRequest."""
        found = capability(printed)
        if found is None:
            named = self.by_name(name)
            found = named[0] if named else None
        return found

    def thresholds(self, system: str) -> list[tuple[int, ...]]:
        """Driver versions at which it changes what runs on some GPU: floors, last branches, toolkits that bring PTX."""
        floors = [floor for _, floor in self.floors[system].values()]
        gone = [(branch.gone_from,) for _, _, branch in self._branches]
        return [*floors, *gone, *(number for _, number in self._packaged[system].values())]

    # Sets of builds

    def _memoised(self, key: tuple[Any, ...], machine: str, test: Any) -> int:
        if key not in self._memo:
            if len(self._memo) > 50_000:  # a fleet of invented drivers must not eat the memory
                self._memo.clear()
            self._memo[key] = sum(1 << bit for bit, build in enumerate(self.builds[machine]) if test(build))
        return self._memo[key]

    def of_release(self, machine: str, torch: str) -> int:
        """CUDA builds of one release, or of every release for "auto"."""
        return self._memoised(
            ("release", machine, torch), machine, lambda build: build.cuda and torch in {build.torch, "auto"}
        )

    def for_python(self, machine: str, python: str) -> int:
        """Builds with wheels for this Python; every build when `python` is empty."""
        return self._memoised(
            ("python", machine, python),
            machine,
            lambda build: not python or python in self.releases[build.torch]["python"][machine],
        )

    def for_driver(self, machine: str, system: str, driver: tuple[int, ...]) -> int:
        """CUDA builds whose CUDA major this driver serves (minor-version compatibility)."""
        floors = self.floors[system]
        return self._memoised(
            ("driver", machine, system, driver),
            machine,
            lambda build: build.cuda and driver >= floors[build.cuda[0]][1],
        )

    def with_sass(self, machine: str, compute: tuple[int, int]) -> int:
        """Builds with machine code for this capability: same major, equal or lower minor (binary compatibility)."""
        return self._memoised(
            ("sass", machine, compute),
            machine,
            lambda build: any(self._executes(build, sm, compute) for sm in build.sass),
        )

    def _executes(self, build: Build, sm: tuple[int, int], compute: tuple[int, int]) -> bool:
        if sm[0] != compute[0] or sm[1] > compute[1]:
            return False
        family_code_from = self._jetson.get(compute)
        if sm == compute or family_code_from is None:
            return True
        return bool(family_code_from) and build.cuda is not None and build.cuda >= family_code_from

    def with_ptx(self, machine: str, system: str, compute: tuple[int, int], driver: tuple[int, ...]) -> int:
        """Builds with PTX of a lower or equal capability that this driver is new enough to compile."""
        packaged = self._packaged[system]

        def compiles(build: Build) -> bool:
            if build.cuda is None or not any(ptx <= compute for ptx in build.ptx):
                return False
            needed = packaged.get("{}.{}".format(*build.cuda))
            return needed is not None and driver >= needed[1]

        return self._memoised(("ptx", machine, system, compute, driver), machine, compiles)

    def need(self, build: Build, system: str, compute: tuple[int, int]) -> Need | None:
        """The drivers with which a build runs on a GPU of this capability; None when it holds no code for it."""
        if build.cuda is None:
            return None
        branch = self.branch(compute)
        gone_from = branch.gone_from if branch else None
        if any(self._executes(build, sm, compute) for sm in build.sass):
            return Need(self.floors[system][build.cuda[0]][0], gone_from, False)
        packaged = self._packaged[system].get("{}.{}".format(*build.cuda))
        if packaged and any(ptx <= compute for ptx in build.ptx):
            return Need(packaged[0], gone_from, True)
        return None

    def runs(self, build: Build, machine: str, system: str, driver: str, gpus: Iterable[tuple[str, str]]) -> bool:
        """Whether a build runs on all GPUs, each (printed capability, name): the rule of `resolve` for one."""
        number = driver_version(driver)
        bit = self.for_driver(machine, system, number) & (1 << self.builds[machine].index(build))
        for printed, name in gpus:
            compute = self.compute(printed, name)
            branch = self.branch(compute) if compute else None
            if compute is None or (branch and number[0] >= branch.gone_from):
                return False
            bit &= self.with_sass(machine, compute) | self.with_ptx(machine, system, compute, number)
        return bool(bit)

    def best(self, machine: str, builds: int) -> Build:
        """The preferred build of a set that is not empty."""
        return self.builds[machine][(builds & -builds).bit_length() - 1]

    def members(self, machine: str, builds: int) -> list[Build]:
        """The builds of a set, in order of preference."""
        return [build for bit, build in enumerate(self.builds[machine]) if builds >> bit & 1]


def _plain(name: str) -> str:
    """A name as it is compared: one case, single blanks, without the "NVIDIA" that newer drivers put in front."""
    words = name.lower().split()
    return " ".join(words[1:] if words[:1] == ["nvidia"] else words)


_FORM_AND_SIZE = re.compile(r"([- ](pcie|sxm\d*|\d+gb?)\b).*")


def _names(rows: list[list[Any]]) -> list[tuple[str, tuple[int, int], int]]:
    """Known names, longest first, each also without form factor and size ("Tesla V100" for "Tesla V100-SXM2-16GB")
    and without "GeForce" or "Tesla"."""
    known: dict[str, tuple[tuple[int, int], int]] = {}
    exact = []
    for name, compute, memory_gib in rows:
        major, minor = version(compute)
        entry = ((major, minor), memory_gib * 1024)
        plain = _plain(name)
        exact.append((plain, entry))
        known.setdefault(_FORM_AND_SIZE.sub("", plain), entry)
    known.update(exact)
    for name, entry in list(known.items()):  # as people say it: "RTX 3090", "V100"
        known.setdefault(re.sub(r"^(geforce|tesla) ", "", name), entry)
    return [(name, *known[name]) for name in sorted(known, key=len, reverse=True)]

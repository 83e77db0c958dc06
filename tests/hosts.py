"""Machines described for tests: fake programs on PATH, files below HOST_ROOT, and well-known GPUs."""

import json
import shlex
from pathlib import Path

from generator.hostkit.catalogue import Catalogue
from generator.hostkit.engine import Docker
from generator.hostkit.nvidia import Card, Smi
from generator.hostkit.probe import Distribution, Facts
from generator.hostkit.resolve import Gpu, Host, Resolution, resolve

CATALOGUE = Catalogue.read()

# name, capability, MiB as nvidia-smi prints them
CARDS = {
    "K80": ("Tesla K80", "3.7", 11441),
    "970": ("NVIDIA GeForce GTX 970", "5.2", 4096),
    "1080": ("NVIDIA GeForce GTX 1080", "6.1", 8192),
    "1080 Ti": ("NVIDIA GeForce GTX 1080 Ti", "6.1", 11264),
    "P100": ("Tesla P100-PCIE-16GB", "6.0", 16384),
    "V100": ("Tesla V100-SXM2-16GB", "7.0", 16384),
    "T4": ("Tesla T4", "7.5", 15360),
    "2080 Ti": ("NVIDIA GeForce RTX 2080 Ti", "7.5", 11264),
    "A100": ("NVIDIA A100-SXM4-80GB", "8.0", 81920),
    "3090": ("NVIDIA GeForce RTX 3090", "8.6", 24576),
    "4090": ("NVIDIA GeForce RTX 4090", "8.9", 24564),
    "H100": ("NVIDIA H100 80GB HBM3", "9.0", 81559),
    "GH200": ("NVIDIA GH200 480GB", "9.0", 97871),
    "B200": ("NVIDIA B200", "10.0", 183359),
    "B300": ("NVIDIA B300 SXM6 AC", "10.3", 275040),
    "Thor": ("NVIDIA Thor", "11.0", 125771),
    "5090": ("NVIDIA GeForce RTX 5090", "12.0", 32607),
    "GB10": ("NVIDIA GB10", "12.1", None),
}


def gpu(card: str, number: int = 0, capability: str | None = None) -> Gpu:
    name, printed, memory = CARDS[card]
    printed = printed if capability is None else capability
    return Gpu(number, name, printed, memory, f"GPU-0000000{number}-aaaa-bbbb-cccc-dddddddddddd")


def slice_uuid(number: int, place: int) -> str:
    return f"MIG-{number}{place}000000-aaaa-5bbb-8ccc-dddddddddddd"


def ask(driver: str, *cards: str, **more: str) -> Resolution:
    return resolve(Host(driver, tuple(gpu(card, number) for number, card in enumerate(cards)), **more), CATALOGUE)


def facts(*cards: str, driver: str = "570.86.10", **changes: object) -> Facts:
    """A Linux workstation with Docker and the NVIDIA runtime; without cards, a machine without an NVIDIA GPU."""
    gpus = tuple(gpu(card, number) for number, card in enumerate(cards))
    usual = Facts(
        system="linux",
        machine="x86_64",
        distribution=Distribution("ubuntu", ("debian",), "24.04", "Ubuntu 24.04.3 LTS"),
        uid=1001,
        gid=1002,
        user="ada",
        smi=Smi("ok", "", driver, gpus) if gpus else Smi("missing"),
        module=driver if gpus else "",
        cards=tuple(Card(f"0000:0{number}:00.0", 0x2684, "nvidia") for number in range(len(cards))),
        wsl_driver=False,
        docker=Docker(
            "ok",
            version="28.3.0",
            runtimes=("nvidia", "runc") if gpus else ("runc",),
            root="/var/lib/docker",
            cdi_directories=("/etc/cdi", "/var/run/cdi"),
        ),
        compose="2.38.1",
        toolkit="1.19.1" if gpus else "",
        hook=False,
        cdi=(),
        project_free=400 << 30,
        docker_free=400 << 30,
        certificates=0,
        proxy="",
        seconds=0.1,
    )
    return usual._replace(**changes)


class DescribedHost:
    """A machine made of a folder of programs (the whole PATH) and a folder of files (HOST_ROOT)."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.bin, self.root = folder / "bin", folder / "root"
        self.bin.mkdir()
        self.root.mkdir()
        self.environment = {"PATH": str(self.bin), "HOST_ROOT": str(self.root), "USER": "ada"}
        for name in ("HTTPS_PROXY", "https_proxy", "YOLO_ACCEL", "TORCH_BUILD", "TORCH_VERSION", "CUDA_VISIBLE_DEVICES",
                     "EXTRA_CA_CERTS", "TORCH_INDEX_BASE", "COMPOSE_PROJECT_NAME"):  # fmt: skip
            monkeypatch.delenv(name, raising=False)
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)

    def file(self, path: str, text: str) -> Path:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def program(self, name: str, script: str) -> Path:
        """A program on PATH: `script` is POSIX sh, and only its built-ins can be found."""
        file = self.bin / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        return file

    def says(self, name: str, out: str = "", err: str = "", code: int = 0) -> Path:
        return self.program(name, f"printf %s {shlex.quote(out)}\nprintf %s {shlex.quote(err)} >&2\nexit {code}")

    def hangs(self, name: str) -> Path:
        """It waits in a child, as a shell wrapper would: killing only the parent leaves the pipe open."""
        return self.program(name, "/bin/sleep 60\n:")

    def nvidia_smi(
        self,
        driver: str,
        *cards: str,
        memory: str | None = None,
        refuses: tuple[str, ...] = (),
        mig: dict[int, tuple[str, ...]] | None = None,
    ) -> Path:
        """As the real one answers --query-gpu and -L.

        It `refuses` fields as older drivers do: R470 lacks compute_cap. `mig`: profiles of the instances, by GPU.
        """
        lines = [
            'case "$1" in -L) listed=1; fields=index;; *) listed=; fields=${1#--query-gpu=};; esac',
            "row() {",
            '  line=; IFS=,; for field in $fields; do case "$field" in index) cell=$1;; name) cell=$2;;',
            "  uuid) cell=$3;; driver_version) cell=$4;; memory.total) cell=$5;; compute_cap) cell=$6;;",
            "  mig.mode.current) cell=$7;;",
            '  esac; line="${line:+$line, }$cell"; done; printf "%s\\n" "$line"',
            "}",
        ]
        for field in refuses:
            text = f'Field "{field}" is not a valid field to query.'
            lines.append(f'case "$fields" in *{field}*) printf "%s\\n\\n" {shlex.quote(text)}; exit 2;; esac')
        rows, listed = [], []
        for number, card in enumerate(cards):
            name, compute, mib = CARDS[card]
            uuid = gpu(card, number).uuid
            mode = "Enabled" if number in (mig or {}) else "Disabled" if mig else "[N/A]"
            cells = [str(number), name, uuid, driver, memory or (str(mib) if mib else "[N/A]"), compute, mode]
            rows.append("row " + shlex.join(cells))
            listed.append(f"GPU {number}: {name} (UUID: {uuid})")
            for place, profile in enumerate((mig or {}).get(number, ())):
                listed.append(f"  MIG {profile:11} Device {place:2}: (UUID: {slice_uuid(number, place)})")
        text = shlex.quote("\n".join(listed) + "\n")
        return self.program(
            "nvidia-smi", "\n".join([*lines, f'[ -z "$listed" ] || {{ printf %s {text}; exit; }}', *rows])
        )

    def docker(self, compose: str = "2.38.1", code: int = 0, err: str = "", **info: object) -> Path:
        """A docker command whose `info` prints `info` as JSON and whose `compose version` prints `compose`."""
        text = shlex.quote(json.dumps(info) + "\n") if info else "''"
        return self.program(
            "docker",
            f'case "$1" in\ninfo) printf %s {text}; printf %s {shlex.quote(err)} >&2; exit {code};;\n'
            f'compose) [ -n "{compose}" ] || exit 1; printf "%s\\n" "{compose}";;\nesac',
        )

    def pci(
        self,
        address: str = "0000:01:00.0",
        vendor: str = "0x10de",
        kind: str = "0x030000",
        device: str = "0x2684",
        driver: str = "",
    ) -> None:
        for name, text in {"vendor": vendor, "class": kind, "device": device}.items():
            self.file(f"/sys/bus/pci/devices/{address}/{name}", text + "\n")
        if driver:
            place = self.root / "sys/bus/pci/drivers" / driver
            place.mkdir(parents=True, exist_ok=True)
            (self.root / f"sys/bus/pci/devices/{address}/driver").symlink_to(place)

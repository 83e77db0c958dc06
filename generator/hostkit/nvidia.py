"""What the NVIDIA driver, nvidia-smi and the PCI bus say about the GPUs of this machine. Nothing is decided here."""

from __future__ import annotations

import re
import shutil
import time
from typing import NamedTuple

from .files import host_path, names, read
from .program import Answer, ask
from .resolve import Gpu

NAME = 96  # characters of a GPU's name; NVML_DEVICE_NAME_V2_BUFFER_SIZE
UNNAMED = "NVIDIA GPU"  # where nvidia-smi has only a placeholder for the name

# R470 and older lack compute_cap, drivers before R450 mig.mode.current: a field that is refused is left out
OPTIONAL = ("compute_cap", "mig.mode.current")
QUERY = ("index", "name", "uuid", "driver_version", "memory.total", *OPTIONAL)


WSL_SMI = "/usr/lib/wsl/lib/nvidia-smi"


class Card(NamedTuple):
    """An NVIDIA display controller on the PCI bus; `driver` is the kernel driver bound to it, "" for none."""

    address: str
    device: int  # PCI device id; NVIDIA's rise with the generation
    driver: str = ""


class Slice(NamedTuple):
    """A MIG instance: the number of the GPU it is a part of, its profile ("3g.40gb") and its UUID ("MIG-...")."""

    gpu: int
    profile: str
    uuid: str


class Smi(NamedTuple):
    """What nvidia-smi says.

    `state`: ok, missing, hangs, no-driver, mismatch, no-devices, lost, blocked, permission, failed, unreadable.
    Only "no-devices" says that there is no GPU; "unreadable" is an answer that holds no row and no known sentence.
    `mig` are the numbers of the GPUs in MIG mode, of which CUDA uses only the `slices`.
    """

    state: str
    message: str = ""
    driver: str = ""
    gpus: tuple[Gpu, ...] = ()
    mig: tuple[int, ...] = ()
    slices: tuple[Slice, ...] = ()


def ask_smi(limit: float) -> Smi:
    """Ask nvidia-smi about every GPU, and about MIG instances where there are any."""
    windows = host_path(WSL_SMI)  # off the PATH of some shells, and behind a Linux driver that does not belong there
    program = str(windows) if windows.is_file() else shutil.which("nvidia-smi")
    if program is None:
        return Smi("missing")
    until = time.monotonic() + limit
    fields: tuple[str, ...] = QUERY
    while True:
        command = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        answer = ask(command, max(0.1, until - time.monotonic()))
        refused = re.search(r'Field "([a-z_.]+)" is not a valid field', answer.text)  # the whole query fails, on stdout
        if not refused or refused[1] not in OPTIONAL or refused[1] not in fields:
            break
        fields = tuple(field for field in fields if field != refused[1])
    found = read_smi(answer, fields)
    if found.mig:
        listed = ask([program, "-L"], max(0.1, until - time.monotonic()))
        found = found._replace(slices=read_slices(listed.out))
    return found


def read_smi(answer: Answer, fields: tuple[str, ...] = QUERY) -> Smi:
    """What an answer to `--query-gpu=FIELDS --format=csv,noheader,nounits` says. Pure; never raises.

    Rows count even when the exit status is not 0: a corrupt infoROM is one, and the GPU works.
    """
    rows, rest = _rows(answer.out, fields)
    message = " ".join(f"{rest}\n{answer.err}".split())[:4000]
    if answer.state == "endless":
        return Smi("unreadable", message)
    if not rows:
        return Smi(_smi_state(answer), message)
    gpus = tuple(
        Gpu(
            int(row["index"]),
            (_known(row["name"]) or UNNAMED)[:NAME],
            _capability(row.get("compute_cap", "")),
            _mib(row["memory.total"]),
            _uuid(row["uuid"]),
        )
        for row in rows
    )
    mig = tuple(int(row["index"]) for row in rows if row.get("mig.mode.current", "").lower() == "enabled")
    drivers = {_driver(row["driver_version"]) for row in rows} - {""}
    return Smi("ok", message, drivers.pop() if len(drivers) == 1 else "", gpus, mig)  # a machine has one driver


def _rows(text: str, fields: tuple[str, ...]) -> tuple[list[dict[str, str]], str]:
    """The CSV rows by field, one a GPU, and the lines that are none."""
    rows: dict[int, dict[str, str]] = {}
    rest = []
    text = text.lstrip("\ufeff")
    for line in text.split("\n"):  # and at nothing else that Python takes for the end of a line
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == len(fields) and re.fullmatch("[0-9]{1,4}", cells[0]) and int(cells[0]) not in rows:
            rows[int(cells[0])] = dict(zip(fields, cells))  # noqa: B905 (Python 3.8; of one length)
        else:
            rest.append(line)
    if fields[-1] == "memory.total" and rows and not text.endswith("\n"):
        list(rows.values())[-1]["memory.total"] = ""  # cut off, perhaps within the number
    return list(rows.values()), "\n".join(rest)


def read_slices(text: str) -> tuple[Slice, ...]:
    """The MIG instances in what `nvidia-smi -L` prints, in its order, which is CUDA's."""
    found = []
    gpu = -1
    for line in text.split("\n"):
        parent = re.match(r"GPU ([0-9]{1,4}):", line)
        part = re.match(r"\s+MIG ([0-9a-z.+-]{1,40})\s+Device\s+[0-9]{1,4}: \(UUID: (MIG-[A-Za-z0-9/-]{1,100})\)", line)
        if parent:
            gpu = int(parent[1])
        elif part and gpu >= 0:
            found.append(Slice(gpu, part[1], part[2]))
        elif line.strip():  # perhaps the next GPU, garbled: what follows may be its instances
            gpu = -1
    return tuple(dict.fromkeys(found))


def _known(cell: str) -> str:
    """A cell, or "" for a placeholder such as [N/A], [Not Supported] or ERR!."""
    return "" if cell.startswith("[") or cell in {"N/A", "ERR!"} else cell


def _uuid(cell: str) -> str:
    """A GPU's UUID; "" when the cell holds anything else."""
    return cell if re.fullmatch("GPU-[0-9A-Za-z-]{1,60}", cell) else ""


def _driver(cell: str) -> str:
    """The driver's version; "" when the cell holds anything else."""
    return cell if re.fullmatch(r"[0-9]{2,4}(\.[0-9]{1,6}){1,3}", cell) else ""


def _capability(cell: str) -> str:
    """A compute capability; "" when the cell holds anything else, so that the name tells."""
    return cell if re.fullmatch(r"[1-9][0-9]?\.[0-9]", cell) else ""


def _mib(cell: str) -> int | None:
    """A number of MiB, also with its unit; None when the cell holds anything else, such as 24.0 GiB or 0."""
    match = re.fullmatch(r"([0-9]{1,9})( ?MiB)?", cell)
    return int(match[1]) or None if match else None


_SMI_TEXTS = (
    ("version mismatch", "mismatch"),
    ("blocked by the operating system", "blocked"),
    ("couldn't communicate", "no-driver"),
    ("no devices were found", "no-devices"),
    ("gpu is lost", "lost"),
    ("fallen off the bus", "lost"),
    ("insufficient permissions", "permission"),
)
_SMI_CODES = {4: "permission", 9: "no-driver", 15: "lost", 18: "mismatch"}  # manual of nvidia-smi


def _smi_state(answer: Answer) -> str:
    if answer.state in {"missing", "hangs"}:
        return answer.state
    text = answer.text.lower()
    for part, state in _SMI_TEXTS:
        if part in text:
            return state
    if answer.code == 0:
        return "unreadable"
    return _SMI_CODES.get(answer.code or 0, "failed")


def module() -> str:
    """Driver version of the loaded kernel module, "" when there is none."""
    loaded = _driver(read("/sys/module/nvidia/version").strip())
    if loaded:
        return loaded
    match = re.search(
        r"Kernel Module.*?\s([0-9]{2,4}\.[0-9]{1,6}(?:\.[0-9]{1,6})?)\s", read("/proc/driver/nvidia/version") + " "
    )
    return match[1] if match else ""


def listed() -> tuple[Gpu, ...]:
    """The GPUs that the loaded driver knows by name, without nvidia-smi: for hosts that lack it, or where it hangs.

    In the order of their PCI addresses, in which nvidia-smi counts too. Capability and memory are not told here.
    """
    found = []
    for number, address in enumerate(names("/proc/driver/nvidia/gpus")):
        text = read(f"/proc/driver/nvidia/gpus/{address}/information")
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
        if fields.get("Model"):
            uuid = fields.get("GPU UUID", "")
            found.append(Gpu(number, fields["Model"][:NAME], "", None, uuid if uuid.startswith("GPU-") else ""))
    return tuple(found)


def cards() -> tuple[Card, ...]:
    """Display controllers (class 03) made by NVIDIA, whether or not a driver is loaded for them."""
    found = []
    for address in names("/sys/bus/pci/devices"):
        place = f"/sys/bus/pci/devices/{address}"
        if read(f"{place}/vendor").strip() != "0x10de" or not read(f"{place}/class").startswith("0x03"):
            continue
        device = re.fullmatch(r"0x([0-9a-f]{1,8})", read(f"{place}/device").strip())
        try:
            driver = host_path(f"{place}/driver").resolve(strict=True).name
        except (OSError, RuntimeError):
            driver = ""
        found.append(Card(address, int(device[1], 16) if device else 0, driver))
    return tuple(found)


def linux_driver_in_wsl() -> bool:
    """Whether another nvidia-smi than that of Windows is on the PATH of a WSL2: somebody installed a Linux driver."""
    found = shutil.which("nvidia-smi")
    return host_path(WSL_SMI).is_file() and found is not None and "/wsl/" not in found


def nouveau() -> bool:
    """Whether the free driver, which CUDA cannot use, is loaded."""
    return host_path("/sys/module/nouveau").exists()


def device_files() -> tuple[str, ...]:
    """Names of the NVIDIA device files in /dev."""
    return tuple(name for name in names("/dev") if re.fullmatch(r"nvidia([0-9]+|ctl|-uvm)", name))


def secure_boot() -> bool:
    """Whether the firmware refuses unsigned kernel modules: the fifth byte of the EFI variable SecureBoot."""
    for name in names("/sys/firmware/efi/efivars"):
        if name.startswith("SecureBoot-"):
            return read(f"/sys/firmware/efi/efivars/{name}", 8)[4:5] == "\x01"
    return False

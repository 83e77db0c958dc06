"""Whatever nvidia-smi prints, the facts are right or unknown, and nobody sees a traceback.

Unknown is "" for a driver, a capability and a UUID, None for the memory, `UNNAMED` for a name, and a GPU that is left
out. The samples of NVIDIA's own texts come from user reports and the tool's manual; the answers to other questions
(the banner, fewer columns) show that no number of them is taken for a fact.
"""

import json
import random
import re
from typing import NamedTuple

import pytest
from hosts import CARDS, CATALOGUE, DescribedHost, gpu, slice_uuid
from hypothesis import given, settings
from hypothesis import strategies as st

from generator.hostkit import probe
from generator.hostkit.__main__ import main
from generator.hostkit.nvidia import QUERY, UNNAMED, Slice, read_slices, read_smi
from generator.hostkit.program import Answer

R470 = tuple(field for field in QUERY if field != "compute_cap")
R440 = tuple(field for field in R470 if field != "mig.mode.current")
STATES = {"ok", "missing", "hangs", "no-driver", "mismatch", "no-devices", "lost", "blocked", "permission", "failed",
          "unreadable"}  # fmt: skip
UUID = "GPU-ad2367dd-a40e-6b86-6fc3-c44a2cc92c7e"
OTHER = "GPU-16a23983-e73e-0945-2095-cdeb50696982"


def row(index="0", name="Tesla T4", uuid=UUID, driver="535.183.01", memory="15360", capability="7.5", mig="[N/A]"):
    return ", ".join((index, name, uuid, driver, memory, capability, mig)) + "\n"


def t4(number=0, capability="7.5", memory=15360, uuid=UUID, name="Tesla T4"):
    return number, name, capability, memory, uuid


class Sample(NamedTuple):
    """An answer, and the facts in it. `gpus`: (number, name, capability, MiB, UUID)."""

    id: str
    out: str
    state: str = "ok"
    driver: str = "535.183.01"
    gpus: tuple[tuple, ...] = (t4(),)
    mig: tuple[int, ...] = ()
    err: str = ""
    code: int = 0
    fields: tuple[str, ...] = QUERY


def no(id, out, state, code=0, err="", fields=QUERY):
    """An answer without any GPU."""
    return Sample(id, out, state, "", (), (), err, code, fields)


# What the drawn table begins with. The query never asks for it; a wrapper that drops the arguments would show it.
BANNERS = [
    no(f"banner: {id}", f"+{'-' * 90}+\n|{line:90}|\n|   0  Tesla T4            On   | 15109MiB |\n", "unreadable")
    for id, line in {
        "turing, old header": "NVIDIA-SMI 535.86.10    Driver Version: 535.86.10    CUDA Version: 12.2",
        "r570": "NVIDIA-SMI 570.133.07             Driver Version: 570.133.07     CUDA Version: 12.8",
        "r610": "NVIDIA-SMI 610.43.02              KMD Version: 610.43.02     CUDA UMD Version: 13.3",
        "r610, windows": "NVIDIA-SMI 610.62                 KMD Version: 610.62        CUDA UMD Version: 13.3",
        "tool older than driver": "NVIDIA-SMI 470.256.02   Driver Version: 580.95.05    CUDA Version: 13.0",
        "without cuda": "NVIDIA-SMI 340.108    Driver Version: 340.108",
        "windows 551": "NVIDIA-SMI 551.78                 Driver Version: 551.78         CUDA Version: 12.4",
    }.items()
]

# Answers to another question, as if the options were lost on the way.
OTHER_QUESTIONS = [
    no("other: compute_cap alone", "compute_cap\n8.9\n", "unreadable"),
    no("other: uuid alone", f"uuid\n{UUID}\n{OTHER}\n", "unreadable"),
    no("other: v100", "0, Tesla V100-SXM2-16GB, 16384, 16144, 470.256.02, 00000000:1A:00.0\n", "unreadable"),
    # as many columns as are asked of R470: no number of another column counts
    Sample("other: v100, six columns", "0, Tesla V100-SXM2-16GB, 16384, 16144, 470.256.02, 00000000:1A:00.0\n",
           driver="", gpus=((0, "Tesla V100-SXM2-16GB", "", None, ""),), fields=R470),
    no("other: h100", "NVIDIA H100 80GB HBM3, 81559 MiB, 580.95.05, 9.0\n" * 2, "unreadable"),
    no("other: gb10", "NVIDIA GB10, [N/A], 580.126.09\n", "unreadable"),
    no("other: gb10, fifteen columns",
       "NVIDIA GB10, [N/A], 12.1, [N/A], 0, 52, 10.8, [N/A], [N/A], 2405, 3003, [N/A], 2405, 1, 1\n", "unreadable"),
    no("other: -L", f"GPU 0: Tesla T4 (UUID: {UUID})\n", "unreadable"),
    no("other: --help", "NVIDIA System Management Interface -- v535.183.01\n\nNVSMI provides\n", "unreadable"),
    no("other: xml", '<?xml version="1.0" ?>\n<nvidia_smi_log>\n<driver_version>535.183.01\n', "unreadable"),
]  # fmt: skip

COMMUNICATE = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    "Make sure that the latest NVIDIA driver is installed and running.\n"
)
NVML = "Failed to initialize NVML: "
LOST = (
    "Unable to determine the device handle for GPU 0000:01:00.0: GPU is lost.  Reboot the system to recover this GPU\n"
)
INFOROM = "WARNING: infoROM is corrupted at gpu 0000:0B:00.0\n"
FAILURES = [
    no("no driver", COMMUNICATE, "no-driver", 9),
    no("no driver, on stderr", "", "no-driver", 9, COMMUNICATE),
    no("no driver, code only", "", "no-driver", 9),
    no("no driver, code lost by a wrapper", COMMUNICATE, "no-driver"),
    no("mismatch, old", NVML + "Driver/library version mismatch\n", "mismatch", 18),
    no("mismatch, new", NVML + "Driver/library version mismatch\nNVML library version: 580.173\n", "mismatch", 18),
    no("mismatch, code only", "", "mismatch", 18),
    no("no devices", "No devices were found\n", "no-devices", 6),
    no("no devices, windows", "No devices were found\r\n", "no-devices", 6),
    no("nothing found, no words", "", "failed", 6),
    no("nvml unknown", NVML + "Unknown Error\n", "failed", 255),
    no("nvml permission", NVML + "Insufficient Permissions\n", "permission", 4),
    no("permission, code only", "", "permission", 4),
    no("wsl blocked", NVML + "GPU access blocked by the operating system\n", "blocked", 17),
    no("gpu lost", LOST, "lost", 15),
    no("gpu lost, code only", "", "lost", 15),
    no("no nvml library", "NVIDIA-SMI couldn't find libnvidia-ml.so library in your system.\n", "failed", 12),
    no("nvml lacks a function", "", "failed", 13),
    no("unknown field that is not optional", 'Field "uuid" is not a valid field to query.\n\n', "failed", 2),
    no("unknown option", "Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.\n", "failed", 2),
    no("killed", "", "failed", -9),
    no("127 of a shell", "", "failed", 127, "sh: 1: nvidia-smi: not found\n"),
    no("a library is missing", "", "failed", 127, "nvidia-smi: error while loading shared libraries: libdl.so.2\n"),
    no("nothing at all", "", "unreadable"),
    no("an empty line", "\n", "unreadable"),
]

ROWS = [
    Sample("one", row()),
    Sample("h100 x 8", "".join(row(str(n), "NVIDIA H100 80GB HBM3", f"GPU-{n}", "580.95.05", "81559", "9.0", "Disabled")
                               for n in range(8)),
           driver="580.95.05", gpus=tuple((n, "NVIDIA H100 80GB HBM3", "9.0", 81559, f"GPU-{n}") for n in range(8))),
    Sample("two kinds", row() + row("1", "NVIDIA A100-SXM4-80GB", OTHER, memory="81920", capability="8.0"),
           gpus=(t4(), (1, "NVIDIA A100-SXM4-80GB", "8.0", 81920, OTHER))),
    Sample("mig", row("0", "NVIDIA A100-SXM4-80GB", memory="81920", capability="8.0", mig="Enabled")
                  + row("1", mig="Disabled"),
           gpus=((0, "NVIDIA A100-SXM4-80GB", "8.0", 81920, UUID), t4(1)), mig=(0,)),
    Sample("mig, shouted", row(mig="ENABLED"), mig=(0,)),
    Sample("mig, not told", row(mig="[Unknown Error]")),
    Sample("mig, some other word", row(mig="Enabled soon")),
    Sample("gb10 without memory", row("0", "NVIDIA GB10", driver="580.126.09", memory="[N/A]", capability="12.1"),
           driver="580.126.09", gpus=((0, "NVIDIA GB10", "12.1", None, UUID),)),
    Sample("memory not supported", row(memory="[Not Supported]"), gpus=(t4(memory=None),)),
    Sample("jetson", row("0", "Orin (nvgpu)", "[N/A]", "540.4.0", "[N/A]", "8.7"),
           driver="540.4.0", gpus=((0, "Orin (nvgpu)", "8.7", None, ""),)),
    Sample("thor", row("0", "NVIDIA Thor", driver="580.00", memory="[N/A]", capability="11.0"),
           driver="580.00", gpus=((0, "NVIDIA Thor", "11.0", None, UUID),)),
    Sample("r470", f"0, Tesla V100-SXM2-16GB, {UUID}, 470.256.02, 16384, [N/A]\n", fields=R470, driver="470.256.02",
           gpus=((0, "Tesla V100-SXM2-16GB", "", 16384, UUID),)),
    Sample("r470 with mig", f"0, A100-SXM4-40GB, {UUID}, 470.256.02, 40536, Enabled\n", fields=R470,
           driver="470.256.02", gpus=((0, "A100-SXM4-40GB", "", 40536, UUID),), mig=(0,)),
    Sample("r440", f"0, Tesla K80, {UUID}, 440.118.02, 11441\n1, Tesla K80, {OTHER}, 440.118.02, 11441\n", fields=R440,
           driver="440.118.02", gpus=((0, "Tesla K80", "", 11441, UUID), (1, "Tesla K80", "", 11441, OTHER))),
    Sample("r440, cut off in the memory", f"0, Tesla K80, {UUID}, 440.118.02, 114", fields=R440,
           driver="440.118.02", gpus=((0, "Tesla K80", "", None, UUID),)),
    Sample("without the last line's end", row().rstrip()),
    Sample("cut off in the second row", row() + row("1")[:40]),
    Sample("cut off behind the last comma", row() + row("1")[:-6], gpus=(t4(), t4(1))),
    Sample("cut off behind a comma", row() + row("1")[:-11]),
    Sample("cut off in the mode", row(mig="Enabled")[:-4]),
    no("cut off in the only row", row()[:50], "unreadable"),
    Sample("windows line ends", row().replace("\n", "\r\n") + row("1", uuid=OTHER).replace("\n", "\r\n"),
           gpus=(t4(), t4(1, uuid=OTHER))),
    Sample("wsl2 with the number of windows' driver", row(driver="581.60"), driver="581.60"),
    Sample("old three-part and two-part drivers", row(driver="390.157"), driver="390.157"),
    Sample("header", "index, name, uuid, driver_version, memory.total [MiB], compute_cap, mig.mode.current\n" + row()),
    Sample("units", row(memory="15360 MiB")),
    Sample("units without a blank", row(memory="15360MiB")),
    Sample("other units", row(memory="15.0 GiB"), gpus=(t4(memory=None),)),
    Sample("bare other units", row(memory="16 GB"), gpus=(t4(memory=None),)),
    Sample("thousands apart", row(memory="15 360"), gpus=(t4(memory=None),)),
    Sample("a fraction of memory", row(memory="15360.5"), gpus=(t4(memory=None),)),
    Sample("hexadecimal memory", row(memory="0x3c00"), gpus=(t4(memory=None),)),
    Sample("exponent", row(memory="1e5"), gpus=(t4(memory=None),)),
    Sample("negative memory", row(memory="-15360"), gpus=(t4(memory=None),)),
    Sample("no memory at all", row(memory="0"), gpus=(t4(memory=None),)),
    Sample("empty cells", "0, , , , , ,\n", driver="", gpus=((0, UNNAMED, "", None, ""),)),
    Sample("quoted", row(name='"Tesla T4"', memory='"15360"'), gpus=(t4(name='"Tesla T4"', memory=None),)),
    Sample("unknown error everywhere", "0, " + ", ".join(["[Unknown Error]"] * 6) + "\n", driver="",
           gpus=((0, UNNAMED, "", None, ""),)),
    Sample("requires reset", "0, " + ", ".join(["[GPU requires reset]"] * 6) + "\n" + row("1"),
           gpus=((0, UNNAMED, "", None, ""), t4(1))),
    Sample("ERR!", row(memory="ERR!", capability="ERR!"), gpus=(t4(capability="", memory=None),)),
    Sample("plain N/A", row(uuid="N/A", driver="N/A", memory="N/A", capability="N/A", mig="N/A"), driver="",
           gpus=(t4(capability="", memory=None, uuid=""),)),
    Sample("insufficient permissions for some", row(uuid="[Insufficient Permissions]"), gpus=(t4(uuid=""),)),
    Sample("driver in the second row only", row(driver="[N/A]") + row("1"), gpus=(t4(), t4(1))),
    Sample("two drivers in one machine", row() + row("1", driver="570.86.10"), driver="", gpus=(t4(), t4(1))),
    Sample("driver with a word", row(driver="535.183.01-beta"), driver=""),
    Sample("driver in two pieces", row(driver="535 .183.01"), driver=""),
    Sample("driver without a point", row(driver="535"), driver=""),
    Sample("capability of three parts", row(capability="8.6.1"), gpus=(t4(capability=""),)),
    Sample("capability without a point", row(capability="86"), gpus=(t4(capability=""),)),
    Sample("capability as an architecture", row(capability="sm_86"), gpus=(t4(capability=""),)),
    Sample("capability of none", row(capability="0.0"), gpus=(t4(capability=""),)),
    Sample("capability with a comma", row(capability="7,5"), "unreadable", "", ()),
    Sample("capability of another script", row(capability="²"), gpus=(t4(capability=""),)),
    Sample("a name with a comma", row(name="Quadro RTX 8000, passive") + row("1"), gpus=(t4(1),)),
    no("only a name with a comma", row(name="NVIDIA A100, 8.0"), "unreadable"),
    Sample("vgpu", row("0", "GRID T4-16Q", memory="16384"), gpus=((0, "GRID T4-16Q", "7.5", 16384, UUID),)),
    Sample("a number in the name", row(name="NVIDIA A100 8.0"), gpus=(t4(name="NVIDIA A100 8.0"),)),
    Sample("a name in another script", row(name="NVIDIA 显卡 é🦆"), gpus=(t4(name="NVIDIA 显卡 é🦆"),)),
    Sample("a name without end", row(name="W" * 5000), gpus=(t4(name="W" * 96),)),
    Sample("counting from three", row("3") + row("7", uuid=OTHER), gpus=(t4(3), t4(7, uuid=OTHER))),
    Sample("the other way round", row("1", uuid=OTHER) + row("0"), gpus=(t4(1, uuid=OTHER), t4(0))),
    Sample("twice the same", row() + row()),
    Sample("twice the same number", row() + row(name="Tesla P100-PCIE-16GB", uuid=OTHER, capability="6.0")),
    Sample("zeros before the number", row("00") + row("0") + row("01"), gpus=(t4(), t4(1))),
    no("negative number", row("-1"), "unreadable"),
    no("number of five digits", row("10000"), "unreadable"),
    no("number of another script", row("٣"), "unreadable"),
    no("number with a fraction", row("0.0"), "unreadable"),
    no("number in brackets", row("[N/A]"), "unreadable"),
    Sample("a thousand GPUs", "".join(row(str(n)) for n in range(1000)), gpus=tuple(t4(n) for n in range(1000))),
    Sample("byte order mark", "\ufeff" + row() + row("1"), gpus=(t4(), t4(1))),
    Sample("no-break blanks", row().replace(", ", ",\u00a0 ")),
    Sample("tabs and blanks at the end", row().replace("\n", " \t \n")),
    Sample("blanks before", "   \t" + row()),
    Sample("no blanks at all", row(name="TeslaT4").replace(" ", ""), gpus=(t4(name="TeslaT4"),)),
    no("semicolons", row().replace(",", ";"), "unreadable"),
    no("colours", "".join(f"\033[32m{line}\033[0m\n" for line in row().splitlines()), "unreadable"),
    Sample("a coloured cell", row(capability="\033[1m7.5\033[0m"), gpus=(t4(capability=""),)),
    Sample("one GPU lost", LOST + row("1"), gpus=(t4(1),), code=15),
    Sample("one GPU lost, told behind", row("1") + LOST, gpus=(t4(1),), code=15),
    Sample("infoROM", row() + INFOROM, code=14),
    Sample("infoROM first", INFOROM + row(), code=14),
    Sample("infoROM on stderr", row(), err=INFOROM, code=14),
    Sample("rows and an unknown code", row(), code=255),
    Sample("words that name a state, beside a row", row() + "No devices were found\n"),
    Sample("words of another language", "WARNUNG: Gerät nicht erreichbar, übersprungen\n警告\n" + row()),
    Sample("a shell's greeting", "Welcome to node7, 3 users\nlast login: Mon, 1, 2, 3, 4, 5\n" + row()),
    no("a poem", "Ozymandias\n" * 3, "unreadable"),
    no("a web page", "<html>\n<body>502 Bad Gateway</body>\n</html>\n", "unreadable"),
    no("json", '{"gpus": [{"index": 0, "name": "Tesla T4"}]}\n', "unreadable"),
    no("replacement characters", "\ufffd" * 200, "unreadable"),
    no("half a megabyte of noise", "x" * (1 << 19), "unreadable"),
    Sample("noise, then a row", "x, " * 100_000 + "\n" + row()),
    no("half a megabyte of commas", "," * (1 << 19), "unreadable"),
    no("NUL bytes", "\0" * 1000, "unreadable"),
    Sample("a NUL in a cell", row(memory="153\x0060"), gpus=(t4(memory=None),)),
    no("UTF-16", row().encode("utf-16-le").decode("utf-8", "replace"), "unreadable"),
]  # fmt: skip

SAMPLES = [*BANNERS, *OTHER_QUESTIONS, *FAILURES, *ROWS]
by_id = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.id)


def facts(smi):
    return smi.state, smi.driver, tuple(tuple(one) for one in smi.gpus), smi.mig


def expected(sample):
    return sample.state, sample.driver if sample.gpus else "", sample.gpus, sample.mig


def test_every_sample_has_a_name_of_its_own():
    assert len({sample.id for sample in SAMPLES}) == len(SAMPLES)


@by_id
def test_the_facts_of_an_answer(sample):
    answer = Answer("ok" if sample.code == 0 else "failed", sample.code, sample.out, sample.err)
    smi = read_smi(answer, sample.fields)
    assert facts(smi) == expected(sample)
    assert len(smi.message) <= 4000


@by_id
def test_a_program_that_answers_so(sample, tmp_path, monkeypatch, capsys):
    """The same through a real program, and what the commands make of it."""
    host = DescribedHost(tmp_path, monkeypatch)
    for name in ("out", "err"):
        (tmp_path / name).write_bytes(getattr(sample, name).encode("utf-8"))
    refused = next((field for field in ("compute_cap", "mig.mode.current") if field not in sample.fields), "")
    later = "mig.mode.current" if sample.fields == R440 else refused
    refuse = "".join(
        f"case \"$1\" in *{field}*) echo 'Field \"{field}\" is not a valid field to query.'; exit 2;; esac\n"
        for field in dict.fromkeys((refused, later)) if field
    )  # fmt: skip
    ending = f"kill {sample.code} $$" if sample.code < 0 else f"exit {sample.code}"
    host.program("nvidia-smi", f"{refuse}/bin/cat {tmp_path}/out; /bin/cat {tmp_path}/err >&2; {ending}")
    assert facts(probe.probe(docker=False).smi) == expected(sample)
    for command in (["doctor", "--json"], ["doctor"], ["resolve"]):
        assert main(command) in {0, 1, 2}
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        if "--json" in command:
            json.loads(told.out)


@pytest.mark.parametrize("state", ["missing", "hangs", "failed"])
def test_a_program_that_does_not_answer(state):
    assert facts(read_smi(Answer(state))) == (state, "", (), ())


def test_an_answer_without_end_is_not_believed():
    assert facts(read_smi(Answer("endless", None, row(), ""))) == ("unreadable", "", (), ())


# Made-up damage

PLACEHOLDERS = ("[N/A]", "N/A", "[Not Supported]", "[Unknown Error]", "[Insufficient Permissions]", "ERR!",
                "[GPU requires reset]", "")  # fmt: skip
BLANKS = (" ", "\t", "\u00a0", "\u3000", "   ")
# neither digits, letters nor points of ASCII, with which damage could write another number that looks right
NOISE = ("é", "²", "٣", "\ufffd", "🦆", "\0", "\033[1m", "|", "\u200b", "'", ";")
LINES = ("", INFOROM.strip(), LOST.strip(), "| NVIDIA-SMI 535.86.10    Driver Version: 999.99    CUDA Version: 12.2 |",
         "Field, by, field, nothing, 1, 2, 3", "\ufffd\0\ufffd", "9.9", "\r")  # fmt: skip


class Truth(NamedTuple):
    fields: tuple[str, ...]
    driver: str
    rows: tuple[dict[str, str], ...]


@st.composite
def truths(draw):
    fields = draw(st.sampled_from((QUERY, R470, R440)))
    driver = draw(st.sampled_from(("440.118.02", "470.256.02", "535.183.01", "570.86.10", "581.60", "610.43.02")))
    rows = []
    for number, card in enumerate(draw(st.lists(st.sampled_from(sorted(CARDS)), min_size=1, max_size=4))):
        one = gpu(card, number)
        memory = str(one.memory_mib) if one.memory_mib else "[N/A]"
        mode = draw(st.sampled_from(("Enabled", "Disabled", "[N/A]")))
        cells = (str(number), one.name, one.uuid, driver, memory, one.capability, mode)
        rows.append(dict(zip(QUERY, cells, strict=True)))
    return Truth(fields, driver, tuple(rows))


def damaged(truth, draw):
    """An answer with damage that leaves every fact as it was or unreadable: it writes no other fact."""
    table = [[one[field] for field in truth.fields] for one in truth.rows]
    for _ in range(draw(st.integers(0, 4))):
        line = draw(st.sampled_from(table)) if table else [""]
        place = draw(st.integers(0, max(0, len(line) - 1)))
        cell = line[place] if line else ""
        match draw(st.sampled_from(("blank", "placeholder", "unit", "noise", "drop", "double", "lines", "line away"))):
            case "blank" if line:
                line[place] = draw(st.sampled_from(BLANKS)) + cell + draw(st.sampled_from(BLANKS))
            case "placeholder" if line and place:
                line[place] = draw(st.sampled_from(PLACEHOLDERS))
            case "unit" if line and cell.isdigit() and place:
                line[place] = cell + draw(st.sampled_from((" MiB", "MiB", " GiB", " MB")))
            case "noise" if line and place != 1:
                where = draw(st.integers(0, len(cell)))
                line[place] = cell[:where] + draw(st.sampled_from(NOISE)) + cell[where:]
            case "drop" if line:
                del line[place]
            case "double" if line:
                line.insert(place, cell)
            case "lines":
                random.Random(draw(st.integers(0, 99))).shuffle(table)
                table.append([draw(st.sampled_from(LINES))])
                table.append(list(draw(st.sampled_from(table))))
            case "line away" if len(table) > 1:
                table.remove(line)
    text = "".join(", ".join(line) + draw(st.sampled_from(("\n", "\r\n"))) for line in table)
    whole = text.encode("utf-8", "replace")
    # as `ask` decodes it; cut off last of all, because what follows a cut would look like its end
    return whole[: draw(st.one_of(st.none(), st.integers(0, len(whole))))].decode("utf-8", "replace")


@settings(max_examples=600, deadline=None)
@given(truths(), st.data(), st.sampled_from((0, 14, 15, 255, -9)))
def test_damage_makes_facts_unknown_never_wrong(truth, data, code):
    text = damaged(truth, data.draw)
    smi = read_smi(Answer("ok" if code == 0 else "failed", code, text), truth.fields)
    assert smi.state in STATES - {"no-devices"}  # which would say that there is no GPU
    assert (smi.state == "ok") == bool(smi.gpus)
    assert smi.driver in {"", truth.driver}
    assert len({one.number for one in smi.gpus}) == len(smi.gpus)
    for one in smi.gpus:
        true = truth.rows[one.number]
        told = true["compute_cap"] if "compute_cap" in truth.fields else ""
        assert one.capability in {"", told}
        assert one.memory_mib in {None, int(true["memory.total"]) if true["memory.total"].isdigit() else None}
        assert one.uuid in {"", true["uuid"]}
        # another column may have slipped into the name, but none of which the catalogue knows a capability
        assert one.name in {UNNAMED, true["name"]} or CATALOGUE.by_name(one.name) is None
        if one.number in smi.mig:
            assert true["mig.mode.current"] == "Enabled"


@settings(max_examples=200, deadline=None)
@given(truths(), st.data())
def test_blanks_and_lines_of_words_cost_no_fact(truth, data):
    whole, lines = [], []
    for one in truth.rows:
        cells = [data.draw(st.sampled_from(("", *BLANKS))) + one[field] for field in truth.fields]
        whole.append(", ".join(one[field] for field in truth.fields) + "\n")
        lines += [data.draw(st.sampled_from(LINES)) + "\n", ",".join(cells) + " \r\n"]
    plain, worded = (read_smi(Answer("ok", 0, "".join(text)), truth.fields) for text in (whole, lines))
    assert facts(worded) == facts(plain)
    assert len(plain.gpus) == len(truth.rows)
    assert plain.driver == truth.driver


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.binary().map(lambda some: some.decode("utf-8", "replace"))), st.text(), st.integers())
def test_any_text_is_read(out, err, code):
    smi = read_smi(Answer("failed", code, out, err))
    assert smi.state in STATES
    assert read_slices(out) == ()


# MIG instances

LISTED = f"""\
GPU 0: NVIDIA A100-SXM4-80GB (UUID: {UUID})
  MIG 3g.40gb     Device  0: (UUID: {slice_uuid(0, 0)})
  MIG 1g.10gb+me  Device  1: (UUID: {slice_uuid(0, 1)})
GPU 1: NVIDIA A100-SXM4-80GB (UUID: {OTHER})
GPU 2: NVIDIA A100-SXM4-80GB (UUID: {OTHER[:-1]}0)
  MIG 1c.3g.40gb  Device  0: (UUID: {slice_uuid(2, 0)})
  MIG 1g.5gb      Device  1: (UUID: MIG-{OTHER}/7/0)
"""
SLICES = (
    Slice(0, "3g.40gb", slice_uuid(0, 0)),
    Slice(0, "1g.10gb+me", slice_uuid(0, 1)),
    Slice(2, "1c.3g.40gb", slice_uuid(2, 0)),
    Slice(2, "1g.5gb", f"MIG-{OTHER}/7/0"),
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (LISTED, SLICES),
        (LISTED.replace("\n", "\r\n"), SLICES),
        (LISTED.replace("\n", "\n\n"), SLICES),
        (INFOROM + LISTED, SLICES),
        (LISTED + INFOROM, SLICES),
        (LISTED * 2, SLICES),
        (LISTED.replace("GPU 2:", "GPU \ufffd:"), SLICES[:2]),  # not taken for instances of GPU 1
        (LISTED.replace("GPU 2:", "GPU 99999:"), SLICES[:2]),
        (LISTED.replace("GPU 2:", "Unable to determine the device handle for gpu 2:"), SLICES[:2]),
        (LISTED[: LISTED.index(slice_uuid(0, 1)) + 9], SLICES[:1]),
        (LISTED.replace("MIG-", "GPU-"), ()),
        (LISTED.partition("\n")[2], SLICES[2:]),
        ("No devices were found\n", ()),
        ("", ()),
    ],
)
def test_slices(text, found):
    assert read_slices(text) == found


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_invents_no_slice(data):
    """Noise anywhere, instances gone or told twice, the end missing: what is left is true, and where it says."""
    lines = LISTED.splitlines(keepends=True)
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(lines) - 1))
        line = lines[place]
        match data.draw(st.sampled_from(("noise", "drop", "double", "word", "blank"))):
            case "noise":
                where = data.draw(st.integers(0, len(line) - 1))
                lines[place] = line[:where] + data.draw(st.sampled_from(NOISE)) + line[where:]
            case "drop" if re.match(r"\s+MIG", line):
                lines[place] = "\n"
            case "double":
                lines.insert(place, line)
            case "word":
                lines.insert(place, data.draw(st.sampled_from(LINES)) + "\n")
            case "blank":
                lines[place] = data.draw(st.sampled_from(BLANKS)) + line
    text = "".join(lines)
    assert set(read_slices(text[: data.draw(st.integers(0, len(text)))])) <= set(SLICES)

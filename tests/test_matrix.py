"""What runs on which GPU with which driver: the tables, the page, and that they say what `resolve` does."""

import json
import re

import pytest

from generator import __main__ as command
from generator import catalog, matrix, matrix_page
from generator.hostkit.catalogue import BadRequest, Catalogue
from generator.hostkit.resolve import Gpu, Host, resolve
from generator.matrix import Card, Question

DATA = catalog.load()
CATALOGUE = Catalogue.read()
MACHINES = ("x86_64", "aarch64")
COMPUTES = sorted({compute for _, compute, _ in CATALOGUE.gpu_names()} | {(8, 7), (11, 0), (13, 0)})
DRIVERS = ("450.80.02", "470.256.02", "525.60.13", "535", "550.54.14", "570.124.06", "575.57.08", "580.65.05",
           "580.65.06", "582.28", "590.48.01", "595", "610.43.02")  # fmt: skip


def run(capsys, *arguments):
    status = command.main(["matrix", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def printed(capsys, *arguments):
    status, out, err = run(capsys, *arguments, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)


def reasons(capsys, *arguments):
    return {f"{row['torch']}+{row['build']}": row["reason"] for row in printed(capsys, *arguments)["builds"]}


# Every build


@pytest.mark.parametrize("machine", MACHINES)
def test_every_published_build_is_there_once_newest_first(capsys, machine):
    rows = printed(capsys, "--machine", machine)["builds"]
    assert sorted((row["torch"], row["build"]) for row in rows) == sorted(
        (release["torch"], row["build"])
        for release in DATA["releases"]
        for row in release["builds"]
        if row["machine"] == machine and row["published"] is True
    )
    dates = [row["date"] for row in rows]
    assert dates == sorted(dates, reverse=True)
    assert {row["torch"]: row["build"] for row in rows if row["default"]} == {
        release["torch"]: release["default"][machine] for release in DATA["releases"]
    }
    assert all((row["index"] is None) == row["default"] for row in rows)


def test_a_build_as_json(capsys):
    answer = printed(capsys, "--torch", "2.7.1")
    assert (answer["as_of"], answer["machine"]) == (CATALOGUE.as_of, "x86_64")
    assert next(row for row in answer["builds"] if row["build"] == "cu128") == {
        "torch": "2.7.1", "date": "2025-06-04", "build": "cu128", "default": False,
        "index": f"{CATALOGUE.index_base}/cu128", "sass": ["7.5", "8.0", "8.6", "9.0", "10.0", "12.0"], "ptx": ["12.0"],
        "oldest_driver": {"linux": "525.60.13", "wsl2": "528.33"},
        "python": ["3.9", "3.10", "3.11", "3.12", "3.13", "3.13t"], "torchvision": "0.22.1",
    }  # fmt: skip


def test_a_build_as_text(capsys):
    status, out, _ = run(capsys, "--torch", "2.7.1")
    assert status == 0
    heading, first, second, *_ = out.splitlines()
    assert re.split(" {2,}", heading) == [
        "torch", "date", "build", "machine code for", "driver from", "Python", "torchvision",
    ]  # fmt: skip
    assert re.split(" {2,}", first) == [
        "2.7.1", "2025-06-04", "cu126*", "5.0 6.0 7.0 7.5 8.0 8.6 9.0", "525.60.13", "3.9-3.13 3.13t", "0.22.1",
    ]  # fmt: skip
    assert "7.5 8.0 8.6 9.0 10.0 12.0 +PTX 12.0  525.60.13" in second
    assert first.index("525.60.13") == second.index("525.60.13") == heading.index("driver from")
    assert "Under WSL2 the Windows driver counts: CUDA 11 from 452.39, CUDA 12 from 528.33, CUDA 13 from 580." in out


def test_pythons_of_the_machine(capsys):
    assert printed(capsys, "--torch", "2.5.1")["builds"][0]["python"][-1] == "3.13"
    assert printed(capsys, "--torch", "2.5.1", "--machine", "arm64")["builds"][0]["python"][-1] == "3.12"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--machine", "aarch64"),
        ("--os", "wsl2"),
        ("--gpu", "GTX 1080 Ti"),
        ("--gpu", "RTX PRO 6000 Blackwell Max-Q", "--gpu", "Tesla T4"),
        ("--gpu", "NVIDIA B300 SXM6 AC", "--driver", "570.86.10", "--machine", "aarch64"),
        ("--gpu", "V100", "--driver", "610"),
    ],
)
def test_text_fits_a_terminal(capsys, arguments):
    out = run(capsys, *arguments)[1]
    assert max(map(len, out.splitlines())) <= 120
    assert not any(line != line.rstrip() for line in out.splitlines())


def test_markdown(capsys):
    for arguments in ((), ("--gpu", "4090")):
        lines = run(capsys, "--markdown", *arguments)[1].splitlines()
        assert set(lines[1]) == set("| -")
        assert len({line.count("|") for line in lines}) == 1
    assert "| 2.15.0 | 2026-10-28 | cu132* | 7.5 8.0 8.6 9.0 10.0 12.0 | 580.65.06 |" in run(capsys, "--markdown")[1]


# GPUs and drivers


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("system", ["linux", "wsl2"])
def test_a_verdict_is_what_the_catalogue_says_of_the_build(machine, system):
    for compute in COMPUTES:
        card = Card("", compute)
        for driver in DRIVERS:
            asked = Question(machine, system=system, cards=(card,), driver=driver)
            for build in matrix.builds(asked, CATALOGUE):
                verdict = matrix.verdict(build, asked, CATALOGUE)
                expected = CATALOGUE.runs(build, machine, system, driver, [("{}.{}".format(*compute), "")])
                assert verdict.runs == expected, (build, asked)
                assert verdict.runs == (verdict.reason == "")


@pytest.mark.parametrize("machine", MACHINES)
def test_the_newest_is_what_resolve_takes(machine):
    for compute in COMPUTES:
        for driver in DRIVERS:
            asked = Question(machine, cards=(Card("", compute),), driver=driver)
            best = matrix.newest(matrix.verdict(build, asked, CATALOGUE) for build in matrix.builds(asked, CATALOGUE))
            answer = resolve(Host(driver, (Gpu(0, "", "{}.{}".format(*compute), 1),), machine=machine), CATALOGUE)
            assert (answer.torch, answer.build) == ((best.build.torch, best.build.name) if best else (None, None))


@pytest.mark.parametrize("system", ["linux", "wsl2"])
def test_without_a_driver_the_oldest_that_will_do(system):
    for compute in COMPUTES:
        asked = Question(system=system, cards=(Card("", compute),))
        for build in matrix.builds(asked, CATALOGUE):
            verdict = matrix.verdict(build, asked, CATALOGUE)
            assert verdict.runs == bool(verdict.oldest)
            if verdict.runs and verdict.oldest != "580":
                printed = [("{}.{}".format(*compute), "")]
                *most, last = verdict.oldest.split(".")
                older = ".".join([*most, str(int(last) - 1)])
                assert CATALOGUE.runs(build, "x86_64", system, verdict.oldest, printed)
                assert not CATALOGUE.runs(build, "x86_64", system, older, printed)


def test_why_not_in_a_few_words(capsys):
    said = reasons(capsys, "--gpu", "GTX 1080 Ti", "--driver", "520.61.05")
    assert said["2.15.0+cu132"] == "no code for 6.1"
    assert said["2.14.1+cu126"] == "driver too old: needs 525.60.13"
    assert said["2.7.1+cu118"] is None
    assert reasons(capsys, "--gpu", "GTX 1080 Ti", "--driver", "595")["2.14.1+cu126"] == (
        "the driver no longer knows 6.1: 580 is the last branch"
    )
    assert reasons(capsys, "--gpu", "Next,13.0", "--driver", "570")["2.11.0+cu129"] == (
        "driver too old: its PTX needs 575.57.08"
    )


def test_gpus_that_must_run_together(capsys):
    answer = printed(capsys, "--gpu", "V100", "--gpu", "RTX 5090")
    assert answer["gpus"] == [
        {"name": "Tesla V100-PCIE-16GB", "capability": "7.0"},
        {"name": "NVIDIA GeForce RTX 5090", "capability": "12.0"},
    ]
    assert answer["newest"] == {"torch": "2.10.0", "build": "cu128"}
    rows = {(row["torch"], row["build"]): row for row in answer["builds"]}
    both = rows["2.10.0", "cu128"]
    assert (both["runs"], both["by"], both["driver_from"], both["driver_below"]) == (True, "sass", "525.60.13", 590)
    assert rows["2.14.1", "cu126"]["reason"] == "no code for 12.0"
    assert rows["2.15.0", "cu132"]["reason"] == "no code for 7.0"
    assert rows["2.15.0", "cu132"]["driver_from"] is None


def test_an_answer_as_text(capsys):
    status, out, _ = run(capsys, "--gpu", "RTX 5090", "--driver", "570.124.06", "--torch", "2.9.0")
    assert status == 0
    assert out.splitlines()[:4] == [
        "NVIDIA GeForce RTX 5090 (12.0)",
        "driver 570.124.06, x86_64, Linux",
        "",
        "2.9.0+cu128 is the newest torch that runs.",
    ]
    assert "2.9.0  cu128*  yes" in out
    assert "2.9.0  cu130   no    driver too old: needs 580.65.06" in out
    out = run(capsys, "--gpu", "GTX 1080", "--torch", "2.9.0")[1]
    assert "any driver" in out
    assert "2.9.0+cu126 is the newest torch that runs, with driver 525.60.13 or newer, below 590." in out
    assert "2.9.0  cu126   yes   525.60.13 or newer, below 590" in out
    assert "No torch build that is asked about runs on it." in run(capsys, "--gpu", "Tesla K40c")[1]


def test_ptx_is_named(capsys):
    out = run(capsys, "--gpu", "Next,13.0", "--driver", "580", "--torch", "2.11.0")[1]
    assert "2.11.0  cu129   from PTX" in out
    assert "No GPU of capability 13.0 is in the catalogue" in out


def test_a_driver_older_than_the_gpu_is_remarked_on(capsys):
    [note] = printed(capsys, "--gpu", "RTX 5090", "--driver", "550.54.14")["notes"]
    assert note.startswith("Drivers before 570 are older than NVIDIA GeForce RTX 5090")
    assert printed(capsys, "--gpu", "RTX 5090", "--driver", "570.86.10")["notes"] == []


# Names


@pytest.mark.parametrize(
    ("text", "name", "compute"),
    [
        ("NVIDIA GeForce RTX 5090", "NVIDIA GeForce RTX 5090", (12, 0)),
        ("rtx 5090", "NVIDIA GeForce RTX 5090", (12, 0)),
        ("1080 Ti", "NVIDIA GeForce GTX 1080 Ti", (6, 1)),
        ("A100", "NVIDIA A100 80GB PCIe", (8, 0)),
        ("V100", "Tesla V100-PCIE-16GB", (7, 0)),
        ("T4", "Tesla T4", (7, 5)),
        ("NVIDIA GeForce RTX 5090,12.0,32607", "NVIDIA GeForce RTX 5090", (12, 0)),
        ("A card of tomorrow, 13.0", "A card of tomorrow", (13, 0)),
        ("Tesla V100-SXM2-16GB,[N/A]", "Tesla V100-SXM2-16GB", (7, 0)),
        ("Tesla T4,", "Tesla T4", (7, 5)),
    ],
)
def test_a_gpu_by_name(text, name, compute):
    assert matrix.card(text, CATALOGUE) == Card(name, compute)


def test_every_name_of_the_catalogue_is_understood():
    for name, compute, _ in CATALOGUE.gpu_names():
        assert matrix.card(name, CATALOGUE).compute == compute


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("RTX 5900", "did you mean NVIDIA GeForce RTX 5090?"),
        ("GeForce GTX 1085", "did you mean NVIDIA GeForce GTX 1080?"),
        ("RTX 6000", "may be NVIDIA RTX 6000 Ada Generation (8.9) or Quadro RTX 6000 (7.5)"),
        (
            "Radeon Pro W7900",
            'is not in the catalogue of 2026-11-23: give its compute capability as well, such as --gpu "',
        ),
        (",8.6", "has no name"),
        ("", "has no name"),
        ("RTX 4090,8.99", "'8.99' is not of the form 8.6"),
    ],
)
def test_a_gpu_that_is_not_understood(capsys, text, said):
    with pytest.raises(BadRequest):
        matrix.card(text, CATALOGUE)
    status, out, err = run(capsys, "--gpu", text)
    assert (status, out, said in err, err.count("\n")) == (2, "", True, 1), err


def test_a_name_is_not_trusted_with_the_terminal(capsys):
    assert "\x1b" not in run(capsys, "--gpu", "bad\x1b[31m,8.6", "--torch", "2.8.0")[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--driver", "570"), "--driver goes with --gpu"),
        (("--gpu", "4090", "--driver", "new"), "driver 'new' is not a version"),
        (("--gpu", "4090", "--driver", ""), "driver '' is not a version"),
        (("--torch", "2.99"), "did you mean 2.9.1?"),
    ],
)
def test_questions_that_cannot_be_asked(capsys, arguments, said):
    status, out, err = run(capsys, *arguments)
    assert (status, out, said in err) == (2, "", True), err


# docs/matrix.md


def test_the_page_is_not_stale():
    assert matrix_page.PAGE.read_text(encoding="utf-8") == matrix_page.page(DATA, CATALOGUE), (
        "run: python -m generator catalog"
    )


def test_a_stale_page_is_noticed_and_rewritten(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(matrix_page, "PAGE", tmp_path / "matrix.md")
    assert command.main(["catalog", "--check"]) == 1
    assert capsys.readouterr().err == "generator: matrix.md is stale: run python -m generator catalog.\n"
    assert command.main(["catalog"]) == 0
    assert capsys.readouterr().out == "catalog.json: up to date\nmatrix.md: rewritten\n"
    assert command.main(["catalog", "--check"]) == 0


def cells(section):
    text = matrix_page.PAGE.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


@pytest.mark.parametrize(
    ("section", "machine"), [("PCs and servers (x86_64)", "x86_64"), ("Arm servers (aarch64)", "aarch64")]
)
def test_the_page_says_what_resolve_does(section, machine):
    heading, _, *rows = cells(section)
    for _, about, *answers in rows:
        compute = about.split()[0]
        for columns, cell in zip(heading[2:], answers, strict=True):
            for branch in columns.removeprefix("driver ").split(", "):
                answer = resolve(Host(branch, (Gpu(0, "", compute, 1),), machine=machine), CATALOGUE)
                first = CATALOGUE.first_branch(tuple(map(int, compute.split("."))), "linux")
                if cell not in {"none", "too old", "too new"}:
                    assert cell == f"{answer.torch} {answer.build}"
                elif answer.torch:
                    assert cell == "too old"
                    assert int(branch) < first
                else:
                    assert (cell == "none") == any("no published" in advice for advice in answer.advice)
                    assert (cell == "too new") == ("no longer knows" in answer.reasons[0] and cell != "none")


def test_every_card_is_on_the_page():
    named = {name for section in ("PCs and servers (x86_64)", "Arm servers (aarch64)") for row in cells(section)[2:]
             for name in row[0].split(", ")}  # fmt: skip
    assert named == {matrix.short(name) for name, _, _ in CATALOGUE.gpu_names()}


def test_tables_of_the_page_are_whole():
    for block in re.findall(r"(?:^\|.*\n)+", matrix_page.PAGE.read_text(encoding="utf-8"), re.M):
        assert len({line.count("|") for line in block.splitlines()}) == 1

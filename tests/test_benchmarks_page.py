"""The table of benchmarks/README.md follows from the results."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import table  # noqa: E402


def arm(name: str, rate: float, **more: Any) -> dict[str, Any]:
    return {"name": name, "about": "", "rate": rate, "per_core": None, "idle": None, **more}


def part(device: str, arms: list[dict[str, Any]], **ratios: float) -> dict[str, Any]:
    return {
        "host": {"cpus": 8, "processor": "EPYC"}, "device": {"device": device},
        "options": {"imgsz": 640, "batch": 64}, "arms": arms,
        "ratios": {name.replace("_to_", "/"): ratio for name, ratio in ratios.items()},
    }  # fmt: skip


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    arms = [arm("ceiling", 2000), arm("upstream", 360), arm("ours", 1940, idle=0.031)]
    bench = part("NVIDIA H200", arms, ours_to_upstream=5.39, ours_to_ceiling=0.97)
    steps = part("NVIDIA H200", [arm("none", 1500), arm("loss", 1650)], loss_to_none=1.1)
    gpu = {"bench-yolov5n": bench, "switches-yolov5n": steps}
    (tmp_path / "gpu-nvidia-h200.json").write_text(json.dumps(gpu))
    rates = [arm(name, 1, per_core=rate) for name, rate in (("upstream", 45), ("upstream cache", 280), ("store", 360))]
    (tmp_path / "cpu.json").write_text(json.dumps({"loader": part("cpu", rates)}))
    (tmp_path / "doctor.json").write_text("{}")
    return tmp_path


def rows(text: str) -> dict[str, list[str]]:
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in text.splitlines()]
    return {cells[0]: cells[1:] for cells in lines}


def test_the_page_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks/table.py"), "--check"], check=False)
    assert done.returncode == 0, "run `python benchmarks/table.py`"


def test_a_row_for_each_technique_and_a_column_for_each_device(measured: Path) -> None:
    said = rows(table.table(table.results(measured)))
    assert said["technique"][1:] == ["NVIDIA H200, 8 processors", "EPYC, 8 processors"]
    assert said["all of them: `lab train`, yolov5n"][1] == "5.39; 97 %; 3.1 % (1,940 images/s; 640 pixels, batch 64)"
    assert said["`--with loss`"][1:] == ["1.10", "not measured yet"]
    assert said["store of decoded images: loader alone"][2] == "360; 8.0; 1.3"


def test_what_was_not_measured_is_said(measured: Path) -> None:
    (measured / "gpu-nvidia-h200.json").unlink()
    said = rows(table.table(table.results(measured)))
    assert said["technique"][1] == "a GPU"
    assert said["all of them: `lab train`, yolov5n"][1:] == ["not measured yet", "not measured yet"]


def test_what_surrounds_the_table_is_kept(measured: Path) -> None:
    page = f"before\n{table.BEGIN}old\n{table.END}after\n"
    fresh = table.with_table(page, table.results(measured))
    assert fresh.startswith("before\n")
    assert fresh.endswith("after\n")
    assert "old" not in fresh
    assert table.with_table(fresh, table.results(measured)) == fresh


def test_an_epoch_on_ten_times_the_images_is_told_with_images_on_the_gpu_and_without() -> None:
    def took(private: int, gpu: int) -> dict[str, Any]:
        return {"epochs": [{"private_bytes": private << 20, "device_bytes": gpu << 20}]}

    part = {"ratio": 10.1, "small": took(900, 4000), "large": took(910, 9000)}
    assert table.epochs(part) == "10.10; 900 and 910 MiB"
    part |= {"ratio_streamed": 10.2, "small streamed": took(950, 3000), "large streamed": took(955, 3010)}
    assert table.epochs(part) == (
        "10.10; 900 and 910 MiB; not resident 10.20; 950 and 955 MiB, of the GPU 3,000 and 3,010 MiB"
    )
    assert table.epochs({**part, "ratio": None}) == ""


def test_painting_that_was_stopped_early_leaves_what_it_had() -> None:
    assert table.painting(None) == table.painting({"host": {}, "painting": {}}) == ""
    assert table.painting({"painting": {"mosaic, compiled": {"images_per_s": 41234.5}}}) == "41,234"


@pytest.mark.parametrize("words", [["--quickly"], ["--quick", "--techniques"], ["8"]])
def test_the_gpus_measurement_tells_its_use(words: list[str]) -> None:
    done = subprocess.run([ROOT / "benchmarks/gpu.sh", *words], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "benchmarks/gpu.sh [--quick | --techniques]" in done.stderr


def test_every_figure_has_its_result_and_its_command() -> None:
    page = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8").partition("## The rest")[2]
    lines = [line.strip("| \n").split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(lines) > 10
    for what, figure, *others in lines:
        row = " ".join([figure, *others])
        command = others[-1]
        assert command == "the same" or re.search(r"`(make bench|.*benchmarks?/\w+\.py.*)`", command), what
        results = re.findall(r"`(results/[\w-]+\.json)`", row)
        assert results or command == "the same" or figure.startswith("not measured"), what
        for name in results:
            assert (ROOT / "benchmarks" / name).is_file(), name


def test_the_gpus_measurement_needs_no_pip_and_tries_the_gpus_loader_without_a_gpu() -> None:
    script = (ROOT / "benchmarks/gpu.sh").read_text(encoding="utf-8")
    assert "-m pip" not in script
    quick = script.partition("\nquick*)\n")[2].partition(";;")[0]
    assert re.search(r"^    epochs .*--path device$", quick, re.M)


def test_the_parts_of_a_gpus_measurement_fit_into_its_time() -> None:
    script = (ROOT / "benchmarks/gpu.sh").read_text(encoding="utf-8")
    parts = {kind: script.partition(f"\n{kind})\n")[2].partition(";;")[0] for kind in ("gpu", "gpu--techniques")}
    for text in parts.values():
        wanted = re.findall(r"^    (bench|paint|epochs|batch_auto)(?: [a-z][\w-]*)? (\d+)", text, re.M)
        # `bench` has twelve seconds more than it is told, and painting seldom takes all of its own
        seconds = [int(number) + 12 * (name == "bench") for name, number in wanted if name != "paint"]
        assert 0 < sum(seconds) <= 510
    # what compiles the kernel of all others comes before them
    assert parts["gpu"].index("paint ") < parts["gpu"].index("bench ")

"""Every job of the generated workflows, step by step as written, and what it leaves.

The steps of .gitlab-ci.yml are the same commands: tests/test_generated_files.py compares them.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from conftest import Opened

OUT = "runs/pipeline/smoke"
IN_CONTAINER = "docker compose run --rm dev "


def steps(folder: Path, job: str, file: str = "train.yml") -> list[str]:
    """The commands of a job."""
    said = yaml.safe_load((folder / ".github/workflows" / file).read_text(encoding="utf-8"))["jobs"][job]
    return [step["run"] for step in said["steps"] if "run" in step]


def kept(folder: Path, job: str) -> str:
    """Where a job of train.yml looks for its artifacts."""
    said = yaml.safe_load((folder / ".github/workflows/train.yml").read_text(encoding="utf-8"))["jobs"][job]
    [place] = [step["with"]["path"] for step in said["steps"] if "upload-artifact" in step.get("uses", "")]
    return str(place)


@pytest.fixture(scope="module")
def ran(opened: Opened, request: pytest.FixtureRequest) -> Path:
    """The folder of artifacts, after every step of the job has run on this machine."""
    commands = steps(opened.folder, "smoke")
    assert kept(opened.folder, "smoke") == OUT
    settings = opened.folder / "lab.yaml"
    before = settings.read_text()
    try:
        request.getfixturevalue("with_yolov5")
    except pytest.skip.Exception:
        # the other engine proves the steps too; only YOLOv5's source cannot be fetched here
        settings.write_text(before.replace("engine: yolov5 ", "engine: yolov5u "))
        commands.remove(f"{IN_CONTAINER}lab fetch")
    try:
        for command in commands:
            done = opened.user.run("sh", "-c", command, cwd=opened.folder)
            assert done.returncode == 0, command + done.stdout[-3000:] + done.stderr[-3000:]
    finally:
        settings.write_text(before)
    return opened.folder / OUT


def test_the_job_leaves_its_artifacts(ran: Path, opened: Opened) -> None:
    files = {path.name: path for path in ran.iterdir() if not path.name.startswith(".")}
    assert set(files) == {
        *("best.pt", "best.onnx", "README.md", "report.html", "data-check.html", "metrics.json"),
        *("results.csv", "run.json", "pipeline.json"),
    } | ({"diff.patch"} & set(files))
    assert all(path.stat().st_size > 0 and path.stat().st_uid == opened.user.uid for path in files.values())
    assert json.loads(files["pipeline.json"].read_text())["status"] == "passed"


@pytest.fixture(scope="module")
def runner(opened: Opened) -> dict[str, str]:
    """Variables that give a runner's empty runs/, whatever was trained here before, and keep runs/ as it is."""
    apart = opened.folder / "data" / "runs-of-a-runner"
    assert opened.user.run("mkdir", "--parents", apart).returncode == 0
    return {"RUNS_DIR": str(apart)}


def test_what_ci_does_beside_it_runs_here_too(ran: Path, opened: Opened, runner: dict[str, str]) -> None:
    own = [one for one in steps(opened.folder, "smoke", "ci.yml") if one not in steps(opened.folder, "smoke")]
    assert own == [f"{IN_CONTAINER}lab smoke", f"{IN_CONTAINER}pytest -rs tests"]
    for command in own:
        done = opened.user.run("sh", "-c", command, cwd=opened.folder, env=runner)
        assert done.returncode == 0, command + done.stdout[-3000:] + done.stderr[-3000:]


def test_the_gpu_jobs_own_steps_run_on_this_machine_too(ran: Path, opened: Opened, runner: dict[str, str]) -> None:
    """Those that the other job does not have: the training is one epoch of small pictures, with a bar that all pass."""
    folder, commit = opened.folder, "0123456789abcdef" * 2 + "01234567"
    own = [command for command in steps(folder, "train") if command not in steps(folder, "smoke")]
    assert [command.splitlines()[-1].removeprefix(IN_CONTAINER) for command in own] == [
        ".devcontainer/host-setup",
        "lab doctor",
        'lab pipeline --out "runs/pipeline/$GITHUB_SHA" $OPTIONS',
    ]
    engine = "yolov5" if (folder / "code/yolov5").is_dir() else "yolov5u"
    options = f"--engine {engine} --epochs 1 --img 64 --batch 32 --map50 0 --map 0"
    given = {**runner, "GITHUB_SHA": commit, "OPTIONS": options}
    for command in own:
        done = opened.user.run("sh", "-c", command, cwd=folder, env=given)
        assert done.returncode == 0, command + done.stdout[-3000:] + done.stderr[-3000:]
    place = Path(runner["RUNS_DIR"]) / kept(folder, "train").removeprefix("runs/").replace("${{ github.sha }}", commit)
    left = {path.name for path in place.iterdir()}
    assert {"best.pt", "best.onnx", "README.md", "report.html", "metrics.json", "data-check.html", "run.json"} <= left
    assert json.loads((place / "pipeline.json").read_text())["options"]["epochs"] == 1


def test_the_card_has_the_numbers_of_results_csv(ran: Path) -> None:
    with (ran / "results.csv").open(encoding="utf-8") as file:
        rows = [{key.strip(): value.strip() for key, value in row.items()} for row in csv.DictReader(file)]
    # the smoke training is validated after its last epoch alone, and keeps that one
    own = [f"{float(value):g}" for key, value in rows[-1].items() if key.startswith("metrics/")]
    assert len(own) == 4
    card = (ran / "README.md").read_text(encoding="utf-8")
    assert f"| {' | '.join(own)} |" in card
    front = yaml.safe_load(card.split("---\n")[1])
    [result] = front["model-index"][0]["results"]
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    metrics = json.loads((ran / "metrics.json").read_text())
    assert values["mAP@0.5"] == pytest.approx(metrics["map50"], abs=1e-5)
    # our count and the engine's, of the same checkpoint
    assert metrics["map50"] == pytest.approx(float(own[2]), abs=0.02)
    assert metrics["passed"] is True
    for name in ("best.pt", "best.onnx"):
        assert f"`{name}`" in card
    assert "its input `images` is float32, 1 x 3 x 96 x 96" in card


def test_an_impossible_bar_is_not_passed(ran: Path, opened: Opened) -> None:
    command = [*shlex.split(IN_CONTAINER), "lab", "pipeline", "--out", OUT, "--map50", "1", "--map", "1"]
    done = opened.user.run(*command, cwd=opened.folder)
    assert done.returncode == 1, done.stdout + done.stderr
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("lab: the pipeline stops at gate: ")
    assert "under 1" in said
    assert not (ran / "README.md").exists()
    assert json.loads((ran / "pipeline.json").read_text())["status"] == "failed"


def test_the_projects_own_tests_judge_the_checkpoint(ran: Path, opened: Opened) -> None:
    """`pytest tests` as the README has it, with the checkpoint of the small pipeline and its pictures."""
    settings = opened.folder / "lab.yaml"
    before = settings.read_text()
    after = re.sub(r"^data: \S+", f"data: {OUT}/.smoke/data/data.yaml", before, flags=re.MULTILINE)
    settings.write_text(re.sub(r"^image_size: \d+", "image_size: 96", after, flags=re.MULTILINE))
    command = ["docker", "compose", "run", "--rm", "-e", f"CHECKPOINT={OUT}/best.pt", "dev", "pytest", "-v", "tests"]
    try:
        done = opened.user.run(*command, cwd=opened.folder)
    finally:
        settings.write_text(before)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    outcomes = dict(re.findall(r"::(test_\w+) (PASSED|FAILED|SKIPPED|ERROR)", done.stdout))
    assert len(outcomes) >= 4
    assert set(outcomes.values()) == {"PASSED"}, outcomes

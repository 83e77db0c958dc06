"""cluster/ of a generated project: the sbatch file as bash, the Kubernetes file against the schemas and itself."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Bake, run


def objects(project: Path) -> dict[str, dict[str, Any]]:
    text = (project / "cluster/kubernetes.yaml").read_text(encoding="utf-8")
    return {one["kind"]: one for one in yaml.safe_load_all(text)}


def test_the_sbatch_file_passes_shellcheck_and_bash(bake: Bake) -> None:
    file = bake() / "cluster/slurm.sbatch"
    beside = Path(sys.executable).with_name("shellcheck")
    for words in ([beside if beside.exists() else "shellcheck", file], ["bash", "-n", file]):
        done = run(*words)
        assert done.returncode == 0, done.stdout + done.stderr


def test_slurms_own_options_come_before_any_command(bake: Bake) -> None:
    """sbatch reads #SBATCH lines up to the first command only, and takes the rest for comments."""
    lines = (bake() / "cluster/slurm.sbatch").read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    asked = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert len(asked) >= 6
    assert max(asked) < first


def test_the_nodes_of_the_job_find_each_other(bake: Bake) -> None:
    found = objects(bake())
    service, job = found["Service"], found["Job"]
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    variables = {one["name"]: one.get("value") for one in container["env"]}
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(variables["NODES"])
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    script = container["args"][-1]
    name = f"{job['metadata']['name']}-0.{service['metadata']['name']}:29500"
    assert f"--rdzv {name}" in script
    assert script.index("lab preflight") < script.index("lab train")


def test_a_job_that_is_started_again_finds_its_run(bake: Bake) -> None:
    """Both remember it by what the cluster keeps: the job's number, and on a disk that the machines share."""
    project = bake()
    job = objects(project)["Job"]
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    variables = {one["name"]: one for one in container["env"]}
    assert list(variables).index("JOB") < list(variables).index("LAB_RUN_FILE")  # $(JOB) is replaced in this order only
    assert variables["LAB_RUN_FILE"]["value"] == "runs/.lab/job-$(JOB)"
    assert "controller-uid" in variables["JOB"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert job["spec"]["backoffLimit"] >= 2 * job["spec"]["completions"]
    assert pod["restartPolicy"] == "Never"  # what podFailurePolicy asks for
    refused = next(rule for rule in job["spec"]["podFailurePolicy"]["rules"] if rule["action"] == "FailJob")
    assert refused["onExitCodes"]["containerName"] == container["name"]
    assert refused["onExitCodes"]["values"] == [2]  # lab.errors.BAD_INPUT
    text = (project / "cluster/slurm.sbatch").read_text(encoding="utf-8")
    assert "#SBATCH --requeue\n" in text
    assert "#SBATCH --open-mode=append\n" in text  # or the log of the first attempt would be lost
    assert "export LAB_RUN_FILE=runs/.lab/slurm-$SLURM_JOB_ID\n" in text
    assert "--env LAB_RUN_FILE" in text


def test_the_job_asks_for_the_gpus_and_the_memory_that_it_uses(bake: Bake) -> None:
    pod = objects(bake())["Job"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    variables = {one["name"]: one.get("value") for one in container["env"]}
    assert int(container["resources"]["limits"]["nvidia.com/gpu"]) == len(variables["DEVICE"].split(","))
    train = shlex.split(variables["TRAIN"])
    batch = int(train[train.index("--batch") + 1])
    assert batch % (int(variables["NODES"]) * len(variables["DEVICE"].split(","))) == 0
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/workspace", "/dev/shm"}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)


def test_the_names_fit_the_longest_project(bake: Bake) -> None:
    slug = "a" * 40
    found = objects(bake(project_slug=slug))
    claim = found["Job"]["spec"]["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert claim == slug
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", claim)


@pytest.mark.skipif(
    importlib.util.find_spec("kubernetes_validate") is None,
    reason="kubernetes-validate (108 MB of schemas) is not installed: the files are checked by hand-written rules only",
)
def test_kubernetes_own_schema_accepts_them(bake: Bake) -> None:
    import kubernetes_validate

    for one in objects(bake()).values():
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)

"""cluster/ of a generated project: the sbatch file as bash, the Kubernetes files against the schemas and themselves."""

from __future__ import annotations

import importlib.util
import os
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
    assert patched(train_job(bake(project_slug=slug)))["volumes"][0]["persistentVolumeClaim"]["claimName"] == slug
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", claim)


def train_job(project: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((project / "cluster/trainjob.yaml").read_text(encoding="utf-8"))
    return found


def patched(job: dict[str, Any]) -> dict[str, Any]:
    """What the file adds to the pods of the runtime torch-distributed, whose one job and container are called node."""
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert patch["manager"]
    assert node["name"] == "node"
    pod: dict[str, Any] = node["template"]["spec"]["template"]["spec"]
    return pod


# what Trainer 2.3 takes; Kubernetes drops whatever else stands there, without a word
TRAIN_JOB = {"runtimeRef", "trainer", "runtimePatches", "initializer", "suspend", "managedBy", "activeDeadlineSeconds"}
TRAINER = {"image", "command", "args", "env", "numNodes", "resourcesPerNode"}
POD = {
    *("affinity", "containers", "imagePullSecrets", "initContainers", "nodeSelector", "schedulingGates", "volumes"),
    *("securityContext", "serviceAccountName", "terminationGracePeriodSeconds", "tolerations"),
}


def test_the_train_job_is_one_that_kubeflow_takes(bake: Bake) -> None:
    job = train_job(bake())
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert job["spec"]["runtimeRef"] == {
        "apiGroup": "trainer.kubeflow.org",
        "kind": "ClusterTrainingRuntime",
        "name": "torch-distributed",
    }
    assert set(job["spec"]) <= TRAIN_JOB
    assert set(job["spec"]["trainer"]) <= TRAINER
    pod = patched(job)
    assert set(pod) <= POD
    (container,) = pod["containers"]
    assert set(container) <= {"name", "env", "securityContext", "volumeMounts"}
    assert container["name"] == "node"
    # set by the Trainer itself, which refuses a TrainJob that sets them
    assert not [one["name"] for one in job["spec"]["trainer"]["env"] if one["name"].startswith("PET_")]


def test_the_train_job_is_the_kubernetes_job_in_other_words(bake: Bake) -> None:
    """Image, data, options, memory, user and disk are the same, so that what is tried with one goes with the other."""
    project = bake()
    job, pod = train_job(project), patched(train_job(project))
    trainer, (container,) = job["spec"]["trainer"], pod["containers"]
    theirs = objects(project)["Job"]["spec"]["template"]["spec"]
    (its,) = theirs["containers"]
    assert trainer["image"] == its["image"]
    assert trainer["numNodes"] == objects(project)["Job"]["spec"]["completions"]
    assert trainer["env"] == [one for one in its["env"] if one["name"] != "NODES"]
    assert trainer["resourcesPerNode"] == its["resources"]
    assert container["securityContext"] == its["securityContext"]
    assert container["volumeMounts"] == its["volumeMounts"]
    assert pod["volumes"] == theirs["volumes"]
    assert pod["securityContext"] == theirs["securityContext"]
    (rule,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert rule["labelSelector"]["matchLabels"] == {"jobset.sigs.k8s.io/jobset-name": job["metadata"]["name"]}


@pytest.mark.parametrize("file", ["kubernetes", "trainjob"])
def test_what_the_pods_run(bake: Bake, file: str, tmp_path: Path) -> None:
    """The data file is given in one place, DATA, and both commands get it; blanks in its name do no harm."""
    project = bake()
    if file == "trainjob":
        about = train_job(project)["spec"]["trainer"]
        meeting, more = "--nodes 3 --device 0,1", {"PET_NNODES": "3"}
    else:
        (about,) = objects(project)["Job"]["spec"]["template"]["spec"]["containers"]
        meeting, more = "--nodes 3 --rdzv lab-train-0.lab-train:29500 --device 0,1", {"NODES": "3"}
    text = (project / f"cluster/{file}.yaml").read_text(encoding="utf-8")
    assert len(re.findall(r"\bdata/\S+", text)) == 1
    lab = tmp_path / "lab"
    lab.write_text('#!/bin/bash\nprintf "[%s]" "$@"; echo\n', encoding="utf-8")
    lab.chmod(0o755)
    *shell, script = about["args"]
    given = {"DEVICE": "0,1", "DATA": "data/my own/data.yaml", "TRAIN": "--epochs 3"}
    surroundings = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **given, **more}
    done = run(*shell, script, env=surroundings)
    words = "".join(f"[{word}]" for word in meeting.split()) + "[--data][data/my own/data.yaml]"
    assert done.stdout.splitlines() == [
        f"[preflight]{words}[--timeout][900]",
        f"[train]{words}[--epochs][3]",
    ], done.stderr


@pytest.mark.skipif(
    importlib.util.find_spec("kubernetes_validate") is None,
    reason="kubernetes-validate (108 MB of schemas) is not installed: the files are checked by hand-written rules only",
)
def test_kubernetes_own_schema_accepts_them(bake: Bake) -> None:
    import kubernetes_validate

    for one in objects(bake()).values():
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)

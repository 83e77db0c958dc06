"""Inside the container: every technique of the step computes what the engine computes, and checkpoints stay valid."""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab import demo, resume, upstream
from lab.fast import switches
from lab.project import CODE, Project

pytestmark = pytest.mark.container
ENVIRONMENT = {**{key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}, "YOLO_OFFLINE": "1"}
UPSTREAM = CODE / "yolov5"
CPU_SWITCHES = tuple(s.name for s in switches.SWITCHES if switches.works(s, "yolov5", "cpu"))
TRAIN = ["--weights=", "--cfg", "yolov5n.yaml", "--img", "64", "--batch", "8", "--workers", "0", "--noplots"]
TRAIN += ["--device", "cpu", "--seed", "1"]
PREAMBLE = """
import sys, torch, yaml
torch.set_num_threads(1)
sys.path[:0] = [{upstream!r}, {code!r}]
from pathlib import Path
hyp = yaml.safe_load(Path({upstream!r}, "data/hyps/hyp.scratch-low.yaml").read_text())
from models.yolo import Model
from lab.fast import step, step_yolov5
import utils.loss, utils.torch_utils as parts
def made(classes=3):
    torch.manual_seed(0)
    model = Model({upstream!r} + "/models/yolov5n.yaml", ch=3, nc=classes)
    model.hyp = {{**hyp, "label_smoothing": 0.1}}
    return model
"""


@pytest.fixture(autouse=True)
def sources() -> None:
    if not upstream.present(UPSTREAM):
        pytest.skip("YOLOv5's source is not here: run `lab fetch` first")


def compute(program: str) -> str:
    """Run `program` in a process of its own, where YOLOv5's modules can be replaced; returns what it prints."""
    text = PREAMBLE.format(upstream=str(UPSTREAM), code=str(CODE)) + program
    done = subprocess.run([sys.executable, "-c", text], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_loss_and_its_gradients_are_yolov5s() -> None:
    compute("""
theirs = utils.loss.ComputeLoss
step_yolov5.loss({})
for classes in (3, 1):
    model = made(classes)
    one, other = theirs(model), utils.loss.ComputeLoss(model)
    assert type(other) is not theirs
    for number in (0, 1, 300):
        targets = torch.rand(number, 6)
        targets[:, 0], targets[:, 1] = (targets[:, 0] * 4).floor(), (targets[:, 1] * classes).floor()
        targets[:, 4:] = targets[:, 4:] * 0.6 + 0.01
        targets[::3, 2:4] = (targets[::3, 2:4] * 20).round() / 20  # on the lines between cells, and on the border
        outputs = [one.detach() for one in model.train()(torch.rand(4, 3, 160, 160))]
        found = []
        for compute in (one, other):
            leaves = [output.clone().requires_grad_() for output in outputs]
            total, items = compute(leaves, targets.clone())
            total.sum().backward()
            found.append([total.detach(), items, *(leaf.grad for leaf in leaves)])
        for mine, wanted in zip(*found):
            assert torch.allclose(mine, wanted, rtol=1e-5, atol=1e-7), (classes, number)
model.hyp["fl_gamma"] = 1.5
assert type(utils.loss.ComputeLoss(model)) is theirs
""")


def test_boxes_that_do_not_match_cannot_spoil_the_gradients() -> None:
    compute("""
theirs = utils.loss.ComputeLoss
step_yolov5.loss({})
model = made()
one, other = theirs(model), utils.loss.ComputeLoss(model)
targets = torch.tensor([[0, 1, 0.53, 0.53, 0.1, 0.1]])
for half, low in ((True, -18.0), (False, -30.0)):
    outputs = [torch.zeros(1, 3, side, side, 8) for side in (16, 8, 4)]
    found = []
    for level, output in enumerate(outputs):
        fits = other._match(other.anchors[level], *output.shape[2:4], targets)[0].any(2).any(0)
        output[0, ~fits, :, :, 2:4] = low  # sides that underflow, where no target is
    assert not all(fits.tolist())
    for compute in (one, other):
        leaves = [(output.half() if half else output.clone()).requires_grad_() for output in outputs]
        with torch.autocast("cpu", torch.float16, enabled=half):
            total, parts = compute(leaves, targets.clone())
        total.float().sum().backward()
        assert all(torch.isfinite(leaf.grad).all() for leaf in leaves), (half, low)
        found.append([total.detach(), parts, *(leaf.grad for leaf in leaves)])
    for mine, wanted in zip(*found):
        assert torch.allclose(mine.float(), wanted.float(), rtol=1e-2 if half else 1e-5, atol=1e-4 if half else 1e-7)
""")


def test_the_average_of_the_weights_is_yolov5s() -> None:
    compute("""
theirs = parts.ModelEMA
step_yolov5.foreach_ema({})
model = made()
one, other = theirs(model), parts.ModelEMA(model)
for number in range(5):
    model.train()(torch.rand(2, 3, 64, 64))  # moves the statistics of batch normalisation
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    one.update(model), other.update(model)
    for average in (one, other):  # replaces buffers, as validation in half precision does
        average.ema.double().float()
    if number == 2:  # as a run that goes on loads it
        other.ema.load_state_dict(one.ema.state_dict())
for (name, wanted), mine in zip(one.ema.state_dict().items(), other.ema.state_dict().values()):
    assert torch.allclose(mine, wanted, rtol=1e-5, atol=1e-6), name
assert other.updates == one.updates == 5
""")


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_fused_steps_are_yolov5s_also_from_a_state_without(name: str) -> None:
    compute(f"""
theirs = parts.smart_optimizer
step_yolov5.fused_optimizer({{}})
step_yolov5.channels_last({{}})
def trained(optimizer_of, steps, state=None, last=False):
    model = made().model[0]
    model = model.to(memory_format=torch.channels_last) if last else model
    optimizer = optimizer_of(model, {name!r}, 0.01, 0.9, 5e-4)
    if state:
        model.load_state_dict(state[0]), optimizer.load_state_dict(state[1])
    for number in range(steps):
        torch.manual_seed(number)
        model(torch.rand(2, 3, 32, 32)).square().mean().backward()
        optimizer.step(), optimizer.zero_grad()
    return model, optimizer
wanted, plain = trained(theirs, 6)
mine, fused = trained(parts.smart_optimizer, 6)
assert [g["fused"] for g in fused.param_groups] == [True] * 3 and not plain.param_groups[0]["fused"]
assert [g["weight_decay"] for g in fused.param_groups] == [g["weight_decay"] for g in plain.param_groups]
half, state = trained(theirs, 0)
before = trained(theirs, 3)
after = trained(parts.smart_optimizer, 0, (before[0].state_dict(), before[1].state_dict()), last=True)
assert all(g["fused"] for g in after[1].param_groups)
for parameter, kept in after[1].state.items():
    assert all(v.stride() == parameter.stride() for v in kept.values() if v.shape == parameter.shape)
back = step.contiguous({{"optimizer": after[1].state_dict()}})["optimizer"]
assert all(v.is_contiguous() for s in back["state"].values() for v in s.values() if torch.is_tensor(v))
for a, b in zip(mine.parameters(), wanted.parameters()):
    assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
""")


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_a_first_step_that_overflows_leaves_no_trace(name: str) -> None:
    compute(f"""
torch.use_deterministic_algorithms(True)  # as both engines have it: memory that nobody filled holds NaN
theirs = parts.smart_optimizer
step_yolov5.fused_optimizer({{}})
def trained(optimizer_of, overflows, state=None):
    model = made().model[0]
    optimizer = optimizer_of(model, {name!r}, 0.01, 0.9, 5e-4)
    if state:
        optimizer.load_state_dict(state)
    torch.manual_seed(0)
    pictures = torch.rand(2, 3, 32, 32)
    for overflow in overflows:  # GradScaler tells a fused kernel of it, and does not call another one
        if optimizer.param_groups[0].get("fused"):
            optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(float(overflow))
        elif overflow:
            continue
        model(pictures).square().mean().backward()
        optimizer.step(), optimizer.zero_grad()
    return model, optimizer
wanted, plain = trained(theirs, [True, False, False])
for state in (None, trained(theirs, [])[1].state_dict()):
    mine, _ = trained(parts.smart_optimizer, [True, False, False], state)
    for a, b in zip(mine.parameters(), wanted.parameters()):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
""")


def test_the_progress_bar_lags_and_the_epochs_end_does_not() -> None:
    compute("""
from lab.fast.late import Behind, Late, Means
step_yolov5.progress({})
import utils.callbacks
callbacks = utils.callbacks.Callbacks()
class Fixed(Behind):
    def of(self, tensor):
        return [7.0] * len(tensor)
Late.behind = Fixed()
model = made()
compute = utils.loss.ComputeLoss(model)
outputs = model.train()(torch.rand(2, 3, 64, 64))
targets = torch.tensor([[0, 1, 0.5, 0.5, 0.4, 0.4]])
mean = torch.zeros(3)
callbacks.run("on_train_epoch_start")
mean = (mean * 0 + compute(outputs, targets)[1]) / 1
assert list(mean) == [7.0] * 3
assert "%.1f %.1f %.1f" % (*mean,) == "7.0 7.0 7.0"
callbacks.run("on_train_epoch_end", epoch=0)
assert list(mean) == mean.tolist() != [7.0] * 3
with torch.no_grad():
    assert type(compute(outputs, targets)[1]) is torch.Tensor  # validation adds these up
assert list(Means({"box": torch.tensor(2.0), "cls": torch.tensor(3.0)}).values()) == [2.0, 3.0]
""")


def test_yolov5s_training_pictures_are_painted_where_the_training_is(project: Project, shapes: Path) -> None:
    text = compute(f"""
from lab.dataset import open_dataset, entries
from lab.fast import seams, store_build
from lab.fast.store_decode import recipe_of
from lab.project import open_project
data = open_dataset({str(shapes)!r}, open_project())
paths = [entry.path for entry in entries(data) if entry.split == "train"]
store = store_build.build(Path({str(project.root)!r}, "cache"), "shapes", paths, recipe_of("yolov5", 96, True))
speed = {{"data": "device", "stores": {{"train": str(store.directory), "val": None}}, "partners": "all",
         "resident_bytes": 0, "switches": ["channels_last"]}}
seams.install({{"speed": speed}}, "yolov5")
from utils.dataloaders import create_dataloader
images_at = str(Path(paths[0]).parent)
torch.manual_seed(1)
loader, dataset = create_dataloader(images_at, 96, 4, 32, hyp=hyp, augment=True, workers=2, shuffle=True)
seen = []
for images, targets, names, _ in loader:
    assert images.dtype == torch.uint8 and tuple(images.shape[1:]) == (3, 96, 96) and images.float().std() > 1
    assert targets.shape[1] == 6 and (targets[:, 0] < len(images)).all() and (targets[:, 2:] <= 1).all()
    seen += names
assert sorted(seen) == sorted(paths) and len(loader) == -(-len(paths) // 4)
assert type(loader).__name__ == "TrainLoader" and loader.num_workers == 0
""")
    assert "Traceback" not in text


def test_each_rank_of_yolov5_paints_its_own_share_of_the_images(project: Project, shapes: Path) -> None:
    compute(f"""
import torch.distributed
from lab.dataset import open_dataset, entries
from lab.fast import seams, store_build
from lab.fast.store_decode import recipe_of
from lab.project import open_project
data = open_dataset({str(shapes)!r}, open_project())
paths = [entry.path for entry in entries(data) if entry.split == "train"]
store = store_build.build(Path({str(project.root)!r}, "cache"), "shapes", paths, recipe_of("yolov5", 96, True))
speed = {{"data": "device", "stores": {{"train": str(store.directory), "val": None}}, "partners": "all",
         "resident_bytes": 0, "switches": []}}
seams.install({{"speed": speed}}, "yolov5")
import utils.dataloaders
utils.dataloaders.WORLD_SIZE = 2
torch.distributed.barrier = lambda *_, **__: None
torch.distributed.is_available = lambda: True
torch.distributed.get_world_size = lambda *_: 2
seen = []
for rank in (0, 1):
    utils.dataloaders.RANK = rank
    torch.distributed.get_rank = lambda *_: rank
    loader, dataset = utils.dataloaders.create_dataloader(
        str(Path(paths[0]).parent), 96, 4, 32, hyp=hyp, augment=True, rank=rank, shuffle=True)
    assert type(loader).__name__ == "TrainLoader"
    loader.sampler.set_epoch(1)
    names = [name for _, _, names, _ in loader for name in names]
    assert set(names) == {{dataset.im_files[number] for number in dataset.indices}}
    seen.append(set(names))
    loader.close()
assert seen[0] | seen[1] == set(paths) and not seen[0] & seen[1]
""")


# Whole trainings


def lab(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "lab", *words],
        env={**ENVIRONMENT, "PYTHONPATH": str(CODE), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return str(done.stdout)


def results(run: Path) -> list[dict[str, float]]:
    with (run / "results.csv").open(encoding="utf-8") as file:
        return [
            {key.strip(): float(value) for key, value in row.items() if key.strip() != "time"}
            for row in csv.DictReader(file)
        ]


def test_a_fast_training_learns_the_same_goes_on_and_is_exported(project: Project, shapes: Path) -> None:
    fast = [name for name in CPU_SWITCHES if name not in ("compile", "bf16")]
    lab("train", *TRAIN, "--engine", "yolov5", "--epochs", "2", "--name", "plain", "--plain")
    said = lab(
        "train", *TRAIN, "--engine", "yolov5", "--epochs", "2", "--name", "fast", "--with", ",".join(fast),
        "--val-period", "2",
    )  # fmt: skip
    assert f"on: {', '.join(fast)}; validated every 2 epochs" in said
    run = project.runs / "train" / "fast"
    mine, wanted = results(run), results(project.runs / "train" / "plain")
    for key in wanted[0]:
        if key.startswith("train/") or key.startswith("x/"):
            assert mine[1][key] == pytest.approx(wanted[1][key], rel=1e-3), key
    assert all(math.isnan(mine[0][key]) for key in mine[0] if key.startswith(("metrics/", "val/")))
    assert mine[1]["val/box_loss"] == pytest.approx(wanted[1]["val/box_loss"], rel=1e-3)
    said = lab("train", "--resume", "runs/train/fast", "--epochs", "3")
    assert f"on: {', '.join(fast)}" in said
    assert len(results(run)) == 3
    asked = json.loads((run / resume.REQUEST).read_text(encoding="utf-8"))
    assert asked["speed"]["switches"] == fast
    # the checkpoint is upstream's own: its val.py and its export read it without our package
    for words in (["val.py", "--img", "64"], ["export.py", "--include", "torchscript", "--imgsz", "64"]):
        data = ["--data", str(run / "data.yaml"), "--device", "cpu", "--weights", str(run / "weights" / "best.pt")]
        done = subprocess.run(
            [sys.executable, str(UPSTREAM / words[0]), *words[1:], *data],
            env={**ENVIRONMENT, "ULTRALYTICS_SKIP_REQUIREMENTS_CHECKS": "1", "YOLO_AUTOINSTALL": "false"},
            cwd=project.root,
            capture_output=True,
            text=True,
            check=False,
        )
        if words[0] == "export.py":
            assert (run / "weights" / "best.torchscript").is_file(), done.stderr[-2000:]
        elif "Arial" not in done.stderr:  # val.py would fetch a font
            assert done.returncode == 0, done.stderr[-2000:]


def test_yolov5u_is_validated_at_times(project: Project, shapes: Path) -> None:
    lab("train", *TRAIN, "--engine", "yolov5u", "--epochs", "3", "--name", "seldom", "--val-period", "2")
    rows = results(project.runs / "train" / "seldom")
    measured = [not math.isnan(row["metrics/mAP50(B)"]) for row in rows]
    assert measured == [False, True, True]
    assert (project.runs / "train" / "seldom" / "weights" / "best.pt").is_file()


@pytest.mark.long
@pytest.mark.parametrize("name", ["compile", "bf16"])
def test_the_others_train_too(project: Project, name: str) -> None:
    demo.make(demo.Recipe(images=40, size=64, shapes=(1, 2), radius=(0.16, 0.26)), project.root / "data" / "demo")
    said = lab("train", *TRAIN, "--engine", "yolov5", "--epochs", "8", "--name", name, "--with", name, "--noval")
    run = project.runs / "train" / name
    assert len(results(run)) == 8
    assert resume.look(run).ended
    assert ("torch.compile took" in said) == (name == "compile")

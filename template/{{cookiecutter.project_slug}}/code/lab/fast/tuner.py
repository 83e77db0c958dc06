"""`lab tune`: measure, prescribe, verify by a short run, keep."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from lab import dataset as data
from lab import devices, record
from lab.errors import LabError
from lab.fast import arms, bench, choose, plan, tune, tune_facts, tuned, turns
from lab.fast.bench import Scene, Wish
from lab.fast.tune import Host, Prescription
from lab.project import Project

MEASURING = 0.65  # of the time; the rest is for the run that verifies
LEAST_SECONDS = 30.0


def run(wish: Wish, project: Project, keep: bool, show: arms.Show) -> dict[str, Any]:
    """Measure, prescribe, verify and, with `keep`, write the settings for `lab train --tuned`. Raises LabError."""
    if wish.seconds < LEAST_SECONDS:
        raise LabError(f"--seconds {wish.seconds:g}: give {LEAST_SECONDS:g} or more, so much the measurements take")
    begun = time.monotonic()
    device = devices.resolve(wish.device)  # of the training; it is measured on the first of several
    share = batch_of_each(wish.batch, len(device.split(",")))
    first = replace(wish, device=wish.device.partition(",")[0], batch=share)
    wish = replace(bench.require(first, project), data=wish.data)
    dataset = data.open_dataset(wish.data, project)
    with bench.scene(wish, project, show) as scene:
        show("disks and memory")
        host = tune_facts.host(scene, project, dataset, device)
        costs = tune_facts.costs(scene, host, begun + MEASURING * wish.seconds, show)
        found = tune.prescribe(host, costs, tune_facts.shipped(wish))
        measured = verify(scene, found, begun + wish.seconds, show)
    # one device was measured; what the processors must share with the others is in the prediction for all of them
    one = replace(host, gpus=min(1, host.gpus))
    alone, asis = (tune.predict(each.candidate, one, costs).rate for each in (found.chosen, found.shipped))
    said: dict[str, Any] = {
        "date": record.now(),
        "host": asdict(host),
        "seconds_an_image": {
            "decode": costs.decode,
            "loading": costs.loading,
            "network": {f"batch {batch}, {', '.join(on) or 'no switches'}": cost
                        for (batch, on), cost in costs.network.items()},
            "painting": costs.painting,
        },
        "chosen": asdict(found.chosen),
        "shipped": asdict(found.shipped),
        "others": [asdict(one) for one in found.others],
        "left_out": {**found.left_out, **costs.failed},
        "sentence": found.sentence,
        "predicted_on_one_device": alone,
        "measured_on_one_device": measured.rate,
        "predicted_gain": alone / asis,
        "measured_gain": measured.gain,
        "warning": tune.doubt(alone / asis, measured.gain) if measured.gain else measured.failure,
        "file": "",
    }  # fmt: skip
    if keep:
        said["file"] = project.show(write(wish, project, dataset, device, host, found, said))
    return said


def batch_of_each(batch: int, gpus: int) -> int:
    """Images of a GPU's batch, of a --batch that is that of all, as for `lab train`. Raises LabError for a rest."""
    if batch > 0 and batch % gpus:
        near = batch - batch % gpus or gpus
        raise LabError(f"--batch {batch} is not a multiple of {gpus} GPUs, which share it: use {near}")
    return batch // gpus


@dataclass(frozen=True)
class Verified:
    """What the short run made, on one device: images a second, and times those of the engine as it ships.

    `gain` is None where the engine as it ships did not run, for the reason in `failure`.
    """

    rate: float
    gain: float | None
    failure: str = ""


def verify(scene: Scene, found: Prescription, until: float, show: arms.Show) -> Verified:
    """What a short run as prescribed makes beside the engine as it ships. Raises LabError when it fails."""
    one, ships = found.chosen.candidate, found.shipped.candidate
    options, speed = tune.settings(one, 1)
    wish = replace(scene.wish, batch=one.batch, workers=one.workers, speed=plan.Wish(tuned=speed))
    made = replace(scene, wish=wish)
    words = {key: value for key, value in options.items() if key != "batch_size"}
    own = bench.arm(scene, "as it ships", "the engine alone", turns.OWN, {}, workers=ships.workers)
    ours = bench.arm(made, "prescribed", "as prescribed", turns.OWN, bench.ours(made), **words)
    show("the prescription is tried")
    shipped, prescribed = bench.taken(made, [own, ours], until, show)[0]
    arms.require([prescribed])
    ratios = bench.ratios([bench.whole_rounds([shipped, prescribed])])
    gain = ratios.get(f"{prescribed.arm.name}/{shipped.arm.name}")
    return Verified(bench.figures(prescribed).rate, gain, shipped.failure)


def write(
    wish: Wish, project: Project, dataset: data.Dataset, device: str, host: Host, found: Prescription,
    said: dict[str, Any],
) -> Any:  # fmt: skip
    """Keep the settings where `lab train --tuned` looks for them; the file."""
    key = choose.key(project, wish.engine, wish.model, dataset, wish.imgsz, device)
    options, speed = tune.settings(found.chosen.candidate, host.gpus)
    return tuned.write(project, key, tuned.Settings(options, speed, said))

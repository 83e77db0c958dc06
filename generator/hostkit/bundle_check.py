"""Prove a bundle, `make verify-bundle`: its checksums, then the image built and smoked with the network cut."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

from . import setup
from .catalogue import BadRequest, Catalogue
from .probe import Facts, probe
from .program import ask, follow
from .project import CannotWrite, needs, project_settings
from .recipe import Cannot, Recipe, fingerprints, read_recipe
from .terminal import printable
from .wheelhouse import AGAIN, MANIFEST, Bad, Manifest, damage, gigabytes, misfits, read_manifest, some

# What of code/tests counts look-ups and connects, and the lines in which it writes them.
NETWORK_LOG = "code/tests/network_log"
REACHED = re.compile(r"^\d+ (?:lookup|connect) (\S+)", re.MULTILINE)
MARK = "--- look-ups and connects ---"
COUNTED = re.compile(r"look-ups and connects of this step: (\d+)")  # what docker/with-host-ca says
SMOKE = f"lab smoke --quick; status=$?; echo '{MARK}'; cat /tmp/network.log 2>/dev/null; exit $status"


def run(project: Path, catalogue: Catalogue) -> int:
    """Check this project's bundle. Returns the exit status: 0, 1 it cannot be used, 2 a bad request."""
    try:
        facts = probe(project, needs=needs(project), patience=setup.PATIENCE)
        manifest = read_manifest(project)
        if manifest is None:
            raise Bad(
                f"there is no {MANIFEST}: run `make bundle` where there is a network, and bring wheelhouse/ here."
            )
        status = setup.run(project, None, catalogue, facts)
        if status:
            return status
        recipe = read_recipe(project)
        fits(project, manifest, recipe, facts)
        began = time.monotonic()
        wrong = damage(project, manifest)
        if wrong:
            raise Bad(f"{some(wrong)}: {AGAIN}.")
        size = sum(one.size for one in manifest.files.values())
        say(f"{len(manifest.files)} files, {gigabytes(size)}, are as {MANIFEST} says ({spent(began)})")
        image = built(project, recipe)
        try:
            smoked(project, image)
        finally:
            ask(["docker", "image", "rm", image], 60)
    except BadRequest as error:
        print(printable(f"verify-bundle: {error}"), file=sys.stderr)
        return 2
    except (Bad, Cannot, CannotWrite) as error:
        print(printable(f"verify-bundle: {error}"), file=sys.stderr)
        return 1
    say("this bundle needs no network (the proof's layers stay in the build cache until `docker builder prune`)")
    return 0


def fits(project: Path, manifest: Manifest, recipe: Recipe, facts: Facts) -> None:
    """Raise Bad when the bundle was made for another image than this project builds on this host."""
    logger = recipe.argument("LOGGER") or "none"
    found = misfits(
        manifest,
        project_settings(project).python,
        facts.machine,
        recipe.argument("TORCH_VERSION"),
        recipe.argument("TORCH_BUILD"),
        logger,
        recipe.argument("PYTHON_IMAGE"),
    )
    if found:
        build = recipe.argument("TORCH_BUILD")
        command = (
            "make bundle" if build in manifest.builds else f"make bundle BUILDS={','.join([*manifest.builds, build])}"
        )
        raise Bad(f"this bundle is not for this project: {'; '.join(found)}: run `{command}` where there is a network.")
    now = fingerprints(project, recipe)
    changed = [name for name in sorted({*now, *manifest.recipes}) if now.get(name) != manifest.recipes.get(name)]
    if changed:
        raise Bad(f"{', '.join(changed)} changed since the bundle was made ({manifest.made}): {AGAIN}.")


def built(project: Path, recipe: Recipe) -> str:
    """The name of an image that was built from nothing, with the network cut. Raises Bad, Cannot."""
    name = f"{project_settings(project).slug}-bundle-check:{time.strftime('%Y%m%d-%H%M%S')}"
    command = ["docker", "build", "--network", "none", "--no-cache", "--progress", "plain", "--tag", name]
    command += ["--file", "docker/Dockerfile", "--secret", f"id=host-ca,src={recipe.certificates}"]
    arguments = {key: value for key, value in recipe.arguments.items() if key.lower() not in PROXIES}
    command += [word for key in sorted(arguments) for word in ("--build-arg", key)]
    say("building the image, nothing from the cache, the network cut")
    began = time.monotonic()
    status, said = follow([*command, "."], project, {**arguments, "DOCKER_BUILDKIT": "1"})
    asked = re.search(r"wheelhouse: (not all.*)", said)
    if asked:
        raise Bad(f"the image asked the network ({asked[1].rstrip('.')}): {AGAIN}.")
    if status:
        lines = [line for line in COUNTED.sub("", said).splitlines() if re.match(r"#\d+ [\d.]+ \S", line)]
        last = re.sub(r"^#\d+ [\d.]+ ", "", lines[-1]) if lines else (said.strip().splitlines() or ["no reason"])[-1]
        raise Bad(f"the image cannot be built with the network cut ({last[:200]}): {AGAIN}.")
    # it was built all the same: a package's own script may ask for this host's name, and goes on without an answer
    counted = [int(one) for one in COUNTED.findall(said)]
    about = f"; look-ups and connects: {sum(counted)}" if counted else ""
    say(f"the image was built with the network cut ({spent(began)}){about}")
    return name


PROXIES = ("http_proxy", "https_proxy", "no_proxy")


def smoked(project: Path, image: str) -> None:
    """Run `lab smoke` in a container without a network and count what it would have reached. Raises Bad."""
    say("lab smoke in a container without a network")
    began = time.monotonic()
    paths = f"/workspace/code:/workspace/{NETWORK_LOG}"
    command = [
        "docker",
        "run",
        "--rm",
        "--init",
        "--network",
        "none",
        "--shm-size",
        "1g",
        "--security-opt",
        "label=disable",
    ]
    command += ["--volume", f"{project.resolve()}:/workspace", "--env", f"PYTHONPATH={paths}"]
    command += ["--env", "NETWORK_LOG=/tmp/network.log", image, "sh", "-c", SMOKE]
    status, said = follow(command)
    reached = REACHED.findall(said.rpartition(MARK)[2])
    if status:
        raise Bad("lab smoke failed without a network, as shown above: mend that, or run it with a network to compare.")
    if reached:
        raise Bad(
            f"lab smoke passed, but it looked for {some(sorted(set(reached)))}: report that to this template's people."
        )
    say(f"lab smoke passed ({spent(began)}); look-ups and connects: {len(reached)}")


def say(text: str) -> None:
    """A line of what was done."""
    print(printable(f"verify-bundle: {text}"), flush=True)


def spent(began: float) -> str:
    """Seconds since then."""
    return f"{time.monotonic() - began:.0f} s"

"""`lab data`: make, check, convert, split and decode data sets."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lab.errors import FAILED, INTERRUPTED, LabError
from lab.project import Project, open_project

if TYPE_CHECKING:
    from lab.check import Result
    from lab.dataset import Dataset
    from lab.fast.store_files import Summary

data_app = typer.Typer(help="Make, check, convert, split and decode data sets.", no_args_is_help=True)
PLAIN_SECONDS = 10.0  # between two lines of progress where there is no terminal
CLASSES_TOLD = 30  # on the terminal; the page has more


@contextmanager
def _progress(verb: str, total: int | None = None) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of (done, altogether or 0 when not known): a bar on a terminal, else lines.

    Nothing runs in a thread beside it, because worker processes are forked meanwhile.
    """
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(verb)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task(verb, total=total)

        def show(done: int, altogether: int) -> None:
            bar.update(task, completed=done, total=altogether or None)
            bar.refresh()

        yield show


def _lines(verb: str) -> Callable[[int, int], None]:
    begun = told = time.monotonic()

    def show(done: int, altogether: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= PLAIN_SECONDS:
            told = now
            rate = done / (now - begun)
            whole = f" of {altogether:,}" if altogether else ""
            print(f"lab: {verb}: {done:,}{whole}, {rate:,.0f} a second", file=sys.stderr, flush=True)

    return show


@data_app.command("demo")
def data_demo(  # typer passes them by name
    images: Annotated[int, typer.Option(help="pictures, training and validation together")] = 512,
    size: Annotated[int, typer.Option(help="width and height in pixels")] = 640,
    seed: Annotated[int, typer.Option(help="seed of all random numbers")] = 0,
    val_share: Annotated[float, typer.Option(help="part of the pictures that is for validation")] = 0.2,
    out: Annotated[
        Path | None, typer.Option(help="directory to make  [default: data/demo]", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace demo data made with other options")] = False,
) -> None:
    """Make pictures of circles, squares and triangles with exact boxes, and their data.yaml.

    Example: `lab data demo --images 2000 --size 320 --out data/shapes`
    """
    from lab import demo  # noqa: PLC0415

    project = open_project()
    place = demo.default_out(project.root) if out is None else Path.cwd() / out.expanduser()
    recipe = demo.Recipe(images, size, seed, val_share)
    drawn = 0
    with _progress("drawing", images) as show:

        def advance(count: int) -> None:
            nonlocal drawn
            drawn += count
            show(drawn, images)

        made = demo.make(recipe, place, force, advance)
    counts = recipe.counts()
    words = f"{counts['train']} pictures for training and {counts['val']} for validation"
    file = project.show(place / "data.yaml")
    print(f"lab: {words}: {file}" if made else f"lab: already there, made with the same options: {file}")


DATA = Annotated[str, typer.Argument(help="the data set's yaml file  [default: from lab.yaml]", show_default=False)]


@data_app.command("check")
def data_check(
    data: DATA = "",
    workers: Annotated[
        int, typer.Option(min=0, help="processes that look at pictures  [default: one a processor]", show_default=False)
    ] = 0,
    fix: Annotated[
        bool,
        typer.Option("--fix", help="move what is broken aside; label caches that are out of date are all it deletes"),
    ] = False,
    undo: Annotated[bool, typer.Option("--undo", help="bring back what --fix moved")] = False,
) -> int:
    """Look at every picture and label: what an engine would drop or choke on, copies, classes, box sizes.

    Writes a page with pictures and boxes into runs/data-check. What is known of unchanged files is kept, so it goes on
    where it was stopped. Exit status: 0 fine, 1 problems, 2 bad input. Example: `lab data check data/demo/data.yaml`
    """
    from lab import check_fix, dataset  # noqa: PLC0415

    project = open_project()
    found = dataset.open_dataset(data or project.data, project)
    if undo:
        print(f"lab: {check_fix.undo(found)} files are back where they were")
        return 0
    result = _checked(found, project, workers)
    if fix and result.findings:
        moved = check_fix.set_aside(found, project)
        arrays = f" and {moved.arrays} arrays" if moved.arrays else ""
        print(
            f"lab: moved {moved.pictures} pictures{arrays} into {project.show(moved.aside)}, took "
            f"{moved.lines} lines out of lists, deleted {moved.caches} label caches; `lab data check "
            f"{project.show(found.file)} --undo` brings all but the caches back"
        )
        if moved.refused:
            print(f"lab: left as they were: {check_fix.told(moved.refused)}", file=sys.stderr)
        result = _checked(found, project, workers)
    _told(project, found, result)
    if result.problems:
        print(f"lab: {result.problems} problems in {project.show(found.file)}", file=sys.stderr)
        return FAILED
    print(f"lab: {project.show(found.file)} is fine")
    return 0


def check_and_tell(data: str, project: Project) -> tuple[Path, int]:
    """Look at the data set `data`, write and tell what was found; returns the page and the number of problems."""
    from lab import dataset  # noqa: PLC0415

    found = dataset.open_dataset(data, project)
    result = _checked(found, project, 0)
    return _told(project, found, result), result.problems


def _told(project: Project, found: Dataset, result: Result) -> Path:
    from lab import check_page  # noqa: PLC0415

    page = check_page.write(found, project, result)
    _tell(project, found, result)
    print(f"lab: pictures with their boxes: {project.show(page)}", flush=True)
    return page


def _checked(found: Dataset, project: Project, workers: int) -> Result:
    from lab import check  # noqa: PLC0415

    with _progress("checking") as show:
        try:
            return check.run(found, project, workers, show)
        except KeyboardInterrupt:
            raise LabError("stopped; the same command goes on from here", INTERRUPTED) from None


def _tell(project: Project, found: Dataset, result: Result) -> None:
    """The tables on the terminal."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from lab import check  # noqa: PLC0415
    from lab.check_kinds import BROKEN, KINDS, WRONG  # noqa: PLC0415

    console = Console(soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("", *result.splits):
        table.add_column(column, justify="left" if not column else "right")
    for word, key in (("pictures", "images"), ("boxes", "boxes"), ("without boxes", "backgrounds")):
        table.add_row(word, *(f"{getattr(counts, key):,}" for counts in result.splits.values()))
    for number, name in list(found.names.items())[:CLASSES_TOLD]:
        table.add_row(
            Text(f"{number} {name}"), *(f"{counts.classes.get(number, 0):,}" for counts in result.splits.values())
        )
    console.print(table)
    if len(found.names) > CLASSES_TOLD:
        print(f"and {len(found.names) - CLASSES_TOLD} more classes, on the page")
    colours = {BROKEN: "bold red", WRONG: "bold yellow"}
    for finding in result.findings:
        kind = KINDS[finding.kind]
        head = Text.assemble(
            (f"\n{kind.level:<7}", colours.get(kind.level, "dim")),
            (f"{finding.kind}", "bold"),
            f"  {finding.count:,}  ",
        )
        console.print(head.append(f"{kind.says}. {kind.mend[0].upper()}{kind.mend[1:]}."))
        for example in finding.examples:
            print(f"       {project.show(Path(example.path))}: {check.short(example.words, project)}")
        if finding.count > len(finding.examples):
            print(f"       and {finding.count - len(finding.examples):,} more")
    if result.findings:
        print()
    total = sum(counts.images for counts in result.splits.values())
    kept = f", {total - result.read:,} of them known from the last check" if result.read < total else ""
    print(f"lab: {total:,} pictures in {result.seconds:.1f} s{kept}; fingerprint {result.fingerprint}")


@data_app.command("convert")
def data_convert(
    source: Annotated[Path, typer.Argument(help="the annotations: a file or a directory", show_default=False)],
    out: Annotated[Path, typer.Argument(help="directory to make", show_default=False)],
    form: Annotated[str, typer.Option("--from", help="coco, voc, labelme, cvat or labelstudio", show_default=False)],
    images: Annotated[
        Path | None,
        typer.Option(help="where the pictures are  [default: around the annotations]", show_default=False),
    ] = None,
) -> int:
    """Make a data set of the annotations of another tool. The source stays; pictures are linked, or copied.

    cvat is CVAT's own `CVAT for images 1.1`, labelstudio the export `JSON`. Exit status: 0 done, 1 some annotated
    pictures were not found, 2 bad input. Example: `lab data convert --from coco annotations/ data/mine`
    """
    from lab import convert  # noqa: PLC0415

    project = open_project()
    place = Path.cwd() / out.expanduser()
    source = Path.cwd() / source.expanduser()
    with _progress("converting") as show:
        done = convert.convert(
            form, source, place, images and Path.cwd() / images.expanduser(), lambda number: show(number, 0)
        )
    pictures = " and ".join(f"{count:,} of {split}" for split, count in done.pictures.items())
    print(f"lab: {done.boxes:,} boxes on {pictures}: {project.show(place / 'data.yaml')}")
    if done.ignored:
        print(f"lab: left out: {', '.join(f'{count:,} {kind}' for kind, count in done.ignored.most_common())}")
    if done.flat:
        print(f"lab: left out: {done.flat:,} boxes without area inside their picture")
    if not done.pictures["val"]:
        print(f"lab: there is no val: make it with `lab data split {project.show(place / 'images')}`")
    if done.missing:
        words = f"{len(done.missing):,} annotated pictures were not found, such as {done.missing[0]}"
        print(f"lab: {words}: name their directory with --images", file=sys.stderr)
        return FAILED
    return 0


@data_app.command("split")
def data_split(
    images: Annotated[Path, typer.Argument(help="the directory that holds the pictures", show_default=False)],
    val: Annotated[float, typer.Option(help="share for validation")] = 0.2,
    test: Annotated[float, typer.Option(help="share for a last test")] = 0.0,
    seed: Annotated[int, typer.Option(help="another seed, another choice")] = 0,
    group_by: Annotated[
        str,
        typer.Option(
            help="keep together what belongs together: `folder`, or a regular expression for file names, such as "
            "'^(cam[0-9]+)_'",
            show_default=False,
        ),
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(help="where the lists go  [default: beside the directory images]", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace a data.yaml and lists that are there")] = False,
) -> None:
    """Share pictures out to train, val and test: lists and a data.yaml, with relative paths. Nothing is moved.

    Example: `lab data split data/mine/images --val 0.2 --test 0.1 --group-by folder`
    """
    from lab import split  # noqa: PLC0415

    project = open_project()
    made = split.split(
        Path.cwd() / images.expanduser(), val, test, seed, group_by, out and Path.cwd() / out.expanduser(), force
    )
    counts = ", ".join(
        f"{name} {count:,}" + (f" in {made.groups[name]:,} groups" if group_by else "")
        for name, count in made.pictures.items()
    )
    print(f"lab: {counts}: {project.show(made.file)}")


@data_app.command("cache")
def data_cache(
    name: Annotated[
        str, typer.Argument(help="with --verify or --clear: one store  [default: all]", show_default=False)
    ] = "",
    data: Annotated[
        str, typer.Option(help="the data set's yaml file  [default: from lab.yaml]", show_default=False)
    ] = "",
    img: Annotated[
        int, typer.Option(help="pixels of the longer side  [default: from lab.yaml]", show_default=False)
    ] = 0,
    engine: Annotated[
        str,
        typer.Option(
            help="yolov5 or yolov5u, which resize in their own ways  [default: from lab.yaml]", show_default=False
        ),
    ] = "",
    workers: Annotated[
        int, typer.Option(min=0, help="processes that decode  [default: one a processor]", show_default=False)
    ] = 0,
    show: Annotated[bool, typer.Option("--list", help="show all stores: size, images, last use")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="look at every stored image; make damaged ones again")
    ] = False,
    clear: Annotated[bool, typer.Option("--clear", help="delete stores, but never one that is in use")] = False,
) -> int:
    """Decode and resize the images of train and val once, for trainings to come; they lie in CACHE_DIR of .env.

    A stopped build goes on where it stopped, and only what changed is decoded again. Exit status: 0 done, 1 failed or
    in use, 2 bad input. Example: `lab data cache --data data/mine/data.yaml --img 640`
    """
    from lab.fast import store_build, store_files  # noqa: PLC0415

    project = open_project()
    if show + verify + clear > 1:
        raise LabError("one of --list, --verify and --clear at a time")
    if name and not (verify or clear):
        raise LabError(f"{name}: a store is named only with --verify or --clear; a data set with --data")
    cache = store_files.cache_directory(project, store_build.tell)
    if show:
        _list_stores(project, cache, store_files.stores(cache))
        return 0
    if not verify and not clear:
        _build_stores(project, cache, data, img, engine, workers)
        return 0
    chosen = [store for store in store_files.stores(cache) if name in ("", store.directory.name)]
    if name and not chosen:
        raise LabError(
            f"there is no store {name} in {project.show(cache)}: `lab data cache --list` shows what there is"
        )
    if verify:
        for store in chosen:
            with _progress("making again") as advance:
                count = store_build.verify(store.directory, workers, advance)
            print(f"lab: {store.directory.name}: {count:,} images are whole")
        return 0
    kept = [store for store in chosen if not store_files.clear(store.directory)]
    print(f"lab: {len(chosen) - len(kept)} stores deleted from {project.show(cache)}")
    for store in kept:
        print(f"lab: {store.directory.name} stays: it is in use by a run", file=sys.stderr)
    return FAILED if kept else 0


def _build_stores(project: Project, cache: Path, data: str, img: int, engine: str, workers: int) -> None:
    from lab import dataset, weights  # noqa: PLC0415
    from lab.fast import store_build  # noqa: PLC0415
    from lab.fast.store_decode import recipe_of  # noqa: PLC0415
    from lab.project import ENGINES  # noqa: PLC0415

    engine, wanted = engine or project.engine, img or project.image_size
    if engine not in ENGINES:
        raise LabError(f"--engine is {engine}; it may be {' or '.join(ENGINES)}")
    if wanted < 32:
        raise LabError(f"--img is {wanted}; it must be 32 or more")
    stride = weights.stride_of("", project, engine)  # the engines round up to the largest one
    side = -(-wanted // stride) * stride
    found = dataset.open_dataset(data or project.data, project)
    paths: dict[str, list[str]] = {"train": [], "val": []}
    for entry in dataset.entries(found):
        if entry.split in paths:
            paths[entry.split].append(entry.path)
    for split, every in paths.items():
        with _progress(f"decoding {split}") as advance:
            try:
                store = store_build.build(
                    cache, found.file.parent.name, every, recipe_of(engine, side, split == "train"), workers, advance
                )
            except KeyboardInterrupt:
                raise LabError("stopped; the same command goes on from here", INTERRUPTED) from None
        held = int((store.rows(every) >= 0).sum())
        size = f"{store.pixels.nbytes / 1e9:.2f} GB"
        print(f"lab: {split}: {held:,} images at {side} pixels: {project.show(store.directory)}, {size}")


def _list_stores(project: Project, cache: Path, stores: list[Summary]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    if not stores:
        print(f"lab: no stores in {project.show(cache)}")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column, side in (
        ("store", "left"),
        ("images", "right"),
        ("GB", "right"),
        ("last used", "left"),
        ("images of", "left"),
    ):
        table.add_column(column, justify="right" if side == "right" else "left")
    for store in stores:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(store.used))
        table.add_row(
            Text(store.directory.name),
            f"{store.images:,}",
            f"{store.bytes / 1e9:.2f}",
            when if store.ready else f"{when}, not finished",
            Text(project.show(Path(store.source)) if store.source else "not to be read"),
        )
    Console(soft_wrap=True).print(table)
    print(f"lab: {sum(store.bytes for store in stores) / 1e9:.2f} GB in {project.show(cache)}")

"""`muva data`: images of people become checked Parquet shards, from a folder or from a seed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import ray
from rich.table import Table

from muva.config import SyntheticConfig, load_recipe
from muva.data.artifacts import Artifact, check_name, find_artifact, fingerprint, list_artifacts
from muva.data.benchmarks import BENCHMARKS, READERS, listing_of, read_tree
from muva.data.benchmarks.benchmark import Benchmark, Trial, counts_differ, is_complete
from muva.data.checks import check_dataset, sample_sheet
from muva.data.protocols import write_trials
from muva.data.records import SPLITS, Record
from muva.data.shards import SHARD_FORMAT, Dataset, open_dataset, write_shards
from muva.data.synthetic import DOMAINS, RENDERER_VERSION, synthetic_records
from muva.errors import MuvaError, SettingsError, closest
from workflows.board import Board, gather
from workflows.cluster import ray_cluster
from workflows.forget import forget_verb
from workflows.progress import as_text, say, track
from workflows.session import (
    Session,
    json_option,
    override_option,
    print_result,
    recipe_option,
    session_options,
)
from workflows.sheets import write_sheet
from workflows.steps import Done, Step, do_step


def datasets_of(session: Session, names: Sequence[str], config: SyntheticConfig) -> dict[str, Done]:
    """The data sets of these names: synthetic ones rendered where missing, others found."""
    synthetic = [name for name in names if name in DOMAINS]
    rendered = import_synthetic(session, synthetic, config) if synthetic else {}
    return {name: rendered.get(name) or _imported(session, name) for name in names}


def import_synthetic(
    session: Session, domains: Sequence[str], config: SyntheticConfig
) -> dict[str, Done]:
    """Renders the domains that are missing, a Ray task for each; domain -> its step."""
    steps = {domain: _synthetic_step(session, domain, config) for domain in domains}
    missing = [domain for domain in domains if steps[domain].artifact.manifest() is None]
    rendered = dict(zip(missing, _render(steps, missing, config), strict=True))
    return {
        domain: do_step(
            step,
            session=session,
            work=lambda _, d=domain: rendered[d].summary,
            spent_s=rendered[domain].seconds if domain in rendered else 0.0,
        )
        for domain, step in steps.items()
    }


def import_benchmark(
    session: Session, name: str, root: Path, *, accept_counts: bool = False
) -> Done:
    """Reads a public data set's tree; MuvaError unless it holds what was published of it.

    With `accept_counts` other counts are accepted, and the data set is marked as altered.
    """
    benchmark = BENCHMARKS[name]
    options = dict(benchmark.options)
    records = read_tree(benchmark.layout, root, domain=name, options=options)
    altered = not is_complete(benchmark, records)
    if altered and not accept_counts:
        raise counts_differ(benchmark, records, where=str(root))
    trials = benchmark.trials(records, root) if benchmark.trials else None
    settings = {"benchmark": name, "altered": altered}
    return _import_records(session, name, records, settings, trials=trials)


def import_tree(
    session: Session, name: str, root: Path, *, layout: str, options: dict[str, Any]
) -> Done:
    """Reads a folder of images in a layout's form.

    The address is a hash of the listing (names, sizes, times), so an unchanged tree is not read
    again.
    """
    for taken, what in ((DOMAINS, "synthetic domain"), (BENCHMARKS, "public data set")):
        if name in taken:
            raise SettingsError(f"{name} is the name of a {what}: give your data set another name")
    check_name(name)
    records = read_tree(layout, root, domain=name, options=options)
    return _import_records(session, name, records, {"layout": layout, "options": options})


def _import_records(
    session: Session,
    name: str,
    records: Sequence[Record],
    settings: dict[str, Any],
    *,
    trials: Sequence[Trial] | None = None,
) -> Done:
    settings = settings | {"files": fingerprint(listing_of(records))}
    if trials is not None:
        settings |= {"trials": fingerprint([dataclasses.asdict(trial) for trial in trials])}
    artifact = Artifact(session.store, "datasets", name, fingerprint(settings))

    def work(_: object) -> dict[str, Any]:
        with track(f"import {name}") as progress:
            summary = write_shards(records, artifact=artifact, progress=progress.update)
        if trials is not None:
            write_trials(artifact, trials)
        return dataclasses.asdict(summary)

    step = Step(
        label=f"import {name}",
        artifact=artifact,
        format_version=SHARD_FORMAT,
        config=settings,
        inputs={},
    )
    return do_step(step, session=session, work=work)


def _imported(session: Session, name: str) -> Done:
    artifact = find_artifact(session.store, "datasets", name)
    manifest = artifact.manifest(format_version=SHARD_FORMAT)
    assert manifest is not None, artifact.address
    step = Step(
        label=f"import {name}",
        artifact=artifact,
        format_version=SHARD_FORMAT,
        config=manifest["config"],
        inputs={},
    )
    return do_step(step, session=session, work=lambda _: manifest["summary"])


def _synthetic_step(session: Session, domain: str, config: SyntheticConfig) -> Step:
    settings = {"domain": domain, "renderer": RENDERER_VERSION, **config.model_dump(mode="json")}
    return Step(
        label=f"import {domain}",
        artifact=Artifact(session.store, "datasets", domain, fingerprint(settings)),
        format_version=SHARD_FORMAT,
        config=settings,
        inputs={},
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rendered:
    """A domain whose shards are written."""

    summary: dict[str, Any]
    seconds: float


def _render(
    steps: dict[str, Step], domains: Sequence[str], config: SyntheticConfig
) -> list[_Rendered]:
    if not domains:
        return []
    with ray_cluster(), track(f"render {', '.join(domains)}") as progress:
        board = Board()
        people = config.train_people + config.test_people
        cameras = sum(DOMAINS[domain].cameras for domain in domains)
        total = people * cameras * config.images_per_camera
        done = dict.fromkeys(domains, 0)

        def show(message: tuple[str, int]) -> None:
            domain, images = message
            done[domain] = images
            progress.update(sum(done.values()), total)

        tasks = [_render_domain.remote(steps[d].artifact, config, board) for d in domains]
        return gather(tasks, board=board, on_message=show)


@ray.remote(num_cpus=1, max_retries=2)
def _render_domain(artifact: Artifact, config: SyntheticConfig, board: Board) -> _Rendered:
    started_at = time.monotonic()

    def show(done: int, total: int) -> None:
        if done % 32 == 0 or done == total:
            board.post((artifact.name, done))

    records = synthetic_records(artifact.name, **config.model_dump(), progress=show)
    summary = dataclasses.asdict(write_shards(records, artifact=artifact))
    return _Rendered(summary=summary, seconds=time.monotonic() - started_at)


@click.group("data")
def data_verb() -> None:
    """Import, list, check and show data sets.

    \b
    muva data import mine --from crops --layout folder --pid-regex '^(\\d+)_'
    muva data check mine
    """


@data_verb.command("import")
@click.argument("name")
@click.option(
    "--from",
    "root",
    type=click.Path(path_type=Path),
    help="Folder or list of images; not for the synthetic domains.",
)
@click.option("--layout", type=click.Choice(sorted(READERS)), help="How the images are laid out.")
@click.option("--pid-regex", help="Layout folder: one group that finds the person in a file name.")
@click.option("--camid-regex", help="Layout folder: the same for the camera.")
@click.option(
    "--split",
    type=click.Choice(["train", "test"]),
    help="What images without a split are for. [test]",
)
@click.option(
    "--accept-counts",
    is_flag=True,
    help="Of a public data set: take a tree that holds other images, and mark it as altered.",
)
@recipe_option
@override_option
@json_option
@session_options
def import_verb(
    name: str,
    root: Path | None,
    layout: str | None,
    pid_regex: str | None,
    camid_regex: str | None,
    split: str | None,
    accept_counts: bool,
    recipe: str,
    overrides: tuple[str, ...],
    as_json: bool,
    session: Session,
) -> None:
    """Import the data set NAME.

    Public ones, which `muva data benchmarks` lists, are known by their names; any other needs a
    layout.

    \b
    muva data import market1501 --from ~/Market-1501-v15.09.15
    muva data import mine --from crops --layout folder --pid-regex '^(\\d+)_' --split train
    muva data import mine --from people.csv --layout manifest
    muva data import syn-station --set synthetic.train_people=20
    """
    given = {"pid_regex": pid_regex, "camid_regex": camid_regex, "split": split}
    options = {option: value for option, value in given.items() if value is not None}
    if overrides and root is not None:
        raise click.UsageError("--set says how synthetic people are rendered; these are images.")
    if accept_counts and name not in BENCHMARKS:
        raise click.UsageError(
            f"--accept-counts is for public data sets: how much {name} holds is not known."
        )
    if name in BENCHMARKS:
        if layout not in (None, BENCHMARKS[name].layout) or options:
            raise click.UsageError(
                f"{name} is a public data set, whose layout is known; expected no --layout and no "
                "options of layouts. Give a data set of your own another name."
            )
        if root is None:
            raise click.UsageError(
                f"--from is missing: where is the unpacked archive of {BENCHMARKS[name].title}? "
                f"It can be had from {BENCHMARKS[name].source}"
            )
        done = import_benchmark(session, name, root, accept_counts=accept_counts)
    elif name in DOMAINS and root is None:
        config = load_recipe(recipe, overrides=overrides).synthetic
        done = import_synthetic(session, [name], config)[name]
    elif root is None or layout is None:
        raise click.UsageError(
            f"--from and --layout say where {name} is and how it is laid out "
            f"(synthetic domains need neither: {', '.join(DOMAINS)})."
        )
    else:
        done = import_tree(session, name, root, layout=layout, options=options)
    dataset = open_dataset(done.artifact)
    print_result(
        {"artifact": done.artifact.uri, **done.summary},
        as_json=as_json,
        text=f"{done.artifact.uri}\n{_counts(dataset)}",
    )
    _warn(dataset)


@data_verb.command("benchmarks")
@click.argument("name", required=False)
@json_option
def benchmarks_verb(name: str | None, as_json: bool) -> None:
    """List the public data sets that are known by name, or all that is known of NAME.

    \b
    muva data benchmarks
    muva data benchmarks msmt17
    """
    if name is None:
        known = BENCHMARKS
        table = Table("name", "data set", "images", "identities", "status")
        for key, benchmark in BENCHMARKS.items():
            splits = benchmark.counts.values()
            images = [split.images for split in splits]
            table.add_row(
                key,
                benchmark.title,
                "unknown" if None in images else str(sum(filter(None, images))),
                " + ".join(str(split.identities) for split in splits),
                benchmark.status,
            )
        text = as_text(table)
    else:
        if name not in BENCHMARKS:
            near = closest(name, BENCHMARKS, most=len(BENCHMARKS))
            raise SettingsError(f"public data set {name!r} is unknown; {near}")
        known = {name: BENCHMARKS[name]}
        text = _card(name)
    facts = {key: _facts(benchmark) for key, benchmark in known.items()}
    print_result(facts if name is None else facts[name], as_json=as_json, text=text)


def _facts(benchmark: Benchmark) -> dict[str, Any]:
    facts = {
        field.name: getattr(benchmark, field.name)
        for field in dataclasses.fields(benchmark)
        if field.name not in ("counts", "trials")
    }
    counts = {split: dataclasses.asdict(counts) for split, counts in benchmark.counts.items()}
    return facts | {"counts": counts, "trials": benchmark.trials is not None}


def _card(name: str) -> str:
    """All that is known of a public data set, for people."""
    benchmark = BENCHMARKS[name]
    table = Table("split", "images", "identities", "cameras")
    for split in SPLITS:
        if split in benchmark.counts:
            counts = dataclasses.astuple(benchmark.counts[split])
            table.add_row(
                split, *("unknown" if number is None else str(number) for number in counts)
            )
    told = ("paper", "source", "licence", "status", "rules", "lists", "counts_from")
    lines = [f"{field.replace('_', ' '):12}{getattr(benchmark, field)}" for field in told]
    command = f"muva data import {name} --from FOLDER"
    return "\n".join([benchmark.title, *lines, as_text(table), command])


@data_verb.command("list")
@json_option
@session_options
def list_verb(as_json: bool, session: Session) -> None:
    """List what is imported, and the synthetic domains.

    \b
    muva data list --json
    """
    found = []
    for artifact in list_artifacts(session.store, "datasets"):
        try:
            found.append(open_dataset(artifact))
        except MuvaError as error:
            say(f"Not listed: {error}")
    rows = [
        {"name": dataset.name, "artifact": dataset.artifact.uri, "splits": dataset.summary.splits}
        for dataset in found
    ]
    table = Table("data set", "artifact", "images", "identities", "cameras")
    for dataset in found:
        splits = dataset.summary.splits.values()
        table.add_row(
            dataset.name,
            dataset.artifact.address,
            str(dataset.summary.images),
            " + ".join(str(split["identities"]) for split in splits),
            str(max(split["cameras"] for split in splits)),
        )
    rest = sorted(set(DOMAINS) - {dataset.name for dataset in found})
    text = f"{as_text(table)}\nRendered when needed: {', '.join(rest) or 'all are here'}"
    print_result(rows, as_json=as_json, text=text)


@data_verb.command()
@click.argument("name")
@json_option
@session_options
def check(name: str, as_json: bool, session: Session) -> None:
    """Look for what is odd in the data set NAME: duplicates, lone images, unreadable files.

    \b
    muva data check syn-station
    """
    report = check_dataset(open_dataset(find_artifact(session.store, "datasets", name)))
    unreadable = [f"{found['image_id']}: {found['reason']}" for found in report.quarantined]
    duplicates = ["the same image: " + ", ".join(group) for group in report.duplicates]
    lines = [*report.warnings, *unreadable, *duplicates] or ["Nothing odd."]
    print_result(dataclasses.asdict(report), as_json=as_json, text="\n".join(lines))


@data_verb.command()
@click.argument("name")
@click.option("--sheet", type=click.Path(path_type=Path), help="Write a picture of some people.")
@json_option
@session_options
def show(name: str, sheet: Path | None, as_json: bool, session: Session) -> None:
    """Show the data set NAME in numbers, and some of its people in a picture.

    \b
    muva data show syn-station --sheet station.png
    """
    dataset = open_dataset(find_artifact(session.store, "datasets", name))
    report = check_dataset(dataset)
    table = Table("split", "images", "identities", "cameras", "images an identity")
    for split, found in report.splits.items():
        each = found.images_per_identity
        table.add_row(
            split,
            str(found.images),
            str(found.identities),
            str(found.cameras or "unknown"),
            f"{each.smallest} to {each.largest}, median {each.median:g}",
        )
    facts = [
        f"{dataset.artifact.uri}",
        as_text(table),
        f"images {report.width.smallest} to {report.width.largest} wide, "
        f"{report.height.smallest} to {report.height.largest} high; "
        f"{report.with_boxes} with part boxes, {report.with_captions} with captions; "
        f"{len(report.quarantined)} set aside, {len(report.duplicates)} duplicates",
    ]
    if sheet is not None:
        write_sheet(sheet, sample_sheet(dataset))
        facts.append(f"sheet: {sheet}")
    print_result(dataclasses.asdict(report), as_json=as_json, text="\n".join(facts))


def _counts(dataset: Dataset) -> str:
    return "\n".join(
        f"{split}: {found['images']} images, {found['identities']} identities, "
        + (f"{found['cameras']} cameras" if found["cameras"] else "cameras unknown")
        for split, found in dataset.summary.splits.items()
    )


def _warn(dataset: Dataset) -> None:
    benchmark = BENCHMARKS.get(dataset.name)
    if benchmark is not None and "withdrawn" in benchmark.status:
        say(f"{benchmark.title}: {benchmark.status}.")
    manifest = dataset.artifact.manifest()
    if manifest is not None and manifest["config"].get("altered"):
        say(f"{dataset.name} holds other images than were published: it is marked as altered.")
    if dataset.summary.quarantined:
        say(
            f"{dataset.summary.quarantined} unreadable images were set aside; "
            f"`muva data check {dataset.name}` names them."
        )
    if not dataset.summary.cameras_known:
        say("Cameras are unknown: each query will ignore only its own image.")


data_verb.add_command(forget_verb)

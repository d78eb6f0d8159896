"""`muva data`: import, list, check and show data sets, and forget a person."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from muva.data.artifacts import Artifact, find_artifact, list_artifacts
from muva.data.benchmarks import READERS
from muva.errors import MuvaError, SettingsError, closest
from workflows.progress import say
from workflows.verb import (
    as_text,
    json_option,
    override_option,
    print_result,
    recipe_option,
    session_options,
    write_sheet,
)

if TYPE_CHECKING:
    from muva.data.benchmarks.benchmark import Benchmark
    from muva.data.shards import Dataset
    from workflows.session import Session
    from workflows.steps.erasure_report import ErasureReport


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
    from muva.config import load_recipe
    from muva.data.benchmarks import BENCHMARKS
    from muva.data.shards import open_dataset
    from muva.synthetic import DOMAINS
    from workflows.steps.import_data import import_benchmark, import_synthetic, import_tree

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
    from muva.data.benchmarks import BENCHMARKS

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
        if field.name not in ("counts", "trials", "distractors")
    }
    counts = {split: dataclasses.asdict(counts) for split, counts in benchmark.counts.items()}
    trials = benchmark.trials is not None
    return facts | {"nobody": benchmark.distractors, "counts": counts, "trials": trials}


def _card(name: str) -> str:
    """All that is known of a public data set, for people."""
    from muva.data.benchmarks import BENCHMARKS
    from muva.data.records import SPLITS

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
    from muva.data.shards import open_dataset
    from muva.synthetic import DOMAINS

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
    from muva.data.checks import check_dataset
    from muva.data.shards import open_dataset

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
    from muva.data.checks import check_dataset, sample_sheet
    from muva.data.shards import open_dataset

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
    from muva.data.benchmarks import BENCHMARKS

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


@data_verb.command("forget")
@click.argument("name")
@click.option("--pid", "pids", type=int, multiple=True, help="Of the person; may be repeated.")
@click.option("--image", "images", multiple=True, help="Id of an image of them; may be repeated.")
@click.option("--yes", is_flag=True, help="Do it; without it, only say what would go.")
@json_option
@session_options
def forget_verb(
    name: str,
    pids: tuple[int, ...],
    images: tuple[str, ...],
    yes: bool,
    as_json: bool,
    session: Session,
) -> None:
    """Take a person out of the data set NAME, and out of labels, features and metrics.

    Of one version, the one that NAME means, or an address: pids may differ in others, which are
    named. Unfinished artifacts of NAME go too: let nothing run on this store meanwhile. Models that
    learned from the person stay, and pictures in MLflow and HOME/reports: these are named. Copies
    that other machines have in their caches are theirs to delete.

    \b
    muva data forget mine --pid 17          who that is, and what would go
    muva data forget mine --image 0017_c2_3.jpg --yes
    """
    from workflows.steps.forget import forget, what_to_forget

    if not pids and not images:
        raise click.UsageError("whom? Expected --pid PID or --image IMAGE_ID")
    if yes:
        report, remaining = forget(session, name, pids, images)
    else:
        report, remaining = what_to_forget(session, name, pids, images), None
    left = remaining.uri if remaining else None
    result = {"forgotten": yes, **asdict(report), "left": left}
    print_result(result, as_json=as_json, text=_forget_text(report, remaining, yes=yes))


def _forget_text(report: ErasureReport, remaining: Artifact | None, *, yes: bool) -> str:
    from workflows.steps.erasure_report import described

    verb = "Deleted" if yes else "To be deleted"
    lists = {
        f"{verb}; can be made again when needed:": report.deleted,
        f"{verb}; unfinished, and may show them:": report.unfinished,
        "Trained on them, and kept (delete them or train again):": report.kept,
        "Unfinished, and may have been trained on them (delete them or train again):": (
            report.incomplete
        ),
        "Searches, which are kept: they hold only settings and metrics:": report.searches,
        "Runs in MLflow whose pictures may show them (`mlflow runs delete --run-id ID`, then "
        "`mlflow gc`):": [f"{run['run_id']}  {run['name']}" for run in report.runs],
        "Reports that may show them (delete these files):": report.reports,
        "Other versions, in which a pid may be another person's (give the address instead of the "
        "name to remove people there):": described(report.others),
    }
    lines = described(report.people) or [
        "No finished version of the data set that is referred to holds an image of them."
    ]
    for title, entries in lists.items():
        lines += [title, *(f"  {entry}" for entry in entries)] if entries else []
    lines += [f"Remaining: {remaining.address}"] if remaining else []
    return "\n".join([*lines, "" if yes else "--yes deletes them."]).rstrip()

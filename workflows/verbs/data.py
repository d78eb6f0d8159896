"""`muva data`: import, list, check and show data sets, and remove a person from one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from muva.data.artifacts import Artifact, find_artifact, list_artifacts
from muva.data.benchmarks import READERS
from muva.errors import SettingsError, closest
from workflows.progress import say
from workflows.verb import (
    as_text,
    json_option,
    override_option,
    print_result,
    readable,
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
    """Import, list, check and show data sets, and remove a person from one.

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
    help="A folder or a list of images; synthetic domains need none.",
)
@click.option("--layout", type=click.Choice(sorted(READERS)), help="How the images are organised.")
@click.option(
    "--pid-regex",
    help="For --layout folder: one group matches the person id in a file name, or in the path "
    "below the folder if the expression has a slash.",
)
@click.option("--camid-regex", help="For --layout folder: the same for the camera id.")
@click.option(
    "--split",
    type=click.Choice(["train", "test"]),
    help="The split of images that have none. [test]",
)
@click.option(
    "--accept-counts",
    is_flag=True,
    help="Import a public data set although its image counts differ, and mark it as altered.",
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

    Public data sets, which `muva data benchmarks` lists, are recognised by their names; all others
    need --layout.

    \b
    muva data import market1501 --from ~/Market-1501-v15.09.15
    muva data import mine --from crops --layout folder --pid-regex '^(\\d+)_' --split train
    muva data import mine --from people.csv --layout manifest
    muva data import syn-station --set synthetic.train_people=20
    muva data import syn-world-0-49 --set synthetic.train_people=1000
    """
    from muva.config import load_recipe
    from muva.data.benchmarks import BENCHMARKS
    from muva.data.shards import open_dataset
    from muva.synthetic import DOMAINS, is_synthetic
    from workflows.steps.import_data import import_benchmark, import_synthetic, import_tree

    layout_options = {"pid_regex": pid_regex, "camid_regex": camid_regex, "split": split}
    options = {option: value for option, value in layout_options.items() if value is not None}
    if overrides and root is not None:
        raise click.UsageError(
            "--set says how synthetic people are rendered; it does not apply to images on disk."
        )
    if accept_counts and name not in BENCHMARKS:
        raise click.UsageError(
            f"--accept-counts is for public data sets: the expected counts of {name} are unknown."
        )
    if name in BENCHMARKS:
        if layout not in (None, BENCHMARKS[name].layout) or options:
            raise click.UsageError(
                f"{name} is a public data set, whose layout is known; expected no --layout and no "
                "options for layouts. Give your own data set another name."
            )
        if root is None:
            raise click.UsageError(
                f"--from is missing: expected the folder of the unpacked archive of "
                f"{BENCHMARKS[name].title}, which is available from {BENCHMARKS[name].source}"
            )
        result = import_benchmark(session, name, root, accept_counts=accept_counts)
    elif is_synthetic(name) and root is None:
        config = load_recipe(recipe, overrides=overrides).synthetic
        result = import_synthetic(session, [name], config)[name]
    elif root is None or layout is None:
        raise click.UsageError(
            f"--from and --layout are missing: where is {name}, and how are its images organised? "
            f"Only synthetic data sets need neither: {', '.join(DOMAINS)}, and syn-world-A-B, the "
            "networks A to B of the open world."
        )
    else:
        result = import_tree(session, name, root, layout=layout, options=options)
    dataset = open_dataset(result.artifact)
    print_result(
        {"artifact": result.artifact.uri, **result.summary},
        as_json=as_json,
        text="\n".join(
            [
                result.artifact.uri,
                *_format_counts(dataset, skipped=result.summary.get("skipped", {})),
            ]
        ),
    )
    _print_warnings(dataset)


@data_verb.command("benchmarks")
@click.argument("name", required=False)
@json_option
def benchmarks_verb(name: str | None, as_json: bool) -> None:
    """List the public data sets, or describe NAME.

    \b
    muva data benchmarks
    muva data benchmarks msmt17
    """
    from muva.data.benchmarks import BENCHMARKS

    if name is None:
        selected = BENCHMARKS
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
        selected = {name: BENCHMARKS[name]}
        text = _describe_benchmark(name)
    data = {key: _benchmark_data(benchmark) for key, benchmark in selected.items()}
    print_result(data if name is None else data[name], as_json=as_json, text=text)


def _benchmark_data(benchmark: Benchmark) -> dict[str, Any]:
    fields = {
        field.name: getattr(benchmark, field.name)
        for field in dataclasses.fields(benchmark)
        if field.name not in ("counts", "trials", "distractors")
    }
    counts = {split: dataclasses.asdict(counts) for split, counts in benchmark.counts.items()}
    trials = benchmark.trials is not None
    return fields | {"nobody": benchmark.distractors, "counts": counts, "trials": trials}


def _describe_benchmark(name: str) -> str:
    """A public data set as text."""
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
    fields = ("paper", "source", "licence", "status", "rules", "lists", "counts_from")
    lines = [f"{field.replace('_', ' '):12}{getattr(benchmark, field)}" for field in fields]
    command = f"muva data import {name} --from FOLDER"
    return "\n".join([benchmark.title, *lines, as_text(table), command])


@data_verb.command("list")
@json_option
@session_options
def list_verb(as_json: bool, session: Session) -> None:
    """List the imported data sets and the synthetic domains.

    \b
    muva data list --json
    """
    from muva.data.shards import open_dataset
    from muva.synthetic import DOMAINS

    datasets = readable(list_artifacts(session.store, "datasets"), open_dataset)
    rows = [
        {"name": dataset.name, "artifact": dataset.artifact.uri, "splits": dataset.summary.splits}
        for dataset in datasets
    ]
    table = Table("data set", "artifact", "images", "identities", "cameras")
    for dataset in datasets:
        splits = dataset.summary.splits.values()
        table.add_row(
            dataset.name,
            dataset.artifact.address,
            str(dataset.summary.images),
            " + ".join(str(split["identities"]) for split in splits),
            str(max(split["cameras"] for split in splits)),
        )
    not_rendered = sorted(set(DOMAINS) - {dataset.name for dataset in datasets})
    text = f"{as_text(table)}\nRendered when needed: {', '.join(not_rendered) or 'all exist'}"
    print_result(rows, as_json=as_json, text=text)


@data_verb.command()
@click.argument("name")
@json_option
@session_options
def check(name: str, as_json: bool, session: Session) -> None:
    """Check the data set NAME for problems.

    It looks for duplicates, people with a single image, and unreadable files.

    \b
    muva data check syn-station
    """
    from muva.data.checks import check_dataset
    from muva.data.shards import open_dataset

    report = check_dataset(open_dataset(find_artifact(session.store, "datasets", name)))
    unreadable = [f"{entry['image_id']}: {entry['reason']}" for entry in report.quarantined]
    duplicates = ["identical images: " + ", ".join(group) for group in report.duplicates]
    lines = [*report.warnings, *unreadable, *duplicates] or ["No problems found."]
    print_result(dataclasses.asdict(report), as_json=as_json, text="\n".join(lines))


@data_verb.command()
@click.argument("name")
@click.option(
    "--sheet", type=click.Path(path_type=Path), help="Write a contact sheet of some people."
)
@json_option
@session_options
def show(name: str, sheet: Path | None, as_json: bool, session: Session) -> None:
    """Show statistics of the data set NAME.

    \b
    muva data show syn-station --sheet station.png
    """
    from muva.data.benchmarks.accounting import skipped_text
    from muva.data.checks import check_dataset, sample_sheet
    from muva.data.shards import open_dataset

    dataset = open_dataset(find_artifact(session.store, "datasets", name))
    report = check_dataset(dataset)
    table = Table("split", "images", "identities", "cameras", "images per identity")
    for split, statistics in report.splits.items():
        per_identity = statistics.images_per_identity
        table.add_row(
            split,
            str(statistics.images),
            str(statistics.identities),
            str(statistics.cameras or "unknown"),
            f"{per_identity.smallest} to {per_identity.largest}, median {per_identity.median:g}",
        )
    lines = [
        f"{dataset.artifact.uri}",
        as_text(table),
        f"images {report.width.smallest} to {report.width.largest} wide, "
        f"{report.height.smallest} to {report.height.largest} high; "
        f"{report.with_boxes} with part boxes, {report.with_captions} with captions; "
        f"{len(report.quarantined)} quarantined, {len(report.duplicates)} duplicates",
        *filter(None, [skipped_text(report.skipped)]),
    ]
    if sheet is not None:
        write_sheet(sheet, sample_sheet(dataset))
        lines.append(f"sheet: {sheet}")
    print_result(dataclasses.asdict(report), as_json=as_json, text="\n".join(lines))


def _format_counts(dataset: Dataset, *, skipped: Mapping[str, int]) -> Iterator[str]:
    from muva.data.benchmarks.accounting import skipped_text

    for split, counts in dataset.summary.splits.items():
        cameras = f"{counts['cameras']} cameras" if counts["cameras"] else "cameras unknown"
        yield f"{split}: {counts['images']} images, {counts['identities']} identities, {cameras}"
    if skipped:
        yield skipped_text(skipped)


def _print_warnings(dataset: Dataset) -> None:
    from muva.data.benchmarks import BENCHMARKS
    from muva.data.checks import queries_without_match

    benchmark = BENCHMARKS.get(dataset.name)
    if benchmark is not None and "withdrawn" in benchmark.status:
        say(f"{benchmark.title}: {benchmark.status}.")
    manifest = dataset.artifact.manifest()
    if manifest is not None and manifest["config"].get("altered"):
        say(f"{dataset.name} differs from the published images: it is marked as altered.")
    if dataset.summary.quarantined:
        say(
            f"{dataset.summary.quarantined} unreadable files or folders were quarantined; "
            f"`muva data check {dataset.name}` lists them."
        )
    if not dataset.summary.cameras_known:
        some_known = any(counts["cameras"] for counts in dataset.summary.splits.values())
        say(
            f"{'Some cameras' if some_known else 'Cameras'} are unknown: queries will ignore only "
            "their own image."
        )
    if "query" in dataset.summary.splits:
        rows = dataset.rows(["split", "pid", "camid"], splits=["query", "gallery"])
        if without_match := queries_without_match(rows):
            queries = dataset.summary.splits["query"]["images"]
            say(
                f"{without_match} of {queries} queries have no match in another camera: they are "
                "left out of the metrics."
            )


@data_verb.command("forget")
@click.argument("name")
@click.option("--pid", "pids", type=int, multiple=True, help="The person's id; may be repeated.")
@click.option(
    "--image", "images", multiple=True, help="The id of an image of the person; may be repeated."
)
@click.option("--yes", is_flag=True, help="Delete. Without it, only list what would be deleted.")
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
    """Remove a person from the data set NAME.

    Pseudo-labels, features and metrics that contain the person are deleted, and the person's images
    are deleted from the galleries in the store. Galleries elsewhere are not known: `muva gallery
    forget` reaches them.

    Only one version of the data set changes: the latest, or the one whose address is given. The
    output lists the other versions, in which pids may differ. Unfinished artifacts of NAME are
    deleted too, so nothing else may run on this store meanwhile: commands in the same home are
    noticed, others are not. Models that were trained on the person, and pictures in MLflow and
    HOME/reports, are kept and listed. Delete copies in the caches of other machines yourself.

    \b
    muva data forget mine --pid 17          list the person's images and what would be deleted
    muva data forget mine --image 0017_c2_3.jpg --yes
    """
    from workflows.steps.forget import forget, what_to_forget
    from workflows.steps.step import check_idle

    if not pids and not images:
        raise click.UsageError("no person is given: expected --pid PID or --image IMAGE_ID")
    if yes:
        check_idle(session)
        report, remaining = forget(session, name, pids, images)
    else:
        report, remaining = what_to_forget(session, name, pids, images), None
    left = remaining.uri if remaining else None  # the data set without the person
    result = {"forgotten": yes, **asdict(report), "left": left}
    print_result(result, as_json=as_json, text=_forget_text(report, remaining, yes=yes))


def _forget_text(report: ErasureReport, remaining: Artifact | None, *, yes: bool) -> str:
    from workflows.steps.erasure_report import described

    verb = "Deleted" if yes else "To be deleted"
    lists = {
        f"{verb}; can be computed again when needed:": report.deleted,
        f"{verb}; unfinished, and may show them:": report.unfinished,
        f"{verb} from galleries:": [
            f"{one.gallery}: {one.images} images" for one in report.galleries
        ],
        "Models trained on them, kept (delete these or train them again):": report.kept,
        "Unfinished, perhaps trained on them, kept (delete these or train them again):": (
            report.incomplete
        ),
        "Hyperparameter searches, kept because they hold only settings and metrics:": (
            report.searches
        ),
        "Runs in MLflow whose pictures may show them (`mlflow runs delete --run-id ID`, then "
        "`mlflow gc`):": [f"{run['run_id']}  {run['name']}" for run in report.runs],
        "Reports that may show them (delete these files):": report.reports,
        "Other versions of the data set, in which pids may denote other people (give an address "
        "instead of the name to remove people from one):": described(report.others),
    }
    lines = described(report.people) or [
        "The data set no longer exists in a finished version that has an image of them."
    ]
    for title, entries in lists.items():
        lines += [title, *(f"  {entry}" for entry in entries)] if entries else []
    lines += [f"Remaining: {remaining.address}"] if remaining else []
    return "\n".join([*lines, "" if yes else "--yes deletes them."]).rstrip()

"""`muva masks`: the quality of part pseudo-labels before training; refine, import, export them."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from rich.table import Table

from muva.config import PARTS, BoxRule
from muva.data.artifacts import find_artifact
from muva.errors import MuvaError, closest
from workflows.progress import track
from workflows.verb import NAMES, as_text, json_option, print_result, session_options

if TYPE_CHECKING:
    from PIL import Image

    from muva.grounding.labels import LabelSet
    from tracking.mask_report import MaskStatistics
    from workflows.session import Session


@click.group("masks")
def masks_verb() -> None:
    """Report on, show, refine, import and export part masks.

    \b
    muva masks report syn-station
    muva masks show syn-station 0001_c1s1_0.jpg
    muva masks import mine release.pkl
    """


def choice_options(verb: Any) -> Any:
    """Adds the options that choose one of a data set's label sets."""
    for option in (
        click.option("--labels", help="NAME-FINGERPRINT of a label set. [the newest]"),
        click.option(
            "--expert",
            help="Use this expert's newest label set; `imported`: the one from another program.",
        ),
    ):
        verb = option(verb)
    return verb


@masks_verb.command()
@click.argument("dataset")
@choice_options
@click.option("--against", help="Compare with another label set or with another expert's.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="The HTML file. [HOME/reports/…]"
)
@json_option
@session_options
def report(
    dataset: str,
    expert: str | None,
    labels: str | None,
    against: str | None,
    out: Path | None,
    as_json: bool,
    session: Session,
) -> None:
    """Report the quality of the pseudo-labels of DATASET.

    The report is an HTML page with statistics and pictures.

    \b
    muva masks report syn-station
    muva masks report mine --expert florence-2 --against owlv2
    """
    from muva.data.shards import open_dataset
    from muva.grounding.labels import open_labels
    from tracking.mask_report import mask_report
    from tracking.names import ARTIFACT_TAG
    from tracking.privacy import people
    from workflows.results.mask_statistics import mask_pictures, mask_statistics
    from workflows.steps.labels import choose_labels

    data = open_dataset(find_artifact(session.store, "datasets", dataset))
    address = against is not None and _is_address(against)
    artifact = choose_labels(
        session, data, expert=expert, labels=labels, unlike=None if address else against
    )
    chosen = open_labels(artifact, dataset=data)
    other = None
    if against is not None:
        named = {"labels": against} if address else {"expert": against}
        other = open_labels(choose_labels(session, data, **named), dataset=data)
        if other.artifact == chosen.artifact:
            raise MuvaError(
                f"--against {against}: is {artifact.address}, the label set of the report itself; "
                "expected another one. Choose the first with --expert or --labels"
            )
        if not set(chosen.parts) & set(other.parts):
            raise MuvaError(
                f"--against {against}: has labels of {', '.join(other.parts)}; expected some of "
                f"{', '.join(chosen.parts)}, those of {artifact.address}"
            )
    with track(f"report of {chosen.artifact.name}"):
        statistics, confidence = mask_statistics(data, chosen, other)
        pictures = mask_pictures(data, chosen, confidence)
        page = mask_report(statistics, pictures)
    file = out or session.home / "reports" / f"masks-{artifact.name}-{artifact.fingerprint}.html"
    _write(file, page.encode())
    key = f"{chosen.artifact.address}/report"
    params = {"labels": chosen.artifact.address, "dataset": data.name}
    tags = {ARTIFACT_TAG: chosen.artifact.address}
    with session.run(f"masks of {data.name}", key=key, params=params, tags=tags) as run:
        if run is not None:
            run.log_metrics(statistics.metrics())
            for name, picture in pictures.items():
                run.log_image(f"{name}.png", picture)
            if people() != "hidden":  # the page contains the pictures
                run.log_artifact(file)
    print_result(
        {"report": str(file), **dataclasses.asdict(statistics)},
        as_json=as_json,
        text=f"{as_text(_table(statistics))}\n{file}",
    )


@masks_verb.command()
@click.argument("dataset")
@click.argument("image")
@choice_options
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="The PNG file. [HOME/reports/…]"
)
@json_option
@session_options
def show(
    dataset: str,
    image: str,
    expert: str | None,
    labels: str | None,
    out: Path | None,
    as_json: bool,
    session: Session,
) -> None:
    """Draw the parts of one image and print the expert's answers.

    IMAGE is the id of an image in DATASET.

    \b
    muva masks show syn-station 0001_c1s1_0.jpg
    """
    import numpy as np
    import pyarrow as pa

    from muva.data.images import decode_rgb
    from muva.data.shards import open_dataset
    from muva.grounding import quality
    from muva.grounding.labels import open_labels
    from workflows.results.mask_statistics import label_scores, number_or_none
    from workflows.steps.labels import choose_labels

    data = open_dataset(find_artifact(session.store, "datasets", dataset))
    chosen = open_labels(choose_labels(session, data, expert=expert, labels=labels), dataset=data)
    if image not in chosen.image_ids:
        near = closest(image, chosen.image_ids, most=3)
        raise MuvaError(f"{data.name}: has no image {image!r}; {near}")
    details = chosen.details()
    boxes, found = (values.numpy() for values in chosen.boxes(chosen.image_ids))
    confidence = quality.confidence(boxes, found, chosen.parts, chosen.grid)
    scores = label_scores(chosen, details)
    row = chosen.image_ids.index(image)
    of_image = details.filter(pa.array(np.asarray(details["image_id"].to_pylist()) == image))
    answers = dict(zip(of_image["part"].to_pylist(), of_image["answer"].to_pylist(), strict=True))
    [error] = set(of_image["error"].to_pylist())
    result = [
        {
            "part": part,
            "box": [round(float(v), 4) for v in boxes[row, column]] if found[row, column] else None,
            "score": None if scores is None else number_or_none(float(scores[row, column])),
            "confidence": number_or_none(float(confidence[row, column])),
            "answer": answers[part],
        }
        for column, part in enumerate(chosen.parts)
    ]
    [encoded] = data.read_images([row])
    name = re.sub(r"[^\w.-]", "_", image)
    file = out or session.home / "reports" / f"{data.name}-{name}.png"
    png = io.BytesIO()
    _draw_parts(chosen, row, decode_rgb(encoded)).save(png, "PNG")
    _write(file, png.getvalue())
    table = Table("part", "box x0 y0 x1 y1", "confidence", "answer", title=f"{data.name} {image}")
    for entry in result:
        box = " ".join(f"{v:.3f}" for v in entry["box"]) if entry["box"] else "not found"
        score = "" if entry["confidence"] is None else f"{entry['confidence']:.2f}"
        table.add_row(entry["part"], box, score, entry["answer"])
    quarantined = f"quarantined: {error}\n" if error else ""
    print_result(
        {"picture": str(file), "parts": result, "error": error},
        as_json=as_json,
        text=f"{as_text(table)}\n{quarantined}{file}",
    )


@masks_verb.command("refine")
@click.argument("dataset")
@click.option(
    "--rules",
    type=NAMES,
    required=True,
    help=f"Rules to apply in this order: {', '.join(get_args(BoxRule))}.",
)
@choice_options
@json_option
@session_options
def refine_verb(
    dataset: str,
    rules: tuple[str, ...],
    expert: str | None,
    labels: str | None,
    as_json: bool,
    session: Session,
) -> None:
    """Apply rules that drop or correct boxes.

    The result is a new label set; the number of changed boxes is printed for each rule and part.

    Training applies rules too, with `--set grounding.rules=[drop-disordered]`.

    \b
    muva masks refine mine --rules drop-whole-image,drop-disordered
    """
    from muva.data.shards import open_dataset
    from workflows.steps.labels import REFINED, choose_labels
    from workflows.steps.refine import refine

    source = find_artifact(session.store, "datasets", dataset)
    raw = choose_labels(session, open_dataset(source), expert=expert, labels=labels, unlike=REFINED)
    refined = refine(session, source, raw, rules)
    table = Table("rule", *refined.summary["parts"], title="boxes changed")
    for name, counts in refined.summary["rules"].items():
        table.add_row(name, *(str(count) for count in counts.values()))
    print_result(
        {"artifact": refined.artifact.uri, **refined.summary},
        as_json=as_json,
        text=f"{refined.artifact.uri}\n{as_text(table)}",
    )


@masks_verb.command("import")
@click.argument("dataset")
@click.argument("file", type=click.Path(dir_okay=False, exists=True, path_type=Path))
@click.option(
    "--parts",
    type=NAMES,
    default=",".join(PARTS),
    show_default=True,
    help="The parts in the order of the file's rows.",
)
@click.option(
    "--grid",
    metavar="ROWSxCOLUMNS",
    help="The grid of patches of the masks. [twice as high as wide]",
)
@click.option(
    "--missing",
    type=click.Choice(["error", "not-found"]),
    default="error",
    show_default=True,
    help="What a training image without an entry is: an error, or one with no part found.",
)
@json_option
@session_options
def import_verb(
    dataset: str,
    file: Path,
    parts: tuple[str, ...],
    grid: str | None,
    missing: str,
    as_json: bool,
    session: Session,
) -> None:
    """Import part masks or boxes for DATASET from FILE.

    FILE is a pickle in the format of the authors' release; its masks or boxes are not changed. No
    code in the pickle is executed. Train on them with `--set grounding.expert=imported`.

    \b
    muva masks import market release.pkl
    muva masks import mine masks.pkl --grid 16x8 --missing not-found
    """
    from workflows.steps.import_labels import import_release

    source = find_artifact(session.store, "datasets", dataset)
    imported = import_release(
        session, source, file, parts=parts, grid=_grid(grid), missing=missing == "not-found"
    )
    extra = imported.summary["extra"]
    note = f"; {extra} entries belong to no image of the data set" if extra else ""
    print_result(
        {"artifact": imported.artifact.uri, **imported.summary},
        as_json=as_json,
        text=f"{imported.artifact.uri}\n{imported.summary['images']} images{note}",
    )


@masks_verb.command()
@click.argument("dataset")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@choice_options
@click.option(
    "--grid",
    metavar="ROWSxCOLUMNS",
    default="16x8",
    show_default=True,
    help="The grid of patches of the masks.",
)
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@json_option
@session_options
def export(
    dataset: str,
    file: Path,
    expert: str | None,
    labels: str | None,
    grid: str,
    overwrite: bool,
    as_json: bool,
    session: Session,
) -> None:
    """Write the part masks of DATASET to FILE.

    FILE is a pickle in the format of the authors' release.

    \b
    muva masks export market masks.pkl --expert florence-2
    """
    from muva.data.shards import open_dataset
    from muva.grounding.labels import open_labels
    from muva.grounding.release import by_base_name, write_release
    from workflows.steps.labels import choose_labels

    if file.exists() and not overwrite:
        raise MuvaError(
            f"{file}: exists already. Choose another name, or replace it with --overwrite"
        )
    data = open_dataset(find_artifact(session.store, "datasets", dataset))
    chosen = open_labels(choose_labels(session, data, expert=expert, labels=labels), dataset=data)
    ids_by_name = by_base_name(chosen.image_ids, dataset=data.name)
    rows, columns = _grid(grid) or (16, 8)
    masks = chosen.masks_on_grid((rows, columns), list(ids_by_name.values()))
    write_release(file, dict(zip(ids_by_name, masks.numpy(), strict=True)))
    print_result(
        {
            "file": str(file),
            "images": len(ids_by_name),
            "parts": chosen.parts,
            "grid": [rows, columns],
        },
        as_json=as_json,
        text=f"{file}\n{len(ids_by_name)} images on {rows} x {columns} patches",
    )


def _table(statistics: MaskStatistics) -> Table:
    columns = ["part", "found", "area", "out of order", "whole image", "confidence"]
    if statistics.against:
        columns += ["agreement: IoU", "IoU >= 0.5", "only this", "only the other"]
    table = Table(*columns, title=f"{statistics.labels}, {statistics.images} images")
    for part in statistics.parts:
        row = [
            part.part,
            f"{part.found:.1%}",
            "" if part.area is None else f"{part.area[1]:.1%}",
            f"{part.disordered:.1%}",
            f"{part.whole_image:.1%}",
            "" if part.confidence is None else f"{part.confidence:.2f}",
        ]
        if statistics.against:
            agreement = part.agreement or {}
            row += [
                "" if agreement.get("median_iou") is None else f"{agreement['median_iou']:.2f}",
                "" if agreement.get("half") is None else f"{agreement['half']:.1%}",
                str(agreement.get("only_first", "")),
                str(agreement.get("only_second", "")),
            ]
        table.add_row(*row)
    return table


def _grid(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise click.UsageError(f"--grid {text}: expected ROWSxCOLUMNS, for example 16x8")
    return int(match[1]), int(match[2])


def _is_address(text: str) -> bool:
    return re.fullmatch(r"(labels/)?.+-[0-9a-f]{16}", text) is not None


def _draw_parts(labels: LabelSet, row: int, image: Image.Image) -> Image.Image:
    """An image with the boxes of its parts, or with their masks if the labels are masks."""
    from muva.grounding.release import base_name
    from tracking.pictures import boxed_image, part_mask_sheet

    ids = [labels.image_ids[row]]
    if labels.grid:
        rows, columns = labels.grid
        return part_mask_sheet(
            [image],
            {"labels": labels.masks_on_grid(labels.grid, ids).numpy()},
            grid=labels.grid,
            parts=labels.parts,
            title=labels.dataset,
            subtitle=f"masks of {rows} x {columns} patches",
            captions=[base_name(ids[0])],
        )
    boxes, found = (values[0].tolist() for values in labels.boxes(ids))
    by_part = {part: box for part, box, ok in zip(labels.parts, boxes, found, strict=True) if ok}
    return boxed_image(image, by_part, parts=labels.parts)


def _write(file: Path, content: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    except OSError as error:
        raise MuvaError(
            f"{file}: cannot be written: {error.strerror or error}. Choose another file with --out"
        ) from error

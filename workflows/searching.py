"""A search for the images most similar to a query: its options and its output.

`muva search` and `muva gallery search` are the same verb under two names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

import muva
from muva.data.artifacts import open_artifact
from muva.errors import MuvaError
from workflows.verb import as_text, json_option, print_result, session_options, write_sheet

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from muva.retrieval.gallery_rows import GalleryFilter, GalleryRow
    from workflows.session import Session
    from workflows.steps.calibrated import Decision
    from workflows.steps.searched import Searched


INT64 = click.IntRange(-(2**63), 2**63 - 1)
"""Numbers of people and cameras."""


def search_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of a search to a verb, which passes them on to `run_search`."""
    options = [
        click.option(
            "--query", required=True, help="An image file, or an image_id of the gallery."
        ),
        click.option(
            "--model", help="A name in the store, synthetic, or a URI. [the gallery's model]"
        ),
        click.option(
            "--top",
            default=20,
            show_default=True,
            type=click.IntRange(min=1),
            help="The number of images to find.",
        ),
        click.option(
            "--camid",
            "camids",
            type=INT64,
            multiple=True,
            help="Only this camera; may be repeated.",
        ),
        click.option("--place", "places", multiple=True, help="Only this place; may be repeated."),
        click.option("--after", help="Only from this time on, in ISO 8601, without an offset UTC."),
        click.option("--before", help="Only before this time."),
        click.option(
            "--far",
            type=float,
            help="For a calibrated model: the share of pairs of different people that may pass for "
            "the same. [0.001]",
        ),
        click.option(
            "--sheet", type=click.Path(path_type=Path), help="Write a picture of the results."
        ),
        click.option(
            "--images",
            type=click.Path(path_type=Path),
            help="The folder of the gallery's images. [where they were embedded]",
        ),
        json_option,
        session_options,
    ]
    return functools.reduce(lambda decorated, option: option(decorated), reversed(options), verb)


def run_search(
    reference: str,
    *,
    session: Session,
    query: str,
    model: str | None,
    top: int,
    far: float | None,
    sheet: Path | None,
    images: Path | None,
    as_json: bool,
    **only: Any,
) -> None:
    """Search a file of features or a gallery, and print what is found."""
    from workflows.steps.searched import searched

    gallery = searched(session, reference)
    address = gallery.source.model
    if model is not None:
        address = _same_model(session, model, gallery, reference)
    feature, known = gallery.feature(query), gallery.row(query)
    if feature is None:
        feature = _feature_of(query, address, gallery, reference)
    found = gallery.search(
        feature, top=top, only=_filter(**only), exclude=None if known is None else query
    )
    decision = _decision(address, far)
    matches = [
        {
            "rank": rank,
            **_described(match.row),
            "similarity": round(match.cosine, 6),
            **_decided(decision, match.cosine),
        }
        for rank, match in enumerate(found, start=1)
    ]
    described = {"image_id": query} if known is None else _described(known)
    result = {"query": described, "gallery": reference, "model": address, "matches": matches}
    text = as_text(_table(matches))
    if decision is not None:
        result |= {"threshold": decision.threshold, "far": decision.far}
        text += _verdict(decision, matches)
    if sheet is not None:
        shown = [*([] if known is None else [known]), *(match.row for match in found)]
        pictures = _images(shown, images)
        query_picture = _open_image(Path(query)) if known is None else pictures.pop(0)
        _draw(sheet, query_picture, described, pictures, matches)
        result["sheet"] = f"{sheet}"
        text += f"\nsheet: {sheet}"
    print_result(result, as_json=as_json, text=text)


def _filter(
    *, camids: tuple[int, ...], places: tuple[str, ...], after: str | None, before: str | None
) -> GalleryFilter:
    from muva.retrieval.gallery_rows import GalleryFilter, utc_time

    return GalleryFilter(
        camids=camids,
        places=places,
        after=None if after is None else utc_time(after),
        before=None if before is None else utc_time(before),
    )


def _described(row: GalleryRow) -> dict[str, Any]:
    """What is known of an image: its id, pid and camid in any case."""
    time = None if row.time is None else row.time.isoformat()
    known = {"time": time, "place": row.place, **row.columns}
    return {
        "image_id": row.image_id,
        "pid": row.pid,
        "camid": row.camid,
        **{name: value for name, value in known.items() if value is not None},
    }


def _decision(address: str, far: float | None) -> Decision | None:
    """Where to separate the same person from others; None if the model is not calibrated.

    Raises:
        MuvaError: a rate is asked for, and the model is not calibrated.
    """
    from workflows.steps.calibrated import Decision, calibration_of

    calibration = calibration_of(address)
    if calibration is not None:
        return Decision.at(calibration, far, model=address)
    if far is not None:
        raise MuvaError(
            f"--far {far:g}: {address} is not calibrated. Calibrate it with `muva calibrate`, and "
            "name the result with --model: the gallery stays as it is"
        )
    return None


def _decided(decision: Decision | None, cosine: float) -> dict[str, Any]:
    if decision is None:
        return {}
    return {
        "probability": round(decision.probability(cosine), 6),
        "same_person": decision.same(cosine),
    }


def _verdict(decision: Decision, matches: Sequence[dict[str, Any]]) -> str:
    same = sum(match["same_person"] for match in matches)
    known = (
        f"the first {same} pass" if same > 1 else "the first one passes" if same else "none passes"
    )
    return (
        f"\nsame person: {known} at a threshold of {decision.threshold:.3f}, for a false-accept "
        f"rate of {100 * decision.far:g} % per image"
    )


def _same_model(session: Session, model: str, gallery: Searched, reference: str) -> str:
    """The address of the named model.

    Raises:
        MuvaError: another model computed the gallery's features.
    """
    from muva.models import model_description
    from workflows.steps.named_model import named_model

    artifact = named_model(session, model)
    if model_description(artifact)["sha256"] != gallery.source.weights:
        raise MuvaError(
            f"{reference}: its features were computed by {gallery.source.model}, not by "
            f"{artifact.uri}. Features of two models cannot be compared: embed the images with the "
            "other model, or leave out --model"
        )
    return artifact.uri


def _feature_of(query: str, address: str, gallery: Searched, reference: str) -> np.ndarray:
    from muva.models import model_description

    path = Path(query).expanduser()
    if not path.is_file():
        raise MuvaError(
            f"--query {query}: expected an image file, or one of the {len(gallery)} image ids in "
            f"{reference}; found neither"
        )
    try:
        bundle = muva.load(address)
        weights = model_description(open_artifact(address))["sha256"]
    except MuvaError as error:
        raise MuvaError(
            f"{error}. {reference} names this model; give its present place with --model"
        ) from error
    if weights != gallery.source.weights:
        raise MuvaError(
            f"{address} no longer has the weights that computed {reference}. Embed the images "
            "again, or name the model with --model"
        )
    return bundle.embed([path])[0]


def _images(rows: Sequence[GalleryRow], folder: Path | None) -> list[Image.Image]:
    """The pictures of some images of a gallery."""
    stored = _stored_images(rows) if folder is None else {}
    return [
        stored[row.image_id]
        if row.image_id in stored
        else _open_image((folder or Path(row.folder or ".")) / row.image_id)
        for row in rows
    ]


def _stored_images(rows: Sequence[GalleryRow]) -> dict[str, Image.Image]:
    """By image id, the pictures of those that are from data sets."""
    from muva.data.images import decode_to_show
    from muva.data.shards import StoredImages, open_dataset

    found = {}
    for address in {row.dataset for row in rows if row.dataset is not None}:
        ids = [row.image_id for row in rows if row.dataset == address]
        dataset = open_dataset(open_artifact(address))
        table = dataset.rows(["image_id"])
        numbers = dict(zip(table["image_id"].to_pylist(), table["row"].to_pylist(), strict=True))
        shown = StoredImages(dataset, [numbers[one] for one in ids])
        found |= {one: decode_to_show(image) for one, image in zip(ids, shown, strict=True)}
    return found


def _open_image(path: Path) -> Image.Image:
    from muva.data.images import UnreadableImageError, decode_to_show
    from muva.data.records import encoded_file

    try:
        return decode_to_show(encoded_file(path.expanduser()))
    except (OSError, UnreadableImageError) as error:
        raise MuvaError(
            f"the image {path} cannot be shown ({error}); name the folder of the gallery's images "
            "with --images"
        ) from error


def _draw(
    sheet: Path,
    query_picture: Image.Image,
    query: Any,
    pictures: Sequence[Image.Image],
    matches: Sequence[dict[str, Any]],
) -> None:
    from tracking.pictures import Found, search_sheet

    picture = search_sheet(
        query_picture,
        [
            Found(
                image=image,
                name=match["image_id"],
                similarity=match["similarity"],
                pid=match["pid"],
                camid=match["camid"],
            )
            for image, match in zip(pictures, matches, strict=True)
        ],
        pid=query.get("pid"),
        subtitle=query["image_id"],
    )
    write_sheet(sheet, picture)


def _table(matches: Sequence[dict[str, Any]]) -> Table:
    known = ("pid", "camid", "time", "place")
    columns = [name for name in known if any(match.get(name) is not None for match in matches)]
    calibrated = bool(matches) and "probability" in matches[0]
    said = ("probability", "same person") if calibrated else ()
    table = Table("rank", "similarity", *said, *columns, "image_id")
    for number, match in enumerate(matches):
        if calibrated and number and matches[number - 1]["same_person"] > match["same_person"]:
            table.add_section()
        table.add_row(
            str(match["rank"]),
            f"{match['similarity']:.4f}",
            *(
                (
                    f"{100 * match['probability']:.1f} %",
                    "yes" if match["same_person"] else "not known",
                )
                if calibrated
                else ()
            ),
            *(_cell(match.get(name)) for name in columns),
            escape(match["image_id"]),
        )
    return table


def _cell(value: object) -> str:
    return "" if value is None else escape(str(value))

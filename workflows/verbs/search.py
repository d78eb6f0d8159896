"""`muva search`: the images of a gallery that are most similar to a query."""

from __future__ import annotations

from collections.abc import Sequence
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

    from muva.retrieval.gallery import Gallery
    from workflows.session import Session
    from workflows.steps.calibrated import Decision


@click.command("search")
@click.option("--query", required=True, help="An image file, or an image_id of the gallery.")
@click.option(
    "--gallery",
    "file",
    required=True,
    type=click.Path(path_type=Path),
    help="A file of features from `muva embed`.",
)
@click.option("--model", help="A name in the store, synthetic, or a URI. [the gallery's model]")
@click.option(
    "--top",
    default=20,
    show_default=True,
    type=click.IntRange(min=1),
    help="The number of images to find.",
)
@click.option(
    "--far",
    type=float,
    help="For a calibrated model: the share of pairs of different people that may pass for the "
    "same. [0.001]",
)
@click.option("--sheet", type=click.Path(path_type=Path), help="Write a picture of the results.")
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="The folder of the gallery's images. [where they were embedded]",
)
@json_option
@session_options
def search_verb(
    query: str,
    file: Path,
    model: str | None,
    top: int,
    far: float | None,
    sheet: Path | None,
    images: Path | None,
    as_json: bool,
    session: Session,
) -> None:
    """Rank the images of a gallery by their similarity to a query, most similar first.

    A query from the gallery is left out of the results and needs no model. A calibrated model also
    gives the probability that two images show the same person, and separates the matches that pass
    for the same person from those that are not known to.

    \b
    muva search --query person.jpg --gallery crops.parquet --sheet ranked.png
    muva search --query cam1/0007.jpg --gallery crops.parquet --top 5 --json
    """
    from muva.retrieval.gallery import read_gallery

    gallery = read_gallery(file)
    address = gallery.source.model
    if model is not None:
        address = _same_model(session, model, gallery, file)
    index = gallery.index_of(query)
    if index is not None:
        feature = gallery.features[index]
    else:
        feature = _feature_of(query, address, gallery, file)
    indices, cosines = gallery.most_similar(feature, top=top, exclude=index)
    decision = _decision(address, far)
    matches = [
        {
            "rank": rank,
            **gallery.describe(match),
            "similarity": round(float(cosine), 6),
            **_decided(decision, float(cosine)),
        }
        for rank, (match, cosine) in enumerate(zip(indices.tolist(), cosines, strict=True), start=1)
    ]
    described = {"image_id": query} if index is None else gallery.describe(index)
    result = {"query": described, "gallery": f"{file}", "model": address, "matches": matches}
    text = as_text(_table(matches))
    if decision is not None:
        result |= {"threshold": decision.threshold, "far": decision.far}
        text += _verdict(decision, matches)
    if sheet is not None:
        pictures = _images(
            gallery, [*([] if index is None else [index]), *indices.tolist()], images
        )
        query_picture = _open_image(Path(query)) if index is None else pictures.pop(0)
        _draw(sheet, query_picture, described, pictures, matches)
        result["sheet"] = f"{sheet}"
        text += f"\nsheet: {sheet}"
    print_result(result, as_json=as_json, text=text)


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


def _same_model(session: Session, model: str, gallery: Gallery, file: Path) -> str:
    """The address of the named model.

    Raises:
        MuvaError: another model computed the gallery's features.
    """
    from muva.models import model_description
    from workflows.steps.named_model import named_model

    artifact = named_model(session, model)
    if model_description(artifact)["sha256"] != gallery.source.weights:
        raise MuvaError(
            f"{file}: its features were computed by {gallery.source.model}, not by {artifact.uri}. "
            "Features of two models cannot be compared: embed the images with the other model, or "
            "leave out --model"
        )
    return artifact.uri


def _feature_of(query: str, address: str, gallery: Gallery, file: Path) -> np.ndarray:
    from muva.models import model_description

    path = Path(query).expanduser()
    if not path.is_file():
        raise MuvaError(
            f"--query {query}: expected an image file, or one of the {len(gallery)} image ids in "
            f"{file} (for example {gallery.ids[0]}); found neither"
        )
    try:
        bundle = muva.load(address)
        weights = model_description(open_artifact(address))["sha256"]
    except MuvaError as error:
        raise MuvaError(
            f"{error}. {file} names this model; give its present place with --model"
        ) from error
    if weights != gallery.source.weights:
        raise MuvaError(
            f"{address} no longer has the weights that computed {file}. Embed the images again, or "
            "name the model with --model"
        )
    return bundle.embed([path])[0]


def _images(gallery: Gallery, indices: Sequence[int], folder: Path | None) -> list[Image.Image]:
    """The gallery's images with these indices."""
    from muva.data.images import decode_to_show
    from muva.data.shards import StoredImages, open_dataset

    ids = [str(gallery.ids[index]) for index in indices]
    if folder is None and gallery.source.dataset is not None:
        dataset = open_dataset(open_artifact(gallery.source.dataset))
        table = dataset.rows(["image_id"])
        rows = dict(zip(table["image_id"].to_pylist(), table["row"].to_pylist(), strict=True))
        shown = StoredImages(dataset, [rows[i] for i in ids])
        return [decode_to_show(image) for image in shown]
    root = folder or Path(gallery.source.folder or ".")
    return [_open_image(root / image_id) for image_id in ids]


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
    columns = [name for name in ("pid", "camid") if matches and matches[0][name] is not None]
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
            *(str(match[name]) for name in columns),
            escape(match["image_id"]),
        )
    return table

"""`muva search`: the images of a gallery that are most like a query."""

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


@click.command("search")
@click.option("--query", required=True, help="An image file, or an image_id of the gallery.")
@click.option(
    "--gallery",
    "file",
    required=True,
    type=click.Path(path_type=Path),
    help="Features that `muva embed` wrote.",
)
@click.option("--model", help="A name in the store, or a URI. [the one the gallery is of]")
@click.option("--top", default=20, show_default=True, type=click.IntRange(min=1))
@click.option("--sheet", type=click.Path(path_type=Path), help="Write a picture of what was found.")
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Where the gallery's images are now. [where they were embedded]",
)
@json_option
@session_options
def search_verb(
    query: str,
    file: Path,
    model: str | None,
    top: int,
    sheet: Path | None,
    images: Path | None,
    as_json: bool,
    session: Session,
) -> None:
    """Rank a gallery by how much its images are like a query, the most similar first.

    A query from the gallery is left out of the answer; no model is opened for it.

    \b
    muva search --query person.jpg --gallery crops.parquet --sheet ranked.png
    muva search --query cam1/0007.jpg --gallery crops.parquet --top 5 --json
    """
    from muva.retrieval.gallery import read_gallery

    gallery = read_gallery(file)
    address = gallery.source.model
    if model is not None:
        address = _same_model(session, model, gallery, file)
    place = gallery.index_of(query)
    if place is not None:
        feature = gallery.features[place]
    else:
        feature = _feature_of(query, address, gallery, file)
    places, cosines = gallery.most_similar(feature, top=top, exclude=place)
    matches = [
        {"rank": rank, **gallery.describe(found), "similarity": round(float(cosine), 6)}
        for rank, (found, cosine) in enumerate(zip(places.tolist(), cosines, strict=True), start=1)
    ]
    asked = {"image_id": query} if place is None else gallery.describe(place)
    result = {"query": asked, "gallery": f"{file}", "model": address, "matches": matches}
    text = as_text(_table(matches))
    if sheet is not None:
        shown = _images(gallery, [*([] if place is None else [place]), *places.tolist()], images)
        asker = _opened(Path(query)) if place is None else shown.pop(0)
        _draw(sheet, asker, asked, shown, matches)
        result["sheet"] = f"{sheet}"
        text += f"\nsheet: {sheet}"
    print_result(result, as_json=as_json, text=text)


def _same_model(session: Session, model: str, gallery: Gallery, file: Path) -> str:
    """The address of the model that a person names; MuvaError unless the gallery is of it."""
    from muva.models import find_model, model_description

    artifact = find_model(session.store, model)
    if model_description(artifact)["sha256"] != gallery.source.weights:
        raise MuvaError(
            f"{file}: its features are not of {artifact.uri} but of {gallery.source.model}. "
            "Features of two models cannot be compared: embed the images with the model that is "
            "to be used, or leave --model out"
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
            f"{error}. It is the model that {file} names; --model says where it is now"
        ) from error
    if weights != gallery.source.weights:
        raise MuvaError(
            f"{address} is not the model any more that made {file}: its weights are others. Embed "
            "the images again, or name the model with --model"
        )
    return bundle.embed([path])[0]


def _images(gallery: Gallery, places: Sequence[int], folder: Path | None) -> list[Image.Image]:
    """The gallery's images at these places."""
    from muva.data.images import decode_rgb
    from muva.data.shards import open_dataset

    ids = [str(gallery.ids[place]) for place in places]
    if folder is None and gallery.source.dataset is not None:
        dataset = open_dataset(open_artifact(gallery.source.dataset))
        rows = dataset.rows(["image_id"])
        numbers = dict(zip(rows["image_id"].to_pylist(), rows["row"].to_pylist(), strict=True))
        return [decode_rgb(image) for image in dataset.read_images([numbers[i] for i in ids])]
    root = folder or Path(gallery.source.folder or ".")
    return [_opened(root / image_id) for image_id in ids]


def _opened(path: Path) -> Image.Image:
    from muva.data.images import UnreadableImageError, decode_rgb

    try:
        return decode_rgb(path.expanduser().read_bytes())
    except (OSError, UnreadableImageError) as error:
        raise MuvaError(
            f"the image {path} cannot be shown ({error}); --images says where the gallery's images "
            "are now"
        ) from error


def _draw(
    sheet: Path,
    query: Image.Image,
    asked: Any,
    shown: Sequence[Image.Image],
    matches: Sequence[dict[str, Any]],
) -> None:
    from tracking.pictures import Found, search_sheet

    picture = search_sheet(
        query,
        [
            Found(
                image=image,
                name=match["image_id"],
                similarity=match["similarity"],
                pid=match["pid"],
                camid=match["camid"],
            )
            for image, match in zip(shown, matches, strict=True)
        ],
        pid=asked.get("pid"),
        subtitle=asked["image_id"],
    )
    write_sheet(sheet, picture)


def _table(matches: Sequence[dict[str, Any]]) -> Table:
    known = [name for name in ("pid", "camid") if matches and matches[0][name] is not None]
    table = Table("rank", "similarity", *known, "image_id")
    for match in matches:
        table.add_row(
            str(match["rank"]),
            f"{match['similarity']:.4f}",
            *(str(match[name]) for name in known),
            escape(match["image_id"]),
        )
    return table

"""`muva gallery`: galleries that grow, and can be searched and forget people meanwhile."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from muva.errors import MuvaError
from workflows.progress import say, track
from workflows.searching import INT64, run_search, search_options
from workflows.verb import as_text, json_option, print_result, readable, session_options

if TYPE_CHECKING:
    from muva.retrieval.gallery_table import GalleryTable
    from workflows.session import Session
    from workflows.steps.gallery_images import Added, Details

_MAX_LISTED = 5


@click.group("gallery")
def gallery_verb() -> None:
    """Make a gallery, add images, search it, and delete people from it.

    A gallery is a name in the store, a folder (./NAME.lance), or s3://BUCKET/PREFIX.

    \b
    muva gallery create mall
    muva gallery add mall crops
    muva gallery search mall --query person.jpg
    """


@gallery_verb.command("create")
@click.argument("name")
@click.option(
    "--model",
    default="synthetic",
    show_default=True,
    help="A name in the store, a URI, or synthetic, the shipped model.",
)
@json_option
@session_options
def create_verb(name: str, model: str, as_json: bool, session: Session) -> None:
    """Make the empty gallery NAME for features of a model.

    \b
    muva gallery create mall
    muva gallery create s3://my-bucket/galleries/mall --model demo-muva-calibrated
    """
    from workflows.steps.embedding_source import embedding_source
    from workflows.steps.galleries import create_named
    from workflows.steps.named_model import named_model

    gallery = create_named(session, name, embedding_source(named_model(session, model)))
    result = {"gallery": gallery.name, "uri": gallery.uri, "model": gallery.source.model}
    text = (
        f"{gallery.uri}: empty, for features of {gallery.source.model}\n"
        f"muva gallery add {shlex.quote(name)} FOLDER"
    )
    print_result(result, as_json=as_json, text=text)


@gallery_verb.command("add")
@click.argument("name")
@click.argument("images")
@click.option("--camid", type=INT64, help="The camera of all images.")
@click.option("--place", help="The place of all images.")
@click.option("--time", help="The time of all images, in ISO 8601, without an offset UTC.")
@click.option(
    "--list",
    "listed",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A CSV or Parquet file with a column image_id or path, and what is known of each image: "
    "pid, camid, time, place, and any other columns.",
)
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="For a folder: the folder above it that ids are relative to. [the folder]",
)
@json_option
@session_options
def add_verb(
    name: str,
    images: str,
    camid: int | None,
    place: str | None,
    time: str | None,
    listed: Path | None,
    root: Path | None,
    as_json: bool,
    session: Session,
) -> None:
    """Add IMAGES, a folder, a data set or a file of features, to the gallery NAME.

    Of a folder, only images that the gallery lacks are embedded, so the same command adds what has
    arrived since. Others can search, and add, at the same time.

    \b
    muva gallery add mall crops
    muva gallery add mall /data/2026-11-30 --root /data --list /data/2026-11-30.csv
    muva gallery add mall crops.parquet --camid 3 --place "north gate"
    """
    from muva.retrieval.gallery_rows import utc_time
    from workflows.steps.galleries import named_gallery
    from workflows.steps.gallery_images import Details, listed_details

    gallery = named_gallery(session, name)
    details = Details(
        camid=camid,
        place=place,
        time=None if time is None else utc_time(time),
        listed={} if listed is None else listed_details(listed),
    )
    added = _added(session, gallery, images, details, root)
    index = gallery.optimise(on_progress=lambda text: say(f"gallery {gallery.name}: {text}"))
    for entry in added.quarantined[:_MAX_LISTED]:
        say(f"left out: {entry['image_id']}: {entry['reason']}")
    if (more := len(added.quarantined) - _MAX_LISTED) > 0:
        say(f"left out: {more} more, which --json lists")
    result = {
        "gallery": gallery.name,
        **asdict(added),
        "total": len(gallery),
        "index": None if index is None else asdict(index),
    }
    text = f"{gallery.name}: {_images(added.images)} added, {result['total']:,} in total"
    if added.present:
        text += f"; {added.present} were there already and stay as they are"
    print_result(result, as_json=as_json, text=text)


@gallery_verb.command("search")
@click.argument("name")
@search_options
def search_verb(name: str, **options: Any) -> None:
    """Rank the images of the gallery NAME by their similarity to a query; see `muva search`.

    \b
    muva gallery search mall --query person.jpg
    muva gallery search mall --query person.jpg --camid 3 --after 2026-11-30T08:00
    """
    run_search(name, **options)


@gallery_verb.command("forget")
@click.argument("name")
@click.option("--pid", "pids", type=INT64, multiple=True, help="The person's id; may be repeated.")
@click.option("--image", "images", multiple=True, help="The id of an image; may be repeated.")
@click.option("--yes", is_flag=True, help="Delete. Without it, only count what would be deleted.")
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
    """Delete people, or images, from the gallery NAME.

    Their features leave the disk, in earlier versions of the gallery too. A search that began
    before may have to be repeated.

    \b
    muva gallery forget mall --pid 17
    muva gallery forget mall --image cam1/0007.jpg --yes
    """
    from muva.retrieval.gallery_rows import of_people
    from workflows.steps.galleries import named_gallery

    if not pids and not images:
        raise click.UsageError("nobody is given: expected --pid PID or --image IMAGE_ID")
    gallery = named_gallery(session, name)
    chosen = of_people(pids, images)
    found, folders = gallery.count(chosen), sorted(gallery.folders(chosen))
    if found == 0 and not yes:
        raise MuvaError(f"{gallery.uri}: contains nothing of these people and images")
    if yes:
        found = gallery.forget(pids=pids, image_ids=images)
    result = {
        "gallery": gallery.name,
        "forgotten": yes,
        "images": found,
        "left": len(gallery),
        "folders": folders,
    }
    text = (
        f"{gallery.name}: {_images(found)} deleted, {result['left']:,} left"
        if yes
        else f"{gallery.name}: {_images(found)} to be deleted; --yes deletes them."
    )
    if folders:
        text += "\nTheir pictures are still in these folders, from which they would be added again:"
        text += "".join(f"\n  {folder}" for folder in folders)
    print_result(result, as_json=as_json, text=text)


@gallery_verb.command("list")
@click.argument("names", nargs=-1)
@json_option
@session_options
def list_verb(names: tuple[str, ...], as_json: bool, session: Session) -> None:
    """List the galleries in the store, or those that are NAMED.

    \b
    muva gallery list
    muva gallery list s3://my-bucket/galleries/mall
    """
    from workflows.steps.galleries import gallery_names, named_gallery

    rows = readable(
        names or gallery_names(session), lambda name: _described(named_gallery(session, name))
    )
    table = Table("gallery", "images", "people", "cameras", "places", "from", "to", "model")
    for row in rows:
        table.add_row(
            row["gallery"],
            f"{row['images']:,}",
            f"{row['people']:,}",
            str(len(row["camids"])),
            str(len(row["places"])),
            *("" if row[name] is None else row[name][:16] for name in ("first", "last")),
            row["model"].rpartition("/")[2],
        )
    print_result(rows, as_json=as_json, text=as_text(table) if rows else "no galleries")


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _described(gallery: GalleryTable) -> dict[str, Any]:
    summary, index = gallery.summary(), gallery.index()
    return {
        "gallery": gallery.name,
        "uri": gallery.uri,
        **asdict(summary),
        "first": None if summary.first is None else summary.first.isoformat(),
        "last": None if summary.last is None else summary.last.isoformat(),
        "model": gallery.source.model,
        "index": None if index is None else asdict(index),
    }


def _added(
    session: Session, gallery: GalleryTable, images: str, details: Details, root: Path | None
) -> Added:
    from muva.data.artifacts import find_artifact
    from muva.retrieval.gallery import read_gallery
    from workflows.steps.embedding_source import model_of
    from workflows.steps.gallery_images import add_dataset, add_features, add_folder

    path = Path(images).expanduser()
    if not path.is_dir() and root is not None:
        raise click.UsageError(f"--root is for folders; {images} is none.")
    if path.is_file():
        return add_features(gallery, read_gallery(path), details)
    model = model_of(gallery.source)
    if not path.is_dir():
        dataset = find_artifact(session.store, "datasets", images)
        return add_dataset(session, gallery, dataset, model, details)
    with track(f"add {images} to {gallery.name}") as progress:
        return add_folder(gallery, path, model, details, root=root, on_progress=progress.update)

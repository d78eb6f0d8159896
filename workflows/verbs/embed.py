"""`muva embed`: writes the features of images to a file for `muva search` and other programs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from muva.data.artifacts import Artifact, find_artifact
from muva.errors import MuvaError, SettingsError
from workflows.progress import say, track
from workflows.verb import json_option, print_result, session_options

if TYPE_CHECKING:
    from workflows.session import Session
    from workflows.steps.embed_folder import Embedded

_MAX_LISTED = 5


@click.command("embed")
@click.argument("images")
@click.option(
    "--model",
    default="synthetic",
    show_default=True,
    help="A name in the store, a URI, or synthetic, the shipped model.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write, .parquet.",
)
@click.option(
    "--split",
    type=click.Choice(["test", "train"]),
    help="For a data set: query and gallery, or the training images. [test, if it exists]",
)
@json_option
@session_options
def embed_verb(
    images: str, model: str, out: Path, split: str | None, as_json: bool, session: Session
) -> None:
    """Write the features of IMAGES, a folder or a data set in the store, to a file.

    The file contains ids and features, for a data set also pids, camids and splits, and the name of
    the model. A folder is searched recursively, also through links; what cannot be
    read is reported, and files that are skipped are counted.

    \b
    muva embed crops --out crops.parquet
    muva embed market1501 --model muva --out market.parquet
    muva evaluate --features market.parquet
    """
    from muva.data.benchmarks.accounting import skipped_text, warnings
    from muva.retrieval.gallery import write_gallery
    from workflows.steps.embed_folder import embed_dataset, embed_folder
    from workflows.steps.named_model import named_model

    _check_out(out)
    folder = _folder(images)
    if folder is not None and split is not None:
        raise click.UsageError(f"--split is for data sets; {images} is a folder.")
    artifact = named_model(session, model)
    if folder is None:
        dataset = _dataset(session, images)
        train = split == "train" or (split is None and _has_only_training_images(dataset))
        embedded = embed_dataset(session, dataset, artifact, train=train)
    else:
        with track(f"embed {folder} with {artifact.name}") as progress:
            embedded = embed_folder(folder, artifact, on_progress=progress.update)
    write_gallery(out, embedded.gallery)
    _report_quarantined(embedded)
    for line in warnings(dataclasses.replace(embedded.account, unreadable=[])):
        say(line)
    gallery = embedded.gallery
    result = {
        "features": f"{out}",
        "images": len(gallery),
        "feature_dim": gallery.source.feature_dim,
        "model": gallery.source.model,
        "people_known": gallery.pids is not None,
        "quarantined": embedded.quarantined,
        "skipped": embedded.account.skipped,
    }
    text = (
        f"{out}: {len(gallery)} images, {gallery.source.feature_dim}-dimensional features\n"
        f"muva search --query IMAGE --gallery {out}"
    )
    if embedded.account.skipped:
        text += f"\n{skipped_text(embedded.account.skipped)}"
    if gallery.pids is not None:
        text += f"\nmuva evaluate --features {out}"
    print_result(result, as_json=as_json, text=text)


def _check_out(out: Path) -> None:
    """Check the output file's name before anything is computed."""
    if out.suffix.lower() != ".parquet":
        raise SettingsError(f"--out {out}: expected a name that ends in .parquet")
    if not out.absolute().parent.is_dir():
        raise MuvaError(f"--out {out}: the folder {out.absolute().parent} does not exist")


def _folder(images: str) -> Path | None:
    """The folder with this path; None if there is none, and the name is a data set's."""
    path = Path(images).expanduser()
    return path if path.is_dir() else None


def _dataset(session: Session, name: str) -> Artifact:
    try:
        return find_artifact(session.store, "datasets", name)
    except MuvaError as error:
        raise MuvaError(f"{name} is not a folder, and {error}") from error


def _has_only_training_images(dataset: Artifact) -> bool:
    from muva.data.shards import open_dataset

    return set(open_dataset(dataset).summary.splits) == {"train"}


def _report_quarantined(embedded: Embedded) -> None:
    lines = [": ".join(entry.values()) for entry in embedded.quarantined[:_MAX_LISTED]]
    if more := len(embedded.quarantined) - len(lines):
        lines.append(f"and {more} more, which --json lists")
    if lines:
        say("Left out because they cannot be read:\n" + "\n".join(f"  {line}" for line in lines))

"""`muva embed`: the features of images by a model, in a file that others read and search in.

A folder is embedded by this process, with all of its cores or its GPU: nothing needs to be started
or kept. A data set is embedded by Ray tasks, part by part, as evaluation does it, over all machines
there are; what is embedded already, for an evaluation too, is taken as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

import muva
from muva.config import ModelConfig
from muva.data.artifacts import Artifact, find_artifact
from muva.data.benchmarks.listing import IMAGE_SUFFIXES, image_files
from muva.data.images import UnreadableImageError, decode_rgb
from muva.data.shards import open_dataset
from muva.errors import MuvaError, SettingsError
from muva.models import described, find_model
from muva.retrieval.features import roomy_array
from muva.retrieval.gallery import EmbeddedBy, Gallery, write_gallery
from workflows.embedding import Judged, features_step, people_of
from workflows.progress import say, track
from workflows.ranking import FeatureParts
from workflows.session import Session, json_option, print_result, session_options

CHUNK_IMAGES = 256
"""Images of a folder that are decoded at a time."""
_MOST_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What came of some images."""

    gallery: Gallery
    set_aside: list[dict[str, str]] = field(default_factory=list)
    """Unreadable images: `image_id`, `reason`."""


def embed_folder(
    folder: Path,
    model: Artifact,
    *,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Embedded:
    """Embeds all image files below a folder, in order; those that cannot be read are set aside.

    Nothing is known of their people. `tell` hears of images that are done, and of all. Raises
    MuvaError where no image can be read.
    """
    files = list(image_files(folder))
    if not files:
        raise MuvaError(
            f"{folder}: expected image files in it or below it ({', '.join(sorted(IMAGE_SUFFIXES))}"
            "), found none"
        )
    bundle = muva.load(model.uri).to("cuda" if torch.cuda.is_available() else "cpu")
    features = roomy_array((len(files), bundle.feature_dim), np.float32)
    ids: list[str] = []
    set_aside: list[dict[str, str]] = []
    for first, images in _decoded(files):
        readable = []
        for file, image in zip(files[first : first + len(images)], images, strict=True):
            image_id = file.relative_to(folder).as_posix()
            if isinstance(image, str):
                set_aside.append({"image_id": image_id, "reason": image})
            else:
                ids.append(image_id)
                readable.append(image)
        features[len(ids) - len(readable) : len(ids)] = bundle.embed(readable)
        tell(first + len(images), len(files))
    if not ids:
        raise MuvaError(
            f"{folder}: none of its {len(files)} images can be read; the first: "
            f"{': '.join(set_aside[0].values())}"
        )
    return Embedded(
        gallery=Gallery(
            features=features[: len(ids)],
            ids=np.array(ids),
            pids=None,
            camids=None,
            split=None,
            by=_by(model, folder=f"{folder.absolute()}"),
        ),
        set_aside=set_aside,
    )


def _decoded(files: Sequence[Path]) -> Iterator[tuple[int, list[Image.Image | str]]]:
    """Stretches of files: the number of the first, and their images, or why there is none."""
    with ThreadPoolExecutor() as threads:
        for first in range(0, len(files), CHUNK_IMAGES):
            yield first, list(threads.map(_decode, files[first : first + CHUNK_IMAGES]))


def _decode(file: Path) -> Image.Image | str:
    try:
        return decode_rgb(file.read_bytes())
    except OSError as error:
        return f"cannot be opened: {error.strerror or error}"
    except UnreadableImageError as error:
        return str(error)


def embed_dataset(session: Session, dataset: Artifact, model: Artifact, *, train: bool) -> Embedded:
    """Embeds a data set's query and gallery, or with `train` its images to learn from.

    The latter are no query and no gallery: whoever evaluates them asks with each for all others.
    """
    config = ModelConfig.model_validate(described(model)["model"])
    judged = Judged(dataset=dataset, held_out=train)
    done = features_step(session, model.uri, judged, config, name=model.name)
    who = people_of(judged.rows())
    return Embedded(
        gallery=Gallery(
            features=FeatureParts(done.artifact).read(np.arange(len(who))),
            ids=who.ids,
            pids=who.pids,
            camids=who.camids,
            split=None if train else who.split,
            by=_by(model, dataset=dataset.uri),
        )
    )


def _by(model: Artifact, *, folder: str | None = None, dataset: str | None = None) -> EmbeddedBy:
    facts = described(model)
    return EmbeddedBy(
        model=model.uri,
        weights=facts["sha256"],
        image_height=facts["model"]["image_height"],
        image_width=facts["model"]["image_width"],
        feature_dim=facts["feature_dim"],
        folder=folder,
        dataset=dataset,
    )


@click.command("embed")
@click.argument("images")
@click.option("--model", required=True, help="A name in the store, or a URI.")
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write, .parquet.",
)
@click.option(
    "--split",
    type=click.Choice(["test", "train"]),
    help="Of a data set: query and gallery, or the images to learn from. [test, if there]",
)
@json_option
@session_options
def embed_verb(
    images: str, model: str, out: Path, split: str | None, as_json: bool, session: Session
) -> None:
    """Write the features of IMAGES, a folder or a data set of the store, by a model.

    The file has ids, features and, of a data set, pids, camids and split; it says which model made
    it. Of a folder all images in it and below it are taken, those that cannot be read are named.

    \b
    muva embed crops --model muva --out crops.parquet
    muva embed market1501 --model muva --out market.parquet
    muva evaluate --features market.parquet
    """
    _check_out(out)
    folder = _folder(images)
    if folder is not None and split is not None:
        raise click.UsageError(f"--split is for data sets; {images} is a folder.")
    found = find_model(session.store, model)
    if folder is None:
        dataset = _dataset(session, images)
        train = split == "train" or (split is None and _only_to_learn_from(dataset))
        embedded = embed_dataset(session, dataset, found, train=train)
    else:
        with track(f"embed {folder} by {found.name}") as progress:
            embedded = embed_folder(folder, found, tell=progress.update)
    write_gallery(out, embedded.gallery)
    _warn(embedded)
    gallery = embedded.gallery
    result = {
        "features": f"{out}",
        "images": len(gallery),
        "feature_dim": gallery.by.feature_dim,
        "model": gallery.by.model,
        "people_known": gallery.pids is not None,
        "set_aside": embedded.set_aside,
    }
    text = (
        f"{out}: {len(gallery)} images, features {gallery.by.feature_dim} wide\n"
        f"muva search --query IMAGE --gallery {out}"
    )
    if gallery.pids is not None:
        text += f"\nmuva evaluate --features {out}"
    print_result(result, as_json=as_json, text=text)


def _check_out(out: Path) -> None:
    """Before anything is computed."""
    if out.suffix.lower() != ".parquet":
        raise SettingsError(f"--out {out}: expected a name that ends in .parquet")
    if not out.absolute().parent.is_dir():
        raise MuvaError(f"--out {out}: there is no folder {out.absolute().parent}")


def _folder(images: str) -> Path | None:
    """The folder that is meant, None for a data set."""
    path = Path(images).expanduser()
    return path if path.is_dir() else None


def _dataset(session: Session, name: str) -> Artifact:
    try:
        return find_artifact(session.store, "datasets", name)
    except MuvaError as error:
        raise MuvaError(f"{name} is no folder, and {error}") from error


def _only_to_learn_from(dataset: Artifact) -> bool:
    return set(open_dataset(dataset).summary.splits) == {"train"}


def _warn(embedded: Embedded) -> None:
    named = [": ".join(entry.values()) for entry in embedded.set_aside[:_MOST_NAMED]]
    if more := len(embedded.set_aside) - len(named):
        named.append(f"and {more} more, which --json names")
    if named:
        say("Set aside, for they cannot be read:\n" + "\n".join(f"  {line}" for line in named))

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

import numpy as np
import torch
from PIL import Image

import muva
from muva.config import ModelConfig
from muva.data.artifacts import Artifact
from muva.data.benchmarks.listing import IMAGE_SUFFIXES, image_files
from muva.data.images import UnreadableImageError, decode_rgb
from muva.errors import MuvaError
from muva.models import model_description
from muva.retrieval.features import roomy_array
from muva.retrieval.gallery import EmbeddedBy, Gallery
from workflows.session import Session
from workflows.steps.embed import Judged, features_step, people_of
from workflows.steps.rank import FeatureParts

CHUNK_IMAGES = 256
"""Images of a folder that are decoded at a time."""


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
    config = ModelConfig.model_validate(model_description(model)["model"])
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
    facts = model_description(model)
    return EmbeddedBy(
        model=model.uri,
        weights=facts["sha256"],
        image_height=facts["model"]["image_height"],
        image_width=facts["model"]["image_width"],
        feature_dim=facts["feature_dim"],
        folder=folder,
        dataset=dataset,
    )

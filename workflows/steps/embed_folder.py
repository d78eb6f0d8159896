"""The features of images by a model, for a file that other programs read and search.

A folder is embedded by this process, with all CPU cores or the GPU, and without a cluster or a
store. A data set is embedded by Ray tasks, part by part, as in an evaluation, on all nodes of the
cluster; finished parts are reused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

import numpy as np
import torch

import muva
from muva.config import ModelConfig
from muva.data.artifacts import Artifact
from muva.data.benchmarks.accounting import Account, account_for, skipped_text
from muva.data.benchmarks.listing import image_files
from muva.data.images import UnreadableImageError, decode_resized
from muva.data.records import encoded_file
from muva.errors import MuvaError
from muva.model.bundle import Embedder
from muva.models import model_description
from muva.retrieval.features import allocate_or_memmap
from muva.retrieval.gallery import Gallery
from workflows.session import Session
from workflows.steps.embed import EvaluationSet, embed, features_step, image_labels
from workflows.steps.embedding_source import embedding_source
from workflows.steps.rank import FeatureParts

CHUNK_IMAGES = 256
"""How many images of a folder are decoded and resized before they are embedded."""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """The features of some images."""

    gallery: Gallery
    quarantined: list[dict[str, str]] = field(default_factory=list)
    """Unreadable images, and folders and links that cannot be opened: `image_id`, `reason`."""
    account: Account = field(default_factory=Account)
    """The files of a folder that were skipped."""


def embed_folder(
    folder: Path,
    model: Artifact,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Embedded:
    """Embed all image files below a folder, in order; what cannot be read is quarantined.

    There are no identity labels. `on_progress` is called with the number of finished images and of
    all images. Raises MuvaError if no image can be read.
    """
    files, account = files_in(folder)
    bundle = model_for_files(model)
    features = allocate_or_memmap((len(files), bundle.feature_dim), np.float32)
    ids: list[str] = []
    quarantined = list(account.unreadable)
    for chunk in embedded_chunks(files, folder, bundle, on_progress=on_progress):
        features[len(ids) : len(ids) + len(chunk.ids)] = chunk.features
        ids += chunk.ids
        quarantined += chunk.quarantined
    if not ids:
        raise MuvaError(
            f"{folder}: none of its {len(files)} images can be read; the first: "
            f"{': '.join(quarantined[len(account.unreadable)].values())}"
        )
    return Embedded(
        gallery=Gallery(
            features=features[: len(ids)],
            ids=np.array(ids),
            pids=None,
            camids=None,
            split=None,
            source=embedding_source(model, folder=f"{folder.absolute()}"),
        ),
        quarantined=quarantined,
        account=account,
    )


def files_in(folder: Path) -> tuple[list[Path], Account]:
    """The image files below a folder, in order, and an account of the other ones.

    Raises:
        MuvaError: there are none.
    """
    files = list(image_files(folder))
    account = account_for(folder, files)
    if not files:
        found = [skipped_text(account.skipped)]
        found += [": ".join(entry.values()) for entry in account.unreadable[:3]]
        raise MuvaError(
            f"{folder}: expected image files in it or below it, found "
            f"{'; '.join(filter(None, found)) or 'none'}"
        )
    return files, account


def model_for_files(model: Artifact) -> Embedder:
    """A model on this machine's GPU, or on its CPU where it has none."""
    return muva.load(model.uri).to("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """The features of up to `CHUNK_IMAGES` files."""

    ids: list[str]
    features: np.ndarray
    """(M, F), of the images that can be read."""
    quarantined: list[dict[str, str]]
    """Those that cannot."""


def embedded_chunks(
    files: Sequence[Path],
    folder: Path,
    model: Embedder,
    *,
    on_progress: Callable[[int, int], None],
) -> Iterator[Chunk]:
    """Embed files, in order; ids are their paths relative to the folder."""
    for first, images in _resized(files, model):
        ids, readable, quarantined = [], [], []
        for file, image in zip(files[first : first + len(images)], images, strict=True):
            image_id = file.relative_to(folder).as_posix()
            if isinstance(image, str):
                quarantined.append({"image_id": image_id, "reason": image})
            else:
                ids.append(image_id)
                readable.append(image)
        before = first + len(quarantined)
        features = model.embed(
            readable, progress=lambda done, before=before: on_progress(before + done, len(files))
        )
        on_progress(first + len(images), len(files))
        yield Chunk(ids=ids, features=features, quarantined=quarantined)


def _resized(
    files: Sequence[Path], model: Embedder
) -> Iterator[tuple[int, list[np.ndarray | str]]]:
    """Chunks of files: the index of the first, and their images or the reasons for failures.

    The images have the model's input size: at their own, a few photos would fill the memory.
    """
    with ThreadPoolExecutor() as threads:
        for first in range(0, len(files), CHUNK_IMAGES):
            chunk = files[first : first + CHUNK_IMAGES]
            yield first, list(threads.map(_decode, chunk, repeat(model)))


def _decode(file: Path, model: Embedder) -> np.ndarray | str:
    try:
        return decode_resized(
            encoded_file(file),
            height=model.image_height,
            width=model.image_width,
            interpolation="bilinear",
        )
    except OSError as error:
        return f"cannot be opened: {error.strerror or error}"
    except UnreadableImageError as error:
        return str(error)


def embed_dataset(session: Session, dataset: Artifact, model: Artifact, *, train: bool) -> Embedded:
    """Embed the query and gallery of a data set, or with `train` its training images.

    Training images are neither query nor gallery: in an evaluation each is a query for all others.
    """
    config = ModelConfig.model_validate(model_description(model)["model"])
    images = EvaluationSet(dataset=dataset, held_out=train)
    step = features_step(session, model.uri, images, config, name=model.name)
    result = embed(session, step, model.uri, images, config)
    labels = image_labels(images.rows())
    return Embedded(
        gallery=Gallery(
            features=FeatureParts(result.artifact).read(np.arange(len(labels))),
            ids=labels.ids,
            pids=labels.pids,
            camids=labels.camids,
            split=None if train else labels.split,
            source=embedding_source(model, dataset=dataset.uri),
        )
    )

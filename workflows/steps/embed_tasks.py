"""Tasks that embed images: parts of an evaluation set, and a few images for the domain map."""

from __future__ import annotations

import functools

import numpy as np

import muva
from muva.config import ModelConfig
from muva.data.artifacts import Artifact
from muva.data.shards import StoredImages, open_dataset
from muva.model.bundle import Embedder, pretrained_clip
from workflows.runtime.messages import MessageQueue
from workflows.runtime.tasks import assigned_cpus
from workflows.steps.embed import UNTRAINED, EvaluationSet, Part
from workflows.steps.rank import FeatureParts
from workflows.steps.training_messages import default_device


def embed_part(
    model: str,
    config: ModelConfig,
    images: EvaluationSet,
    part: Part,
    artifact: Artifact,
    queue: MessageQueue,
) -> None:
    """Embed and write one part; the queue gets its first image and how many are embedded."""
    encoded = StoredImages(open_dataset(images.dataset), part.rows)
    embedder = open_embedder(model, config.image_height, config.image_width, config.stride)
    decoders = assigned_cpus() if embedder.device.type == "cuda" else 0
    features = embedder.embed(
        encoded, decoders=decoders, progress=lambda done: queue.send((part.first, done))
    )
    FeatureParts(artifact).write(part.first, features)


def some_features(model: str, config: ModelConfig, dataset: Artifact, count: int) -> np.ndarray:
    """Features of `count` images of a data set, evenly spaced over its rows."""
    rows = open_dataset(dataset).rows(["image_id"])["row"].to_numpy()
    chosen = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]
    embedder = open_embedder(model, config.image_height, config.image_width, config.stride)
    return embedder.embed(StoredImages(open_dataset(dataset), chosen))


@functools.lru_cache(maxsize=2)
def open_embedder(model: str, height: int, width: int, stride: int) -> Embedder:
    """The model, cached for the next task of this process; the sizes apply to `clip:NAME` only."""
    device = default_device()
    if not model.startswith(UNTRAINED):
        return muva.load(model).to(device)
    clip = pretrained_clip(
        model.removeprefix(UNTRAINED), image_height=height, image_width=width, stride=stride
    )
    return clip.to(device)

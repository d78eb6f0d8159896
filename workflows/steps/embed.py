"""A target's images, and their features: embedded part by part by Ray tasks.

A part that is written is never computed again.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from PIL import Image

import muva
from muva.config import ModelConfig
from muva.data.artifacts import Artifact, fingerprint, open_artifact
from muva.data.images import decode_rgb
from muva.data.protocols import query_gallery
from muva.data.shards import open_dataset
from muva.errors import MuvaError
from muva.model.bundle import Embedder, pretrained_clip
from muva.retrieval.features import Features
from workflows.progress import track
from workflows.runtime.cluster import ANYWHERE, cores_per_gpu, gpus, ray_cluster
from workflows.runtime.messages import Board, gather
from workflows.session import Session
from workflows.steps.rank import FEATURES_FORMAT, PART_IMAGES, FeatureParts
from workflows.steps.step import Done, Step, do_step

UNTOUCHED = "clip:"
"""Before a CLIP's name: the model is that CLIP as it is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """The images that a model is judged on."""

    dataset: Artifact
    held_out: bool

    @property
    def splits(self) -> tuple[str, ...]:
        """Those of the data set that they are from."""
        return ("train",) if self.held_out else ("query", "gallery")

    def rows(self) -> pa.Table:
        """Every judged image: image_id, pid, camid, split (query or gallery), row."""
        dataset = open_dataset(self.dataset)
        rows = dataset.rows(["image_id", "pid", "camid", "split"], splits=self.splits)
        if not len(rows):
            raise MuvaError(
                f"{dataset.name}: expected images in {' and '.join(self.splits)}, found none (it "
                f"has {', '.join(dataset.summary.splits)}): is it a data set to test on?"
            )
        return query_gallery(rows) if self.held_out else rows

    def images(self, rows: np.ndarray) -> list[Image.Image]:
        """The images of the data set's rows of these numbers."""
        encoded = open_dataset(self.dataset).read_images(rows)
        return [decode_rgb(image) for image in encoded]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
    """Images that one task embeds: some of the judged ones, which follow each other."""

    first: int
    """Place of its first image among the judged ones."""
    rows: np.ndarray
    """Numbers of the data set's rows: no task reads the rows of all others."""


def features_step(
    session: Session, model: str, judged: Judged, config: ModelConfig, *, name: str
) -> Done:
    """The features of the judged images by a model: a URI, or `clip:NAME`."""
    dataset = open_dataset(judged.dataset)
    settings = {"model": model_settings(model, config), "splits": judged.splits}
    artifact = Artifact(
        session.store,
        "features",
        f"{dataset.name}-by-{name}",
        fingerprint([settings, dataset.name, dataset.fingerprint, FEATURES_FORMAT]),
    )

    def work(_: object) -> dict[str, Any]:
        rows = judged.rows()["row"].to_numpy()
        count = len(rows)
        parts = [
            _Part(first=first, rows=rows[first : first + PART_IMAGES])
            for first in range(0, count, PART_IMAGES)
        ]
        waiting = [
            part
            for part in parts
            if not artifact.store.exists(artifact.key(FeatureParts.name(part.first)))
        ]
        done = count - sum(len(part.rows) for part in waiting)
        with ray_cluster(), track(f"embed {dataset.name} by {name}") as progress:
            board = Board()

            def show(images: int) -> None:
                nonlocal done
                done += images
                progress.update(done, count)

            embed = _embed
            if gpus():
                embed = _embed.options(num_gpus=1, num_cpus=cores_per_gpu())
            tasks = [embed.remote(model, config, judged, p, artifact, board) for p in waiting]
            gather(tasks, board=board, on_message=show)
        return {"images": count}

    inputs = {"dataset": judged.dataset.address}
    if not model.startswith(UNTOUCHED):
        inputs["model"] = open_artifact(model).address
    step = Step(
        label=f"embed {dataset.name} by {name}",
        artifact=artifact,
        format_version=FEATURES_FORMAT,
        config=settings,
        inputs=inputs,
    )
    # Features are a means: the run of the evaluation that uses them tells all there is to tell.
    return do_step(step, session=dataclasses.replace(session, tracking_uri=None), work=work)


def model_settings(model: str, config: ModelConfig) -> Any:
    """What the features depend on besides the images."""
    if not model.startswith(UNTOUCHED):
        return open_artifact(model).address
    return [model, config.image_height, config.image_width, config.stride]


@ray.remote(max_retries=3, scheduling_strategy=ANYWHERE)
def _embed(
    model: str,
    config: ModelConfig,
    judged: Judged,
    part: _Part,
    artifact: Artifact,
    board: Board,
) -> None:
    """Embeds and writes one part."""
    torch.set_num_threads(1)  # as few as a task has cores without a GPU: sums depend on it
    images = open_dataset(judged.dataset).read_images(part.rows)
    embedder = open_embedder(model, config.image_height, config.image_width, config.stride)
    decoders = 0
    if embedder.device.type == "cuda":
        decoders = int(ray.get_runtime_context().get_assigned_resources()["CPU"])
    FeatureParts(artifact).write(part.first, embedder.embed(images, decoders=decoders))
    board.post(len(images))


@functools.lru_cache(maxsize=2)
def open_embedder(model: str, height: int, width: int, stride: int) -> Embedder:
    """The model, kept for the next task of this process; sizes are for a CLIP as it is."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not model.startswith(UNTOUCHED):
        return muva.load(model).to(device)
    return pretrained_clip(
        model.removeprefix(UNTOUCHED),
        image_height=height,
        image_width=width,
        stride=stride,
    ).to(device)


def people_of(rows: pa.Table) -> Features:
    """Who is on the judged images, without features; cameras are left out where unknown."""
    camids = rows["camid"]
    return Features(
        features=np.empty((len(rows), 0), np.float32),
        ids=np.asarray(rows["image_id"].to_pylist()),
        pids=rows["pid"].to_numpy(),
        camids=None if camids.null_count else camids.to_numpy(),
        split=np.asarray(rows["split"].to_pylist()),
    )

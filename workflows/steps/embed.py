"""The features of a data set's images as a step, which Ray tasks compute part by part.

A finished part is never computed again. The tasks run `workflows.steps.embed_tasks`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from muva.config import ModelConfig, clip_editions
from muva.data import formats
from muva.data.artifacts import Artifact, open_artifact
from muva.data.lineage import Role
from muva.data.shards import StoredImages, open_dataset
from muva.errors import MuvaError
from workflows.progress import track
from workflows.session import Session
from workflows.steps.step import Step, StepResult, run_step

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from PIL import Image

    from muva.retrieval.features import Features

UNTRAINED = "clip:"
"""Prefix of a CLIP's name: the model is that CLIP without further training."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """The images that a model is evaluated on."""

    dataset: Artifact
    held_out: bool
    """Evaluate on the training images of a source that the model was not trained on."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the data set from which the images come."""
        return ("train",) if self.held_out else ("query", "gallery")

    def rows(self) -> pa.Table:
        """Every image: image_id, pid, camid, split (query or gallery), row."""
        from muva.data.protocols import query_gallery

        dataset = open_dataset(self.dataset)
        rows = dataset.rows(["image_id", "pid", "camid", "split"], splits=self.splits)
        if not len(rows):
            raise MuvaError(
                f"{dataset.name}: expected images in {' and '.join(self.splits)}, found none (it "
                f"has {', '.join(dataset.summary.splits)}). Is it a data set to test on?"
            )
        return query_gallery(rows) if self.held_out else rows

    def images(self, rows: np.ndarray) -> list[Image.Image]:
        """The images in these rows of the data set, to show them."""
        from muva.data.images import decode_to_show

        encoded = StoredImages(open_dataset(self.dataset), rows)
        return [decode_to_show(image) for image in encoded]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Consecutive images of an evaluation set, which one task embeds."""

    first: int
    """Index of the first image within the evaluation set."""
    rows: np.ndarray
    """Row numbers of the data set, so that no task has to read the rows of all others."""


def features_step(
    session: Session, model: str, images: EvaluationSet, config: ModelConfig, *, name: str
) -> Step:
    """The declaration of the features of these images by a model: a URI, or `clip:NAME`."""
    dataset = open_dataset(images.dataset)
    settings, inputs = model_identity(model, config)
    return Step(
        title=f"embed {dataset.name} with {name}",
        store=session.store,
        kind="features",
        name=f"{dataset.name}-by-{name}",
        format_version=formats.FEATURES,
        settings={**settings, "splits": list(images.splits)},
        inputs={Role.DATASET: [images.dataset], **inputs},
    )


def embed(
    session: Session, step: Step, model: str, images: EvaluationSet, config: ModelConfig
) -> StepResult:
    """The features of a declared step, embedded if they are missing."""

    def work(_: object) -> dict[str, Any]:
        from workflows.runtime.cluster import cores_per_gpu, gpus, ray_cluster
        from workflows.runtime.messages import MessageQueue
        from workflows.runtime.tasks import run_tasks
        from workflows.steps.embed_tasks import embed_part
        from workflows.steps.rank import PART_IMAGES, FeatureParts

        rows = images.rows()["row"].to_numpy()
        count = len(rows)
        parts = [
            Part(first=first, rows=rows[first : first + PART_IMAGES])
            for first in range(0, count, PART_IMAGES)
        ]
        missing = [
            part
            for part in parts
            if not step.artifact.store.exists(step.artifact.key(FeatureParts.name(part.first)))
        ]
        done = count - sum(len(part.rows) for part in missing)
        with ray_cluster(), track(step.title) as progress:
            queue = MessageQueue()
            finished: dict[int, int] = {}

            def show(message: tuple[int, int]) -> None:
                first, embedded = message
                finished[first] = embedded  # a part whose node was lost starts again
                progress.update(done + sum(finished.values()), count)

            run_tasks(
                embed_part,
                [(model, config, images, part, step.artifact, queue) for part in missing],
                cpus=cores_per_gpu() if gpus() else 1,
                gpus=1 if gpus() else 0,
                queue=queue,
                on_message=show,
            )
        return {"images": count}

    # Features are intermediate results: the evaluation that uses them logs what matters.
    return run_step(step, session=dataclasses.replace(session, tracking_uri=None), work=work)


def model_identity(
    model: str, config: ModelConfig
) -> tuple[dict[str, Any], dict[Role, list[Artifact]]]:
    """What features depend on in addition to the images, as settings and inputs of a step."""
    if not model.startswith(UNTRAINED):
        return {}, {Role.MODEL: [open_artifact(model)]}
    clip = model.removeprefix(UNTRAINED)
    sizes = [config.image_height, config.image_width, config.stride]
    return {"clip": [clip, *sizes], **clip_editions(clip)}, {}


def image_labels(rows: pa.Table) -> Features:
    """Ids, pids and camids of an evaluation set, without features.

    Without camids if any camera is unknown.
    """
    import numpy as np

    from muva.retrieval.features import Features

    camids = rows["camid"]
    return Features(
        features=np.empty((len(rows), 0), np.float32),
        ids=np.asarray(rows["image_id"].to_pylist()),
        pids=rows["pid"].to_numpy(),
        camids=None if camids.null_count else camids.to_numpy(),
        split=np.asarray(rows["split"].to_pylist()),
    )

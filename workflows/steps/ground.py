"""`muva ground`: an expert finds the body parts of every image; its answers are pseudo-labels.

A shard's labels are written when it is done, so work that stops goes on with the shards that are
missing, and drivers that ground the same data set at once share its shards: what one has finished
no other computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from muva.config import GroundingConfig
from muva.data.artifacts import Artifact, fingerprint
from muva.data.images import decode_rgb
from muva.data.shards import Dataset, open_dataset
from muva.grounding.experts import choose_expert
from muva.grounding.ground import label_config
from muva.grounding.labels import (
    LABEL_FORMAT,
    allowed_failures,
    finished_parts,
    open_labels,
    summarise_labels,
)
from muva.grounding.rules import check_rules
from tracking.pictures import part_mask_sheet
from workflows.progress import track
from workflows.runtime.cluster import ray_cluster
from workflows.runtime.expert_pool import Actors, Spent, ground_shards
from workflows.session import Session
from workflows.steps.labels import IMPORTED, choose_labels
from workflows.steps.refine import refine
from workflows.steps.step import Done, Step, Tell, do_step

if TYPE_CHECKING:  # MLflow takes a second and 80 MB, and workers never need it
    from tracking.runs import Run

SHOWN_IMAGES = 12
SHOWN_GRID = (16, 8)


def ground(
    session: Session, source: Artifact, config: GroundingConfig, actors: Actors | None = None
) -> Done:
    """The pseudo-labels of a data set by the expert that the settings name; see `muva masks` too.

    The expert `imported` stands for the newest labels that `muva masks import` has made.
    """
    check_rules(config.rules)
    dataset = open_dataset(source)
    if config.expert == IMPORTED:
        return _imported(session, source, dataset, config)
    expert = choose_expert(config)
    settings = label_config(expert, config.phrases)
    artifact = Artifact(
        session.store,
        "labels",
        dataset.name,
        fingerprint([settings, dataset.name, dataset.fingerprint]),
    )

    def work(tell: Tell) -> dict[str, Any]:
        waiting = set(range(len(dataset.shards))) - finished_parts(artifact)
        if waiting:
            with ray_cluster(), track(f"ground {dataset.name}") as progress:
                total = dataset.summary.images
                before = total - sum(dataset.shards[shard].rows for shard in waiting)
                progress.update(before, total)
                spent = ground_shards(
                    dataset,
                    artifact,
                    expert,
                    config.phrases,
                    shards=waiting,
                    actors=actors or Actors(),
                    most_aside=allowed_failures(total, config.quarantine_limit),
                    tell=lambda looked_at, spent: progress.update(
                        before + looked_at, total, note=_pace(spent)
                    ),
                )
            tell(
                {
                    "grounded/images": spent.images,
                    "grounded/failed": spent.failed,
                    "grounded/images_per_s": spent.images_per_s,
                    "grounded/decode_s": spent.decode_s,
                    "grounded/model_s": spent.model_s,
                },
                None,
            )
        return summarise_labels(
            artifact,
            dataset,
            parts=list(config.phrases),
            quarantine_limit=config.quarantine_limit,
        )

    def report(run: Run, summary: dict[str, Any]) -> None:
        run.set_tags({"source": dataset.name, "expert": config.expert})
        found = {f"found/{part}": share for part, share in summary["found"].items()}
        run.log_metrics(found | {"images": summary["images"], "failed": summary["failed"]})
        run.log_image("pseudo-labels.png", _sheet(dataset, artifact))

    step = Step(
        label=f"ground {dataset.name}",
        artifact=artifact,
        format_version=LABEL_FORMAT,
        config=settings,
        inputs={"dataset": source.address},
    )
    done = do_step(step, session=session, work=work, report=report)
    return refine(session, source, done.artifact, config.rules) if config.rules else done


def _imported(
    session: Session, source: Artifact, dataset: Dataset, config: GroundingConfig
) -> Done:
    artifact = choose_labels(session, dataset, expert=IMPORTED)
    if config.rules:
        return refine(session, source, artifact, config.rules)
    manifest = artifact.manifest(format_version=LABEL_FORMAT)
    assert manifest is not None
    return Done(artifact=artifact, summary=manifest["summary"], seconds=0.0, computed=False)


def _pace(spent: Spent) -> str:
    told = []
    if not (spent.actors or spent.starting):
        told.append("no node has room for an actor")
    if spent.starting:
        told.append(f"{spent.actors} of {spent.actors + spent.starting} actors started")
    if spent.images_per_s:
        told.append(f"{spent.images_per_s:.0f} images/s")
    if spent.failed:
        told.append(f"{spent.failed} set aside")
    return ", ".join(told)


def _sheet(dataset: Dataset, labels: Artifact) -> Image.Image:
    """Some images under their part masks."""
    chosen = np.linspace(0, dataset.summary.images - 1, SHOWN_IMAGES).astype(int)
    shard_of, row_of = dataset.places_of(chosen)
    shards = np.unique(shard_of).tolist()  # few of them, which is all that is read
    shown: list[dict[str, Any]] = []
    for shard in shards:
        rows = dataset.read_shard(shard, ["image_id", "pid", "image"])
        shown += rows.take(row_of[shard_of == shard]).to_pylist()
    opened = open_labels(labels, dataset=dataset, shards=shards)
    masks = opened.masks_on(SHOWN_GRID, [row["image_id"] for row in shown])
    return part_mask_sheet(
        [decode_rgb(row["image"]) for row in shown],
        {"pseudo-label": masks.numpy()},
        grid=SHOWN_GRID,
        parts=opened.parts,
        title=f"Pseudo-labels of {dataset.name}",
        captions=[f"{row['pid']:04d}" for row in shown],
    )

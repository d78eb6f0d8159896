"""`muva ground`: an expert finds the body parts of every image; its answers are pseudo-labels.

Ray actors hold the expert, loaded once, and take a shard at a time. A shard's labels are written
when it is done, so work that stops goes on with the shards that are missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import numpy as np
import ray
from PIL import Image

from muva.config import PARTS, GroundingConfig, load_recipe
from muva.data.artifacts import Artifact, fingerprint
from muva.data.images import decode_rgb
from muva.data.shards import Dataset, open_dataset
from muva.errors import SettingsError
from muva.grounding.expert import PHRASES
from muva.grounding.experts import make_expert
from muva.grounding.ground import ground_shard, label_config
from muva.grounding.labels import (
    LABEL_FORMAT,
    finished_parts,
    open_labels,
    summarise_labels,
    write_label_part,
)
from muva.grounding.part_masks import part_masks, patch_centres
from tracking.pictures import part_mask_sheet
from workflows.board import results
from workflows.cluster import cpus, ray_cluster
from workflows.data import datasets_of
from workflows.progress import Track, track
from workflows.session import (
    Session,
    json_option,
    override_option,
    print_result,
    recipe_option,
    session_options,
)
from workflows.steps import Done, Step, do_step

if TYPE_CHECKING:  # MLflow takes a second and 80 MB, and workers never need it
    from tracking.runs import Run

MOST_RESTARTS = 3
SHARDS_AHEAD = 2
"""Shards waiting per actor: enough to keep it busy, few enough to bound the driver's memory."""

SHOWN_IMAGES = 12
SHOWN_GRID = (16, 8)


def ground(session: Session, source: Artifact, config: GroundingConfig) -> Done:
    """The pseudo-labels of a data set by the expert that the settings name."""
    dataset = open_dataset(source)
    settings = label_config(make_expert(config.expert))
    artifact = Artifact(
        session.store,
        "labels",
        dataset.name,
        fingerprint([settings, dataset.name, dataset.fingerprint]),
    )

    def work(_: object) -> dict[str, Any]:
        with ray_cluster(), track(f"ground {dataset.name}") as progress:
            _ground_shards(dataset, artifact, config, progress)
        return summarise_labels(artifact, dataset, parts=list(PHRASES))

    def report(run: Run, summary: dict[str, Any]) -> None:
        run.tags({"source": dataset.name, "expert": config.expert})
        run.metrics({f"found/{part}": share for part, share in summary["found"].items()})
        run.picture("pseudo-labels.png", _sheet(dataset, artifact))

    step = Step(
        label=f"ground {dataset.name}",
        artifact=artifact,
        format_version=LABEL_FORMAT,
        config=settings,
        inputs={"dataset": source.address},
    )
    return do_step(step, session=session, work=work, report=report)


def _ground_shards(
    dataset: Dataset, artifact: Artifact, config: GroundingConfig, progress: Track
) -> None:
    waiting = sorted(set(range(len(dataset.shards))) - finished_parts(artifact))
    if not waiting:
        return
    # A lost actor is started again, and takes up the shards that it held.
    grounder: Any = ray.remote(
        num_cpus=1, max_restarts=MOST_RESTARTS, max_task_retries=MOST_RESTARTS
    )(_Grounder)
    actors = [
        grounder.remote(dataset.artifact, artifact, config.expert)
        for _ in range(min(len(waiting), cpus()))
    ]
    total = dataset.summary.images
    done = total - sum(dataset.shards[shard].rows for shard in waiting)
    progress.update(done, total)
    running = {}
    idle = actors * SHARDS_AHEAD
    while waiting or running:
        while waiting and idle:
            actor, shard = idle.pop(0), waiting.pop(0)
            running[actor.ground.remote(shard)] = actor, shard
        finished, _ = ray.wait(list(running))
        for reference in finished:
            actor, shard = running.pop(reference)
            results([reference])
            idle.append(actor)
            done += dataset.shards[shard].rows
            progress.update(done, total)


class _Grounder:
    """An expert at work: labels one shard after the other."""

    def __init__(self, dataset: Artifact, labels: Artifact, expert: str) -> None:
        self._dataset = open_dataset(dataset)
        self._labels = labels
        self._expert = make_expert(expert)

    def ground(self, shard: int) -> None:
        """Writes the labels of one shard."""
        table = ground_shard(self._dataset, shard, expert=self._expert)
        write_label_part(self._labels, shard, table)


def _sheet(dataset: Dataset, labels: Artifact) -> Image.Image:
    """Some images under their part masks."""
    rows = dataset.rows(["image_id", "pid", "camid"])
    chosen = rows.take(np.linspace(0, len(rows) - 1, SHOWN_IMAGES).astype(int))
    ids = chosen["image_id"].to_pylist()
    boxes, found = open_labels(labels, dataset=dataset).boxes(ids, parts=PARTS)
    height, width = SHOWN_GRID
    masks = part_masks(
        boxes,
        found,
        row_centres=patch_centres(height, patch=1, stride=1),
        column_centres=patch_centres(width, patch=1, stride=1),
    )
    return part_mask_sheet(
        [decode_rgb(image) for image in dataset.read_images(chosen["row"].to_numpy())],
        {"pseudo-label": masks.numpy()},
        grid=SHOWN_GRID,
        parts=PARTS,
        title=f"Pseudo-labels of {dataset.name}",
        captions=[f"{pid:04d}" for pid in chosen["pid"].to_pylist()],
    )


@click.command(name="ground")
@click.argument("dataset")
@recipe_option
@override_option
@json_option
@session_options
def ground_verb(
    dataset: str, recipe: str, overrides: tuple[str, ...], as_json: bool, session: Session
) -> None:
    """Make part pseudo-labels for DATASET.

    \b
    muva ground syn-station --set grounding.expert=annotated
    """
    settings = load_recipe(recipe, overrides=overrides)
    if settings.grounding is None:
        raise SettingsError(
            f"Recipe {settings.name}: grounding is null, which names no expert; expected "
            "--set grounding.expert=NAME"
        )
    source = datasets_of(session, [dataset], settings.synthetic)[dataset].artifact
    done = ground(session, source, settings.grounding)
    found = ", ".join(f"{part} {share:.1%}" for part, share in done.summary["found"].items())
    print_result(
        {"artifact": done.artifact.uri, **done.summary},
        as_json=as_json,
        text=f"{done.artifact.uri}\n{done.summary['images']} images; found: {found}",
    )

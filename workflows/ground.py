"""`muva ground`: an expert finds the body parts of every image; its answers are pseudo-labels.

Ray actors hold the expert, loaded once, and take a shard at a time. A shard's labels are written
when it is done, so work that stops goes on with the shards that are missing, and drivers that
ground the same data set at once share its shards: what one has finished no other computes.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import ray
import torch
from PIL import Image

from muva.config import GroundingConfig, load_recipe, with_settings
from muva.data.artifacts import Artifact, fingerprint
from muva.data.images import decode_rgb
from muva.data.shards import Dataset, open_dataset
from muva.errors import SettingsError
from muva.grounding.experts import ChosenExpert, choose_expert
from muva.grounding.ground import ground_shard, label_config
from muva.grounding.labels import (
    LABEL_FORMAT,
    finished_parts,
    label_key,
    open_labels,
    summarise_labels,
    write_label_part,
)
from muva.grounding.part_masks import part_masks, patch_centres
from tracking.pictures import part_mask_sheet
from workflows.board import results
from workflows.cluster import cpus, gpus, ray_cluster
from workflows.data import datasets_of
from workflows.progress import Track, track
from workflows.session import (
    NAMES,
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Actors:
    """The processes that hold the expert."""

    count: int | None = None
    """None: as many as the cluster has room for."""
    cpus_each: int = 1
    gpus_each: float | None = None
    """None: one for an expert that wants it, where the cluster has any."""

    def gpus_each_of(self, expert: ChosenExpert) -> float:
        """What an actor with this expert holds; a fraction lets several share a GPU."""
        if self.gpus_each is not None:
            return self.gpus_each
        return 1.0 if expert.info.parameters and expert.name != "http" and gpus() else 0.0

    def count_of(self, expert: ChosenExpert) -> int:
        """How many actors there are."""
        if self.count is not None:
            return self.count
        share = self.gpus_each_of(expert)
        room = cpus() // self.cpus_each
        return max(1, min(room, int(gpus() / share)) if share else room)


def ground(
    session: Session, source: Artifact, config: GroundingConfig, actors: Actors | None = None
) -> Done:
    """The pseudo-labels of a data set by the expert that the settings name."""
    dataset = open_dataset(source)
    expert = choose_expert(config)
    settings = label_config(expert, config.phrases)
    artifact = Artifact(
        session.store,
        "labels",
        dataset.name,
        fingerprint([settings, dataset.name, dataset.fingerprint]),
    )

    def work(_: object) -> dict[str, Any]:
        with ray_cluster(), track(f"ground {dataset.name}") as progress:
            _ground_shards(dataset, artifact, expert, config.phrases, actors or Actors(), progress)
        return summarise_labels(
            artifact,
            dataset,
            parts=list(config.phrases),
            quarantine_limit=config.quarantine_limit,
        )

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
    dataset: Dataset,
    artifact: Artifact,
    expert: ChosenExpert,
    phrases: Mapping[str, str],
    actors: Actors,
    progress: Track,
) -> None:
    waiting = list(set(range(len(dataset.shards))) - finished_parts(artifact))
    if not waiting:
        return
    # In an order of its own: drivers that ground the same data set at once meet in few shards.
    random.shuffle(waiting)
    # A lost actor is started again, and takes up the shards that it held.
    grounder: Any = ray.remote(
        num_cpus=actors.cpus_each,
        num_gpus=actors.gpus_each_of(expert),
        max_restarts=MOST_RESTARTS,
        max_task_retries=MOST_RESTARTS,
    )(_Grounder)
    pool = [
        grounder.remote(dataset.artifact, artifact, expert, dict(phrases), actors.cpus_each)
        for _ in range(min(len(waiting), actors.count_of(expert)))
    ]
    total = dataset.summary.images
    done = total - sum(dataset.shards[shard].rows for shard in waiting)
    progress.update(done, total)
    running = {}
    # No shard waits for an actor that is still to get its cores: where another driver holds them,
    # and waits for cores in its turn, neither would ever end.
    starting = {actor.ready.remote(): actor for actor in pool}
    idle: list[Any] = []
    while waiting or running:
        while waiting and idle:
            actor, shard = idle.pop(0), waiting.pop(0)
            running[actor.ground.remote(shard)] = actor, shard
        finished, _ = ray.wait([*running, *starting])
        for reference in finished:
            results([reference])
            if reference in starting:
                idle += [starting.pop(reference)] * SHARDS_AHEAD
                continue
            actor, shard = running.pop(reference)
            idle.append(actor)
            done += dataset.shards[shard].rows
            progress.update(done, total)


class _Grounder:
    """An expert at work: labels one shard after the other."""

    def __init__(
        self,
        dataset: Artifact,
        labels: Artifact,
        expert: ChosenExpert,
        phrases: Mapping[str, str],
        threads: int,
    ) -> None:
        torch.set_num_threads(threads)
        self._dataset = open_dataset(dataset)
        self._labels = labels
        self._chosen, self._phrases = expert, phrases
        self._expert = expert.load()

    def ready(self) -> None:
        """Returns once the expert is loaded."""

    def ground(self, shard: int) -> None:
        """Writes the labels of one shard, unless another driver's actor has meanwhile."""
        if self._labels.store.exists(self._labels.key(label_key(shard))):
            return
        table = ground_shard(
            self._dataset,
            shard,
            expert=self._expert,
            name=self._chosen.name,
            phrases=self._phrases,
            batch_images=self._chosen.info.batch_images,
        )
        write_label_part(self._labels, shard, table)


def _sheet(dataset: Dataset, labels: Artifact) -> Image.Image:
    """Some images under their part masks."""
    rows = dataset.rows(["image_id", "pid", "camid"])
    chosen = rows.take(np.linspace(0, len(rows) - 1, SHOWN_IMAGES).astype(int))
    ids = chosen["image_id"].to_pylist()
    opened = open_labels(labels, dataset=dataset)
    boxes, found = opened.boxes(ids)
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
        parts=opened.parts,
        title=f"Pseudo-labels of {dataset.name}",
        captions=[f"{pid:04d}" for pid in chosen["pid"].to_pylist()],
    )


@click.command(name="ground")
@click.argument("dataset")
@click.option("--expert", help="Who looks; `muva experts` lists them. [the recipe's]")
@click.option("--parts", type=NAMES, help="Only these of the recipe's parts.")
@click.option(
    "--phrases",
    multiple=True,
    metavar="PART=PHRASE",
    help="Another part, or another phrase for one; may be repeated.",
)
@click.option("--actors", "count", type=click.IntRange(min=1), help="Processes. [all that fit]")
@click.option(
    "--cpus-per-actor",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Cores of each.",
)
@click.option(
    "--gpus-per-actor", type=click.FloatRange(min=0), help="0.5: two share one. [1, if there are]"
)
@recipe_option
@override_option
@json_option
@session_options
def ground_verb(
    dataset: str,
    expert: str | None,
    parts: tuple[str, ...] | None,
    phrases: tuple[str, ...],
    count: int | None,
    cpus_per_actor: int,
    gpus_per_actor: float | None,
    recipe: str,
    overrides: tuple[str, ...],
    as_json: bool,
    session: Session,
) -> None:
    """Make part pseudo-labels for DATASET.

    \b
    muva ground syn-station --expert annotated
    muva ground mine --expert grounding-dino --phrases shoes="the shoes"
    muva ground mine --expert florence-2 --set grounding.checkpoint=/models/florence-2-large
    """
    settings = load_recipe(recipe, overrides=overrides)
    changes: dict[str, Any] = {}
    if expert is not None:
        changes["grounding.expert"] = expert
    if settings.grounding is not None and (parts or phrases):
        changes["grounding.phrases"] = _asked(settings.grounding.phrases, parts, phrases)
    settings = with_settings(settings, changes, where=f"{recipe} with the options given")
    if settings.grounding is None:
        raise SettingsError(
            f"Recipe {settings.name}: grounding is null, which names no expert; expected "
            "--set grounding.expert=NAME"
        )
    source = datasets_of(session, [dataset], settings.synthetic)[dataset].artifact
    actors = Actors(count=count, cpus_each=cpus_per_actor, gpus_each=gpus_per_actor)
    done = ground(session, source, settings.grounding, actors)
    found = ", ".join(f"{part} {share:.1%}" for part, share in done.summary["found"].items())
    print_result(
        {"artifact": done.artifact.uri, **done.summary},
        as_json=as_json,
        text=f"{done.artifact.uri}\n{done.summary['images']} images; found: {found}",
    )


def _asked(
    known: Mapping[str, str], parts: Sequence[str] | None, given: Sequence[str]
) -> dict[str, str]:
    """Part -> phrase: the recipe's, with others as `part=phrase`, and of them all only `parts`."""
    phrases = dict(known)
    for entry in given:
        part, equals, phrase = entry.partition("=")
        if not equals:
            raise click.UsageError(f"--phrases {entry}: expected PART=PHRASE, as shoes='the shoes'")
        phrases[part.strip()] = phrase.strip()
    unknown = [part for part in parts or () if part not in phrases]
    if unknown:
        raise click.UsageError(
            f"--parts {','.join(unknown)}: expected some of {', '.join(phrases)}, or a phrase for "
            f"each with --phrases {unknown[0]}='the {unknown[0]}'"
        )
    return {part: phrases[part] for part in parts or phrases}
